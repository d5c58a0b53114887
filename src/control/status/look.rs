//! Asks a relay that runs how it is doing.

use super::seen::{Interval, Seen};
use crate::control::http::client::{Bounds, CallError, Http};
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::{Request, StatusCode};
use rustls::RootCertStore;
use std::time::{Duration, Instant};

/// An answer that takes longer, or is longer, is none of a relay.
const BOUNDS: Bounds = Bounds { timeout: Duration::from_secs(3), max_body_bytes: 4 * 1024 * 1024 };
/// Rates are told over this time.
const BETWEEN: Duration = Duration::from_secs(1);

/// The relay whose metrics listener is at `addr`, host and port, now and a second before.
///
/// # Errors
///
/// One line that says why there is nothing to show, and what to do.
pub(super) async fn watch(addr: &str) -> Result<Interval, String> {
    // Over plain HTTP there is nobody to trust.
    let http = Http::new(RootCertStore::empty(), BOUNDS)?;
    let look = async || {
        let answer = fetch(&http, addr).await.and_then(|body| {
            serde_json::from_slice::<Seen>(&body).map_err(|_| {
                "the server there is not a relay of this version; see --metrics-listen".to_owned()
            })
        });
        answer.map_err(|why| format!("no status from {addr}: {why}"))
    };
    let (before, at) = (look().await?, Instant::now());
    tokio::time::sleep(BETWEEN).await;
    Ok(Interval { before, now: look().await?, seconds: at.elapsed().as_secs_f64() })
}

async fn fetch(http: &Http, addr: &str) -> Result<Bytes, String> {
    let request = Request::get(format!("http://{addr}/status.json")).body(Full::default());
    let request = request.map_err(|error| format!("{error}; write HOST:PORT"))?;
    let answer = http.call(request).await.map_err(|error| match error {
        CallError::Unreachable(why) => {
            format!("{why}: start the relay, or name the address that its --metrics-listen has")
        }
        CallError::Slow(time) => {
            format!("no answer in {} s: the relay may be stuck; see its log", time.as_secs())
        }
        CallError::Long(_) | CallError::Broken(_) => {
            format!("it {error}: does the relay listen there? See --metrics-listen")
        }
    })?;
    match answer.status() {
        StatusCode::OK => Ok(answer.into_body()),
        status => Err(format!("it answers {status}: that is not a relay; see --metrics-listen")),
    }
}
