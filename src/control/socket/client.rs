//! The commands' side of the control socket.

use super::protocol::{Answer, Request};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// How long the relay may say nothing.
const PATIENCE: Duration = Duration::from_secs(10);
/// A line longer than this is none of a relay.
const MAX_LINE_BYTES: u64 = 16 * 1024 * 1024;

/// Asks the relay at `path`; what came of it.
///
/// # Errors
///
/// One line that says why nothing came of it, and what to do.
pub(in crate::control) fn ask<T: DeserializeOwned>(
    path: &Path,
    request: &Request,
) -> Result<T, String> {
    ask_patiently(path, request, PATIENCE)
}

/// As [`ask`], where nothing may be said for so long.
///
/// # Errors
///
/// As [`ask`].
pub(in crate::control) fn ask_patiently<T: DeserializeOwned>(
    path: &Path,
    request: &Request,
    patience: Duration,
) -> Result<T, String> {
    hear(path, request, patience, |_| Ok(()))
}

/// As [`ask`], with each part of the answer for `take`.
///
/// # Errors
///
/// As [`ask`], and where `take` fails.
pub(in crate::control) fn ask_for_items<T: DeserializeOwned>(
    path: &Path,
    request: &Request,
    take: impl FnMut(Value) -> Result<(), String>,
) -> Result<T, String> {
    hear(path, request, PATIENCE, take)
}

fn hear<T: DeserializeOwned>(
    path: &Path,
    request: &Request,
    patience: Duration,
    mut take: impl FnMut(Value) -> Result<(), String>,
) -> Result<T, String> {
    let broken = |why: String| format!("no answer from {}: {why}", path.display());
    let mut reader = BufReader::new(send(path, request, patience)?);
    loop {
        let mut line = Vec::new();
        let read = reader.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut line);
        match read {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let why = format!("nothing in {} s: the relay may be stuck", patience.as_secs());
                return Err(broken(why));
            }
            Err(error) => return Err(broken(error.to_string())),
            Ok(0) => return Err(broken("the relay has ended or gave up".to_owned())),
            Ok(_) => {}
        }
        let answer = serde_json::from_slice(&line);
        match answer.map_err(|error| broken(not_understood(&error)))? {
            Answer::Item(item) => take(item)?,
            Answer::Error(why) => return Err(why),
            Answer::Done(done) => {
                return serde_json::from_value(done)
                    .map_err(|error| broken(not_understood(&error)));
            }
        }
    }
}

fn not_understood(error: &serde_json::Error) -> String {
    format!("{error}: is the relay of the same version as this command?")
}

fn send(path: &Path, request: &Request, patience: Duration) -> Result<UnixStream, String> {
    let unreachable = |error: io::Error| unreachable(path, &error);
    let mut stream = UnixStream::connect(path).map_err(unreachable)?;
    stream.set_read_timeout(Some(patience)).map_err(unreachable)?;
    stream.set_write_timeout(Some(PATIENCE)).map_err(unreachable)?;
    let mut line = serde_json::to_vec(request).map_err(|error| error.to_string())?;
    line.push(b'\n');
    // Who is refused may find the connection closed; the answer says why.
    let _ = stream.write_all(&line);
    Ok(stream)
}

fn unreachable(path: &Path, error: &io::Error) -> String {
    let mend = match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            "start the relay, or name the socket that its --control-socket has (`check` shows it)"
        }
        io::ErrorKind::PermissionDenied => "only root and the user that it runs as may operate it",
        _ => "see --control-socket",
    };
    format!("no relay can be asked at {}: {error}: {mend}", path.display())
}
