//! What the relay is asked to do while it runs, and what it does then.

use super::connections::Row;
use super::diagnose;
use super::drain::Drain;
use super::fleet::Fleet;
use super::log_level::LogLevel;
use super::monitoring::Monitoring;
use super::reload::Settings;
use super::socket::protocol::{Request, Whom};
use super::socket::server::{Answers, Outcome};
use super::upgrade::Upgrades;
use crate::config::IpNet;
use crate::protocol::close::{Close, MAX_REASON_BYTES};
use crate::protocol::ids::ConnId;
use crate::relay::timers::{Millis, NEVER};
use crate::relay::{self, Described};
use crate::shared::admission::{BlockError, MAX_BLOCKS};
use serde::Serialize;
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;

/// What requests reach.
pub(super) struct Operations {
    pub(super) fleet: Fleet,
    pub(super) monitoring: Arc<Monitoring>,
    pub(super) drain: Arc<Drain>,
    pub(super) level: Arc<LogLevel>,
    pub(super) settings: Arc<Settings>,
    pub(super) upgrades: Arc<Upgrades>,
}

impl Operations {
    /// Does what `request` asks; `out` takes the parts of an answer that has several.
    ///
    /// # Errors
    ///
    /// The peer is gone. Why nothing came of a request is an answer, not an error.
    pub(super) async fn answer(&self, request: Request, out: &mut Answers) -> Outcome {
        Ok(match request {
            Request::Status => {
                serde_json::from_str(&self.monitoring.status().await).map_err(|e| e.to_string())
            }
            Request::Diagnose { with_addresses } => {
                let parts = diagnose::parts(&self.monitoring, &self.settings, with_addresses);
                out.items(parts.await).await?;
                done(())
            }
            Request::Connections => return self.connections(out).await,
            Request::Disconnect { whom, code, reason } => self.disconnect(whom, code, reason).await,
            Request::Block { network, for_ms } => self.block(network, for_ms),
            Request::Unblock { network } => self.unblock(network),
            Request::Blocked => done(self.monitoring.blocked()),
            Request::LogLevel { level, for_ms } => self.log_level(&level, for_ms),
            Request::Drain(plan) => done(self.drain.begin(plan).await),
            Request::Upgrade { program } => self.upgrades.upgrade(program).await.and_then(done),
            Request::DrainStatus => done(self.drain.status()),
            Request::CancelDrain => done(self.drain.cancel()),
        })
    }

    /// Workers describe their connections a few at a time, and the next ones once the peer has taken
    /// those: whoever asks holds up nobody, and no more than a few are held in memory.
    async fn connections(&self, out: &mut Answers) -> Outcome {
        let mut count = 0;
        for core in 0..self.fleet.workers() {
            let mut from = Some(0);
            while let Some(first) = from {
                let Some(Described { accounts, next }) = self.fleet.describe(core, first).await
                else {
                    return Ok(Err(stuck(core)));
                };
                count += accounts.len();
                out.items(accounts.iter().map(|account| Row::of(core, account))).await?;
                from = next;
            }
        }
        Ok(done(count))
    }

    async fn disconnect(&self, whom: Whom, code: u16, reason: String) -> Result<Value, String> {
        if Close::directive(code).code != code || reason.len() > MAX_REASON_BYTES {
            return Err("a close code that must not be sent, or a reason that is too long".into());
        }
        let whom = Arc::new(match whom {
            Whom::ServerId(id) => relay::Whom::ServerId(id),
            Whom::Address(network) => relay::Whom::Network(network),
            Whom::ConnId(text) => match ConnId::parse(text.as_bytes()) {
                Some(conn_id) => relay::Whom::ConnId(conn_id),
                None => return Err(format!("{text:?} is no conn-id: 32 hexadecimal digits")),
            },
        });
        let close = (code, Arc::from(reason));
        let mut connections = 0;
        for core in 0..self.fleet.workers() {
            let mut from = Some(0);
            while let Some(first) = from {
                let ended = self.fleet.disconnect(core, first, whom.clone(), close.clone()).await;
                let Some(ended) = ended else { return Err(stuck(core)) };
                connections += ended.connections;
                from = ended.next;
            }
        }
        done(connections)
    }

    fn now(&self) -> Millis {
        self.monitoring.epoch.elapsed().as_millis() as Millis
    }

    fn block(&self, network: IpNet, for_ms: Option<u64>) -> Result<Value, String> {
        let now = self.now();
        let until = for_ms.map_or(NEVER, |time| now.saturating_add(time));
        self.fleet
            .admission
            .block(now, network.trunc(), until)
            .map_err(|error| explain(network, error))?;
        done(())
    }

    fn unblock(&self, network: IpNet) -> Result<Value, String> {
        self.fleet
            .admission
            .unblock(self.now(), network.trunc())
            .map_err(|error| explain(network, error))?;
        done(())
    }

    fn log_level(&self, level: &str, for_ms: Option<u64>) -> Result<Value, String> {
        let level = level.parse().map_err(|_| format!("{level:?} is not a level of the log"))?;
        let configured = self.level.set(level, for_ms.map(Duration::from_millis));
        done(configured.to_string().to_ascii_lowercase())
    }
}

fn done(value: impl Serialize) -> Result<Value, String> {
    serde_json::to_value(value).map_err(|error| error.to_string())
}

fn stuck(core: usize) -> String {
    format!("worker {core} does not answer: its event loop is stuck, or the relay stops")
}

fn explain(network: IpNet, error: BlockError) -> String {
    match error {
        BlockError::Full => {
            format!("{MAX_BLOCKS} networks are blocked already; unblock some, or block larger ones")
        }
        BlockError::NotBlocked => format!("{network} is not blocked; `blocked` lists what is"),
        BlockError::Within(other) => {
            format!("{network} lies in {other}, which is blocked; unblock that, or leave it")
        }
        BlockError::Configured => format!(
            "{network} is blocked by the configuration; take it out of --block and reload (SIGHUP)"
        ),
    }
}
