//! The ACME server's side of HTTP: whom to trust, how long and how much to take, and when the server
//! asks to be left alone.

use crate::control::http::client::{Bounds, Http, add_roots, usual_roots};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderMap, RETRY_AFTER};
use hyper::{Request, Uri};
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};
use rustls::RootCertStore;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

/// No answer of such a server is longer, or takes longer.
const BOUNDS: Bounds = Bounds { timeout: Duration::from_secs(30), max_body_bytes: 1024 * 1024 };

/// A client of one ACME server.
#[derive(Clone)]
pub(super) struct Https {
    http: Http,
    retry_after: Arc<Mutex<Option<Duration>>>,
}

/// Whom to trust: the usual authorities, and those in the file `ca` beside them.
///
/// # Errors
///
/// What is wrong with the file, and how to mend it.
pub(super) fn roots(ca: Option<&Path>) -> Result<RootCertStore, String> {
    let mut roots = usual_roots();
    if let Some(ca) = ca {
        add_roots(&mut roots, ca).map_err(|fault| format!("--acme-ca {fault}"))?;
    }
    Ok(roots)
}

/// Whether `directory` can be the URL of an ACME server.
///
/// # Errors
///
/// Why not, and how to mend it.
pub(super) fn check_directory(directory: &str) -> Result<(), String> {
    let url: Option<Uri> = directory.parse().ok();
    if url.as_ref().is_some_and(is_https) {
        return Ok(());
    }
    Err(format!(
        "--acme-directory: {directory:?} is not the URL of an ACME directory; write \
         https://acme.example.com/directory"
    ))
}

fn is_https(url: &Uri) -> bool {
    url.scheme_str() == Some("https") && url.host().is_some()
}

impl Https {
    pub(super) fn new(roots: RootCertStore) -> Result<Self, String> {
        Ok(Self { http: Http::new(roots, BOUNDS)?, retry_after: Arc::default() })
    }

    /// How long the server asked to be left alone, when it last refused something.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        *self.retry_after.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn ask(self, request: Request<BodyWrapper<Bytes>>) -> Result<BytesResponse, Error> {
        let url = request.uri().clone();
        let failure = |what: String| Error::Other(format!("{url} {what}").into());
        if !is_https(&url) {
            return Err(failure("is not https, and the server names it".to_owned()));
        }
        let (head, body) = request.into_parts();
        let body = body.collect().await.map_err(|error| failure(error.to_string()))?.to_bytes();
        let request = Request::from_parts(head, Full::new(body));
        let answer = self.http.call(request).await.map_err(|error| failure(error.to_string()))?;
        let (status, headers) = (answer.status(), answer.headers());
        if !status.is_success() && !status.is_redirection() {
            let asked = retry_after(headers);
            *self.retry_after.lock().unwrap_or_else(PoisonError::into_inner) = asked;
            if !is_problem(headers) {
                return Err(failure(format!("answered {status}")));
            }
        }
        Ok(answer.map(Full::new).into())
    }
}

impl HttpClient for Https {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        Box::pin(self.clone().ask(request))
    }
}

/// Whether the body says in the ACME way what is wrong (RFC 8555, section 6.7).
fn is_problem(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    kind.trim_start().starts_with("application/problem+json")
}

/// The header, seconds or a date, as a time from now (RFC 9110, section 10.2.3).
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    httpdate::parse_http_date(value).ok()?.duration_since(SystemTime::now()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let read = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, value.parse().unwrap());
            retry_after(&headers).map(|wait| wait.as_secs())
        };
        assert_eq!(read("120"), Some(120));
        let in_an_hour = SystemTime::now() + Duration::from_secs(3600);
        let waits = read(&httpdate::fmt_http_date(in_an_hour)).unwrap();
        assert!((3500..=3600).contains(&waits), "{waits}");
        for value in ["", "soon", "-5", "Thu, 01 Jan 1970 00:00:00 GMT"] {
            assert_eq!(read(value), None, "{value:?}");
        }
        assert_eq!(retry_after(&HeaderMap::new()), None);
    }
}
