//! Several relays behind HAProxy with the configuration that the relay prints, and what binaries and
//! phones feel while relays and balancers come and go.
//!
//! - [`processes`]: the relays and balancers
//! - [`peers`]: binaries and phones, which dial again and check every frame
//! - [`record`]: what happened, and what that comes to
//! - [`scenarios`]: the changes, one after the other

mod peers;
mod processes;
mod record;
mod scenarios;

use crate::Outcome;
use crate::cli::Tour;
use crate::tls::certificate::{self, Certificate};
use crate::tls::{Dialler, Offer, Trust};
use peers::{Doors, World};
use processes::{Balancer, Relay};
use record::{Felt, Record, Side};
use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use serde::Serialize;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

/// How long a cluster has to serve every id after a change.
const RECOVERY: Duration = Duration::from_secs(40);
/// The visits of all ids together, per second.
const VISITS_PER_SECOND: f64 = 120.0;
/// How long visits go on before a change, so that it is known how things stood.
const BEFORE: Duration = Duration::from_secs(1);

/// A row of the table.
#[derive(Debug, Serialize)]
struct Row {
    scenario: &'static str,
    seconds: f64,
    #[serde(flatten)]
    felt: Felt,
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<String>,
}

/// Everything that runs.
struct Cluster {
    world: Arc<World>,
    relays: Vec<Relay>,
    balancers: [Balancer; 2],
    seconds: Duration,
    ids: u32,
    rows: Vec<Row>,
    /// Last, so that peers see the others end first.
    runtime: Runtime,
    _certificate: Option<Certificate>,
}

/// Plays the scenarios and prints the table.
///
/// # Errors
///
/// What is missing to begin with, the first wrong frame, or a cluster that does not come back.
pub(crate) fn run(tour: &Tour) -> Outcome<()> {
    let program = program(tour)?;
    let haproxy = std::process::Command::new("haproxy").arg("-v").output();
    if haproxy.is_err() {
        return Err(
            "haproxy is not installed: `apt-get install haproxy` (Debian, Ubuntu), or put \
                    version 2.6 or later on the PATH"
                .into(),
        );
    }
    let own = tempfile::tempdir()?;
    let folder = match &tour.keep {
        None => own.path().to_owned(),
        Some(folder) => {
            std::fs::create_dir_all(folder)?;
            std::fs::canonicalize(folder)?
        }
    };
    let mut cluster = Cluster::start(tour, &program, &folder)?;
    let played = scenarios::play(&mut cluster, &tour.scenario);
    match tour.json {
        true => println!("{}", serde_json::to_string(&cluster.rows)?),
        false => print(&cluster.rows),
    }
    played
}

/// The relay's executable.
fn program(tour: &Tour) -> Outcome<PathBuf> {
    let beside = std::env::current_exe()?.with_file_name("pyrycode-relay");
    let program = tour.relay.clone().unwrap_or(beside);
    match program.exists() {
        true => Ok(program),
        false => Err(format!(
            "there is no {}: run `cargo build --release --workspace`, or name one with --relay",
            program.display()
        )
        .into()),
    }
}

impl Cluster {
    fn start(tour: &Tour, program: &Path, folder: &Path) -> Outcome<Self> {
        let certificate = (!tour.plain).then(Certificate::make).transpose()?;
        let (pem, tls) = match &certificate {
            None => (String::new(), None),
            Some(certificate) => {
                let (cert, key) = certificate.files();
                let pem = folder.join("balancer.pem");
                let both = [std::fs::read(&cert)?, std::fs::read(key)?].concat();
                std::fs::write(&pem, both)?;
                let trust = Trust { name: certificate::NAME.into(), ca: Some(cert) };
                let dialler = Dialler::new(&trust, Offer::default())?;
                (pem.display().to_string(), Some(dialler.parts()))
            }
        };
        let relays = ["a", "b", "c", "d"].map(|name| Relay::new(name, program, folder));
        let relays = relays.into_iter().collect::<Outcome<Vec<_>>>()?;
        let balancer = |name| Balancer::new(name, program, folder, &pem);
        let visits_every = Duration::from_secs_f64(f64::from(tour.ids) / VISITS_PER_SECOND);
        let world = World {
            doors: Doors::new(tls),
            record: Record::default(),
            run: format!("cluster-{}", std::process::id()),
            visits_every: visits_every.max(Duration::from_millis(100)),
        };
        let mut cluster = Self {
            world: Arc::new(world),
            relays,
            balancers: [balancer("lb1")?, balancer("lb2")?],
            seconds: Duration::from_secs_f64(tour.seconds),
            ids: 0,
            rows: Vec::new(),
            runtime: tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()?,
            _certificate: certificate,
        };
        for relay in cluster.relays.iter_mut().take(3) {
            relay.start()?;
        }
        cluster.configure(3)?;
        let [first, _] = &mut cluster.balancers;
        first.start()?;
        cluster.world.doors.set(vec![first.address]);
        cluster.open(tour.ids)?;
        Ok(cluster)
    }

    /// Both balancers' files, for so many of the relays.
    fn configure(&self, relays: usize) -> Outcome<()> {
        let relays: Vec<&Relay> = self.relays.iter().take(relays).collect();
        let [one, two] = &self.balancers;
        one.configure(&relays, two)?;
        two.configure(&relays, one)
    }

    /// So many ids more, each with its peers, which are served when this returns.
    fn open(&mut self, ids: u32) -> Outcome<()> {
        for id in self.ids..self.ids + ids {
            let world = || Arc::clone(&self.world);
            self.runtime.spawn(peers::binary(world(), id));
            self.runtime.spawn(peers::resident(world(), id));
            self.runtime.spawn(peers::visitors(world(), id));
        }
        self.ids += ids;
        self.settle()
    }

    fn relay(&mut self, name: &str) -> Outcome<&mut Relay> {
        let mut all = self.relays.iter_mut();
        all.find(|relay| relay.name == name).ok_or_else(|| "there is no such relay".into())
    }

    /// The ids that are on this relay, as the balancer knows it.
    fn ids_on(&self, balancer: usize, name: &str) -> Outcome<BTreeSet<u32>> {
        let balancer = self.balancers.get(balancer).ok_or("there is no such balancer")?;
        let places = balancer.places()?;
        let is_there = |id: &u32| {
            let key = digest(&SHA1_FOR_LEGACY_USE_ONLY, self.world.server_id(*id).as_bytes());
            let key: String = key.as_ref().iter().map(|byte| format!("{byte:02X}")).collect();
            places.get(&key).is_some_and(|place| place == name)
        };
        Ok((0..self.ids).filter(is_there).collect())
    }

    /// Waits until every id is served.
    fn settle(&self) -> Outcome<()> {
        let from = Instant::now();
        loop {
            self.check()?;
            let answered = self.world.record.answered_since(from);
            if answered.len() == self.ids as usize {
                return Ok(());
            }
            if from.elapsed() > RECOVERY {
                let missing: Vec<u32> = (0..self.ids).filter(|id| !answered.contains(id)).collect();
                return Err(format!(
                    "{} s later {} of {} server-ids are not served, the first is {:?}; --keep \
                     leaves the logs",
                    RECOVERY.as_secs(),
                    missing.len(),
                    self.ids,
                    missing.first().map(|id| self.world.server_id(*id))
                )
                .into());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn check(&self) -> Outcome<()> {
        self.world.record.found_fault().map_or(Ok(()), |fault| Err(fault.into()))
    }

    /// Makes a change and looks on: what those on both sides of it feel.
    fn watch(
        &mut self,
        scenario: &'static str,
        touched: &BTreeSet<u32>,
        change: impl FnOnce(&mut Self) -> Outcome<Option<String>>,
    ) -> Outcome<()> {
        self.settle()?;
        std::thread::sleep(BEFORE);
        eprintln!("{scenario} …");
        let from = Instant::now();
        let note = change(self)?;
        std::thread::sleep(self.seconds.saturating_sub(from.elapsed()));
        let to = Instant::now();
        let felt = self.world.record.between(from, to, touched);
        self.rows.push(Row { scenario, seconds: (to - from).as_secs_f64(), felt, note });
        self.check()
    }
}

fn print(rows: &[Row]) {
    let width = rows.iter().map(|row| row.scenario.len()).max().unwrap_or(0);
    println!(
        "{:width$}  who        ids  answers  ended  silent (ms): half, longest  met 4404, for (ms) \
         at most  of these astray, for",
        "scenario"
    );
    for Row { scenario, felt, note, .. } in rows {
        let sides = [("touched", &felt.touched), ("others", &felt.others)];
        for (who, side) in sides.into_iter().filter(|(_, side)| side.ids > 0) {
            println!("{scenario:width$}  {who:8} {}", line(side));
        }
        if let Some(note) = note {
            println!("{:width$}  {note}", "");
        }
    }
    println!(
        "\nsilent: from one answer of an id to its next, while phones ask again and again. Met 4404: dials \
         of phones that were told that nobody holds the id; astray: while its binary was connected."
    );
}

fn line(side: &Side) -> String {
    let told = |what: &std::collections::BTreeMap<String, usize>| {
        let each: Vec<String> =
            what.iter().map(|(what, count)| format!("{count}x{what}")).collect();
        if each.is_empty() { String::new() } else { format!("  {}", each.join(", ")) }
    };
    format!(
        "{:>5} {:>8} {:>6} {:>18} {:>8} {:>12} {:>15} {:>8} {:>9}{}{}",
        side.ids,
        side.answers,
        side.ended,
        side.median_silence_ms(),
        side.longest_silence_ms,
        side.no_server,
        side.longest_no_server_ms,
        side.astray,
        side.longest_astray_ms,
        told(&side.codes),
        told(&side.refused)
    )
}
