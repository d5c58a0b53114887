//! A small HTTP server, plain or over TLS, that says what it is told to say and remembers what it
//! was asked.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::common::{SOON, wait_until};

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Call {
    pub target: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Call {
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut all = self.headers.iter().filter(|(other, _)| other == name);
        let first = all.next().map(|(_, value)| value.as_str());
        assert!(all.next().is_none(), "{name} comes twice");
        first
    }
}

/// What is answered.
#[derive(Debug, Clone)]
pub enum Reply {
    /// A status and a JSON body.
    Json(u16, String),
    /// 307 to this URL.
    Redirect(String),
    /// 200 and a body without end.
    Endless,
    /// 200 and half a body, then the connection ends.
    Half,
    /// The connection ends without an answer.
    HangUp,
    /// Nothing, until [`Fake::release`]; then a status and a JSON body.
    Held(u16, String),
}

type Script = dyn Fn(usize) -> Reply + Send + Sync;

pub struct Fake {
    url: String,
    calls: Arc<Mutex<Vec<Call>>>,
    script: Arc<Mutex<Arc<Script>>>,
    released: watch::Sender<bool>,
}

impl Fake {
    /// A server over plain HTTP that always answers `reply`.
    pub async fn http(reply: Reply) -> Self {
        Self::start(None, reply).await
    }

    /// As [`Fake::http`], over TLS.
    pub async fn https(authority: &Authority, reply: Reply) -> Self {
        Self::start(Some(authority.acceptor()), reply).await
    }

    async fn start(tls: Option<TlsAcceptor>, reply: Reply) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr: SocketAddr = listener.local_addr().unwrap();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let fake = Self {
            url: format!("{scheme}://localhost:{}", addr.port()),
            calls: Arc::default(),
            script: Arc::new(Mutex::new(Arc::new(move |_| reply.clone()))),
            released: watch::Sender::new(false),
        };
        let handler = Handler {
            calls: fake.calls.clone(),
            script: fake.script.clone(),
            released: fake.released.subscribe(),
        };
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (handler, tls) = (handler.clone(), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        // Those who do not trust it end the handshake.
                        Some(tls) => match tls.accept(stream).await {
                            Ok(stream) => handler.serve(stream).await,
                            Err(_) => None,
                        },
                        None => handler.serve(stream).await,
                    }
                });
            }
        });
        fake
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// From now on the answers are what `script` makes of the call's number, from 0.
    pub fn script(&self, script: impl Fn(usize) -> Reply + Send + Sync + 'static) {
        *self.script.lock().unwrap() = Arc::new(script);
    }

    pub fn calls(&self) -> Vec<Call> {
        self.calls.lock().unwrap().clone()
    }

    /// Waits until there were so many calls, and demands that there were no more.
    pub async fn wait_for_calls(&self, count: usize) -> Vec<Call> {
        let what = format!("{count} calls of {}", self.url);
        wait_until(&what, SOON, async || self.calls.lock().unwrap().len() >= count).await;
        let calls = self.calls();
        assert_eq!(calls.len(), count, "{calls:#?}");
        calls
    }

    /// Lets all that is held go on.
    pub fn release(&self) {
        self.released.send_replace(true);
    }
}

#[derive(Clone)]
struct Handler {
    calls: Arc<Mutex<Vec<Call>>>,
    script: Arc<Mutex<Arc<Script>>>,
    released: watch::Receiver<bool>,
}

impl Handler {
    /// Serves one connection until either side ends it.
    async fn serve(mut self, mut stream: impl AsyncRead + AsyncWrite + Unpin) -> Option<()> {
        let mut unread = Vec::new();
        loop {
            let call = read_call(&mut stream, &mut unread).await?;
            let number = {
                let mut calls = self.calls.lock().unwrap();
                calls.push(call);
                calls.len() - 1
            };
            let script = self.script.lock().unwrap().clone();
            self.answer(&mut stream, script(number)).await?;
        }
    }

    /// `None` ends the connection.
    async fn answer(&mut self, stream: &mut (impl AsyncWrite + Unpin), reply: Reply) -> Option<()> {
        let response = match reply {
            Reply::Json(status, body) => json(status, &body),
            Reply::Redirect(to) => {
                format!("HTTP/1.1 307 Moved\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n")
            }
            Reply::Endless => {
                stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n{").await.ok()?;
                loop {
                    stream.write_all(&[b' '; 4096]).await.ok()?;
                }
            }
            Reply::Half => {
                stream
                    .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{\"na")
                    .await
                    .ok()?;
                stream.shutdown().await.ok()?;
                return None;
            }
            Reply::HangUp => return None,
            Reply::Held(status, body) => {
                self.released.wait_for(|released| *released).await.ok()?;
                json(status, &body)
            }
        };
        stream.write_all(response.as_bytes()).await.ok()
    }
}

fn json(status: u16, body: &str) -> String {
    format!(
        "HTTP/1.1 {status} Reason\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

async fn read_call(stream: &mut (impl AsyncRead + Unpin), unread: &mut Vec<u8>) -> Option<Call> {
    let head_end = loop {
        if let Some(at) = unread.windows(4).position(|four| four == b"\r\n\r\n") {
            break at + 4;
        }
        if stream.read_buf(unread).await.ok()? == 0 {
            return None;
        }
    };
    let head: Vec<u8> = unread.drain(..head_end).collect();
    let head = String::from_utf8(head).unwrap();
    let mut lines = head.split("\r\n");
    let target = lines.next()?.strip_prefix("POST ")?.strip_suffix(" HTTP/1.1")?.to_owned();
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let length = headers.iter().find(|(name, _)| name == "content-length");
    let length: usize = length.map_or(0, |(_, value)| value.parse().unwrap());
    while unread.len() < length {
        if stream.read_buf(unread).await.ok()? == 0 {
            return None;
        }
    }
    let body = String::from_utf8(unread.drain(..length).collect()).unwrap();
    Some(Call { target, headers, body })
}

/// A certificate authority of the test's own, and the certificate that it gave to `localhost`.
pub struct Authority {
    file: PathBuf,
    acceptor: TlsAcceptor,
}

impl Authority {
    /// `name` is that of the test: the certificate is put into a file of this name.
    pub fn new(name: &str) -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let root = params.self_signed(&key).unwrap();
        let issuer = rcgen::Issuer::new(params, key);
        let leaf_key = rcgen::KeyPair::generate().unwrap();
        let leaf = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap();
        let leaf = leaf.signed_by(&leaf_key, &issuer).unwrap();
        let chain = vec![CertificateDer::from(leaf)];
        let private = PrivateKeyDer::Pkcs8(leaf_key.serialize_der().into());
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, private)
            .unwrap();
        let file = Path::new(env!("CARGO_TARGET_TMPDIR"))
            .join(format!("push-{name}-{}.pem", std::process::id()));
        std::fs::write(&file, root.pem()).unwrap();
        Self { file, acceptor: TlsAcceptor::from(Arc::new(config)) }
    }

    /// For the relay's hidden flag.
    pub fn file(&self) -> &str {
        self.file.to_str().unwrap()
    }

    fn acceptor(&self) -> TlsAcceptor {
        self.acceptor.clone()
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.file);
    }
}

/// Long enough for a call that is given up after 10 s.
pub const AFTER_THE_CALL_TIMEOUT: Duration = Duration::from_secs(20);
