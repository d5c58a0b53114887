//! Lines on their way to stderr. Whoever logs never waits for it: a thread of its own writes, and
//! what it cannot write in time is dropped and counted.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;
use tracing::Level;

/// What may wait for stderr, in bytes. As much is being written meanwhile.
const MAX_WAITING_BYTES: usize = 512 * 1024;
/// The last part of that is for errors alone, and as much before it for warnings and errors, so
/// that a crowd of lesser lines leaves them a place while stderr is stuck.
const RESERVE_BYTES: usize = MAX_WAITING_BYTES / 8;
/// How much is written at a time.
const WRITE_BYTES: usize = 64 * 1024;

/// What waits, and a thread that writes it.
#[derive(Debug, Default)]
pub(super) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    dropped: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    waiting: Vec<u8>,
    /// The thread has taken what waited and is not done with it.
    is_writing: bool,
}

impl Queue {
    /// A queue to stderr. Where no thread can be started, lines count as dropped once it is full.
    pub(super) fn to_stderr() -> Arc<Self> {
        let queue = Arc::new(Self::default());
        let for_thread = queue.clone();
        let _ = thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || for_thread.write_all(&mut io::stderr()));
        queue
    }

    /// Takes a line with its end, or drops it.
    pub(super) fn push(&self, level: Level, line: &[u8]) {
        let mut state = self.state();
        let len = state.waiting.len() + line.len();
        if len > limit_of(level) {
            drop(state);
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let was_empty = state.waiting.is_empty();
        if len > state.waiting.capacity() {
            // Doubles, but never beyond what may wait.
            let capacity = (2 * state.waiting.capacity()).max(len).min(MAX_WAITING_BYTES);
            let more = capacity - state.waiting.len();
            state.waiting.reserve_exact(more);
        }
        state.waiting.extend_from_slice(line);
        drop(state);
        if was_empty {
            self.changed.notify_all();
        }
    }

    /// How many lines were dropped since the start.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Waits until everything is written, or until it has taken too long.
    pub(super) fn flush(&self, patience: Duration) {
        let pending = |state: &mut State| state.is_writing || !state.waiting.is_empty();
        let _ = self.changed.wait_timeout_while(self.state(), patience, pending);
    }

    /// Writes until the process ends. What `output` refuses is lost: there is nowhere to report it.
    fn write_all(&self, output: &mut impl io::Write) {
        let mut lines = Vec::new();
        loop {
            self.take(&mut lines);
            for part in lines.chunks(WRITE_BYTES) {
                let _ = output.write_all(part);
            }
            lines.clear();
            // What a crowd of lines has taken is not kept for the next.
            lines.shrink_to(WRITE_BYTES);
        }
    }

    /// Waits for lines, and takes all that there are in exchange for an empty buffer.
    fn take(&self, lines: &mut Vec<u8>) {
        let mut state = self.state();
        state.is_writing = false;
        if state.waiting.is_empty() {
            self.changed.notify_all();
        }
        let idle = |state: &mut State| state.waiting.is_empty();
        let mut state =
            self.changed.wait_while(state, idle).unwrap_or_else(PoisonError::into_inner);
        std::mem::swap(&mut state.waiting, lines);
        state.is_writing = true;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How many bytes may wait once a line of this level has joined them.
fn limit_of(level: Level) -> usize {
    match level {
        Level::ERROR => MAX_WAITING_BYTES,
        Level::WARN => MAX_WAITING_BYTES - RESERVE_BYTES,
        _ => MAX_WAITING_BYTES - 2 * RESERVE_BYTES,
    }
}

#[cfg(test)]
impl Queue {
    /// All that waits; nothing writes it.
    pub(super) fn waiting(&self) -> String {
        String::from_utf8(self.state().waiting.clone()).unwrap()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, Sender, channel};

    /// An output that is stuck until it is told to go on.
    struct Stuck(Receiver<()>, Sender<Vec<u8>>);

    impl io::Write for Stuck {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.0.recv();
            let _ = self.1.send(bytes.to_vec());
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_full_queue_drops_counts_and_keeps_a_place_for_what_is_severe() {
        let queue = Queue::default();
        let line = [b'x'; 1000];
        let fill = |level| {
            let before = queue.state().waiting.len();
            for _ in 0..10_000 {
                queue.push(level, &line);
            }
            (queue.state().waiting.len() - before) / line.len()
        };
        let [infos, warnings, errors] = [Level::INFO, Level::WARN, Level::ERROR].map(fill);
        assert_eq!(infos, (MAX_WAITING_BYTES - 2 * RESERVE_BYTES) / line.len());
        assert!(warnings >= 64 && errors >= 64, "{warnings} {errors}");
        assert_eq!(queue.dropped() as usize, 30_000 - infos - warnings - errors);
        assert!(queue.state().waiting.capacity() <= MAX_WAITING_BYTES);
        queue.flush(Duration::from_millis(1));
    }

    #[test]
    fn lines_are_written_in_order_once_the_output_takes_them() {
        let (go_on, stuck) = channel();
        let (written, output) = channel();
        let queue = Arc::new(Queue::default());
        let for_thread = queue.clone();
        thread::spawn(move || for_thread.write_all(&mut Stuck(stuck, written)));
        let lines: Vec<String> = (0..20_000).map(|number| format!("{number}\n")).collect();
        for line in &lines {
            queue.push(Level::INFO, line.as_bytes());
        }
        queue.flush(Duration::from_millis(1));
        drop(go_on);
        queue.flush(Duration::from_secs(60));
        let all: Vec<u8> = output.try_iter().flatten().collect();
        assert_eq!(String::from_utf8(all).unwrap(), lines.concat());
        assert_eq!(queue.dropped(), 0);
    }
}
