//! HTTPS to the ACME server: whom to trust, and how long and how much to take.

use crate::control::certificates::provider;
use crate::control::pem;
use crate::words;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderMap, RETRY_AFTER};
use hyper::{Request, Response, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};
use rustls::{ClientConfig, RootCertStore};
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

/// How long the server has to be connected to.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long it has for an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// No answer of such a server is longer.
const MAX_ANSWER_BYTES: usize = 1024 * 1024;

/// A client of one ACME server.
#[derive(Clone)]
pub(super) struct Https {
    client: Client<HttpsConnector<HttpConnector>, BodyWrapper<Bytes>>,
    retry_after: Arc<Mutex<Option<Duration>>>,
}

/// Whom to trust: the usual authorities, and those in the file `ca` beside them.
///
/// # Errors
///
/// What is wrong with the file, and how to mend it.
pub(super) fn roots(ca: Option<&Path>) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::from_iter(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    let Some(path) = ca else { return Ok(roots) };
    let refuse = |fault: String| format!("--acme-ca {}: {fault}", path.display());
    let text = std::fs::read(path)
        .map_err(|error| refuse(format!("{error}; give a file that can be read")))?;
    let usual = roots.len();
    for certificate in pem::certificates(&text).map_err(refuse)? {
        roots.add(certificate).map_err(|error| {
            let why = words::of_tls(&error);
            refuse(format!("a certificate in it is damaged: {why}; get it anew"))
        })?;
    }
    if roots.len() == usual {
        return Err(refuse("it holds no certificate; put some there, in PEM".to_owned()));
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
    let is_https = |url: &Uri| url.scheme_str() == Some("https") && url.host().is_some();
    if url.as_ref().is_some_and(is_https) {
        return Ok(());
    }
    Err(format!(
        "--acme-directory: {directory:?} is not the URL of an ACME directory; write \
         https://acme.example.com/directory"
    ))
}

impl Https {
    pub(super) fn new(roots: RootCertStore) -> Result<Self, Error> {
        let tls = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| Error::Other(error.into()))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let mut tcp = HttpConnector::new();
        tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
        tcp.enforce_http(false);
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_only()
            .enable_http1()
            .wrap_connector(tcp);
        let client = Client::builder(TokioExecutor::new()).build(connector);
        Ok(Self { client, retry_after: Arc::default() })
    }

    /// How long the server asked to be left alone, when it last refused something.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        *self.retry_after.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn ask(self, request: Request<BodyWrapper<Bytes>>) -> Result<BytesResponse, Error> {
        let url = request.uri().clone();
        let answer = async {
            let answer =
                self.client.request(request).await.map_err(|error| words::of_chain(&error))?;
            let (parts, body) = answer.into_parts();
            let limited = Limited::new(body, MAX_ANSWER_BYTES);
            let body =
                limited.collect().await.map_err(|error| words::of_chain(&*error))?.to_bytes();
            Ok((parts, body))
        };
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, answer).await;
        let (parts, body) = answer
            .unwrap_or_else(|_| Err(format!("no answer within {ANSWER_TIMEOUT:?}")))
            .map_err(|error| Error::Other(format!("{url}: {error}").into()))?;
        if !parts.status.is_success() && !parts.status.is_redirection() {
            let asked = retry_after(&parts.headers);
            *self.retry_after.lock().unwrap_or_else(PoisonError::into_inner) = asked;
            if !is_problem(&parts.headers) {
                let error = format!("{url}: the server answered {}", parts.status);
                return Err(Error::Other(error.into()));
            }
        }
        Ok(Response::from_parts(parts, Full::new(body)).into())
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
