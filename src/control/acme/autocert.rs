//! What Go's `autocert` keeps in a folder (golang.org/x/crypto/acme/autocert, `DirCache`), so that
//! an operator of the Go relay can go on with the certificate and the account that are there: a
//! file for each certificate, named after its domain, with its key (RFC 5915, or PKCS#1) and then
//! the chain; and the key of the account.

use crate::control::pem;
use instant_acme::Key;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

/// Where the account's key is, now and in early versions.
pub(super) const ACCOUNT_KEYS: [&str; 2] = ["acme_account+key", "acme_account.key"];

/// Where the certificates of `domain` are, by the kind of their key: ECDSA, RSA.
pub(super) fn certificates(domain: &str) -> [String; 2] {
    [domain.to_owned(), format!("{domain}+rsa")]
}

/// The key of an account, which is of P-256, as RFC 5915 writes it.
///
/// # Errors
///
/// It is something else.
pub(super) fn account_key(text: &[u8]) -> Result<(Key, PrivateKeyDer<'static>), String> {
    let Ok(PrivateKeyDer::Sec1(key)) = pem::private_key(text) else {
        return Err("it holds no account key".to_owned());
    };
    let der = PrivatePkcs8KeyDer::from(in_pkcs8(key.secret_sec1_der()));
    let key = Key::from_pkcs8_der(der.clone_key())
        .map_err(|_| "its key is not on the curve P-256".to_owned())?;
    Ok((key, PrivateKeyDer::Pkcs8(der)))
}

/// A private key of P-256 as PKCS#8 has it: a version, the algorithm, and the key (RFC 5208, section
/// 5; RFC 5480, section 2.1.1.1).
fn in_pkcs8(sec1: &[u8]) -> Vec<u8> {
    const VERSION: &[u8] = &[0x02, 0x01, 0x00];
    // SEQUENCE { OID 1.2.840.10045.2.1 (ecPublicKey), OID 1.2.840.10045.3.1.7 (prime256v1) }
    const ALGORITHM: &[u8] = &[
        0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86,
        0x48, 0xce, 0x3d, 0x03, 0x01, 0x07,
    ];
    let (sequence, octets) = (0x30, 0x04);
    tagged(sequence, &[VERSION, ALGORITHM, &tagged(octets, sec1)].concat())
}

/// A value with its tag and length (X.690, section 8.1).
fn tagged(tag: u8, value: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    match value.len() {
        short @ ..0x80 => out.push(short as u8),
        long => {
            let length = (long as u32).to_be_bytes();
            let zeros = length.iter().take_while(|byte| **byte == 0).count();
            out.push(0x80 | (length.len() - zeros) as u8);
            out.extend(length.iter().skip(zeros));
        }
    }
    out.extend(value);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::pki_types::pem::PemObject as _;

    const SEC1: &[u8] = include_bytes!("../../../tests/acme/autocert-sec1.pem");
    const PKCS8: &[u8] = include_bytes!("../../../tests/acme/autocert-pkcs8.pem");

    #[test]
    fn an_account_key_of_autocert_can_be_used() {
        let (_, der) = account_key(SEC1).unwrap();
        let PrivateKeyDer::Sec1(sec1) = PrivateKeyDer::from_pem_slice(SEC1).unwrap() else {
            panic!("a fixture");
        };
        assert!(der.secret_der().ends_with(sec1.secret_sec1_der()));
        for text in
            [PKCS8, b"", b"-----BEGIN EC PRIVATE KEY-----\nAAAA\n-----END EC PRIVATE KEY-----"]
        {
            assert!(account_key(text).is_err());
        }
    }

    #[test]
    fn lengths_are_written_as_der_wants_them() {
        for (length, head) in [
            (0, &[4, 0][..]),
            (127, &[4, 127]),
            (128, &[4, 0x81, 128]),
            (255, &[4, 0x81, 255]),
            (256, &[4, 0x82, 1, 0]),
        ] {
            let out = tagged(4, &vec![7; length]);
            assert!(out.starts_with(head) && out.len() == head.len() + length, "{length}");
        }
    }
}
