//! The TLS of others: whatever of curl, OpenSSL, Python, Node, Go and Java is installed here shakes
//! hands, upgrades, exchanges frames and leaves, in both versions of TLS.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::common::{DOMAIN, Relay};

/// Ends a client that waits for ever, of which some are compiled first.
const PATIENCE: [&str; 2] = ["timeout", "120"];

fn is_installed(program: &str) -> bool {
    let found = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|path| path.join(program).exists()));
    if !found {
        println!("{program} is not installed here");
    }
    found
}

/// Runs a client, which must succeed, and hands back its output.
fn run(program: &str, args: &[&str]) -> String {
    let [timeout, seconds] = PATIENCE;
    let output = Command::new(timeout)
        .args([seconds, program])
        .args(args)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program}: {text}{errors}");
    text
}

fn clients(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tls/clients").join(name)
}

async fn relay() -> (Relay, String, String) {
    let relay = Relay::start_tls(&["--domain", DOMAIN]).await;
    let port = relay.addr().port().to_string();
    let authority = relay.https_file("authority.pem");
    (relay, port, authority)
}

/// A client that is a program of ours, in both versions.
async fn is_served(program: &str, first: &[&str], source: &str) {
    if !is_installed(program) {
        return;
    }
    let (relay, port, authority) = relay().await;
    for version in ["1.2", "1.3"] {
        let source = clients(source);
        let mut args = first.to_vec();
        args.extend([source.to_str().unwrap(), &port, &authority, version]);
        let output = run(program, &args);
        assert!(output.contains("served"), "{program} {version}: {output}");
    }
    relay.wait_for_counts(0, 0).await;
}

#[tokio::test]
async fn python_is_served() {
    is_served("python3", &[], "client.py").await;
}

#[tokio::test]
async fn node_is_served() {
    is_served("node", &[], "client.mjs").await;
}

#[tokio::test]
async fn go_is_served() {
    is_served("go", &["run"], "client.go").await;
}

#[tokio::test]
async fn java_is_served() {
    is_served("java", &["-Xshare:auto", "-XX:TieredStopAtLevel=1"], "Client.java").await;
}

#[tokio::test]
async fn curl_is_served() {
    if !is_installed("curl") {
        return;
    }
    let (_relay, port, authority) = relay().await;
    let resolve = format!("{DOMAIN}:{port}:127.0.0.1");
    let url = format!("https://{DOMAIN}:{port}/healthz");
    for version in ["1.2", "1.3"] {
        let (least, most) = (format!("--tlsv{version}"), version);
        let mut args = vec!["-sS", "--fail", "--cacert", &authority, "--resolve", &resolve];
        args.extend([&least, "--tls-max", most, "-w", "%{http_code} %{http_version}"]);
        // The second request of the connection, too.
        args.extend([url.as_str(), url.as_str()]);
        let output = run("curl", &args);
        assert_eq!(output.matches("200 1.1").count(), 2, "{output}");
    }
}

/// `K` has OpenSSL update its keys and ask for ours to be updated, `k` only its own.
#[tokio::test]
async fn openssl_is_served_and_may_update_keys() {
    if !is_installed("openssl") {
        return;
    }
    let (_relay, port, authority) = relay().await;
    let [timeout, seconds] = PATIENCE;
    for version in ["-tls1_2", "-tls1_3"] {
        // It says on its standard error what it does.
        let command = format!(
            "exec {timeout} {seconds} openssl s_client -connect 127.0.0.1:{port} \
             -servername {DOMAIN} -CAfile {authority} -verify_return_error {version} \
             -alpn http/1.1 -crlf 2>&1"
        );
        let mut client = Command::new("sh")
            .args(["-c", &command])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (mut stdin, mut stdout) = (client.stdin.take().unwrap(), client.stdout.take().unwrap());
        let mut output = String::new();
        for (number, command) in ["", "K", "k", "K"].into_iter().enumerate() {
            if !command.is_empty() && version == "-tls1_3" {
                // A command is one that comes in a line, and a read, of its own.
                stdin.write_all(format!("{command}\n").as_bytes()).unwrap();
                wait_for(&mut stdout, &mut output, "KEYUPDATE", number);
            }
            stdin.write_all(b"GET /healthz HTTP/1.1\nHost: relay.test\n\n").unwrap();
            wait_for(&mut stdout, &mut output, "HTTP/1.1 200", number + 1);
        }
        drop(stdin);
        assert!(client.wait().unwrap().success(), "{output}");
    }
}

/// Reads until `what` has come `times` times.
fn wait_for(stdout: &mut impl Read, output: &mut String, what: &str, times: usize) {
    let mut part = [0; 4096];
    while output.matches(what).count() < times {
        let count = stdout.read(&mut part).unwrap();
        assert!(count > 0, "no {what}: {output}");
        output.push_str(&String::from_utf8_lossy(&part[..count]));
    }
}
