//! The instrument itself is tested: behind a proxy that spoils one frame, each run must fail and
//! say how; behind an honest one it must pass.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};

const TOOL: &str = env!("CARGO_BIN_EXE_loadtest");
/// Which of a phone's frames is spoiled.
const SPOILED: usize = 5;

/// What the proxy does to one frame on its way to a phone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    Lose,
    Double,
    /// Brings another phone's frame in its place.
    Misroute,
    /// Sends the next frame first.
    Reorder,
    AlterPadding,
    AlterTime,
    /// A frame in two fragments.
    Fragment,
    Cut,
}

struct Relay(Child, SocketAddr);

impl Drop for Relay {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn relay() -> Relay {
    let mut command = Command::new(TOOL);
    command.args(["baseline", "--listen", "127.0.0.1:0"]).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut said = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut said).unwrap();
    let address = said.trim_end().strip_prefix("listening on ").expect("where it listens");
    let address = address.parse().unwrap();
    Relay(child, address)
}

/// A proxy that lives as long as the test.
fn proxy(relay: SocketAddr, fault: Fault) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let others = Arc::new(Mutex::new(Vec::new()));
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let (client, relay) = (client.unwrap(), TcpStream::connect(relay).unwrap());
            let (mut from, mut to) = (client.try_clone().unwrap(), relay.try_clone().unwrap());
            let others = Arc::clone(&others);
            std::thread::spawn(move || {
                let mut first = [0; 4096];
                let length = from.read(&mut first).unwrap_or(0);
                let _ = to.write_all(&first[..length]);
                let is_phone = first.starts_with(b"GET /v1/client");
                let fault = if is_phone { fault } else { Fault::None };
                std::thread::spawn(move || spoil(&relay, &client, fault, &others));
                let _ = std::io::copy(&mut from, &mut to);
                let _ = to.shutdown(Shutdown::Write);
            });
        }
    });
    address
}

/// Carries the relay's frames to a client, and spoils one.
fn spoil(
    mut relay: &TcpStream,
    mut client: &TcpStream,
    fault: Fault,
    others: &Mutex<Vec<Vec<u8>>>,
) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if relay.read_exact(&mut byte).is_err() {
            return;
        }
        head.extend(byte);
    }
    let _ = client.write_all(&head);
    let mut number = 0;
    while let Some(mut frame) = read_frame(relay) {
        number += 1;
        if fault == Fault::Misroute && number == 1 {
            others.lock().unwrap().push(frame.clone());
        }
        let spoiled = if number == SPOILED { fault } else { Fault::None };
        match spoiled {
            Fault::None => {}
            Fault::Lose => continue,
            Fault::Double => frame.extend(frame.clone()),
            Fault::Misroute => {
                let own = id(&frame);
                let others = others.lock().unwrap();
                frame = others.iter().find(|other| id(other) != own).unwrap().clone();
            }
            Fault::Reorder => {
                let Some(next) = read_frame(relay) else { return };
                frame.splice(0..0, next);
            }
            Fault::AlterPadding => {
                let at = frame.len() - 10;
                frame[at] ^= 1;
            }
            Fault::AlterTime => {
                let at = find(&frame, b"\"t\":\"") + 20;
                frame[at] = if frame[at] == b'0' { b'1' } else { b'0' };
            }
            Fault::Fragment => frame[0] &= 0x7f,
            Fault::Cut => {
                let _ = client.shutdown(Shutdown::Both);
                return;
            }
        }
        if client.write_all(&frame).is_err() {
            return;
        }
    }
    let _ = client.shutdown(Shutdown::Write);
}

fn find(bytes: &[u8], what: &[u8]) -> usize {
    bytes.windows(what.len()).position(|window| window == what).expect("our frame")
}

fn id(frame: &[u8]) -> Vec<u8> {
    let at = find(frame, b"\"id\":\"") + 6;
    frame[at..at + 8].to_vec()
}

fn read_frame(mut from: &TcpStream) -> Option<Vec<u8>> {
    let mut frame = vec![0; 2];
    from.read_exact(&mut frame).ok()?;
    let extra = match frame[1] {
        126 => 2,
        127 => 8,
        _ => 0,
    };
    frame.resize(2 + extra, 0);
    from.read_exact(&mut frame[2..]).ok()?;
    let length = match extra {
        0 => usize::from(frame[1]),
        _ => frame[2..].iter().fold(0, |length, byte| length << 8 | usize::from(*byte)),
    };
    let start = frame.len();
    frame.resize(start + length, 0);
    from.read_exact(&mut frame[start..]).ok()?;
    Some(frame)
}

fn load(scenario: &str, relay: SocketAddr) -> Output {
    Command::new(TOOL)
        .args(scenario.split(' '))
        .args(["--shape", "2x2", "--seconds", "0.5", "--warm-up", "0.1", "--patience", "2"])
        .args(["--relay", &format!("ws://{relay}")])
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn must_fail(scenario: &str, fault: Fault, words: &str) {
    let relay = relay();
    let output = load(scenario, proxy(relay.1, fault));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{fault:?} was not noticed");
    assert!(said.contains("the relay's fault") && said.contains(words), "{fault:?}: {said}");
}

#[test]
fn an_honest_relay_passes_every_scenario() {
    let relay = relay();
    for scenario in ["echo", "echo --window 4", "echo --rate 500", "push", "churn", "idle"] {
        let output = load(scenario, proxy(relay.1, Fault::None));
        assert!(output.status.success(), "{scenario}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn peers_that_misbehave_tell_the_relay_from_one_that_knows_less() {
    let soak = |relay: &[&str]| {
        let mut command = Command::new(TOOL);
        command.args(["soak", "--seed", "1", "--shape", "2x2", "--seconds", "2"]);
        command.args(relay).stdin(Stdio::null()).output().unwrap()
    };
    let baseline = soak(&["--relay", "baseline"]);
    let said = String::from_utf8_lossy(&baseline.stderr);
    assert!(!baseline.status.success() && said.contains("seed 1"), "{said}");
    if !relay_is_built() {
        return;
    }
    let relay = soak(&[]);
    let told = String::from_utf8_lossy(&relay.stdout);
    assert!(relay.status.success(), "{}", String::from_utf8_lossy(&relay.stderr));
    assert!(told.contains("faults from seed 1, each answered as it must be"), "{told}");
    assert!(told.contains("Upgraded ") && !told.contains("Upgraded 0 "), "{told}");
}

/// Whether the relay is beside this tool; says so if not.
fn relay_is_built() -> bool {
    let is_built = Path::new(TOOL).with_file_name("pyrycode-relay").exists();
    if !is_built {
        eprintln!("SKIPPED in part: the relay is not built (cargo test --workspace)");
    }
    is_built
}

/// A relay with a control socket, and whoever takes over from it: all of them end with this.
struct Upgradable(Child, SocketAddr, tempfile::TempDir);

impl Drop for Upgradable {
    fn drop(&mut self) {
        // The first is not waited for before, so that nobody else can have the group's number.
        let group = rustix::process::Pid::from_child(&self.0);
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        let _ = self.0.wait();
    }
}

impl Upgradable {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new(Path::new(TOOL).with_file_name("pyrycode-relay"));
        command.args(["--insecure-listen", "127.0.0.1:0", "--workers", "1"]);
        command.args(["--rate-limit", "off", "--max-connections-per-address", "off"]);
        command.args(["--log-format", "json", "--control-socket"]);
        command.arg(folder.path().join("control.sock")).stderr(Stdio::piped());
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut child = command.spawn().unwrap();
        let mut said = BufReader::new(child.stderr.take().unwrap());
        let address = loop {
            let mut line = String::new();
            assert!(said.read_line(&mut line).unwrap() > 0, "it ended");
            let event: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
            if event["event"] == "listening" {
                break event["remote"].as_str().unwrap().parse().unwrap();
            }
        };
        // What it says on must be read, or it would wait.
        std::thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
        Self(child, address, folder)
    }

    /// What the tool says of upgrades of it, behind a proxy that spoils a frame.
    fn restart(&self, fault: Fault, scenario: &str, more: &[&str]) -> Output {
        let mut command = Command::new(TOOL);
        command.args(["restart", "--times", "2", "--seconds", "0.5", "--shape", "2x2"]);
        command.args(["--patience", "2", "--over", "plain", "--scenario", scenario]);
        command.arg("--relay").arg(format!("ws://{}", proxy(self.1, fault)));
        command.arg("--control-socket").arg(self.2.path().join("control.sock")).args(more);
        command.stdin(Stdio::null()).output().unwrap()
    }
}

#[test]
fn upgrades_are_not_noticed_by_peers_but_as_a_pause() {
    if !relay_is_built() {
        return;
    }
    let load = "restart --times 3 --seconds 0.2 --shape 4x4 --workers 1-2";
    let plain = told(&format!("{load} --over plain"));
    let secure = told(&format!("{load} --over tls13 --scenario echo,churn"));
    let (plain, secure) = (plain.as_array().unwrap(), secure.as_array().unwrap());
    assert_eq!((plain.len(), secure.len()), (4, 2));
    for row in plain.iter().chain(secure) {
        let upgrades = row["upgrades"].as_array().unwrap();
        assert_eq!(upgrades.len(), 3, "{row}");
        let pids: BTreeSet<_> = upgrades.iter().map(|one| one["pid"].as_u64()).collect();
        assert_eq!(pids.len(), 3, "each time another process: {row}");
        assert!(row["messages"].as_u64().unwrap() > 0, "{row}");
        assert!(upgrades[0]["footprint"]["both_mib"].as_f64().unwrap() > 0.0, "{row}");
    }
}

#[test]
fn what_goes_wrong_while_a_relay_is_upgraded_fails_the_run() {
    if !relay_is_built() {
        return;
    }
    let honest = Upgradable::start().restart(Fault::None, "echo", &[]);
    assert!(honest.status.success(), "{}", String::from_utf8_lossy(&honest.stderr));
    for (fault, scenario, words) in [
        (Fault::Lose, "echo", "lost"),
        (Fault::Double, "churn", "doubled"),
        (Fault::AlterPadding, "push", "altered"),
        (Fault::Cut, "echo", "cut without a close frame"),
    ] {
        let output = Upgradable::start().restart(fault, scenario, &[]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{fault:?} was not noticed");
        assert!(said.contains("the relay's fault") && said.contains(words), "{fault:?}: {said}");
    }
    let output = Upgradable::start().restart(Fault::None, "idle", &["--to", "/bin/false"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("it was not upgraded"), "{said}");
}

#[test]
fn the_relay_itself_brings_everything_while_it_is_saturated() {
    if !relay_is_built() {
        return;
    }
    // Long enough to look at the relay's tables once.
    for (shape, size, connections) in [("64x16", "200", 64 * 17), ("8x16", "16384", 8 * 17)] {
        let mut command = Command::new(TOOL);
        command.args(["echo", "--shape", shape, "--size", size, "--seconds", "6", "--json"]);
        let output = command.stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "{shape}: {}", String::from_utf8_lossy(&output.stderr));
        let told = String::from_utf8_lossy(&output.stdout);
        assert!(told.contains(&format!("\"connections\":{connections}")), "{told}");
    }
}

#[test]
fn behind_haproxy_a_relay_that_is_killed_is_missed_by_its_own_ids_alone() {
    if !relay_is_built() {
        return;
    }
    if Command::new("haproxy").arg("-v").output().is_err() {
        eprintln!("SKIPPED: haproxy is not installed (Debian: apt install haproxy)");
        return;
    }
    let mut command = Command::new(TOOL);
    command.args(["cluster", "--plain", "--ids", "12", "--seconds", "1.5", "--json"]);
    command.args(["--scenario", "relay killed"]);
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let rows: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let rows = rows.as_array().unwrap();
    assert_eq!(rows.len(), 2, "{rows:?}");
    for row in rows {
        let (touched, others) = (&row["touched"], &row["others"]);
        assert_eq!(touched["ids"].as_u64().unwrap() + others["ids"].as_u64().unwrap(), 12);
        assert!(others["answers"].as_u64().unwrap() > 0, "{row}");
        assert_eq!((&others["ended"], &others["no_server"]), (&0.into(), &0.into()), "{row}");
        assert_eq!(touched["astray"], 0, "{row}");
    }
}

#[test]
fn a_lost_frame_fails_the_run() {
    must_fail("echo", Fault::Lose, "lost");
    must_fail("echo --window 4", Fault::Lose, "lost or out of order");
    must_fail("push", Fault::Lose, "lost");
}

#[test]
fn a_doubled_frame_fails_the_run() {
    must_fail("echo", Fault::Double, "doubled");
    must_fail("churn", Fault::Double, "doubled");
}

#[test]
fn another_phones_frame_fails_the_run() {
    must_fail("echo", Fault::Misroute, "a frame of phone");
}

#[test]
fn frames_out_of_order_fail_the_run() {
    must_fail("echo --window 4", Fault::Reorder, "out of order");
    must_fail("push", Fault::Reorder, "out of order");
}

#[test]
fn an_altered_frame_fails_the_run() {
    must_fail("echo", Fault::AlterPadding, "altered");
    must_fail("echo", Fault::AlterTime, "altered the time");
}

#[test]
fn a_fragment_fails_the_run() {
    must_fail("echo", Fault::Fragment, "not one unfragmented text frame");
}

#[test]
fn a_cut_connection_fails_the_run() {
    must_fail("echo", Fault::Cut, "cut without a close frame");
    must_fail("churn", Fault::Cut, "cut without a close frame");
}

#[test]
fn a_relay_that_is_not_there_is_named() {
    // A port that is never given out by chance.
    let nobody = SocketAddr::from(([127, 0, 0, 1], 9));
    let output = load("echo", nobody);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("no relay at ws://"), "{said}");
}

#[test]
fn subjects_are_compared_and_reported() {
    let page = std::env::temp_dir().join(format!("loadtest-compare-{}.html", std::process::id()));
    let output = Command::new(TOOL)
        .args("compare baseline floor --shape 2x2 --seconds 1 --warm-up 0 --rounds 2".split(' '))
        .args(["--json", "--report"])
        .arg(&page)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(told["references"][0], "baseline");
    assert_eq!(told["runs"].as_array().unwrap().len(), 4);
    let floor = &told["compared"][1];
    assert_eq!(floor["subject"], "floor");
    assert!(floor["ratios"][0]["median"].as_f64().unwrap() > 0.0);
    let written = std::fs::read_to_string(&page).unwrap();
    std::fs::remove_file(&page).unwrap();
    assert!(written.contains("<svg") && written.ends_with("</html>\n"));
}

/// What the tool says to these arguments, which must be to its liking.
fn told(arguments: &str) -> serde_json::Value {
    let mut command = Command::new(TOOL);
    command.args(arguments.split(' ')).arg("--json").stdin(Stdio::null());
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn both_floors_carry_frames_of_every_size() {
    for floor in ["floor", "floor-epoll"] {
        for load in ["--shape 4x4 --size 87380", "--shape 2x2 --size 262000 --window 8"] {
            let told = told(&format!("echo --relay {floor} {load} --seconds 1 --warm-up 0"));
            assert!(told["traffic"]["messages"].as_u64().unwrap() > 0, "{floor}, {load}");
        }
    }
}

#[test]
fn attacks_are_told_with_what_bystanders_felt() {
    let told = told("hostile baseline --attack none --attack unknown --seconds 1 --workers 1");
    let attacks: Vec<_> = told.as_array().unwrap().iter().map(|one| &one["attack"]).collect();
    assert_eq!(attacks, ["none", "unknown conn_ids", "none, over TLS"]);
    for one in told.as_array().unwrap() {
        assert!(one["established"]["count"].as_u64().unwrap() > 0, "{one}");
        assert!(one["newcomers"]["count"].as_u64().unwrap() > 0, "{one}");
    }
    let unknown = &told[1];
    assert!(unknown["taken_millions"].as_f64().unwrap() > 0.0, "{unknown}");
}

/// A floor waits and sends in one call; where neither perf nor strace may count, nothing is shown.
#[test]
fn system_calls_are_counted_for_each_message_and_wake() {
    let mut command = Command::new(TOOL);
    let load = "echo --relay floor --shape 4x4 --rate 500 --seconds 1 --warm-up 0 --syscalls";
    let output = command.args(load.split(' ')).arg("--json").stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    if said.contains("system calls cannot be counted on this machine") {
        eprintln!("SKIPPED: {said}");
        return;
    }
    assert!(output.status.success(), "{said}");
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let enters = told["calls"]["per_message"]["io_uring_enter"].as_f64().unwrap();
    assert!((0.05..1.5).contains(&enters), "{}", told["calls"]);
    assert!(told["traffic"]["wakes_per_message"].as_f64().unwrap() > 0.0, "{told}");
}
