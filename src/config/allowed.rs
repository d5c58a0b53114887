//! Which server-ids are served, where not all of them are: a file with one a line.

use super::Exit;
use std::collections::HashSet;
use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

/// The longest file that is read.
const MAX_FILE_BYTES: u64 = 64 * 1024 * 1024;
/// The longest server-id (PROTOCOL.md, chapter 3).
const MAX_ID_BYTES: usize = 256;
/// Of SHA-256.
const DIGEST_BYTES: usize = 32;

type Digest = [u8; DIGEST_BYTES];

/// Server-ids that are served. A line of the file is an id, or the SHA-256 of one in hexadecimal, for
/// who keeps the list but is not to know the ids.
#[derive(Clone, PartialEq, Eq)]
pub struct AllowedIds {
    path: PathBuf,
    ids: HashSet<Box<str>>,
    digests: HashSet<Digest>,
    lines: usize,
}

impl fmt::Debug for AllowedIds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AllowedIds({}, {} lines)", self.path.display(), self.lines)
    }
}

impl AllowedIds {
    /// Reads the file at `path`. Empty lines are skipped, and those that begin with `# `.
    pub(super) fn read(path: &Path) -> Result<Self, Exit> {
        let refusal =
            |why: String| Exit::refusal(&format!("--allow-server-ids: {} {why}", path.display()));
        let mut bytes = Vec::new();
        let read =
            File::open(path).and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes));
        read.map_err(|error| refusal(format!("cannot be read: {error}")))?;
        if bytes.len() as u64 > MAX_FILE_BYTES {
            return Err(refusal("is longer than 64 MiB".to_owned()));
        }
        let text = String::from_utf8(bytes)
            .map_err(|_| refusal("is not UTF-8; save it as UTF-8".to_owned()))?;
        let mut allowed =
            Self { path: path.to_owned(), ids: HashSet::new(), digests: HashSet::new(), lines: 0 };
        for (number, line) in (1..).zip(text.trim_start_matches('\u{feff}').lines()) {
            allowed.take(line.trim()).map_err(|why| refusal(format!("line {number}: {why}")))?;
        }
        Ok(allowed)
    }

    fn take(&mut self, line: &str) -> Result<(), String> {
        if line.is_empty() || line == "#" || line.starts_with("# ") {
            return Ok(());
        }
        if line.len() > MAX_ID_BYTES {
            return Err(format!("a server-id has at most {MAX_ID_BYTES} bytes"));
        }
        self.lines += 1;
        // Some id may look like that.
        self.digests.extend(digest(line));
        self.ids.insert(line.into());
        Ok(())
    }

    /// Whether this server-id is served.
    #[must_use]
    pub fn allows(&self, id: &str) -> bool {
        self.ids.contains(id)
            || (!self.digests.is_empty() && {
                let computed = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, id.as_bytes());
                self.digests.contains(computed.as_ref())
            })
    }

    /// Where it was read from.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.lines
    }
}

/// 64 hexadecimal digits, in either case.
fn digest(line: &str) -> Option<Digest> {
    if line.len() != 2 * DIGEST_BYTES || !line.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let mut digest = [0; DIGEST_BYTES];
    for (byte, pair) in digest.iter_mut().zip(line.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(digest)
}
