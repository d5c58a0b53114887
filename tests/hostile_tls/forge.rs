//! Records that no TLS library would make: whatever type, length and content, with the keys of a
//! handshake that was honest. The suites are those of ChaCha20-Poly1305, whose records are all but
//! the same in both versions (RFC 7905, RFC 8446).

use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use rustls::crypto::aws_lc_rs::cipher_suite::{
    TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, TLS13_CHACHA20_POLY1305_SHA256,
};
use rustls::version::{TLS12, TLS13};
use rustls::{ConnectionTrafficSecrets, ProtocolVersion};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::common::{Door, Raw, Request, soon};

pub(super) const CHANGE_CIPHER_SPEC: u8 = 20;
pub(super) const ALERT: u8 = 21;
pub(super) const HANDSHAKE: u8 = 22;
pub(super) const DATA: u8 = 23;

/// The doors through which a [`Forge`] can be had.
pub(super) fn forgeable(door: &Door) -> [Door; 2] {
    [
        door.speaking(&TLS12, &[TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256]),
        door.speaking(&TLS13, &[TLS13_CHACHA20_POLY1305_SHA256]),
    ]
    .map(|door| door.with(|config| config.enable_secret_extraction = true))
}

/// One direction's key.
struct Half {
    key: LessSafeKey,
    iv: Vec<u8>,
    number: u64,
}

impl Half {
    fn new((number, secrets): (u64, ConnectionTrafficSecrets)) -> Self {
        let ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } = secrets else {
            panic!("not the suite that was asked for")
        };
        let key = UnboundKey::new(&CHACHA20_POLY1305, key.as_ref()).unwrap();
        Self { key: LessSafeKey::new(key), iv: iv.as_ref().to_vec(), number }
    }

    fn nonce(&mut self) -> Nonce {
        let mut nonce: [u8; 12] = self.iv.as_slice().try_into().unwrap();
        for (byte, number) in nonce[4..].iter_mut().zip(self.number.to_be_bytes()) {
            *byte ^= number;
        }
        self.number += 1;
        Nonce::assume_unique_for_key(nonce)
    }
}

/// The end of a TLS connection that goes on by hand.
pub(super) struct Forge {
    tcp: TcpStream,
    is_13: bool,
    tx: Half,
    rx: Half,
    unread: Vec<u8>,
}

impl Forge {
    /// A connection that has asked for `/healthz`, and may ask on.
    pub(super) async fn visitor(door: &Door) -> Self {
        let mut raw = Raw::through(door).await;
        raw.send(Request::get("/healthz")).await;
        assert_eq!(raw.response().await.status, 200);
        Self::of(raw)
    }

    /// A binary that has its 101.
    pub(super) async fn binary(door: &Door, id: &str) -> Self {
        Self::of(Raw::through(door).await.upgrade(Request::server(id)).await)
    }

    /// Takes over from a peer that has read all that was sent to it.
    pub(super) fn of(raw: Raw) -> Self {
        let (tcp, tls) = raw.into_parts();
        let is_13 = tls.protocol_version() == Some(ProtocolVersion::TLSv1_3);
        let secrets = tls.dangerous_extract_secrets().unwrap();
        let (tx, rx) = (Half::new(secrets.tx), Half::new(secrets.rx));
        Self { tcp, is_13, tx, rx, unread: Vec::new() }
    }

    /// A record of this type and content.
    pub(super) fn record(&mut self, kind: u8, content: &[u8]) -> Vec<u8> {
        self.padded(kind, content, 0)
    }

    /// The same with so much padding, which only TLS 1.3 has.
    pub(super) fn padded(&mut self, kind: u8, content: &[u8], padding: usize) -> Vec<u8> {
        let mut body = content.to_vec();
        let number = self.tx.number;
        if self.is_13 {
            body.push(kind);
            body.resize(body.len() + padding, 0);
        }
        let outer = if self.is_13 { DATA } else { kind };
        let sealed = u16::try_from(body.len() + 16).unwrap().to_be_bytes();
        let header = [&[outer, 3, 3], &sealed[..]].concat();
        let aad = match self.is_13 {
            true => header.clone(),
            false => {
                let plain = u16::try_from(body.len()).unwrap().to_be_bytes();
                [&number.to_be_bytes()[..], &[kind, 3, 3], &plain].concat()
            }
        };
        let nonce = self.tx.nonce();
        self.tx.key.seal_in_place_append_tag(nonce, Aad::from(aad), &mut body).unwrap();
        [header, body].concat()
    }

    /// Sends bytes as they are. The relay may have ended the connection.
    pub(super) async fn send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        soon("send", self.tcp.write_all(bytes.as_ref())).await.is_ok()
    }

    /// The next record's type and content; none at the end of TCP, which may be a reset.
    pub(super) async fn receive(&mut self) -> Option<(u8, Vec<u8>)> {
        loop {
            if let [outer, 3, 3, high, low, rest @ ..] = self.unread.as_slice() {
                let length = usize::from(u16::from_be_bytes([*high, *low]));
                if let Some(sealed) = rest.get(..length) {
                    let (outer, sealed) = (*outer, sealed.to_vec());
                    let opened = self.open(outer, sealed);
                    self.unread.drain(..5 + length);
                    return Some(opened);
                }
            }
            match soon("a record or the end", self.tcp.read_buf(&mut self.unread)).await {
                Ok(1..) => {}
                _ => {
                    assert!(self.unread.is_empty(), "half a record before the end");
                    return None;
                }
            }
        }
    }

    fn open(&mut self, outer: u8, mut sealed: Vec<u8>) -> (u8, Vec<u8>) {
        let length = u16::try_from(sealed.len()).unwrap();
        let aad = match self.is_13 {
            true => [&[outer, 3, 3], &length.to_be_bytes()[..]].concat(),
            false => {
                let plain = (length - 16).to_be_bytes();
                [&self.rx.number.to_be_bytes()[..], &[outer, 3, 3], &plain].concat()
            }
        };
        let nonce = self.rx.nonce();
        let opened = self.rx.key.open_in_place(nonce, Aad::from(aad), &mut sealed);
        let mut opened = opened.expect("the relay's record is whole").to_vec();
        if !self.is_13 {
            return (outer, opened);
        }
        while opened.last() == Some(&0) {
            opened.pop();
        }
        (opened.pop().unwrap(), opened)
    }

    /// The next application data.
    pub(super) async fn data(&mut self) -> Vec<u8> {
        loop {
            match self.receive().await {
                Some((DATA, data)) => return data,
                // A ticket, or word of a key that the relay has changed.
                Some((HANDSHAKE, _)) => {}
                other => panic!("not application data: {other:?}"),
            }
        }
    }

    /// The fatal alert with which the relay ends the connection; none if it just ends it. Nothing
    /// comes behind the alert.
    pub(super) async fn end(&mut self) -> Option<u8> {
        loop {
            let (kind, content) = self.receive().await?;
            if kind == ALERT && content[0] == 2 {
                assert_eq!(self.receive().await, None, "after a fatal alert");
                return Some(content[1]);
            }
        }
    }
}
