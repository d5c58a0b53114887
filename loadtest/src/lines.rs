//! Lines of a pipe that is read only when it has something.

use std::io;
use std::os::fd::AsFd;

/// What has been read and not yet taken.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    bytes: Vec<u8>,
}

impl Lines {
    /// Reads what there is; `false` at the end of the pipe.
    pub(crate) fn read(&mut self, pipe: impl AsFd) -> io::Result<bool> {
        let mut some = [0; 4096];
        let length = match rustix::io::read(&pipe, &mut some) {
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => return Ok(true),
            read => read?,
        };
        self.bytes.extend_from_slice(some.get(..length).unwrap_or_default());
        Ok(length > 0)
    }

    /// Takes the next whole line, without its end.
    pub(crate) fn next(&mut self) -> Option<String> {
        let end = self.bytes.iter().position(|byte| *byte == b'\n')?;
        let line = self.bytes.drain(..=end).collect::<Vec<_>>();
        Some(String::from_utf8_lossy(&line).trim_end().to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::Lines;

    #[test]
    fn lines_come_whole_and_in_order() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let mut lines = Lines::default();
        rustix::io::write(&writer, b"one\ntw").unwrap();
        assert!(lines.read(&reader).unwrap());
        assert_eq!(lines.next().as_deref(), Some("one"));
        assert_eq!(lines.next(), None);
        rustix::io::write(&writer, b"o\n").unwrap();
        drop(writer);
        assert!(lines.read(&reader).unwrap());
        assert_eq!(lines.next().as_deref(), Some("two"));
        assert!(!lines.read(&reader).unwrap());
    }
}
