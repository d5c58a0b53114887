//! The relay that a Rust developer would write first: tokio, tokio-tungstenite, dashmap, a task to
//! read and a task to write for each connection. It does the routing and the checks of the
//! protocol, no more: no grace, no probe, no budget. `compare` measures against it.

use crate::Outcome;
use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use futures_util::stream::SplitStream;
use futures_util::{SinkExt as _, StreamExt as _};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Bytes, Message, Utf8Bytes};

const MAX_MESSAGE_BYTES: usize = 262_144;
/// Frames that may wait for a peer; a phone that is slower is closed.
const MAX_WAITING: usize = 1024;

/// Phones of one server-id.
const MAX_PHONES: usize = 16;

type Outbox = mpsc::Sender<Message>;

struct Server {
    binary: Outbox,
    phones: DashMap<String, Outbox>,
}

type Servers = Arc<DashMap<String, Arc<Server>>>;

/// Serves until it is killed; over TLS if it is told how.
pub(crate) fn run(
    listen: SocketAddr,
    workers: usize,
    tls: Option<Arc<ServerConfig>>,
) -> Outcome<()> {
    let mut builder = match workers {
        1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    let tls = tls.map(TlsAcceptor::from);
    let runtime = builder.worker_threads(workers).enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind(listen).await?;
        println!("listening on {}", listener.local_addr()?);
        let servers = Servers::default();
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            // What goes wrong with one connection is its own business.
            let servers = Arc::clone(&servers);
            match tls.clone() {
                None => drop(tokio::spawn(serve(stream, servers))),
                Some(tls) => drop(tokio::spawn(async move {
                    let stream = tls.accept(stream).await.ok()?;
                    serve(stream, servers).await
                })),
            }
        }
    })
}

async fn serve<S>(stream: S, servers: Servers) -> Option<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut path, mut id) = (String::new(), String::new());
    #[expect(clippy::result_large_err, reason = "the library's own signature")]
    let look = |request: &Request, response: Response| -> Result<Response, ErrorResponse> {
        let header = |name| request.headers().get(name).and_then(|value| value.to_str().ok());
        path = request.uri().path().to_owned();
        id = header("x-pyrycode-server").unwrap_or_default().to_owned();
        match id.is_empty() || header("user-agent").is_none() {
            true => {
                let mut refusal = ErrorResponse::new(None);
                *refusal.status_mut() =
                    tokio_tungstenite::tungstenite::http::StatusCode::BAD_REQUEST;
                Err(refusal)
            }
            false => Ok(response),
        }
    };
    let config = WebSocketConfig::default()
        .max_message_size(Some(MAX_MESSAGE_BYTES))
        .read_buffer_size(4096)
        .write_buffer_size(4096);
    let socket =
        tokio_tungstenite::accept_hdr_async_with_config(stream, look, Some(config)).await.ok()?;
    let (mut sink, source) = socket.split();
    let (outbox, mut waiting) = mpsc::channel::<Message>(MAX_WAITING);
    tokio::spawn(async move {
        let mut heartbeat = tokio::time::interval(Duration::from_secs(30));
        heartbeat.tick().await;
        loop {
            let message = tokio::select! {
                message = waiting.recv() => message,
                _ = heartbeat.tick() => Some(Message::Ping(Bytes::new())),
            };
            let Some(message) = message else { break };
            if sink.feed(message).await.is_err() {
                return;
            }
            // All that is ready leaves in one write.
            while let Ok(message) = waiting.try_recv() {
                if sink.feed(message).await.is_err() {
                    return;
                }
            }
            if sink.flush().await.is_err() {
                return;
            }
        }
        let _ = sink.close().await;
    });
    match path == "/v1/server" {
        true => serve_binary(&servers, id, outbox, source).await,
        false => serve_phone(&servers, &id, outbox, source).await,
    }
    Some(())
}

type Source<S> = SplitStream<WebSocketStream<S>>;

async fn serve_binary<S>(servers: &Servers, id: String, outbox: Outbox, mut source: Source<S>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let server = Arc::new(Server { binary: outbox.clone(), phones: DashMap::new() });
    match servers.entry(id.clone()) {
        Entry::Occupied(_) => return close(&outbox, 4409, "server-id already claimed").await,
        Entry::Vacant(free) => drop(free.insert(Arc::clone(&server))),
    }
    while let Some(Ok(message)) = source.next().await {
        from_binary(&server, &message);
    }
    servers.remove(&id);
    // Their writers end, and with them the phones.
    server.phones.clear();
}

async fn serve_phone<S>(servers: &Servers, id: &str, outbox: Outbox, mut source: Source<S>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let Some(server) = servers.get(id).map(|server| Arc::clone(&server)) else {
        return close(&outbox, 4404, "no server with that id").await;
    };
    if server.phones.len() >= MAX_PHONES {
        return close(&outbox, 4429, "too many phones for server-id").await;
    }
    let name = new_conn_id();
    server.phones.insert(name.clone(), outbox);
    while let Some(Ok(message)) = source.next().await {
        if from_phone(&server, &name, &message).await.is_none() {
            break;
        }
    }
    server.phones.remove(&name);
    let notice = format!("{{\"conn_id\":\"{name}\",\"close_code\":1001}}");
    let _ = server.binary.send(Message::text(notice)).await;
}

async fn close(outbox: &Outbox, code: u16, reason: &'static str) {
    let frame = CloseFrame { code: code.into(), reason: Utf8Bytes::from_static(reason) };
    let _ = outbox.send(Message::Close(Some(frame))).await;
}

fn new_conn_id() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("{:016x}{number:016x}", number.wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

#[derive(Serialize)]
struct Wrapped<'a> {
    conn_id: &'a str,
    frame: &'a RawValue,
}

#[derive(Deserialize)]
struct Unwrapped<'a> {
    #[serde(borrow)]
    conn_id: Cow<'a, str>,
    #[serde(borrow)]
    frame: Option<&'a RawValue>,
}

async fn from_phone(server: &Server, name: &str, message: &Message) -> Option<()> {
    let Ok(text) = message.to_text() else { return Some(()) };
    if !message.is_text() {
        return Some(());
    }
    let frame: &RawValue = serde_json::from_str(text).ok()?;
    let wrapped = serde_json::to_string(&Wrapped { conn_id: name, frame }).ok()?;
    server.binary.send(Message::text(wrapped)).await.ok()
}

fn from_binary(server: &Server, message: &Message) {
    let Ok(text) = message.to_text() else { return };
    let Ok(Unwrapped { conn_id, frame: Some(frame) }) = serde_json::from_str(text) else { return };
    let sent = match server.phones.get(&*conn_id) {
        Some(phone) => phone.try_send(Message::Text(Utf8Bytes::from(frame.get()))),
        None => return,
    };
    // A phone that does not keep up is let go: its writer ends with its outbox.
    if sent.is_err() {
        server.phones.remove(&*conn_id);
    }
}
