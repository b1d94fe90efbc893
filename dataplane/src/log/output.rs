//! Standard error as the place of log lines: what cannot be written is lost and counted, and never ends the program.
//!
//! A terminal that was closed answers EIO, a pipe whose reader has gone EPIPE, a full disk ENOSPC, and a pipe that somebody
//! made non-blocking EAGAIN. Whoever ends because of that leaves routes and rules behind.

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Lines that could not be written since the start of the program.
static LINES_LOST: AtomicU64 = AtomicU64::new(0);
/// The last line that was lost had begun: the next one must not be glued to it.
static TORN: AtomicBool = AtomicBool::new(false);

/// How many log lines could not be written since the start of the program.
#[must_use]
pub fn lines_lost() -> u64 {
    // Nothing else is read by it: a figure for people.
    LINES_LOST.load(Ordering::Relaxed)
}

/// Writes whole lines to standard error, or loses them.
pub(super) fn standard_error() -> Lossy<io::Stderr> {
    Lossy { to: io::stderr(), lost: &LINES_LOST, torn: &TORN }
}

/// A writer whose errors are counted in place of being reported.
pub(super) struct Lossy<W> {
    to: W,
    lost: &'static AtomicU64,
    torn: &'static AtomicBool,
}

impl<W: Write> Lossy<W> {
    /// Writes all of `line`; how much could not be written is in the error.
    fn try_line(&mut self, line: &[u8]) -> Result<(), usize> {
        let mut rest = line;
        while !rest.is_empty() {
            match self.to.write(rest) {
                Ok(0) => return Err(rest.len()),
                Ok(written) => rest = &rest[written..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Err(rest.len()),
            }
        }
        Ok(())
    }
}

impl<W: Write> Write for Lossy<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.write_all(line)?;
        Ok(line.len())
    }

    /// Takes one line. Two threads that write at the same time may both end a torn line, which costs an empty one.
    fn write_all(&mut self, line: &[u8]) -> io::Result<()> {
        if self.torn.load(Ordering::Relaxed) && self.try_line(b"\n").is_ok() {
            self.torn.store(false, Ordering::Relaxed);
        }
        if let Err(rest) = self.try_line(line) {
            self.lost.fetch_add(1, Ordering::Relaxed);
            if rest < line.len() {
                self.torn.store(true, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        // Standard error has no buffer to empty.
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes `room` bytes, and then nothing until there is more room.
    #[derive(Default)]
    struct Disk {
        text: Vec<u8>,
        room: usize,
    }

    impl Write for &mut Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.room == 0 {
                return Err(io::Error::from(io::ErrorKind::StorageFull));
            }
            let taken = bytes.len().min(self.room);
            self.text.extend_from_slice(&bytes[..taken]);
            self.room -= taken;
            Ok(taken)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_full_disk_loses_lines_and_counts_them_and_tears_no_later_one() {
        static LOST: AtomicU64 = AtomicU64::new(0);
        static TORN: AtomicBool = AtomicBool::new(false);
        let mut disk = Disk { room: 9, ..Disk::default() };
        let say = |disk: &mut Disk, line: &str| {
            let mut log = Lossy { to: disk, lost: &LOST, torn: &TORN };
            log.write_all(line.as_bytes()).expect("never an error");
            log.flush().expect("never an error");
        };
        say(&mut disk, "first\n");
        say(&mut disk, "second\n");
        say(&mut disk, "third\n");
        assert_eq!(LOST.load(Ordering::Relaxed), 2);
        disk.room = 100;
        say(&mut disk, "fourth\n");
        say(&mut disk, "fifth\n");
        assert_eq!(String::from_utf8_lossy(&disk.text), "first\nsec\nfourth\nfifth\n");
        assert_eq!(LOST.load(Ordering::Relaxed), 2);
    }
}
