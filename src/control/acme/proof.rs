//! Proving that the domain is ours: a file on port 80 (http-01: RFC 8555, section 8.3), or a
//! certificate on the port of HTTPS (tls-alpn-01: RFC 8737).

use super::Server;
use super::order::{POLLING, describe, explain};
use crate::control::certificates::{ChallengeOffer, provider};
use crate::control::challenges::Offer;
use crate::words;
use instant_acme::{
    AuthorizationHandle, AuthorizationStatus, ChallengeHandle, ChallengeType, Order, OrderStatus,
};
use rcgen::{CertificateParams, CustomExtension, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use rustls::sign::CertifiedKey;
use std::fmt::Display;
use tracing::info;

/// A challenge is answered for as long as this lives.
enum Proof {
    Http { _offer: Offer },
    Tls { _offer: ChallengeOffer },
}

/// Answers the server's challenges until it believes that the domain is ours. See
/// [`order`](super::order::order) for `failures`.
pub(super) async fn prove(server: &Server, order: &mut Order, failures: u32) -> Result<(), String> {
    let answered_before = answered(server);
    let mut proofs = Vec::new();
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let authorization = authorization.map_err(|error| explain(&error))?;
        proofs.extend(offer(server, authorization, failures).await?);
    }
    let status = order.poll_ready(&POLLING).await;
    let was_http = matches!(proofs.first(), Some(Proof::Http { .. }));
    drop(proofs);
    let fault = match status {
        Ok(OrderStatus::Ready) => return Ok(()),
        Ok(_) => why_invalid(order).await,
        Err(error) => explain(&error),
    };
    if answered(server) > answered_before {
        return Err(fault);
    }
    let domain = &server.domain;
    Err(if was_http {
        format!("{fault}; no challenge came to --http-listen: port 80 of {domain} must lead there")
    } else {
        format!(
            "{fault}; no challenge came to --https-listen: port 443 of {domain} must lead there, \
             with TLS untouched"
        )
    })
}

/// How many challenges were answered since the start.
fn answered(server: &Server) -> u64 {
    let by_http = server.challenges.as_ref().map_or(0, |challenges| challenges.answered());
    by_http + server.certificates.challenges_answered()
}

/// Answers a challenge of `authorization`, and tells the server so, unless it believes us already.
async fn offer(
    server: &Server,
    mut authorization: AuthorizationHandle<'_>,
    failures: u32,
) -> Result<Option<Proof>, String> {
    match authorization.status {
        AuthorizationStatus::Valid => return Ok(None),
        AuthorizationStatus::Pending => {}
        status => {
            let status = words::of_name(&status);
            return Err(format!("the server's authorization is {status} from the start"));
        }
    }
    let offered = |kind: &ChallengeType| {
        authorization.challenges.iter().any(|challenge| challenge.r#type == *kind)
    };
    let usable = match (&server.challenges, failures % 2) {
        (None, _) => vec![ChallengeType::TlsAlpn01],
        (Some(_), 0) => vec![ChallengeType::Http01, ChallengeType::TlsAlpn01],
        (Some(_), _) => vec![ChallengeType::TlsAlpn01, ChallengeType::Http01],
    };
    let chosen = usable.into_iter().find(offered);
    let challenge = chosen.and_then(|kind| authorization.challenge(kind));
    let mut challenge = challenge.ok_or_else(|| match &server.challenges {
        Some(_) => "the server offers neither http-01 nor tls-alpn-01".to_owned(),
        None => "the server offers no tls-alpn-01; give --http-listen for http-01".to_owned(),
    })?;
    let proof = match (&server.challenges, &challenge.r#type) {
        (Some(challenges), ChallengeType::Http01) => {
            let offer = challenges.offer(&challenge.token, challenge.key_authorization().as_str());
            let err = format!("waits for the server to fetch it from http://{}", server.domain);
            info!(path = offer.path(), err, "acme_challenge_offered");
            Proof::Http { _offer: offer }
        }
        _ => {
            let offer = offer_by_tls(server, &challenge)?;
            let err = format!("waits for the server to look at port 443 of {}", server.domain);
            info!(err, "acme_challenge_offered");
            Proof::Tls { _offer: offer }
        }
    };
    challenge.set_ready().await.map_err(|error| explain(&error))?;
    Ok(Some(proof))
}

/// Presents a certificate that nobody vouches for and that names the challenge (RFC 8737,
/// section 3).
fn offer_by_tls(
    server: &Server,
    challenge: &ChallengeHandle<'_>,
) -> Result<ChallengeOffer, String> {
    let digest = challenge.key_authorization().digest();
    let made = || -> Result<_, rcgen::Error> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new([server.domain.clone()])?;
        params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest.as_ref())];
        Ok((params.self_signed(&key)?.der().clone(), key.serialize_der()))
    };
    let fault = |error: &dyn Display| format!("the challenge cannot be answered: {error}");
    let (certificate, key) = made().map_err(|error| fault(&error))?;
    let key = PrivateKeyDer::Pkcs8(key.into());
    let key = provider().key_provider.load_private_key(key).map_err(|error| fault(&error))?;
    Ok(server.certificates.offer_challenge(CertifiedKey::new(vec![certificate], key)))
}

/// What the server has against us.
async fn why_invalid(order: &mut Order) -> String {
    let mut authorizations = order.authorizations();
    while let Some(Ok(mut authorization)) = authorizations.next().await {
        if authorization.refresh().await.is_err() {
            break;
        }
        let mut problems = authorization.challenges.iter().filter_map(|c| c.error.as_ref());
        if let Some(problem) = problems.next() {
            return describe(problem);
        }
    }
    "the server did not accept the proof for the domain, and gave no reason".to_owned()
}
