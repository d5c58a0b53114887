//! Pebble, a real ACME server made for tests, and its DNS server, as child processes. All of it
//! listens on a loopback address that no other test has, because Pebble cannot tell which port it
//! was given.

#![allow(unreachable_pub)]

use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{RootCertStore, pki_types};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::common::certs::{self, Authority, Folder};
use crate::common::{SOON, own_address, wait_until};

/// Where http-01 challenges are asked for, in place of port 80.
const HTTP_PORT: u16 = 5002;
/// Where tls-alpn-01 challenges are asked for, in place of port 443.
const TLS_PORT: u16 = 5001;

/// Where `pebble` and `pebble-challtestsrv` are: beside the file that the variable PEBBLE names,
/// on the PATH, or where Go installs them. Without them there is `None`, and a word on it.
pub fn find() -> Option<PathBuf> {
    let mut folders: Vec<PathBuf> = Vec::new();
    folders.extend(std::env::var_os("PEBBLE").and_then(|p| Some(Path::new(&p).parent()?.into())));
    folders.extend(std::env::var_os("PATH").iter().flat_map(std::env::split_paths));
    folders.extend(std::env::var_os("GOPATH").map(|path| Path::new(&path).join("bin")));
    folders.extend(std::env::var_os("HOME").map(|home| Path::new(&home).join("go/bin")));
    let is_there = |folder: &Path, name: &str| folder.join(name).is_file();
    let all =
        |folder: &&PathBuf| ["pebble", "pebble-challtestsrv"].iter().all(|n| is_there(folder, n));
    let found = folders.iter().find(all).cloned();
    if found.is_none() {
        skipped(
            "SKIPPED: no Pebble; go install github.com/letsencrypt/pebble/v2/cmd/pebble@latest \
             github.com/letsencrypt/pebble/v2/cmd/pebble-challtestsrv@latest",
        );
    }
    found
}

/// Says so past the test harness, which swallows what a test prints that passes.
pub fn skipped(why: &str) {
    // Nobody may be there to read it.
    let _ = writeln!(std::io::stderr(), "{why}");
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // Both fail only if it has ended and been reaped already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A running Pebble, whose every name leads to this machine.
pub struct Pebble {
    bin: PathBuf,
    ip: IpAddr,
    folder: Folder,
    authority: Authority,
    server: Option<Killed>,
    _names: Killed,
}

impl Pebble {
    /// Starts the Pebble in `bin`; its certificates are valid for so long.
    pub async fn start(bin: PathBuf, validity: Duration) -> Self {
        let (ip, folder, authority) = (own_address().ip(), Folder::new(), Authority::new());
        let leaf = authority.leaf(&ip.to_string());
        folder.write("authority.pem", authority.pem());
        let config = serde_json::json!({ "pebble": {
            "listenAddress": format!("{ip}:14000"),
            "managementListenAddress": format!("{ip}:15000"),
            "certificate": folder.write("cert.pem", leaf.chain),
            "privateKey": folder.write("key.pem", leaf.key),
            "httpPort": HTTP_PORT,
            "tlsPort": TLS_PORT,
            "keyAlgorithm": "ecdsa",
            "retryAfter": { "authz": 1, "order": 1 },
            "profiles": { "default": {
                "description": "for tests", "validityPeriod": validity.as_secs(),
            } },
        } });
        folder.write("config.json", config.to_string());
        let mut names = Command::new(bin.join("pebble-challtestsrv"));
        for (flag, value) in [
            ("-http01", String::new()),
            ("-https01", String::new()),
            ("-tlsalpn01", String::new()),
            ("-doh", String::new()),
            ("-dnsserver", format!("{ip}:8053")),
            ("-management", format!("{ip}:8055")),
            ("-defaultIPv4", ip.to_string()),
            ("-defaultIPv6", String::new()),
        ] {
            names.args([flag, &value]);
        }
        let names = spawn(names);
        let mut pebble = Self { bin, ip, folder, authority, server: None, _names: names };
        pebble.restart().await;
        pebble
    }

    /// Starts it again, or at all. It remembers nothing, and signs with another root.
    pub async fn restart(&mut self) {
        self.stop();
        let mut server = Command::new(self.bin.join("pebble"));
        server.arg("-config").arg(self.folder.path("config.json"));
        server.args(["-dnsserver", &format!("{}:8053", self.ip)]);
        server.env("PEBBLE_VA_NOSLEEP", "1");
        self.server = Some(spawn(server));
        let directory = SocketAddr::new(self.ip, 14_000);
        wait_until("Pebble", SOON, async || self.get(directory, "/dir").await.is_ok()).await;
    }

    pub fn stop(&mut self) {
        self.server = None;
    }

    /// Every name leads to `ip` from now on.
    pub async fn lead_to(&self, ip: IpAddr) {
        let addr = SocketAddr::new(self.ip, 8055);
        let body = format!(r#"{{"ip":"{ip}"}}"#);
        let request = format!(
            "POST /set-default-ipv4 HTTP/1.0\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let mut answer = Vec::new();
        let exchange = async {
            let mut tcp = tokio::net::TcpStream::connect(addr).await?;
            tcp.write_all(request.as_bytes()).await?;
            tcp.read_to_end(&mut answer).await
        };
        exchange.await.unwrap();
        assert!(answer.starts_with(b"HTTP/1.0 200"), "{}", String::from_utf8_lossy(&answer));
    }

    /// Where the relay must answer http-01 challenges.
    pub fn http_listen(&self) -> String {
        format!("{}:{HTTP_PORT}", self.ip)
    }

    /// Where the relay must serve HTTPS to answer tls-alpn-01 challenges.
    pub fn https_listen(&self) -> String {
        format!("{}:{TLS_PORT}", self.ip)
    }

    /// The URL of its directory.
    pub fn directory(&self) -> String {
        format!("https://{}:14000/dir", self.ip)
    }

    /// The file of authorities to trust for its HTTPS.
    pub fn ca(&self) -> String {
        self.folder.path("authority.pem").to_str().unwrap().to_owned()
    }

    /// What a client of the relay must trust: Pebble's root of this run.
    pub async fn roots(&self) -> RootCertStore {
        let addr = SocketAddr::new(self.ip, 15_000);
        let answer = self.get(addr, "/roots/0").await.unwrap();
        let root: Result<CertificateDer<'static>, pki_types::pem::Error> =
            CertificateDer::from_pem_slice(&answer);
        certs::roots([root.unwrap()])
    }

    /// Head and body of an answer.
    async fn get(&self, addr: SocketAddr, path: &str) -> std::io::Result<Vec<u8>> {
        let roots = self.authority.roots();
        let mut stream = certs::connect(addr, &self.ip.to_string(), &roots).await?;
        stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        Ok(answer)
    }
}

fn spawn(mut command: Command) -> Killed {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Killed(command.spawn().expect("Pebble starts"))
}
