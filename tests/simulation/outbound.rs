//! What one peer is due, and whether that is what the kernel was given for it.

use crate::check;
use crate::model::{BACKLOG, Closing, FRAME_OVERHEAD, Link, NORMAL, Reason, Seen};
use crate::wire::{self, Payload};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

/// Length of a conn_id as this relay makes it.
const CONN_ID_BYTES: usize = 32;
/// More pongs than these may be waiting only in part (RFC 6455, section 5.5.3).
const CONTROL_BYTES: usize = 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Notice(pub u16);

#[derive(Debug, Clone)]
enum What {
    Frame(Payload),
    Notice(u16),
}

#[derive(Debug, Clone)]
struct Due {
    what: What,
    charge: usize,
    call: u64,
    /// Memory ran short when it was queued: it may be lost.
    maybe: bool,
}

#[derive(Debug, Clone, Default)]
pub struct Out {
    /// Status, what the body may be where that is known, and whether HEAD was asked.
    pub http: VecDeque<(u16, Vec<String>, bool)>,
    switched: bool,
    /// Taken by the kernel, but not a whole answer or frame yet.
    partial: Vec<u8>,
    /// In order of each phone: frames of or to it, and the notice of its end.
    texts: BTreeMap<Link, VecDeque<Due>>,
    text_charge: usize,
    maybes: usize,
    pub pings: usize,
    pongs: VecDeque<Payload>,
    /// So many pongs waited that older ones may be left out.
    lossy_pongs: bool,
    /// The close frame that is due: one of these.
    pub closes: Vec<Reason>,
    pub got_close: bool,
    /// Phones whose notice has come.
    noticed: Vec<Link>,
}

impl Out {
    fn push(&mut self, phone: Link, what: What, payload_bytes: usize, call: u64) {
        let charge = payload_bytes + FRAME_OVERHEAD;
        self.text_charge += charge;
        self.texts.entry(phone).or_default().push_back(Due { what, charge, call, maybe: false });
    }

    /// A frame to the phone itself.
    pub fn push_frame(&mut self, phone: Link, frame: Payload, call: u64) {
        let bytes = frame.len();
        self.push(phone, What::Frame(frame), bytes, call);
    }

    /// A frame of a phone, to its binary.
    pub fn push_wrapped(&mut self, phone: Link, frame: Payload, call: u64) {
        let bytes = r#"{"conn_id":"","frame":}"#.len() + CONN_ID_BYTES + frame.len();
        self.push(phone, What::Frame(frame), bytes, call);
    }

    pub fn push_notice(&mut self, phone: Link, notice: Notice, call: u64) {
        let digits = notice.0.to_string().len();
        let bytes = r#"{"conn_id":"","close_code":}"#.len() + CONN_ID_BYTES + digits;
        self.push(phone, What::Notice(notice.0), bytes, call);
    }

    pub fn push_pong(&mut self, payload: Payload) {
        self.pongs.push_back(payload);
        let waiting: usize = self.pongs.iter().map(|pong| pong.len() + 2).sum();
        self.lossy_pongs |= waiting + 6 * self.pings > CONTROL_BYTES;
    }

    /// Memory has run short: what was queued in this call may be lost.
    pub fn doubt(&mut self, call: u64) {
        for due in self.texts.values_mut().flatten().filter(|due| due.call == call && !due.maybe) {
            due.maybe = true;
            self.maybes += 1;
        }
    }

    fn control_charge(&self) -> usize {
        let pongs: usize = self.pongs.iter().map(|pong| pong.len() + FRAME_OVERHEAD).sum();
        pongs + self.pings * (4 + FRAME_OVERHEAD)
    }

    /// What is queued, by the rules of chapter 5.
    pub fn charge(&self) -> usize {
        let http = match self.http.back() {
            Some((101, ..)) => {
                wire::SWITCHING.len() - self.partial.len().min(wire::SWITCHING.len())
            }
            _ => 0,
        };
        self.text_charge + self.control_charge() + http
    }

    /// Compares with what the relay says it has queued for an open connection.
    ///
    /// # Errors
    /// What does not fit.
    pub fn compare(&self, tight: bool, outbox_bytes: usize) -> Result<(), String> {
        let all_http_known = match self.http.len() {
            0 => true,
            1 => self.http.front().is_some_and(|(status, ..)| *status == 101),
            _ => false,
        };
        let all = self.charge();
        let is_exact = all_http_known && !tight && !self.lossy_pongs && self.maybes == 0;
        let least = match self.maybes {
            _ if is_exact => all,
            0 => self.text_charge,
            _ => self.texts.values().flatten().filter(|due| !due.maybe).map(|due| due.charge).sum(),
        };
        let most = if all_http_known { all } else { usize::MAX };
        if (least..=most).contains(&outbox_bytes) {
            return Ok(());
        }
        Err(format!("{outbox_bytes} B are charged, due are {least} to {most} B: {self:?}"))
    }

    /// Bytes that the kernel took.
    pub fn taken(
        &mut self,
        link: Link,
        bytes: &[u8],
        tight: bool,
        binary: bool,
        closing: &Closing,
        names: &mut BTreeMap<Rc<str>, Link>,
    ) -> Vec<Seen> {
        let mut seen = Vec::new();
        self.partial.extend_from_slice(bytes);
        let stream = std::mem::take(&mut self.partial);
        let mut rest = &stream[..];
        while !rest.is_empty() {
            let used = if self.switched {
                self.take_frame(link, rest, tight, binary, closing, names, &mut seen)
            } else {
                self.take_answer(link, rest, &mut seen)
            };
            if used == 0 {
                break;
            }
            rest = &rest[used..];
        }
        self.partial = rest.to_vec();
        seen
    }

    fn take_answer(&mut self, link: Link, bytes: &[u8], seen: &mut Vec<Seen>) -> usize {
        let Some((want, bodies, head_only)) = self.http.front() else {
            check!(false, "answers", "link {link} is given an answer to nothing");
            return 0;
        };
        let Some((end, status, length)) = wire::take_head(bytes) else { return 0 };
        let length = if *head_only { 0 } else { length };
        let Some(got) = bytes.get(end..end + length) else { return 0 };
        check!(status == *want, "answers", "link {link} is told {status}, due is {want}");
        if !bodies.is_empty() && !head_only {
            let got = String::from_utf8_lossy(got);
            let is_due = bodies.iter().any(|body| *body == got);
            check!(is_due, "health", "link {link} is told {got}, due is one of {bodies:?}");
        }
        if status == 101 {
            check!(
                bytes[..end] == *wire::SWITCHING.as_bytes(),
                "answers",
                "link {link}: no true 101"
            );
            self.switched = true;
            seen.push(Seen::Switched);
        }
        self.http.pop_front();
        end + length
    }

    #[expect(clippy::too_many_arguments, reason = "all of one frame's circumstances")]
    fn take_frame(
        &mut self,
        link: Link,
        bytes: &[u8],
        tight: bool,
        binary: bool,
        closing: &Closing,
        names: &mut BTreeMap<Rc<str>, Link>,
        seen: &mut Vec<Seen>,
    ) -> usize {
        let (opcode, header, length) = match wire::take_frame(bytes) {
            Ok(Some(frame)) => frame,
            Ok(None) => return 0,
            Err(error) => panic!("[framing] link {link}: {error}"),
        };
        check!(!self.got_close, "one close", "link {link}: opcode {opcode} follows the close");
        let payload = &bytes[header..header + length];
        match opcode {
            wire::TEXT if binary => seen.extend(self.take_envelope(link, payload, tight, names)),
            wire::TEXT => {
                self.expect(link, link, &What::Frame(payload.into()), tight);
            }
            wire::PING => {
                check!(self.pings > 0, "ping", "link {link} is pinged, and no ping was due");
                self.pings -= 1;
                seen.push(Seen::Ping(payload.into()));
            }
            wire::PONG => self.take_pong(link, payload, tight),
            wire::CLOSE => {
                let code = payload.first_chunk::<2>().map(|code| u16::from_be_bytes(*code));
                let reason = payload.get(2..).unwrap_or_default();
                self.take_close(link, code, reason, tight, binary, closing);
                seen.push(Seen::Closed(code));
            }
            _ => check!(false, "framing", "link {link}: opcode {opcode}"),
        }
        header + length
    }

    fn take_pong(&mut self, link: Link, payload: &[u8], tight: bool) {
        while let Some(due) = self.pongs.pop_front() {
            if *due == *payload {
                if self.pongs.is_empty() {
                    self.lossy_pongs = false;
                }
                return;
            }
            let lossy = self.lossy_pongs || tight;
            check!(lossy, "pong", "link {link}: a pong of {payload:?}, due is {due:?}");
        }
        check!(false, "pong", "link {link}: a pong that answers nothing: {payload:?}");
    }

    fn take_close(
        &mut self,
        link: Link,
        code: Option<u16>,
        reason: &[u8],
        tight: bool,
        binary: bool,
        closing: &Closing,
    ) {
        self.got_close = true;
        let got = (code.unwrap_or(0), std::str::from_utf8(reason).unwrap_or("no UTF-8"));
        // A phone may have been the one that paid for the shortage of memory.
        let paid = tight && !binary && (got == BACKLOG || got == NORMAL);
        let right = self.closes.contains(&got) || paid;
        check!(right, "close code", "link {link} is closed {got:?}, due is {:?}", self.closes);
        let complete = !closing.in_turn || tight || self.texts.values().all(VecDeque::is_empty);
        check!(complete, "lost", "link {link} is closed before its frames: {:?}", self.texts);
    }

    fn take_envelope(
        &mut self,
        link: Link,
        payload: &[u8],
        tight: bool,
        names: &mut BTreeMap<Rc<str>, Link>,
    ) -> Option<Seen> {
        let text = std::str::from_utf8(payload).unwrap_or("");
        let parts = text.strip_prefix(r#"{"conn_id":""#).and_then(|rest| rest.split_once('"'));
        let (name, rest) = match parts {
            Some((name, rest)) if !name.is_empty() => (Rc::<str>::from(name), rest),
            _ => panic!("[envelope] link {link} is sent {text}"),
        };
        let body = rest.strip_suffix('}').unwrap_or("");
        let what = if let Some(frame) = body.strip_prefix(r#","frame":"#) {
            What::Frame(frame.as_bytes().into())
        } else if let Some(code) = body.strip_prefix(r#","close_code":"#) {
            What::Notice(code.parse().unwrap_or(0))
        } else {
            panic!("[envelope] link {link} is sent {text}")
        };
        match names.get(&name) {
            Some(phone) => self.expect(link, *phone, &what, tight),
            None => {
                let unnamed = |phone: &Link| !names.values().any(|named| named == phone);
                let candidate = |tight: bool| {
                    self.texts.iter().find_map(|(phone, texts)| {
                        let fits = |due: &&Due| is(&due.what, &what, tight);
                        let next = texts.iter().find(|due| !due.maybe || fits(due));
                        (next.as_ref().is_some_and(fits) && unnamed(phone)).then_some(*phone)
                    })
                };
                let phone = candidate(false).or_else(|| candidate(tight));
                match phone {
                    Some(phone) => {
                        names.insert(name.clone(), phone);
                        self.expect(link, phone, &what, tight);
                    }
                    None => check!(false, "routing", "link {link} is sent {text} of nobody"),
                }
            }
        }
        Some(Seen::ConnId(name))
    }

    /// The next text of this phone's is `what`.
    fn expect(&mut self, link: Link, phone: Link, what: &What, tight: bool) {
        let texts = self.texts.entry(phone).or_default();
        loop {
            let Some(due) = texts.pop_front() else {
                // In a shortage, a phone may have been closed before its binary asked for it.
                let paid = tight && matches!(what, What::Notice(1001));
                check!(paid, "order", "link {link}: {} of {phone} is not due", show(what));
                break;
            };
            self.text_charge -= due.charge;
            self.maybes -= usize::from(due.maybe);
            if is(&due.what, what, tight) {
                break;
            }
            check!(
                due.maybe,
                "order",
                "link {link}: {} of {phone}, due is {}",
                show(what),
                show(&due.what)
            );
        }
        if texts.is_empty() {
            self.texts.remove(&phone);
        }
        if matches!(what, What::Notice(_)) {
            check!(!self.noticed.contains(&phone), "notice", "link {link}: {phone} is gone twice");
            self.noticed.push(phone);
        } else {
            let gone = self.noticed.contains(&phone);
            check!(!gone, "notice", "link {link}: a frame of {phone}, which is gone");
        }
    }
}

fn is(due: &What, got: &What, tight: bool) -> bool {
    match (due, got) {
        (What::Frame(due), What::Frame(got)) => due == got,
        (What::Notice(due), What::Notice(got)) => due == got || (tight && *got == 1001),
        _ => false,
    }
}

fn show(what: &What) -> String {
    match what {
        What::Frame(frame) => {
            let text = String::from_utf8_lossy(frame);
            format!("frame {}", text.chars().take(60).collect::<String>())
        }
        What::Notice(code) => format!("notice {code}"),
    }
}
