//! The process that takes over, as it is seen by the one that has started it.

use super::{Program, borrow, now_us};
use crate::config::{TAKE_OVER, VERSION};
use crate::handover::channel::Channel;
use crate::handover::messages::{FromPredecessor, FromSuccessor, Greeting, Offer};
use crate::handover::state;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};
use tracing::warn;

/// How long it may take to start: until it has read its configuration and made its rings.
const START: Duration = Duration::from_secs(30);
/// How long it may take to take in all connections.
const PREPARE: Duration = Duration::from_secs(10);
/// How long it may take to say that it has taken over, and then that it serves.
const COMMIT: Duration = Duration::from_secs(10);
/// How long a process that is not to go on may take to end by itself.
const GRACE: Duration = Duration::from_millis(500);
/// How long what it said before it ended may take to be read.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// How often it is looked at meanwhile.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// A process that is to take over.
pub(super) struct Successor {
    child: Child,
    /// None while another thread uses it.
    channel: Option<Channel>,
    /// It has said that it goes on, or has ended.
    is_over: bool,
}

impl Successor {
    /// Starts `program`.
    pub(super) fn start(program: &Program) -> Result<Self, String> {
        let shown = program.path.display();
        let (ours, theirs) = UnixStream::pair().map_err(|error| error.to_string())?;
        let mut command = Command::new(&program.path);
        command.arg(TAKE_OVER).args(&program.args).stdin(OwnedFd::from(theirs));
        // By this, it would take the watchdog's interval for somebody else's.
        command.env_remove("WATCHDOG_PID");
        let child =
            command.spawn().map_err(|error| format!("{shown} cannot be started: {error}"))?;
        Ok(Self { child, channel: Some(Channel::new(ours)), is_over: false })
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Offers what there is to take over, and waits until it is ready for it; its version.
    pub(super) async fn offer(
        &mut self,
        offer: Offer,
        descriptors: io::Result<Vec<OwnedFd>>,
    ) -> Result<String, String> {
        let descriptors = descriptors.map_err(|error| error.to_string())?;
        let answer = self
            .exchange(START, move |channel| {
                let greeting =
                    Greeting { state_version: state::VERSION, program: VERSION.to_owned() };
                channel.send(&greeting, &[])?;
                let descriptors: Vec<_> = descriptors.iter().map(|one| one.as_fd()).collect();
                channel.send(&FromPredecessor::Offer(offer), &descriptors)?;
                receive(channel)
            })
            .await?;
        match answer {
            FromSuccessor::Ready { program } => Ok(program),
            other => Err(unexpected(other)),
        }
    }

    /// Gives it everything, and waits until it has taken that in.
    pub(super) async fn prepare(
        &mut self,
        state: FromPredecessor,
        descriptors: Vec<RawFd>,
    ) -> Result<(), String> {
        let answer = self
            .exchange(PREPARE, move |channel| {
                channel.send(&state, &borrow(&descriptors))?;
                receive(channel)
            })
            .await?;
        match answer {
            FromSuccessor::Prepared => Ok(()),
            other => Err(unexpected(other)),
        }
    }

    /// Has it go on, which it does when this returns without an error.
    pub(super) async fn commit(&mut self) -> Result<(), String> {
        let taken = self
            .exchange(COMMIT, |channel| {
                channel.send(&FromPredecessor::Commit, &[])?;
                receive(channel)
            })
            .await;
        // Whoever lost patience here must not go on before the other has ended for sure.
        let taken = match taken {
            Err(why) => self.last_words(why).await,
            taken => taken,
        };
        match taken? {
            FromSuccessor::Taken => {}
            other => return Err(unexpected(other)),
        }
        self.is_over = true;
        Ok(())
    }

    /// Waits until it serves, now that it goes on; since when it does, by the clock that both share.
    ///
    /// # Errors
    ///
    /// It has ended, so that nobody serves.
    pub(super) async fn serving(&mut self) -> Result<u64, String> {
        let why = match self.exchange(COMMIT, receive).await {
            Ok(FromSuccessor::Serving { at_us }) => return Ok(at_us),
            Ok(other) => unexpected(other),
            Err(why) => why,
        };
        let pid = self.pid();
        if let Some(status) = self.end_within(GRACE).await {
            return Err(format!(
                "process {pid} took over and has ended ({status}; its reason is in the log): all \
                 connections are lost, and this process ends, too"
            ));
        }
        warn!(err = format!("process {pid} took over and says no more: {why}"), "successor_silent");
        Ok(now_us())
    }

    /// How it has ended, if it does so in this time.
    async fn end_within(&mut self, time: Duration) -> Option<ExitStatus> {
        let begun = Instant::now();
        loop {
            match self.child.try_wait() {
                Ok(None) if begun.elapsed() < time => tokio::time::sleep(LOOK_EVERY).await,
                ended => return ended.ok().flatten(),
            }
        }
    }

    /// What it had said before it ended, which it does now.
    async fn last_words(&mut self, why: String) -> Result<FromSuccessor, String> {
        self.end().await;
        self.exchange(LAST_WORDS, receive).await.map_err(|_| why)
    }

    /// This process goes on, for the reason `why`, which is told with what became of the other.
    pub(super) async fn give_up(mut self, why: String) -> String {
        if let Some(channel) = &mut self.channel
            && channel.set_patience(LAST_WORDS).is_ok()
        {
            // It may have ended.
            let _ = channel.send(&FromPredecessor::Abort, &[]);
        }
        match self.end().await {
            Some(status) if !status.success() && status.code().is_some() => {
                format!("{why} (it ended with {status}; its reason is in the log)")
            }
            _ => why,
        }
    }

    /// It has ended when this returns: by itself, or because it is killed.
    async fn end(&mut self) -> Option<ExitStatus> {
        let by_itself = self.end_within(GRACE).await;
        if by_itself.is_none() {
            let _ = self.child.kill();
            // It is killed: whatever the kernel still does for it, it runs no more.
            return self.end_within(GRACE).await;
        }
        by_itself
    }

    /// Uses the channel in a thread that may block.
    async fn exchange<T: Send + 'static>(
        &mut self,
        patience: Duration,
        use_it: impl FnOnce(&mut Channel) -> io::Result<T> + Send + 'static,
    ) -> Result<T, String> {
        let Some(mut channel) = self.channel.take() else {
            return Err("the new process is being talked to already".to_owned());
        };
        let used = tokio::task::spawn_blocking(move || {
            let used = channel.set_patience(patience).and_then(|()| use_it(&mut channel));
            (channel, used)
        });
        let (channel, used) = used.await.map_err(|error| error.to_string())?;
        self.channel = Some(channel);
        used.map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::ConnectionReset => "the new process has ended".to_owned(),
            io::ErrorKind::WouldBlock => {
                format!("the new process said nothing for {} s", patience.as_secs())
            }
            _ => format!("the new process is not understood: {error}"),
        })
    }
}

impl Drop for Successor {
    fn drop(&mut self) {
        // Where the process stops meanwhile, and nobody gives it up in good order.
        if !self.is_over {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// What it says, with which no descriptor comes.
fn receive(channel: &mut Channel) -> io::Result<FromSuccessor> {
    channel.receive().map(|(message, _)| message)
}

fn unexpected(message: FromSuccessor) -> String {
    match message {
        FromSuccessor::Refused(why) => format!("the new process refuses: {why}"),
        other => format!("the new process is not understood: {other:?}"),
    }
}
