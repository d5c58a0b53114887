//! PEM files (RFC 7468) as people keep them, and what is wrong with one in words.

use rustls::pki_types::pem::{Error, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::borrow::Cow;

/// What some editors write in front of a text in UTF-8.
pub(super) const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

/// Why a text holds no private key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum NoKey {
    /// There is none in it.
    Missing,
    /// It needs a passphrase.
    Encrypted,
    /// The text is no PEM: what is wrong, and how to mend it.
    Damaged(String),
}

/// The certificates in `text`; there may be none.
///
/// # Errors
///
/// What is wrong with it, and how to mend it.
pub(super) fn certificates(text: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let text = readable(text)?;
    CertificateDer::pem_slice_iter(&text)
        .map(|certificate| certificate.map_err(|error| explain(&error)))
        .collect()
}

/// The first private key in `text`.
///
/// # Errors
///
/// Why there is none.
pub(super) fn private_key(text: &[u8]) -> Result<PrivateKeyDer<'static>, NoKey> {
    let text = readable(text).map_err(NoKey::Damaged)?;
    let says = |words: &str| String::from_utf8_lossy(&text).contains(words);
    match PrivateKeyDer::from_pem_slice(&text) {
        Ok(key) => Ok(key),
        Err(_) if says("Proc-Type: 4,ENCRYPTED") => Err(NoKey::Encrypted),
        Err(Error::NoItemsFound) if says("-----BEGIN ENCRYPTED PRIVATE KEY-----") => {
            Err(NoKey::Encrypted)
        }
        Err(Error::NoItemsFound) => Err(NoKey::Missing),
        Err(error) => Err(NoKey::Damaged(explain(&error))),
    }
}

/// `text` without byte order marks: files that are put one after the other may have several.
fn readable(text: &[u8]) -> Result<Cow<'_, [u8]>, String> {
    if text.starts_with(b"\xff\xfe") || text.starts_with(b"\xfe\xff") {
        return Err("it is text in UTF-16; save it as UTF-8 or ASCII".to_owned());
    }
    let is_mark = |at: usize| text.get(at..).is_some_and(|rest| rest.starts_with(BYTE_ORDER_MARK));
    let text = match (0..text.len()).any(is_mark) {
        false => Cow::Borrowed(text),
        true => {
            let mut kept = text.to_vec();
            while let Some(at) =
                kept.windows(BYTE_ORDER_MARK.len()).position(|part| part == BYTE_ORDER_MARK)
            {
                kept.drain(at..at + BYTE_ORDER_MARK.len());
            }
            Cow::Owned(kept)
        }
    };
    let lines = || text.split(|byte| matches!(byte, b'\n' | b'\r'));
    let is_indented = |line: &[u8]| {
        let bare = line.trim_ascii_start();
        bare.len() < line.len()
            && [&b"-----BEGIN "[..], b"-----END "].iter().any(|m| bare.starts_with(m))
    };
    match lines().any(is_indented) {
        true => Err("its lines are indented, and PEM begins at the start of a line; take the \
                     blanks in front away"
            .to_owned()),
        false => Ok(text),
    }
}

/// What is wrong, without the bytes that it is about.
fn explain(error: &Error) -> String {
    let why = match error {
        Error::MissingSectionEnd { end_marker } => {
            let what = String::from_utf8_lossy(end_marker);
            return format!(
                "it is cut off: there is no -----END {what}----- to its BEGIN; get it anew"
            );
        }
        Error::IllegalSectionStart { .. } => "a BEGIN line does not end in five dashes",
        Error::Base64Decode(_) => "what stands between BEGIN and END is not base64",
        Error::NoItemsFound => "it holds neither a certificate nor a key",
        Error::SectionTooLarge => "a part of it is too large",
        Error::Io(error) => return format!("it cannot be read: {error}"),
        _ => "it cannot be read",
    };
    format!("it is not PEM ({why}); get it anew, or convert it with openssl")
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEM: &str = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";

    #[test]
    fn byte_order_marks_are_skipped_wherever_a_file_began() {
        let twice = format!("\u{feff}{PEM}\u{feff}{PEM}");
        assert_eq!(certificates(twice.as_bytes()).unwrap().len(), 2);
        assert_eq!(certificates(PEM.as_bytes()).unwrap().len(), 1);
        let windows = twice.replace('\n', "\r\n");
        assert_eq!(certificates(windows.as_bytes()).unwrap().len(), 2);
    }

    #[test]
    fn faults_are_told_in_words() {
        let indented: String = PEM.lines().map(|line| format!("  {line}\n")).collect();
        let half = PEM.replace("-----BEGIN", " -----BEGIN");
        let end = PEM.replace("-----END", "\t-----END");
        let wide: Vec<u8> =
            std::iter::once(0xfeff).chain(PEM.encode_utf16()).flat_map(u16::to_le_bytes).collect();
        for (text, says) in [
            (indented.into_bytes(), "indented"),
            (half.into_bytes(), "indented"),
            (end.into_bytes(), "indented"),
            (wide, "UTF-16"),
            (PEM.replace("AAAA", "!!!!").into_bytes(), "base64"),
            (PEM.replace("CATE-----\nAA", "CATE--\nAA").into_bytes(), "five dashes"),
            (
                PEM.replace("-----END CERTIFICATE-----\n", "").into_bytes(),
                "no -----END CERTIFICATE",
            ),
        ] {
            let fault = certificates(&text).unwrap_err();
            assert!(fault.contains(says), "{says}: {fault}");
            assert!(!fault.contains(['[', '{']), "{fault}");
        }
    }
}
