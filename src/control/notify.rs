//! What systemd is told (sd_notify(3)): that the relay is ready, that it stops, and, as its
//! watchdog, that every worker's loop still turns.

use super::fleet::Fleet;
use sd_notify::NotifyState;
use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;
use tracing::{error, info, warn};

/// All workers accept.
pub(super) fn ready(status: &str) {
    send(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// The configuration is being read again.
pub(super) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => send(&[NotifyState::Reloading, now]),
        Err(error) => warn!(err = %error, "supervisor_not_told"),
    }
}

/// This process serves in the place of the one that is told of, and ends.
pub(super) fn taken_over_by(pid: u32) {
    send(&[
        NotifyState::MainPid(pid),
        NotifyState::Ready,
        NotifyState::Status("serving, upgraded"),
    ]);
}

/// The relay was asked to stop.
pub(super) fn stopping() {
    send(&[NotifyState::Stopping, NotifyState::Status("shutting down")]);
}

/// How long a supervisor that does not read may hold this thread up.
const PATIENCE: Duration = Duration::from_secs(1);

fn send(states: &[NotifyState<'_>]) {
    // Does nothing where nobody supervises the process.
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET").filter(|socket| !socket.is_empty()) else {
        return;
    };
    let lines: String = states.iter().map(|state| format!("{state}\n")).collect();
    if let Err(error) = tell(&socket, &lines) {
        warn!(err = %error, "supervisor_not_told");
    }
}

/// Sends a datagram to `socket`: a path, or an abstract name, which is written with an @ in front.
fn tell(socket: &OsStr, lines: &str) -> io::Result<()> {
    let address = match socket.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        _ => SocketAddr::from_pathname(socket),
    }?;
    let datagrams = UnixDatagram::unbound()?;
    datagrams.set_write_timeout(Some(PATIENCE))?;
    datagrams.send_to_addr(lines.as_bytes(), &address).map(drop)
}

/// Feeds the watchdog, twice in each of its intervals, until the process ends; not while a worker does
/// not answer. Then systemd ends the process and starts it again, as the unit says.
pub(super) async fn watchdog(fleet: Fleet) {
    let Some(time) = sd_notify::watchdog_enabled() else { return std::future::pending().await };
    info!(duration = ?time, "watchdog_on");
    watch(fleet, time, || send(&[NotifyState::Watchdog])).await;
}

async fn watch(fleet: Fleet, time: Duration, mut all_is_well: impl FnMut()) {
    let patience = time / 4;
    let mut stuck = false;
    loop {
        tokio::time::sleep(time / 4).await;
        if fleet.take_census(patience).await {
            stuck = false;
            all_is_well();
        } else if !std::mem::replace(&mut stuck, true) {
            let err = "a worker's event loop is stuck, so its server-ids are not served";
            error!(err, "worker_stuck");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::Mail;
    use std::cell::Cell;

    #[tokio::test(start_paused = true)]
    async fn the_watchdog_hears_nothing_while_a_worker_is_stuck() {
        let time = Duration::from_secs(20);
        let (fleet, mut receivers) = Fleet::of_mailboxes(2);
        let mut stuck = receivers.pop().unwrap();
        let mut lively = receivers.pop().unwrap();
        tokio::spawn(async move {
            while let Some(Mail::Census(done)) = lively.recv().await {
                let _ = done.send(());
            }
        });
        let told = Cell::new(0);
        let watching = watch(fleet, time, || told.set(told.get() + 1));
        assert!(tokio::time::timeout(time * 3, watching).await.is_err());
        assert_eq!(told.get(), 0, "one of two did not answer");
        assert!(matches!(stuck.try_recv(), Ok(Mail::Census(_))));
    }

    #[tokio::test(start_paused = true)]
    async fn the_watchdog_is_told_at_least_twice_in_its_time_while_all_workers_answer() {
        let time = Duration::from_secs(20);
        let (fleet, receivers) = Fleet::of_mailboxes(2);
        for mut mailbox in receivers {
            tokio::spawn(async move {
                while let Some(Mail::Census(done)) = mailbox.recv().await {
                    let _ = done.send(());
                }
            });
        }
        let told = Cell::new(0);
        let watching = watch(fleet, time, || told.set(told.get() + 1));
        assert!(tokio::time::timeout(time, watching).await.is_err());
        assert!(told.get() >= 2, "{}", told.get());
    }
}
