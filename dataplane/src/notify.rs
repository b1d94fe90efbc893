//! What the service manager is told (sd_notify(3)): that a program serves, reads its configuration again, ends, and is
//! alive.
//!
//! The protocol is one datagram for each message. It is spoken here, by the one socket that is connected at the start,
//! because a confined program can open no other (the crates for it open one for each message).

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

use crate::sys::clock::{self, Clock};

/// The way to the service manager; leads nowhere without one.
#[derive(Debug, Default)]
pub struct Notifier {
    socket: Option<UnixDatagram>,
    /// How often it wants a sign of life.
    watchdog: Option<Duration>,
    next: Option<Instant>,
}

impl Notifier {
    /// From `$NOTIFY_SOCKET`, `$WATCHDOG_USEC` and `$WATCHDOG_PID`.
    #[must_use]
    pub fn from_environment() -> Self {
        let Some(address) = std::env::var_os("NOTIFY_SOCKET") else { return Self::default() };
        let socket = match connect(&address) {
            Ok(socket) => socket,
            Err(error) => {
                tracing::warn!(%error, "the service manager is not told anything: NOTIFY_SOCKET cannot be reached");
                return Self::default();
            }
        };
        let text = |name| std::env::var(name).ok();
        let watchdog =
            watchdog(text("WATCHDOG_USEC").as_deref(), text("WATCHDOG_PID").as_deref(), std::process::id());
        Self { socket: Some(socket), watchdog, next: None }
    }

    /// To this socket, with a sign of life wanted this often.
    #[must_use]
    pub fn to(socket: UnixDatagram, watchdog: Duration) -> Self {
        Self { socket: Some(socket), watchdog: Some(watchdog), next: None }
    }

    /// The program serves, which people are told in the words of `status`; the watchdog's time begins.
    pub fn ready(&mut self, status: &str, now: Instant) {
        self.send(&format!("READY=1\nSTATUS={status}"));
        self.next = self.watchdog.map(|_| now);
    }

    /// The configuration is read again; [`Notifier::ready`] ends that.
    pub fn reloading(&self) {
        let microseconds = clock::read(Clock::Monotonic).as_micros();
        self.send(&format!(
            "RELOADING=1\nMONOTONIC_USEC={microseconds}\nSTATUS=reading the configuration again"
        ));
    }

    /// The program ends, within `time`: the manager waits that long and some more before it kills.
    pub fn stopping(&self, status: &str, time: Duration) {
        const SPARE: Duration = Duration::from_secs(5);
        let microseconds = (time + SPARE).as_micros();
        self.send(&format!("STOPPING=1\nEXTEND_TIMEOUT_USEC={microseconds}\nSTATUS={status}"));
    }

    /// Gives a sign of life when it is time, twice in the time that the manager allows.
    pub fn handle_timeout(&mut self, now: Instant) {
        if let (Some(interval), Some(next)) = (self.watchdog, self.next)
            && now >= next
        {
            self.send("WATCHDOG=1");
            self.next = Some(now + interval / 2);
        }
    }

    /// Whether it is time for one.
    #[must_use]
    pub fn is_due(&self, now: Instant) -> bool {
        self.next.is_some_and(|next| now >= next)
    }

    /// When [`Notifier::handle_timeout`] wants to be called.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.next
    }

    fn send(&self, message: &str) {
        if let Some(socket) = &self.socket {
            // The loop does not wait for the manager. It misses a message when its queue is full or it is gone; another
            // sign of life follows, and the rest is for people.
            let _ = socket.send(message.as_bytes());
        }
    }
}

fn connect(address: &OsStr) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    match address.as_bytes() {
        [b'@', name @ ..] => socket.connect_addr(&SocketAddr::from_abstract_name(name)?)?,
        [b'/', ..] => socket.connect(address)?,
        _ => return Err(io::Error::new(io::ErrorKind::Unsupported, "neither a path nor an abstract name")),
    }
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// How often a sign of life is wanted of the process `own` (sd_watchdog_enabled(3)).
fn watchdog(microseconds: Option<&str>, process: Option<&str>, own: u32) -> Option<Duration> {
    let is_ours = process.is_none_or(|process| process.parse() == Ok(own));
    let microseconds: u64 = microseconds.filter(|_| is_ours)?.parse().ok()?;
    (microseconds > 0).then(|| Duration::from_micros(microseconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_watchdog_is_for_the_process_it_names() {
        let second = Some(Duration::from_secs(1));
        assert_eq!(watchdog(Some("1000000"), None, 7), second);
        assert_eq!(watchdog(Some("1000000"), Some("7"), 7), second);
        assert_eq!(watchdog(Some("1000000"), Some("8"), 7), None);
        for nonsense in [None, Some(""), Some("0"), Some("-1"), Some("soon")] {
            assert_eq!(watchdog(nonsense, None, 7), None);
        }
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "an arbitrary origin for virtual time")]
    fn signs_of_life_come_twice_in_the_time_allowed() {
        let (near, far) = UnixDatagram::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        far.set_nonblocking(true).unwrap();
        let received = || {
            let mut buffer = [0; 200];
            let len = far.recv(&mut buffer).ok()?;
            Some(String::from_utf8(buffer[..len].to_vec()).unwrap())
        };
        let allowed = Duration::from_secs(30);
        let mut notifier = Notifier { socket: Some(near), watchdog: Some(allowed), next: None };
        let start = Instant::now();
        notifier.handle_timeout(start);
        assert_eq!((received(), notifier.poll_timeout()), (None, None), "nothing before it serves");
        notifier.ready("serving", start);
        assert!(received().unwrap().starts_with("READY=1\n"));
        for half in 0..3 {
            let now = start + half * allowed / 2;
            assert_eq!(notifier.poll_timeout(), Some(now));
            notifier.handle_timeout(now);
            assert_eq!(received().as_deref(), Some("WATCHDOG=1"));
            notifier.handle_timeout(now + allowed / 2 - Duration::from_millis(1));
            assert_eq!(received(), None);
        }
    }
}
