//! The workers, as the control plane sees them: it starts them, sends them mail, and asks them for
//! a census, which a worker that is stuck does not answer.

use super::failure;
use super::http::client::Http;
use super::verifier::{self, VerifierSettings};
use super::worker_threads::{End, WorkerThreads};
use crate::config::{Config, Exit, Limits};
use crate::control::push::{self, Push};
use crate::metrics::Metrics;
use crate::protocol::close::Close;
use crate::relay::{Described, Disconnected, Owners, SentAway, Settings, Whom};
use crate::shared::admission::Admission;
use crate::shared::budget::SharedBudget;
use crate::worker::{Mail, ProxyHeaders, Start};
use rustls::ServerConfig;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, channel, unbounded_channel};
use tracing::error;

/// How long a worker has to deal with some of its connections.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the workers are started with, beside the configuration.
pub(super) struct Resources {
    pub(super) listeners: Vec<socket2::Socket>,
    pub(super) tls: Option<Arc<ServerConfig>>,
    pub(super) push: Option<Push>,
    /// Asks about claims.
    pub(super) http: Http,
    /// When the process's clock started.
    pub(super) epoch: Instant,
}

/// How to reach the workers, and what they share.
#[derive(Clone)]
pub(super) struct Fleet {
    mailboxes: Vec<UnboundedSender<Mail>>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) admission: Arc<Admission>,
    pub(super) verifier: VerifierSettings,
}

/// Told of the workers' ends.
pub(super) struct Ends(UnboundedReceiver<End>);

impl Ends {
    /// The next worker ended, which nobody asked it to.
    pub(super) async fn failure(&mut self) -> Exit {
        let why = match self.0.recv().await {
            Some(Err(error)) => format!("a worker failed: {error}"),
            _ => "a worker ended unexpectedly".to_owned(),
        };
        error!(err = why, "worker_failed");
        failure(why)
    }

    /// All workers of `fleet` have ended.
    pub(super) async fn all(&mut self, fleet: &Fleet) {
        for _ in &fleet.mailboxes {
            self.0.recv().await;
        }
    }
}

impl Fleet {
    /// Gives each thread what it is to serve. There is a listener for each.
    pub(super) fn start(
        config: &Config,
        threads: WorkerThreads,
        resources: Resources,
    ) -> (Self, Ends) {
        let WorkerThreads { starts, ends } = threads;
        let Resources { listeners, tls, push, http, epoch } = resources;
        let proxy_headers = match &config.https {
            Some(https) if https.proxy_protocol => ProxyHeaders::Always,
            _ => ProxyHeaders::From(config.proxy_protocol_from.clone()),
        };
        let owners = Owners::new(rand::random(), starts.len());
        let budget = SharedBudget::new(config.memory_budget_bytes, starts.len());
        let admission = Admission::new(config.into(), config.into(), rand::random());
        admission.configure_blocks(&config.block);
        admission.allow(config.allowed.clone());
        let metrics = Metrics::new(starts.len());
        let domain = config.https.as_ref().and_then(|https| https.domain.as_deref()).map(Arc::from);
        let (wakes, requests) = channel(push::MAX_WAITING);
        let push_is_on = push.is_some();
        if let Some(push) = push {
            tokio::spawn(push.run(requests, metrics.clone()));
        }
        let (mailboxes, receivers): (Vec<_>, Vec<_>) =
            starts.iter().map(|_| unbounded_channel()).unzip();
        let (verifications, questions) = channel(verifier::MAX_QUEUED);
        let verifier = VerifierSettings::default();
        verifier.set(config);
        tokio::spawn(verifier::run(http, verifier.clone(), questions, mailboxes.clone()));
        let places = starts.into_iter().zip(listeners).zip(receivers);
        for (number, ((worker, listener), mailbox)) in places.enumerate() {
            let settings = Settings {
                worker: number,
                owners: owners.clone(),
                domain: domain.clone(),
                limits: config.limits,
                budget: budget.clone(),
                admission: admission.clone(),
                metrics: metrics.clone(),
                seed: rand::random(),
                push: push_is_on,
            };
            let start = Start {
                settings,
                listener,
                proxy_headers: proxy_headers.clone(),
                tls: tls.clone(),
                cpu: config.cpus.get(number % config.cpus.len().max(1)).copied(),
                mailbox,
                mailboxes: mailboxes.clone(),
                epoch,
                wakes: wakes.clone(),
                verifications: verifications.clone(),
            };
            // Fails only where the thread has ended, which it tells by itself.
            let _ = worker.send(start);
        }
        (Self { mailboxes, metrics, admission, verifier }, Ends(ends))
    }

    /// How many there are.
    pub(super) fn workers(&self) -> usize {
        self.mailboxes.len()
    }

    /// Has every worker apply these limits from now on.
    pub(super) fn set_limits(&self, limits: Limits) {
        for mailbox in &self.mailboxes {
            let _ = mailbox.send(Mail::Limits(limits));
        }
    }

    /// A worker's next connections from this one on; `None` if it does not answer.
    pub(super) async fn describe(&self, worker: usize, first: usize) -> Option<Described> {
        let (done, mut answer) = unbounded_channel();
        self.mailboxes.get(worker)?.send(Mail::Describe { first, done }).ok()?;
        tokio::time::timeout(PATIENCE, answer.recv()).await.ok()?
    }

    /// Has a worker end those of its next connections from this slot on that are meant; `None` if it
    /// does not answer.
    pub(super) async fn disconnect(
        &self,
        worker: usize,
        first: usize,
        whom: Arc<Whom>,
        close: (u16, Arc<str>),
    ) -> Option<Disconnected> {
        let (done, mut answer) = unbounded_channel();
        let mail = Mail::Disconnect { first, whom, close, done };
        self.mailboxes.get(worker)?.send(mail).ok()?;
        tokio::time::timeout(PATIENCE, answer.recv()).await.ok()?
    }

    /// Has a worker send away up to `most` of its server-ids from this slot on; `None` if it does not
    /// answer.
    pub(super) async fn send_away(
        &self,
        worker: usize,
        (first, most): (usize, usize),
        close: Close,
    ) -> Option<SentAway> {
        let (done, mut answer) = unbounded_channel();
        self.mailboxes.get(worker)?.send(Mail::SendAway { first, most, close, done }).ok()?;
        tokio::time::timeout(PATIENCE, answer.recv()).await.ok()?
    }

    /// Has every worker shut down.
    pub(super) fn shut_down(&self) {
        for mailbox in &self.mailboxes {
            // Fails only where the worker has ended already.
            let _ = mailbox.send(Mail::ShutDown);
        }
    }

    /// Has every worker bring its gauges up to date. False if one did not within `patience`: it
    /// is busy, or stuck, or has ended.
    pub(super) async fn take_census(&self, patience: Duration) -> bool {
        let (done, mut answers) = unbounded_channel();
        for mailbox in &self.mailboxes {
            let _ = mailbox.send(Mail::Census(done.clone()));
        }
        drop(done);
        let all = async {
            for _ in &self.mailboxes {
                if answers.recv().await.is_none() {
                    return false;
                }
            }
            true
        };
        tokio::time::timeout(patience, all).await.unwrap_or(false)
    }
}

#[cfg(test)]
impl Fleet {
    /// A fleet of mailboxes that the test reads.
    pub(super) fn of_mailboxes(workers: usize) -> (Self, Vec<UnboundedReceiver<Mail>>) {
        use crate::shared::admission::{AdmissionLimits, Proxies};
        let (mailboxes, receivers) = (0..workers).map(|_| unbounded_channel()).unzip();
        let metrics = Metrics::new(workers);
        let admission = Admission::new(AdmissionLimits::NONE, Proxies::default(), [0; 4]);
        let verifier = VerifierSettings::default();
        (Self { mailboxes, metrics, admission, verifier }, receivers)
    }
}
