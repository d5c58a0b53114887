//! One call over HTTP: no redirect is followed, nothing is sent twice, and neither time nor memory
//! is given without a bound.

use crate::control::certificates::provider;
use crate::control::pem;
use crate::words;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Bytes;
use hyper::header::HeaderValue;
use hyper::{Method, Request, Response, Uri, header};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::{ClientConfig, RootCertStore};
use std::fmt;
use std::path::Path;
use std::time::Duration;

/// How much of an answer's head is read.
const MAX_HEAD_BYTES: usize = 64 * 1024;
/// How long a connection is kept for the next call.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// How many are kept for each host.
const MAX_IDLE: usize = 8;

/// What a call may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::control) struct Bounds {
    /// From the look-up of the name to the last byte of the answer.
    pub(in crate::control) timeout: Duration,
    /// The body of the answer.
    pub(in crate::control) max_body_bytes: usize,
}

/// Makes calls. Cheap to clone; clones share their connections.
#[derive(Clone)]
pub(in crate::control) struct Http {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    bounds: Bounds,
}

/// Why there is no answer. It shows nothing of what was sent or received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::control) enum CallError {
    /// Nobody could be reached; what happened, in the words of the resolver, TCP or TLS.
    Unreachable(String),
    /// It took longer than this.
    Slow(Duration),
    /// The answer is longer than so many bytes.
    Long(usize),
    /// The connection broke, or what was answered is not HTTP; what happened.
    Broken(String),
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(why) => write!(f, "cannot be reached: {why}"),
            Self::Slow(time) => write!(f, "did not answer within {} s", time.as_secs()),
            Self::Long(bytes) => write!(f, "answered with more than {bytes} bytes"),
            Self::Broken(why) => write!(f, "did not give a complete HTTP answer: {why}"),
        }
    }
}

impl Http {
    /// Trusts these authorities for HTTPS.
    ///
    /// # Errors
    ///
    /// What is wrong with TLS.
    pub(in crate::control) fn new(roots: RootCertStore, bounds: Bounds) -> Result<Self, String> {
        let tls = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .build();
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(MAX_IDLE)
            .http1_max_buf_size(MAX_HEAD_BYTES)
            .build(connector);
        Ok(Self { client, bounds })
    }

    /// Posts `body`, as [`Http::call`] does it.
    ///
    /// # Errors
    ///
    /// Any [`CallError`].
    pub(in crate::control) async fn post(
        &self,
        uri: &Uri,
        content_type: &'static str,
        authorization: Option<HeaderValue>,
        body: String,
    ) -> Result<Response<Bytes>, CallError> {
        let mut request = Request::new(Full::new(Bytes::from(body)));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = uri.clone();
        let headers = request.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        if let Some(authorization) = authorization {
            headers.insert(header::AUTHORIZATION, authorization);
        }
        self.call(request).await
    }

    /// Sends `request` and reads the whole answer, whatever its status.
    ///
    /// # Errors
    ///
    /// Any [`CallError`].
    pub(in crate::control) async fn call(
        &self,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Bytes>, CallError> {
        let Bounds { timeout, .. } = self.bounds;
        match tokio::time::timeout(timeout, self.exchange(request)).await {
            Ok(result) => result,
            Err(_) => Err(CallError::Slow(timeout)),
        }
    }

    async fn exchange(&self, request: Request<Full<Bytes>>) -> Result<Response<Bytes>, CallError> {
        let response = self.client.request(request).await.map_err(|error| {
            let why = words::of_root(&error);
            if error.is_connect() { CallError::Unreachable(why) } else { CallError::Broken(why) }
        })?;
        let (head, body) = response.into_parts();
        let max = self.bounds.max_body_bytes;
        let body = Limited::new(body, max).collect().await.map_err(|error| match error
            .is::<LengthLimitError>(
        ) {
            true => CallError::Long(max),
            false => CallError::Broken(words::of_root(&*error)),
        })?;
        Ok(Response::from_parts(head, body.to_bytes()))
    }
}

/// The authorities of Mozilla, which are compiled in: so calls work in a container that holds
/// nothing but the relay, and under a service manager that hides `/etc`.
pub(in crate::control) fn usual_roots() -> RootCertStore {
    RootCertStore::from_iter(webpki_roots::TLS_SERVER_ROOTS.iter().cloned())
}

/// Adds the authorities in the file `ca` (PEM) to `roots`.
///
/// # Errors
///
/// What is wrong with the file, and how to mend it.
pub(in crate::control) fn add_roots(roots: &mut RootCertStore, ca: &Path) -> Result<(), String> {
    let refuse = |fault: String| format!("{}: {fault}", ca.display());
    let text = std::fs::read(ca)
        .map_err(|error| refuse(format!("{error}; give a file that can be read")))?;
    let before = roots.len();
    for certificate in pem::certificates(&text).map_err(refuse)? {
        roots.add(certificate).map_err(|error| {
            let why = words::of_tls(&error);
            refuse(format!("a certificate in it is damaged: {why}; get it anew"))
        })?;
    }
    if roots.len() == before {
        return Err(refuse("it holds no certificate; put some there, in PEM".to_owned()));
    }
    Ok(())
}
