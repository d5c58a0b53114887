//! The commands that operate a relay while it runs: each asks by the control socket and prints what
//! came of it.

use super::connections::{Row, View};
use super::diagnose::diagnose;
use super::failure;
use super::socket::client::{ask, ask_for_items, ask_patiently};
use super::socket::protocol::{DrainPlan, DrainStatus, Request, Whom};
use super::status::Seen;
use super::upgrade::Report;
use super::watch::watch;
use crate::config::{By, Exit, IpNet, Operation, Operator};
use crate::metrics::snapshot::Blocked;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How often the relay is asked how far it is drained.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// How long an upgrade may take in all.
const UPGRADE_PATIENCE: Duration = Duration::from_secs(90);

/// Does what the operator asks, and prints what came of it.
///
/// # Errors
///
/// No relay answers, or nothing came of it; exit code 1.
pub fn operate(operator: &Operator) -> Result<(), Exit> {
    let path = operator.socket.as_path();
    let done = match &operator.operation {
        Operation::Watch => watch(path),
        Operation::Diagnose { output, with_addresses } => diagnose(path, output, *with_addresses)
            .map(|files| say(&format!("{} is written, with {files} files", output.display()))),
        Operation::Connections { by, top, json } => connections(path, *by, *top, *json),
        Operation::Disconnect { server_id, conn_id, address, code, reason } => {
            let whom = match (server_id, conn_id, address) {
                (Some(id), ..) => Whom::ServerId(id.clone()),
                (_, Some(conn_id), _) => Whom::ConnId(conn_id.clone()),
                (_, _, Some(network)) => Whom::Address(*network),
                // The parser wants one of them.
                (None, None, None) => return Ok(()),
            };
            disconnect(path, whom, *code, reason)
        }
        Operation::Block { network, for_ms } => block(path, *network, *for_ms),
        Operation::Unblock { network } => unblock(path, *network),
        Operation::Blocked { json } => blocked(path, *json),
        Operation::LogLevel { level, for_ms } => log_level(path, level, *for_ms),
        Operation::Upgrade { program, json } => upgrade(path, program.clone(), *json),
        Operation::Drain { cancel: true, .. } => cancel_drain(path),
        Operation::Drain { batch, every, delay, no_wait, .. } => {
            let plan = DrainPlan { batch: *batch, every_ms: *every, delay_ms: *delay };
            drain(path, plan, !no_wait)
        }
    };
    done.map_err(failure)
}

/// How the relay is doing.
pub(super) fn status_of(path: &Path) -> Result<Seen, String> {
    ask(path, &Request::Status)
}

/// All connections, each as a row.
pub(super) fn rows(path: &Path) -> Result<Vec<Row>, String> {
    let mut rows = Vec::new();
    ask_for_items::<u64>(path, &Request::Connections, |item| {
        rows.push(serde_json::from_value(item).map_err(|error| error.to_string())?);
        Ok(())
    })?;
    Ok(rows)
}

fn connections(path: &Path, by: Option<By>, top: Option<usize>, json: bool) -> Result<(), String> {
    let view = View::of(rows(path)?, by, top.unwrap_or(usize::MAX));
    let text = if json { view.json() } else { view.table() };
    // Whoever reads may have had enough.
    let _ = std::io::stdout().write_all(text.as_bytes());
    Ok(())
}

fn disconnect(path: &Path, whom: Whom, code: u16, reason: &str) -> Result<(), String> {
    let request = Request::Disconnect { whom, code, reason: reason.to_owned() };
    let connections: u64 = ask(path, &request)?;
    say(&format!("disconnected: {connections} connections"));
    Ok(())
}

fn block(path: &Path, network: IpNet, for_ms: Option<u64>) -> Result<(), String> {
    ask::<()>(path, &Request::Block { network, for_ms })?;
    let time = for_ms.map_or("until `unblock` or a restart".to_owned(), |ms| {
        format!("for {}", humantime::format_duration(Duration::from_millis(ms)))
    });
    say(&format!(
        "{network} is blocked {time}; open connections stay, unless you \
         `disconnect --address {network}`"
    ));
    Ok(())
}

fn unblock(path: &Path, network: IpNet) -> Result<(), String> {
    ask::<()>(path, &Request::Unblock { network })?;
    say(&format!("{network} is unblocked"));
    Ok(())
}

fn blocked(path: &Path, json: bool) -> Result<(), String> {
    for blocked in ask::<Vec<Blocked>>(path, &Request::Blocked)? {
        if json {
            say(&serde_json::to_string(&blocked).unwrap_or_default());
            continue;
        }
        let Blocked { network, is_configured, seconds_left } = blocked;
        let time = match seconds_left {
            Some(left) => format!("for {}", humantime::format_duration(Duration::from_secs(left))),
            None if is_configured => "by --block".to_owned(),
            None => "until `unblock` or a restart".to_owned(),
        };
        say(&format!("{network}  {time}"));
    }
    Ok(())
}

fn log_level(path: &Path, level: &str, for_ms: Option<u64>) -> Result<(), String> {
    let request = Request::LogLevel { level: level.to_owned(), for_ms };
    let configured: String = ask(path, &request)?;
    let time = for_ms.map_or("the next reload".to_owned(), |ms| {
        format!("{} have passed", humantime::format_duration(Duration::from_millis(ms)))
    });
    say(&format!("the log's level is {level} until {time}; {configured} is configured"));
    Ok(())
}

/// Prints a line for whoever is there to read it.
fn say(line: &str) {
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

fn upgrade(path: &Path, program: Option<PathBuf>, json: bool) -> Result<(), String> {
    // The relay is in another folder than whoever asks it.
    let program =
        program.map(std::path::absolute).transpose().map_err(|error| error.to_string())?;
    let report: Report = ask_patiently(path, &Request::Upgrade { program }, UPGRADE_PATIENCE)?;
    if json {
        say(&serde_json::to_string(&report).map_err(|error| error.to_string())?);
        return Ok(());
    }
    let Report { pid, version, connections, server_ids, left_out, pause_ms } = report;
    say(&format!(
        "upgraded: process {pid} (version {version}) has taken over {connections} connections and \
         {server_ids} server-ids; the workers stood still for {pause_ms:.0} ms",
    ));
    if left_out > 0 {
        say(&format!(
            "not taken over: {left_out} connections amid a TLS handshake, which have to dial again"
        ));
    }
    Ok(())
}

fn cancel_drain(path: &Path) -> Result<(), String> {
    if ask(path, &Request::CancelDrain)? {
        say("the drain is cancelled: the relay lets everybody in again");
    } else {
        say("the relay was not being drained");
    }
    Ok(())
}
