//! A certificate and its key from two files, read again when they change.

use super::pair::{Fault, Pair};
use super::{Certificates, present};
use crate::config::Exit;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tracing::error;

/// How often the files are looked at. A change is taken up when nothing has changed any more for
/// as long, because who writes two files writes one first.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// No chain and no key is longer.
const MAX_BYTES: u64 = 1024 * 1024;

/// Keeps [`Certificates`] as the two files say.
pub struct Files {
    certificates: Arc<Certificates>,
    cert: PathBuf,
    key: PathBuf,
    seen: Identity,
}

/// What changes when either file does: written, renamed over, or a link on the way turned.
type Identity = [Option<[i128; 6]>; 2];

impl Files {
    /// Reads both files for the first time.
    ///
    /// # Errors
    ///
    /// Which file is at fault, and how to mend it.
    pub fn open(certificates: Arc<Certificates>, cert: &Path, key: &Path) -> Result<Self, Exit> {
        let (cert, key) = (cert.to_owned(), key.to_owned());
        let seen = [identity(&cert), identity(&key)];
        let files = Self { certificates, cert, key, seen };
        let pair = files
            .read()
            .map_err(|fault| Exit::refusal(&fault).about(["--tls-cert", "--tls-key"]))?;
        present(&files.certificates, pair, &files.cert);
        Ok(files)
    }

    /// Watches the files until the process ends: every two seconds, and at once when asked to by
    /// [`Certificates::reload`].
    pub async fn watch(mut self) {
        let mut settling = self.seen;
        loop {
            let asked = tokio::select! {
                () = self.certificates.reload_asked() => true,
                () = tokio::time::sleep(LOOK_EVERY) => false,
            };
            let now = [identity(&self.cert), identity(&self.key)];
            if asked || (now != self.seen && now == settling) {
                self.seen = now;
                self.reload();
            }
            settling = now;
        }
    }

    /// Takes up what the files hold now; where that is no good, what was there stays.
    fn reload(&self) {
        match self.read() {
            Ok(pair) => present(&self.certificates, pair, &self.cert),
            Err(fault) => {
                self.certificates.count_failure();
                let err = format!("{fault}; the previous certificate stays in use");
                error!(err, "certificate_not_loaded");
            }
        }
    }

    fn read(&self) -> Result<Pair, String> {
        let chain = read("--tls-cert", &self.cert)?;
        let key = read("--tls-key", &self.key)?;
        Pair::from_pem(&chain, &key).map_err(|fault| match &fault {
            Fault::Chain(_) => format!("--tls-cert {}: {fault}", self.cert.display()),
            Fault::Key(_) => format!("--tls-key {}: {fault}", self.key.display()),
        })
    }
}

/// All of a small file.
fn read(flag: &str, path: &Path) -> Result<Vec<u8>, String> {
    let named = |fault: &str| format!("{flag} {}: {fault}", path.display());
    let explain = |error: io::Error| {
        named(match error.kind() {
            io::ErrorKind::NotFound => "there is no such file; give the path of one that exists",
            io::ErrorKind::PermissionDenied => {
                "this user may not read it; change its owner or mode, or run as another user"
            }
            io::ErrorKind::IsADirectory => "that is a folder; give the path of a file in it",
            _ => return named(&format!("{error}; give a file that can be read")),
        })
    };
    // To open a pipe would be to wait for someone to write to it.
    let kind = std::fs::metadata(path).map_err(explain)?.file_type();
    if !kind.is_file() && !kind.is_dir() {
        return Err(named("that is not an ordinary file; copy it into one"));
    }
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(explain)?;
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(explain)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(named("it is over 1 MiB, too large for a certificate; give another file"));
    }
    Ok(bytes)
}

fn identity(path: &Path) -> Option<[i128; 6]> {
    let data = std::fs::metadata(path).ok()?;
    let nanos = |seconds: i64, nanos: i64| i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
    Some([
        data.dev().into(),
        data.ino().into(),
        data.len().into(),
        data.mode().into(),
        nanos(data.mtime(), data.mtime_nsec()),
        nanos(data.ctime(), data.ctime_nsec()),
    ])
}
