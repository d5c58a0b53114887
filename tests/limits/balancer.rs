//! HAProxy in front of the relay: its health checks, and whom it speaks for.

use super::callers::remote_of;
use super::common::certs::{Authority, Folder};
use super::common::{Raw, Relay, Request, SOON, own_address, wait_until};
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
