//! A socket that sends exactly the bytes it is told to and answers nothing by itself. To a relay of
//! HTTPS it sends them over TLS.

use std::io::{ErrorKind, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use rustls::{AlertDescription, ClientConnection};

use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::{TcpSocket, TcpStream};

use super::{
    CLOSE, Door, Frame, PING, PONG, Relay, Request, Response, Stream, close_frame, masked, soon,
};

/// How the relay ended a TCP connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// With FIN: all that it sent has arrived. Over TLS its close_notify came before.
    Fin,
    /// With FIN, but TLS was not ended first.
    Torn,
    /// With an alert of TLS.
    Alert(AlertDescription),
    /// With RST.
    Reset,
}

impl End {
    fn of(error: &std::io::Error) -> Self {
        let error = error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>());
        match error {
            Some(rustls::Error::AlertReceived(alert)) => Self::Alert(*alert),
            Some(other) => panic!("the relay's TLS cannot be understood: {other}"),
            None => Self::Reset,
        }
    }
}

/// A connection to the relay.
pub struct Raw {
    stream: Stream,
    unread: Vec<u8>,
    ended: Option<End>,
}

impl Raw {
    pub async fn connect(relay: &Relay) -> Self {
        Self::through(&relay.door()).await
    }

    /// A peer that has shaken hands, if it must.
    pub async fn through(door: &Door) -> Self {
        Self::try_through(door).await.expect("a handshake")
    }

    /// As [`Raw::through`], for when the relay may not like it.
    pub async fn try_through(door: &Door) -> std::io::Result<Self> {
        Self::try_dial(TcpSocket::new_v4().unwrap(), door).await
    }

    /// A peer that sends its bytes over TCP as they are.
    pub async fn connect_to(addr: SocketAddr) -> Self {
        Self::dial(TcpSocket::new_v4().unwrap(), addr).await
    }

    /// As [`Raw::connect_to`], for IPv6 too.
    pub async fn connect_any(addr: SocketAddr) -> Self {
        let socket = if addr.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
        Self::dial(socket.unwrap(), addr).await
    }

    /// A peer at this address of the machine, which may be any of 127/8.
    pub async fn connect_from(relay: &Relay, address: IpAddr) -> Self {
        Self::try_connect_from(relay, address).await.unwrap()
    }

    /// As [`Raw::connect_from`], for when the relay may end the connection before it is known.
    pub async fn try_connect_from(relay: &Relay, address: IpAddr) -> std::io::Result<Self> {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((address, 0).into()).unwrap();
        Self::try_dial(socket, &relay.door()).await
    }

    /// A peer whose kernel takes in little (its buffers are `bytes` each way), so that one who
    /// does not read is soon felt.
    pub async fn narrow(relay: &Relay, bytes: u32) -> Self {
        Self::narrow_through(&relay.door(), bytes).await
    }

    /// As [`Raw::narrow`], of whom the door is known.
    pub async fn narrow_through(door: &Door, bytes: u32) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(bytes).unwrap();
        socket.set_send_buffer_size(bytes).unwrap();
        Self::try_dial(socket, door).await.unwrap()
    }

    async fn dial(socket: TcpSocket, addr: SocketAddr) -> Self {
        Self::try_dial(socket, &Door { addr, tls: None }).await.unwrap()
    }

    async fn try_dial(socket: TcpSocket, door: &Door) -> std::io::Result<Self> {
        let tcp = soon("connect", socket.connect(door.addr)).await?;
        tcp.set_nodelay(true)?;
        Ok(Self { stream: door.enter(tcp).await?, unread: Vec::new(), ended: None })
    }

    /// A binary that has its 101.
    pub async fn binary(relay: &Relay, id: &str) -> Self {
        Self::connect(relay).await.upgrade(Request::server(id)).await
    }

    /// A phone that has its 101.
    pub async fn phone(relay: &Relay, id: &str) -> Self {
        Self::connect(relay).await.upgrade(Request::client(id)).await
    }

    /// Sends `request`, which must be answered with 101.
    pub async fn upgrade(self, request: Request) -> Self {
        self.upgrade_with(request, &[]).await
    }

    /// As [`Raw::upgrade`], with `behind` in the same packet.
    pub async fn upgrade_with(mut self, request: Request, behind: &[u8]) -> Self {
        self.send([request.bytes().as_slice(), behind].concat()).await;
        let response = self.response().await;
        assert_eq!(response.status, 101, "{}", response.head);
        self
    }

    /// Sends bytes, a [`Request`] or a [`super::Hostile`] frame.
    pub async fn send(&mut self, bytes: impl Into<Vec<u8>>) {
        self.try_send(bytes).await.expect("the relay takes the bytes");
    }

    /// As [`Raw::send`], for when the relay may have ended the connection.
    pub async fn try_send(&mut self, bytes: impl Into<Vec<u8>>) -> std::io::Result<()> {
        let bytes = bytes.into();
        soon("send", async {
            self.stream.write_all(&bytes).await?;
            self.stream.flush().await
        })
        .await
    }

    /// The address that this side of the connection has.
    pub fn local_addr(&self) -> SocketAddr {
        self.stream.tcp().local_addr().unwrap()
    }

    /// The peer's TLS.
    pub fn tls(&mut self) -> &mut ClientConnection {
        match &mut self.stream {
            Stream::Tls(tls) => tls.get_mut().1,
            Stream::Tcp(_) => panic!("TCP as it is"),
        }
    }

    /// What waits in the peer's TLS to be sent, as records.
    pub fn sealed(&mut self) -> Vec<u8> {
        let (mut bytes, tls) = (Vec::new(), self.tls());
        while tls.wants_write() {
            tls.write_tls(&mut bytes).unwrap();
        }
        bytes
    }

    /// `data` in a record of its own, or in as many as it takes, which are yet to be sent.
    pub fn seal(&mut self, data: impl AsRef<[u8]>) -> Vec<u8> {
        self.tls().writer().write_all(data.as_ref()).unwrap();
        self.sealed()
    }

    /// Sends `bytes` past the peer's TLS, if there is any.
    pub async fn send_past_tls(&mut self, bytes: impl AsRef<[u8]>) {
        self.try_send_past_tls(bytes).await.expect("the relay takes the bytes");
    }

    /// As [`Raw::send_past_tls`], for when the relay may have ended the connection.
    pub async fn try_send_past_tls(&mut self, bytes: impl AsRef<[u8]>) -> std::io::Result<()> {
        let tcp = match &mut self.stream {
            Stream::Tls(tls) => tls.get_mut().0,
            Stream::Tcp(tcp) => tcp,
        };
        soon("send", tcp.write_all(bytes.as_ref())).await
    }

    /// Shakes hands as `client` on this connection, which is TCP as it is: each byte of the client
    /// goes in a packet of its own.
    pub async fn shake_by_bytes(&mut self, client: &mut ClientConnection) {
        loop {
            let mut bytes = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut bytes).unwrap();
            }
            for byte in bytes {
                self.send([byte]).await;
                tokio::task::yield_now().await;
            }
            if !client.is_handshaking() {
                return;
            }
            assert!(soon("the handshake", self.fill()).await, "the handshake stops");
            let mut read = &self.unread[..];
            while !read.is_empty() {
                client.read_tls(&mut read).unwrap();
                client.process_new_packets().unwrap();
            }
            self.unread.clear();
        }
    }

    /// Socket and TLS, for who goes on by hand.
    pub fn into_parts(self) -> (TcpStream, ClientConnection) {
        assert!(self.unread.is_empty(), "bytes that were not read");
        match self.stream {
            Stream::Tls(tls) => tls.into_inner(),
            Stream::Tcp(_) => panic!("TCP as it is"),
        }
    }

    /// Sends what the relay takes without a pause of more than `pause`; how much that was.
    pub async fn send_until_stuck(&mut self, bytes: &[u8], pause: Duration) -> usize {
        let mut sent = 0;
        while sent < bytes.len() {
            match tokio::time::timeout(pause, self.stream.write(&bytes[sent..])).await {
                Ok(Ok(length)) => sent += length,
                Ok(Err(_)) | Err(_) => break,
            }
        }
        sent
    }

    /// Sends `bytes` one by one, each in a packet of its own as far as the kernel allows.
    pub async fn dribble(&mut self, bytes: impl Into<Vec<u8>>, pause: Duration) {
        for byte in bytes.into() {
            if self.try_send([byte]).await.is_err() {
                return;
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// Ends this side's half of the connection; the relay can still send.
    pub async fn finish(&mut self) {
        self.stream.shutdown().await.unwrap();
    }

    /// Both directions, for who sends while it reads.
    pub fn into_halves(self) -> (ReadHalf<Stream>, WriteHalf<Stream>) {
        assert!(self.unread.is_empty(), "bytes that were not read");
        tokio::io::split(self.stream)
    }

    /// The bare socket, to give it to another process.
    pub fn into_socket(self) -> std::net::TcpStream {
        let socket = self.stream.into_tcp().into_std().unwrap();
        socket.set_nonblocking(false).unwrap();
        socket
    }

    /// Ends the connection with RST, as a killed peer's kernel would.
    pub fn abort(self) {
        let linger = socket2::SockRef::from(self.stream.tcp()).set_linger(Some(Duration::ZERO));
        linger.expect("linger can be set");
    }

    /// Reads once; false at the end of the stream.
    async fn fill(&mut self) -> bool {
        if self.ended.is_some() {
            return false;
        }
        match self.stream.read_buf(&mut self.unread).await {
            Ok(0) => self.ended = Some(self.tcp_end().await),
            Ok(_) => return true,
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => self.ended = Some(End::Torn),
            Err(error) => self.ended = Some(End::of(&error)),
        }
        false
    }

    /// The end of TCP, which must come right behind that of TLS.
    async fn tcp_end(&mut self) -> End {
        let Stream::Tls(tls) = &mut self.stream else { return End::Fin };
        let mut rest = Vec::new();
        match soon("the end of TCP", tls.get_mut().0.read_to_end(&mut rest)).await {
            Ok(_) => {
                assert!(rest.is_empty(), "after close_notify: {}", rest.escape_ascii());
                End::Fin
            }
            Err(_) => End::Reset,
        }
    }

    /// Reads up to `limit` bytes and forgets them, as a peer does that reads slowly; how many
    /// they were, or none at the end.
    pub async fn sip(&mut self, limit: usize) -> Option<usize> {
        self.unread.clear();
        let mut buffer = vec![0; limit];
        let read = soon("bytes or the end", self.stream.read(&mut buffer)).await;
        read.ok().filter(|length| *length > 0)
    }

    /// What comes next, at least a byte.
    pub async fn some(&mut self) -> Vec<u8> {
        assert!(soon("bytes", self.fill()).await, "bytes, not the end of the connection");
        std::mem::take(&mut self.unread)
    }

    /// The next answer with its body.
    pub async fn response(&mut self) -> Response {
        self.maybe_response().await.expect("an answer, not the end of the connection")
    }

    /// The next answer with its body; none if the relay ends the connection without one.
    pub async fn maybe_response(&mut self) -> Option<Response> {
        let mut response = self.response_head().await?;
        let length = response.content_length();
        while self.unread.len() < length {
            assert!(soon("a body", self.fill()).await, "the body stops: {}", response.head);
        }
        response.body = self.unread.drain(..length).collect();
        Some(response)
    }

    /// The next answer's head; what follows is left unread.
    pub async fn response_head(&mut self) -> Option<Response> {
        let end = loop {
            if let Some(at) = self.unread.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            if !soon("an answer or the end", self.fill()).await {
                assert!(self.unread.is_empty(), "half an answer: {:?}", self.unread.escape_ascii());
                return None;
            }
        };
        let head = self.unread.drain(..end).collect();
        Some(Response::parse(&String::from_utf8(head).expect("an answer's head is ASCII")))
    }

    /// All bytes until the relay ends the connection, and how it ended it.
    pub async fn rest(&mut self) -> (Vec<u8>, End) {
        while soon("the end of the connection", self.fill()).await {}
        (std::mem::take(&mut self.unread), self.ended.unwrap_or(End::Fin))
    }

    /// The next frame, whatever it is; none once the relay has ended the connection.
    pub async fn maybe_frame(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = Frame::take(&mut self.unread) {
                return Some(frame);
            }
            if !soon("a frame or the end", self.fill()).await {
                return None;
            }
        }
    }

    /// The next frame, whatever it is.
    pub async fn frame(&mut self) -> Frame {
        self.maybe_frame().await.expect("a frame, not the end of the connection")
    }

    /// The next frame that is not a ping; pings are answered on the way.
    pub async fn frame_after_pings(&mut self) -> Option<Frame> {
        loop {
            let frame = self.maybe_frame().await?;
            if frame.opcode != PING {
                return Some(frame);
            }
            // The relay may have ended the connection since.
            let _ = self.try_send(masked(PONG, &frame.payload)).await;
        }
    }

    /// The payload of a ping, which must be the next frame. It is not answered.
    pub async fn recv_ping(&mut self) -> Vec<u8> {
        let frame = self.frame().await;
        assert_eq!(frame.opcode, PING, "not a ping: {frame:?}");
        frame.payload
    }

    /// Sends a ping and demands that the very next frame answers it: the connection is open and
    /// nothing else was on its way.
    pub async fn assert_quiet(&mut self) {
        self.send(masked(PING, "anything else?")).await;
        let answer = self.frame_after_pings().await.expect("a pong, not the end");
        let pong = Frame { fin: true, opcode: PONG, payload: b"anything else?".to_vec() };
        assert_eq!(answer, pong);
    }

    /// The next text frame; pings are answered on the way.
    pub async fn recv_text(&mut self) -> String {
        self.frame_after_pings().await.expect("a text frame, not the end").text().to_owned()
    }

    /// The relay's close frame, which must be the next (pings are answered). It is not answered.
    pub async fn recv_close(&mut self) -> (u16, String) {
        let frame = self.frame_after_pings().await.expect("a close frame, not the bare end");
        let (code, reason) = frame.close();
        (code, reason.to_owned())
    }

    /// The relay's close frame, which must be the next; it is answered, and after it nothing may
    /// come but the end of the connection.
    pub async fn closed(&mut self) -> (u16, String) {
        let (code, reason) = self.recv_close().await;
        let answer = if code == 1005 { masked(CLOSE, "") } else { close_frame(code, "") };
        let _ = self.try_send(answer).await;
        self.assert_ended().await;
        (code, reason)
    }

    /// Answers a close frame of the relay's, which must end the connection then.
    pub async fn answer_close(&mut self, close: &Frame) {
        let _ = self.try_send(masked(CLOSE, &close.payload)).await;
        self.assert_ended().await;
    }

    /// Closes with `code`, which the relay must echo before it ends the connection.
    pub async fn close(&mut self, code: u16) {
        self.send(close_frame(code, "")).await;
        assert_eq!(self.recv_close().await.0, code);
        self.assert_ended().await;
    }

    /// Ends the connection with FIN, without a close frame.
    pub fn hang_up(self) {
        drop(self.stream);
    }

    /// The relay ends the connection by [`SOON`], and sends nothing before it does.
    pub async fn assert_ended(&mut self) -> End {
        let (rest, end) = self.rest().await;
        assert!(rest.is_empty(), "bytes before the end: {:?}", rest.escape_ascii().to_string());
        end
    }
}
