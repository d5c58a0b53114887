//! `pyrycode-relay demo`: a relay, a binary and three phones on this machine, and what happens between
//! them, in plain words. It ends by itself.
//!
//! The relay is this program as a process of its own; the peers are ordinary WebSocket clients, which
//! wait for each thing that must come next.

use super::failure;
use crate::config::{Exit, PROGRAM};
use rustix::process::{Pid, Signal, kill_process};
use std::fmt::Display;
use std::io::{BufRead as _, BufReader, Write as _, stdout};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;
use tungstenite::client::IntoClientRequest as _;
use tungstenite::{Message, WebSocket};

/// How long anything may take that must come.
const PATIENCE: Duration = Duration::from_secs(10);
const SERVER_ID: &str = "demo";

type Outcome<T> = Result<T, String>;

/// Plays it.
///
/// # Errors
///
/// What did not come as it must; exit code 1.
pub fn demo() -> Result<(), Exit> {
    play().map_err(|why| failure(format!("the demo stops here: {why}")))
}

fn say(who: &str, what: impl Display) {
    // Nobody may be there to read it, and the end comes all the same.
    let _ = writeln!(stdout(), "{who:>8}  {what}");
}

fn play() -> Outcome<()> {
    let relay = Relay::start()?;
    say("relay", format_args!("I listen on ws://{} and know of nobody yet.", relay.address));
    let mut binary = Peer::binary(relay.address)?;
    say("binary", "I claim the server-id \"demo\". (/v1/server, answered 101)");
    let mut phones = [1, 2, 3].map(|number| Peer::phone(relay.address, number, SERVER_ID));
    for phone in &mut phones {
        let phone = phone.as_mut().map_err(|why| why.clone())?;
        say(&phone.name, "I ask for \"demo\". (/v1/client, answered 101)");
    }
    let mut phones = phones.into_iter().collect::<Outcome<Vec<_>>>()?;
    for phone in &mut phones {
        talk(phone, &mut binary)?;
    }
    refused(relay.address, &mut phones, &mut binary)?;
    let binary = reclaim(relay.address, binary, &mut phones)?;
    farewell(relay, binary, phones)
}

/// A question and its answer.
fn talk(phone: &mut Peer, binary: &mut Peer) -> Outcome<()> {
    let frame = format!("{{\"hello\":\"from {}\"}}", phone.name);
    phone.send(&frame)?;
    say(&phone.name, format_args!("I send {frame}"));
    let seen = binary.text()?;
    say("binary", format_args!("I get  {seen}"));
    let conn_id = conn_id(&seen)?;
    let answer = format!("{{\"conn_id\":\"{conn_id}\",\"frame\":{{\"welcome\":true}}}}");
    binary.send(&answer)?;
    say("binary", format_args!("I send {answer}"));
    let got = phone.text()?;
    say(&phone.name, format_args!("I get  {got}"));
    Ok(())
}

/// What is no JSON ends its sender alone, and nobody reaches an id that nobody holds.
fn refused(relay: SocketAddr, phones: &mut Vec<Peer>, binary: &mut Peer) -> Outcome<()> {
    let mut stranger = Peer::phone(relay, 4, "other")?;
    say(&stranger.name, "I ask for \"other\", which no binary has claimed.");
    let close = stranger.closed()?;
    say(&stranger.name, format_args!("I am closed: {close}"));
    let mut careless = phones.pop().ok_or("no phone is left")?;
    careless.send("hello")?;
    say(&careless.name, "I send hello, which is no JSON: it would be \"hello\".");
    let close = careless.closed()?;
    say(&careless.name, format_args!("I am closed: {close}. My siblings notice nothing."));
    say("binary", format_args!("I get  {} (that phone is gone)", binary.text()?));
    Ok(())
}

/// The binary's line breaks, and it comes back.
fn reclaim(relay: SocketAddr, binary: Peer, phones: &mut [Peer]) -> Outcome<Peer> {
    say("binary", "My line breaks. (The relay keeps my phones for 30 seconds.)");
    drop(binary);
    let mut binary = Peer::binary(relay)?;
    say("binary", "I am back and reclaim \"demo\".");
    for phone in phones.iter_mut() {
        let close = phone.closed()?;
        say(&phone.name, format_args!("I am closed: {close}. So I dial again."));
        let number = phone.number;
        *phone = Peer::phone(relay, number, SERVER_ID)?;
        talk(phone, &mut binary)?;
    }
    Ok(binary)
}

/// The relay is stopped as a service would be.
fn farewell(relay: Relay, mut binary: Peer, mut phones: Vec<Peer>) -> Outcome<()> {
    say("relay", "I am asked to stop (SIGTERM) and tell everybody.");
    relay.stop()?;
    for peer in std::iter::once(&mut binary).chain(&mut phones) {
        let close = peer.closed()?;
        say(&peer.name, format_args!("I am closed: {close}"));
    }
    relay.ended()?;
    say("relay", "Everybody has left. That was it; README says how to go on.");
    Ok(())
}

fn conn_id(envelope: &str) -> Outcome<String> {
    let value: serde_json::Value =
        serde_json::from_str(envelope).map_err(|error| error.to_string())?;
    let id = value.get("conn_id").and_then(serde_json::Value::as_str);
    id.map(str::to_owned).ok_or_else(|| format!("no conn_id in {envelope}"))
}

/// This program, serving. It is killed when this is dropped.
struct Relay {
    child: Child,
    address: SocketAddr,
}

impl Drop for Relay {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Relay {
    fn start() -> Outcome<Self> {
        let own = std::env::current_exe().map_err(|error| error.to_string())?;
        let mut command = Command::new(own);
        command.args(["--insecure-listen", "127.0.0.1:0", "--metrics-listen", ""]);
        command.args(["--workers", "1", "--log-format", "json"]);
        for (name, _) in std::env::vars_os() {
            if name.as_encoded_bytes().starts_with(b"PYRYCODE_RELAY_") {
                command.env_remove(name);
            }
        }
        command.env_remove("FLY_APP_NAME");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|error| format!("{PROGRAM}: {error}"))?;
        let log = child.stderr.take().ok_or("the relay has no log")?;
        let (said, lines) = channel();
        std::thread::spawn(move || {
            // To its end, so that the relay never waits for it.
            for line in BufReader::new(log).lines().map_while(Result::ok) {
                let _ = said.send(line);
            }
        });
        match listening(&lines) {
            Ok(address) => Ok(Self { child, address }),
            Err(why) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(why)
            }
        }
    }

    fn stop(&self) -> Outcome<()> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or("the relay has no number")?;
        kill_process(pid, Signal::TERM).map_err(|error| error.to_string())
    }

    fn ended(mut self) -> Outcome<()> {
        let status = self.child.wait().map_err(|error| error.to_string())?;
        if status.success() { Ok(()) } else { Err(format!("the relay ended with {status}")) }
    }
}

/// Where the relay says that it listens, or what it said instead.
fn listening(lines: &Receiver<String>) -> Outcome<SocketAddr> {
    let mut last = "it said nothing".to_owned();
    while let Ok(line) = lines.recv_timeout(PATIENCE) {
        let value: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
        let of = |key| value.get(key).and_then(serde_json::Value::as_str);
        let address = of("remote").and_then(|text| text.parse().ok());
        if let (Some("listening"), Some(address)) = (of("event"), address) {
            return Ok(address);
        }
        last = line;
    }
    Err(format!("the relay does not start: {last}"))
}

/// A binary or a phone.
struct Peer {
    name: String,
    number: u8,
    socket: WebSocket<TcpStream>,
}

impl Peer {
    fn binary(relay: SocketAddr) -> Outcome<Self> {
        Self::dial(relay, "binary".to_owned(), 0, ("server", "X-Pyrycode-Version"), SERVER_ID)
    }

    fn phone(relay: SocketAddr, number: u8, id: &str) -> Outcome<Self> {
        let name = format!("phone {number}");
        Self::dial(relay, name, number, ("client", "X-Pyrycode-Token"), id)
    }

    fn dial(
        relay: SocketAddr,
        name: String,
        number: u8,
        (path, own): (&str, &'static str),
        id: &str,
    ) -> Outcome<Self> {
        let failed = |error: &dyn Display| format!("{name}: {error}");
        let url = format!("ws://{relay}/v1/{path}");
        let mut request = url.into_client_request().map_err(|error| failed(&error))?;
        for (header, value) in [("X-Pyrycode-Server", id), (own, "1"), ("User-Agent", "demo")] {
            let value = value.parse().map_err(|_| failed(&"a header that cannot be"))?;
            request.headers_mut().insert(header, value);
        }
        let stream = TcpStream::connect(relay).map_err(|error| failed(&error))?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(|error| failed(&error))?;
        let (socket, _) = tungstenite::client(request, stream).map_err(|error| failed(&error))?;
        Ok(Self { name, number, socket })
    }

    fn send(&mut self, text: &str) -> Outcome<()> {
        let sent = self.socket.send(Message::text(text));
        sent.map_err(|error| format!("{} cannot send: {error}", self.name))
    }

    fn next(&mut self) -> Outcome<Message> {
        loop {
            match self.socket.read() {
                Ok(Message::Ping(_) | Message::Pong(_)) => {}
                Ok(message) => return Ok(message),
                Err(error) => return Err(format!("{} gets nothing: {error}", self.name)),
            }
        }
    }

    fn text(&mut self) -> Outcome<String> {
        match self.next()? {
            Message::Text(text) => Ok(text.as_str().to_owned()),
            other => Err(format!("{} gets {other:?} where a frame was due", self.name)),
        }
    }

    /// The close that it is sent: code and reason.
    fn closed(&mut self) -> Outcome<String> {
        match self.next()? {
            Message::Close(Some(close)) => {
                // Sends the answer, without which the relay would wait for it.
                let _ = self.socket.flush();
                let code = u16::from(close.code);
                match close.reason.as_str() {
                    "" => Ok(code.to_string()),
                    reason => Ok(format!("{code} {reason}")),
                }
            }
            other => Err(format!("{} gets {other:?} where a close was due", self.name)),
        }
    }
}
