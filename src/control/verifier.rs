//! Asks whoever `--verify-url` names whether a binary may have the server-id that it claims
//! (PROTOCOL.md, chapter 6). It runs on the control plane alone: workers hand over questions and get
//! verdicts by mail, and nobody waits here but the claims themselves.
//!
//! - `answers`: what was said lately, so that a binary that comes back need not be asked about again

mod answers;

use super::http::client::{Bounds, CallError, Http, usual_roots};
use crate::config::Config;
use crate::protocol::ids::ServerId;
use crate::relay::timers::Millis;
use crate::relay::verify::{Ticket, Verdict, Verification};
use crate::worker::Mail;
use answers::{Answers, Claimant, lifetime};
use arc_swap::ArcSwapOption;
use hyper::body::Bytes;
use hyper::{Response, StatusCode, Uri};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::sync::mpsc::{Receiver, UnboundedSender};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};
use tracing::warn;

/// Questions that may wait for the control plane to look at them.
pub(super) const MAX_QUEUED: usize = 1024;
/// Claims that may wait for an answer in the whole process; others get 503 at once.
const MAX_WAITING: usize = 1024;
/// Calls that may be under way.
const MAX_IN_FLIGHT: usize = 64;

/// Answers are short. The time of a call is what its claim may wait.
const BOUNDS: Bounds =
    Bounds { timeout: Duration::from_secs(24 * 60 * 60), max_body_bytes: 64 * 1024 };

/// What calls are made by.
///
/// # Errors
///
/// What is wrong with TLS.
pub(super) fn http() -> Result<Http, String> {
    Http::new(usual_roots(), BOUNDS)
}

/// Who is asked.
#[derive(Debug, PartialEq, Eq)]
struct Target {
    url: Uri,
    timeout: Duration,
}

/// Whom to ask, for who changes it while the relay runs.
#[derive(Clone, Default)]
pub(super) struct VerifierSettings(Arc<ArcSwapOption<Target>>);

impl VerifierSettings {
    /// Has whoever `config` names be asked from now on; claims that wait are asked as before.
    pub(super) fn set(&self, config: &Config) {
        let timeout = Duration::from_millis(config.limits.verify.timeout_ms);
        let target = config.verify_url.clone().map(|url| Arc::new(Target { url, timeout }));
        self.0.store(target);
    }
}

/// What came of a call.
struct Outcome {
    claimant: Claimant,
    ticket: Ticket,
    /// Who was asked.
    target: Arc<Target>,
    said: Result<Said, NoAnswer>,
}

/// An answer, and how long it is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Said {
    allow: bool,
    lifetime: Duration,
}

/// Why there is no usable answer. It shows nothing of what was received.
#[derive(Debug, PartialEq, Eq)]
enum NoAnswer {
    Call(CallError),
    /// It took longer than this.
    Slow(Duration),
    /// As long as the claim waited, too many others were asked about.
    Queued,
    Status(StatusCode),
    Malformed,
}

impl fmt::Display for NoAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Call(error) => write!(f, "the verifier {error}"),
            Self::Slow(timeout) => write!(f, "the verifier did not answer within {timeout:?}"),
            Self::Queued => f.write_str(
                "the verifier is too slow for so many claims; see --verify-timeout, or make it faster",
            ),
            Self::Status(status) => {
                write!(f, "the verifier answered {}, not 200", status.as_u16())
            }
            Self::Malformed => f.write_str(
                "the verifier's answer is not JSON with a member `allow` that is true or false",
            ),
        }
    }
}

/// Answers questions for as long as a worker can ask any.
pub(super) async fn run(
    http: Http,
    settings: VerifierSettings,
    mut questions: Receiver<Box<Verification>>,
    mailboxes: Vec<UnboundedSender<Mail>>,
) {
    let mut verifier = Verifier {
        http,
        settings,
        mailboxes,
        answers: Answers::default(),
        of: None,
        calls: JoinSet::new(),
        in_flight: Arc::new(Semaphore::new(MAX_IN_FLIGHT)),
        started: Instant::now(),
    };
    loop {
        tokio::select! {
            question = questions.recv() => match question {
                Some(question) => verifier.consider(*question),
                None => return,
            },
            Some(Ok(outcome)) = verifier.calls.join_next() => verifier.conclude(outcome),
        }
    }
}

struct Verifier {
    http: Http,
    settings: VerifierSettings,
    mailboxes: Vec<UnboundedSender<Mail>>,
    answers: Answers,
    /// Who gave the answers that are remembered.
    of: Option<Uri>,
    calls: JoinSet<Outcome>,
    in_flight: Arc<Semaphore>,
    started: Instant,
}

impl Verifier {
    fn consider(&mut self, question: Verification) {
        let Verification { ticket, server_id, address } = question;
        let Some(target) = self.settings.0.load_full() else {
            // It was switched off since.
            return self.tell(ticket, Verdict::Allowed);
        };
        if self.of.as_ref() != Some(&target.url) {
            self.of = Some(target.url.clone());
            self.answers = Answers::default();
        }
        let claimant = (server_id, address);
        if let Some(allow) = self.answers.get(self.now(), &claimant) {
            return self.tell(ticket, verdict(allow));
        }
        if self.calls.len() >= MAX_WAITING {
            return self.tell(ticket, Verdict::TooMany);
        }
        let (http, in_flight) = (self.http.clone(), self.in_flight.clone());
        let until = Instant::now() + target.timeout;
        self.calls.spawn(async move {
            let said = match timeout_at(until, in_flight.acquire()).await {
                Ok(_place) => match timeout_at(until, ask(&http, &target.url, &claimant)).await {
                    Ok(said) => said,
                    Err(_) => Err(NoAnswer::Slow(target.timeout)),
                },
                Err(_) => Err(NoAnswer::Queued),
            };
            Outcome { claimant, ticket, target, said }
        });
    }

    fn conclude(&mut self, outcome: Outcome) {
        let Outcome { claimant, ticket, target, said } = outcome;
        match said {
            Ok(Said { allow, lifetime }) => {
                self.tell(ticket, verdict(allow));
                if self.of.as_ref() == Some(&target.url) {
                    self.answers.put(self.now(), claimant, allow, lifetime);
                }
            }
            Err(error) => {
                let (server_id, remote) = (claimant.0.as_str(), claimant.1);
                warn!(server_id, %remote, err = %error, "claim_not_verified");
                self.tell(ticket, Verdict::NoAnswer);
            }
        }
    }

    fn now(&self) -> Millis {
        self.started.elapsed().as_millis() as Millis
    }

    fn tell(&self, ticket: Ticket, verdict: Verdict) {
        if let Some(mailbox) = self.mailboxes.get(ticket.worker) {
            // Fails only where the worker has ended.
            let _ = mailbox.send(Mail::Verdict { ticket, verdict });
        }
    }
}

fn verdict(allow: bool) -> Verdict {
    if allow { Verdict::Allowed } else { Verdict::Denied }
}

#[derive(Serialize)]
struct Question<'a> {
    server_id: &'a str,
    address: IpAddr,
}

#[derive(Deserialize)]
struct Reply {
    allow: bool,
}

async fn ask(
    http: &Http,
    url: &Uri,
    (server_id, address): &(ServerId, IpAddr),
) -> Result<Said, NoAnswer> {
    let question = Question { server_id: server_id.as_str(), address: address.to_canonical() };
    // Two strings: nothing of it can fail.
    let body = serde_json::to_string(&question).unwrap_or_default();
    let answer = http.post(url, "application/json", None, body).await.map_err(NoAnswer::Call)?;
    read(&answer)
}

fn read(answer: &Response<Bytes>) -> Result<Said, NoAnswer> {
    if answer.status() != StatusCode::OK {
        return Err(NoAnswer::Status(answer.status()));
    }
    let Reply { allow } = serde_json::from_slice(answer.body()).map_err(|_| NoAnswer::Malformed)?;
    Ok(Said { allow, lifetime: lifetime(answer.headers(), allow) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: StatusCode, body: &'static str) -> Response<Bytes> {
        Response::builder().status(status).body(body.into()).unwrap()
    }

    #[test]
    fn only_a_clear_answer_is_one() {
        for (body, allow) in
            [(r#"{"allow":true}"#, true), (r#"{"allow": false, "why": "unpaid"}"#, false)]
        {
            assert_eq!(read(&answer(StatusCode::OK, body)).map(|said| said.allow), Ok(allow));
        }
        for body in ["", "true", "{}", r#"{"allow":1}"#, r#"{"allow":"true"}"#, "<html>"] {
            assert_eq!(read(&answer(StatusCode::OK, body)), Err(NoAnswer::Malformed), "{body}");
        }
        for status in [StatusCode::FORBIDDEN, StatusCode::FOUND, StatusCode::CREATED] {
            let refused = Err(NoAnswer::Status(status));
            assert_eq!(read(&answer(status, r#"{"allow":true}"#)), refused);
        }
    }
}
