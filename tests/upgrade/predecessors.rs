//! What the new process does with a predecessor that is none, that ends, or that changes its mind.

use super::common::{Process, Raw, Request, SOON, command, run, soon};
use pyrycode_relay::handover::channel::Channel;
use pyrycode_relay::handover::messages::{
    FromPredecessor, FromSuccessor, Greeting, Offer, Place, State,
};
use pyrycode_relay::handover::process::Process as Known;
use pyrycode_relay::handover::state::{ServerId, Tenure, VERSION, Worker};
use std::io::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;

const ARGS: [&str; 9] = [
    "take-over",
    "--insecure-listen",
    "127.0.0.1:0",
    "--metrics-listen",
    "",
    "--workers",
    "1",
    "--log-format",
    "json",
];

/// The program, and the test as its predecessor, which serves at `listener`.
struct Predecessor {
    process: Process,
    channel: Channel,
    /// The same, for what is no message.
    stream: UnixStream,
    listener: TcpListener,
}

impl Predecessor {
    fn new() -> Self {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let process = Process::spawn_on(command(&ARGS), OwnedFd::from(theirs));
        let stream = ours.try_clone().unwrap();
        let channel = Channel::new(ours);
        channel.set_patience(SOON).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        Self { process, channel, stream, listener }
    }

    fn addr(&self) -> SocketAddr {
        self.listener.local_addr().unwrap()
    }

    fn say(&mut self, message: &impl serde::Serialize) {
        self.channel.send(message, &[]).unwrap();
    }

    fn hear(&mut self) -> FromSuccessor {
        self.channel.receive().unwrap().0
    }

    fn greet(&mut self) {
        self.say(&Greeting { state_version: VERSION, program: "a test".to_owned() });
    }

    fn offer(&mut self, asked: &str) {
        let serving = Place {
            flag: "--insecure-listen".to_owned(),
            asked: asked.parse().unwrap(),
            bound: self.addr(),
            sockets: 1,
        };
        self.say(&FromPredecessor::Offer(Offer { serving, others: Vec::new() }));
    }

    /// Up to and with `Ready`.
    fn until_ready() -> Self {
        let mut this = Self::new();
        this.greet();
        this.offer("127.0.0.1:0");
        assert!(matches!(this.hear(), FromSuccessor::Ready { .. }));
        this
    }

    fn give(&mut self, worker: Worker, listeners: u32) {
        let state = State {
            process: Known::default(),
            still_since_us: 0,
            workers: vec![(worker, listeners)],
        };
        let state = FromPredecessor::State(Box::new(state));
        self.channel.send(&state, &[self.listener.as_fd()]).unwrap();
    }

    /// Up to and with `Prepared`.
    fn until_prepared() -> Self {
        let mut this = Self::until_ready();
        this.give(Worker::default(), 1);
        assert!(matches!(this.hear(), FromSuccessor::Prepared));
        this
    }

    /// The program ends, with this for a reason; nobody who dialled has been touched.
    async fn expect_refusal(self, says: &str) {
        let dialled = Raw::connect_to(self.addr()).await;
        let Self { mut process, channel, stream, listener } = self;
        drop((channel, stream));
        let exit = process.wait_exit(SOON).await;
        assert_eq!(exit.status.code(), Some(1), "{}", exit.stderr);
        let last = exit.stderr.lines().last().unwrap_or_default();
        assert!(last.starts_with("pyrycode-relay: ") && last.contains(says), "{}", exit.stderr);
        let accepted = listener.accept().expect("it still waits in the queue").1;
        assert_eq!(accepted, dialled.local_addr());
    }

    /// The program answers at the same place.
    async fn serves(_process: Process, listener: TcpListener) {
        let mut raw = Raw::connect_to(listener.local_addr().unwrap()).await;
        raw.send(Request::get("/healthz")).await;
        assert_eq!(soon("an answer", raw.response()).await.status, 200);
    }
}

#[tokio::test]
async fn whoever_starts_it_by_hand_is_told_of_the_command() {
    let exit = run(&ARGS).await;
    assert_eq!(exit.status.code(), Some(1));
    assert!(exit.stderr.contains("use `pyrycode-relay upgrade`"), "{}", exit.stderr);
}

#[tokio::test]
async fn another_version_of_the_state_is_refused_politely() {
    for version in [VERSION + 1, 0] {
        let mut other = Predecessor::new();
        other.say(&Greeting { state_version: version, program: "9.9.9".to_owned() });
        let FromSuccessor::Refused(why) = other.hear() else { panic!("it does not refuse") };
        let says = ["9.9.9", "restart it instead", &format!("has version {version}")];
        assert!(says.iter().all(|says| why.contains(says)), "{why}");
        other.expect_refusal("restart it instead").await;
    }
}

#[tokio::test]
async fn nonsense_is_refused_at_each_step() {
    // A length without end, and a greeting that is none.
    for bytes in [[0xff; 16].to_vec(), [&1u64.to_le_bytes()[..], &[0; 8], &[0x80]].concat()] {
        let mut other = Predecessor::new();
        other.stream.write_all(&bytes).unwrap();
        other.expect_refusal("use `pyrycode-relay upgrade`").await;
    }
    let mut other = Predecessor::new();
    other.greet();
    other.say(&FromPredecessor::Commit);
    other.expect_refusal("offers nothing").await;

    let mut other = Predecessor::new();
    other.greet();
    other.offer("127.0.0.9:1234");
    let FromSuccessor::Refused(why) = other.hear() else { panic!("it does not refuse") };
    assert!(why.contains("the running relay serves at --insecure-listen 127.0.0.9:1234"), "{why}");
    other.expect_refusal("restart the relay instead").await;

    let mut other = Predecessor::until_ready();
    other.give(Worker::default(), 2);
    other.expect_refusal("not as many sockets").await;

    let mut other = Predecessor::until_ready();
    let held_by_nobody = ServerId {
        id: "id".to_owned(),
        tenure: Tenure::Held(7),
        phones: Vec::new(),
        wakes: Default::default(),
        faults: Default::default(),
    };
    other.give(Worker { server_ids: vec![held_by_nobody], ..Worker::default() }, 1);
    let FromSuccessor::Refused(why) = other.hear() else { panic!("it does not refuse") };
    assert!(why.contains("contradicts itself"), "{why}");
    other.expect_refusal("contradicts itself").await;
}

#[tokio::test]
async fn a_predecessor_that_ends_or_goes_on_itself_before_the_commit_is_not_taken_over() {
    Predecessor::new().expect_refusal("use `pyrycode-relay upgrade`").await;
    let mut other = Predecessor::new();
    other.greet();
    other.expect_refusal("has ended").await;
    Predecessor::until_ready().expect_refusal("has ended").await;

    // Half of the state, and nothing more.
    let mut other = Predecessor::until_ready();
    other.stream.write_all(&[&4000u64.to_le_bytes()[..], &[0; 8], &[2; 2000]].concat()).unwrap();
    other.expect_refusal("has ended").await;
    // All of it, but for its sockets.
    let mut other = Predecessor::until_ready();
    let state = State {
        process: Known::default(),
        still_since_us: 0,
        workers: vec![(Worker::default(), 1)],
    };
    let bytes = postcard::to_allocvec(&FromPredecessor::State(Box::new(state))).unwrap();
    let length = (bytes.len() as u64).to_le_bytes();
    other.stream.write_all(&[&length, &1u64.to_le_bytes()[..], &bytes].concat()).unwrap();
    other.expect_refusal("has ended").await;

    let mut other = Predecessor::until_ready();
    other.say(&FromPredecessor::Abort);
    other.expect_refusal("goes on itself").await;
    let mut other = Predecessor::until_prepared();
    other.say(&FromPredecessor::Abort);
    other.expect_refusal("goes on itself").await;
}

#[tokio::test]
async fn it_serves_where_it_is_told_to_or_nobody_else_can() {
    let mut other = Predecessor::until_prepared();
    other.say(&FromPredecessor::Commit);
    assert!(matches!(other.hear(), FromSuccessor::Taken));
    assert!(matches!(other.hear(), FromSuccessor::Serving { .. }));
    Predecessor::serves(other.process, other.listener).await;

    let other = Predecessor::until_prepared();
    drop((other.channel, other.stream));
    other.process.wait_for_log("predecessor_gone").await;
    Predecessor::serves(other.process, other.listener).await;
}
