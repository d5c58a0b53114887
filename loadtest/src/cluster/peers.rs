//! The binaries and phones of a cluster: they dial again whenever their connection ends, as real
//! ones do, and check every frame.

use super::record::{Event, NO_SERVER, Record};
use crate::codec::{self, Envelope};
use crate::frame::{Frames, Label, read_label};
use futures_util::{SinkExt as _, StreamExt as _};
use rustls::pki_types::ServerName;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::{Error, Message};

/// How long a dial may take, and an answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two questions of a phone that stays.
const ASKS_EVERY: Duration = Duration::from_millis(100);
/// How long whoever dials again waits: the first time not at all, then twice as long each time.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(2);
/// How long a phone waits that met 4404: its binary is expected back.
const WAIT_FOR_BINARY: Duration = Duration::from_millis(100);
const FRAME_BYTES: usize = 200;

/// What TLS begins with, and whom it expects.
pub(super) type Tls = (Arc<rustls::ClientConfig>, ServerName<'static>);

/// Where peers dial: at each balancer in turn, and at the next where one does not answer.
#[derive(Debug)]
pub(super) struct Doors {
    balancers: Mutex<Vec<SocketAddr>>,
    next: AtomicUsize,
    tls: Option<Tls>,
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

type Socket = WebSocketStream<Box<dyn Stream>>;

impl Doors {
    pub(super) fn new(tls: Option<Tls>) -> Self {
        Self { balancers: Mutex::default(), next: AtomicUsize::new(0), tls }
    }

    pub(super) fn set(&self, balancers: Vec<SocketAddr>) {
        *self.balancers.lock().unwrap_or_else(PoisonError::into_inner) = balancers;
    }

    async fn connect(&self) -> Result<Box<dyn Stream>, String> {
        let balancers = self.balancers.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let first = self.next.fetch_add(1, Ordering::Relaxed);
        let mut why = "there is no balancer".to_owned();
        for turn in 0..balancers.len() {
            let Some(address) = balancers.get((first + turn) % balancers.len()) else { continue };
            let stream = match TcpStream::connect(address).await {
                Ok(stream) => stream,
                Err(error) => {
                    why = format!("no connection ({})", error.kind());
                    continue;
                }
            };
            // Without it an answer only comes later.
            let _ = stream.set_nodelay(true);
            let Some((config, name)) = &self.tls else { return Ok(Box::new(stream)) };
            let connector = TlsConnector::from(Arc::clone(config));
            return match connector.connect(name.clone(), stream).await {
                Ok(stream) => Ok(Box::new(stream)),
                Err(error) => Err(format!("no TLS ({})", error.kind())),
            };
        }
        Err(why)
    }

    /// A WebSocket, or why there is none.
    async fn dial(&self, id: &str, phone: bool) -> Result<Socket, String> {
        let (path, name) = match phone {
            true => ("client", "X-Pyrycode-Token"),
            false => ("server", "X-Pyrycode-Version"),
        };
        let url = format!("ws://localhost/v1/{path}");
        let mut request = url.into_client_request().map_err(|error| error.to_string())?;
        for (name, value) in [("X-Pyrycode-Server", id), (name, "1"), ("User-Agent", "loadtest")] {
            let value = value.parse().map_err(|_| "a header of this tool's")?;
            request.headers_mut().insert(name, value);
        }
        let dialled = async {
            let stream = self.connect().await?;
            let upgraded = tokio_tungstenite::client_async(request, stream).await;
            upgraded.map(|(socket, _)| socket).map_err(|error| match error {
                Error::Http(answer) => answer.status().as_str().to_owned(),
                Error::Io(error) => format!("no answer ({})", error.kind()),
                _ => "no answer".to_owned(),
            })
        };
        timeout(PATIENCE, dialled).await.unwrap_or_else(|_| Err("no answer in time".to_owned()))
    }
}

/// What all peers share.
#[derive(Debug)]
pub(super) struct World {
    pub(super) doors: Doors,
    pub(super) record: Record,
    /// Names no other run uses.
    pub(super) run: String,
    /// Between two visits of an id.
    pub(super) visits_every: Duration,
}

impl World {
    /// The server-id of this number.
    pub(super) fn server_id(&self, id: u32) -> String {
        format!("{}-{id}", self.run)
    }
}

/// Waits before the next dial.
#[derive(Debug)]
struct Backoff(Duration);

impl Backoff {
    async fn wait(&mut self) {
        sleep(self.0).await;
        self.0 = (self.0 * 2).clamp(FIRST_WAIT, LONGEST_WAIT);
    }
}

/// The next text, or how the connection ended.
async fn next_text(socket: &mut Socket) -> Result<Vec<u8>, Option<u16>> {
    loop {
        match socket.next().await {
            Some(Ok(Message::Text(text))) => return Ok(text.as_bytes().to_vec()),
            Some(Ok(Message::Close(close))) => {
                // The answer leaves with what is read next.
                let _ = timeout(FIRST_WAIT, socket.next()).await;
                return Err(close.map(|close| close.code.into()));
            }
            Some(Ok(_)) => {}
            Some(Err(_)) | None => return Err(None),
        }
    }
}

/// A binary, for as long as the run lasts: claims its id, and answers every frame.
pub(super) async fn binary(world: Arc<World>, id: u32) {
    let mut backoff = Backoff(Duration::ZERO);
    loop {
        match world.doors.dial(&world.server_id(id), false).await {
            Ok(socket) => {
                world.record.note(id, Event::Claimed);
                backoff = Backoff(Duration::ZERO);
                let code = answer_all(&world, id, socket).await;
                world.record.note(id, Event::Ended { binary: true, code });
            }
            Err(why) => world.record.note(id, Event::Refused(format!("binary: {why}"))),
        }
        backoff.wait().await;
    }
}

/// Answers frames until the connection ends; with which code.
async fn answer_all(world: &World, id: u32, mut socket: Socket) -> Option<u16> {
    // Of each phone the number of the frame that is due.
    let mut due: HashMap<String, u32> = HashMap::new();
    loop {
        let text = match next_text(&mut socket).await {
            Ok(text) => text,
            Err(code) => return code,
        };
        match codec::read_envelope(&text) {
            Some(Envelope::Frame { conn_id, frame }) => {
                let wanted = due.entry(conn_id.clone().into_owned()).or_default();
                let label =
                    read_label(frame).filter(|label| label.id == id && label.seq == *wanted);
                if label.is_none() {
                    let what = String::from_utf8_lossy(frame).into_owned();
                    world.record.fault(format!("binary {id} got `{what}` where {wanted} was due"));
                }
                *wanted += 1;
                let mut answer = Vec::new();
                codec::write_envelope(&mut answer, &conn_id, |out| out.extend_from_slice(frame));
                let answer = String::from_utf8_lossy(&answer).into_owned();
                if socket.send(Message::text(answer)).await.is_err() {
                    return None;
                }
            }
            Some(Envelope::Closed { conn_id, .. }) => {
                due.remove(conn_id.as_ref());
            }
            None => world.record.fault(format!("binary {id} got what is no envelope")),
        }
    }
}

/// A phone that stays, for as long as the run lasts.
pub(super) async fn resident(world: Arc<World>, id: u32) {
    let mut backoff = Backoff(Duration::ZERO);
    loop {
        let met = stay(&world, id, u32::MAX).await;
        match met {
            Met::Served => backoff = Backoff(Duration::ZERO),
            Met::NoServer => {
                sleep(WAIT_FOR_BINARY).await;
                continue;
            }
            Met::Refused => {}
        }
        backoff.wait().await;
    }
}

/// Phones that come, ask once and go, one after the other.
pub(super) async fn visitors(world: Arc<World>, id: u32) {
    loop {
        let begun = Instant::now();
        let met = stay(&world, id, 1).await;
        let pause = if met == Met::NoServer { WAIT_FOR_BINARY } else { world.visits_every };
        sleep(pause.saturating_sub(begun.elapsed())).await;
    }
}

/// What a dial of a phone came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Met {
    Served,
    NoServer,
    Refused,
}

/// One connection of a phone: asks so many questions, one after the other.
async fn stay(world: &World, id: u32, questions: u32) -> Met {
    let frames = Frames::new(FRAME_BYTES);
    let dialled = Instant::now();
    let mut socket = match world.doors.dial(&world.server_id(id), true).await {
        Ok(socket) => socket,
        Err(why) => {
            world.record.note(id, Event::Refused(format!("phone: {why}")));
            return Met::Refused;
        }
    };
    for seq in 0..questions {
        let mut question = Vec::new();
        frames.write(Label { id, seq, time: 0 }, &mut question);
        let question = String::from_utf8_lossy(&question).into_owned();
        // A close that is on its way says more than that nothing can be sent.
        let _ = socket.send(Message::text(question)).await;
        let code = match timeout(PATIENCE, next_text(&mut socket)).await {
            Ok(Ok(answer)) => {
                if let Err(wrong) = frames.check(&answer, id, seq) {
                    world.record.fault(format!("a phone of {id} got {wrong}"));
                }
                world.record.note(id, Event::Answered);
                if seq + 1 < questions {
                    sleep(ASKS_EVERY).await;
                }
                continue;
            }
            Ok(Err(code)) => code,
            Err(_) => None,
        };
        if seq == 0 && code == Some(NO_SERVER) {
            world.record.note(id, Event::NoServer { dialled });
            return Met::NoServer;
        }
        world.record.note(id, Event::Ended { binary: false, code });
        return Met::Served;
    }
    let _ = timeout(FIRST_WAIT, socket.close(None)).await;
    Met::Served
}
