//! The relay's side of the control socket: who may ask, how much, and for how long.

use super::listener::Bound;
use super::protocol::{Answer, Request};
use crate::control::operations::Operations;
use serde::Serialize;
use serde_json::Value;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tracing::{info, warn};

/// Connections that are served at a time.
pub(in crate::control) const MAX_CONNECTIONS: usize = 16;
/// The longest request, with its end of line.
const MAX_REQUEST_BYTES: u64 = 4096;
/// How long a request may take to arrive.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// How long an answer may take, to its last byte.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the peer may take no byte of it.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long to wait when no connection can be accepted, because descriptors are short.
const BREATHER: Duration = Duration::from_millis(100);

/// Serves until the process ends. Each command that is under way holds one of the `places`, of which
/// there are [`MAX_CONNECTIONS`].
pub(in crate::control) async fn serve(
    bound: Bound,
    operations: Arc<Operations>,
    places: Arc<Semaphore>,
) {
    loop {
        let stream = match bound.listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!(err = %error, "control_accept_failed");
                tokio::time::sleep(BREATHER).await;
                continue;
            }
        };
        if let Err(why) = admit(&stream) {
            refuse(&stream, why);
            continue;
        }
        let Ok(place) = places.clone().try_acquire_owned() else {
            refuse(&stream, "too many commands are under way; try again".to_owned());
            continue;
        };
        let operations = operations.clone();
        tokio::spawn(async move {
            // Whatever ends it is the peer's affair.
            let _ = timeout(ANSWER_TIMEOUT, serve_one(stream, &operations)).await;
            drop(place);
        });
    }
}

/// Whether the peer may operate the relay: the user that the relay runs as, and root.
fn admit(stream: &UnixStream) -> Result<(), String> {
    let own = rustix::process::geteuid().as_raw();
    match stream.peer_cred() {
        Ok(peer) if peer.uid() == own || peer.uid() == 0 => Ok(()),
        Ok(peer) => {
            let err = format!("user {} is neither root nor user {own}", peer.uid());
            warn!(err, "control_refused");
            Err(format!(
                "user {} may not operate this relay; only user {own}, which it runs as, and root \
                 may",
                peer.uid()
            ))
        }
        Err(error) => Err(format!("the kernel does not tell who you are: {error}")),
    }
}

/// Says why to a peer that is not served. It fits into what a socket holds from the start.
fn refuse(stream: &UnixStream, why: String) {
    if let Ok(line) = line(&Answer::Error(why)) {
        let _ = stream.try_write(&line);
    }
}

async fn serve_one(stream: UnixStream, operations: &Operations) -> io::Result<()> {
    let (reader, writer) = stream.into_split();
    let mut out = Answers { writer };
    let request = match timeout(REQUEST_TIMEOUT, read(reader)).await {
        Ok(Ok(request)) => request,
        Ok(Err(why)) => return out.write(&Answer::Error(why)).await,
        Err(_) => {
            let why = format!("no request within {} s", REQUEST_TIMEOUT.as_secs());
            return out.write(&Answer::Error(why)).await;
        }
    };
    // Asked several times a second by whoever waits.
    if !matches!(request, Request::DrainStatus) {
        info!(err = serde_json::to_string(&request)?, "control_request");
    }
    let last = match operations.answer(request, &mut out).await? {
        Ok(done) => Answer::Done(done),
        Err(why) => Answer::Error(why),
    };
    out.write(&last).await
}

async fn read(reader: impl tokio::io::AsyncRead + Unpin) -> Result<Request, String> {
    let mut request = Vec::new();
    let mut limited = BufReader::new(reader.take(MAX_REQUEST_BYTES));
    limited.read_until(b'\n', &mut request).await.map_err(|error| error.to_string())?;
    if !request.ends_with(b"\n") {
        return Err(format!("a request is one line of at most {MAX_REQUEST_BYTES} bytes"));
    }
    serde_json::from_slice(&request)
        .map_err(|error| format!("{error}: is the command of the same version as the relay?"))
}

/// Where the lines of an answer go.
pub(in crate::control) struct Answers {
    writer: tokio::net::unix::OwnedWriteHalf,
}

impl Answers {
    /// Sends parts of the answer.
    ///
    /// # Errors
    ///
    /// The peer is gone, or takes nothing.
    pub(in crate::control) async fn items(
        &mut self,
        items: impl IntoIterator<Item = impl Serialize>,
    ) -> io::Result<()> {
        let mut lines = Vec::new();
        for item in items {
            let value = serde_json::to_value(item).map_err(io::Error::other)?;
            lines.extend(line(&Answer::Item(value))?);
        }
        self.write_all(&lines).await
    }

    async fn write(&mut self, answer: &Answer) -> io::Result<()> {
        self.write_all(&line(answer)?).await
    }

    async fn write_all(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let written = timeout(WRITE_TIMEOUT, self.writer.write(bytes)).await??;
            bytes = bytes.get(written..).unwrap_or_default();
        }
        Ok(())
    }
}

fn line(answer: &Answer) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    Ok(line)
}

/// What came of a request, as its last line says it: a value, or why there is none. Fails only where
/// the peer cannot be told.
pub(in crate::control) type Outcome = io::Result<Result<Value, String>>;
