//! Ordinary peers: what a daemon or a phone would use. The client is tokio-websockets. It answers
//! a ping, and echoes a close, when it is next asked for a message.

use futures_util::{SinkExt, StreamExt};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio_websockets::{ClientBuilder, CloseCode, Error, Message, WebSocketStream};

use super::{Relay, soon};

/// Makes the peers that stand behind NAT.
pub struct Binary;

impl Binary {
    /// Dials as the binary of `id`, and has its 101.
    pub async fn connect(relay: &Relay, id: &str) -> Peer {
        let headers = [("x-pyrycode-server", id), ("x-pyrycode-version", "1.2.3")];
        Peer::connect(relay, "/v1/server", &headers).await.expect("a 101 for the binary")
    }
}

/// Makes the peers that dial a binary.
pub struct Phone;

impl Phone {
    /// Dials as a phone of `id`, and has its 101.
    pub async fn connect(relay: &Relay, id: &str) -> Peer {
        let headers = [("x-pyrycode-server", id), ("x-pyrycode-token", "any-token")];
        Peer::connect(relay, "/v1/client", &headers).await.expect("a 101 for the phone")
    }
}

/// What a peer sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    Text(String),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    /// The relay's close: code (1005 if none) and reason.
    Close(u16, String),
    /// The connection ended.
    End,
}

/// An ordinary WebSocket client.
pub struct Peer {
    stream: WebSocketStream<TcpStream>,
}

impl Peer {
    /// Dials `path` with `headers` and a User-Agent; the status if it is not 101.
    ///
    /// # Errors
    ///
    /// The status of the answer.
    pub async fn connect(
        relay: &Relay,
        path: &str,
        headers: &[(&'static str, &str)],
    ) -> Result<Self, u16> {
        let tcp = soon("connect", TcpStream::connect(relay.addr())).await.unwrap();
        tcp.set_nodelay(true).unwrap();
        let uri = format!("ws://{}{path}", relay.addr());
        let mut builder = ClientBuilder::new().uri(&uri).unwrap();
        for (name, value) in headers.iter().chain(&[("user-agent", "ordinary-client/1")]) {
            builder = builder.add_header(name.parse().unwrap(), value.parse().unwrap()).unwrap();
        }
        match soon("the upgrade", builder.connect_on(tcp)).await {
            Ok((stream, _)) => Ok(Self { stream }),
            Err(Error::Upgrade(tokio_websockets::upgrade::Error::DidNotSwitchProtocols(
                status,
            ))) => Err(status),
            Err(other) => panic!("the upgrade failed: {other}"),
        }
    }

    pub async fn send(&mut self, message: Message) {
        soon("send", self.stream.send(message)).await.expect("the relay takes the message");
    }

    pub async fn send_text(&mut self, text: impl Into<String>) {
        self.send(Message::text(text.into())).await;
    }

    pub async fn send_binary(&mut self, bytes: impl Into<Vec<u8>>) {
        self.send(Message::binary(bytes.into())).await;
    }

    pub async fn ping(&mut self, payload: &str) {
        self.send(Message::ping(payload.to_owned())).await;
    }

    /// Whatever comes next.
    pub async fn next(&mut self) -> Event {
        let message = match soon("a message or the end", self.stream.next()).await {
            Some(Ok(message)) => message,
            Some(Err(Error::Io(_))) | None => return Event::End,
            Some(Err(other)) => panic!("the relay broke the protocol: {other}"),
        };
        if let Some((code, reason)) = message.as_close() {
            return Event::Close(code.into(), reason.to_owned());
        }
        if let Some(text) = message.as_text() {
            return Event::Text(text.to_owned());
        }
        let payload = message.as_payload().to_vec();
        match (message.is_ping(), message.is_pong()) {
            (true, _) => Event::Ping(payload),
            (_, true) => Event::Pong(payload),
            _ => Event::Binary(payload),
        }
    }

    /// Whatever comes next but pings, which the client answers.
    async fn next_but_pings(&mut self) -> Event {
        loop {
            match self.next().await {
                Event::Ping(_) => {}
                other => return other,
            }
        }
    }

    /// The next message, which must be text.
    pub async fn recv_text(&mut self) -> String {
        match self.next_but_pings().await {
            Event::Text(text) => text,
            other => panic!("not a text message: {other:?}"),
        }
    }

    /// The next message, which must be a pong; its payload.
    pub async fn recv_pong(&mut self) -> Vec<u8> {
        match self.next_but_pings().await {
            Event::Pong(payload) => payload,
            other => panic!("not a pong: {other:?}"),
        }
    }

    /// The relay's close, which must come next. It is answered, and TCP must end then.
    pub async fn recv_close(&mut self) -> (u16, String) {
        match self.next_but_pings().await {
            Event::Close(code, reason) => {
                self.assert_ended().await;
                (code, reason)
            }
            other => panic!("not a close: {other:?}"),
        }
    }

    /// Proves with a round trip that the connection is open and that nothing was on its way.
    pub async fn assert_quiet(&mut self) {
        self.ping("anything else?").await;
        assert_eq!(self.recv_pong().await, b"anything else?");
    }

    /// Closes with `code`; the relay must echo it and end TCP. What comes before the echo is lost.
    pub async fn close(mut self, code: u16) {
        self.send(Message::close(Some(CloseCode::try_from(code).unwrap()), "")).await;
        loop {
            match self.next().await {
                Event::Close(echoed, _) => break assert_eq!(echoed, code),
                Event::End => panic!("the relay did not echo the close"),
                _ => {}
            }
        }
        self.assert_ended().await;
    }

    /// Ends TCP with RST, as a killed peer's kernel may.
    pub fn abort(self) {
        let socket = socket2::SockRef::from(self.stream.get_ref());
        socket.set_linger(Some(std::time::Duration::ZERO)).unwrap();
    }

    /// Ends TCP with FIN and without a close frame, as a killed peer's kernel may.
    pub fn hang_up(self) {
        drop(self.stream);
    }

    /// Lets the client send what it owes; then the relay must end TCP and send nothing more.
    async fn assert_ended(&mut self) {
        match self.next().await {
            Event::End => {}
            other => panic!("after the close: {other:?}"),
        }
        let mut rest = Vec::new();
        // A reset ends the connection as well.
        let _ = soon("the end of TCP", self.stream.get_mut().read_to_end(&mut rest)).await;
        assert!(rest.is_empty(), "after the close: {:?}", rest.escape_ascii().to_string());
    }
}

/// Takes apart what a binary gets for a phone's message: the conn_id, and the frame's exact bytes.
pub fn open_envelope(text: &str) -> (String, String) {
    let parts = text
        .strip_prefix(r#"{"conn_id":""#)
        .and_then(|rest| rest.strip_suffix('}'))
        .and_then(|rest| rest.split_once(r#"","frame":"#));
    let (conn_id, frame) = parts.unwrap_or_else(|| panic!("not an envelope with a frame: {text}"));
    (conn_id.to_owned(), frame.to_owned())
}

/// What a binary sends to hand `frame` (JSON) to the phone `conn_id`.
pub fn envelope(conn_id: &str, frame: &str) -> String {
    format!(r#"{{"conn_id":"{conn_id}","frame":{frame}}}"#)
}

/// What a binary sends to close the phone `conn_id`.
pub fn close_directive(conn_id: &str, code: u16) -> String {
    format!(r#"{{"conn_id":"{conn_id}","close_code":{code}}}"#)
}

/// What a binary gets when the phone `conn_id` is gone: the same shape as a directive.
pub fn close_notice(conn_id: &str, code: u16) -> String {
    close_directive(conn_id, code)
}
