//! SIGUSR1: a file with one line for each connection, and no secrets.

use super::connections::Row;
use super::fleet::Fleet;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use tracing::{info, warn};

/// Writes the file, and logs where it is. Workers describe their connections a few at a time, so
/// that none of them is held up.
pub(super) async fn dump(fleet: &Fleet) {
    match write(fleet).await {
        Ok(path) => info!(path = %path.display(), "connections_dumped"),
        Err(error) => warn!(err = %error, "connections_not_dumped"),
    }
}

async fn write(fleet: &Fleet) -> io::Result<PathBuf> {
    let (path, mut file) = create()?;
    writeln!(file, "core remote state server_id conn_id age_s outbox_bytes half_read_bytes")?;
    for core in 0..fleet.workers() {
        let mut from = Some(0);
        while let Some(first) = from {
            let Some(described) = fleet.describe(core, first).await else {
                writeln!(file, "# worker {core} did not answer")?;
                break;
            };
            let mut lines = String::new();
            for account in &described.accounts {
                lines += &line(&Row::of(core, account));
            }
            file.write_all(lines.as_bytes())?;
            from = described.next;
        }
    }
    Ok(path)
}

/// A server-id is a peer's own text: quoted, it can forge neither a field nor a line.
fn line(row: &Row) -> String {
    let id = row.server_id.as_ref().map_or_else(|| "-".to_owned(), |id| format!("{id:?}"));
    let conn_id = row.conn_id.as_deref().unwrap_or("-");
    format!(
        "{} {} {} {id} {conn_id} {} {} {}\n",
        row.core, row.remote, row.state, row.age_s, row.backlog_bytes, row.half_read_bytes
    )
}

/// A new file that only this process's user may read, in the folder that systemd gives the
/// service, or where temporary files go.
fn create() -> io::Result<(PathBuf, File)> {
    let folder =
        std::env::var_os("RUNTIME_DIRECTORY").map_or_else(std::env::temp_dir, PathBuf::from);
    for number in 1..1000 {
        let name = format!("pyrycode-relay-{}-{number}.connections", std::process::id());
        let path = folder.join(name);
        match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            file => return file.map(|file| (path, file)),
        }
    }
    Err(io::Error::new(io::ErrorKind::AlreadyExists, "remove older ones first"))
}
