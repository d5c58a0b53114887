//! What the relay says of itself: how many entries its tables have (PROTOCOL.md, chapter 7).

use crate::Outcome;
use serde::Serialize;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// How long it may take to say so.
const PATIENCE: Duration = Duration::from_secs(10);

/// The sizes of the relay's tables, all workers together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Tables {
    /// Connections, however far they have come.
    pub(crate) connections: u64,
    /// Server-ids that are held or in grace.
    pub(crate) server_ids: u64,
    pub(crate) timers: u64,
    /// Bytes charged to the memory budget.
    pub(crate) charged_bytes: u64,
}

impl Tables {
    /// Asks the metrics listener at `address`.
    pub(crate) fn read(address: SocketAddr) -> Outcome<Self> {
        let ask = || {
            let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            let host = format!("Host: {address}\r\nConnection: close\r\n\r\n");
            stream.write_all(format!("GET /metrics HTTP/1.1\r\n{host}").as_bytes())?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok(text)
        };
        let text = ask().map_err(|error: std::io::Error| {
            format!("the relay's fault: its metrics cannot be read: {error}")
        })?;
        Self::of(&text).ok_or_else(|| {
            let answer = text.lines().next().unwrap_or_default();
            format!("the relay's fault: its metrics do not tell what its tables hold: {answer}")
                .into()
        })
    }

    /// `None` where anything is missing.
    fn of(text: &str) -> Option<Self> {
        let sum = |name: &str| {
            let of_name = |line: &str| {
                let rest = line.strip_prefix("pyrycode_relay_")?.strip_prefix(name)?;
                let (labels, value) = rest.rsplit_once(' ')?;
                (labels.is_empty() || labels.starts_with('{')).then(|| value.parse::<f64>().ok())?
            };
            let sum = text.lines().filter_map(of_name).reduce(|sum, value| sum + value);
            sum.map(|sum| sum as u64)
        };
        Some(Self {
            connections: sum("connections")?,
            server_ids: sum("server_ids")?,
            timers: sum("timers")?,
            charged_bytes: sum("memory_charged_bytes")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Tables;

    #[test]
    fn labels_are_added_up_and_other_names_left_alone() {
        let text = "# HELP pyrycode_relay_connections All.\n\
                    pyrycode_relay_connections{state=\"phone\"} 30\n\
                    pyrycode_relay_connections{state=\"binary\"} 2\n\
                    pyrycode_relay_connections_lost_total{reason=\"peer_gone\"} 9\n\
                    pyrycode_relay_server_ids 2\npyrycode_relay_timers 34\n\
                    pyrycode_relay_memory_charged_bytes{core=\"0\"} 5\n\
                    pyrycode_relay_memory_charged_bytes{core=\"1\"} 6\n";
        let tables = Tables { connections: 32, server_ids: 2, timers: 34, charged_bytes: 11 };
        assert_eq!(Tables::of(text), Some(tables));
        assert_eq!(Tables::of("HTTP/1.1 421 Misdirected Request\r\n\r\nno\n"), None);
    }
}
