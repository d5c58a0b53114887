//! The service account's key, read and tried at start. What is wrong with it is told without
//! a byte of it: it is a secret, and so may be whatever was given in its place.

use super::VARIABLE;
use crate::config::{Exit, FcmEndpoints};
use crate::control::pem::BYTE_ORDER_MARK;
use hyper::Uri;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Map, Value};
use std::ffi::OsStr;
use std::fs::File;
use std::io::Read as _;

/// Key files have about 2,400 bytes.
const MAX_FILE_BYTES: u64 = 64 * 1024;
/// How a key in PKCS#8 begins (RFC 7468, section 10).
const PKCS8_LABEL: &str = "-----BEGIN PRIVATE KEY-----";
const DEFAULT_FCM_URL: &str = "https://fcm.googleapis.com";

/// Who the relay is for Google. It is not `Debug`: nothing of it is to be shown.
pub(super) struct ServiceAccount {
    /// Whom the account speaks as; the `iss` of its assertions.
    pub(super) client_email: String,
    /// Signs assertions.
    pub(super) key: EncodingKey,
    /// Names the key among those of the account, if the file does.
    pub(super) key_id: Option<String>,
    /// The `aud` of its assertions.
    pub(super) token_uri: String,
    /// Where access tokens are asked for: `token_uri` but in tests.
    pub(super) token_url: Uri,
    /// Where messages are posted.
    pub(super) send_url: Uri,
}

impl ServiceAccount {
    /// Reads the value of the variable: the path of a key file, or the JSON itself if it begins
    /// with `{`.
    ///
    /// # Errors
    ///
    /// A refusal that names the fault and the cure.
    pub(super) fn load(value: &OsStr, endpoints: &FcmEndpoints) -> Result<Self, Exit> {
        let text = value.as_encoded_bytes();
        let read;
        let json = if text.trim_ascii_start().starts_with(b"{") {
            text
        } else {
            read = read_file(value)?;
            &read
        };
        Self::parse(json.strip_prefix(BYTE_ORDER_MARK).unwrap_or(json), endpoints)
    }

    fn parse(json: &[u8], endpoints: &FcmEndpoints) -> Result<Self, Exit> {
        let fields: Value = serde_json::from_slice(json).map_err(|error| {
            let (line, column) = (error.line(), error.column());
            refusal(&format!("the JSON is broken at line {line}, column {column}"))
        })?;
        let Value::Object(fields) = fields else {
            return Err(refusal("the JSON is not an object"));
        };
        let project_id = project_id(&fields)?;
        let client_email = field(&fields, "client_email")?;
        let key = private_key(field(&fields, "private_key")?)?;
        let token_uri = field(&fields, "token_uri")?;
        let token_url = match &endpoints.token_url {
            Some(url) => any_url("--fcm-token-url", url)?,
            None => https_url(token_uri)?,
        };
        let fcm = endpoints.fcm_url.as_deref().unwrap_or(DEFAULT_FCM_URL).trim_end_matches('/');
        let send_url =
            any_url("--fcm-url", &format!("{fcm}/v1/projects/{project_id}/messages:send"))?;
        Ok(Self {
            client_email: client_email.to_owned(),
            key,
            key_id: field(&fields, "private_key_id").ok().map(str::to_owned),
            token_uri: token_uri.to_owned(),
            token_url,
            send_url,
        })
    }

    /// The header of its assertions.
    pub(super) fn header(&self) -> Header {
        Header { kid: self.key_id.clone(), ..Header::new(Algorithm::RS256) }
    }
}

fn refusal(fault: &str) -> Exit {
    Exit::refusal(&format!(
        "{VARIABLE}: {fault}; set it to the path of a service account's key file as Google Cloud \
         gives it out (JSON), or to its content, or unset it to do without push"
    ))
}

/// The path is not told: who sets the variable to a half-copied key has not given a path.
fn read_file(path: &OsStr) -> Result<Vec<u8>, Exit> {
    let mut content = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_end(&mut content))
        .map_err(|error| refusal(&format!("no file can be read at that path: {error}")))?;
    if content.len() as u64 > MAX_FILE_BYTES {
        return Err(refusal("the file is too large to be a key"));
    }
    Ok(content)
}

fn field<'a>(fields: &'a Map<String, Value>, name: &str) -> Result<&'a str, Exit> {
    let value = fields.get(name).and_then(Value::as_str).filter(|value| !value.is_empty());
    value.ok_or_else(|| refusal(&format!("the JSON has no `{name}`, or it is not a string")))
}

/// It becomes part of a path.
fn project_id(fields: &Map<String, Value>) -> Result<&str, Exit> {
    let id = field(fields, "project_id")?;
    // A project of a domain is `example.com:name`.
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b':');
    if id.bytes().all(allowed) {
        Ok(id)
    } else {
        Err(refusal("its `project_id` is not the id of a project"))
    }
}

/// Takes a key that has signed something, so that it does not fail at the first wake.
fn private_key(pem: &str) -> Result<EncodingKey, Exit> {
    let fault = "its `private_key` is not an RSA key of 2048 to 4096 bits in PKCS#8 (PEM)";
    if !pem.trim_ascii_start().starts_with(PKCS8_LABEL) {
        return Err(refusal(fault));
    }
    let key = EncodingKey::from_rsa_pem(pem.as_bytes()).map_err(|_| refusal(fault))?;
    jsonwebtoken::encode(&Header::new(Algorithm::RS256), &(), &key).map_err(|_| refusal(fault))?;
    Ok(key)
}

fn https_url(text: &str) -> Result<Uri, Exit> {
    let https = text.parse().ok().filter(|uri: &Uri| uri.scheme_str() == Some("https"));
    https.ok_or_else(|| refusal("its `token_uri` is not an https:// URL"))
}

/// A flag for tests may name plain HTTP.
fn any_url(flag: &str, text: &str) -> Result<Uri, Exit> {
    let http = |uri: &Uri| matches!(uri.scheme_str(), Some("http" | "https"));
    let url = text.parse().ok().filter(http);
    url.ok_or_else(|| {
        Exit::refusal(&format!("{flag} must be an http:// or https:// URL")).about([flag])
    })
}
