//! One order: from the account to a certificate that is kept (RFC 8555, section 7.1).

use super::client::Https;
use super::{Server, autocert, proof};
use crate::control::certificates::Pair;
use crate::words;
use instant_acme::{Account, Error, Identifier, Key, NewAccount, NewOrder, Problem, RetryPolicy};
use rustls::pki_types::PrivateKeyDer;
use std::time::Duration;
use tracing::{error, info, warn};

/// How long the server may take to look at the challenge, and again to sign.
pub(super) const POLLING: RetryPolicy = RetryPolicy::new().timeout(Duration::from_secs(120));
/// No order takes longer.
const ORDER_TIMEOUT: Duration = Duration::from_secs(600);

const NO_SUCH_ACCOUNT: &str = "urn:ietf:params:acme:error:accountDoesNotExist";
const AGREED: NewAccount<'_> =
    NewAccount { contact: &[], terms_of_service_agreed: true, only_return_existing: false };

/// Why there is no certificate this time.
#[derive(Debug)]
pub(super) struct Failure {
    /// What went wrong, and where the operator can help.
    pub(super) fault: String,
    /// How long the server asked to be left alone.
    pub(super) retry_after: Option<Duration>,
}

/// Orders a certificate, proves that the domain is ours, and keeps what comes. After an odd number
/// of `failures` in a row the proof is another one, where there is a choice.
pub(super) async fn order(server: &Server, failures: u32) -> Result<Pair, Failure> {
    let failure = |fault| Failure { fault, retry_after: None };
    server.cache.try_writing().map_err(|error| {
        let folder = server.cache.certificate_path().display();
        failure(format!("{folder} could not be written: {error}; free some space there"))
    })?;
    let https = Https::new(server.roots.clone()).map_err(failure)?;
    let timed = tokio::time::timeout(ORDER_TIMEOUT, place(server, &https, failures)).await;
    timed
        .unwrap_or_else(|_| Err(format!("the order was not complete within {ORDER_TIMEOUT:?}")))
        .map_err(|fault| Failure { fault, retry_after: https.retry_after() })
}

async fn place(server: &Server, https: &Https, failures: u32) -> Result<Pair, String> {
    let names = [Identifier::Dns(server.domain.clone())];
    let wanted = NewOrder::new(&names);
    let account = account(server, https).await?;
    let mut order = match account.new_order(&wanted).await {
        Err(Error::Api(problem)) if problem.r#type.as_deref() == Some(NO_SUCH_ACCOUNT) => {
            let err = "the server does not know the account; a new one is created";
            warn!(err, "acme_account_lost");
            let account = register(server, https, account_key(server)?).await?;
            account.new_order(&wanted).await
        }
        order => order,
    }
    .map_err(|error| explain(&error))?;
    proof::prove(server, &mut order, failures).await?;
    let key = order.finalize().await.map_err(|error| explain(&error))?;
    let chain = order.poll_certificate(&POLLING).await.map_err(|error| explain(&error))?;
    keep(server, &key, &chain)
}

/// The account from before, or a new one.
async fn account(server: &Server, https: &Https) -> Result<Account, String> {
    let Some(json) = server.cache.read_account().unwrap_or_else(|error| {
        let path = server.cache.account_path();
        warn!(path = %path.display(), err = %error, "acme_account_unusable");
        None
    }) else {
        return take_over_or_register(server, https).await;
    };
    let builder = Account::builder_with_http(Box::new(https.clone()));
    match serde_json::from_slice(&json) {
        Ok(credentials) => {
            builder.from_credentials(credentials).await.map_err(|error| explain(&error))
        }
        Err(error) => {
            let path = server.cache.account_path();
            warn!(path = %path.display(), err = %error, "acme_account_unusable");
            register(server, https, None).await
        }
    }
}

/// The account of Go's autocert, if its key is there, or else a new one.
async fn take_over_or_register(server: &Server, https: &Https) -> Result<Account, String> {
    for name in autocert::ACCOUNT_KEYS {
        let path = server.cache.foreign_path(name);
        let key = match server.cache.read_foreign(name) {
            Ok(None) => continue,
            Ok(Some(text)) => autocert::account_key(&text),
            Err(error) => Err(error.to_string()),
        };
        let account = match key {
            Ok(key) => register(server, https, Some(key)).await,
            Err(fault) => Err(fault),
        };
        match account {
            Ok(account) => {
                info!(path = %path.display(), "acme_account_taken_over");
                return Ok(account);
            }
            Err(err) => warn!(path = %path.display(), err, "acme_account_unusable"),
        }
    }
    register(server, https, None).await
}

/// The key of the account from before.
fn account_key(server: &Server) -> Result<Option<(Key, PrivateKeyDer<'static>)>, String> {
    let Ok(Some(json)) = server.cache.read_account() else { return Ok(None) };
    let credentials: instant_acme::AccountCredentials =
        serde_json::from_slice(&json).map_err(|error| error.to_string())?;
    let der = credentials.private_key().clone_key();
    let key = Key::from_pkcs8_der(der.clone_key()).map_err(|error| error.to_string())?;
    Ok(Some((key, PrivateKeyDer::Pkcs8(der))))
}

/// Makes an account, of `key` if there is one, and keeps it.
async fn register(
    server: &Server,
    https: &Https,
    key: Option<(Key, PrivateKeyDer<'static>)>,
) -> Result<Account, String> {
    let (builder, url) =
        (Account::builder_with_http(Box::new(https.clone())), server.directory.clone());
    let made = match key {
        Some(key) => builder.create_from_key(key, url).await,
        None => builder.create(&AGREED, url, None).await,
    };
    let (account, credentials) = made.map_err(|error| explain(&error))?;
    let json = serde_json::to_vec_pretty(&credentials).map_err(|error| error.to_string())?;
    let path = server.cache.account_path();
    server
        .cache
        .write_account(&json)
        .map_err(|error| format!("{} cannot be written: {error}", path.display()))?;
    info!(path = %path.display(), "acme_account_created");
    Ok(account)
}

/// Checks and keeps what the server gave.
fn keep(server: &Server, key: &str, chain: &str) -> Result<Pair, String> {
    let text = format!("{key}{chain}");
    let pair = Pair::from_pem(text.as_bytes(), text.as_bytes()).map_err(|fault| {
        format!("the certificate that the server issued cannot be used: {fault}")
    })?;
    if !pair.covers(&server.domain) {
        return Err("the server gave a certificate of another name".to_owned());
    }
    if let Err(error) = server.cache.write_certificate(text.as_bytes()) {
        // It serves until the next start; not to use it would help nobody.
        let path = server.cache.certificate_path();
        error!(path = %path.display(), err = %error, "certificate_not_kept");
    }
    Ok(pair)
}

pub(super) fn explain(error: &Error) -> String {
    match error {
        Error::Api(problem) => describe(problem),
        Error::Timeout(_) => "the server did not finish in time".to_owned(),
        error => words::of_chain(error),
    }
}

pub(super) fn describe(problem: &Problem) -> String {
    let what = problem.detail.as_deref().unwrap_or("no detail");
    let kind = problem.r#type.as_deref().unwrap_or("no type");
    let parts: String = problem.subproblems.iter().map(|part| format!("; {part}")).collect();
    format!("the server refuses: {what} ({kind}){parts}")
}
