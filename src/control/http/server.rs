//! Serves HTTP on a listener, with a bound on how many connections may be open and on how long each
//! may last.

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};

/// What hyper reads of a head; it takes no less.
const MAX_HEAD_BYTES: usize = 8192;
/// How long the answer that is under way at the end of a connection's time may still take.
const LAST_ANSWER: Duration = Duration::from_secs(5);
/// How long to wait when no connection can be accepted, because descriptors are short.
const BREATHER: Duration = Duration::from_millis(100);

/// Who gives way when all the connections are open that may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::control) enum WhenFull {
    /// The next one waits: for a listener that only this machine reaches, where each of many who
    /// ask at once is to get its answer.
    Wait,
    /// The oldest is ended: for a listener that strangers reach, so that however many dawdle, the
    /// next one is let in.
    EndOldest,
}

/// What a listener's connections may take.
#[derive(Debug, Clone, Copy)]
pub(in crate::control) struct Bounds {
    /// How many may be open at a time.
    pub(in crate::control) connections: usize,
    /// What happens beyond that.
    pub(in crate::control) when_full: WhenFull,
    /// How long a request head may take, and so how long a connection may idle.
    pub(in crate::control) head_timeout: Duration,
    /// How long a connection may last, so that nobody keeps a place by not reading.
    pub(in crate::control) lifetime: Duration,
    /// A connection is good for more than one request.
    pub(in crate::control) keep_alive: bool,
}

/// Has `answer` answer every request, with the address that it comes from, until the process ends.
/// `report` tells of the first of several failures to accept.
pub(in crate::control) async fn serve<Answer, Answering>(
    listener: TcpListener,
    bounds: Bounds,
    report: fn(&io::Error),
    answer: Answer,
) where
    Answer: Fn(Request<Incoming>, SocketAddr) -> Answering + Clone + Send + Sync + 'static,
    Answering: Future<Output = Response<Full<Bytes>>> + Send + 'static,
{
    let mut open = JoinSet::new();
    let mut oldest_first: VecDeque<AbortHandle> = VecDeque::new();
    let mut is_short = false;
    loop {
        while open.try_join_next().is_some() {}
        if open.len() >= bounds.connections && bounds.when_full == WhenFull::Wait {
            open.join_next().await;
        }
        let (stream, remote) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                if !is_short {
                    report(&error);
                }
                is_short = true;
                tokio::time::sleep(BREATHER).await;
                continue;
            }
        };
        is_short = false;
        oldest_first.retain(|connection| !connection.is_finished());
        if oldest_first.len() >= bounds.connections
            && let Some(oldest) = oldest_first.pop_front()
        {
            oldest.abort();
        }
        oldest_first.push_back(open.spawn(serve_one(stream, remote, bounds, answer.clone())));
    }
}

async fn serve_one<Answer, Answering>(
    stream: TcpStream,
    remote: SocketAddr,
    bounds: Bounds,
    answer: Answer,
) where
    Answer: Fn(Request<Incoming>, SocketAddr) -> Answering,
    Answering: Future<Output = Response<Full<Bytes>>>,
{
    let service = service_fn(|request| {
        let answer = answer(request, remote);
        async { Ok::<_, Infallible>(answer.await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(bounds.head_timeout)
        .max_buf_size(MAX_HEAD_BYTES)
        .keep_alive(bounds.keep_alive)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    // Whatever ends it is the peer's affair.
    if tokio::time::timeout(bounds.lifetime, connection.as_mut()).await.is_err() {
        connection.as_mut().graceful_shutdown();
        let _ = tokio::time::timeout(LAST_ANSWER, connection).await;
    }
}
