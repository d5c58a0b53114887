//! HAProxy in front of the relay: its health checks, and whom it speaks for; and the configurations
//! that the relay prints for HAProxy and nginx, as those programs read them.

use super::callers::remote_of;
use super::common::certs::{Authority, Folder};
use super::common::{
    Raw, Relay, Request, SOON, TEXT, masked, open_envelope, own_address, run, wait_until,
};
use super::new_id;
use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};

/// A running HAProxy with two servers, which are both the relay.
struct Balancer {
    child: Child,
    folder: Folder,
    addr: SocketAddr,
}

/// Its two ways to check a server.
const CHECKS: [&str; 2] = [
    "option httpchk GET /healthz",
    "option httpchk\n  http-check send meth GET uri /healthz ver HTTP/1.1 hdr Host relay.test",
];

impl Balancer {
    /// Starts one that checks `relay` in both ways; `on_server` is what each `server` line says
    /// beside that. Where HAProxy is not installed, that is said.
    fn start(relay: SocketAddr, on_server: &str) -> Option<Self> {
        if Command::new("haproxy").arg("-v").output().is_err() {
            eprintln!("SKIPPED: haproxy is not installed (Debian: apt install haproxy)");
            return None;
        }
        let (folder, addr) = (Folder::new(), own_address());
        let control = folder.path("control");
        let mut config = format!(
            "global\n  stats socket {} mode 600\n  ssl-server-verify none\n\
             defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 1m\n  \
             timeout server 1m\n  timeout check 5s\n\
             frontend door\n  bind {addr}\n  default_backend check0\n",
            control.display()
        );
        for (number, check) in CHECKS.into_iter().enumerate() {
            config += &format!(
                "backend check{number}\n  {check}\n  http-check expect status 200\n  \
                 server relay {relay} check inter 200ms rise 2 fall 1 send-proxy-v2 {on_server}\n"
            );
        }
        let config = folder.write("haproxy.cfg", config);
        let child = Command::new("haproxy")
            // In the foreground; -q says nothing of what goes well.
            .args(["-db", "-q", "-f", &config])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        Some(Self { child, folder, addr })
    }

    /// The state of the server of each backend, and what its last check came to.
    fn states(&self) -> Option<Vec<(String, String)>> {
        let mut control = UnixStream::connect(self.folder.path("control")).ok()?;
        control.write_all(b"show stat\n").ok()?;
        let mut csv = String::new();
        control.read_to_string(&mut csv).ok()?;
        let mut lines = csv.lines();
        let names: Vec<&str> = lines.next()?.trim_start_matches("# ").split(',').collect();
        let column = |name: &str| names.iter().position(|other| *other == name).unwrap();
        let [server, status, check, passed] =
            ["svname", "status", "check_status", "chkdown"].map(column);
        let rows = lines.map(|line| line.split(',').collect::<Vec<_>>());
        let servers = rows.filter(|row| row.get(server) == Some(&"relay"));
        Some(
            servers
                .map(|row| (row[status].to_owned(), format!("{}/{}", row[check], row[passed])))
                .collect(),
        )
    }

    /// HAProxy says that both are up by a check that has passed, and were never down.
    async fn wait_until_up(&self) {
        let mut seen = None;
        wait_until("HAProxy finds the relay healthy", SOON, async || {
            seen = self.states();
            seen.as_ref().is_some_and(|seen| {
                let up = |(state, check): &(String, String)| state == "UP" && check == "L7OK/0";
                seen.len() == CHECKS.len() && seen.iter().all(up)
            })
        })
        .await;
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        // Both fail only if it has ended and been reaped already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn haproxy_finds_the_relay_healthy_and_names_the_caller() {
    let relay = Relay::start(&["--proxy-protocol-from", "127.0.0.0/8"]).await;
    let Some(balancer) = Balancer::start(relay.addr(), "") else { return };
    balancer.wait_until_up().await;
    let id = new_id();
    let mut raw = Raw::connect_to(balancer.addr).await;
    raw.send(Request::server(&id)).await;
    assert_eq!(raw.response().await.status, 101);
    let remote = remote_of(&relay, &id).await;
    // Not the address from which HAProxy itself has dialled.
    assert_eq!(remote, raw.local_addr().to_string());
}

#[tokio::test]
async fn haproxy_finds_the_relay_healthy_through_tls() {
    let leaf = Authority::new().leaf("relay.test");
    let files = Folder::new();
    let (cert, key) = (files.write("c.pem", leaf.chain), files.write("k.pem", leaf.key));
    let https = ["--https-listen", "127.0.0.1:0", "--https-proxy-protocol"];
    let relay =
        Relay::start(&[&["--tls-cert", &cert, "--tls-key", &key][..], &https].concat()).await;
    let on_server = "check-ssl check-sni relay.test";
    let Some(balancer) = Balancer::start(relay.addr(), on_server) else { return };
    balancer.wait_until_up().await;
}

/// Whether a program is there; where it is not, that is said.
fn is_there(program: &str, flag: &str) -> bool {
    let there = Command::new(program).arg(flag).output().is_ok();
    if !there {
        eprintln!("SKIPPED: {program} is not installed (Debian: apt install {program})");
    }
    there
}

/// What the relay prints when it is asked so.
async fn printed(args: &[&str]) -> String {
    let exit = run(args).await;
    assert!(exit.status.success(), "{args:?}: {}", exit.stderr);
    exit.stdout
}

/// The program finds nothing to say against the file.
fn assert_taken(program: &str, args: &[&str], shown: &str) {
    let output = Command::new(program).args(args).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let calm = !said.contains("[WARNING]") && !said.contains("[warn]");
    assert!(output.status.success() && calm, "{said}\n{shown}");
}

const THREE: [&str; 6] =
    ["--relay", "a=10.0.0.1:8080", "--relay", "b=10.0.0.2:8080", "--relay", "c=[fd00::3]:8080"];

#[tokio::test]
async fn haproxy_takes_what_is_printed_for_it() {
    if !is_there("haproxy", "-v") {
        return;
    }
    let files = Folder::new();
    let leaf = Authority::new().leaf("relay.test");
    let pem = files.write("lb.pem", format!("{}{}", leaf.chain, leaf.key));
    let two = ["--balancer", "lb1=10.0.1.1:10000", "--balancer", "lb2=10.0.1.2:10000"];
    let encrypted = ["--relay-tls", "relay.test", "--relay-ca", &pem];
    for (extra, certificate) in [(&[][..], pem.as_str()), (&two, ""), (&encrypted, pem.as_str())] {
        let args = [&["haproxy", "--certificate", certificate][..], &THREE, extra].concat();
        let text = printed(&args).await;
        let file = files.write("haproxy.cfg", &text);
        assert_taken("haproxy", &["-c", "-f", &file], &text);
    }
}

#[tokio::test]
async fn nginx_takes_what_is_printed_for_it() {
    if !is_there("nginx", "-v") {
        return;
    }
    let files = Folder::new();
    let leaf = Authority::new().leaf("relay.test");
    let (cert, key) = (files.write("c.pem", leaf.chain), files.write("k.pem", leaf.key));
    let (pid, log) =
        (files.path("pid").display().to_string(), files.path("log").display().to_string());
    let own = ["nginx", "--key", &key, "--pid", &pid, "--error-log", &log];
    let encrypted = ["--relay-tls", "relay.test", "--relay-ca", &cert];
    for (extra, certificate) in [(&[][..], cert.as_str()), (&[], ""), (&encrypted, cert.as_str())] {
        let args = [&own[..], &["--certificate", certificate], &THREE, extra].concat();
        let text = printed(&args).await;
        let file = files.write("nginx.conf", &text);
        assert_taken("nginx", &["-t", "-q", "-c", &file, "-g", "user root;"], &text);
    }
}

/// A binary and a phone of `id` meet through the balancer, wherever it has sent them.
async fn assert_meet(balancer: SocketAddr, id: &str) -> (Raw, Raw) {
    let binary = Raw::connect_to(balancer).await;
    let mut binary = binary.upgrade(Request::server(id)).await;
    let mut phone = Raw::connect_to(balancer).await.upgrade(Request::client(id)).await;
    phone.send(masked(TEXT, b"1")).await;
    assert_eq!(open_envelope(&binary.recv_text().await).1, "1");
    (binary, phone)
}

/// A balancer that runs as it is printed; `files` are its own.
struct AsPrinted {
    child: Child,
    addr: SocketAddr,
    _files: Folder,
}

impl Drop for AsPrinted {
    fn drop(&mut self) {
        // Both fail only if it has ended and been reaped already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl AsPrinted {
    /// Starts `program`, which reads the text from the file that stands for `{}` in `args`.
    async fn start(
        program: &str,
        args: &[&str],
        addr: SocketAddr,
        files: Folder,
        text: &str,
    ) -> Self {
        let file = files.write("balancer.conf", text);
        let args: Vec<String> = args.iter().map(|arg| arg.replace("{}", &file)).collect();
        let child = Command::new(program).args(args).stdin(Stdio::null()).spawn().unwrap();
        let balancer = Self { child, addr, _files: files };
        wait_until("the balancer listens", SOON, async || {
            tokio::net::TcpStream::connect(addr).await.is_ok()
        })
        .await;
        balancer
    }
}

/// `a=HOST:PORT` and so on.
fn named(relays: &[Relay]) -> Vec<String> {
    let names = ["a", "b", "c"].iter().zip(relays);
    names
        .flat_map(|(name, relay)| ["--relay".to_owned(), format!("{name}={}", relay.addr())])
        .collect()
}

/// HAProxy with what is printed for these relays, once it has found all of them ready.
async fn haproxy_as_printed(relays: &[Relay], extra: &[&str]) -> AsPrinted {
    let (files, addr, peer, metrics) = (Folder::new(), own_address(), own_address(), own_address());
    let stats = files.path("stats").display().to_string();
    let own = [
        "haproxy".to_owned(),
        "--bind".to_owned(),
        addr.to_string(),
        "--certificate=".to_owned(),
        "--max-connections=200".to_owned(),
        format!("--balancer=lb1={peer}"),
        format!("--stats-socket={stats}"),
        format!("--metrics={metrics}"),
    ];
    let args = [&own[..], &named(relays)].concat();
    let args = args.iter().map(String::as_str).chain(extra.iter().copied());
    let text = printed(&args.collect::<Vec<_>>()).await;
    let balancer =
        AsPrinted::start("haproxy", &["-db", "-q", "-f", "{}"], addr, files, &text).await;
    wait_until("HAProxy finds all relays ready", SOON, async || {
        // A check that has passed is of layer 7; before it a server only passes for one that is up.
        ask_haproxy(&stats, "show stat").matches(",L7OK,").count() == 2 * relays.len()
    })
    .await;
    balancer
}

fn ask_haproxy(socket: &str, question: &str) -> String {
    let mut answer = String::new();
    if let Ok(mut control) = UnixStream::connect(socket) {
        writeln!(control, "{question}").unwrap();
        control.read_to_string(&mut answer).unwrap();
    }
    answer
}

#[tokio::test]
async fn behind_haproxy_as_printed_pairs_meet_and_a_relay_that_is_gone_is_replaced_at_once() {
    if !is_there("haproxy", "-v") {
        return;
    }
    let start = || Relay::start(&["--proxy-protocol-from", "127.0.0.0/8"]);
    let mut relays = vec![start().await, start().await];
    let balancer = haproxy_as_printed(&relays, &[]).await;
    let ids: Vec<String> = (0..16).map(|_| new_id()).collect();
    let mut pairs = Vec::new();
    for id in &ids {
        pairs.push(assert_meet(balancer.addr, id).await);
    }
    let mut other = Raw::connect_to(balancer.addr).await.upgrade(Request::client("nobody")).await;
    assert_eq!(other.recv_close().await.0, 4404);
    assert!(relays.iter().all(|relay| !claimed(relay).is_empty()), "both take their share");
    let remote = wait_for_remote(&relays, &ids[0]).await;
    assert_eq!(remote, pairs[0].0.local_addr().to_string(), "not HAProxy's own address");

    // Killed, not stopped. No check has noticed yet when its ids are claimed anew.
    drop(relays.remove(0));
    let stayed = claimed(&relays[0]);
    for id in ids.iter().filter(|id| !stayed.contains(id)) {
        assert_meet(balancer.addr, id).await;
    }
    assert!(pairs.len() == 16 && claimed(&relays[0]).len() == 16);
}

#[tokio::test]
async fn haproxy_as_printed_encrypts_anew_for_relays_that_serve_tls() {
    if !is_there("haproxy", "-v") {
        return;
    }
    let (authority, files) = (Authority::new(), Folder::new());
    let leaf = authority.leaf("relay.test");
    let (cert, key) = (files.write("c.pem", leaf.chain), files.write("k.pem", leaf.key));
    let ca = files.write("ca.pem", authority.pem());
    let https = ["--https-listen", "127.0.0.1:0", "--https-proxy-protocol"];
    let args = [&["--tls-cert", &cert, "--tls-key", &key][..], &https].concat();
    let relays = vec![Relay::start(&args).await];
    let extra = ["--relay-tls", "relay.test", "--relay-ca", &ca];
    let balancer = haproxy_as_printed(&relays, &extra).await;
    let id = new_id();
    let (binary, _phone) = assert_meet(balancer.addr, &id).await;
    let remote = wait_for_remote(&relays, &id).await;
    assert_eq!(remote, binary.local_addr().to_string(), "not HAProxy's own address");
}

/// The ids that were ever claimed at this relay.
fn claimed(relay: &Relay) -> Vec<String> {
    let lines = relay.logs().into_iter().filter(|line| line.event() == "server_claimed");
    lines.map(|line| line.get("server_id").unwrap().to_owned()).collect()
}

/// Where the binary of an id calls from, as the relay sees it that has it.
async fn wait_for_remote(relays: &[Relay], id: &str) -> String {
    let mut remote = None;
    wait_until("a relay has the id", SOON, async || {
        let mut lines = relays.iter().flat_map(|relay| relay.logs());
        let line = lines
            .find(|line| line.event() == "server_claimed" && line.get("server_id") == Some(id));
        remote = line.and_then(|line| line.get("remote").map(str::to_owned));
        remote.is_some()
    })
    .await;
    remote.unwrap()
}

#[tokio::test]
async fn behind_nginx_as_printed_pairs_meet_and_callers_are_named() {
    if !is_there("nginx", "-v") {
        return;
    }
    let start = || Relay::start(&["--trust-x-forwarded-for", "127.0.0.0/8"]);
    let relays = vec![start().await, start().await];
    let (files, addr) = (Folder::new(), own_address());
    let (pid, log) =
        (files.path("pid").display().to_string(), files.path("log").display().to_string());
    let own = [
        "nginx".to_owned(),
        format!("--bind={addr}"),
        "--certificate=".to_owned(),
        "--max-connections=200".to_owned(),
        format!("--pid={pid}"),
        format!("--error-log={log}"),
    ];
    let args = [&own[..], &named(&relays)].concat();
    let text = printed(&args.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let args = ["-c", "{}", "-g", "daemon off; master_process off;"];
    let balancer = AsPrinted::start("nginx", &args, addr, files, &text).await;
    for _ in 0..8 {
        let id = new_id();
        let _pair = assert_meet(balancer.addr, &id).await;
        // nginx names no port. All of 127.0.0.0/8 is trusted here, so the peer itself counts.
        assert!(wait_for_remote(&relays, &id).await.starts_with("127."));
    }
}
