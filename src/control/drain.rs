//! The relay is drained while it runs: it takes nobody new, and everybody who is there is sent away,
//! a few server-ids at a time.

use super::fleet::Fleet;
use super::socket::protocol::{DrainPlan, DrainStatus};
use crate::protocol::close::Close;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::task::AbortHandle;
use tracing::info;

/// How often some are told where the closes of a shutdown are spread.
const SPREAD_EVERY: Duration = Duration::from_millis(50);

/// Whether and how the relay is drained.
pub(super) struct Drain {
    fleet: Fleet,
    under_way: Mutex<Option<UnderWay>>,
}

struct UnderWay {
    status: DrainStatus,
    task: AbortHandle,
}

impl Drain {
    pub(super) fn new(fleet: Fleet) -> Arc<Self> {
        Arc::new(Self { fleet, under_way: Mutex::default() })
    }

    fn under_way(&self) -> MutexGuard<'_, Option<UnderWay>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How far it has come, if the relay is drained.
    pub(super) fn status(&self) -> Option<DrainStatus> {
        self.under_way().as_ref().map(|under_way| under_way.status)
    }

    /// Begins, or goes on by another plan.
    pub(super) async fn begin(self: &Arc<Self>, plan: DrainPlan) -> DrainStatus {
        self.fleet.admission.set_draining(true);
        let left = self.count().await;
        let mut under_way = self.under_way();
        // It may have been cancelled meanwhile.
        self.fleet.admission.set_draining(true);
        let before = under_way.take();
        if let Some(before) = &before {
            before.task.abort();
        }
        let server_ids_sent_away = before.map_or(0, |before| before.status.server_ids_sent_away);
        let status = DrainStatus { server_ids_left: total(&left), server_ids_sent_away };
        let drain = self.clone();
        let task = tokio::spawn(async move { drain.send_away(plan, left).await }).abort_handle();
        *under_way = Some(UnderWay { status, task });
        info!(
            err = format!("{} server-ids are to be sent away", status.server_ids_left),
            "draining"
        );
        status
    }

    /// The server-ids of each worker.
    async fn count(&self) -> Vec<usize> {
        let mut left = Vec::new();
        for worker in 0..self.fleet.workers() {
            let looked = self.fleet.send_away(worker, (0, 0), Close::SERVICE_RESTART).await;
            left.push(looked.map_or(0, |looked| looked.left));
        }
        left
    }

    /// Takes nobody new and sends everybody away, because the process is asked to stop: evenly over
    /// this time, or less where there are few.
    pub(super) async fn spread(&self, time: Duration) {
        if let Some(before) = self.under_way().take() {
            before.task.abort();
        }
        self.fleet.admission.set_draining(true);
        let mut left = self.count().await;
        let mut slots = vec![0; left.len()];
        let (all, begun, mut told) = (total(&left), Instant::now(), 0);
        while total(&left) > 0 && begun.elapsed() < time {
            let share = begun.elapsed().as_secs_f64() / time.as_secs_f64();
            let due = (all as f64 * share) as usize + 1;
            if due > told {
                self.send_batch(due - told, Close::SHUTTING_DOWN, &mut slots, &mut left).await;
                told = all.saturating_sub(total(&left)) as usize;
            }
            tokio::time::sleep(SPREAD_EVERY).await;
        }
    }

    /// Lets everybody in again; whether that makes a difference.
    pub(super) fn cancel(&self) -> bool {
        let mut under_way = self.under_way();
        self.fleet.admission.set_draining(false);
        let before = under_way.take();
        if let Some(before) = &before {
            before.task.abort();
            info!("drain_cancelled");
        }
        before.is_some()
    }

    /// Sends away one batch after the other. Goes on when nobody is left: a claim may have been under
    /// way when it began.
    async fn send_away(&self, plan: DrainPlan, mut left: Vec<usize>) {
        let mut slots = vec![0; left.len()];
        let mut was_empty = false;
        tokio::time::sleep(Duration::from_millis(plan.delay_ms)).await;
        loop {
            self.send_batch(plan.batch, Close::SERVICE_RESTART, &mut slots, &mut left).await;
            let is_empty = total(&left) == 0;
            if is_empty && !was_empty {
                info!("drained");
            }
            was_empty = is_empty;
            tokio::time::sleep(Duration::from_millis(plan.every_ms.max(1))).await;
        }
    }

    /// Sends away up to `batch` server-ids, of one worker after the other. Each is looked through once
    /// at most, from where the last batch came to.
    async fn send_batch(
        &self,
        batch: usize,
        close: Close,
        slots: &mut [usize],
        left: &mut [usize],
    ) {
        let mut wanted = batch;
        for (worker, (slot, left)) in slots.iter_mut().zip(left.iter_mut()).enumerate() {
            loop {
                let Some(sent) = self.fleet.send_away(worker, (*slot, wanted), close).await else {
                    break;
                };
                (*slot, *left) = (sent.next, sent.left);
                wanted = wanted.saturating_sub(sent.server_ids);
                self.note(sent.server_ids);
                if wanted == 0 || sent.left == 0 || sent.next == 0 {
                    break;
                }
            }
        }
        self.note_left(total(left));
    }

    fn note(&self, sent_away: usize) {
        if let Some(under_way) = self.under_way().as_mut() {
            under_way.status.server_ids_sent_away += sent_away as u64;
        }
    }

    fn note_left(&self, left: u64) {
        if let Some(under_way) = self.under_way().as_mut() {
            under_way.status.server_ids_left = left;
        }
    }
}

fn total(left: &[usize]) -> u64 {
    left.iter().sum::<usize>() as u64
}
