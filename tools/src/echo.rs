//! The far end of `run tcp`: sends back what each connection brings, in order, holding no more than one buffer of it.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use rustix::event::epoll::EventFlags;
use serde::Serialize;

use crate::epoll::Watch;
use crate::run::Problem;

/// Bytes of one connection that are here at once.
const BUFFER: usize = 64 << 10;
/// Connections at once; more are closed.
const CONNECTIONS_MAX: usize = 16_384;
/// Longest wait without looking at the request to stop, in nanoseconds.
const WAIT_NS: u64 = 5_000_000;

/// What an echo server did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct EchoCounts {
    /// Connections taken.
    pub connections: u64,
    /// Connections closed at once because there were too many.
    pub refused: u64,
    /// Bytes sent back.
    pub bytes: u64,
}

/// A server that sends everything back.
pub struct Echo {
    listeners: Vec<TcpListener>,
}

/// A server at work, until it is dropped.
pub struct Serving {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<io::Result<EchoCounts>>>,
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // What it could not do has shown as connections that got no answer.
            let _ = thread.join();
        }
    }
}

/// A connection and what it has brought and not yet got back.
struct Connection {
    stream: TcpStream,
    buffer: Box<[u8]>,
    from: usize,
    to: usize,
}

/// What becomes of a connection.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Next {
    /// It waits for more.
    Read,
    /// It waits until it has room.
    Write,
    /// It is over.
    Close,
}

impl Connection {
    /// Reads and writes as long as there is something to do.
    fn work(&mut self, bytes: &mut u64) -> Next {
        loop {
            while self.from < self.to {
                match self.stream.write(&self.buffer[self.from..self.to]) {
                    Ok(0) => return Next::Close,
                    Ok(written) => {
                        self.from += written;
                        *bytes += written as u64;
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Next::Write,
                    Err(_) => return Next::Close,
                }
            }
            match self.stream.read(&mut self.buffer) {
                Ok(0) => return Next::Close,
                Ok(len) => (self.from, self.to) = (0, len),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Next::Read,
                Err(_) => return Next::Close,
            }
        }
    }
}

impl Echo {
    /// Listens on every address.
    ///
    /// # Errors
    /// [`Problem::Setup`], naming the address and what to do.
    pub fn bind(addresses: &[SocketAddr]) -> Result<Self, Problem> {
        let bind = |&address: &SocketAddr| {
            let listen = || {
                let listener = TcpListener::bind(address)?;
                listener.set_nonblocking(true)?;
                Ok(listener)
            };
            listen().map_err(|error: io::Error| {
                Problem::Setup(format!(
                    "TCP on {address}: {error}; choose a free port on an address of this host"
                ))
            })
        };
        Ok(Self { listeners: addresses.iter().map(bind).collect::<Result<_, _>>()? })
    }

    /// The addresses it listens on.
    #[must_use]
    pub fn local_addrs(&self) -> Vec<SocketAddr> {
        self.listeners.iter().filter_map(|listener| listener.local_addr().ok()).collect()
    }

    /// Serves on a thread of its own.
    ///
    /// # Errors
    /// [`Problem::Setup`] when there can be no thread.
    pub fn start(self) -> Result<Serving, Problem> {
        let stop = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stop);
        // Owns listeners and connections; ends when the flag is set.
        let thread = thread::Builder::new().name("lab-echo".to_owned()).spawn(move || self.run(&flag));
        let thread =
            thread.map_err(|error| Problem::Setup(format!("cannot start the echo thread: {error}")))?;
        Ok(Serving { stop, thread: Some(thread) })
    }

    /// Serves until `stop` is set.
    ///
    /// # Errors
    /// What epoll(7) answers.
    pub fn run(&self, stop: &AtomicBool) -> io::Result<EchoCounts> {
        let mut counts = EchoCounts::default();
        let mut watch = Watch::new(&self.listeners)?;
        let first = self.listeners.len();
        let mut connections: Vec<Option<Connection>> = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            watch.wait(WAIT_NS)?;
            for number in watch.ready() {
                match number.checked_sub(first) {
                    None => accept(&watch, &self.listeners[number], first, &mut connections, &mut counts),
                    Some(place) => serve(&watch, number, &mut connections[place], &mut counts)?,
                }
            }
        }
        Ok(counts)
    }
}

/// Takes every connection that waits.
fn accept(
    watch: &Watch,
    listener: &TcpListener,
    first: usize,
    connections: &mut Vec<Option<Connection>>,
    counts: &mut EchoCounts,
) {
    // Out of descriptors it is tried again at the next look; one that was reset meanwhile is gone.
    while let Ok((stream, _)) = listener.accept() {
        let free = connections.iter().position(Option::is_none);
        let place = free.unwrap_or(connections.len());
        let ready = place < CONNECTIONS_MAX
            && stream.set_nonblocking(true).is_ok()
            && stream.set_nodelay(true).is_ok()
            && watch.add(&stream, first + place).is_ok();
        if !ready {
            counts.refused += 1;
            continue;
        }
        counts.connections += 1;
        let connection = Connection { stream, buffer: vec![0; BUFFER].into(), from: 0, to: 0 };
        match connections.get_mut(place) {
            Some(slot) => *slot = Some(connection),
            None => connections.push(Some(connection)),
        }
    }
}

/// Works on a connection that is ready, and closes it when it is over.
fn serve(
    watch: &Watch,
    number: usize,
    slot: &mut Option<Connection>,
    counts: &mut EchoCounts,
) -> io::Result<()> {
    let Some(connection) = slot else { return Ok(()) };
    let interest = match connection.work(&mut counts.bytes) {
        Next::Read => EventFlags::IN,
        Next::Write => EventFlags::OUT,
        Next::Close => {
            // Closing takes it out of the set.
            *slot = None;
            return Ok(());
        }
    };
    watch.change(&connection.stream, number, interest)
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn what_is_sent_comes_back_also_when_nobody_reads_for_a_while() {
        let echo = Echo::bind(&["127.0.0.1:0".parse().unwrap()]).unwrap();
        let address = echo.local_addrs()[0];
        let stop = AtomicBool::new(false);
        let counts = thread::scope(|scope| {
            let serving = scope.spawn(|| echo.run(&stop).unwrap());
            let mut one = TcpStream::connect(address).unwrap();
            let mut other = TcpStream::connect(address).unwrap();
            let sent: Vec<u8> = (0..20_000_000_u32).map(|index| (index % 251) as u8).collect();
            thread::scope(|scope| {
                let mut writer = one.try_clone().unwrap();
                let sent = &sent;
                scope.spawn(move || writer.write_all(sent).unwrap());
                // The first fills its buffers and waits; the other is served all the same.
                let mut answer = [0; 5];
                other.write_all(b"hello").unwrap();
                other.read_exact(&mut answer).unwrap();
                assert_eq!(&answer, b"hello");
                let mut back = vec![0; sent.len()];
                one.read_exact(&mut back).unwrap();
                assert!(back == *sent);
            });
            drop((one, other));
            stop.store(true, Ordering::Relaxed);
            serving.join().unwrap()
        });
        assert_eq!(counts, EchoCounts { connections: 2, refused: 0, bytes: 20_000_005 });
    }

    #[test]
    fn a_taken_port_is_named() {
        let first = Echo::bind(&["127.0.0.1:0".parse().unwrap()]).unwrap();
        let Err(error) = Echo::bind(&first.local_addrs()) else { panic!("bound twice") };
        assert!(error.to_string().contains(&first.local_addrs()[0].to_string()), "{error}");
    }
}
