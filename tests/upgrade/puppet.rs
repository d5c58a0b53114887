//! What a relay starts as its successor, in the hands of the test: a process that passes to the test
//! what it was started with. The test plays the successor itself, or has the process become the real
//! one and stands between the two.

use super::common::certs::Folder;
use super::common::{Process, SOON, deny, wait_until};
use super::service::{Service, is_alive};
use pyrycode_relay::handover::channel::Channel;
use pyrycode_relay::handover::messages::{FromPredecessor, FromSuccessor, Greeting};
use serde::{Deserialize, Serialize};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::thread::JoinHandle;

/// What the process is told to become.
#[derive(Serialize, Deserialize)]
enum Become {
    /// The real program. Its standard input comes with this. It may be refused its rings by the kernel,
    /// with this error.
    Successor { no_rings: Option<i32> },
}

/// A program that a relay can be told to start.
pub(crate) struct Puppet {
    /// Its path.
    pub(crate) program: String,
    listener: UnixListener,
}

impl Puppet {
    pub(crate) fn new(folder: &Folder) -> Self {
        let (program, socket) = (folder.path("puppet"), folder.path("puppet.sock"));
        let _ = std::fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).unwrap();
        listener.set_nonblocking(true).unwrap();
        let myself = std::env::current_exe().unwrap();
        let script = format!(
            "#!/bin/sh\nPUPPET_ARGS=\"$(printf '%s\\n' \"$@\")\" PUPPET_SOCKET={} exec {} --exact \
             puppet::a_process --ignored --nocapture\n",
            socket.display(),
            myself.display(),
        );
        executable(&program, &script);
        Self { program: program.to_str().unwrap().to_owned(), listener }
    }

    /// The process, once the relay has started it.
    pub(crate) async fn started(&self) -> Started {
        let mut stream = None;
        wait_until("the relay starts what it is told to", SOON, async || {
            stream = self.listener.accept().ok();
            stream.is_some()
        })
        .await;
        let stream = stream.unwrap().0;
        stream.set_nonblocking(false).unwrap();
        let mut strings = channel(stream);
        let (pid, mut input): (u32, Vec<OwnedFd>) = strings.receive().unwrap();
        let relay = channel(UnixStream::from(input.remove(0)));
        Started { pid, strings, relay }
    }

    /// The process, as the real program, behind whoever stands between.
    pub(crate) async fn successor(&self) -> Between {
        self.started().await.into_successor(None)
    }

    /// An upgrade of this service to such a process, held up at this message.
    pub(crate) async fn held_at(&self, service: &Service, step: Step) -> (Process, Between) {
        let upgrade = service.begin(&["upgrade", "--program", &self.program]);
        let mut between = self.successor().await;
        between.hold(step);
        (upgrade, between)
    }
}

/// A program that becomes the real one, after this line of a shell.
pub(crate) fn wrapper(path: &std::path::Path, line: &str) {
    let program = env!("CARGO_BIN_EXE_pyrycode-relay");
    executable(path, &format!("#!/bin/sh\n{line}\nexec {program} \"$@\"\n"));
}

/// Writes a program.
pub(crate) fn executable(path: &std::path::Path, text: &str) {
    // Another thread that forks meanwhile would have it open for writing, and then it cannot be
    // executed: so it gets its name when it is done.
    let status = Command::new("sh")
        .args([
            "-c",
            "printf %s \"$1\" > \"$2.new\" && chmod 755 \"$2.new\" && mv \"$2.new\" \"$2\"",
        ])
        .arg("sh")
        .arg(text)
        .arg(path)
        .status();
    assert!(status.unwrap().success());
    assert_eq!(std::fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o755);
}

fn channel(stream: UnixStream) -> Channel {
    let channel = Channel::new(stream);
    channel.set_patience(SOON).unwrap();
    channel
}

/// A process that a relay has started as its successor, and that has done nothing yet.
pub(crate) struct Started {
    pub(crate) pid: u32,
    strings: Channel,
    relay: Channel,
}

impl Started {
    /// What the relay says.
    pub(crate) fn hear(&mut self) -> (FromPredecessor, Vec<OwnedFd>) {
        self.relay.receive().unwrap()
    }

    pub(crate) fn hear_greeting(&mut self) -> Greeting {
        self.relay.receive().unwrap().0
    }

    pub(crate) fn say(&mut self, message: &impl Serialize) {
        self.relay.send(message, &[]).unwrap();
    }

    /// Ends, as a process does that is killed.
    pub(crate) async fn dies(self) {
        super::service::signal(self.pid, rustix::process::Signal::KILL);
        self.ends().await;
    }

    /// Is killed, or has ended.
    pub(crate) async fn ends(self) {
        wait_until("the end of the puppet", SOON, async || !is_alive(self.pid)).await;
    }

    /// Becomes the real program.
    pub(crate) fn into_successor(mut self, no_rings: Option<i32>) -> Between {
        let (ours, theirs) = UnixStream::pair().unwrap();
        self.strings.send(&Become::Successor { no_rings }, &[theirs.as_fd()]).unwrap();
        Between { pid: self.pid, old: self.relay, new: channel(ours), next: 0, held: None }
    }
}

/// What the relay starts.
#[test]
#[ignore = "it is what the other tests have a relay start"]
fn a_process() {
    let Ok(socket) = std::env::var("PUPPET_SOCKET") else { return };
    let mut strings = channel(UnixStream::connect(socket).unwrap());
    let input = io::stdin().as_fd().try_clone_to_owned().unwrap();
    strings.send(&std::process::id(), &[input.as_fd()]).unwrap();
    drop(input);
    strings.set_patience(10 * SOON).unwrap();
    // Ends without a word to the relay where the test lets go of it.
    let Ok((told, mut descriptors)) = strings.receive() else { std::process::exit(1) };
    let Become::Successor { no_rings } = told;
    let args = std::env::var("PUPPET_ARGS").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_pyrycode-relay"));
    command.args(args.lines()).env_remove("PUPPET_ARGS").env_remove("PUPPET_SOCKET");
    command.stdin(Stdio::from(descriptors.remove(0)));
    if let Some(errno) = no_rings {
        deny(&mut command, libc::SYS_io_uring_setup, None, errno);
    }
    panic!("{}", command.exec());
}

/// Messages in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Step {
    Greeting,
    Offer,
    Ready,
    State,
    Prepared,
    Commit,
    Taken,
    Serving,
}

impl Step {
    pub(crate) const ALL: [Self; 8] = [
        Self::Greeting,
        Self::Offer,
        Self::Ready,
        Self::State,
        Self::Prepared,
        Self::Commit,
        Self::Taken,
        Self::Serving,
    ];
}

/// A message that is on its way.
enum Held {
    Greeting(Greeting),
    Old(FromPredecessor, Vec<OwnedFd>),
    New(FromSuccessor),
}

/// Who carries messages between a relay and its successor, and holds one up.
pub(crate) struct Between {
    /// The successor.
    pub(crate) pid: u32,
    old: Channel,
    new: Channel,
    next: usize,
    held: Option<Held>,
}

impl Between {
    /// Carries everything up to this message, which has left its sender then and has not arrived.
    pub(crate) fn hold(&mut self, step: Step) {
        self.carry_held().unwrap();
        loop {
            let is_it = Step::ALL[self.next] == step;
            self.held = Some(self.receive().unwrap());
            if is_it {
                return;
            }
            self.carry_held().unwrap();
        }
    }

    /// Has the greeting, which is held up, tell of another version.
    pub(crate) fn greet_as_of(&mut self, version: u32) {
        let Some(Held::Greeting(greeting)) = &mut self.held else { panic!("no greeting is held") };
        greeting.state_version = version;
    }

    /// Has it arrive, and carries whatever follows for as long as there are two ends.
    pub(crate) fn release(mut self) -> JoinHandle<()> {
        std::thread::spawn(move || {
            self.new.set_patience(6 * SOON).unwrap();
            self.old.set_patience(6 * SOON).unwrap();
            while self.carry_held().is_ok() && self.next < Step::ALL.len() {
                match self.receive() {
                    Ok(message) => self.held = Some(message),
                    Err(_) => return,
                }
            }
        })
    }

    fn receive(&mut self) -> io::Result<Held> {
        let step = Step::ALL[self.next];
        self.next += 1;
        Ok(match step {
            Step::Greeting => Held::Greeting(self.old.receive()?.0),
            Step::Offer | Step::State | Step::Commit => {
                let (message, descriptors) = self.old.receive()?;
                Held::Old(message, descriptors)
            }
            _ => Held::New(self.new.receive()?.0),
        })
    }

    fn carry_held(&mut self) -> io::Result<()> {
        match self.held.take() {
            None => Ok(()),
            Some(Held::Greeting(greeting)) => self.new.send(&greeting, &[]),
            Some(Held::Old(message, descriptors)) => {
                let descriptors: Vec<_> = descriptors.iter().map(|one| one.as_fd()).collect();
                self.new.send(&message, &descriptors)
            }
            Some(Held::New(message)) => self.old.send(&message, &[]),
        }
    }
}
