//! The commands that operate a relay while it runs: each asks by the control socket and prints what
//! came of it.

use super::failure;
use super::socket::client::ask;
use super::socket::protocol::{DrainPlan, DrainStatus, Request};
use crate::config::{Exit, Operation, Operator};
use std::path::Path;
use std::time::Duration;

/// How often the relay is asked how far it is drained.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Does what the operator asks, and prints what came of it.
///
/// # Errors
///
/// No relay answers, or nothing came of it; exit code 1.
pub fn operate(operator: &Operator) -> Result<(), Exit> {
    let path = operator.socket.as_path();
    let done = match &operator.operation {
        Operation::Drain { cancel: true, .. } => cancel_drain(path),
        Operation::Drain { batch, every, delay, no_wait, .. } => {
            let plan = DrainPlan { batch: *batch, every_ms: *every, delay_ms: *delay };
            drain(path, plan, !no_wait)
        }
    };
    done.map_err(failure)
}

/// Prints a line for whoever is there to read it.
fn say(line: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stdout(), "{line}");
}

fn drain(path: &Path, plan: DrainPlan, wait: bool) -> Result<(), String> {
    let DrainStatus { server_ids_left, .. } = ask(path, &Request::Drain(plan))?;
    say(&format!(
        "draining: the relay takes no new binary, and {server_ids_left} server-ids are to be sent away"
    ));
    if !wait {
        return Ok(());
    }
    loop {
        let Some(status) = ask::<Option<DrainStatus>>(path, &Request::DrainStatus)? else {
            return Err("the drain was cancelled, and the relay lets everybody in again".to_owned());
        };
        if status.server_ids_left == 0 {
            let sent_away = status.server_ids_sent_away;
            say(&format!(
                "drained: {sent_away} server-ids were sent away; the relay can be stopped"
            ));
            return Ok(());
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

fn cancel_drain(path: &Path) -> Result<(), String> {
    if ask(path, &Request::CancelDrain)? {
        say("the drain is cancelled: the relay lets everybody in again");
    } else {
        say("the relay was not being drained");
    }
    Ok(())
}
