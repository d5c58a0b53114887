//! Binds the control socket, in place of one that a dead process left behind.

use crate::config::Exit;
use crate::control::failure;
use rustix::fs::{Mode, chmod};
use socket2::{Domain, SockAddr, Socket, Type};
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::net::UnixListener;
use tracing::warn;

/// Connections that the kernel keeps for us until we accept them.
const BACKLOG: i32 = 16;

/// A socket that listens, whose file goes when this is dropped.
pub(in crate::control) struct Bound {
    pub(super) listener: UnixListener,
    path: PathBuf,
    /// Device and inode of its file.
    file: Option<(u64, u64)>,
    /// Another process listens there now, by the same socket.
    is_given_away: Arc<AtomicBool>,
}

impl Bound {
    /// Listens at `path`, for the tokio runtime that this is called in.
    ///
    /// # Errors
    ///
    /// A process that lives listens there, something else is there, or the folder does not let us.
    pub(in crate::control) fn listen(path: &Path) -> Result<Self, Exit> {
        look(path)?;
        let bound = bind(path).and_then(|socket| UnixListener::from_std(socket.into()));
        bound.map_err(|error| explain(path, &error)).map(|listener| Self::new(path, listener))
    }

    /// Listens by the socket of a predecessor, which has the same path, and [keeps](Self::given_away)
    /// its file until told otherwise.
    ///
    /// # Errors
    ///
    /// It cannot be used.
    pub(in crate::control) fn inherit(path: &Path, descriptor: OwnedFd) -> Result<Self, Exit> {
        let listener = UnixListener::from_std(std::os::unix::net::UnixListener::from(descriptor));
        let bound = listener.map(|listener| Self::new(path, listener));
        let bound = bound.map_err(|error| explain(path, &error))?;
        bound.is_given_away.store(true, Ordering::Relaxed);
        Ok(bound)
    }

    fn new(path: &Path, listener: UnixListener) -> Self {
        let file = identity(path);
        Self { listener, path: path.to_owned(), file, is_given_away: Arc::default() }
    }

    /// Set while another process listens there, by whose end the file stays.
    pub(in crate::control) fn given_away(&self) -> Arc<AtomicBool> {
        self.is_given_away.clone()
    }
}

impl AsFd for Bound {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        // Another process may have put its own there.
        if !self.is_given_away.load(Ordering::Relaxed)
            && self.file.is_some()
            && identity(&self.path) == self.file
        {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|file| (file.dev(), file.ino()))
}

/// Whether [`Bound::listen`] would find its place free, as far as that can be told without
/// changing anything.
///
/// # Errors
///
/// A process that lives listens at `path`, or something is there that is no socket.
pub(in crate::control) fn look(path: &Path) -> Result<(), Exit> {
    let Ok(file) = fs::symlink_metadata(path) else { return Ok(()) };
    let shown = path.display();
    if !file.file_type().is_socket() {
        return Err(failure(format!(
            "{shown} is there and is no socket; give another path, or remove it (--control-socket)"
        )));
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        Err(error) => Err(explain(path, &error)),
        Ok(_) => Err(failure(format!(
            "another process listens on {shown}; stop it first if this relay is to replace it, or \
             give this one a path of its own (--control-socket)"
        ))),
    }
}

/// Binds a socket that nobody but its user can reach at any moment, for it listens last.
fn bind(path: &Path) -> io::Result<Socket> {
    let address = SockAddr::unix(path)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    if fs::symlink_metadata(path).is_ok() {
        warn!(path = %path.display(), err = "left behind by a process that has ended", "control_socket_replaced");
        fs::remove_file(path)?;
    }
    socket.bind(&address)?;
    chmod(path, Mode::RUSR | Mode::WUSR)?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

fn explain(path: &Path, error: &io::Error) -> Exit {
    let mend = match error.kind() {
        io::ErrorKind::NotFound => "make its folder first",
        io::ErrorKind::PermissionDenied => "this user may not; give a folder of its own",
        io::ErrorKind::InvalidInput => "a socket's path has at most 107 bytes; give a shorter one",
        _ => "give another path",
    };
    failure(format!(
        "cannot listen on the control socket {}: {error}: {mend} (--control-socket)",
        path.display()
    ))
}
