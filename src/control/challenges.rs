//! What `--http-listen` answers: the http-01 challenges of ACME (RFC 8555, section 8.3), and 404
//! to the rest, never a redirect (PROTOCOL.md, chapter 7).
//!
//! Port 80 is where strangers knock first. A connection is good for one request and a few seconds.

use super::http::server::{self, Bounds, WhenFull};
use crate::telemetry::Remote;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::TcpListener;
use tracing::{info, warn};

/// What strangers may take.
const BOUNDS: Bounds = Bounds {
    connections: 256,
    when_full: WhenFull::EndOldest,
    head_timeout: Duration::from_secs(5),
    lifetime: Duration::from_secs(5),
    keep_alive: false,
};

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
    let report = |error: &io::Error| warn!(err = %error, "challenge_accept_failed");
    let answer = move |request: Request<Incoming>, remote| {
        std::future::ready(respond(&challenges, &request, remote))
    };
    server::serve(listener, BOUNDS, report, answer).await;
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
