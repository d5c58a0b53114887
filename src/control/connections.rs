//! Who is connected and what they cost: one row each, as the control socket tells them, and tables
//! made of them.

use crate::config::By;
use crate::relay::Account;
use serde::{Deserialize, Serialize};
use std::cmp::Reverse;
use std::collections::HashMap;
use std::fmt::Write as _;

/// One connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Row {
    /// Its worker.
    pub(super) core: usize,
    /// Who the peer is: address and port.
    pub(super) remote: String,
    /// How far it has come: head, moving, verifying, newcomer, binary, phone, closing.
    pub(super) state: String,
    /// It is not read for a moment: its server-id is over `--server-id-rate`.
    pub(super) slowed: bool,
    pub(super) server_id: Option<String>,
    pub(super) conn_id: Option<String>,
    pub(super) age_s: u64,
    /// What the peer has sent.
    pub(super) messages_in: u64,
    pub(super) bytes_in: u64,
    /// What was queued for the peer.
    pub(super) messages_out: u64,
    pub(super) bytes_out: u64,
    /// Memory that what waits for it takes.
    pub(super) backlog_bytes: u64,
    /// Memory that takes what it has sent and what is not dealt with.
    pub(super) half_read_bytes: u64,
    /// From the last ping that it has answered to its pong.
    pub(super) round_trip_ms: Option<u16>,
}

impl Row {
    pub(super) fn of(core: usize, account: &Account) -> Self {
        Self {
            core,
            remote: account.remote.to_string(),
            state: account.state.to_owned(),
            slowed: account.slowed,
            server_id: account.server_id.as_ref().map(|id| id.as_str().to_owned()),
            conn_id: account.conn_id.as_ref().map(|id| id.as_str().to_owned()),
            age_s: account.age_s,
            messages_in: account.traffic.messages_in,
            bytes_in: account.traffic.bytes_in,
            messages_out: account.traffic.messages_out,
            bytes_out: account.traffic.bytes_out,
            backlog_bytes: account.backlog_bytes,
            half_read_bytes: account.half_read_bytes,
            round_trip_ms: account.round_trip_ms,
        }
    }

    fn bytes(&self) -> u64 {
        self.bytes_in.saturating_add(self.bytes_out)
    }

    /// The peer's address, without its port.
    fn address(&self) -> &str {
        let remote = self.remote.as_str();
        let address = match remote.parse::<std::net::IpAddr>() {
            Ok(_) => remote,
            Err(_) => remote.rsplit_once(':').map_or(remote, |(address, _)| address),
        };
        address.trim_start_matches('[').trim_end_matches(']')
    }
}

/// Several connections together.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(super) struct Sum {
    /// What they have in common: their server-id, or their address.
    pub(super) of: String,
    pub(super) connections: u64,
    pub(super) messages_in: u64,
    pub(super) bytes_in: u64,
    pub(super) messages_out: u64,
    pub(super) bytes_out: u64,
    pub(super) backlog_bytes: u64,
    /// The age of the oldest.
    pub(super) oldest_s: u64,
    /// The longest of their round trips.
    pub(super) round_trip_ms: Option<u16>,
}

impl Sum {
    fn add(&mut self, row: &Row) {
        self.connections += 1;
        self.messages_in += row.messages_in;
        self.bytes_in += row.bytes_in;
        self.messages_out += row.messages_out;
        self.bytes_out += row.bytes_out;
        self.backlog_bytes += row.backlog_bytes;
        self.oldest_s = self.oldest_s.max(row.age_s);
        self.round_trip_ms = self.round_trip_ms.max(row.round_trip_ms);
    }
}

/// What is shown of all connections.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum View {
    Each(Vec<Row>),
    Sums(&'static str, Vec<Sum>),
}

impl View {
    /// What is largest comes first, and no more than `top`.
    pub(super) fn of(mut rows: Vec<Row>, by: Option<By>, top: usize) -> Self {
        match by {
            Some(By::ServerId) => {
                return Self::sums("SERVER-ID", &rows, top, |row| row.server_id.as_deref());
            }
            Some(By::Address) => {
                return Self::sums("ADDRESS", &rows, top, |row| Some(row.address()));
            }
            Some(By::Bytes) => rows.sort_by_key(|row| Reverse(row.bytes())),
            Some(By::Backlog) => rows.sort_by_key(|row| Reverse(row.backlog_bytes)),
            Some(By::Age) => rows.sort_by_key(|row| Reverse(row.age_s)),
            None => {}
        }
        rows.truncate(top);
        Self::Each(rows)
    }

    /// Rows that have nothing to be summed up by are left out.
    fn sums(
        what: &'static str,
        rows: &[Row],
        top: usize,
        by: impl Fn(&Row) -> Option<&str>,
    ) -> Self {
        let mut sums: HashMap<&str, Sum> = HashMap::new();
        for row in rows {
            if let Some(of) = by(row) {
                sums.entry(of).or_default().add(row);
            }
        }
        let sums = sums.into_iter().map(|(of, sum)| Sum { of: of.to_owned(), ..sum });
        let mut sums: Vec<Sum> = sums.collect();
        sums.sort_by(|one, other| {
            let bytes = |sum: &Sum| Reverse(sum.bytes_in.saturating_add(sum.bytes_out));
            let key = |sum: &Sum| (bytes(sum), Reverse(sum.connections));
            key(one).cmp(&key(other)).then_with(|| one.of.cmp(&other.of))
        });
        sums.truncate(top);
        Self::Sums(what, sums)
    }

    /// A line of JSON for each.
    pub(super) fn json(&self) -> String {
        fn lines(items: &[impl Serialize]) -> String {
            // Plain data with strings for keys: nothing of it can fail.
            let line = |item| serde_json::to_string(item).unwrap_or_default() + "\n";
            items.iter().map(line).collect()
        }
        match self {
            Self::Each(rows) => lines(rows),
            Self::Sums(_, sums) => lines(sums),
        }
    }

    /// A table, with a line for each.
    pub(super) fn table(&self) -> String {
        let mut out = String::new();
        // Writing to a string cannot fail.
        match self {
            Self::Each(rows) => {
                let _ = writeln!(
                    out,
                    "{:<13} {:>9} {:>9} {:>9} {:>9} {:>9} {:>8} {:>7}  {:<22} {:<32} SERVER-ID",
                    "STATE",
                    "MSGS-IN",
                    "BYTES-IN",
                    "MSGS-OUT",
                    "BYTES-OUT",
                    "BACKLOG",
                    "AGE",
                    "RTT",
                    "REMOTE",
                    "CONN-ID"
                );
                rows.iter().for_each(|row| push_row(&mut out, row));
            }
            Self::Sums(what, sums) => {
                let _ = writeln!(
                    out,
                    "{:>6} {:>9} {:>9} {:>9} {:>9} {:>9} {:>8} {:>7}  {what}",
                    "CONNS",
                    "MSGS-IN",
                    "BYTES-IN",
                    "MSGS-OUT",
                    "BYTES-OUT",
                    "BACKLOG",
                    "OLDEST",
                    "RTT"
                );
                sums.iter().for_each(|sum| push_sum(&mut out, sum));
            }
        }
        out
    }
}

fn push_row(out: &mut String, row: &Row) {
    let _ = writeln!(
        out,
        "{:<13} {:>9} {:>9} {:>9} {:>9} {:>9} {:>8} {:>7}  {:<22} {:<32} {}",
        state(row),
        row.messages_in,
        bytes(row.bytes_in),
        row.messages_out,
        bytes(row.bytes_out),
        bytes(row.backlog_bytes),
        age(row.age_s),
        round_trip(row.round_trip_ms),
        row.remote,
        row.conn_id.as_deref().unwrap_or("-"),
        row.server_id.as_deref().map_or("-".to_owned(), shown),
    );
}

fn push_sum(out: &mut String, sum: &Sum) {
    let _ = writeln!(
        out,
        "{:>6} {:>9} {:>9} {:>9} {:>9} {:>9} {:>8} {:>7}  {}",
        sum.connections,
        sum.messages_in,
        bytes(sum.bytes_in),
        sum.messages_out,
        bytes(sum.bytes_out),
        bytes(sum.backlog_bytes),
        age(sum.oldest_s),
        round_trip(sum.round_trip_ms),
        shown(&sum.of),
    );
}

/// How far it has come, and whether it is kept waiting.
fn state(row: &Row) -> String {
    if row.slowed { format!("{} slowed", row.state) } else { row.state.clone() }
}

/// A peer's own text, which is not to steer a terminal or to pass for another line.
fn shown(text: &str) -> String {
    text.escape_debug().to_string()
}

fn bytes(value: u64) -> String {
    super::status::bytes(value).replace(' ', "")
}

fn age(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h{}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d{}h", seconds / 86_400, seconds / 3600 % 24),
    }
}

fn round_trip(ms: Option<u16>) -> String {
    ms.map_or("-".to_owned(), |ms| format!("{ms}ms"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(remote: &str, id: &str, bytes_in: u64, age_s: u64) -> Row {
        Row {
            core: 0,
            remote: remote.to_owned(),
            state: "phone".to_owned(),
            slowed: false,
            server_id: (!id.is_empty()).then(|| id.to_owned()),
            conn_id: None,
            age_s,
            messages_in: 1,
            bytes_in,
            messages_out: 0,
            bytes_out: 0,
            backlog_bytes: age_s,
            half_read_bytes: 0,
            round_trip_ms: None,
        }
    }

    fn rows() -> Vec<Row> {
        vec![
            row("10.0.0.1:1", "a", 5, 9),
            row("10.0.0.1:2", "b", 7, 3),
            row("[2001:db8::1]:3", "b", 1, 4),
            row("2001:db8::1", "", 0, 1),
        ]
    }

    #[test]
    fn connections_are_summed_up_by_server_id_and_by_address() {
        let View::Sums(_, sums) = View::of(rows(), Some(By::ServerId), 9) else { panic!() };
        let told: Vec<_> =
            sums.iter().map(|s| (s.of.as_str(), s.connections, s.bytes_in)).collect();
        assert_eq!(told, [("b", 2, 8), ("a", 1, 5)]);
        let View::Sums(_, sums) = View::of(rows(), Some(By::Address), 9) else { panic!() };
        let told: Vec<_> =
            sums.iter().map(|s| (s.of.as_str(), s.connections, s.oldest_s)).collect();
        assert_eq!(told, [("10.0.0.1", 2, 9), ("2001:db8::1", 2, 4)]);
    }

    #[test]
    fn the_largest_come_first_and_no_more_than_wanted() {
        let first = |by, top| {
            let View::Each(rows) = View::of(rows(), Some(by), top) else { panic!() };
            rows.iter().map(|row| row.remote.clone()).collect::<Vec<_>>()
        };
        assert_eq!(first(By::Bytes, 2), ["10.0.0.1:2", "10.0.0.1:1"]);
        assert_eq!(first(By::Age, 1), ["10.0.0.1:1"]);
        assert_eq!(first(By::Backlog, 1), ["10.0.0.1:1"]);
    }

    #[test]
    fn a_peers_text_cannot_pass_for_a_line_or_steer_a_terminal() {
        for by in [None, Some(By::ServerId)] {
            let sly = vec![row("10.0.0.1:1", "a\n\u{1b}[2J\u{9b}31m", 1, 1)];
            let table = View::of(sly, by, 9).table();
            assert_eq!(table.lines().count(), 2, "{table}");
            assert!(table.chars().all(|c| c == '\n' || !c.is_control()), "{table:?}");
        }
    }
}
