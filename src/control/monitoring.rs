//! What `--metrics-listen` serves on a loopback address: `/metrics` for Prometheus, `/healthz`,
//! `/readyz`, and the status page with its data.

use super::certificates::Certificates;
use super::drain::Drain;
use super::fleet::Fleet;
use super::http::server::{self, Bounds, WhenFull};
use super::upgrade::record::Record;
use super::{process, status};
use crate::config::VERSION;
use crate::handover::process::Counters;
use crate::metrics::snapshot::{self, Blocked, Process, Snapshot};
use crate::protocol::upgrade::Health;
use crate::relay::timers::Millis;
use crate::telemetry::Log;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{
    ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST, HeaderValue,
    REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use hyper::{Method, Request, Response, StatusCode};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::sync::Mutex;
use tracing::warn;

/// What those may take who ask.
const BOUNDS: Bounds = Bounds {
    connections: 64,
    when_full: WhenFull::Wait,
    head_timeout: Duration::from_secs(30),
    lifetime: Duration::from_secs(60),
    keep_alive: true,
};
/// How long workers have to bring their gauges up to date. Without them, older values are told.
const CENSUS_PATIENCE: Duration = Duration::from_millis(250);
/// How long a census serves everyone: it costs workers time, and anyone on this machine may ask.
const CENSUS_LASTS: Duration = Duration::from_millis(100);

/// What the status page may do: draw with what it brings along, and ask this listener.
const PAGE_POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; \
    script-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'; form-action 'none'; \
    frame-ancestors 'none'";

/// What there is to be told, and whom to ask.
pub(super) struct Monitoring {
    pub(super) fleet: Fleet,
    pub(super) drain: Arc<Drain>,
    pub(super) log: Log,
    pub(super) certificates: Option<Arc<Certificates>>,
    pub(super) memory_budget_bytes: u64,
    /// A balancer sends each server-id to one of several relays, by the operator's word.
    pub(super) one_of_many: bool,
    /// When the process's clock started.
    pub(super) epoch: Instant,
    /// The same by the wall clock, since 1970. Worked out once: a value that trembles
    /// with that clock would look like restarts.
    pub(super) started_at_seconds: u64,
    /// It was asked to stop.
    pub(super) draining: AtomicBool,
    /// How upgrades went.
    pub(super) upgrades: Record,
    /// What a predecessor had counted.
    pub(super) earlier: Counters,
    /// When the last census was over.
    pub(super) last_census: Mutex<Option<Instant>>,
}

type Answer = Response<Full<Bytes>>;

impl Monitoring {
    /// The relay was asked to stop.
    pub(super) fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Serves until the process ends.
    pub(super) async fn serve(self: Arc<Self>, listener: TcpListener) {
        let report = |error: &io::Error| warn!(err = %error, "metrics_accept_failed");
        let answer = move |request: Request<Incoming>, _| {
            let monitoring = self.clone();
            async move { monitoring.answer(&request).await }
        };
        server::serve(listener, BOUNDS, report, answer).await;
    }

    async fn answer<B>(&self, request: &Request<B>) -> Answer {
        if !is_local(request) {
            let why = "request this by a loopback address or localhost\n";
            return plain(StatusCode::MISDIRECTED_REQUEST, why);
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut refusal = plain(StatusCode::METHOD_NOT_ALLOWED, "method not allowed\n");
            refusal.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return refusal;
        }
        match request.uri().path() {
            "/metrics" => typed("text/plain; version=0.0.4; charset=utf-8", self.metrics().await),
            "/healthz" => typed("application/json; charset=utf-8", self.health()),
            "/readyz" if self.draining() => {
                plain(StatusCode::SERVICE_UNAVAILABLE, "shutting down\n")
            }
            "/readyz" if self.drain.status().is_some() => {
                plain(StatusCode::SERVICE_UNAVAILABLE, "draining\n")
            }
            "/readyz" => plain(StatusCode::OK, "ready\n"),
            "/status.json" => typed("application/json; charset=utf-8", self.status().await),
            "/" => page(),
            _ => plain(StatusCode::NOT_FOUND, "not found\n"),
        }
    }

    /// All metrics, as Prometheus reads them.
    pub(super) async fn metrics(&self) -> String {
        snapshot::exposition(&self.fleet.metrics, &self.process().await)
    }

    /// How the relay is doing, as JSON.
    pub(super) async fn status(&self) -> String {
        status::json(&Snapshot::take(&self.fleet.metrics, self.process().await))
    }

    fn draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// The same as on the data plane (PROTOCOL.md, chapter 1).
    fn health(&self) -> String {
        Health {
            version: VERSION,
            connected_binaries: self.fleet.metrics.connected_binaries(),
            connected_phones: self.fleet.metrics.connected_phones(),
            uptime_seconds: self.epoch.elapsed().as_secs(),
        }
        .body()
    }

    /// Has the workers bring their gauges up to date, unless they have just done so. Those who ask
    /// at the same time share one census.
    async fn take_census(&self) {
        let mut last = self.last_census.lock().await;
        if last.is_none_or(|at| at.elapsed() >= CENSUS_LASTS) {
            self.fleet.take_census(CENSUS_PATIENCE).await;
            *last = Some(Instant::now());
        }
    }

    /// The blocked networks.
    pub(super) fn blocked(&self) -> Vec<Blocked> {
        let now = self.epoch.elapsed().as_millis() as Millis;
        let blocked = self.fleet.admission.blocked(now).into_iter();
        blocked
            .map(|blocked| Blocked {
                network: blocked.network.to_string(),
                is_configured: blocked.is_configured,
                seconds_left: blocked.left_ms.map(|left| left.div_ceil(1000)),
            })
            .collect()
    }

    /// What the process says of itself, once its workers' gauges are up to date.
    async fn process(&self) -> Process {
        self.take_census().await;
        let certificates = self.certificates.as_ref();
        let drain = self.drain.status();
        Process {
            version: VERSION,
            started_at_seconds: self.started_at_seconds,
            uptime_seconds: self.epoch.elapsed().as_secs(),
            ready: !self.draining() && drain.is_none(),
            draining: self.draining(),
            one_of_many: self.one_of_many,
            drain,
            blocked: self.blocked(),
            allowed_server_ids: self.fleet.admission.allowed().map(|count| count as u64),
            resident_bytes: process::resident_bytes(),
            open_descriptors: process::open_descriptors(),
            max_descriptors: process::max_descriptors(),
            max_connections: self.fleet.admission.limits().max_connections as u64,
            memory_budget_bytes: self.memory_budget_bytes,
            upgrades: self.upgrades.show(),
            log_lines_lost: self.log_lines_lost(),
            certificate_failures: self.certificate_failures(),
            certificate_expires_at_seconds: certificates.and_then(|held| held.expires_at()),
            worker_cpu_seconds: self.worker_cpu_seconds(),
        }
    }

    fn log_lines_lost(&self) -> u64 {
        self.earlier.log_lines_lost + self.log.lost_lines()
    }

    fn certificate_failures(&self) -> u64 {
        let own = self.certificates.as_ref().map_or(0, |held| held.failures());
        self.earlier.certificate_failures + own
    }

    fn worker_cpu_seconds(&self) -> Vec<f64> {
        let mut seconds = process::worker_cpu_seconds(self.fleet.workers());
        let count = seconds.len().max(1);
        for (number, us) in self.earlier.cpu_us.iter().enumerate() {
            if let Some(worker) = seconds.get_mut(number % count) {
                *worker += *us as f64 / 1e6;
            }
        }
        seconds
    }

    /// What was counted so far, for a successor.
    pub(super) fn counters(&self) -> Counters {
        let cpu_seconds = self.worker_cpu_seconds().into_iter();
        let cpu_us = cpu_seconds.map(|seconds| (seconds * 1e6) as u64);
        Counters {
            cpu_us: cpu_us.collect(),
            log_lines_lost: self.log_lines_lost(),
            certificate_failures: self.certificate_failures(),
            upgrades_failed: self.upgrades.show().failed,
            ..self.fleet.metrics.give_out()
        }
    }
}

/// Whether the request was meant for this machine: a page of somebody else's, whose name leads
/// here, must not read what is told (DNS rebinding). Browsers name the host of every request; what
/// names none is no browser, but a health checker that speaks HTTP/1.0.
fn is_local<B>(request: &Request<B>) -> bool {
    let header = request.headers().get(HOST).map(|host| host.to_str().unwrap_or("?"));
    let Some(host) = request.uri().host().or(header).filter(|host| !host.is_empty()) else {
        return true;
    };
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    let name = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok()
}

fn plain(status: StatusCode, text: &'static str) -> Answer {
    let mut answer = typed("text/plain; charset=utf-8", text);
    *answer.status_mut() = status;
    answer
}

fn page() -> Answer {
    let mut answer = typed("text/html; charset=utf-8", status::PAGE);
    let headers = answer.headers_mut();
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(PAGE_POLICY));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    answer
}

fn typed(content_type: &'static str, text: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(text.into()));
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_request_by_a_local_name_is_answered() {
        for (host, local) in [
            ("127.0.0.1:9090", true),
            ("127.0.0.1", true),
            ("localhost:9090", true),
            ("LOCALHOST", true),
            ("[::1]:9090", true),
            ("relay.example.com", false),
            ("localhost.example.com:9090", false),
            ("127.0.0.1.example.com", false),
            ("", true),
        ] {
            let request = Request::builder().uri("/metrics").header(HOST, host).body(()).unwrap();
            assert_eq!(is_local(&request), local, "{host}");
        }
        let bytes = HeaderValue::from_bytes(b"relay.\xff").unwrap();
        let request = Request::builder().uri("/metrics").header(HOST, bytes).body(()).unwrap();
        assert!(!is_local(&request), "a name, whatever it says");
        assert!(is_local(&Request::builder().uri("/metrics").body(()).unwrap()));
    }
}
