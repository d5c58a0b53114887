//! Asks a relay that runs how it is doing.

use super::seen::{Interval, Seen};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper::header::HOST;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long an answer may take, from the connection to its last byte.
const PATIENCE: Duration = Duration::from_secs(3);
/// Rates are told over this time.
const BETWEEN: Duration = Duration::from_secs(1);
/// An answer longer than this is none of a relay.
const MAX_ANSWER_BYTES: usize = 4 * 1024 * 1024;

/// The relay whose metrics listener is at `addr`, host and port, now and a second before.
///
/// # Errors
///
/// One line that says why there is nothing to show, and what to do.
pub(super) async fn watch(addr: &str) -> Result<Interval, String> {
    let (before, at) = (look(addr).await?, Instant::now());
    tokio::time::sleep(BETWEEN).await;
    Ok(Interval { before, now: look(addr).await?, seconds: at.elapsed().as_secs_f64() })
}

async fn look(addr: &str) -> Result<Seen, String> {
    let answer = timeout(PATIENCE, fetch(addr)).await.unwrap_or_else(|_| {
        Err(format!("no answer in {} s: the relay may be stuck; see its log", PATIENCE.as_secs()))
    });
    let seen = answer.and_then(|body| {
        serde_json::from_slice(&body).map_err(|_| {
            "the server there is not a relay of this version; see --metrics-listen".to_owned()
        })
    });
    seen.map_err(|why| format!("no status from {addr}: {why}"))
}

async fn fetch(addr: &str) -> Result<Bytes, String> {
    let unreachable = |error: std::io::Error| {
        format!("{error}: start the relay, or name the address that its --metrics-listen has")
    };
    let stream = TcpStream::connect(addr).await.map_err(unreachable)?;
    let broken =
        |error: hyper::Error| format!("{error}: does the relay listen there? See --metrics-listen");
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let request = Request::get("/status.json").header(HOST, addr);
    let request = request.body(Empty::<Bytes>::new()).map_err(|error| error.to_string())?;
    let answer = async move {
        let response = sender.send_request(request).await.map_err(broken)?;
        if response.status() != StatusCode::OK {
            let status = response.status();
            return Err(format!("it answers {status}: that is not a relay; see --metrics-listen"));
        }
        let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES).collect().await;
        body.map(http_body_util::Collected::to_bytes)
            .map_err(|error| format!("{error}: does the relay listen there?"))
    };
    // Both go on together: the connection is what moves the answer.
    let (answer, _) = tokio::join!(answer, connection);
    answer
}
