//! Claims that an HTTP server is asked about: one that is slow, dead, denies, allows, or answers
//! nonsense.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

use super::control::Controlled;
use super::policy::{has_line, reload};
use crate::common::certs::Folder;
use crate::common::{Raw, Request, SOON, TEXT, masked, open_envelope, run, wait_until};

/// What the verifier does with questions from now on.
#[derive(Clone)]
enum Does {
    Says(&'static str),
    /// Nothing, until it is told to go on, and then it allows.
    Waits(Arc<Notify>),
    HangsUp,
}

const ALLOWS: Does = Does::Says("HTTP/1.1 200 OK\r\nContent-Length: 14\r\n\r\n{\"allow\":true}");
const DENIES: Does = Does::Says(
    "HTTP/1.1 200 OK\r\nCache-Control: no-store\r\nContent-Length: 15\r\n\r\n{\"allow\":false}",
);
const FORGETS: &str =
    "HTTP/1.1 200 OK\r\nCache-Control: no-store\r\nContent-Length: 14\r\n\r\n{\"allow\":true}";

/// A real HTTP server.
struct Verifier {
    address: SocketAddr,
    does: Arc<Mutex<Does>>,
    questions: Arc<Mutex<Vec<(String, Value)>>>,
}

impl Verifier {
    async fn start(does: Does) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (does, questions) = (Arc::new(Mutex::new(does)), Arc::new(Mutex::new(Vec::new())));
        let (acts, asked) = (does.clone(), questions.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, acts.clone(), asked.clone()));
            }
        });
        Self { address, does, questions }
    }

    fn url(&self) -> String {
        format!("http://{}/verify?key=secret", self.address)
    }

    fn now(&self, does: Does) {
        *self.does.lock().unwrap() = does;
    }

    fn asked(&self) -> usize {
        self.questions.lock().unwrap().len()
    }
}

async fn serve(
    mut stream: TcpStream,
    does: Arc<Mutex<Does>>,
    questions: Arc<Mutex<Vec<(String, Value)>>>,
) {
    let mut unread = Vec::new();
    while let Some(question) = question(&mut stream, &mut unread).await {
        questions.lock().unwrap().push(question);
        let does = does.lock().unwrap().clone();
        let answer = match does {
            Does::Says(answer) => answer,
            Does::Waits(go) => {
                go.notified().await;
                // The next goes on as well.
                go.notify_one();
                FORGETS
            }
            Does::HangsUp => return,
        };
        if stream.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

/// The head and the body of the next request.
async fn question(stream: &mut TcpStream, unread: &mut Vec<u8>) -> Option<(String, Value)> {
    loop {
        if let Some(end) = unread.windows(4).position(|four| four == b"\r\n\r\n") {
            let head = String::from_utf8(unread[..end].to_vec()).unwrap().to_lowercase();
            let length = head.split("content-length: ").nth(1).unwrap();
            let length: usize = length.lines().next().unwrap().parse().unwrap();
            if let Some(body) = unread.get(end + 4..end + 4 + length) {
                let body = serde_json::from_slice(body).unwrap();
                unread.drain(..end + 4 + length);
                return Some((head, body));
            }
        }
        if stream.read_buf(unread).await.unwrap_or(0) == 0 {
            return None;
        }
    }
}

/// What a claim is answered, and its connection.
async fn claim(controlled: &Controlled, id: &str) -> (u16, Raw) {
    let mut raw = Raw::connect(&controlled.relay).await;
    raw.send(Request::server(id)).await;
    (raw.response_head().await.expect("an answer").status, raw)
}

async fn status(controlled: &Controlled, id: &str) -> u16 {
    claim(controlled, id).await.0
}

fn outcomes(metrics: &str, outcome: &str, count: u64) {
    let name = "pyrycode_relay_claim_verifications_total";
    has_line(metrics, &format!("{name}{{outcome=\"{outcome}\"}} {count}"));
}

#[tokio::test]
async fn a_binary_has_its_server_id_if_the_verifier_says_so() {
    let verifier = Verifier::start(ALLOWS).await;
    let controlled = Controlled::start(&["--verify-url", &verifier.url()]).await;
    let request = Request::server("mine").header("X-Pyrycode-Token", "a secret");
    let mut binary = Raw::connect(&controlled.relay).await.upgrade(request).await;
    let mut phone = Raw::phone(&controlled.relay, "mine").await;
    phone.send(masked(TEXT, "1")).await;
    assert_eq!(open_envelope(&binary.recv_text().await).1, "1");
    // One question, of the binary: the id and the address, and nothing that is secret.
    let questions = verifier.questions.lock().unwrap().clone();
    let [(head, question)] = questions.as_slice() else { panic!("{questions:?}") };
    assert!(head.starts_with("post /verify?key=secret http/1.1\r\n"), "{head}");
    assert!(head.contains("content-type: application/json") && !head.contains("token"), "{head}");
    assert_eq!(*question, json!({"server_id": "mine", "address": "127.0.0.1"}));
    // It is remembered: whoever comes back is not asked about again.
    binary.close(1000).await;
    assert_eq!(status(&controlled, "mine").await, 101);
    assert_eq!(verifier.asked(), 1);
    verifier.now(DENIES);
    let (denied, mut raw) = claim(&controlled, "other").await;
    assert_eq!(denied, 403);
    let (body, _) = raw.rest().await;
    assert_eq!(body, b"this relay does not serve that server-id\n");
    controlled.relay.wait_for_log("claim_denied").await;
    // As long as the verifier lets it: this answer was not to be kept.
    assert_eq!(status(&controlled, "other").await, 403);
    assert_eq!(verifier.asked(), 3);
    let metrics = controlled.get_text("/metrics").await;
    outcomes(&metrics, "allowed", 2);
    outcomes(&metrics, "denied", 2);
    let cause = "pyrycode_relay_connections_refused_total{cause=\"claim_not_verified\"} 2";
    has_line(&metrics, cause);
    let page: Value = serde_json::from_str(&controlled.get_text("/status.json").await).unwrap();
    let shown = format!("http://{}/verify?[hidden]", verifier.address);
    assert_eq!(page["process"]["verify_url"], shown, "a query may hold a secret");
    let status = controlled.status().await;
    for line in ["allowed 2, denied 2, no answer 0, too many 0, waiting 0", &format!("by {shown}")]
    {
        assert!(status.contains(line), "{status}");
    }
}

#[tokio::test]
async fn without_a_usable_answer_the_rule_decides_and_a_reload_changes_it() {
    let verifier = Verifier::start(Does::HangsUp).await;
    let folder = Folder::new();
    let rest = "verify-timeout = 300ms\n";
    let asks = format!("verify-url = {}\n{rest}", verifier.url());
    let file = folder.write("relay.conf", &asks);
    let controlled = Controlled::start(&["--config", &file]).await;
    let nobody = Arc::new(Notify::new());
    let useless = [
        Does::HangsUp,
        Does::Waits(nobody),
        Does::Says("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>"),
        Does::Says("HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n{\"allow\":1}"),
        Does::Says("HTTP/1.1 403 Forbidden\r\nContent-Length: 14\r\n\r\n{\"allow\":true}"),
        Does::Says("HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 0\r\n\r\n"),
        Does::Says("nonsense\r\n\r\n"),
    ];
    let count = useless.len() as u64;
    for (rule, answer) in [("deny", 503), ("allow", 101)] {
        if rule == "allow" {
            folder.write("relay.conf", format!("{asks}verify-on-failure = allow\n"));
            reload(&controlled.relay, "verify-on-failure").await;
        }
        for (number, does) in useless.iter().enumerate() {
            verifier.now(does.clone());
            let id = format!("{rule}-{number}");
            assert_eq!(status(&controlled, &id).await, answer, "{id}");
        }
    }
    outcomes(&controlled.get_text("/metrics").await, "no_answer", 2 * count);
    let said = || {
        let all = controlled.relay.logs().into_iter();
        let lines = all.filter(|line| line.event() == "claim_not_verified");
        lines.map(|line| line.get("err").unwrap().to_owned()).collect::<Vec<_>>()
    };
    for what in ["did not answer within 300", "did not give a complete HTTP answer", "not JSON"] {
        let found = async || said().iter().any(|err| err.contains(what));
        wait_until(what, SOON, found).await;
    }
    // Nobody is there, and then nobody is asked.
    folder.write("relay.conf", format!("verify-url = http://127.0.0.1:1/\n{rest}"));
    reload(&controlled.relay, "verify-url").await;
    assert_eq!(status(&controlled, "dead").await, 503);
    wait_until("why", SOON, async || said().iter().any(|err| err.contains("cannot be reached")))
        .await;
    folder.write("relay.conf", "");
    reload(&controlled.relay, "verify-url").await;
    assert_eq!(status(&controlled, "dead").await, 101);
}

#[tokio::test]
async fn a_slow_verifier_holds_up_the_claims_that_wait_for_it_and_nobody_else() {
    let verifier = Verifier::start(ALLOWS).await;
    let limits = ["--verify-timeout", "10s", "--rate-limit", "off"];
    let controlled =
        Controlled::start(&[&["--verify-url", &verifier.url()], &limits[..]].concat()).await;
    let mut binary = Raw::binary(&controlled.relay, "known").await;
    let mut phone = Raw::phone(&controlled.relay, "known").await;
    let go = Arc::new(Notify::new());
    verifier.now(Does::Waits(go.clone()));
    // More than may be asked about at a time.
    let mut waiting = Vec::new();
    for number in 0..80 {
        let mut raw = Raw::connect(&controlled.relay).await;
        raw.send(Request::server(format!("slow-{number}"))).await;
        waiting.push(raw);
    }
    let metrics = controlled.metrics;
    wait_until("claims that wait", SOON, async || {
        let mut raw = Raw::connect_to(metrics).await;
        raw.send(Request::get("/metrics").set("Host", metrics.to_string())).await;
        let text = String::from_utf8(raw.response().await.body).unwrap();
        text.contains("pyrycode_relay_connections{state=\"verifying\"} 80\n")
    })
    .await;
    wait_until("as many questions as may be", SOON, async || verifier.asked() == 1 + 64).await;
    let began = Instant::now();
    // Messages, phones, and binaries that are known go on as ever.
    for _ in 0..20 {
        phone.send(masked(TEXT, "1")).await;
        binary.recv_text().await;
    }
    let _other = Raw::phone(&controlled.relay, "known").await;
    binary.close(1000).await;
    let _binary = Raw::binary(&controlled.relay, "known").await;
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    let rows = controlled.told(&["connections", "--json"]).await;
    assert_eq!(rows.matches("\"state\":\"verifying\"").count(), 80);
    // Those who give up leave nothing behind. (The phones went when their binary came back.)
    drop(waiting.split_off(40));
    go.notify_one();
    for raw in &mut waiting {
        assert_eq!(raw.response_head().await.expect("an answer").status, 101);
    }
    controlled.relay.wait_for_counts(41, 0).await;
}

#[tokio::test]
async fn a_verifier_is_checked_and_shown() {
    let args = ["check", "--insecure-listen=127.0.0.1:0", "--verify-url=https://v.example/ask"];
    let exit = run(&args).await;
    assert!(exit.stdout.contains("https://v.example/ask"), "{}", exit.stdout);
    for (url, says) in [
        ("v.example/ask", "is not a URL of HTTP or HTTPS"),
        ("ftp://v.example/", "is not a URL of HTTP or HTTPS"),
        ("http:///ask", "is not a URL of HTTP or HTTPS"),
        ("http://me:secret@v.example/", "it holds credentials"),
    ] {
        let exit = run(&["--verify-url", url]).await;
        assert_eq!(exit.status.code(), Some(2), "{url}");
        assert!(exit.stderr.contains(says) && !exit.stderr.contains("secret"), "{}", exit.stderr);
    }
}
