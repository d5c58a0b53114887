//! The TLS of others: whatever of curl, OpenSSL, Python, Node, Go and Java is installed here shakes
//! hands, upgrades, exchanges frames and leaves, in both versions of TLS.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use super::common::{DOMAIN, Relay};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

/// Time for a client, of which some are compiled first.
const PATIENCE: Duration = Duration::from_secs(120);

/// Runs a client, and hands back its output if it is installed.
async fn run<S: AsRef<OsStr>>(program: &str, args: &[S]) -> Option<String> {
    let output = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .env("GOFLAGS", "-mod=mod")
        .kill_on_drop(true)
        .output();
    let output = match tokio::time::timeout(PATIENCE, output).await.expect("no client waits") {
        Ok(output) => output,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            println!("{program} is not installed here");
            return None;
        }
        Err(error) => panic!("{program}: {error}"),
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program}: {text}{errors}");
    Some(text)
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
    let (relay, port, authority) = relay().await;
    for version in ["1.2", "1.3"] {
        let source = clients(source);
        let mut args = first.to_vec();
        args.extend([source.to_str().unwrap(), &port, &authority, version]);
        let Some(output) = run(program, &args).await else { return };
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
    let (_relay, port, authority) = relay().await;
    let resolve = format!("{DOMAIN}:{port}:127.0.0.1");
    let url = format!("https://{DOMAIN}:{port}/healthz");
    for version in ["1.2", "1.3"] {
        let (least, most) = (format!("--tlsv{version}"), version);
        let mut args = vec!["-sS", "--fail", "--cacert", &authority, "--resolve", &resolve];
        args.extend([&least, "--tls-max", most, "-w", "%{http_code} %{http_version}"]);
        // The second request of the connection, too.
        args.extend([url.as_str(), url.as_str()]);
        let Some(output) = run("curl", &args).await else { return };
        assert_eq!(output.matches("200 1.1").count(), 2, "{output}");
    }
}

/// `K` has OpenSSL update its keys and ask for ours to be updated, `k` only its own.
#[tokio::test]
async fn openssl_is_served_and_may_update_keys() {
    let (_relay, port, authority) = relay().await;
    let address = format!("127.0.0.1:{port}");
    for version in ["-tls1_2", "-tls1_3"] {
        if run("openssl", &["version"]).await.is_none() {
            return;
        }
        // It says on its standard error what it does.
        let command = format!(
            "exec openssl s_client -connect {address} -servername {DOMAIN} -CAfile {authority} \
             -verify_return_error {version} -alpn http/1.1 -crlf 2>&1"
        );
        let mut client = Command::new("sh")
            .args(["-c", &command])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let (mut stdin, mut stdout) = (client.stdin.take().unwrap(), client.stdout.take().unwrap());
        let mut output = String::new();
        let mut answers = 0;
        for command in ["", "K", "k", "K", ""] {
            if !command.is_empty() && version == "-tls1_3" {
                // A command is one that comes in a line, and a read, of its own.
                stdin.write_all(format!("{command}\n").as_bytes()).await.unwrap();
                wait_for(&mut stdout, &mut output, "KEYUPDATE", answers).await;
            }
            stdin.write_all(b"GET /healthz HTTP/1.1\nHost: relay.test\n\n").await.unwrap();
            answers += 1;
            wait_for(&mut stdout, &mut output, "HTTP/1.1 200", answers).await;
        }
        drop(stdin);
        let end = tokio::time::timeout(PATIENCE, client.wait()).await.unwrap().unwrap();
        assert!(end.success(), "{output}");
    }
}

/// Reads until `what` has come `times` times.
async fn wait_for(
    stdout: &mut (impl AsyncReadExt + Unpin),
    output: &mut String,
    what: &str,
    times: usize,
) {
    let mut part = [0; 4096];
    while output.matches(what).count() < times {
        let read = tokio::time::timeout(PATIENCE, stdout.read(&mut part)).await;
        let count = read.unwrap_or_else(|_| panic!("no {what}: {output}")).unwrap();
        assert!(count > 0, "the end: {output}");
        output.push_str(&String::from_utf8_lossy(&part[..count]));
    }
}
