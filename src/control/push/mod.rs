//! Push wake (PROTOCOL.md, chapter 8): asks Firebase Cloud Messaging to wake a phone that a binary
//! wants to reach. It runs on the control plane alone; workers only hand over what was asked for.
//!
//! - `credentials`: the service account's key, refused at start if it cannot work
//! - `token`: access tokens, fetched once an hour
//! - `fcm`: the message, and what its answer means
//! - `limits`: how much each server-id may ask for

mod credentials;
mod fcm;
mod limits;
mod token;

use super::http::client::{Bounds, Http, add_roots, usual_roots};
use crate::config::{Config, Exit, Secret};
use crate::metrics::{Metrics, PushOutcome};
use crate::protocol::push::Platform;
use crate::relay::timers::Millis;
use crate::relay::wakes::{Verdict, Wake};
use credentials::ServiceAccount;
use fcm::SendError;
use hyper::Uri;
use limits::Allowances;
use rustls::RootCertStore;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use token::{AccessToken, AccessTokens};
use tokio::sync::Semaphore;
use tokio::sync::mpsc::Receiver;
use tokio::time::Instant;
use tracing::{debug, info, warn};

/// The environment variable that switches push on.
const VARIABLE: &str = "PYRYCODE_RELAY_FCM_CREDENTIALS";
/// Requests that may wait for the control plane; a worker drops what finds no room.
pub const MAX_WAITING: usize = 256;
/// Wakes that may be under way in the whole process.
const MAX_IN_FLIGHT: usize = 32;

/// Google's answers are quick and have a few hundred bytes.
const BOUNDS: Bounds = Bounds { timeout: Duration::from_secs(10), max_body_bytes: 64 * 1024 };

/// Credentials that have been tried, and the means to use them.
pub struct Push {
    http: Http,
    account: ServiceAccount,
}

impl Push {
    /// `None` if there are no credentials: push is off.
    ///
    /// # Errors
    ///
    /// A refusal, the operator's to mend: the credentials cannot work. It shows nothing of them.
    pub fn from_config(config: &Config) -> Result<Option<Self>, Exit> {
        let Some(Secret(value)) = &config.fcm_credentials else { return Ok(None) };
        let endpoints = &config.fcm_endpoints;
        let account = ServiceAccount::load(value, endpoints)?;
        let http = roots(endpoints.ca.as_deref())
            .and_then(|roots| Http::new(roots, BOUNDS))
            .map_err(|why| Exit::refusal(&format!("--fcm-ca: {why}")).about(["--fcm-ca"]))?;
        Ok(Some(Self { http, account }))
    }

    /// Serves requests for as long as a worker can make any, and until the last of them is sent. A wake
    /// that is under way when the process ends is lost.
    pub async fn run(self, mut requests: Receiver<Box<Wake>>, metrics: Arc<Metrics>) {
        info!("push_wake_on");
        let Self { http, account } = self;
        let send_url = account.send_url.clone();
        let tokens = AccessTokens::new(http.clone(), account);
        let mut admission = Admission {
            sender: Sender { http, tokens, send_url, metrics },
            allowances: Allowances::default(),
            in_flight: Arc::new(Semaphore::new(MAX_IN_FLIGHT)),
            started: Instant::now(),
            platform_said: false,
        };
        while let Some(wake) = requests.recv().await {
            admission.admit(wake);
        }
        // Nobody closes the semaphore.
        let _ = admission.in_flight.acquire_many(MAX_IN_FLIGHT as u32).await;
    }
}

/// The authorities in the file `ca` alone, or else the usual ones.
fn roots(ca: Option<&Path>) -> Result<RootCertStore, String> {
    let Some(ca) = ca else { return Ok(usual_roots()) };
    let mut roots = RootCertStore::empty();
    add_roots(&mut roots, ca)?;
    Ok(roots)
}

/// What one wake under way needs.
#[derive(Clone)]
struct Sender {
    http: Http,
    tokens: Arc<AccessTokens>,
    send_url: Uri,
    metrics: Arc<Metrics>,
}

/// Decides which wakes are sent.
struct Admission {
    sender: Sender,
    allowances: Allowances,
    in_flight: Arc<Semaphore>,
    started: Instant,
    /// A platform that is not known was told of.
    platform_said: bool,
}

impl Admission {
    /// Starts a wake, or drops it.
    fn admit(&mut self, wake: Box<Wake>) {
        if wake.platform != Platform::Fcm {
            return self.drop_for_platform(&wake);
        }
        let Ok(permit) = self.in_flight.clone().try_acquire_owned() else {
            return self.drop_wake(&wake, "too many wakes are under way");
        };
        let now = self.started.elapsed().as_millis() as Millis;
        match self.allowances.take(now, &wake.server_id) {
            Verdict::Granted => {}
            Verdict::Refused { first: true } => {
                return self.drop_wake(&wake, "the server-id asks for too many wakes");
            }
            Verdict::Refused { first: false } => {
                return self.sender.metrics.push().count(PushOutcome::Dropped);
            }
        }
        let sender = self.sender.clone();
        tokio::spawn(async move {
            sender.wake(&wake).await;
            drop(permit);
        });
    }

    fn drop_wake(&self, wake: &Wake, err: &str) {
        self.sender.metrics.push().count(PushOutcome::Dropped);
        let Wake { server_id, token, .. } = wake;
        info!(server_id = server_id.as_str(), token_fp = %token, err, "push_wake_dropped");
    }

    /// Said once: daemons that know other platforms ask for them again and again.
    fn drop_for_platform(&mut self, wake: &Wake) {
        let err = "the platform is not fcm, the only one supported";
        if std::mem::replace(&mut self.platform_said, true) {
            self.sender.metrics.push().count(PushOutcome::Dropped);
            debug!(server_id = wake.server_id.as_str(), err, "push_wake_dropped");
        } else {
            self.drop_wake(wake, err);
        }
    }
}

impl Sender {
    /// Sends one message, tells what came of it and counts it.
    async fn wake(&self, wake: &Wake) {
        let started = Instant::now();
        let outcome = match self.tokens.get().await {
            Ok(access) => self.send(wake, &access, started).await,
            Err(error) => {
                warn_failed(wake, &error, started);
                PushOutcome::TokenFetchFailed
            }
        };
        self.metrics.push().count(outcome);
    }

    async fn send(&self, wake: &Wake, access: &AccessToken, started: Instant) -> PushOutcome {
        let Wake { server_id, token, .. } = wake;
        let server_id = server_id.as_str();
        match fcm::send(&self.http, &self.send_url, access, token).await {
            Ok(fcm_message_id) => {
                let duration = shown(started.elapsed());
                info!(server_id, token_fp = %token, fcm_message_id, duration, "push_wake_sent");
                PushOutcome::Sent
            }
            Err(error @ SendError::Unregistered) => {
                let duration = shown(started.elapsed());
                info!(server_id, token_fp = %token, err = %error, duration, "push_wake_unregistered");
                PushOutcome::Unregistered
            }
            Err(error) => {
                if error == SendError::Unauthorized {
                    self.tokens.forget(access);
                }
                warn_failed(wake, &error, started);
                PushOutcome::SendFailed
            }
        }
    }
}

fn warn_failed(wake: &Wake, error: &dyn std::fmt::Display, started: Instant) {
    warn!(
        server_id = wake.server_id.as_str(),
        token_fp = %wake.token,
        err = %error,
        duration = shown(started.elapsed()),
        "push_wake_failed"
    );
}

fn shown(duration: Duration) -> String {
    humantime::format_duration(Duration::from_millis(duration.as_millis() as u64)).to_string()
}
