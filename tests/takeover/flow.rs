//! A binary and a phone that send as fast as they are answered, and check every message.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use crate::common::{
    CLOSE, Door, Frame, PING, PONG, Raw, Request, Stream, TEXT, close_frame, masked, open_envelope,
    soon,
};

/// Messages of a phone that are not answered yet.
const WINDOW: usize = 32;

/// A phone that sends numbered messages, which its binary sends back.
pub(crate) struct Flow {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    phone: JoinHandle<u64>,
    binary: JoinHandle<()>,
}

impl Flow {
    /// Dials through `door` as both ends of `id`.
    pub(crate) async fn start(door: &Door, id: &str) -> Self {
        let binary = Raw::through(door).await.upgrade(Request::server(id)).await;
        let phone = Raw::through(door).await.upgrade(Request::client(id)).await;
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let binary = tokio::spawn(send_back(binary));
        let phone = tokio::spawn(ask(phone, stop.clone(), answered.clone()));
        Self { stop, answered, phone, binary }
    }

    /// Messages that have come back.
    pub(crate) fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// Ends orderly, with every message answered.
    pub(crate) async fn finish(self) {
        self.stop.store(true, Ordering::Relaxed);
        let sent = soon("the phone's end", self.phone).await.expect("the phone is content");
        assert_eq!(self.answered.load(Ordering::Relaxed), sent);
        soon("the binary's end", self.binary).await.expect("the binary is content");
    }
}

/// The message of this number: mostly small, sometimes larger than all buffers on its way.
fn message(number: u64) -> String {
    let length = match number % 50 {
        7 => 200 * 1024,
        n if n % 10 == 3 => 5000 + (number % 3000) as usize,
        n => 20 + n as usize,
    };
    let letter = char::from(b'a' + (number % 26) as u8);
    format!("\"{number}-{}\"", letter.to_string().repeat(length))
}

async fn ask(phone: Raw, stop: Arc<AtomicBool>, answered: Arc<AtomicU64>) -> u64 {
    let (mut reader, mut writer) = phone.into_halves();
    let window = Arc::new(Semaphore::new(WINDOW));
    let permits = window.clone();
    let asks = tokio::spawn(async move {
        let mut number = 0;
        while !stop.load(Ordering::Relaxed) {
            window.acquire().await.unwrap().forget();
            writer.write_all(&masked(TEXT, message(number))).await.expect("the relay takes it");
            writer.flush().await.unwrap();
            number += 1;
        }
        // All is answered.
        let _ = window.acquire_many(WINDOW as u32).await.unwrap();
        writer.write_all(&close_frame(1000, "")).await.unwrap();
        writer.flush().await.unwrap();
        number
    });
    let mut frames = Frames::default();
    let mut next = 0;
    loop {
        let frame = frames.next(&mut reader).await;
        match frame.opcode {
            TEXT => {
                assert_eq!(frame.text(), message(next), "message {next}");
                next += 1;
                answered.store(next, Ordering::Relaxed);
                permits.add_permits(1);
            }
            PING => {}
            CLOSE => break assert_eq!(frame.close().0, 1000),
            other => panic!("opcode {other}"),
        }
    }
    asks.await.unwrap()
}

#[derive(Default)]
struct Frames(Vec<u8>);

impl Frames {
    async fn next(&mut self, reader: &mut ReadHalf<Stream>) -> Frame {
        loop {
            if let Some(frame) = Frame::take(&mut self.0) {
                return frame;
            }
            let read = soon("a frame", reader.read_buf(&mut self.0)).await.expect("no reset");
            assert!(read > 0, "the connection has ended");
        }
    }
}

/// A binary that sends back what its one phone sends, until that has closed.
async fn send_back(mut binary: Raw) {
    loop {
        let frame = binary.frame().await;
        match frame.opcode {
            PING => binary.send(masked(PONG, &frame.payload)).await,
            TEXT if frame.text().contains("close_code") => break,
            TEXT => {
                open_envelope(frame.text());
                binary.send(masked(TEXT, frame.text())).await;
            }
            other => panic!("opcode {other}"),
        }
    }
    binary.close(1000).await;
}
