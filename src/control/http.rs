//! One call over HTTP or HTTPS: no redirect is followed, nothing is sent twice, and neither time nor
//! memory is given without a bound (PROTOCOL.md, chapters 6 and 8).

use crate::control::pem;
use crate::words;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Bytes;
use hyper::header::HeaderValue;
use hyper::{HeaderMap, Method, Request, StatusCode, Uri, header};
use hyper_rustls::{ConfigBuilderExt, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::{ClientConfig, RootCertStore};
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// How much of an answer's head, and of its body, is read; Google's have a few hundred bytes.
const MAX_ANSWER_BYTES: usize = 64 * 1024;
/// How long a connection is kept for the next call.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// How many are kept for each host.
const MAX_IDLE: usize = 8;

/// Makes calls. Cheap to clone; clones share their connections.
#[derive(Clone)]
pub(super) struct Http(Client<HttpsConnector<HttpConnector>, Full<Bytes>>);

/// What was answered.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

/// What is sent.
pub(super) struct Post {
    pub(super) content_type: &'static str,
    pub(super) authorization: Option<HeaderValue>,
    pub(super) body: String,
    /// How long the call may take, from the look-up of the name to the last byte of the answer.
    pub(super) timeout: Duration,
}

/// Why there is no answer. It shows nothing of what was sent or received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum CallError {
    /// Nobody could be reached; what happened, in the words of the resolver, TCP or TLS.
    Unreachable(String),
    /// It took longer than this.
    Slow(Duration),
    /// The answer is longer than [`MAX_ANSWER_BYTES`].
    Long,
    /// The connection broke, or what was answered is not HTTP.
    Broken,
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(why) => write!(f, "cannot be reached: {why}"),
            Self::Slow(timeout) => write!(f, "did not answer within {timeout:.1?}"),
            Self::Long => write!(f, "answered with more than {MAX_ANSWER_BYTES} bytes"),
            Self::Broken => f.write_str("did not give a complete HTTP answer"),
        }
    }
}

impl Http {
    /// Trusts the authorities in the file `ca`, or else those of Mozilla that are compiled in:
    /// then push works in a container that holds nothing but the relay, and under a service
    /// manager that hides `/etc`.
    ///
    /// # Errors
    ///
    /// What is wrong with `ca`.
    pub(super) fn new(ca: Option<&Path>) -> Result<Self, String> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?;
        let tls = match ca {
            Some(path) => tls.with_root_certificates(read_roots(path)?),
            None => tls.with_webpki_roots(),
        };
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls.with_no_client_auth())
            .https_or_http()
            .enable_http1()
            .build();
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(MAX_IDLE)
            .http1_max_buf_size(MAX_ANSWER_BYTES)
            .build(connector);
        Ok(Self(client))
    }

    /// Posts what is given and reads the whole answer, whatever its status.
    ///
    /// # Errors
    ///
    /// Any [`CallError`].
    pub(super) async fn post(&self, uri: &Uri, post: Post) -> Result<Answer, CallError> {
        let Post { content_type, authorization, body, timeout } = post;
        let mut request = Request::new(Full::new(Bytes::from(body)));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = uri.clone();
        let headers = request.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        if let Some(authorization) = authorization {
            headers.insert(header::AUTHORIZATION, authorization);
        }
        match tokio::time::timeout(timeout, self.call(request)).await {
            Ok(result) => result,
            Err(_) => Err(CallError::Slow(timeout)),
        }
    }

    async fn call(&self, request: Request<Full<Bytes>>) -> Result<Answer, CallError> {
        let response = self.0.request(request).await.map_err(|error| {
            if error.is_connect() {
                CallError::Unreachable(words::of_root(&error))
            } else {
                CallError::Broken
            }
        })?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, MAX_ANSWER_BYTES);
        let body = body.collect().await.map_err(|error| {
            if error.is::<LengthLimitError>() { CallError::Long } else { CallError::Broken }
        })?;
        Ok(Answer { status: head.status, headers: head.headers, body: body.to_bytes() })
    }
}

fn read_roots(path: &Path) -> Result<RootCertStore, String> {
    let named = |why: String| format!("{}: {why}", path.display());
    let text = std::fs::read(path).map_err(|error| named(error.to_string()))?;
    let mut roots = RootCertStore::empty();
    for certificate in pem::certificates(&text).map_err(named)? {
        roots.add(certificate).map_err(|error| named(words::of_tls(&error)))?;
    }
    if roots.is_empty() { Err(named("no certificate in it".to_owned())) } else { Ok(roots) }
}
