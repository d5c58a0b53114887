//! `pyrycode-relay watch`: a live view in the terminal, refreshed each second, as `top` is.

use super::connections::{Row, View};
use super::operate::{rows, status_of};
use super::status::{Interval, Seen, overview};
use crate::config::By;
use rustix::termios::{self, LocalModes, OptionalActions, Termios};
use std::collections::HashMap;
use std::io::{self, IsTerminal as _, Read as _, Write as _, stdin, stdout};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc::{Receiver, channel};

/// The time from one look to the next.
const EVERY: Duration = Duration::from_secs(1);
/// Connections that are shown, where there is no terminal to fill.
const SHOWN: usize = 20;

/// Shows how the relay at `path` is doing, until `q`, a signal, or whoever reads is gone.
///
/// # Errors
///
/// No relay answers the first time; or later, where there is no terminal to go on in.
pub(super) fn watch(path: &Path) -> Result<(), String> {
    let runtime = super::runtime().map_err(|error| error.to_string())?;
    let ended = runtime.block_on(run(path.to_owned()));
    // A relay that does not answer is not waited for.
    runtime.shutdown_background();
    ended
}

async fn run(path: PathBuf) -> Result<(), String> {
    let mut signals = Signals::install().map_err(|error| error.to_string())?;
    let mut last = look(path.clone()).await?;
    let screen = stdout().is_terminal().then(Screen::open);
    let mut keys = screen.as_ref().and_then(Screen::keys);
    loop {
        tokio::select! {
            () = tokio::time::sleep(EVERY) => {}
            () = signals.any() => return Ok(()),
            () = quits(&mut keys) => return Ok(()),
        }
        let looked = tokio::select! {
            looked = look(path.clone()) => looked,
            () = signals.any() => return Ok(()),
            () = quits(&mut keys) => return Ok(()),
        };
        let (frame, look) = match looked {
            Ok(look) => (frame(&path, &last, &look, screen.is_some()), Some(look)),
            // It may be restarted.
            Err(why) if screen.is_some() => (why, None),
            Err(why) => return Err(why),
        };
        last = look.unwrap_or(last);
        if draw(screen.as_ref(), &frame).is_err() {
            // Whoever reads is gone.
            return Ok(());
        }
    }
}

/// What there is to see at one moment.
struct Look {
    at: Instant,
    seen: Seen,
    rows: Vec<Row>,
}

async fn look(path: PathBuf) -> Result<Look, String> {
    let looked = tokio::task::spawn_blocking(move || {
        let seen = status_of(&path)?;
        Ok(Look { at: Instant::now(), seen, rows: rows(&path)? })
    });
    looked.await.map_err(|error| error.to_string())?
}

/// The text of one moment: how the relay is doing, and who sent and got the most since the last.
fn frame(path: &Path, before: &Look, now: &Look, colour: bool) -> String {
    let over = Interval {
        before: before.seen.clone(),
        now: now.seen.clone(),
        seconds: now.at.duration_since(before.at).as_secs_f64(),
    };
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let now_s = since_1970.as_secs().try_into().unwrap_or(i64::MAX);
    let busiest = View::of(lately(&before.rows, &now.rows), Some(By::Bytes), SHOWN);
    let place = path.display().to_string();
    format!("{}\nIn the last second:\n{}", overview(&over, &place, now_s, colour), busiest.table())
}

/// Each connection with what it has sent and got since the last look.
fn lately(before: &[Row], now: &[Row]) -> Vec<Row> {
    let key = |row: &Row| (row.core, row.remote.clone(), row.conn_id.clone());
    let before: HashMap<_, &Row> = before.iter().map(|row| (key(row), row)).collect();
    let since = |row: &Row| {
        let mut row = row.clone();
        if let Some(before) = before.get(&key(&row)) {
            row.messages_in = row.messages_in.saturating_sub(before.messages_in);
            row.messages_out = row.messages_out.saturating_sub(before.messages_out);
            row.bytes_in = row.bytes_in.saturating_sub(before.bytes_in);
            row.bytes_out = row.bytes_out.saturating_sub(before.bytes_out);
        }
        row
    };
    now.iter().map(since).collect()
}

fn draw(screen: Option<&Screen>, frame: &str) -> io::Result<()> {
    let mut out = stdout().lock();
    match screen {
        None => writeln!(out, "{frame}")?,
        Some(screen) => {
            // From the top, over what was there: no flicker.
            let mut text = "\x1b[H".to_owned();
            for line in frame.lines().take(screen.rows()) {
                text += line;
                text += "\x1b[K\r\n";
            }
            text += "\x1b[J";
            out.write_all(text.as_bytes())?;
        }
    }
    out.flush()
}

/// The terminal, while it is ours; as it was before once this is dropped.
struct Screen {
    /// How keys were read before, where they come from a terminal too.
    before: Option<Termios>,
}

impl Screen {
    /// The alternate screen without a cursor or line breaks of its own, and keys as they are typed.
    fn open() -> Self {
        let before = stdin().is_terminal().then(|| termios::tcgetattr(stdin()).ok()).flatten();
        if let Some(before) = &before {
            let mut keys = before.clone();
            keys.local_modes -= LocalModes::ICANON | LocalModes::ECHO;
            let _ = termios::tcsetattr(stdin(), OptionalActions::Now, &keys);
        }
        let _ = stdout().write_all(b"\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[2J");
        let _ = stdout().flush();
        Self { before }
    }

    /// Lines that fit, without the last, where a line's end would scroll.
    fn rows(&self) -> usize {
        let rows = termios::tcgetwinsize(stdout()).map_or(0, |size| size.ws_row);
        // Some terminals do not say.
        usize::from(if rows == 0 { 24 } else { rows }).saturating_sub(1)
    }

    /// Tells of each `q`.
    fn keys(&self) -> Option<Receiver<()>> {
        self.before.as_ref()?;
        let (quit, keys) = channel(1);
        std::thread::spawn(move || {
            for key in stdin().lock().bytes().map_while(Result::ok) {
                if matches!(key, b'q' | b'Q') && quit.blocking_send(()).is_err() {
                    return;
                }
            }
        });
        Some(keys)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = stdout().write_all(b"\x1b[?7h\x1b[?25h\x1b[?1049l");
        let _ = stdout().flush();
        if let Some(before) = &self.before {
            let _ = termios::tcsetattr(stdin(), OptionalActions::Now, before);
        }
    }
}

/// Ends when `q` is typed; never, where there are no keys.
async fn quits(keys: &mut Option<Receiver<()>>) {
    if let Some(keys) = keys
        && keys.recv().await.is_some()
    {
        return;
    }
    std::future::pending().await
}

/// Signals that end the program: the terminal is put in order first.
struct Signals([Signal; 3]);

impl Signals {
    fn install() -> io::Result<Self> {
        let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
        let [interrupt, terminate, hang_up] = kinds.map(signal);
        Ok(Self([interrupt?, terminate?, hang_up?]))
    }

    async fn any(&mut self) {
        let Self([interrupt, terminate, hang_up]) = self;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hang_up.recv() => {}
        }
    }
}
