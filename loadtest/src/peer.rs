//! One peer at a time, which waits for what must come: for those that misbehave, and for those that
//! are beside them.

use crate::Outcome;
use crate::codec::{self, Envelope, Received};
use crate::tls::{Dialler, Offer};
use crate::wire::{Tag, Target};
use rustls::{ClientConnection, StreamOwned};
use socket2::{Domain, SockRef, Socket, Type};
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

/// How long the relay may take for an answer, but for the grace of a server-id.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// What a binary is told of a phone that went without a close (PROTOCOL.md, chapter 4).
const GONE_WITHOUT_CLOSE: u16 = 1001;

/// Whom peers dial, and from where.
pub(crate) struct Dial {
    target: Target,
    tls: Option<Dialler>,
    /// In turn; none for any.
    sources: Vec<IpAddr>,
    next: usize,
}

impl Dial {
    /// # Errors
    ///
    /// When there is nobody to trust.
    pub(crate) fn new(target: &Target, sources: Vec<IpAddr>) -> Outcome<Self> {
        let trust = target.tls.as_ref();
        let tls = trust.map(|trust| Dialler::new(trust, Offer::default())).transpose()?;
        Ok(Self { target: target.clone(), tls, sources, next: 0 })
    }

    pub(crate) fn target(&self) -> &Target {
        &self.target
    }

    /// A connection, over TLS if the target is; with `narrow` the kernel takes in little for it.
    pub(crate) fn connect(&mut self, narrow: Option<usize>) -> Outcome<Peer> {
        let address = self.target.address;
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        if let Some(bytes) = narrow {
            socket.set_recv_buffer_size(bytes)?;
        }
        if let Some(source) = self.sources.get(self.next % self.sources.len().max(1)) {
            self.next += 1;
            socket.bind(&SocketAddr::new(*source, 0).into())?;
        }
        socket.connect_timeout(&address.into(), PATIENCE)?;
        socket.set_tcp_nodelay(true)?;
        let mut tcp = TcpStream::from(socket);
        tcp.set_read_timeout(Some(PATIENCE))?;
        tcp.set_write_timeout(Some(PATIENCE))?;
        let stream = match &mut self.tls {
            None => Stream::Tcp(tcp),
            Some(dialler) => {
                let mut tls = dialler.begin(Tag::Phone(0))?;
                while tls.is_handshaking() {
                    tls.complete_io(&mut tcp)?;
                }
                Stream::Tls(Box::new(StreamOwned::new(tls, tcp)))
            }
        };
        Ok(Peer { stream, received: Vec::new() })
    }

    /// One that has its 101.
    pub(crate) fn upgrade(
        &mut self,
        id: &str,
        phone: bool,
        narrow: Option<usize>,
    ) -> Outcome<Peer> {
        self.connect(narrow)?.upgraded(&self.target, id, phone)
    }

    pub(crate) fn binary(&mut self, id: &str) -> Outcome<Peer> {
        self.upgrade(id, false, None)
    }

    pub(crate) fn phone(&mut self, id: &str) -> Outcome<Peer> {
        self.upgrade(id, true, None)
    }
}

enum Stream {
    Tcp(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Read for Stream {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(tcp) => tcp.read(bytes),
            Self::Tls(tls) => tls.read(bytes),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(tcp) => tcp.write(bytes),
            Self::Tls(tls) => tls.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Tcp(tcp) => tcp.flush(),
            Self::Tls(tls) => tls.flush(),
        }
    }
}

/// One frame with a mask of zeros, which a relay must take like any other.
pub(crate) fn masked(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    codec::encode(&mut frame, opcode, [0; 4], payload.len(), |out| out.extend_from_slice(payload));
    frame
}

/// A connection that waits for what must come.
pub(crate) struct Peer {
    stream: Stream,
    received: Vec<u8>,
}

/// What a peer waits for.
pub(crate) enum Event {
    Text(Vec<u8>),
    Pinged,
    Closed(Option<u16>),
}

impl Peer {
    /// The socket, below TLS if there is any.
    pub(crate) fn tcp(&self) -> &TcpStream {
        match &self.stream {
            Stream::Tcp(tcp) => tcp,
            Stream::Tls(tls) => tls.get_ref(),
        }
    }

    /// The socket, and the TLS on it.
    pub(crate) fn into_parts(self) -> (TcpStream, Option<ClientConnection>) {
        match self.stream {
            Stream::Tcp(tcp) => (tcp, None),
            Stream::Tls(tls) => {
                let (tls, tcp) = tls.into_parts();
                (tcp, Some(tls))
            }
        }
    }

    fn upgraded(mut self, target: &Target, id: &str, phone: bool) -> Outcome<Self> {
        self.send(&codec::upgrade_request(&target.host, &target.prefix, id, phone))?;
        loop {
            if let Some(length) = codec::upgrade_answer(&self.received)? {
                self.received.drain(..length);
                return Ok(self);
            }
            self.receive()?;
        }
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) -> Outcome<()> {
        let sent = self.stream.write_all(bytes).and_then(|()| self.stream.flush());
        sent.map_err(|error| format!("it cannot send: {error}").into())
    }

    pub(crate) fn send_frame(&mut self, opcode: u8, payload: &[u8]) -> Outcome<()> {
        self.send(&masked(opcode, payload))
    }

    fn receive(&mut self) -> Outcome<()> {
        let mut bytes = [0; 16 * 1024];
        match self.stream.read(&mut bytes) {
            Ok(0) => Err("its connection ends where something was due".into()),
            Ok(count) => {
                self.received.extend_from_slice(bytes.get(..count).unwrap_or_default());
                Ok(())
            }
            Err(error) => Err(format!("something was due, and did not come: {error}").into()),
        }
    }

    /// What comes next. Pings are answered.
    pub(crate) fn event(&mut self) -> Outcome<Event> {
        loop {
            let Some((received, length)) = codec::decode(&self.received)? else {
                self.receive()?;
                continue;
            };
            let (event, ping) = match received {
                Received::Text(text) => (Some(Event::Text(text.to_vec())), None),
                Received::Ping(payload) => (Some(Event::Pinged), Some(payload.to_vec())),
                Received::Pong => (None, None),
                Received::Close { code, .. } => (Some(Event::Closed(code)), None),
            };
            self.received.drain(..length);
            if let Some(payload) = ping {
                self.send_frame(codec::PONG, &payload)?;
            }
            if let Some(event) = event {
                return Ok(event);
            }
        }
    }

    pub(crate) fn text(&mut self) -> Outcome<Vec<u8>> {
        loop {
            match self.event()? {
                Event::Text(text) => return Ok(text),
                Event::Pinged => {}
                Event::Closed(code) => {
                    return Err(format!("it is closed with {code:?} where a frame was due").into());
                }
            }
        }
    }

    pub(crate) fn answer_ping(&mut self) -> Outcome<()> {
        match self.event()? {
            Event::Pinged => Ok(()),
            _ => Err("something else comes where a ping was due".into()),
        }
    }

    pub(crate) fn expect_close(&mut self, wanted: u16) -> Outcome<()> {
        loop {
            match self.event()? {
                Event::Closed(Some(code)) if code == wanted => return Ok(()),
                Event::Closed(code) => {
                    return Err(format!("it is closed with {code:?} where {wanted} was due").into());
                }
                Event::Pinged => {}
                Event::Text(_) => {
                    return Err(format!("a frame comes where a close {wanted} was due").into());
                }
            }
        }
    }

    /// The binary is told that its phone went without a close frame of its own.
    pub(crate) fn expect_gone(&mut self, phone: &str) -> Outcome<()> {
        let text = self.text()?;
        match codec::read_envelope(&text) {
            Some(Envelope::Closed { conn_id, code })
                if conn_id == phone && code == GONE_WITHOUT_CLOSE =>
            {
                Ok(())
            }
            other => {
                Err(format!("the binary is brought {other:?} where the end of {phone} was due")
                    .into())
            }
        }
    }

    /// Goes without a word, and throws away what is under way.
    pub(crate) fn reset(self) {
        // Without it the connection ends too, only more politely.
        let _ = SockRef::from(self.tcp()).set_linger(Some(Duration::ZERO));
    }
}
