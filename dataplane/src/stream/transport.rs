//! The bytes of one connection, plain or under TLS: non-blocking reads and gathered writes.

use std::io::{self, IoSlice, Read as _, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, recv, sendmsg};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, Connection, ServerConfig, ServerConnection};

use super::queue::OutputQueue;

/// Bytes read from one connection in its turn, so that none keeps the others waiting.
pub const TURN_BYTES: usize = 32 * 1024;
/// Room for what a turn can come to: TLS may have kept all but the last byte of a record (RFC 8446 section 5.2) from
/// earlier turns, and what is deciphered is never longer than what was ciphered.
pub const PLAIN_BYTES: usize = TURN_BYTES + 20 * 1024;
/// Messages are given to TLS until they come to so many bytes, and then once the socket has taken them all: what is in
/// there cannot be dropped any more.
const TLS_BYTES: usize = 64 * 1024;

/// Why a connection cannot be read any more.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Broken {
    /// The other side has closed it.
    #[error("it was closed")]
    Closed,
    /// The other side refused or reset it, or the network gave up on it.
    #[error("{0}")]
    Failed(io::ErrorKind),
    /// TLS failed: another protocol, a certificate that is not trusted, a broken record.
    #[error("TLS: {0}")]
    Tls(rustls::Error),
}

/// One connection's socket and what is between it and the messages.
#[derive(Debug)]
pub struct Transport {
    fd: OwnedFd,
    tls: Option<Box<Connection>>,
    /// The other side has said that it writes nothing more.
    is_over: bool,
}

/// Writes to a socket without waiting and without SIGPIPE.
struct Wire<'a>(BorrowedFd<'a>);

impl Write for Wire<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let sent =
            rustix::io::retry_on_intr(|| sendmsg(self.0, slices, &mut SendAncillaryBuffer::default(), flags));
        Ok(sent?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Transport {
    /// A non-blocking connection without TLS.
    #[must_use]
    pub fn plain(fd: OwnedFd) -> Self {
        Self { fd, tls: None, is_over: false }
    }

    /// An accepted, non-blocking connection under TLS.
    ///
    /// # Errors
    /// When the configuration cannot be used.
    pub fn server(fd: OwnedFd, config: &Arc<ServerConfig>) -> Result<Self, rustls::Error> {
        Ok(Self::under(fd, ServerConnection::new(config.clone())?.into()))
    }

    /// A non-blocking connection, established or on its way, to a server of this name, under TLS.
    ///
    /// # Errors
    /// When the configuration cannot be used.
    pub fn client(
        fd: OwnedFd,
        config: &Arc<ClientConfig>,
        name: ServerName<'static>,
    ) -> Result<Self, rustls::Error> {
        Ok(Self::under(fd, ClientConnection::new(config.clone(), name)?.into()))
    }

    fn under(fd: OwnedFd, mut tls: Connection) -> Self {
        // It gets TLS_BYTES and a message at most, so that it need not cut one.
        tls.set_buffer_limit(None);
        Self { fd, tls: Some(Box::new(tls)), is_over: false }
    }

    /// Its descriptor.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Whether TLS is still negotiating.
    #[must_use]
    pub fn is_handshaking(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.is_handshaking())
    }

    /// Whether TLS has something of its own to write.
    #[must_use]
    pub fn wants_write(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.wants_write())
    }

    /// Whether the other side has ended TLS. What it wrote before has been read.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.is_over
    }

    /// Reads what is there, at most `bytes_max` of [`TURN_BYTES`], into `plain`, which has room for [`PLAIN_BYTES`]; with TLS
    /// by way of `wire`, which has room for [`TURN_BYTES`]. Zero: nothing is there, or nothing that messages are made of.
    ///
    /// # Errors
    /// Why the connection is over.
    pub fn read(&mut self, plain: &mut [u8], wire: &mut [u8], bytes_max: usize) -> Result<usize, Broken> {
        let target = if self.tls.is_some() { &mut wire[..bytes_max] } else { &mut plain[..bytes_max] };
        let read = rustix::io::retry_on_intr(|| recv(&self.fd, &mut *target, RecvFlags::DONTWAIT));
        let len = match read.map_err(io::Error::from) {
            Ok((0, _)) => return Err(Broken::Closed),
            Ok((len, _)) => len,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(0),
            Err(error) => return Err(Broken::Failed(error.kind())),
        };
        let Some(tls) = &mut self.tls else { return Ok(len) };
        let deciphered = decipher(tls, &wire[..len], plain).inspect_err(|_| {
            // An alert says why. Nobody is left to tell when it cannot be written.
            let _ = drain(tls, &mut Wire(self.fd.as_fd()));
        })?;
        self.is_over |= deciphered.is_over;
        Ok(deciphered.len)
    }

    /// Writes from the queue, once TLS is there, and what TLS has waiting, as much as goes in one write without waiting. What TLS has taken
    /// counts as written. The answer is how many messages ended in it.
    ///
    /// # Errors
    /// `WouldBlock` when nothing could be written and the socket has to become writable first, or what sendmsg(2) answers.
    pub fn write(&mut self, queue: &mut OutputQueue) -> io::Result<u64> {
        let mut wire = Wire(self.fd.as_fd());
        let Some(tls) = &mut self.tls else {
            let written = wire.write_vectored(&queue.slices().map(IoSlice::new))?;
            return Ok(queue.advance(written));
        };
        drain(tls, &mut wire)?;
        // What is given to it before is kept without bound.
        if tls.is_handshaking() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let finished = encipher(tls, queue)?;
        match drain(tls, &mut wire) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            Err(_) | Ok(()) => Ok(finished),
        }
    }

    /// Says goodbye, if that can be done at once.
    pub fn say_goodbye(&mut self) {
        if let Some(tls) = &mut self.tls {
            tls.send_close_notify();
            // A client that does not get it sees the end of the stream instead.
            let _ = drain(tls, &mut Wire(self.fd.as_fd()));
        }
    }
}

/// Gives messages to TLS, each as a record of its own: there are clients that take what one record holds for one message
/// (Debian's turnutils_uclient does). What does not fit into one record becomes several.
fn encipher(tls: &mut Connection, queue: &mut OutputQueue) -> io::Result<u64> {
    let (mut finished, mut taken) = (0, 0);
    while !queue.is_empty() && taken < TLS_BYTES {
        let written = match queue.first() {
            [message, []] => tls.writer().write(message)?,
            parts => tls.writer().write_vectored(&parts.map(IoSlice::new))?,
        };
        taken += written;
        finished += queue.advance(written);
    }
    Ok(finished)
}

/// Writes what TLS has waiting.
fn drain(tls: &mut Connection, wire: &mut Wire<'_>) -> io::Result<()> {
    while tls.wants_write() {
        tls.write_tls(wire)?;
    }
    Ok(())
}

/// Of memory, which is all that is read here.
fn broken_read(error: io::Error) -> Broken {
    Broken::Tls(rustls::Error::General(error.to_string()))
}

/// What came out of TLS.
struct Deciphered {
    len: usize,
    is_over: bool,
}

/// Runs bytes from the wire through TLS.
fn decipher(tls: &mut Connection, mut wire: &[u8], plain: &mut [u8]) -> Result<Deciphered, Broken> {
    let mut len = 0;
    while !wire.is_empty() {
        // It takes a few KiB at a time, and nothing after the other side's goodbye.
        if tls.read_tls(&mut wire).map_err(broken_read)? == 0 {
            return Ok(Deciphered { len, is_over: true });
        }
        tls.process_new_packets().map_err(Broken::Tls)?;
        loop {
            assert!(len < plain.len(), "nothing is longer deciphered than ciphered");
            match tls.reader().read(&mut plain[len..]) {
                Ok(0) => return Ok(Deciphered { len, is_over: true }),
                Ok(more) => len += more,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(broken_read(error)),
            }
        }
    }
    Ok(Deciphered { len, is_over: false })
}
