//! The admin thread: a bounded number of connections, none of which can hold up another.

use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::Admin;
use super::connection::{Connection, Progress};
use super::desk::Desk;
use super::observer::Shared;
use super::respond::Responder;

/// Most connections at a time.
pub(super) const CONNECTIONS_MAX: usize = 16;
/// Connections taken before the others have their turn.
const ACCEPTS_MAX: usize = 16;
/// How long nothing is accepted after the kernel had no descriptor for it.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What the admin thread owns.
#[derive(Debug)]
pub(super) struct Server {
    listener: TcpListener,
    /// The listener is on loopback.
    loopback: bool,
    shared: Arc<Shared>,
    desk: Desk,
    responder: Responder,
    /// The oldest first.
    connections: Vec<Connection>,
    /// Nothing is accepted before this.
    accept_from: Option<Instant>,
}

/// What a poll found.
struct Found {
    woken: bool,
    acceptable: bool,
    /// By connection.
    ready: Vec<bool>,
}

impl Server {
    pub fn new(admin: Admin, shared: Arc<Shared>) -> Self {
        Self {
            loopback: admin.address.ip().is_loopback(),
            listener: admin.listener,
            desk: Desk::new(shared.clone()),
            shared,
            responder: Responder::new(admin.gso, admin.users),
            connections: Vec::with_capacity(CONNECTIONS_MAX),
            accept_from: None,
        }
    }

    /// Serves until the observer is gone.
    pub fn run(mut self) {
        while !self.shared.is_stopped() {
            let found = match self.wait(now()) {
                Ok(found) => found,
                Err(error) => {
                    tracing::error!(%error, "the admin thread cannot go on; packets are relayed as before");
                    return;
                }
            };
            self.turn(&found, now());
        }
    }

    fn wait(&self, now: Instant) -> io::Result<Found> {
        let accepting = self.accept_from.is_none_or(|from| from <= now);
        let listening = if accepting { PollFlags::IN } else { PollFlags::empty() };
        let mut fds = vec![
            PollFd::from_borrowed_fd(self.shared.admin_fd(), PollFlags::IN),
            PollFd::new(&self.listener, listening),
        ];
        fds.extend(self.connections.iter().map(|connection| {
            let (fd, flags) = connection.interest();
            PollFd::from_borrowed_fd(fd, flags)
        }));
        let deadlines = self.connections.iter().map(Connection::deadline);
        let deadline = deadlines.chain(self.accept_from.filter(|_| !accepting)).min();
        let timeout = deadline.map(|deadline| {
            let left = deadline.saturating_duration_since(now);
            Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() }
        });
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) => {}
            Err(errno) if io::Error::from(errno).kind() == io::ErrorKind::Interrupted => {}
            Err(errno) => return Err(errno.into()),
        }
        let mut ready = fds.iter().map(|fd| !fd.revents().is_empty());
        let (woken, acceptable) = (ready.next() == Some(true), ready.next() == Some(true));
        Ok(Found { woken, acceptable, ready: ready.collect() })
    }

    fn turn(&mut self, found: &Found, now: Instant) {
        if found.woken {
            self.desk.handle_wake();
        }
        let mut ready = found.ready.iter();
        let (desk, responder) = (&mut self.desk, &self.responder);
        self.connections.retain_mut(|connection| {
            let progress =
                if ready.next() == Some(&true) { connection.advance(now) } else { Progress::Pending };
            settle(connection, progress, desk, responder, now)
        });
        if found.acceptable {
            self.accept(now);
        }
    }

    fn accept(&mut self, now: Instant) {
        self.accept_from = None;
        for _ in 0..ACCEPTS_MAX {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // One that was given up before it was taken.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(_) => {
                    // The listener stays readable, and without a pause this thread would spin.
                    self.accept_from = Some(now + ACCEPT_PAUSE);
                    return;
                }
            };
            let Ok(mut connection) = Connection::new(stream, self.loopback, now) else { continue };
            // Most requests are there already.
            let progress = connection.advance(now);
            if !settle(&mut connection, progress, &mut self.desk, &self.responder, now) {
                continue;
            }
            if self.connections.len() == CONNECTIONS_MAX {
                let ranked = self.connections.iter().enumerate();
                let first = ranked.filter_map(|(at, old)| Some((old.rank()?, at))).min();
                let Some((_, first)) = first else { continue };
                drop(self.connections.remove(first));
            }
            self.connections.push(connection);
        }
    }
}

/// Answers a connection that can be answered, and ends one whose time is over. Whether it stays.
fn settle(
    connection: &mut Connection,
    progress: Progress,
    desk: &mut Desk,
    responder: &Responder,
    now: Instant,
) -> bool {
    let progress = match progress {
        Progress::Asks(Err(refusal)) => connection.answer(responder.refuse(refusal), now),
        Progress::Asks(Ok(_)) | Progress::Pending => match connection.waiting() {
            Some((request, since)) => {
                let fresh = !Responder::needs_figures(request.resource) || desk.is_fresh(since, now);
                if !fresh && now < connection.deadline() {
                    return true;
                }
                connection.answer(responder.respond(request, desk, now), now)
            }
            None => progress,
        },
        Progress::Over => return false,
    };
    progress != Progress::Over && now < connection.deadline()
}

#[expect(
    clippy::disallowed_methods,
    reason = "the admin thread is a driver of its own: here its time enters"
)]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{SocketAddr, TcpStream};

    use super::super::AdminChoice;
    use super::super::client::{AskError, ask, ask_fresh};
    use super::super::desk::TURN_TIME_MAX;
    use super::super::status::tests::snapshot;
    use super::*;

    fn get(address: SocketAddr, target: &str) -> String {
        let mut stream = TcpStream::connect(address).unwrap();
        write!(stream, "GET {target} HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn probes_fail_when_the_loop_has_stopped_and_the_admin_thread_answers_on() {
        let any = AdminChoice::At("127.0.0.1:0".parse().unwrap());
        let admin = Admin::bind(Some(any), true, true).unwrap().unwrap();
        let address = admin.address();
        // There is no loop behind it.
        let server = Server::new(admin, Shared::new(1).unwrap());
        std::thread::spawn(|| server.run());
        let start = now();
        assert!(get(address, "/healthz").starts_with("HTTP/1.1 200 "), "it may only be slow");
        assert!(get(address, "/metrics").starts_with("HTTP/1.1 503 "), "there are no figures");
        assert!(get(address, "/readyz").ends_with("starting\n"));
        assert!(get(address, "/").starts_with("HTTP/1.1 200 "), "the page needs no figures");
        std::thread::sleep((start + TURN_TIME_MAX).saturating_duration_since(now()));
        let answer = get(address, "/healthz");
        assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("for 3 s"), "{answer}");
    }

    /// An admin thread in front of a loop that answered once, `ago`, and is driven by the test.
    fn with_old_figures(ago: Duration) -> (SocketAddr, Arc<Shared>) {
        let any = AdminChoice::At("127.0.0.1:0".parse().unwrap());
        let admin = Admin::bind(Some(any), true, true).unwrap().unwrap();
        let address = admin.address();
        let shared = Shared::new(1).unwrap();
        shared.publish(0, snapshot(now() - ago));
        let server = Server::new(admin, shared.clone());
        std::thread::spawn(|| server.run());
        (address, shared)
    }

    #[test]
    fn status_fails_when_the_loop_hangs_although_old_figures_are_served() {
        let (address, _shared) = with_old_figures(Duration::from_secs(60));
        let start = now();
        assert!(ask(address).unwrap().age_s >= 60.0);
        let error = ask_fresh(address).unwrap_err();
        assert!(matches!(error, AskError::Hangs { age_s, .. } if age_s >= 60.0), "{error}");
        assert!(error.to_string().contains("the relay hangs: its figures are 6"), "{error}");
        assert!(start.elapsed() >= TURN_TIME_MAX, "a busy loop is given as long as by the probe");
    }

    #[test]
    fn status_waits_for_a_loop_that_is_only_busy() {
        let (address, shared) = with_old_figures(Duration::from_secs(60));
        let busy = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_secs(1));
            shared.publish(0, snapshot(now()));
        });
        assert!(ask_fresh(address).unwrap().age_s < 3.0);
        busy.join().unwrap();
    }
}
