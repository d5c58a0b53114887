//! The folder that keeps account and certificate: `CACHE/SERVER/account.json` and
//! `CACHE/SERVER/DOMAIN.pem`, key and chain in one file so that they change together. Each ACME
//! server has a folder of its own, so nothing of a staging server is taken for the real one's. Beside
//! these folders may be the files of Go's autocert (see `autocert`), which are only read.
//!
//! Folders are 0700 and files 0600 (PROTOCOL.md, chapter 7). Files are replaced whole: whatever
//! happens, either the old one is there or the new one.

use rustix::fs::Access;
use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use tracing::warn;

const ACCOUNT: &str = "account.json";
const FOLDER_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;
/// Nothing that was written here is longer.
const MAX_BYTES: u64 = 1024 * 1024;

/// What one ACME server gave for one domain.
#[derive(Debug)]
pub(super) struct Cache {
    root: PathBuf,
    folder: PathBuf,
    certificate: PathBuf,
    only_look: bool,
}

impl Cache {
    /// Makes the folders that are missing, and sees to it that nobody else can look into those
    /// that are there: what is ours is tightened, what is another's is refused. `only_look` refuses
    /// the same and changes nothing.
    ///
    /// # Errors
    ///
    /// What is wrong with which folder, and how to mend it.
    pub(super) fn open(
        root: &Path,
        directory: &str,
        domain: &str,
        only_look: bool,
    ) -> Result<Self, String> {
        let (root, folder) = (trimmed(root), trimmed(root).join(folder_name(directory)));
        own_folder(&root, only_look)?;
        own_folder(&folder, only_look)?;
        let certificate = folder.join(format!("{domain}.pem"));
        Ok(Self { root, folder, certificate, only_look })
    }

    /// Where the certificate is, or will be.
    #[must_use]
    pub(super) fn certificate_path(&self) -> &Path {
        &self.certificate
    }

    /// Where the account is, or will be.
    #[must_use]
    pub(super) fn account_path(&self) -> PathBuf {
        self.folder.join(ACCOUNT)
    }

    /// The key and the chain, in PEM, if there are any.
    ///
    /// # Errors
    ///
    /// The file cannot be read.
    pub(super) fn read_certificate(&self) -> io::Result<Option<Vec<u8>>> {
        read(&self.certificate, self.only_look)
    }

    /// Where a file of another program is that was given the same folder.
    #[must_use]
    pub(super) fn foreign_path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// What is in such a file, if it is there.
    ///
    /// # Errors
    ///
    /// The file cannot be read.
    pub(super) fn read_foreign(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        read(&self.foreign_path(name), self.only_look)
    }

    /// The account, as it was written, if there is one.
    ///
    /// # Errors
    ///
    /// The file cannot be read.
    pub(super) fn read_account(&self) -> io::Result<Option<Vec<u8>>> {
        read(&self.account_path(), self.only_look)
    }

    /// Keeps a key and its chain.
    ///
    /// # Errors
    ///
    /// They cannot be written; what was there before still is.
    pub(super) fn write_certificate(&self, pem: &[u8]) -> io::Result<()> {
        write(&self.folder, &self.certificate, pem)
    }

    /// Keeps an account.
    ///
    /// # Errors
    ///
    /// It cannot be written; what was there before still is.
    pub(super) fn write_account(&self, json: &[u8]) -> io::Result<()> {
        write(&self.folder, &self.account_path(), json)
    }

    /// Whether anything could be kept: to be asked before something is ordered that must be.
    ///
    /// # Errors
    ///
    /// Nothing can: the disk is full, or may not be written to.
    pub(super) fn try_writing(&self) -> io::Result<()> {
        let trial = self.folder.join(".trial");
        write(&self.folder, &trial, &[0; 16 * 1024])?;
        std::fs::remove_file(trial)
    }
}

/// Without a slash at its end, which would follow a symbolic link.
fn trimmed(path: &Path) -> PathBuf {
    path.components().collect()
}

/// The server's URL as the name of a folder: no two URLs give the same.
fn folder_name(directory: &str) -> String {
    let url = directory.strip_prefix("https://").unwrap_or(directory);
    let mut name = String::new();
    for (at, byte) in url.bytes().enumerate() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => name.push(char::from(byte)),
            b'.' if at > 0 => name.push('.'),
            _ => name.push_str(&format!("%{byte:02X}")),
        }
    }
    name
}

fn own_folder(path: &Path, only_look: bool) -> Result<(), String> {
    let refuse = |fault: &str| format!("--cert-cache: {}: {fault}", path.display());
    let failed = |what: &str, error: &io::Error| {
        refuse(&format!("it cannot be {what}: {error}; give a folder that this user can write to"))
    };
    let made = match only_look {
        true => could_be_made(path),
        false => DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(path),
    };
    let data = match std::fs::symlink_metadata(path) {
        Ok(data) => data,
        Err(_) if only_look && made.is_ok() => return Ok(()),
        Err(error) => return Err(failed("made", &made.err().unwrap_or(error))),
    };
    if data.is_symlink() {
        return Err(refuse(
            "it is a symbolic link, which others may redirect; give the folder itself",
        ));
    }
    if !data.is_dir() {
        return Err(refuse("it is not a folder; give another, or move that away"));
    }
    let us = rustix::process::geteuid().as_raw();
    if data.uid() != us {
        return Err(refuse(&format!(
            "it belongs to user {}, who could read the private key, and the relay runs as user \
             {us}; give it to that user, or give another folder",
            data.uid()
        )));
    }
    if only_look {
        return Ok(());
    }
    tighten(path, data.mode(), FOLDER_MODE).map_err(|error| failed("closed to others", &error))
}

/// Whether this user may make a folder at `path`: write to what is there of the way to it.
fn could_be_made(path: &Path) -> io::Result<()> {
    let Some(there) = path.ancestors().find(|folder| folder.symlink_metadata().is_ok()) else {
        // A relative path, below the working folder.
        return Ok(rustix::fs::access(".", Access::WRITE_OK | Access::EXEC_OK)?);
    };
    if there != path && !there.is_dir() {
        return Err(io::ErrorKind::NotADirectory.into());
    }
    Ok(rustix::fs::access(there, Access::WRITE_OK | Access::EXEC_OK)?)
}

/// Takes away what `mode` allows beyond `wanted`, and says so.
fn tighten(path: &Path, mode: u32, wanted: u32) -> io::Result<()> {
    if mode & 0o7777 & !wanted == 0 {
        return Ok(());
    }
    std::fs::set_permissions(path, Permissions::from_mode(mode & wanted))?;
    let err =
        format!("other users had access: mode {:03o} is {:03o} now", mode & 0o7777, mode & wanted);
    warn!(path = %path.display(), err, "cert_cache_tightened");
    Ok(())
}

fn read(path: &Path, only_look: bool) -> io::Result<Option<Vec<u8>>> {
    let opened =
        OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path);
    let file = match opened {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    let data = file.metadata()?;
    if !data.is_file() || data.len() > MAX_BYTES {
        return Err(io::Error::other("it is not a file that the relay wrote"));
    }
    if !only_look {
        tighten(path, data.mode(), FILE_MODE)?;
    }
    let mut bytes = Vec::new();
    file.take(MAX_BYTES).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

/// Writes a file beside `path`, to the disk, and puts it in its place.
fn write(folder: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let fresh = folder.join(name);
    // One that a crash has left behind.
    match std::fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(&fresh)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&fresh, path)?;
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::folder_name;

    #[test]
    fn each_server_has_a_folder_of_its_own() {
        for (url, name) in [
            ("https://acme.test/dir", "acme.test%2Fdir"),
            ("https://acme.test:14000/a_b", "acme.test%3A14000%2Fa_b"),
            ("https://acme.test/a%2Fb", "acme.test%2Fa%252Fb"),
            ("https://../..", "%2E.%2F.."),
            ("https://é", "%C3%A9"),
        ] {
            assert_eq!(folder_name(url), name, "{url}");
        }
    }
}
