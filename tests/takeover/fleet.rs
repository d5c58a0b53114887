//! Workers in threads of this process, as the control plane would run them.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, RawFd};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Instant;

use pyrycode_relay::config::{Limits, RingFeatures};
use pyrycode_relay::control::certificates::{Certificates, Pair, server_config};
use pyrycode_relay::handover::distribute;
use pyrycode_relay::handover::state;
use pyrycode_relay::metrics::Metrics;
use pyrycode_relay::protocol::ids::ServerId;
use pyrycode_relay::relay::{Owners, Settings};
use pyrycode_relay::shared::admission::{Admission, AdmissionLimits, Proxies};
use pyrycode_relay::shared::budget::SharedBudget;
use pyrycode_relay::worker::{
    self, GivenOut, Inherited, Mail, ProxyHeaders, Rings, Start, listener, ring,
};
use rustls::ServerConfig;
use socket2::Socket;
use tokio::sync::mpsc::{UnboundedSender, channel, unbounded_channel};

use crate::common::certs::Authority;
use crate::common::{DOMAIN, Door, soon};

/// How workers are made, and how peers reach them.
#[derive(Clone)]
pub(crate) struct Plan {
    pub(crate) workers: usize,
    pub(crate) tls: Option<Arc<ServerConfig>>,
    pub(crate) proxy_headers: ProxyHeaders,
    pub(crate) budget_bytes: u64,
    door: Option<Door>,
}

impl Plan {
    pub(crate) fn plain(workers: usize) -> Self {
        Self {
            workers,
            tls: None,
            proxy_headers: ProxyHeaders::From(Arc::default()),
            budget_bytes: 1 << 30,
            door: None,
        }
    }

    pub(crate) fn tls(workers: usize) -> Self {
        let authority = Authority::new();
        let leaf = authority.leaf(DOMAIN);
        let certificates = Certificates::new(None);
        let pair = Pair::from_pem(leaf.chain.as_bytes(), leaf.key.as_bytes()).unwrap();
        certificates.replace(pair.key);
        let nowhere = Door { addr: ([127, 0, 0, 1], 0).into(), tls: None };
        Self {
            tls: Some(server_config(&certificates).unwrap()),
            door: Some(nowhere.trusting(authority.roots())),
            ..Self::plain(workers)
        }
    }

    pub(crate) fn with_workers(&self, workers: usize) -> Self {
        Self { workers, ..self.clone() }
    }
}

/// Workers that serve together.
pub(crate) struct Fleet {
    pub(crate) plan: Plan,
    pub(crate) addr: SocketAddr,
    mailboxes: Vec<UnboundedSender<Mail>>,
    threads: Vec<JoinHandle<io::Result<()>>>,
}

/// What a fleet has given out, as another process would get it.
pub(crate) struct Given {
    /// By worker.
    states: Vec<state::Worker>,
    sockets: Vec<Vec<Socket>>,
    listeners: Vec<Socket>,
    pub(crate) left_out: usize,
}

/// A fleet that has taken in what another gave, and has not begun.
pub(crate) struct Heir {
    fleet: Fleet,
    go: Vec<mpsc::Sender<()>>,
}

impl Fleet {
    pub(crate) fn start(plan: Plan) -> Self {
        let loopback = ([127, 0, 0, 1], 0).into();
        let listeners = listener::bind(loopback, plan.workers).unwrap();
        let inherited = (0..plan.workers).map(|_| None).collect();
        Self::spawn(plan, listeners, inherited)
    }

    fn spawn(plan: Plan, listeners: Vec<Socket>, inherited: Vec<Option<Inherited>>) -> Self {
        let addr = listeners[0].local_addr().unwrap().as_socket().unwrap();
        let workers = plan.workers;
        let owners = Owners::new([1, 2, 3, workers as u64], workers);
        let budget = SharedBudget::new(plan.budget_bytes, workers);
        let admission = Admission::new(AdmissionLimits::NONE, Proxies::default(), [0; 4]);
        let metrics = Metrics::new(workers);
        let (mailboxes, receivers): (Vec<_>, Vec<_>) =
            (0..workers).map(|_| unbounded_channel()).unzip();
        let mut of_workers: Vec<Vec<Socket>> = (0..workers).map(|_| Vec::new()).collect();
        for (number, listener) in listeners.into_iter().enumerate() {
            of_workers[number % workers].push(listener);
        }
        let epoch = Instant::now();
        let places = of_workers.into_iter().zip(receivers).zip(inherited);
        let threads = places.enumerate().map(|(number, ((listeners, mailbox), inherited))| {
            let start = Start {
                settings: Settings {
                    worker: number,
                    owners: owners.clone(),
                    domain: None,
                    limits: Limits::default(),
                    budget: budget.clone(),
                    admission: admission.clone(),
                    metrics: metrics.clone(),
                    seed: [number as u8; 32],
                    push: false,
                },
                listeners,
                proxy_headers: plan.proxy_headers.clone(),
                tls: plan.tls.clone(),
                cpu: None,
                mailbox,
                mailboxes: mailboxes.clone(),
                epoch,
                wakes: channel(1).0,
                inherited,
            };
            thread::spawn(move || {
                let rings = Rings::make(ring::MIN_ENTRIES, RingFeatures::ALL, 1 << 30, workers)?;
                worker::run(start, rings)
            })
        });
        let threads = threads.collect();
        Self { addr, mailboxes, threads, plan }
    }

    /// How to reach it.
    pub(crate) fn door(&self) -> Door {
        let tls = self.plan.door.as_ref().and_then(|door| door.tls.clone());
        Door { addr: self.addr, tls }
    }

    /// Has every worker get this mail.
    pub(crate) fn tell(&self, mail: impl Fn() -> Mail) {
        for mailbox in &self.mailboxes {
            mailbox.send(mail()).unwrap();
        }
    }

    /// Becomes quiet, and gives out everything.
    pub(crate) async fn give_out(&self) -> Given {
        let (done, mut quiet) = unbounded_channel();
        self.tell(|| Mail::Quiesce { done: done.clone() });
        let mut numbers = Vec::new();
        for _ in &self.mailboxes {
            numbers.push(soon("quiet", quiet.recv()).await.unwrap());
        }
        numbers.sort_unstable();
        assert_eq!(numbers, (0..self.mailboxes.len()).collect::<Vec<_>>());
        let mut given =
            Given { states: Vec::new(), sockets: Vec::new(), listeners: Vec::new(), left_out: 0 };
        let answers = self.mailboxes.iter().map(|mailbox| {
            let (done, answer) = unbounded_channel();
            mailbox.send(Mail::GiveOut { done }).unwrap();
            answer
        });
        for mut answer in answers.collect::<Vec<_>>() {
            let GivenOut { state, sockets, listeners, left_out } =
                soon("everything", answer.recv()).await.unwrap();
            assert_eq!(state.connections.len(), sockets.len());
            given.states.push(state::Worker::decode(&state.encode().unwrap()).unwrap());
            given.sockets.push(sockets.into_iter().map(duplicate).collect());
            given.listeners.extend(listeners.into_iter().map(duplicate));
            given.left_out += left_out;
        }
        given
    }

    /// It goes on.
    pub(crate) fn resume(&self) {
        self.tell(|| Mail::Resume);
    }

    /// Lets go of everything. The workers' ends are awaited.
    pub(crate) async fn leave(self) {
        self.tell(|| Mail::Leave);
        self.ended().await;
    }

    /// Ends everything.
    pub(crate) async fn shut_down(self) {
        self.tell(|| Mail::ShutDown);
        self.ended().await;
    }

    async fn ended(self) {
        for thread in self.threads {
            let joined = tokio::task::spawn_blocking(move || thread.join());
            soon("a worker's end", joined).await.unwrap().unwrap().unwrap();
        }
    }

    /// Another takes over everything, when nobody is amid a handshake.
    pub(crate) async fn succeeded_by(self, plan: Plan) -> Self {
        for _ in 0..100 {
            self.tell(|| Mail::StopAccepting);
            let given = self.give_out().await;
            if given.left_out == 0 {
                return self.left_to(given, plan).await;
            }
            self.resume();
            // What was accepted meanwhile goes on.
            tokio::task::yield_now().await;
        }
        panic!("someone is always amid a handshake");
    }

    /// Another goes on with what this has given out.
    pub(crate) async fn left_to(self, given: Given, plan: Plan) -> Self {
        let heir = given.taken_in(plan).unwrap();
        self.leave().await;
        heir.begin()
    }
}

impl Given {
    /// Connections of all workers.
    pub(crate) fn connections(&self) -> usize {
        self.sockets.iter().map(Vec::len).sum()
    }

    /// Bytes of the connections that were opened and not read, and that were received and not opened.
    pub(crate) fn waiting(&self) -> (usize, usize) {
        let connections = self.states.iter().flat_map(|state| &state.connections);
        let waiting = connections.map(|connection| &connection.link.waiting);
        waiting.fold((0, 0), |(opened, received), waiting| {
            (opened + waiting.opened.0.len(), received + waiting.received.0.len())
        })
    }

    /// By worker.
    pub(crate) fn states(&mut self) -> &mut [state::Worker] {
        &mut self.states
    }

    /// A fleet that could go on with it.
    pub(crate) fn taken_in(self, plan: Plan) -> Result<Heir, String> {
        let workers = plan.workers;
        let owners = Owners::new([1, 2, 3, workers as u64], workers);
        let owner_of =
            |id: &str| owners.owner_of(&ServerId::from_header(id.as_bytes()).expect("a server-id"));
        let shares = distribute(self.states, owner_of, workers).unwrap();
        let mut sockets: Vec<Vec<Option<Socket>>> =
            self.sockets.into_iter().map(|of| of.into_iter().map(Some).collect()).collect();
        let (ready, told) = mpsc::channel();
        let (mut go, mut inherited) = (Vec::new(), Vec::new());
        for share in shares {
            let mut take = |(worker, at): (usize, usize)| sockets[worker][at].take().unwrap();
            let sockets = share.from.into_iter().map(&mut take).collect();
            let (sender, receiver) = mpsc::channel();
            go.push(sender);
            let (state, ready) = (share.worker, ready.clone());
            inherited.push(Some(Inherited { state, sockets, ready, go: receiver }));
        }
        // One for each worker, whatever there was before.
        let mut listeners = self.listeners;
        let addr = listeners[0].local_addr().unwrap().as_socket().unwrap();
        while listeners.len() < workers {
            listeners.push(another_listener(addr));
        }
        let fleet = Fleet::spawn(plan, listeners, inherited);
        drop(ready);
        let refused: Vec<String> = told.iter().take(workers).filter_map(Result::err).collect();
        match refused.into_iter().next() {
            None => Ok(Heir { fleet, go }),
            Some(why) => Err(why),
        }
    }
}

impl Heir {
    /// The other has stopped.
    pub(crate) fn begin(self) -> Fleet {
        for go in self.go {
            go.send(()).unwrap();
        }
        self.fleet
    }

    /// The other goes on. The workers' ends are awaited.
    pub(crate) async fn give_up(self) {
        drop(self.go);
        self.fleet.ended().await;
    }
}

/// What the kernel passes to another process.
#[allow(unsafe_code)]
fn duplicate(descriptor: RawFd) -> Socket {
    // SAFETY: a worker that is still keeps it open.
    let borrowed = unsafe { BorrowedFd::borrow_raw(descriptor) };
    borrowed.try_clone_to_owned().unwrap().into()
}

/// One more of those that listen on `addr`.
fn another_listener(addr: SocketAddr) -> Socket {
    let socket = Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_reuse_port(true).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.bind(&addr.into()).unwrap();
    socket.listen(128).unwrap();
    socket
}
