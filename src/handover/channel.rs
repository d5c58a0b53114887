//! Messages and descriptors between two processes, over a Unix stream socket.
//!
//! A message is its length and the number of its descriptors (8 bytes each, little-endian), then its
//! bytes, as postcard encodes them, then the descriptors: a byte for each batch of them, which carries
//! the batch. Buffers are overwritten once they have been used, because keys of TLS are in them.

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::{self, IoSlice, IoSliceMut, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;
use zeroize::Zeroizing;

/// Descriptors in a batch: no more than the kernel takes at once (`SCM_MAX_FD`).
const BATCH: usize = 250;
/// More than any state of a relay: what says that it is longer is none of ours.
const MAX_BYTES: u64 = 64 << 30;
/// More than a process may have.
const MAX_DESCRIPTORS: u64 = 1 << 24;
/// What is made ready for a message whose end has not come.
const STEP_BYTES: usize = 16 << 20;

/// One end.
#[derive(Debug)]
pub struct Channel {
    stream: UnixStream,
}

impl Channel {
    /// Over a stream that is connected to the other process.
    #[must_use]
    pub fn new(stream: UnixStream) -> Self {
        Self { stream }
    }

    /// How long each of the following calls may make no progress.
    ///
    /// # Errors
    ///
    /// The time is zero.
    pub fn set_patience(&self, patience: Duration) -> io::Result<()> {
        self.stream.set_read_timeout(Some(patience))?;
        self.stream.set_write_timeout(Some(patience))
    }

    /// Sends a message and descriptors with it, which stay open here.
    ///
    /// # Errors
    ///
    /// The other process is gone, or takes nothing.
    pub fn send(
        &mut self,
        message: &impl Serialize,
        descriptors: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        let bytes = Zeroizing::new(postcard::to_allocvec(message).map_err(invalid)?);
        let mut head = [0; 16];
        let (length, count) = head.split_at_mut(8);
        length.copy_from_slice(&(bytes.len() as u64).to_le_bytes());
        count.copy_from_slice(&(descriptors.len() as u64).to_le_bytes());
        self.stream.write_all(&head)?;
        self.stream.write_all(&bytes)?;
        for batch in descriptors.chunks(BATCH) {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(BATCH))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            control.push(SendAncillaryMessage::ScmRights(batch));
            let payload = [IoSlice::new(&[0])];
            // A peer that is gone is an error, not a signal.
            rustix::io::retry_on_intr(|| {
                sendmsg(&self.stream, &payload, &mut control, SendFlags::NOSIGNAL)
            })?;
        }
        Ok(())
    }

    /// Receives a message with its descriptors.
    ///
    /// # Errors
    ///
    /// The other process is gone ([`io::ErrorKind::UnexpectedEof`]), says nothing, or says what is
    /// not understood.
    pub fn receive<T: DeserializeOwned>(&mut self) -> io::Result<(T, Vec<OwnedFd>)> {
        let [length, count] = self.head()?;
        let bytes = self.bytes(length)?;
        let descriptors = self.descriptors(count)?;
        Ok((postcard::from_bytes(&bytes).map_err(invalid)?, descriptors))
    }

    fn head(&mut self) -> io::Result<[u64; 2]> {
        let mut numbers = [[0; 8]; 2];
        for number in &mut numbers {
            self.stream.read_exact(number)?;
        }
        let [length, count] = numbers.map(u64::from_le_bytes);
        if length > MAX_BYTES || count > MAX_DESCRIPTORS {
            return Err(invalid("a message that is too long"));
        }
        Ok([length, count])
    }

    /// Room is made as bytes come, rather than for whatever length is claimed.
    fn bytes(&mut self, length: u64) -> io::Result<Zeroizing<Vec<u8>>> {
        let mut bytes = Zeroizing::new(Vec::new());
        while (bytes.len() as u64) < length {
            let have = bytes.len();
            let step = usize::try_from(length - have as u64).unwrap_or(STEP_BYTES).min(STEP_BYTES);
            if bytes.capacity() < have + step {
                let mut larger = Zeroizing::new(Vec::with_capacity(have + step.max(have)));
                larger.extend_from_slice(&bytes);
                bytes = larger;
            }
            bytes.resize(have + step, 0);
            self.stream.read_exact(bytes.get_mut(have..).unwrap_or_default())?;
        }
        Ok(bytes)
    }

    fn descriptors(&mut self, count: u64) -> io::Result<Vec<OwnedFd>> {
        let mut descriptors = Vec::new();
        while (descriptors.len() as u64) < count {
            let before = descriptors.len();
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(BATCH))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut payload = [0];
            let received = rustix::io::retry_on_intr(|| {
                let mut payload = [IoSliceMut::new(&mut payload)];
                recvmsg(&self.stream, &mut payload, &mut control, RecvFlags::CMSG_CLOEXEC)
            })?;
            if received.bytes == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(batch) = message {
                    descriptors.extend(batch);
                }
            }
            let wanted = usize::try_from(count).unwrap_or(usize::MAX).min(before + BATCH);
            // The kernel gives away as many as there is room for.
            if descriptors.len() != wanted {
                return Err(io::Error::other(
                    "descriptors have run out: raise the limit of open files (ulimit -n; systemd: \
                     LimitNOFILE=)",
                ));
            }
        }
        Ok(descriptors)
    }
}

fn invalid(why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd as _;

    fn pair() -> (Channel, Channel) {
        let (one, other) = UnixStream::pair().unwrap();
        let (one, other) = (Channel::new(one), Channel::new(other));
        one.set_patience(Duration::from_secs(10)).unwrap();
        other.set_patience(Duration::from_secs(10)).unwrap();
        (one, other)
    }

    #[test]
    fn messages_come_in_order_with_their_own_descriptors() {
        let (mut one, mut other) = pair();
        let sent = std::thread::spawn(move || {
            let (file, null) = (tempfile(), std::fs::File::open("/dev/null").unwrap());
            one.send(&"first", &[]).unwrap();
            let many: Vec<_> = (0..600).map(|_| file.as_fd()).collect();
            one.send(&vec![7u8; 3 << 20], &many).unwrap();
            one.send(&"last", &[null.as_fd()]).unwrap();
        });
        let first: (String, Vec<OwnedFd>) = other.receive().unwrap();
        assert_eq!((first.0.as_str(), first.1.len()), ("first", 0));
        let second: (Vec<u8>, Vec<OwnedFd>) = other.receive().unwrap();
        assert_eq!((second.0.len(), second.1.len()), (3 << 20, 600));
        assert!(second.1.iter().all(|fd| rustix::fs::fstat(fd).unwrap().st_size == 5));
        let last: (String, Vec<OwnedFd>) = other.receive().unwrap();
        assert_eq!((last.0.as_str(), last.1.len()), ("last", 1));
        sent.join().unwrap();
    }

    fn tempfile() -> std::fs::File {
        let path = std::env::temp_dir().join(format!("channel-{}", std::process::id()));
        std::fs::write(&path, "12345").unwrap();
        let file = std::fs::File::open(&path).unwrap();
        std::fs::remove_file(path).unwrap();
        file
    }

    #[test]
    fn the_end_of_the_other_process_silence_and_nonsense_are_told_apart() {
        let (one, mut other) = pair();
        drop(one);
        let error = other.receive::<String>().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);

        let (one, mut other) = pair();
        other.set_patience(Duration::from_millis(1)).unwrap();
        assert_eq!(other.receive::<String>().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(one);

        for head in [[u64::MAX, 0], [0, u64::MAX], [2, 0]] {
            let (mut one, mut other) = pair();
            for number in head {
                one.stream.write_all(&number.to_le_bytes()).unwrap();
            }
            one.stream.write_all(b"\x05x").unwrap();
            drop(one);
            let error = other.receive::<String>().unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{head:?}: {error}");
        }
    }
}
