//! A peer made of raw frames: it answers nothing by itself, reads only when told to, and its
//! kernel buffers have a chosen size. For the shapes that an ordinary client cannot take.

#![allow(dead_code)]

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

/// How long a test waits for something that must come.
pub const SOON: Duration = Duration::from_secs(10);

pub const CONTINUATION: u8 = 0;
pub const TEXT: u8 = 1;
pub const BINARY: u8 = 2;
pub const CLOSE: u8 = 8;
pub const PING: u8 = 9;
pub const PONG: u8 = 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Binary,
    Phone,
}

/// One frame from the relay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    pub fin: bool,
    pub opcode: u8,
    pub payload: Vec<u8>,
}

impl Frame {
    pub fn text(&self) -> &str {
        assert!(self.fin && self.opcode == TEXT, "not one unfragmented text frame: {self:?}");
        std::str::from_utf8(&self.payload).expect("text frames are UTF-8")
    }

    /// Code and reason of a close frame; the code is 1005 if it carries none.
    pub fn close(&self) -> (u16, &str) {
        assert!(self.fin && self.opcode == CLOSE, "not a close frame: {self:?}");
        match self.payload.as_slice() {
            [] => (1005, ""),
            [high, low, reason @ ..] => (
                u16::from_be_bytes([*high, *low]),
                std::str::from_utf8(reason).expect("a close reason is UTF-8"),
            ),
            [_] => panic!("a close frame of one byte"),
        }
    }
}

/// What an upgrade request looks like, and the socket that it leaves from.
#[derive(Default)]
pub struct Dial {
    /// Ceiling of the peer's receive buffer, in bytes; it turns the kernel's auto-tuning off.
    pub recv_buffer: Option<u32>,
    /// Ceiling of the peer's send buffer, in bytes; it turns the kernel's auto-tuning off.
    pub send_buffer: Option<u32>,
    /// Bytes that leave in the same packet as the request head.
    pub after_head: Vec<u8>,
}

/// A peer whose buffers hold little, so that what the relay holds for it shows.
pub fn narrow() -> Dial {
    Dial { recv_buffer: Some(16 * 1024), send_buffer: Some(16 * 1024), ..Dial::default() }
}

/// A TCP connection to the relay, nothing sent yet.
pub async fn connect(relay: SocketAddr, how: &Dial) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    if let Some(bytes) = how.recv_buffer {
        socket.set_recv_buffer_size(bytes).unwrap();
    }
    if let Some(bytes) = how.send_buffer {
        socket.set_send_buffer_size(bytes).unwrap();
    }
    let stream = timeout(SOON, socket.connect(relay)).await.expect("connects").unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// An upgrade request with every required header.
pub fn request(role: Role, id: &[u8]) -> Vec<u8> {
    let mut head = Vec::new();
    let path = match role {
        Role::Binary => "/v1/server",
        Role::Phone => "/v1/client",
    };
    head.extend_from_slice(format!("GET {path} HTTP/1.1\r\nHost: relay.test\r\n").as_bytes());
    head.extend_from_slice(b"Connection: Upgrade\r\nUpgrade: websocket\r\n");
    head.extend_from_slice(b"Sec-WebSocket-Version: 13\r\n");
    head.extend_from_slice(b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n");
    head.extend_from_slice(b"User-Agent: raw-peer/1\r\nX-Pyrycode-Server: ");
    head.extend_from_slice(id);
    head.extend_from_slice(match role {
        Role::Binary => b"\r\nX-Pyrycode-Version: 1.2.3\r\n\r\n".as_slice(),
        Role::Phone => b"\r\nX-Pyrycode-Token: s3cret-phone-token\r\n\r\n".as_slice(),
    });
    head
}

/// A masked frame. Big ones take the mask 0, which leaves the payload as it is and the test fast.
pub fn frame(fin: bool, opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mask: [u8; 4] = if payload.len() < 4096 { [0x9e, 0x37, 0x79, 0xb9] } else { [0, 0, 0, 0] };
    let mut bytes = Vec::with_capacity(payload.len() + 14);
    bytes.push(if fin { 0x80 } else { 0 } | opcode);
    match payload.len() {
        length @ 0..=125 => bytes.push(0x80 | u8::try_from(length).unwrap()),
        length @ 126..=65535 => {
            bytes.push(0x80 | 126);
            bytes.extend_from_slice(&u16::try_from(length).unwrap().to_be_bytes());
        }
        length => {
            bytes.push(0x80 | 127);
            bytes.extend_from_slice(&u64::try_from(length).unwrap().to_be_bytes());
        }
    }
    bytes.extend_from_slice(&mask);
    if mask == [0; 4] {
        bytes.extend_from_slice(payload);
    } else {
        bytes.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, key)| byte ^ key));
    }
    bytes
}

/// The payload of a close frame.
pub fn close_payload(code: u16, reason: &str) -> Vec<u8> {
    [code.to_be_bytes().as_slice(), reason.as_bytes()].concat()
}

#[derive(Default)]
struct Inbox {
    bytes: Vec<u8>,
    start: usize,
}

impl Inbox {
    fn take(&mut self) -> Option<Frame> {
        let bytes = &self.bytes[self.start..];
        let (first, second) = (*bytes.first()?, *bytes.get(1)?);
        assert_eq!(first & 0x70, 0, "the relay set an RSV bit");
        assert_eq!(second & 0x80, 0, "the relay masked a frame");
        let (head, length) = match second {
            126 => (4, usize::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().unwrap()))),
            127 => (10, u64::from_be_bytes(bytes.get(2..10)?.try_into().unwrap()) as usize),
            short => (2, usize::from(short)),
        };
        let payload = bytes.get(head..head + length)?.to_vec();
        self.start += head + length;
        if self.start == self.bytes.len() {
            self.bytes.clear();
            self.start = 0;
        }
        Some(Frame { fin: first & 0x80 != 0, opcode: first & 0x0f, payload })
    }

    async fn next(&mut self, from: &mut (impl AsyncRead + Unpin)) -> Option<Frame> {
        loop {
            if let Some(frame) = self.take() {
                return Some(frame);
            }
            if self.start > 0 {
                self.bytes.drain(..self.start);
                self.start = 0;
            }
            self.bytes.reserve(64 * 1024);
            match from.read_buf(&mut self.bytes).await {
                Ok(0) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }
}

/// A raw peer after its 101.
pub struct Peer {
    stream: TcpStream,
    inbox: Inbox,
}

impl Peer {
    pub async fn binary(relay: SocketAddr, id: &str) -> Self {
        Self::dial(relay, Role::Binary, id, Dial::default()).await
    }

    pub async fn phone(relay: SocketAddr, id: &str) -> Self {
        Self::dial(relay, Role::Phone, id, Dial::default()).await
    }

    /// Dials and waits for the 101.
    pub async fn dial(relay: SocketAddr, role: Role, id: impl AsRef<[u8]>, how: Dial) -> Self {
        match Self::try_dial(relay, role, id, how).await {
            Ok(peer) => peer,
            Err(status) => panic!("upgrade answered with {status} instead of 101"),
        }
    }

    /// Dials; the status of the answer if it is not 101.
    pub async fn try_dial(
        relay: SocketAddr,
        role: Role,
        id: impl AsRef<[u8]>,
        how: Dial,
    ) -> Result<Self, u16> {
        let mut stream = connect(relay, &how).await;
        let first = [request(role, id.as_ref()), how.after_head].concat();
        stream.write_all(&first).await.unwrap();
        Self::upgraded(stream).await
    }

    /// Waits for the answer to an upgrade request that has left; its status if it is not 101.
    pub async fn upgraded(mut stream: TcpStream) -> Result<Self, u16> {
        let mut bytes = Vec::new();
        let end = loop {
            if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
            let got = timeout(SOON, stream.read_buf(&mut bytes)).await.expect("an answer").unwrap();
            assert!(got > 0, "the relay hung up before it answered the upgrade");
        };
        let head = std::str::from_utf8(&bytes[..end]).unwrap();
        let status: u16 = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap();
        if status != 101 {
            return Err(status);
        }
        bytes.drain(..end);
        Ok(Self { stream, inbox: Inbox { bytes, start: 0 } })
    }

    pub async fn send(&mut self, opcode: u8, payload: impl AsRef<[u8]>) {
        self.write(&frame(true, opcode, payload.as_ref())).await;
    }

    pub async fn text(&mut self, payload: impl AsRef<[u8]>) {
        self.send(TEXT, payload).await;
    }

    pub async fn write(&mut self, bytes: &[u8]) {
        timeout(SOON, self.stream.write_all(bytes)).await.expect("the relay reads").unwrap();
    }

    /// The next frame, whatever it is; `None` once the relay has ended the connection.
    pub async fn frame(&mut self) -> Option<Frame> {
        timeout(SOON, self.inbox.next(&mut self.stream)).await.expect("a frame or the end")
    }

    /// The next frame that is not a ping; pings are answered on the way.
    pub async fn next(&mut self) -> Option<Frame> {
        loop {
            let frame = self.frame().await?;
            if frame.opcode != PING {
                return Some(frame);
            }
            self.send(PONG, &frame.payload).await;
        }
    }

    /// The next text frame; pings are answered on the way.
    pub async fn recv_text(&mut self) -> String {
        self.next().await.expect("a text frame, not the end").text().to_owned()
    }

    /// The close frame, which must be the next one (pings are answered). It is echoed, and the
    /// relay must then end the connection.
    pub async fn recv_close(&mut self) -> (u16, String) {
        let frame = self.next().await.expect("a close frame, not just the end");
        let (code, reason) = frame.close();
        let close = (code, reason.to_owned());
        self.echo_close(&frame).await;
        close
    }

    /// Answers a close frame of the relay, which must then end the connection.
    pub async fn echo_close(&mut self, close: &Frame) {
        let _ = self.stream.write_all(&frame(true, CLOSE, &close.payload)).await;
        assert_eq!(self.frame().await, None, "something follows the close frame");
    }

    /// Closes with `code`; the relay must echo it and end the connection.
    pub async fn close(&mut self, code: u16) {
        self.send(CLOSE, close_payload(code, "")).await;
        let echo = self.next().await.expect("the echo of a close");
        assert_eq!(echo.close().0, code);
        assert_eq!(self.frame().await, None, "something follows the close frame");
    }

    /// Proves that the connection is open and that nothing else was waiting for this peer: the
    /// next frame is the answer to a ping.
    pub async fn assert_open(&mut self) {
        self.send(PING, "still there?").await;
        let answer = self.next().await.expect("a pong, not the end");
        let pong = Frame { fin: true, opcode: PONG, payload: b"still there?".to_vec() };
        assert_eq!(answer, pong);
    }

    /// The payload of the relay's next ping, which must be the next frame. Not answered.
    pub async fn recv_ping(&mut self) -> Vec<u8> {
        let frame = self.frame().await.expect("a ping, not the end");
        assert_eq!(frame.opcode, PING, "not a ping: {frame:?}");
        frame.payload
    }

    /// Ends the connection with RST.
    pub fn reset(self) {
        socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO)).unwrap();
    }

    /// Ends the connection with FIN, without a close frame.
    pub fn hang_up(self) {
        drop(self.stream);
    }

    pub fn split(self) -> (Reader, Writer) {
        let (read, write) = self.stream.into_split();
        (Reader { half: read, inbox: self.inbox }, Writer { half: write })
    }
}

/// The receiving half of a raw peer.
pub struct Reader {
    half: OwnedReadHalf,
    inbox: Inbox,
}

impl Reader {
    /// The next frame; `None` once the relay has ended the connection.
    pub async fn frame(&mut self) -> Option<Frame> {
        timeout(SOON, self.inbox.next(&mut self.half)).await.expect("a frame or the end")
    }
}

/// The sending half of a raw peer.
pub struct Writer {
    half: OwnedWriteHalf,
}

impl Writer {
    pub async fn text(&mut self, payload: impl AsRef<[u8]>) -> std::io::Result<()> {
        self.half.write_all(&frame(true, TEXT, payload.as_ref())).await
    }

    pub async fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.half.write_all(bytes).await
    }
}

/// The text that wraps `frame` for a binary, taken apart: the conn_id and the frame's exact bytes.
pub fn unwrap_frame(text: &str) -> (String, String) {
    let rest = text.strip_prefix(r#"{"conn_id":""#).unwrap_or_else(|| panic!("envelope: {text}"));
    let (conn_id, rest) = rest.split_once(r#"","frame":"#).unwrap_or_else(|| panic!("{text}"));
    let frame = rest.strip_suffix('}').unwrap_or_else(|| panic!("envelope: {text}"));
    (conn_id.to_owned(), frame.to_owned())
}

/// The close notice of the phone `conn_id`.
pub fn notice(conn_id: &str, code: u16) -> String {
    format!(r#"{{"conn_id":"{conn_id}","close_code":{code}}}"#)
}

/// The envelope that carries `frame` to the phone `conn_id`.
pub fn envelope(conn_id: &str, frame: &str) -> String {
    format!(r#"{{"conn_id":"{conn_id}","frame":{frame}}}"#)
}
