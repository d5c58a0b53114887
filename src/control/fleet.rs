//! The workers, as the control plane sees them: it starts them, sends them mail, and asks them for
//! a census, which a worker that is stuck does not answer.

use super::failure;
use super::http::client::Http;
use super::upgrade::predecessor::Estate;
use super::verifier::{self, VerifierSettings};
use super::worker_threads::{End, WorkerThreads};
use crate::config::{Config, Exit, Limits};
use crate::control::push::{self, Push};
use crate::metrics::Metrics;
use crate::protocol::close::Close;
use crate::protocol::ids::ServerId;
use crate::relay::timers::Millis;
use crate::relay::{Described, Disconnected, Owners, SentAway, Settings, Whom};
use crate::shared::admission::Admission;
use crate::shared::budget::SharedBudget;
use crate::worker::{GivenOut, Inherited, Mail, ProxyHeaders, Start};
use rustls::ServerConfig;
use socket2::Socket;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, channel, unbounded_channel};
use tokio::task::JoinHandle;
use tracing::error;

/// How long a worker has to deal with some of its connections.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the workers are started with, beside the configuration.
pub(super) struct Resources {
    /// Each worker's.
    pub(super) listeners: Vec<Vec<Socket>>,
    pub(super) tls: Option<Arc<ServerConfig>>,
    pub(super) push: Option<Push>,
    /// Asks about claims.
    pub(super) http: Http,
    /// When the process's clock started.
    pub(super) epoch: Instant,
    /// What a predecessor had.
    pub(super) estate: Option<Estate>,
}

/// Workers that have taken in what a predecessor had, and wait for its end.
pub(super) struct Heirs {
    ready: std::sync::mpsc::Receiver<Result<(), String>>,
    go: Vec<std::sync::mpsc::Sender<()>>,
}

impl Heirs {
    /// All of them can go on with it.
    ///
    /// # Errors
    ///
    /// Why one of them cannot.
    pub(super) fn wait(&self) -> Result<(), String> {
        for _ in &self.go {
            let ready = self.ready.recv_timeout(PATIENCE);
            ready.map_err(|_| "a worker does not take in its connections".to_owned())??;
        }
        Ok(())
    }

    /// Has all of them serve.
    pub(super) fn go(self) {
        for go in self.go {
            // Fails only where the worker has ended, which it tells by itself.
            let _ = go.send(());
        }
    }
}

/// How to reach the workers, and what they share.
#[derive(Clone)]
pub(super) struct Fleet {
    mailboxes: Vec<UnboundedSender<Mail>>,
    /// The seeds by which server-ids find their owners.
    pub(super) owners: [u64; 4],
    pub(super) metrics: Arc<Metrics>,
    pub(super) admission: Arc<Admission>,
    pub(super) verifier: VerifierSettings,
}

/// Told of the workers' ends.
pub(super) struct Ends {
    ends: UnboundedReceiver<End>,
    /// How many have not ended.
    left: usize,
    /// What sends the wakes that they ask for; it ends when they have ended and all are sent.
    push: Option<JoinHandle<()>>,
}

impl Ends {
    /// The next worker has ended, whyever.
    pub(super) async fn next(&mut self) -> Option<End> {
        if self.left == 0 {
            return std::future::pending().await;
        }
        let end = self.ends.recv().await;
        self.left -= 1;
        end
    }

    /// All workers have ended.
    pub(super) async fn all(&mut self) {
        while self.left > 0 {
            self.next().await;
        }
    }

    /// The last wakes are sent that workers asked for which have ended.
    pub(super) async fn last_wakes(&mut self) {
        if let Some(push) = self.push.take() {
            // A panic ends the process.
            let _ = push.await;
        }
    }
}

/// A worker has ended that nobody asked to.
pub(super) fn worker_failure(end: Option<End>) -> Exit {
    let why = match end {
        Some(Err(error)) => format!("a worker failed: {error}"),
        _ => "a worker ended unexpectedly".to_owned(),
    };
    error!(err = why, "worker_failed");
    failure(why)
}

impl Fleet {
    /// Gives each thread what it is to serve. There is a listener for each at least.
    ///
    /// # Errors
    ///
    /// What a predecessor had cannot be gone on with.
    pub(super) fn start(
        config: &Config,
        threads: WorkerThreads,
        resources: Resources,
    ) -> Result<(Self, Ends, Heirs), String> {
        let WorkerThreads { starts, ends } = threads;
        let Resources { listeners, tls, push, http, epoch, estate } = resources;
        let proxy_headers = match &config.https {
            Some(https) if https.proxy_protocol => ProxyHeaders::Always,
            _ => ProxyHeaders::From(config.proxy_protocol_from.clone()),
        };
        let seeds = estate.as_ref().map_or_else(rand::random, |estate| estate.process.owners);
        let owners = Owners::new(seeds, starts.len());
        let budget = SharedBudget::new(config.memory_budget_bytes, starts.len());
        let admission = Admission::new(config.into(), config.into(), rand::random());
        admission.configure_blocks(&config.block);
        admission.allow(config.allowed.clone());
        let metrics = Metrics::new(starts.len());
        if let Some(Estate { process, .. }) = &estate {
            metrics.take_in(&process.counters);
            let now = epoch.elapsed().as_millis() as Millis;
            admission.take_in(now, &process.admission)?;
        }
        let (shares, heirs) = shares(estate, &owners, starts.len())?;
        let mut shares = shares.into_iter();
        let domain = config.https.as_ref().and_then(|https| https.domain.as_deref()).map(Arc::from);
        let (wakes, requests) = channel(push::MAX_WAITING);
        let push_is_on = push.is_some();
        let push = push.map(|push| tokio::spawn(push.run(requests, metrics.clone())));
        let (mailboxes, receivers): (Vec<_>, Vec<_>) =
            starts.iter().map(|_| unbounded_channel()).unzip();
        let (verifications, questions) = channel(verifier::MAX_QUEUED);
        let verifier = VerifierSettings::default();
        verifier.set(config);
        tokio::spawn(verifier::run(http, verifier.clone(), questions, mailboxes.clone()));
        let places = starts.into_iter().zip(listeners).zip(receivers);
        for (number, ((worker, listeners), mailbox)) in places.enumerate() {
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
                listeners,
                proxy_headers: proxy_headers.clone(),
                tls: tls.clone(),
                cpu: config.cpus.get(number % config.cpus.len().max(1)).copied(),
                mailbox,
                mailboxes: mailboxes.clone(),
                epoch,
                wakes: wakes.clone(),
                verifications: verifications.clone(),
                inherited: shares.next(),
            };
            // Fails only where the thread has ended, which it tells by itself.
            let _ = worker.send(start);
        }
        let ends = Ends { ends, left: mailboxes.len(), push };
        Ok((Self { mailboxes, owners: seeds, metrics, admission, verifier }, ends, heirs))
    }

    /// How many there are.
    pub(super) fn workers(&self) -> usize {
        self.mailboxes.len()
    }

    /// Has every worker apply these limits from now on.
    pub(super) fn set_limits(&self, limits: Limits) {
        self.tell_all(|| Mail::Limits(limits));
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

    /// Has every worker accept nobody for now. What they have goes on.
    pub(super) fn stop_accepting(&self) {
        self.tell_all(|| Mail::StopAccepting);
    }

    /// Has every worker come to rest. False if one did not within `patience`.
    pub(super) async fn quiesce(&self, patience: Duration) -> bool {
        self.all_answer(patience, |done| Mail::Quiesce { done }).await
    }

    /// Has the workers, which have come to rest, give out everything and stand still; `None` if one of
    /// them does not within `patience`.
    pub(super) async fn give_out(&self, patience: Duration) -> Option<Vec<GivenOut>> {
        let mut answers = Vec::new();
        for mailbox in &self.mailboxes {
            let (done, answer) = unbounded_channel();
            mailbox.send(Mail::GiveOut { done }).ok()?;
            answers.push(answer);
        }
        let mut given = Vec::new();
        for mut answer in answers {
            given.push(tokio::time::timeout(patience, answer.recv()).await.ok()??);
        }
        Some(given)
    }

    /// Has every worker go on, as if it had not come to rest.
    pub(super) fn resume(&self) {
        self.tell_all(|| Mail::Resume);
    }

    /// Has every worker let go of what it has given out, and end.
    pub(super) fn leave(&self) {
        self.tell_all(|| Mail::Leave);
    }

    /// Whether every worker answers such mail within `patience`.
    async fn all_answer<T>(
        &self,
        patience: Duration,
        mail: impl Fn(UnboundedSender<T>) -> Mail,
    ) -> bool {
        let (done, mut answers) = unbounded_channel();
        self.tell_all(|| mail(done.clone()));
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

    fn tell_all(&self, mail: impl Fn() -> Mail) {
        for mailbox in &self.mailboxes {
            // Fails only where the worker has ended already.
            let _ = mailbox.send(mail());
        }
    }

    /// Has every worker shut down.
    pub(super) fn shut_down(&self) {
        self.tell_all(|| Mail::ShutDown);
    }

    /// Has every worker bring its gauges up to date. False if one did not within `patience`: it
    /// is busy, or stuck, or has ended.
    pub(super) async fn take_census(&self, patience: Duration) -> bool {
        self.all_answer(patience, Mail::Census).await
    }
}

/// What each worker gets of what a predecessor had, if there was one.
fn shares(
    estate: Option<Estate>,
    owners: &Owners,
    workers: usize,
) -> Result<(Vec<Inherited>, Heirs), String> {
    let (told_ready, ready) = std::sync::mpsc::channel();
    let mut heirs = Heirs { ready, go: Vec::new() };
    let Some(mut estate) = estate else { return Ok((Vec::new(), heirs)) };
    let owner_of = |id: &str| {
        ServerId::from_header(id.as_bytes()).map_or(usize::MAX, |id| owners.owner_of(&id))
    };
    let shares = estate.share_out(owner_of, workers)?.into_iter();
    let shares = shares.map(|(state, sockets)| {
        let (go, going) = std::sync::mpsc::channel();
        heirs.go.push(go);
        Inherited { state, sockets, ready: told_ready.clone(), go: going }
    });
    Ok((shares.collect(), heirs))
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
        (Self { mailboxes, owners: [0; 4], metrics, admission, verifier }, receivers)
    }
}
