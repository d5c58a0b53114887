//! One message to Firebase Cloud Messaging, HTTP v1 API, and what its answer means.

use super::token::AccessToken;
use crate::control::http::client::{CallError, Http};
use crate::protocol::push::PushToken;
use hyper::body::Bytes;
use hyper::{Response, StatusCode, Uri};
use serde::{Deserialize, Serialize};
use std::fmt;

/// What is logged of an error is one of these (the API's `ErrorCode`), so that no answer can put
/// anything else into the log.
const ERROR_CODES: [&str; 7] = [
    UNREGISTERED,
    "INVALID_ARGUMENT",
    "SENDER_ID_MISMATCH",
    "QUOTA_EXCEEDED",
    "UNAVAILABLE",
    "INTERNAL",
    "THIRD_PARTY_AUTH_ERROR",
];
const UNREGISTERED: &str = "UNREGISTERED";
const MAX_MESSAGE_ID_BYTES: usize = 128;

/// Why no message was sent. It shows nothing of what was sent or received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum SendError {
    /// No answer. The message may have been sent all the same.
    Call(CallError),
    /// The app is no longer on that phone, or the token was replaced.
    Unregistered,
    /// The access token is not good any more.
    Unauthorized,
    /// Any other answer.
    Refused(StatusCode, Option<&'static str>),
}

impl fmt::Display for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Call(error) => write!(f, "FCM {error}"),
            Self::Unregistered => f.write_str("FCM no longer knows the phone"),
            Self::Unauthorized => {
                f.write_str("FCM answered 401: the next wake requests a new access token")
            }
            Self::Refused(status, code) => {
                write!(f, "FCM answered {}", status.as_u16())?;
                code.map_or(Ok(()), |code| write!(f, " {code}"))?;
                f.write_str(cure(*status, *code))
            }
        }
    }
}

/// Whose fault it is, where that can be told.
fn cure(status: StatusCode, code: Option<&str>) -> &'static str {
    match (status.as_u16(), code) {
        (_, Some("SENDER_ID_MISMATCH")) => ": the binary's phone belongs to another project",
        (400, _) => ": the token that the binary sent is not an FCM token",
        (403, _) => ": enable the FCM API for the project and let the service account use it",
        (429, _) => ": the project is over its quota",
        (500.., _) => ": a failure at Google",
        _ => "",
    }
}

/// Sends the one kind of message there is: no content, high priority.
///
/// # Errors
///
/// Any [`SendError`]. On success the id that FCM gave the message, if it has the shape of one.
pub(super) async fn send(
    http: &Http,
    url: &Uri,
    access: &AccessToken,
    token: &PushToken,
) -> Result<Option<String>, SendError> {
    let message = Message { token: token.secret(), android: Android { priority: "HIGH" } };
    // Plain data with strings for keys: nothing of it can fail.
    let body = serde_json::to_string(&Body { message }).unwrap_or_default();
    let authorization = Some(access.authorization.clone());
    let answer = http.post(url, "application/json", authorization, body).await;
    read_answer(&answer.map_err(SendError::Call)?)
}

fn read_answer(answer: &Response<Bytes>) -> Result<Option<String>, SendError> {
    if answer.status() == StatusCode::OK {
        return Ok(message_id(answer.body()));
    }
    let code = error_code(answer.body());
    if answer.status() == StatusCode::NOT_FOUND || code == Some(UNREGISTERED) {
        return Err(SendError::Unregistered);
    }
    if answer.status() == StatusCode::UNAUTHORIZED {
        return Err(SendError::Unauthorized);
    }
    Err(SendError::Refused(answer.status(), code))
}

#[derive(Serialize)]
struct Body<'a> {
    message: Message<'a>,
}

#[derive(Serialize)]
struct Message<'a> {
    token: &'a str,
    android: Android,
}

#[derive(Serialize)]
struct Android {
    priority: &'static str,
}

/// The last part of `projects/P/messages/ID`.
fn message_id(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Sent {
        name: String,
    }
    let Sent { name } = serde_json::from_slice(body).ok()?;
    let (_, id) = name.rsplit_once("/messages/")?;
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b':' | b'%' | b'-' | b'_' | b'.');
    let good = id.len() <= MAX_MESSAGE_ID_BYTES && id.bytes().all(plain);
    good.then(|| id.to_owned())
}

/// The code in an answer of the shape of `google.rpc.Status`, if it is a known one.
fn error_code(body: &[u8]) -> Option<&'static str> {
    #[derive(Deserialize)]
    struct Refusal {
        error: Status,
    }
    #[derive(Deserialize)]
    struct Status {
        #[serde(default)]
        details: Vec<Detail>,
    }
    #[derive(Deserialize)]
    struct Detail {
        #[serde(default, rename = "errorCode")]
        error_code: Option<String>,
    }
    let Refusal { error } = serde_json::from_slice(body).ok()?;
    let mut codes = error.details.into_iter().filter_map(|detail| detail.error_code);
    codes.find_map(|code| ERROR_CODES.into_iter().find(|known| *known == code))
}
