//! Files of unknown origin, read whole but no further than a bound: what is too large is refused by name before it takes memory.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// The text of a file.
///
/// # Errors
/// What the file system answers; `FileTooLarge` above `bytes_max`, `InvalidData` for what is not UTF-8.
pub fn read_to_string(path: &Path, bytes_max: u64) -> io::Result<String> {
    text(File::open(path)?, bytes_max)
}

/// The text that `input` holds.
///
/// # Errors
/// As [`read_to_string`].
pub fn text(input: impl Read, bytes_max: u64) -> io::Result<String> {
    let mut text = String::new();
    input.take(bytes_max + 1).read_to_string(&mut text)?;
    if text.len() as u64 <= bytes_max { Ok(text) } else { Err(too_large(bytes_max)) }
}

/// That there is more than `bytes_max`.
#[must_use]
pub fn too_large(bytes_max: u64) -> io::Error {
    let message = format!("it is longer than {} MiB, the most that is read", bytes_max >> 20);
    io::Error::new(io::ErrorKind::FileTooLarge, message)
}

/// Hands on what `R` holds up to a bound, and then fails: for readers that keep little of what they read.
#[derive(Debug)]
pub struct Bounded<R> {
    inner: R,
    left: u64,
    bytes_max: u64,
}

impl<R: Read> Bounded<R> {
    /// So many bytes of `inner`.
    pub const fn new(inner: R, bytes_max: u64) -> Self {
        Self { inner, left: bytes_max, bytes_max }
    }
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.left = self.left.checked_sub(read as u64).ok_or_else(|| too_large(self.bytes_max))?;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_longer_than_the_bound_is_refused_and_what_is_as_long_is_not() {
        assert_eq!(text(&b"1234"[..], 4).unwrap(), "1234");
        assert_eq!(text(&b"12345"[..], 4).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        assert_eq!(text(io::repeat(b'a'), 1 << 20).unwrap_err().to_string(), too_large(1 << 20).to_string());
        assert_eq!(io::read_to_string(Bounded::new(&b"1234"[..], 4)).unwrap(), "1234");
        let error = io::copy(&mut Bounded::new(io::repeat(b'a'), 1 << 20), &mut io::sink()).unwrap_err();
        assert!(error.to_string().contains("longer than 1 MiB"), "{error}");
        let error = read_to_string(Path::new("/dev/zero"), 1 << 20).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
    }
}
