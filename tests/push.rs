//! PROTOCOL.md, chapter 8: push wake, against a fake token endpoint and a fake FCM.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    unreachable_pub,
    missing_docs
)]

mod common;
#[path = "push/fake.rs"]
mod fake;

use std::ffi::OsStr;

use common::{
    Binary, LogLine, PONG, Process, Raw, Relay, SOON, Signal, TEXT, command, envelope, masked,
    open_envelope, wait_until,
};
use fake::{AFTER_THE_CALL_TIMEOUT, Authority, Call, Fake, Reply};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde_json::{Value, json};

const VARIABLE: &str = "PYRYCODE_RELAY_FCM_CREDENTIALS";
/// Made for these tests, and good for nothing else.
const PRIVATE_KEY: &str = include_str!("push/private.pem");
const PUBLIC_KEY: &str = include_str!("push/public.pem");
const EMAIL: &str = "relay@project-1.iam.gserviceaccount.com";
const TOKEN_URI: &str = "https://oauth2.googleapis.com/token";
const ACCESS_TOKEN: &str = "ya29.access-token";
const TOKEN: &str = "phone-token";
/// `printf phone-token | sha256sum`
const TOKEN_FP: &str = "23e75836";

fn credentials() -> Value {
    json!({
        "type": "service_account",
        "project_id": "project-1",
        "private_key_id": "key-1",
        "private_key": PRIVATE_KEY,
        "client_email": EMAIL,
        "client_id": "1",
        "token_uri": TOKEN_URI,
    })
}

fn granted() -> Reply {
    let body = json!({"access_token": ACCESS_TOKEN, "expires_in": 3599, "token_type": "Bearer"});
    Reply::Json(200, body.to_string())
}

fn sent_body() -> String {
    json!({"name": "projects/project-1/messages/0:17%31"}).to_string()
}

fn sent() -> Reply {
    Reply::Json(200, sent_body())
}

fn fcm_error(status: u16, code: &str) -> Reply {
    let kind = "type.googleapis.com/google.firebase.fcm.v1.FcmError";
    let error = json!({"code": status, "message": format!("about {TOKEN}"), "status": "X",
        "details": [{"@type": "other"}, {"@type": kind, "errorCode": code}]});
    Reply::Json(status, json!({ "error": error }).to_string())
}

fn wake_for(platform: &str, token: &str) -> Vec<u8> {
    masked(TEXT, json!({"push_wake": {"platform": platform, "token": token}}).to_string())
}

fn wake(token: &str) -> Vec<u8> {
    wake_for("fcm", token)
}

/// A relay, and Google as it sees it.
struct World {
    relay: Relay,
    tokens: Fake,
    fcm: Fake,
}

impl World {
    /// Over plain HTTP.
    async fn start() -> Self {
        Self::with(&[]).await
    }

    async fn with(args: &[&str]) -> Self {
        let tokens = Fake::http(granted()).await;
        let fcm = Fake::http(sent()).await;
        Self::between(tokens, fcm, args, credentials().to_string()).await
    }

    async fn between(
        tokens: Fake,
        fcm: Fake,
        args: &[&str],
        credentials: impl AsRef<OsStr>,
    ) -> Self {
        let token_url = format!("{}/token", tokens.url());
        let mut all = vec!["--fcm-token-url", &token_url, "--fcm-url", fcm.url()];
        all.extend(["--log-level", "trace"]);
        all.extend(args);
        let relay = Relay::start_with(&all, |command| {
            command.env(VARIABLE, credentials);
        })
        .await;
        Self { relay, tokens, fcm }
    }

    fn lines(&self, event: &str) -> Vec<LogLine> {
        self.relay.logs().into_iter().filter(|line| line.event() == event).collect()
    }

    /// The lines of `event`, once there are so many; there may not be more.
    async fn wait_for_lines(&self, event: &str, count: usize) -> Vec<LogLine> {
        let what = format!("{count} lines {event}");
        wait_until(&what, SOON, async || self.lines(event).len() >= count).await;
        let lines = self.lines(event);
        assert_eq!(lines.len(), count, "{lines:#?}");
        lines
    }

    /// What a binary asks for comes to this: the event and its `err`.
    async fn outcome_of(&self, id: &str) -> (String, String) {
        let mut binary = Raw::binary(&self.relay, id).await;
        binary.send(wake(TOKEN)).await;
        let mut found = None;
        wait_until("an outcome", SOON, async || {
            let logs = self.relay.logs();
            found = logs.into_iter().find(|line| {
                let of_wake = line.event().starts_with("push_wake_");
                of_wake && line.get("server_id") == Some(id)
            });
            found.is_some()
        })
        .await;
        let line = found.unwrap();
        assert_eq!(line.get("token_fp"), Some(TOKEN_FP), "{}", line.raw);
        let err = line.get("err").unwrap_or_default().to_owned();
        (line.event().to_owned(), err)
    }
}

/// Whatever happened, nothing secret was told.
impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        let said = self.relay.stderr() + &self.relay.stdout();
        let key_line = PRIVATE_KEY.lines().nth(5).unwrap();
        for secret in [TOKEN, ACCESS_TOKEN, "ya29", EMAIL, "PRIVATE KEY", key_line, "eyJ"] {
            assert!(!said.contains(secret), "{secret} is told:\n{said}");
        }
    }
}

fn form(body: &str) -> Vec<(&str, &str)> {
    body.split('&').map(|pair| pair.split_once('=').unwrap()).collect()
}

/// Checks the one kind of request that a token endpoint may get.
fn check_token_call(call: &Call) {
    assert_eq!(call.target, "/token");
    assert_eq!(call.header("content-type"), Some("application/x-www-form-urlencoded"));
    assert_eq!(call.header("authorization"), None);
    let [grant, assertion] = form(&call.body)[..] else { panic!("{}", call.body) };
    assert_eq!(grant, ("grant_type", "urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Ajwt-bearer"));
    assert_eq!(assertion.0, "assertion");
    let mut validation = Validation::new(Algorithm::RS256);
    validation.set_audience(&[TOKEN_URI]);
    validation.set_issuer(&[EMAIL]);
    validation.set_required_spec_claims(&["iss", "aud", "exp"]);
    let key = DecodingKey::from_rsa_pem(PUBLIC_KEY.as_bytes()).unwrap();
    let token = jsonwebtoken::decode::<Value>(assertion.1, &key, &validation).unwrap();
    assert_eq!(token.header.kid.as_deref(), Some("key-1"));
    assert_eq!(token.header.typ.as_deref(), Some("JWT"));
    let claims = token.claims;
    assert_eq!(claims["scope"], "https://www.googleapis.com/auth/firebase.messaging");
    let (issued, expires) = (claims["iat"].as_u64().unwrap(), claims["exp"].as_u64().unwrap());
    assert_eq!(expires - issued, 3600);
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
    assert!((now - 60..=now).contains(&issued), "{issued} is not now, {now}");
    assert_eq!(claims.as_object().unwrap().len(), 5, "{claims}");
}

fn check_message(call: &Call, token: &str) {
    assert_eq!(call.target, "/v1/projects/project-1/messages:send");
    assert_eq!(call.header("authorization"), Some(format!("Bearer {ACCESS_TOKEN}").as_str()));
    assert_eq!(call.header("content-type"), Some("application/json"));
    let token = Value::from(token);
    let body = format!(r#"{{"message":{{"token":{token},"android":{{"priority":"HIGH"}}}}}}"#);
    assert_eq!(call.body, body);
}

// ---- what is sent

#[tokio::test]
async fn a_wake_is_one_message_to_fcm() {
    let authority = Authority::new("message");
    let file = std::path::Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join(format!("push-key-{}.json", std::process::id()));
    std::fs::write(&file, credentials().to_string()).unwrap();
    // HTTPS with a key file, and HTTP with the key in the variable, after a blank.
    let tokens = Fake::https(&authority, granted()).await;
    let fcm = Fake::https(&authority, sent()).await;
    let over_https = World::between(tokens, fcm, &["--fcm-ca", authority.file()], &file).await;
    let (tokens, fcm) = (Fake::http(granted()).await, Fake::http(sent()).await);
    let over_http = World::between(tokens, fcm, &[], format!(" {:#}", credentials())).await;
    for world in [over_https, over_http] {
        assert_eq!(world.relay.wait_for_log("push_wake_on").await.get("level"), Some("info"));
        let mut binary = Raw::binary(&world.relay, "id").await;
        binary.send(wake(TOKEN)).await;
        check_token_call(&world.tokens.wait_for_calls(1).await[0]);
        check_message(&world.fcm.wait_for_calls(1).await[0], TOKEN);
        let line = world.relay.wait_for_log("push_wake_sent").await;
        assert_eq!(line.get("level"), Some("info"));
        assert_eq!(line.get("server_id"), Some("id"));
        assert_eq!(line.get("token_fp"), Some(TOKEN_FP));
        assert_eq!(line.get("fcm_message_id"), Some("0:17%31"));
        assert!(line.get("duration").is_some_and(|took| took.contains('s')), "{}", line.raw);
        assert_eq!(line.get("err"), None);
        binary.assert_quiet().await;
    }
    std::fs::remove_file(&file).unwrap();
}

#[tokio::test]
async fn a_token_is_sent_as_it_came_and_has_a_longest_length() {
    let world = World::start().await;
    let mut binary = Raw::binary(&world.relay, "id").await;
    let longest = "\u{1f600}".repeat(1024);
    for token in ["\"\\\n\u{1}/\u{7f}\u{2028}", longest.as_str()] {
        binary.send(wake(token)).await;
    }
    let calls = world.fcm.wait_for_calls(2).await;
    let token_of = |call: &Call| {
        let body: Value = serde_json::from_str(&call.body).unwrap();
        body["message"]["token"].as_str().unwrap().to_owned()
    };
    let mut tokens: Vec<String> = calls.iter().map(token_of).collect();
    tokens.sort_by_key(String::len);
    assert_eq!(tokens, ["\"\\\n\u{1}/\u{7f}\u{2028}", &longest]);
    for bad in ["", &format!("{longest}x")] {
        binary.send(wake(bad)).await;
    }
    let lines = world.wait_for_lines("binary_forwarder_bad_envelope", 2).await;
    assert!(lines[0].get("err").unwrap().contains("4096"), "{}", lines[0].raw);
    binary.send(wake(TOKEN)).await;
    world.fcm.wait_for_calls(3).await;
}

#[tokio::test]
async fn only_the_holder_of_an_id_can_wake() {
    let world = World::start().await;
    let mut holder = Raw::binary(&world.relay, "id").await;
    let mut newcomer = Raw::binary(&world.relay, "id").await;
    newcomer.send(wake("newcomer")).await;
    let payload = holder.recv_ping().await;
    holder.send(masked(PONG, payload)).await;
    assert_eq!(newcomer.closed().await.0, 4409);
    // A phone's message is never read.
    let mut phone = Raw::phone(&world.relay, "id").await;
    phone.send(wake("phone")).await;
    let (_, frame) = open_envelope(&holder.recv_text().await);
    assert!(frame.contains("push_wake"));
    holder.send(wake(TOKEN)).await;
    check_message(&world.fcm.wait_for_calls(1).await[0], TOKEN);
}

#[tokio::test]
async fn another_platform_is_dropped_and_told_once() {
    let world = World::start().await;
    let mut binary = Raw::binary(&world.relay, "id").await;
    for platform in ["apns", "FCM", "", "s3cret"] {
        binary.send(wake_for(platform, TOKEN)).await;
    }
    binary.send(wake(TOKEN)).await;
    world.wait_for_lines("push_wake_sent", 1).await;
    let lines = world.lines("push_wake_dropped");
    let levels: Vec<_> = lines.iter().map(|line| line.get("level").unwrap()).collect();
    assert_eq!(levels, ["info", "debug", "debug", "debug"]);
    assert!(lines[0].get("err").unwrap().contains("platform"));
    world.fcm.wait_for_calls(1).await;
    assert!(!world.relay.stderr().contains("s3cret"));
}

// ---- access tokens

#[tokio::test]
async fn one_access_token_serves_many_wakes() {
    let world = World::start().await;
    world.tokens.script(|_| match granted() {
        Reply::Json(status, body) => Reply::Held(status, body),
        other => other,
    });
    let mut binaries = Vec::new();
    for number in 0..4 {
        let mut binary = Raw::binary(&world.relay, &format!("id-{number}")).await;
        for _ in 0..5 {
            binary.send(wake(TOKEN)).await;
        }
        binary.assert_quiet().await;
        binaries.push(binary);
    }
    // All of them wait for one fetch, and what comes later takes its token too.
    world.tokens.wait_for_calls(1).await;
    world.tokens.release();
    world.fcm.wait_for_calls(20).await;
    binaries[0].send(wake(TOKEN)).await;
    world.fcm.wait_for_calls(21).await;
    world.wait_for_lines("push_wake_sent", 21).await;
    world.tokens.wait_for_calls(1).await;
}

#[tokio::test]
async fn a_failed_fetch_is_shared_by_those_who_wait_and_tried_again_by_the_next() {
    let world = World::start().await;
    world.tokens.script(|number| match number {
        0 => Reply::Held(400, json!({"error": "invalid_grant"}).to_string()),
        _ => granted(),
    });
    let mut binary = Raw::binary(&world.relay, "id").await;
    for _ in 0..5 {
        binary.send(wake(TOKEN)).await;
    }
    // Requests are taken in their order: once this one is refused, the others wait.
    binary.send(wake_for("apns", TOKEN)).await;
    world.relay.wait_for_log("push_wake_dropped").await;
    world.tokens.wait_for_calls(1).await;
    world.tokens.release();
    for line in world.wait_for_lines("push_wake_failed", 5).await {
        let err = line.get("err").unwrap();
        assert!(err.contains("400 invalid_grant") && err.contains("clock"), "{err}");
    }
    assert_eq!(world.outcome_of("other").await.0, "push_wake_sent");
    world.tokens.wait_for_calls(2).await;
    world.fcm.wait_for_calls(1).await;
}

#[tokio::test]
async fn a_token_that_ends_is_fetched_again() {
    let world = World::start().await;
    // One that ends at once is good for one wake.
    world.tokens.script(|number| {
        let body = json!({"access_token": format!("t{number}"), "expires_in": 0});
        Reply::Json(200, body.to_string())
    });
    let mut binary = Raw::binary(&world.relay, "id").await;
    for number in 0..3 {
        binary.send(wake(TOKEN)).await;
        let calls = world.fcm.wait_for_calls(number + 1).await;
        let bearer = format!("Bearer t{number}");
        assert_eq!(calls[number].header("authorization"), Some(bearer.as_str()));
    }
    world.tokens.wait_for_calls(3).await;
}

#[tokio::test]
async fn a_401_drops_the_access_token_and_nothing_is_sent_twice() {
    let world = World::start().await;
    world.fcm.script(|number| match number {
        0 => Reply::Json(401, json!({"error": {"code": 401, "details": []}}).to_string()),
        _ => sent(),
    });
    let (event, err) = world.outcome_of("a").await;
    assert_eq!(event, "push_wake_failed");
    assert!(err.contains("401"), "{err}");
    world.fcm.wait_for_calls(1).await;
    world.tokens.wait_for_calls(1).await;
    assert_eq!(world.outcome_of("b").await.0, "push_wake_sent");
    assert_eq!(world.outcome_of("c").await.0, "push_wake_sent");
    world.tokens.wait_for_calls(2).await;
    world.fcm.wait_for_calls(3).await;
}

// ---- what goes wrong

#[tokio::test]
async fn what_fcm_answers_is_told_by_its_code_alone() {
    let world = World::start().await;
    let elsewhere = Fake::http(sent()).await;
    let rows: [(Reply, &str, &str); 11] = [
        (fcm_error(404, "UNREGISTERED"), "push_wake_unregistered", "FCM"),
        (fcm_error(400, "UNREGISTERED"), "push_wake_unregistered", "FCM"),
        (Reply::Json(404, TOKEN.to_owned()), "push_wake_unregistered", "FCM"),
        (fcm_error(400, "INVALID_ARGUMENT"), "push_wake_failed", "400 INVALID_ARGUMENT"),
        (fcm_error(403, TOKEN), "push_wake_failed", "403"),
        (fcm_error(403, "SENDER_ID_MISMATCH"), "push_wake_failed", "another project"),
        (Reply::Json(500, ACCESS_TOKEN.to_owned()), "push_wake_failed", "500"),
        (Reply::Redirect(elsewhere.url().to_owned()), "push_wake_failed", "307"),
        (Reply::Endless, "push_wake_failed", "65536"),
        (Reply::Half, "push_wake_failed", "complete HTTP answer"),
        (Reply::HangUp, "push_wake_failed", "complete HTTP answer"),
    ];
    for (number, (reply, event, err)) in rows.into_iter().enumerate() {
        let shown = format!("{reply:?}");
        world.fcm.script(move |_| reply.clone());
        let outcome = world.outcome_of(&format!("id-{number}")).await;
        assert_eq!(outcome.0, event, "{shown}");
        assert!(outcome.1.contains(err), "{shown}: {}", outcome.1);
        world.fcm.wait_for_calls(number + 1).await;
    }
    // A name that is none of FCM's is not told.
    world
        .fcm
        .script(|_| Reply::Json(200, json!({"name": format!("x/messages/ {TOKEN}")}).to_string()));
    assert_eq!(world.outcome_of("last").await.0, "push_wake_sent");
    assert!(elsewhere.calls().is_empty());
    world.tokens.wait_for_calls(1).await;
}

#[tokio::test]
async fn without_an_access_token_nothing_is_sent() {
    let world = World::start().await;
    let elsewhere = Fake::http(granted()).await;
    let rows: [(Reply, &str); 9] = [
        (Reply::Json(400, json!({"error": "invalid_grant"}).to_string()), "400 invalid_grant"),
        (Reply::Json(401, json!({"error": ACCESS_TOKEN}).to_string()), "401"),
        (Reply::Json(503, ACCESS_TOKEN.to_owned()), "503"),
        (Reply::Json(200, ACCESS_TOKEN.to_owned()), "holds none"),
        (
            Reply::Json(200, json!({"access_token": "\n", "expires_in": 9}).to_string()),
            "holds none",
        ),
        (Reply::Redirect(elsewhere.url().to_owned()), "307"),
        (Reply::Endless, "65536"),
        (Reply::Half, "complete HTTP answer"),
        (Reply::HangUp, "complete HTTP answer"),
    ];
    for (number, (reply, err)) in rows.into_iter().enumerate() {
        let shown = format!("{reply:?}");
        world.tokens.script(move |_| reply.clone());
        let outcome = world.outcome_of(&format!("id-{number}")).await;
        assert_eq!(outcome.0, "push_wake_failed", "{shown}");
        assert!(outcome.1.starts_with("no access token: "), "{shown}: {}", outcome.1);
        assert!(outcome.1.contains(err), "{shown}: {}", outcome.1);
        world.tokens.wait_for_calls(number + 1).await;
    }
    assert!(elsewhere.calls().is_empty() && world.fcm.calls().is_empty());
}

#[tokio::test]
async fn one_who_is_not_there_or_not_trusted_is_named_in_the_log() {
    let authority = Authority::new("untrusted");
    let tokens = Fake::https(&authority, granted()).await;
    let world = World::between(tokens, Fake::http(sent()).await, &[], credentials().to_string());
    let world = world.await;
    let (event, err) = world.outcome_of("a").await;
    assert_eq!(event, "push_wake_failed");
    assert!(err.contains("token endpoint") && err.contains("certificate"), "{err}");
    assert!(world.tokens.calls().is_empty());
    drop(world);

    // A port that is never given out by chance.
    let world = World::with(&["--fcm-url", "http://127.0.0.1:9"]).await;
    let (event, err) = world.outcome_of("a").await;
    assert_eq!(event, "push_wake_failed");
    assert!(err.contains("FCM cannot be reached") && err.contains("refused"), "{err}");
}

#[tokio::test]
async fn a_call_is_given_up_after_ten_seconds() {
    let world = World::start().await;
    let late = World::start().await;
    world.fcm.script(|_| Reply::Held(200, sent_body()));
    late.tokens.script(|_| Reply::Held(200, "{}".to_owned()));
    for world in [&world, &late] {
        Raw::binary(&world.relay, "id").await.send(wake(TOKEN)).await;
    }
    for (world, who) in [(&world, "FCM"), (&late, "token endpoint")] {
        let deadline = AFTER_THE_CALL_TIMEOUT;
        wait_until(who, deadline, async || !world.lines("push_wake_failed").is_empty()).await;
        let line = &world.lines("push_wake_failed")[0];
        let err = line.get("err").unwrap();
        assert!(err.contains(who) && err.contains("within 10 s"), "{err}");
        let took = humantime::parse_duration(line.get("duration").unwrap()).unwrap();
        assert!((10..15).contains(&took.as_secs()), "{took:?}");
    }
}

// ---- limits

#[tokio::test]
async fn each_server_id_has_six_wakes_at_once() {
    let world = World::with(&["--grace", "1ms"]).await;
    let mut binary = Raw::binary(&world.relay, "id").await;
    for _ in 0..10 {
        binary.send(wake(TOKEN)).await;
    }
    binary.assert_quiet().await;
    world.wait_for_lines("push_wake_sent", 6).await;
    // One line tells of all that is dropped in a row.
    let line = &world.wait_for_lines("push_wake_dropped", 1).await[0];
    assert_eq!(line.get("server_id"), Some("id"));
    // Another id has its own.
    let mut other = Raw::binary(&world.relay, "other").await;
    other.send(wake(TOKEN)).await;
    world.wait_for_lines("push_wake_sent", 7).await;
    // Letting the id go and claiming it again brings nothing.
    drop(binary);
    world.relay.wait_for_log("grace_expired").await;
    let mut again = Raw::binary(&world.relay, "id").await;
    again.send(wake(TOKEN)).await;
    world.wait_for_lines("push_wake_dropped", 2).await;
    other.send(wake(TOKEN)).await;
    world.wait_for_lines("push_wake_sent", 8).await;
    world.fcm.wait_for_calls(8).await;
}

#[tokio::test]
async fn thirty_two_wakes_are_under_way_at_most_and_frames_flow_meanwhile() {
    let mut world = World::start().await;
    world.fcm.script(|_| Reply::Held(200, sent_body()));
    let mut binaries = Vec::new();
    for number in 0..8 {
        let mut binary = Raw::binary(&world.relay, &format!("id-{number}")).await;
        for _ in 0..5 {
            binary.send(wake(TOKEN)).await;
        }
        binaries.push(binary);
    }
    let lines = world.wait_for_lines("push_wake_dropped", 8).await;
    assert!(lines.iter().all(|line| line.get("token_fp") == Some(TOKEN_FP)));
    world.fcm.wait_for_calls(32).await;
    for binary in &mut binaries {
        binary.assert_quiet().await;
    }
    let mut phone = Raw::phone(&world.relay, "id-0").await;
    for number in 0..500 {
        let frame = number.to_string();
        phone.send(masked(TEXT, &frame)).await;
        let (conn_id, got) = open_envelope(&binaries[0].recv_text().await);
        assert_eq!(got, frame);
        binaries[0].send(masked(TEXT, envelope(&conn_id, &frame))).await;
        assert_eq!(phone.recv_text().await, frame);
    }
    assert!(world.lines("push_wake_sent").is_empty());
    // What was dropped for others' sake has cost its id nothing.
    world.fcm.release();
    world.wait_for_lines("push_wake_sent", 32).await;
    world.fcm.script(|_| Reply::HangUp);
    let mut ordinary = Binary::connect(&world.relay, "ordinary").await;
    ordinary.send_text(String::from_utf8(unmasked_wake()).unwrap()).await;
    world.wait_for_lines("push_wake_failed", 1).await;
    drop((binaries, phone, ordinary));
    world.relay.wait_for_counts(0, 0).await;
    world.relay.signal(Signal::Term);
    assert_eq!(world.relay.wait_exit(SOON).await.status.code(), Some(0));
}

fn unmasked_wake() -> Vec<u8> {
    json!({"push_wake": {"platform": "fcm", "token": TOKEN}}).to_string().into_bytes()
}

#[tokio::test]
async fn a_flood_of_one_binary_keeps_no_one_from_waking() {
    let world = World::start().await;
    let mut flooder = Raw::binary(&world.relay, "flooder").await;
    let flood: Vec<u8> = std::iter::repeat_n(wake("junk"), 20_000).flatten().collect();
    let victim = async {
        let mut binary = Raw::binary(&world.relay, "victim").await;
        for count in 1..=6 {
            binary.send(wake(TOKEN)).await;
            let sent = || {
                let lines = world.lines("push_wake_sent");
                lines.iter().filter(|line| line.get("server_id") == Some("victim")).count()
            };
            wait_until("the victim's wake", SOON, async || sent() >= count).await;
        }
    };
    tokio::join!(flooder.send(flood), victim);
    flooder.assert_quiet().await;
    world.fcm.wait_for_calls(12).await;
    // Its worker has stopped it: the way to the control plane is for everyone.
    let line = &world.wait_for_lines("push_wake_dropped", 1).await[0];
    assert!(line.get("core").is_some(), "{}", line.raw);
}

#[tokio::test]
async fn the_end_of_the_process_waits_for_no_wake() {
    let mut world = World::start().await;
    world.fcm.script(|_| Reply::Held(200, sent_body()));
    let mut binary = Raw::binary(&world.relay, "id").await;
    binary.send(wake(TOKEN)).await;
    world.fcm.wait_for_calls(1).await;
    world.relay.signal(Signal::Term);
    assert_eq!(binary.closed().await.0, 1001);
    assert_eq!(world.relay.wait_exit(SOON).await.status.code(), Some(0));
}

// ---- credentials

/// Starts the relay with a bad value; what it says.
async fn refusal(value: impl AsRef<OsStr>, args: &[&str]) -> String {
    let mut command = command(args);
    command.env(VARIABLE, value);
    let exit = Process::spawn(command).wait_exit(SOON).await;
    assert_eq!(exit.status.code(), Some(2), "{}", exit.stderr);
    assert_eq!(exit.stdout, "");
    assert_eq!(exit.stderr.lines().count(), 1, "{}", exit.stderr);
    assert!(exit.stderr.starts_with("pyrycode-relay: "), "{}", exit.stderr);
    exit.stderr
}

#[tokio::test]
async fn bad_credentials_are_refused_at_start_and_not_echoed() {
    let with = |field: &str, value: Value| {
        let mut credentials = credentials();
        credentials[field] = value;
        credentials.to_string()
    };
    let without = |field: &str| {
        let mut credentials = credentials();
        credentials.as_object_mut().unwrap().remove(field).unwrap();
        credentials.to_string()
    };
    let elliptic = rcgen::KeyPair::generate().unwrap().serialize_pem();
    let pkcs1 = PRIVATE_KEY.replace("PRIVATE KEY", "RSA PRIVATE KEY");
    let broken = PRIVATE_KEY.replace('A', "B");
    let rows: [(String, &str); 17] = [
        ("/s3cret/key.json".to_owned(), "No such file"),
        (env!("CARGO_TARGET_TMPDIR").to_owned(), "directory"),
        ("s3cret\nno path".to_owned(), "No such file"),
        ("{\"project_id\":\n \"s3cret\", s3cret".to_owned(), "line 2"),
        (without("project_id"), "`project_id`"),
        (without("client_email"), "`client_email`"),
        (without("private_key"), "`private_key`"),
        (without("token_uri"), "`token_uri`"),
        (with("client_email", json!({"s3cret": 1})), "`client_email`"),
        (with("client_email", json!("")), "`client_email`"),
        (with("project_id", json!("s3cret/../x")), "`project_id`"),
        (with("token_uri", json!("http://s3cret.test/token")), "`token_uri`"),
        (with("token_uri", json!("s3cret")), "`token_uri`"),
        (with("private_key", json!("s3cret")), "`private_key`"),
        (with("private_key", json!(elliptic)), "`private_key`"),
        (with("private_key", json!(pkcs1)), "`private_key`"),
        (with("private_key", json!(broken)), "`private_key`"),
    ];
    let weak = with("private_key", json!(include_str!("push/weak.pem")));
    for (value, fault) in rows.into_iter().chain([(weak, "2048")]) {
        let said = refusal(&value, &[]).await;
        assert!(said.contains(fault), "not {fault}: {said}");
        assert!(said.contains(VARIABLE) && said.contains("service account"), "{said}");
        for secret in ["s3cret", EMAIL, "project-1", "MII", "BEGIN", "key-1"] {
            assert!(!said.contains(secret), "{secret} is echoed: {said}");
        }
    }
}

#[tokio::test]
async fn a_file_that_is_no_key_is_refused() {
    let file = std::path::Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join(format!("push-no-key-{}.json", std::process::id()));
    let long = "s3cret ".repeat(10_000);
    for (content, fault) in [
        ("s3cret", "line 1"),
        ("[\"s3cret\"]", "object"),
        ("", "line 1"),
        ("\u{fffd}", "line 1"),
        (long.as_str(), "too large"),
    ] {
        std::fs::write(&file, content).unwrap();
        let said = refusal(&file, &[]).await;
        assert!(said.contains(fault), "not {fault}: {said}");
        assert!(!said.contains("s3cret"), "{said}");
    }
    std::fs::remove_file(&file).unwrap();
    for flag in ["--fcm-url", "--fcm-token-url", "--fcm-ca"] {
        let said = refusal(credentials().to_string(), &[flag, "/nothing"]).await;
        assert!(said.contains(flag), "{said}");
    }
}
