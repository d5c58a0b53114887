//! What sessions do with records of every kind, against rustls as client and as a server beside.

use super::record::{ALERT, APPLICATION_DATA, HANDSHAKE, Half, Protection};
use super::*;
use crate::control::certificates::provider;
use crate::handover::link;
use crate::handover::state::Bytes;
use rcgen::KeyPair;
use rustls::client::Resumption;
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::version::{TLS12, TLS13};
use rustls::{
    AlertDescription, CipherSuite, ClientConfig, ClientConnection, PeerMisbehaved, RootCertStore,
    ServerConnection, SupportedCipherSuite,
};
use std::io::{Read, Write};
use std::sync::OnceLock;

/// A server's configuration, and one of clients that trust it and speak this suite alone.
pub(in crate::worker) struct Configs {
    pub(in crate::worker) server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
}

pub(in crate::worker) fn configs(suite: SupportedCipherSuite) -> Configs {
    let key = KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(["relay.test".to_owned()]).unwrap();
    let certificate = params.self_signed(&key).unwrap().der().clone();
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone()).unwrap();
    let versions = [if suite.tls13().is_some() { &TLS13 } else { &TLS12 }];
    let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
    let mut server = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13, &TLS12])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    give_away(&mut server);
    let mut only = (*provider()).clone();
    only.cipher_suites = vec![suite];
    let mut client = ClientConfig::builder_with_provider(Arc::new(only))
        .with_protocol_versions(&versions)
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    client.resumption = Resumption::disabled();
    client.enable_secret_extraction = true;
    Configs { server: Arc::new(server), client: Arc::new(client) }
}

pub(in crate::worker) fn client(configs: &Configs) -> ClientConnection {
    ClientConnection::new(configs.client.clone(), "relay.test".try_into().unwrap()).unwrap()
}

/// The suites that a server with an ECDSA key has.
pub(in crate::worker) fn suites() -> Vec<SupportedCipherSuite> {
    let is_for_rsa =
        |suite: &SupportedCipherSuite| format!("{:?}", suite.suite()).contains("_RSA_");
    provider().cipher_suites.iter().copied().filter(|suite| !is_for_rsa(suite)).collect()
}

fn suite(id: CipherSuite) -> SupportedCipherSuite {
    suites().into_iter().find(|suite| suite.suite() == id).unwrap()
}

pub(in crate::worker) fn sealed(client: &mut ClientConnection) -> Vec<u8> {
    let mut bytes = Vec::new();
    while client.wants_write() {
        client.write_tls(&mut bytes).unwrap();
    }
    bytes
}

pub(in crate::worker) fn opened(client: &mut ClientConnection, mut bytes: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    while !bytes.is_empty() {
        if client.read_tls(&mut bytes).unwrap() == 0 {
            break;
        }
        client.process_new_packets().unwrap();
        let mut part = vec![0; 1 << 16];
        while let Ok(count @ 1..) = client.reader().read(&mut part) {
            plain.extend_from_slice(&part[..count]);
        }
    }
    plain
}

/// What a session makes of bytes: data, output, and what they have come to.
fn receive(session: &mut Session, bytes: &[u8]) -> (Vec<u8>, Vec<u8>, Received) {
    let (mut input, mut out) = (bytes.to_vec(), Vec::new());
    let mut plain = session.receive(&mut input, &mut out);
    let mut data = plain.kept().to_vec();
    data.extend_from_slice(&input[plain.data.clone()]);
    (data, out, plain.received)
}

/// The session in another process.
fn moved(session: &Session) -> Session {
    let bytes = postcard::to_allocvec(&session.give_out().unwrap()).unwrap();
    let given: link::Session = postcard::from_bytes(&bytes).unwrap();
    Session::take_in(&given, session.partial().to_vec(), &server()).unwrap()
}

/// The configuration of any server here.
fn server() -> Arc<ServerConfig> {
    static SERVER: OnceLock<Arc<ServerConfig>> = OnceLock::new();
    SERVER.get_or_init(|| configs(suites()[0]).server).clone()
}

fn shake(configs: &Configs) -> (ClientConnection, Session) {
    let (mut client, mut session) = (client(configs), Session::new(&configs.server));
    while client.is_handshaking() || session.is_handshaking() {
        let (data, out, received) = receive(&mut session, &sealed(&mut client));
        assert_eq!((data.as_slice(), received), (&b""[..], Received::Open));
        assert_eq!(opened(&mut client, &out), b"");
    }
    (client, session)
}

/// The other end of a session, by the same code with the keys in each other's place, which can say
/// what no client would.
struct Mirror {
    protection: Protection,
    sending: Half,
    receiving: Half,
}

impl Mirror {
    fn of(session: &Session) -> Self {
        let data = session.data().unwrap();
        let protection = Protection::of(suite(data.suite)).unwrap();
        let (sending, receiving) = (data.receiving.clone(), data.sending.clone());
        Self { protection, sending: Half::new(sending), receiving: Half::new(receiving) }
    }

    /// In TLS 1.3 the content ends with the type, and with padding.
    fn record(&mut self, kind: u8, content: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        assert!(self.sending.seal(&self.protection, kind, content, &mut out));
        out
    }

    fn padded(&mut self, kind: u8, content: &[u8], padding: usize) -> Vec<u8> {
        if self.protection.tls13().is_none() {
            return self.record(kind, content);
        }
        // What is sealed is the content with its type, its padding but one byte, and then a type,
        // which is that last byte.
        match padding {
            0 => self.record(kind, content),
            _ => self.record(0, &[content, &[kind], &vec![0; padding - 1]].concat()),
        }
    }

    /// Types and contents of all records.
    fn read(&mut self, mut bytes: &[u8]) -> Vec<(u8, Vec<u8>)> {
        let mut all = Vec::new();
        while !bytes.is_empty() {
            let length = self.protection.record_bytes(bytes).unwrap().unwrap();
            let (record, rest) = bytes.split_at(length);
            bytes = rest;
            let mut record = record.to_vec();
            let (kind, length) = self.receiving.open(&self.protection, &mut record).unwrap();
            let at = self.protection.data_offset();
            all.push((kind, record[at..at + length].to_vec()));
            if kind == HANDSHAKE {
                self.receiving.update(self.protection.tls13().unwrap());
            }
        }
        all
    }
}

/// One session for each suite, with a mirror.
fn mirrored() -> impl Iterator<Item = (Mirror, Session)> {
    suites().into_iter().map(|suite| {
        let (_, session) = shake(&configs(suite));
        (Mirror::of(&session), session)
    })
}

fn is_13(session: &Session) -> bool {
    let suite = session.data().unwrap().suite;
    format!("{suite:?}").starts_with("TLS13")
}

/// The alert that `bytes` end a session with.
fn alert(mirror: &mut Mirror, session: &mut Session, bytes: &[u8]) -> Option<AlertDescription> {
    let (_, out, received) = receive(session, bytes);
    assert!(matches!(received, Received::Failed(_)), "{received:?}");
    let alerts = mirror.read(&out);
    let (kind, content) = alerts.last()?;
    assert_eq!((*kind, content[0]), (ALERT, 2));
    // Nothing more is said, and nothing more is read.
    assert!(!session.encrypt(b"more", &mut Vec::new()));
    assert!(!session.close(&mut Vec::new()));
    let more = mirror.record(APPLICATION_DATA, b"more");
    assert_eq!(receive(session, &more), (Vec::new(), Vec::new(), Received::Open));
    Some(content[1].into())
}

#[test]
fn every_suite_of_the_provider_is_known() {
    for suite in &provider().cipher_suites {
        assert!(Protection::of(*suite).is_some(), "{suite:?}");
    }
}

#[test]
fn data_passes_both_ways_with_every_suite() {
    for suite in suites() {
        let (mut client, mut session) = shake(&configs(suite));
        for size in [1, 2, 1000, RECORD_BYTES - 1, RECORD_BYTES, RECORD_BYTES + 1, 60_000] {
            let data = vec![b'd'; size];
            client.writer().write_all(&data).unwrap();
            let (got, out, received) = receive(&mut session, &sealed(&mut client));
            assert!(got == data && out.is_empty() && received == Received::Open, "{size}");
            let mut out = Vec::new();
            assert!(session.encrypt(&data, &mut out));
            let overhead = if is_13(&session) { 22 } else { 29 };
            assert!(out.len() <= size + size.div_ceil(RECORD_BYTES) * overhead, "{size}");
            assert!(opened(&mut client, &out) == data);
        }
        client.send_close_notify();
        let (_, _, received) = receive(&mut session, &sealed(&mut client));
        assert_eq!(received, Received::Closed);
        // Our direction is still open, until we end it.
        let mut out = Vec::new();
        assert!(session.encrypt(b"still", &mut out) && session.close(&mut out));
        assert!(!session.close(&mut out) && !session.encrypt(b"no", &mut out));
        assert_eq!(opened(&mut client, &out), b"still");
        assert!(client.process_new_packets().unwrap().peer_has_closed());
    }
}

/// Records of every kind in one stream, which is then cut in two at every byte, and into bytes.
#[test]
fn records_may_be_split_at_every_byte() {
    for (mut mirror, session) in mirrored() {
        let data = session.data().unwrap();
        let mut stream = mirror.record(APPLICATION_DATA, b"first");
        stream.extend(mirror.record(APPLICATION_DATA, b""));
        stream.extend(mirror.record(ALERT, &[1, 90]));
        if is_13(&session) {
            stream.extend(mirror.record(HANDSHAKE, &[24, 0]));
            stream.extend(mirror.record(HANDSHAKE, &[0, 1, 0]));
            mirror.sending.update(mirror.protection.tls13().unwrap());
        } else {
            stream.extend(mirror.record(HANDSHAKE, &[1, 0, 0]));
            stream.extend(mirror.record(HANDSHAKE, &[3, 7, 7]));
            stream.extend(mirror.record(HANDSHAKE, &[7]));
        }
        stream.extend(mirror.padded(APPLICATION_DATA, b"second", 10));
        stream.extend(mirror.record(ALERT, &[1, 0]));
        let end = stream.len();
        stream.extend(mirror.record(APPLICATION_DATA, b"behind"));
        let check = |parts: &[&[u8]], what: usize| {
            let mut session = Session::revive(&data, Vec::new(), &provider()).unwrap();
            let (mut plain, mut last) = (Vec::new(), Received::Open);
            for part in parts {
                // It could move to another process at any time.
                session = moved(&session);
                let (data, _, received) = receive(&mut session, part);
                plain.extend(data);
                if received != Received::Open {
                    assert_eq!(last, Received::Open, "closed twice at {what}");
                    last = received;
                }
                if last != Received::Open {
                    assert_eq!(session.partial(), b"", "{what}");
                }
            }
            assert_eq!(plain, b"firstsecond", "split at {what}");
            assert_eq!(last, Received::Closed, "split at {what}");
        };
        for at in 0..=end {
            let (a, b) = stream.split_at(at);
            check(&[a, b], at);
        }
        for at in 1..30 {
            check(&stream.chunks(at).collect::<Vec<_>>(), at);
        }
    }
}

#[test]
fn sizes_end_where_the_rules_say() {
    for (mut mirror, mut session) in mirrored() {
        let full = vec![b'f'; RECORD_BYTES];
        let bytes = mirror.record(APPLICATION_DATA, &full);
        assert!(receive(&mut session, &bytes).0 == full);
        if is_13(&session) {
            for (data, padding) in
                [(0, RECORD_BYTES), (1, RECORD_BYTES - 1), (9000, 1), (9000, 7384)]
            {
                let bytes = mirror.padded(APPLICATION_DATA, &full[..data], padding);
                let (got, _, received) = receive(&mut session, &bytes);
                assert_eq!((got.len(), received), (data, Received::Open));
            }
            let long = mirror.padded(APPLICATION_DATA, b"x", RECORD_BYTES);
            let overflow = Some(AlertDescription::RecordOverflow);
            assert_eq!(alert(&mut mirror, &mut session, &long), overflow);
        }
    }
    for (mut mirror, mut session) in mirrored() {
        let long = mirror.record(APPLICATION_DATA, &vec![b'f'; RECORD_BYTES + 1]);
        let overflow = Some(AlertDescription::RecordOverflow);
        assert_eq!(alert(&mut mirror, &mut session, &long), overflow);
    }
    // By their header alone.
    for (mut mirror, mut session) in mirrored() {
        let most = RECORD_BYTES + if is_13(&session) { 256 } else { 2048 };
        let [high, low] = (most as u16 + 1).to_be_bytes();
        let header = [APPLICATION_DATA, 3, 3, high, low];
        let overflow = Some(AlertDescription::RecordOverflow);
        assert_eq!(alert(&mut mirror, &mut session, &header), overflow);
    }
}

/// Each of these ends a session with the alert that the standards have for it.
#[test]
// One table.
#[allow(clippy::too_many_lines)]
fn what_breaks_the_rules_is_answered_with_an_alert() {
    use AlertDescription as Alert;
    type Make = fn(&mut Mirror) -> Vec<u8>;
    let both: &[(Make, Alert)] = &[
        (|_| b"GET / HTTP/1.1\r\n".to_vec(), Alert::UnexpectedMessage),
        (|_| vec![20, 3, 3, 0, 1, 1], Alert::UnexpectedMessage),
        (|_| vec![24, 3, 3, 0, 1, 1], Alert::UnexpectedMessage),
        (|_| vec![APPLICATION_DATA, 2, 3, 0, 1], Alert::DecodeError),
        (|_| vec![APPLICATION_DATA, 3, 3, 0, 0], Alert::BadRecordMac),
        (|_| [&[APPLICATION_DATA, 3, 3, 0, 15][..], &[7; 15]].concat(), Alert::BadRecordMac),
        (|_| [&[APPLICATION_DATA, 3, 3, 0, 99][..], &[7; 99]].concat(), Alert::BadRecordMac),
        (|mirror| mirror.record(20, &[1]), Alert::UnexpectedMessage),
        (|mirror| mirror.record(24, &[1]), Alert::UnexpectedMessage),
        (|mirror| mirror.record(HANDSHAKE, &[]), Alert::UnexpectedMessage),
        (|mirror| mirror.record(HANDSHAKE, &[20, 0, 0, 1, 0]), Alert::UnexpectedMessage),
        (|mirror| mirror.record(HANDSHAKE, &[99]), Alert::UnexpectedMessage),
        (|mirror| mirror.record(ALERT, &[]), Alert::DecodeError),
        (|mirror| mirror.record(ALERT, &[1]), Alert::DecodeError),
        (|mirror| mirror.record(ALERT, &[1, 90, 0]), Alert::DecodeError),
        (|mirror| mirror.record(ALERT, &[1, 90, 1, 90]), Alert::DecodeError),
        (|mirror| mirror.record(ALERT, &[3, 0]), Alert::IllegalParameter),
        (
            |mirror| (0..33).flat_map(|_| mirror.record(APPLICATION_DATA, &[])).collect(),
            Alert::UnexpectedMessage,
        ),
        (
            |mirror| (0..5).flat_map(|_| mirror.record(ALERT, &[1, 90])).collect(),
            Alert::UnexpectedMessage,
        ),
        (
            |mirror| {
                mirror.record(APPLICATION_DATA, b"skipped");
                mirror.record(APPLICATION_DATA, b"out of turn")
            },
            Alert::BadRecordMac,
        ),
        (|mirror| mirror.record(APPLICATION_DATA, b"twice").repeat(2), Alert::BadRecordMac),
    ];
    let only_13: &[(Make, Alert)] = &[
        (|_| vec![ALERT, 3, 3, 0, 2, 1, 0], Alert::UnexpectedMessage),
        (|_| vec![HANDSHAKE, 3, 3, 0, 2, 1, 0], Alert::UnexpectedMessage),
        (|mirror| mirror.record(0, &[]), Alert::UnexpectedMessage),
        (|mirror| mirror.record(0, &[0; 100]), Alert::UnexpectedMessage),
        (|mirror| mirror.record(ALERT, &[1, 100]), Alert::DecodeError),
        (|mirror| mirror.record(HANDSHAKE, &[1, 0, 0, 0]), Alert::UnexpectedMessage),
        (|mirror| mirror.record(HANDSHAKE, &[24, 0, 1]), Alert::DecodeError),
        (|mirror| mirror.record(HANDSHAKE, &[24, 0, 0, 2]), Alert::DecodeError),
        (|mirror| mirror.record(HANDSHAKE, &[24, 0, 0, 1, 2]), Alert::IllegalParameter),
        (|mirror| mirror.record(HANDSHAKE, &[24, 0, 0, 1, 0, 24]), Alert::UnexpectedMessage),
        (
            |mirror| {
                let half = mirror.record(HANDSHAKE, &[24, 0]);
                [half, mirror.record(APPLICATION_DATA, b"amid")].concat()
            },
            Alert::UnexpectedMessage,
        ),
        (
            |mirror| {
                let update = |mirror: &mut Mirror| {
                    let record = mirror.record(HANDSHAKE, &[24, 0, 0, 1, 0]);
                    mirror.sending.update(mirror.protection.tls13().unwrap());
                    record
                };
                (0..33).flat_map(|_| update(mirror)).collect()
            },
            Alert::UnexpectedMessage,
        ),
    ];
    let only_12: &[(Make, Alert)] = &[
        (|mirror| mirror.record(HANDSHAKE, &[24, 0, 0, 1, 0]), Alert::UnexpectedMessage),
        (|mirror| mirror.record(HANDSHAKE, &[1, 1, 0, 0]), Alert::DecodeError),
        (|mirror| mirror.record(HANDSHAKE, &[1, 0, 0, 0, 1, 0, 0, 0]), Alert::UnexpectedMessage),
        (
            |mirror| {
                let half = mirror.record(HANDSHAKE, &[1, 0, 0, 9]);
                [half, mirror.record(APPLICATION_DATA, b"amid")].concat()
            },
            Alert::UnexpectedMessage,
        ),
    ];
    for id in suites().iter().map(SupportedCipherSuite::suite) {
        let configs = configs(suite(id));
        let special = if suite(id).tls13().is_some() { only_13 } else { only_12 };
        for (number, (make, expected)) in both.iter().chain(special).enumerate() {
            let (_, mut session) = shake(&configs);
            let mut mirror = Mirror::of(&session);
            let bytes = make(&mut mirror);
            let got = alert(&mut mirror, &mut session, &bytes);
            assert_eq!(got, Some(*expected), "{id:?} {number}");
        }
        // Any bit of a record.
        for bit in 0..27 * 8 {
            let mut session = shake_again(&configs, bit);
            let mut mirror = Mirror::of(&session);
            let mut bytes = mirror.record(APPLICATION_DATA, b"data");
            let length = bytes.len();
            bytes[(bit / 8) % length] ^= 1 << (bit % 8);
            let (data, _, received) = receive(&mut session, &bytes);
            let waits = (3..5).contains(&((bit / 8) % length));
            // The minor version is no part of what is protected in TLS 1.3.
            let is_same = is_13(&session) && (bit / 8) % length == 2;
            match received {
                Received::Failed(_) => assert!(data.is_empty()),
                _ if is_same => assert_eq!(data, b"data"),
                _ => assert!(waits && data.is_empty(), "{id:?} {bit}"),
            }
        }
        // An alert of the peer's needs no answer.
        let (_, mut session) = shake(&configs);
        let mut mirror = Mirror::of(&session);
        let bytes = mirror.record(ALERT, &[2, 20]);
        let (_, out, received) = receive(&mut session, &bytes);
        assert_eq!(out, b"");
        assert_eq!(received, Received::Failed(Error::AlertReceived(Alert::BadRecordMac)));
    }
}

/// One handshake will do for many tries with what came of it.
fn shake_again(configs: &Configs, number: usize) -> Session {
    thread_local! {
        static LAST: std::cell::RefCell<Option<Data>> = const { std::cell::RefCell::new(None) };
    }
    if number == 0 {
        let data = shake(configs).1.data();
        LAST.set(data);
    }
    LAST.with_borrow(|data| {
        Session::revive(data.as_ref().unwrap(), Vec::new(), &provider()).unwrap()
    })
}

#[test]
fn a_few_warnings_and_empty_records_do_no_harm() {
    for (mut mirror, mut session) in mirrored() {
        let mut bytes = Vec::new();
        for _ in 0..4 {
            (0..27).for_each(|_| bytes.extend(mirror.record(APPLICATION_DATA, &[])));
            bytes.extend(mirror.record(ALERT, &[1, 90]));
            bytes.extend(mirror.record(APPLICATION_DATA, b"x"));
        }
        assert_eq!(receive(&mut session, &bytes), (b"xxxx".to_vec(), vec![], Received::Open));
    }
}

#[test]
fn renegotiation_is_declined_once() {
    for id in [
        CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
        CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
    ] {
        let (_, mut session) = shake(&configs(suite(id)));
        let mut mirror = Mirror::of(&session);
        let hello = [&[1, 0, 1, 0][..], &[7; 256]].concat();
        let mut bytes: Vec<u8> =
            hello.chunks(100).flat_map(|part| mirror.record(HANDSHAKE, part)).collect();
        bytes.extend(mirror.record(APPLICATION_DATA, b"on"));
        let (data, out, received) = receive(&mut session, &bytes);
        assert_eq!((data.as_slice(), received), (&b"on"[..], Received::Open));
        let no_renegotiation = AlertDescription::NoRenegotiation.into();
        assert_eq!(mirror.read(&out), [(ALERT, vec![1, no_renegotiation])]);
        let again = mirror.record(HANDSHAKE, &hello);
        let (_, _, received) = receive(&mut session, &again);
        let error = PeerMisbehaved::TooManyRenegotiationRequests.into();
        assert_eq!(received, Received::Failed(error));
    }
}

/// A client of rustls' asks again and again, and follows where the session goes on.
#[test]
fn keys_are_updated_as_rustls_would() {
    for suite in suites().into_iter().filter(|suite| suite.tls13().is_some()) {
        let (mut client, mut session) = shake(&configs(suite));
        for round in 0..40_u8 {
            client.refresh_traffic_keys().unwrap();
            client.writer().write_all(&[round; 100]).unwrap();
            let (data, out, received) = receive(&mut session, &sealed(&mut client));
            assert_eq!((data, out, received), (vec![round; 100], Vec::new(), Received::Open));
            assert_eq!(session.data().unwrap().receiving.sequence, 1);
            // It is answered when there is something to say, and once however often it came.
            let mut out = Vec::new();
            assert!(session.encrypt(&[round], &mut out));
            assert_eq!(session.data().unwrap().sending.sequence, 1);
            assert_eq!(opened(&mut client, &out), [round]);
        }
        // One that asks often, and one that has half asked.
        (0..5).for_each(|_| client.refresh_traffic_keys().unwrap());
        let asked = sealed(&mut client);
        let (some, rest) = asked.split_at(asked.len() - 3);
        receive(&mut session, some);
        let mut out = Vec::new();
        assert!(session.encrypt(b"once", &mut out));
        assert_eq!(session.data().unwrap().sending.sequence, 1);
        receive(&mut session, rest);
        assert!(session.close(&mut out));
        assert_eq!(opened(&mut client, &out), b"once");
        assert!(client.process_new_packets().unwrap().peer_has_closed());
    }
}

/// The session with these numbers of records behind it.
fn aged(session: &Session, receiving: u64, sending: u64) -> (Mirror, Session) {
    let mut data = session.data().unwrap();
    data.receiving.sequence = receiving;
    data.sending.sequence = sending;
    let session = Session::revive(&data, Vec::new(), &provider()).unwrap();
    (Mirror::of(&session), session)
}

/// Records without data buy one another no time, and those that make new keys count as work.
#[test]
fn updates_and_empty_records_by_turns_come_to_an_end() {
    for (mut mirror, mut session) in mirrored() {
        let Some(suite) = mirror.protection.tls13() else { continue };
        let update = |mirror: &mut Mirror| {
            let record = mirror.record(HANDSHAKE, &[24, 0, 0, 1, 0]);
            mirror.sending.update(suite);
            record
        };
        let mut records = Vec::new();
        for _ in 0..16 {
            records.extend(update(&mut mirror));
            records.extend(mirror.record(APPLICATION_DATA, b""));
        }
        records.extend(mirror.record(APPLICATION_DATA, b"!"));
        let all = session.receive(&mut records, &mut Vec::new());
        assert_eq!(all.received, Received::Open);
        assert!(all.work > 16 * 32, "{}", all.work);
        let mut ended = 0;
        for number in 0..100 {
            let record = match number % 2 {
                0 => update(&mut mirror),
                _ => mirror.record(APPLICATION_DATA, b""),
            };
            if receive(&mut session, &record).2 != Received::Open {
                ended = number;
                break;
            }
        }
        assert_eq!(ended, 64, "the 33rd update since the last data");
    }
}

/// However little is opened at a time, nothing is lost.
#[test]
fn records_may_be_opened_a_few_at_a_time() {
    for (mut mirror, mut session) in mirrored() {
        let mut records: Vec<u8> =
            (0..200).flat_map(|n| mirror.record(APPLICATION_DATA, &[n])).collect();
        let partial = mirror.record(APPLICATION_DATA, b"the end");
        let (begin, end) = partial.split_at(20);
        records.extend_from_slice(begin);
        let (mut data, mut out, mut rest) = (Vec::new(), Vec::new(), &mut records[..]);
        loop {
            let mut plain = session.receive_some(rest, &mut out, 3);
            assert!(plain.work <= 3 && plain.kept().is_empty());
            data.extend_from_slice(&rest[plain.data.clone()]);
            let Some(left) = plain.left else { break };
            rest = &mut rest[left..];
        }
        assert_eq!((data, out.len()), ((0..200).collect(), 0));
        let mut input = [end, &mirror.record(APPLICATION_DATA, b"!")].concat();
        let mut plain = session.receive_some(&mut input, &mut out, 1);
        assert_eq!(plain.kept(), b"the end");
        assert_eq!((plain.data.len(), plain.left), (0, Some(end.len())));
        let mut plain = session.receive_some(&mut input[end.len()..], &mut out, 1);
        assert_eq!((plain.data.len(), plain.left), (1, None));
        assert!(plain.kept().is_empty());
    }
}

#[test]
fn no_key_is_used_for_too_long() {
    for (_, session) in mirrored() {
        let limit = Protection::of(suite(session.data().unwrap().suite)).unwrap().max_records();
        let (mut mirror, mut aged_session) = aged(&session, 7, limit - 3);
        let mut out = Vec::new();
        assert!(aged_session.encrypt(b"a", &mut out) && aged_session.encrypt(b"b", &mut out));
        let said = aged_session.encrypt(&vec![b'c'; 20_000], &mut out);
        let records = mirror.read(&out);
        let kinds: Vec<u8> = records.iter().map(|(kind, _)| *kind).collect();
        if is_13(&session) {
            // The last record of the key says that there is another.
            const D: u8 = APPLICATION_DATA;
            assert_eq!(kinds, [D, D, HANDSHAKE, D, D]);
            assert_eq!(records[2].1, [24, 0, 0, 1, 0]);
            assert_eq!((records[3].1.len(), records[4].1.len()), (RECORD_BYTES, 3616));
            assert!(said);
            assert_eq!(mirror.receiving.keys.sequence, 2);
        } else {
            assert_eq!(kinds, [APPLICATION_DATA, APPLICATION_DATA, ALERT]);
            assert_eq!(records[2].1, [1, 0]);
            assert!(!said && !aged_session.encrypt(b"d", &mut Vec::new()));
            assert_eq!(mirror.receiving.keys.sequence, limit);
        }
        // A write that begins before the limit and would end behind it.
        let (mut mirror, mut aged_session) = aged(&session, 7, limit - 2);
        let mut out = Vec::new();
        assert_eq!(aged_session.encrypt(&vec![b'c'; 20_000], &mut out), is_13(&session));
        let records = mirror.read(&out);
        assert_eq!(records.len(), if is_13(&session) { 3 } else { 2 });
    }
}

#[test]
fn keys_that_cannot_be_changed_are_used_up_some_time_before_their_end() {
    for (_, session) in mirrored() {
        let limit = Protection::of(suite(session.data().unwrap().suite)).unwrap().max_records();
        for (sequence, is_used_up) in [(0, false), (limit - 65_537, false), (limit - 65_536, true)]
        {
            let (_, mut aged_session) = aged(&session, 0, sequence);
            assert_eq!(aged_session.is_used_up(), is_used_up && !is_13(&session));
            assert!(aged_session.encrypt(b"still good", &mut Vec::new()));
        }
    }
}

#[test]
fn numbers_of_records_do_not_begin_anew() {
    for (_, session) in mirrored() {
        let (mut mirror, mut aged_session) = aged(&session, u64::MAX - 1, 0);
        let bytes = mirror.record(APPLICATION_DATA, b"last");
        assert_eq!(receive(&mut aged_session, &bytes).0, b"last");
        assert!(!mirror.sending.seal(&mirror.protection, APPLICATION_DATA, b"x", &mut Vec::new()));
        let header = [APPLICATION_DATA, 3, 3, 0, 40];
        let next = [&header[..], &[7; 40]].concat();
        let (_, out, received) = receive(&mut aged_session, &next);
        assert_eq!(received, Received::Failed(Error::DecryptError));
        assert_eq!(mirror.read(&out), [(ALERT, vec![2, AlertDescription::BadRecordMac.into()])]);
        // As large numbers as there are make nonces like any other.
        let (mut mirror, mut aged_session) = aged(&session, 1 << 40, 1 << 20);
        let bytes = mirror.record(APPLICATION_DATA, b"far");
        assert_eq!(receive(&mut aged_session, &bytes).0, b"far");
    }
}

#[test]
fn keys_are_never_shown() {
    for (_, session) in mirrored() {
        let data = session.data().unwrap();
        let shown = format!("{data:?} {:?} {:?}", data.receiving, data.sending);
        for keys in [&data.receiving, &data.sending] {
            for bytes in [&keys.key[..16], &keys.iv, &keys.secret[..16]] {
                let bytes = format!("{bytes:?}");
                let bytes = bytes.trim_matches(['[', ']']);
                assert!(bytes.starts_with("0, 0, 0") || !shown.contains(bytes), "{shown}");
            }
        }
    }
}

/// What is resident of an idle phone over TLS is 1.5 KiB at most, of which this is a part.
#[test]
fn an_idle_session_is_small() {
    assert!(size_of::<Traffic>() <= 352, "{} bytes", size_of::<Traffic>());
    assert!(size_of::<Session>() <= 48, "{} bytes", size_of::<Session>());
    for (mut mirror, mut session) in mirrored() {
        assert!(!session.is_warm());
        let bytes = mirror.record(APPLICATION_DATA, b"some");
        let (half, rest) = bytes.split_at(9);
        receive(&mut session, half);
        assert!((9..=64).contains(&session.held_bytes()) && !session.is_warm());
        receive(&mut session, rest);
        assert!(session.held_bytes() == 0 && session.is_warm());
        session.cool();
        assert!(!session.is_warm());
        let bytes = mirror.record(APPLICATION_DATA, b"more");
        assert_eq!(receive(&mut session, &bytes).0, b"more");
    }
}

/// A server of rustls' own.
struct Beside(ServerConnection);

impl Beside {
    fn receive(&mut self, mut bytes: &[u8]) -> Vec<u8> {
        let mut plain = Vec::new();
        while !bytes.is_empty() && self.0.read_tls(&mut bytes).unwrap() > 0 {
            self.0.process_new_packets().unwrap();
            let mut part = vec![0; 1 << 16];
            while let Ok(count @ 1..) = self.0.reader().read(&mut part) {
                plain.extend_from_slice(&part[..count]);
            }
        }
        plain
    }

    fn sent(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        while self.0.wants_write() {
            self.0.write_tls(&mut bytes).unwrap();
        }
        bytes
    }
}

/// Lengths of records, without what the suite adds to each.
fn lengths(mut bytes: &[u8]) -> Vec<usize> {
    let mut all = Vec::new();
    while let [_, 3, 3, high, low, ..] = *bytes {
        let length = 5 + usize::from(u16::from_be_bytes([high, low]));
        all.push(length);
        bytes = &bytes[length..];
    }
    assert!(bytes.is_empty());
    all
}

/// Two clients do the same, one with a session and one with rustls' own server, in whatever order
/// and pieces: the same comes of it on both sides, in records of the same lengths.
#[test]
fn a_session_does_what_rustls_own_connection_does() {
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut below = move |most: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random as usize % most.max(1)
    };
    for suite in suites() {
        let configs = configs(suite);
        let (mut client, mut session) = shake(&configs);
        let mut other = self::client(&configs);
        let mut beside = Beside(ServerConnection::new(configs.server.clone()).unwrap());
        while other.is_handshaking() || beside.0.is_handshaking() {
            beside.receive(&sealed(&mut other));
            opened(&mut other, &beside.sent());
        }
        client.set_buffer_limit(None);
        other.set_buffer_limit(None);
        for round in 0..100 {
            for _ in 0..below(4) {
                let size = [1, 20, 200, 2000, 16_384, 40_000][below(6)];
                let data = vec![round as u8; 1 + below(size)];
                for client in [&mut client, &mut other] {
                    client.writer().write_all(&data).unwrap();
                }
                if below(5) == 0 && suite.tls13().is_some() {
                    client.refresh_traffic_keys().unwrap();
                    other.refresh_traffic_keys().unwrap();
                }
            }
            let (bytes, same) = (sealed(&mut client), sealed(&mut other));
            assert_eq!(lengths(&bytes), lengths(&same));
            let (mut got, mut rest) = (Vec::new(), &bytes[..]);
            while !rest.is_empty() {
                let (part, more) = rest.split_at(1 + below(rest.len()));
                rest = more;
                let (data, out, received) = receive(&mut session, part);
                assert_eq!((out, received), (Vec::new(), Received::Open));
                got.extend(data);
                match below(4) {
                    0 => session.cool(),
                    1 => {
                        let (data, partial) = (session.data().unwrap(), session.partial());
                        session = Session::revive(&data, partial.to_vec(), &provider()).unwrap();
                    }
                    _ => {}
                }
            }
            assert!(got == beside.receive(&same), "{suite:?} {round}");
            let data = vec![b'a'; below(50_000)];
            let mut out = Vec::new();
            if !data.is_empty() && below(2) == 0 {
                assert!(session.encrypt(&data, &mut out));
                beside.0.writer().write_all(&data).unwrap();
            }
            let same = beside.sent();
            assert_eq!(lengths(&out), lengths(&same), "{suite:?} {round}");
            assert!(opened(&mut client, &out) == opened(&mut other, &same));
        }
    }
}

/// The way of a handshake whose bytes come one by one, or all that there are at once, with data
/// and an update behind them.
#[test]
fn what_comes_behind_the_handshake_is_not_lost() {
    for suite in suites() {
        for pieces in [1, 7, 1000, usize::MAX] {
            let configs = configs(suite);
            let (mut client, mut session) = (client(&configs), Session::new(&configs.server));
            client.writer().write_all(b"early").unwrap();
            let mut got = Vec::new();
            loop {
                let mut bytes = sealed(&mut client);
                if !client.is_handshaking() {
                    if suite.tls13().is_some() {
                        client.refresh_traffic_keys().unwrap();
                    }
                    client.writer().write_all(b" late").unwrap();
                    client.send_close_notify();
                    bytes.extend(sealed(&mut client));
                }
                for part in bytes.chunks(pieces) {
                    let (data, out, received) = receive(&mut session, part);
                    got.extend(data);
                    opened(&mut client, &out);
                    if received != Received::Open {
                        assert_eq!(received, Received::Closed);
                        assert_eq!(got, b"early late");
                    }
                }
                if got == b"early late" {
                    break;
                }
            }
        }
    }
}

/// Both directions go on at their numbers, with the keys that they have come to.
#[test]
fn it_goes_on_in_another_process_at_any_time() {
    for suite in suites() {
        let (mut client, mut session) = shake(&configs(suite));
        for round in 0..6 {
            if suite.tls13().is_some() && round % 2 == 1 {
                // Ours are owed an update from then on, and are updated before the next data.
                client.refresh_traffic_keys().unwrap();
            }
            session = moved(&session);
            client.writer().write_all(b"to the relay").unwrap();
            let record = sealed(&mut client);
            let (begin, rest) = record.split_at(record.len() / 2);
            let (mut data, out, _) = receive(&mut session, begin);
            session = moved(&session);
            let (more, _, received) = receive(&mut session, rest);
            data.extend(more);
            assert_eq!((data.as_slice(), received), (&b"to the relay"[..], Received::Open));
            assert_eq!(opened(&mut client, &out), b"");
            session = moved(&session);
            let mut out = Vec::new();
            assert!(session.encrypt(b"from the relay", &mut out));
            assert_eq!(opened(&mut client, &out), b"from the relay", "{suite:?} {round}");
        }
        session = moved(&session);
        let mut out = Vec::new();
        assert!(session.close(&mut out));
        assert!(!moved(&session).close(&mut Vec::new()), "it is said once");
        opened(&mut client, &out);
        assert!(client.process_new_packets().unwrap().peer_has_closed());
    }
}

#[test]
fn what_is_not_a_session_after_its_handshake_goes_on_too_but_for_one_amid_it() {
    let configs = configs(suites()[0]);
    let new = Session::new(&configs.server);
    let mut expecting = moved(&new);
    assert!(expecting.is_new());
    let hello = sealed(&mut client(&configs));
    let (_, out, _) = receive(&mut expecting, &hello);
    assert!(!out.is_empty() && expecting.is_handshaking());
    assert!(expecting.give_out().is_none());
    let mut refused = new;
    refused.refuse();
    let mut out = Vec::new();
    assert!(moved(&refused).close(&mut out));
    assert_eq!(out, record::ACCESS_DENIED);
    refused.close(&mut Vec::new());
    assert!(!moved(&refused).close(&mut out), "it is said once");
}

/// What has come from another process is not trusted to be possible.
#[test]
fn what_no_session_can_be_is_refused() {
    let changes: [fn(&mut link::Traffic); 10] = [
        |traffic| traffic.suite = 0x1304,
        |traffic| traffic.suite ^= 0xffff,
        |traffic| traffic.receiving.key.0.0.truncate(1),
        |traffic| traffic.sending.key.0.0.push(0),
        |traffic| traffic.sending.secret.0.0.push(0),
        |traffic| traffic.receiving.iv.0 = Bytes(vec![0; 8]),
        |traffic| traffic.state.message_bytes = 5,
        |traffic| traffic.state.empty = 255,
        |traffic| traffic.state.updates = 33,
        |traffic| traffic.state.renegotiations = 2,
    ];
    for suite in suites() {
        let (_, session) = shake(&configs(suite));
        for (number, change) in changes.iter().enumerate() {
            let Some(link::Session::Open(mut traffic)) = session.give_out() else { panic!() };
            change(&mut traffic);
            let given = link::Session::Open(traffic);
            let taken = Session::take_in(&given, Vec::new(), &server());
            assert!(taken.is_err(), "{suite:?} {number}");
        }
        let given = session.give_out().unwrap();
        assert!(Session::take_in(&given, vec![0; MAX_PARTIAL_BYTES + 1], &server()).is_err());
    }
    let expecting = link::Session::Expecting;
    assert!(Session::take_in(&expecting, vec![22], &server()).is_err());
}

#[test]
fn keys_are_not_shown() {
    let (_, session) = shake(&configs(suites()[0]));
    let Some(given @ link::Session::Open(traffic)) = &session.give_out() else { panic!() };
    let shown = format!("{given:?}");
    let key = format!("{:?}", traffic.sending.key.0.0);
    assert!(shown.contains("sequence") && !shown.contains(key.trim_matches(['[', ']'])));
}
