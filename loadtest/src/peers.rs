//! The peers: phones that ask and binaries that answer, each checking what it gets.

use crate::Outcome;
use futures_util::{SinkExt, StreamExt};
use serde::Deserialize;
use serde_json::value::RawValue;
use std::cell::{Cell, RefCell};
use std::error::Error;
use std::fmt;
use std::net::SocketAddr;
use std::rc::Rc;
use std::str::FromStr;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

/// How many binaries, and how many phones each of them has.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    binaries: u32,
    phones: u32,
}

impl Shape {
    pub(crate) fn phones_in_all(self) -> u64 {
        u64::from(self.binaries) * u64::from(self.phones)
    }

    pub(crate) fn without_phones(self) -> Self {
        Self { phones: 0, ..self }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.binaries, self.phones)
    }
}

impl FromStr for Shape {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers = text.split_once('x').map(|(a, b)| (a.parse(), b.parse()));
        match numbers {
            Some((Ok(binaries @ 1..), Ok(phones @ 1..))) => Ok(Self { binaries, phones }),
            _ => Err(format!("{text:?} is no shape; write binaries x phones, as 64x16")),
        }
    }
}

/// What all peers have done.
#[derive(Default)]
pub(crate) struct Tally {
    messages: Cell<u64>,
    fault: RefCell<Option<String>>,
}

impl Tally {
    /// Messages that have arrived, in either direction.
    pub(crate) fn messages(&self) -> u64 {
        self.messages.get()
    }

    /// What went wrong first.
    pub(crate) fn fault(&self) -> Option<Box<dyn Error>> {
        self.fault.borrow().clone().map(Into::into)
    }

    fn count(&self) {
        self.messages.set(self.messages.get() + 1);
    }

    fn blame(&self, fault: impl fmt::Display) {
        self.fault.borrow_mut().get_or_insert_with(|| fault.to_string());
    }
}

type Socket = WebSocketStream<TcpStream>;

/// Ends its peers when it is dropped.
pub(crate) struct Crowd(Vec<JoinHandle<()>>);

impl Drop for Crowd {
    fn drop(&mut self) {
        for peer in &self.0 {
            peer.abort();
        }
    }
}

/// Connects all binaries, then all phones. With a size, the phones ask at once and go on.
pub(crate) async fn connect(
    address: SocketAddr,
    shape: Shape,
    size: Option<usize>,
    tally: &Rc<Tally>,
) -> Outcome<Crowd> {
    let mut crowd = Crowd(Vec::new());
    for binary in 0..shape.binaries {
        let socket = dial(address, "server", binary).await?;
        crowd
            .0
            .push(tokio::task::spawn_local(watched(answer(socket, tally.clone()), tally.clone())));
    }
    let mut phones = Vec::new();
    for binary in 0..shape.binaries {
        for _ in 0..shape.phones {
            phones.push(dial(address, "client", binary).await?);
        }
    }
    for (number, socket) in phones.into_iter().enumerate() {
        if let Some(size) = size {
            let asking = ask(socket, number, size, tally.clone());
            crowd.0.push(tokio::task::spawn_local(watched(asking, tally.clone())));
        }
    }
    Ok(crowd)
}

/// Connects phones to binaries that are there; they sit.
pub(crate) async fn join(address: SocketAddr, shape: Shape, tally: &Rc<Tally>) -> Outcome<Crowd> {
    let mut crowd = Crowd(Vec::new());
    for binary in 0..shape.binaries {
        for _ in 0..shape.phones {
            let socket = dial(address, "client", binary).await?;
            crowd.0.push(tokio::task::spawn_local(watched(sit(socket), tally.clone())));
        }
    }
    Ok(crowd)
}

async fn watched(peer: impl Future<Output = Outcome<()>>, tally: Rc<Tally>) {
    if let Err(error) = peer.await {
        tally.blame(error);
    }
}

async fn dial(address: SocketAddr, endpoint: &str, binary: u32) -> Outcome<Socket> {
    let mut request = format!("ws://{address}/v1/{endpoint}").into_client_request()?;
    let headers = request.headers_mut();
    headers.insert("x-pyrycode-server", HeaderValue::from_str(&format!("load-{binary}"))?);
    headers.insert("x-pyrycode-version", HeaderValue::from_static("1"));
    headers.insert("x-pyrycode-token", HeaderValue::from_static("load"));
    headers.insert("user-agent", HeaderValue::from_static("loadtest"));
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    // The default is 128 KiB for each of thousands.
    let config = WebSocketConfig::default().read_buffer_size(4096);
    let (socket, _) = client_async_with_config(request, stream, Some(config)).await?;
    Ok(socket)
}

async fn next_text(socket: &mut Socket) -> Outcome<Utf8Bytes> {
    loop {
        match socket.next().await.ok_or("the relay hung up")?? {
            Message::Text(text) => return Ok(text),
            Message::Close(close) => return Err(format!("the relay closed: {close:?}").into()),
            _ => {}
        }
    }
}

#[derive(Deserialize)]
struct Envelope<'a> {
    conn_id: &'a str,
    #[serde(borrow)]
    frame: &'a RawValue,
}

/// A binary sends every frame back to where it came from.
async fn answer(mut socket: Socket, tally: Rc<Tally>) -> Outcome<()> {
    loop {
        let text = next_text(&mut socket).await?;
        tally.count();
        let Envelope { conn_id, frame } = serde_json::from_str(&text)?;
        let reply = format!("{{\"conn_id\":\"{conn_id}\",\"frame\":{frame}}}");
        socket.send(Message::text(reply)).await?;
    }
}

/// A phone asks, waits for its very own answer, and asks again.
async fn ask(mut socket: Socket, number: usize, size: usize, tally: Rc<Tally>) -> Outcome<()> {
    for sequence in 0u64.. {
        let mut frame = format!("{{\"phone\":{number},\"seq\":{sequence},\"pad\":\"");
        let pad = size.saturating_sub(frame.len() + 2);
        frame.extend(std::iter::repeat_n('x', pad));
        frame.push_str("\"}");
        socket.send(Message::text(frame.clone())).await?;
        let answer = next_text(&mut socket).await?;
        if answer.as_str() != frame {
            return Err(format!("phone {number} got a wrong frame in place of {sequence}").into());
        }
        tally.count();
    }
    Ok(())
}

/// A phone that answers pings and expects nothing.
async fn sit(mut socket: Socket) -> Outcome<()> {
    let text = next_text(&mut socket).await?;
    Err(format!("an idle phone got {text}").into())
}
