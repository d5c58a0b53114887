//! Access tokens: an assertion signed by the service account is exchanged for one (RFC 7523,
//! section 2.1), which then serves for about an hour.

use super::credentials::ServiceAccount;
use crate::control::http::client::{CallError, Http};
use hyper::StatusCode;
use hyper::header::HeaderValue;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::Mutex;
use tokio::time::Instant;

const SCOPE: &str = "https://www.googleapis.com/auth/firebase.messaging";
/// How long an assertion is good, which is the longest that Google takes.
const ASSERTION_LIFETIME: Duration = Duration::from_secs(60 * 60);
/// A token is given up this long before it ends, or a tenth of its life if that is less.
const MARGIN: Duration = Duration::from_secs(60);
const FORM: &str = "application/x-www-form-urlencoded";
/// What is logged of an error is one of these (RFC 6749, section 5.2), so that no answer can put
/// anything else into the log.
const OAUTH_ERRORS: [&str; 6] = [
    "invalid_grant",
    "invalid_client",
    "invalid_scope",
    "invalid_request",
    "unauthorized_client",
    "unsupported_grant_type",
];

/// An access token as a header's value. It is not `Debug`: nothing of it is to be shown.
#[derive(Clone)]
pub(super) struct AccessToken {
    /// `Bearer` and the token.
    pub(super) authorization: HeaderValue,
    /// Which fetch brought it.
    fetch: u64,
    good_until: Instant,
}

/// Why there is no access token. It shows nothing of what was sent or received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum TokenError {
    /// The clock is before 1970, or the key does not sign any more.
    NotSigned,
    /// No answer.
    Call(CallError),
    /// An answer without a token.
    Refused(StatusCode, Option<&'static str>),
    /// An answer that promises a token and holds none that can be used.
    Malformed,
}

impl fmt::Display for TokenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no access token: ")?;
        match self {
            Self::NotSigned => f.write_str("the request cannot be signed; set the clock"),
            Self::Call(error) => write!(f, "the token endpoint {error}"),
            Self::Refused(status, error) => {
                write!(f, "the token endpoint answered {}", status.as_u16())?;
                match error {
                    Some(error @ "invalid_grant") => write!(
                        f,
                        " {error}: set the clock, or see whether the account or its key was deleted"
                    ),
                    Some(error) => write!(f, " {error}"),
                    None => Ok(()),
                }
            }
            Self::Malformed => f.write_str("the token endpoint's answer holds none"),
        }
    }
}

/// Fetches access tokens and keeps the last one.
pub(super) struct AccessTokens {
    http: Http,
    account: ServiceAccount,
    /// Fetches that are over, failed ones included.
    fetches: AtomicU64,
    /// Held during a fetch, so that there is one at a time.
    last: Mutex<Option<Result<AccessToken, TokenError>>>,
}

impl AccessTokens {
    pub(super) fn new(http: Http, account: ServiceAccount) -> Arc<Self> {
        Arc::new(Self { http, account, fetches: AtomicU64::new(0), last: Mutex::new(None) })
    }

    /// The kept token or a new one. Those who ask while a fetch is under way share what comes of
    /// it; a failure is not kept for those who ask later.
    ///
    /// # Errors
    ///
    /// Any [`TokenError`].
    pub(super) async fn get(&self) -> Result<AccessToken, TokenError> {
        let asked_at = self.fetches.load(Ordering::Relaxed);
        let mut last = self.last.lock().await;
        let fetches = self.fetches.load(Ordering::Relaxed);
        match &*last {
            Some(Ok(token)) if Instant::now() < token.good_until => return Ok(token.clone()),
            Some(Err(error)) if fetches != asked_at => return Err(error.clone()),
            _ => {}
        }
        let fetched = self.fetch(fetches).await;
        self.fetches.fetch_add(1, Ordering::Relaxed);
        last.insert(fetched).clone()
    }

    /// FCM does not take this token: the next wake needs another one.
    pub(super) fn forget(&self, refused: &AccessToken) {
        // Where a fetch is under way, the token is about to be replaced anyway.
        let Ok(mut last) = self.last.try_lock() else { return };
        if matches!(&*last, Some(Ok(token)) if token.fetch == refused.fetch) {
            *last = None;
        }
    }

    async fn fetch(&self, fetch: u64) -> Result<AccessToken, TokenError> {
        let asked_at = Instant::now();
        let assertion = self.assertion().ok_or(TokenError::NotSigned)?;
        // Nothing in it needs an escape but the colons, which RFC 7523 shows escaped.
        let form = format!(
            "grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Ajwt-bearer&assertion={assertion}"
        );
        let answer = self.http.post(&self.account.token_url, FORM, None, form).await;
        let answer = answer.map_err(TokenError::Call)?;
        if answer.status() != StatusCode::OK {
            return Err(TokenError::Refused(answer.status(), oauth_error(answer.body())));
        }
        let granted: Granted =
            serde_json::from_slice(answer.body()).map_err(|_| TokenError::Malformed)?;
        let mut authorization = HeaderValue::try_from(format!("Bearer {}", granted.access_token))
            .map_err(|_| TokenError::Malformed)?;
        authorization.set_sensitive(true);
        let lifetime = Duration::from_secs(granted.expires_in).min(ASSERTION_LIFETIME);
        let good_until = asked_at + lifetime - MARGIN.min(lifetime / 10);
        Ok(AccessToken { authorization, fetch, good_until })
    }

    /// The JWT that asks for a token; none if it cannot be made.
    fn assertion(&self) -> Option<String> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_secs();
        let claims = Claims {
            iss: &self.account.client_email,
            scope: SCOPE,
            aud: &self.account.token_uri,
            iat: now,
            exp: now + ASSERTION_LIFETIME.as_secs(),
        };
        jsonwebtoken::encode(&self.account.header(), &claims, &self.account.key).ok()
    }
}

#[derive(Serialize)]
struct Claims<'a> {
    iss: &'a str,
    scope: &'a str,
    aud: &'a str,
    iat: u64,
    exp: u64,
}

#[derive(Deserialize)]
struct Granted {
    access_token: String,
    /// In seconds. A token of which it is not known is used once.
    #[serde(default)]
    expires_in: u64,
}

fn oauth_error(body: &[u8]) -> Option<&'static str> {
    #[derive(Deserialize)]
    struct Refusal {
        error: String,
    }
    let Refusal { error } = serde_json::from_slice(body).ok()?;
    OAUTH_ERRORS.into_iter().find(|known| *known == error)
}
