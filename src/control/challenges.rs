//! What `--http-listen` answers: the http-01 challenges of ACME (RFC 8555, section 8.3), and 404
//! to the rest, never a redirect (PROTOCOL.md, chapter 7).
//!
//! Port 80 is where strangers knock first. A connection is good for one request and a few seconds;
//! past the most that may be open, the oldest goes, so that however many dawdle, the ACME server
//! is let in.

use crate::telemetry::Remote;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;
use tracing::{info, warn};

/// Connections that may be open at a time.
const MAX_CONNECTIONS: usize = 256;
/// How long a request head may take.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection may take in all.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);
/// What hyper reads of a head; it takes no less.
const MAX_HEAD_BYTES: usize = 8192;
/// How long to wait when no connection can be accepted, because descriptors are short.
const BREATHER: Duration = Duration::from_millis(100);

const CHALLENGE_PATH: &str = "/.well-known/acme-challenge/";

/// The challenges that are to be answered: a key authorization for each token.
#[derive(Debug, Default)]
pub struct Challenges {
    offered: Mutex<HashMap<String, String>>,
    answered: AtomicU64,
}

/// A challenge is answered for as long as this lives.
#[derive(Debug)]
pub struct Offer {
    challenges: Arc<Challenges>,
    token: String,
}

impl Challenges {
    /// Answers `token` with `key_authorization` from now on.
    #[must_use]
    pub fn offer(self: &Arc<Self>, token: &str, key_authorization: &str) -> Offer {
        let (token, answer) = (token.to_owned(), key_authorization.to_owned());
        self.offers(|offered| offered.insert(token.clone(), answer));
        Offer { challenges: self.clone(), token }
    }

    /// How many challenges were answered since the start.
    #[must_use]
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    fn answer(&self, method: &Method, path: &str) -> Option<String> {
        let token = path.strip_prefix(CHALLENGE_PATH)?;
        if !matches!(*method, Method::GET | Method::HEAD) {
            return None;
        }
        let answer = self.offers(|offered| offered.get(token).cloned())?;
        self.answered.fetch_add(1, Ordering::Relaxed);
        Some(answer)
    }

    fn offers<T>(&self, does: impl FnOnce(&mut HashMap<String, String>) -> T) -> T {
        does(&mut self.offered.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Offer {
    /// The path that the challenge is answered at.
    pub(super) fn path(&self) -> String {
        format!("{CHALLENGE_PATH}{}", self.token)
    }
}

impl Drop for Offer {
    fn drop(&mut self) {
        self.challenges.offers(|offered| offered.remove(&self.token));
    }
}

/// Answers until the process ends.
pub async fn serve(listener: TcpListener, challenges: Arc<Challenges>) {
    let mut open: VecDeque<AbortHandle> = VecDeque::new();
    let mut is_short = false;
    loop {
        let (stream, remote) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                if !is_short {
                    warn!(err = %error, "challenge_accept_failed");
                }
                is_short = true;
                tokio::time::sleep(BREATHER).await;
                continue;
            }
        };
        is_short = false;
        open.retain(|connection| !connection.is_finished());
        if open.len() >= MAX_CONNECTIONS
            && let Some(oldest) = open.pop_front()
        {
            oldest.abort();
        }
        let connection = serve_one(stream, remote, challenges.clone());
        open.push_back(tokio::spawn(connection).abort_handle());
    }
}

async fn serve_one(stream: TcpStream, remote: SocketAddr, challenges: Arc<Challenges>) {
    let service = service_fn(|request: Request<Incoming>| {
        let response = respond(&challenges, &request, remote);
        async { Ok::<_, Infallible>(response) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD_BYTES)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    // Whatever ends it is the peer's affair.
    let _ = tokio::time::timeout(CONNECTION_TIMEOUT, connection).await;
}

fn respond<B>(
    challenges: &Challenges,
    request: &Request<B>,
    remote: SocketAddr,
) -> Response<Full<Bytes>> {
    let path = request.uri().path();
    let Some(answer) = challenges.answer(request.method(), path) else {
        let mut nothing = Response::new(Full::default());
        *nothing.status_mut() = StatusCode::NOT_FOUND;
        return nothing;
    };
    info!(remote = %Remote(remote), path, "challenge_answered");
    let mut response = Response::new(Full::new(answer.into()));
    let binary = HeaderValue::from_static("application/octet-stream");
    response.headers_mut().insert(CONTENT_TYPE, binary);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(challenges: &Challenges, method: &str, path: &str) -> Response<Full<Bytes>> {
        let request = Request::builder().method(method).uri(path).body(()).unwrap();
        respond(challenges, &request, "127.0.0.1:1".parse().unwrap())
    }

    #[test]
    fn only_what_is_offered_is_answered() {
        let challenges = Arc::new(Challenges::default());
        let offer = challenges.offer("token-1", "token-1.thumb");
        for (method, path, status) in [
            ("GET", "/.well-known/acme-challenge/token-1", 200),
            ("GET", "/.well-known/acme-challenge/token-1?any", 200),
            ("HEAD", "/.well-known/acme-challenge/token-1", 200),
            ("GET", "http://other.test/.well-known/acme-challenge/token-1", 200),
            ("POST", "/.well-known/acme-challenge/token-1", 404),
            ("GET", "/.well-known/acme-challenge/token-2", 404),
            ("GET", "/.well-known/acme-challenge/", 404),
            ("GET", "/.well-known/acme-challenge/../acme-challenge/token-1", 404),
            ("GET", "/.well-known/acme-challenge/token%2D1", 404),
            ("GET", "/token-1", 404),
            ("GET", "/", 404),
        ] {
            assert_eq!(ask(&challenges, method, path).status(), status, "{method} {path}");
        }
        assert_eq!(challenges.answered(), 4);
        drop(offer);
        let gone = ask(&challenges, "GET", "/.well-known/acme-challenge/token-1");
        assert_eq!(gone.status(), 404);
    }
}
