//! Errors of libraries in plain words. Some of them show themselves to an operator as Rust shows
//! its values to a programmer: lists of numbers, names in one word with inner capitals.

use rustls::{CertificateError, Error as Tls};
use std::error::Error;
use std::fmt::Debug;
use std::io;

/// What went wrong with TLS; the other side is `peer`'s, whatever it is.
#[must_use]
pub fn of_tls(error: &Tls) -> String {
    match error {
        Tls::InappropriateMessage { .. } | Tls::InappropriateHandshakeMessage { .. } => {
            "the peer sent a message that has no place there".to_owned()
        }
        Tls::InvalidMessage(why) => format!("the peer sent a damaged message: {}", of_name(why)),
        Tls::PeerIncompatible(why) => format!("the peer is incompatible: {}", of_name(why)),
        Tls::PeerMisbehaved(why) => format!("the peer misbehaved: {}", of_name(why)),
        Tls::AlertReceived(alert) => format!("received fatal alert: {}", of_name(alert)),
        Tls::InvalidCertificate(why) => {
            format!("invalid peer certificate: {}", of_certificate(why))
        }
        Tls::InvalidCertRevocationList(why) => {
            format!("invalid certificate revocation list: {}", of_name(why))
        }
        Tls::InvalidEncryptedClientHello(why) => {
            format!("encrypted client hello: {}", of_name(why))
        }
        Tls::InconsistentKeys(why) => format!("keys do not match: {}", of_name(why)),
        error => error.to_string(),
    }
}

/// What is wrong with a certificate.
#[must_use]
pub fn of_certificate(error: &CertificateError) -> String {
    match error {
        CertificateError::UnknownIssuer => {
            "unknown issuer: no authority that is trusted here vouches for it".to_owned()
        }
        CertificateError::NotValidForNameContext { .. }
        | CertificateError::ExpiredContext { .. }
        | CertificateError::NotValidYetContext { .. }
        | CertificateError::ExpiredRevocationListContext { .. }
        | CertificateError::InvalidPurposeContext { .. } => error.to_string(),
        error => of_name(error),
    }
}

/// An error with all that led to it; alone it often says no more than that something failed.
#[must_use]
pub fn of_chain(error: &(dyn Error + 'static)) -> String {
    let mut parts: Vec<String> = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let (text, cause) = of_link(error);
        // Many say what led to them by themselves.
        if !text.is_empty() && !parts.iter().any(|part| part.contains(&text)) {
            parts.push(text);
        }
        next = cause;
    }
    if parts.is_empty() { "the connection failed".to_owned() } else { parts.join(": ") }
}

/// The innermost error of all that led to `error`.
#[must_use]
pub fn of_root(error: &(dyn Error + 'static)) -> String {
    let mut link = of_link(error);
    while let (_, Some(cause)) = link {
        link = of_link(cause);
    }
    if link.0.is_empty() { "the connection failed".to_owned() } else { link.0 }
}

/// What one error says, nothing if it says only that something failed, and what led to it.
fn of_link<'a>(error: &'a (dyn Error + 'static)) -> (String, Option<&'a (dyn Error + 'static)>) {
    if let Some(tls) = error.downcast_ref::<Tls>() {
        return (of_tls(tls), None);
    }
    // One that wraps another passes for it, and hides it from who follows the causes.
    if let Some(inner) = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        return (String::new(), Some(inner));
    }
    let is_empty = error.is::<hyper_util::client::legacy::Error>();
    (if is_empty { String::new() } else { error.to_string() }, error.source())
}

/// The name of a variant, in words: `UnknownCA` is "unknown CA".
#[must_use]
pub fn of_name(value: &impl Debug) -> String {
    let shown = format!("{value:?}");
    let name = shown.split(|c: char| !c.is_ascii_alphanumeric()).next().unwrap_or_default();
    let mut words = String::new();
    let mut before = ' ';
    for c in name.chars() {
        if c.is_ascii_uppercase() && before.is_ascii_lowercase() {
            words.push(' ');
        }
        words.push(c);
        before = c;
    }
    let is_capital =
        |word: &str| word.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit());
    let plain = words.split(' ').map(|word| match is_capital(word) {
        true => word.to_owned(),
        false => word.to_ascii_lowercase(),
    });
    plain.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::{AlertDescription, InvalidMessage, PeerIncompatible, PeerMisbehaved};

    #[test]
    fn names_are_taken_apart() {
        assert_eq!(of_name(&AlertDescription::UnknownCA), "unknown CA");
        assert_eq!(of_name(&AlertDescription::HandshakeFailure), "handshake failure");
        assert_eq!(of_name(&CertificateError::Expired), "expired");
        assert_eq!(of_name(&Some(1)), "some");
    }

    #[test]
    fn no_error_of_tls_shows_how_rust_writes_it() {
        for error in [
            Tls::InvalidCertificate(CertificateError::UnknownIssuer),
            Tls::InvalidCertificate(CertificateError::BadEncoding),
            Tls::AlertReceived(AlertDescription::BadCertificate),
            Tls::PeerIncompatible(PeerIncompatible::NoCipherSuitesInCommon),
            Tls::PeerMisbehaved(PeerMisbehaved::TooMuchEarlyDataReceived),
            Tls::InvalidMessage(InvalidMessage::InvalidContentType),
            Tls::InappropriateMessage {
                expect_types: vec![rustls::ContentType::Handshake],
                got_type: rustls::ContentType::ApplicationData,
            },
        ] {
            let text = of_tls(&error);
            let has_inner_capital = |word: &str| {
                word.chars()
                    .zip(word.chars().skip(1))
                    .any(|(a, b)| a.is_ascii_lowercase() && b.is_ascii_uppercase())
            };
            assert!(!text.split(' ').any(has_inner_capital), "{text}");
            assert!(!text.contains(['{', '[', '(']), "{text}");
        }
    }

    #[test]
    fn what_is_wrapped_is_found() {
        let tls = Tls::InvalidCertificate(CertificateError::UnknownIssuer);
        let wrapped = io::Error::other(io::Error::other(tls));
        assert!(of_chain(&wrapped).starts_with("invalid peer certificate: unknown issuer"));
        assert_eq!(of_root(&wrapped), of_chain(&wrapped));
        let refused = io::Error::from_raw_os_error(111);
        assert_eq!(of_chain(&refused), "Connection refused (os error 111)");
    }
}
