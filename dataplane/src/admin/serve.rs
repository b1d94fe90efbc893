//! The admin thread: a bounded number of connections, none of which can hold up another.

use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::Listener;
use super::connection::{Connection, Progress};
use super::desk::Desk;
use super::exchange::{Shared, Snapshot};
use super::respond::Answer;

/// Most connections at a time.
const CONNECTIONS_MAX: usize = 16;
/// Connections taken before the others have their turn.
const ACCEPTS_MAX: usize = 16;
/// How long nothing is accepted after the kernel had no descriptor for it.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What is shown.
pub trait Site {
    /// Something that can be asked for.
    type Resource: Copy;
    /// What it is made of.
    type Snapshot: Snapshot;
    /// The paths there are, for whoever asks for another.
    const RESOURCES: &'static str;

    /// What there is at a path.
    fn find(path: &str) -> Option<Self::Resource>;

    /// Whether the loop has to be asked first.
    fn needs_figures(resource: Self::Resource) -> bool;

    /// Answers with what is known now.
    fn respond(&self, resource: Self::Resource, desk: &Desk<Self::Snapshot>, now: Instant) -> Answer;
}

/// What the admin thread owns.
#[derive(Debug)]
pub struct Server<S: Site> {
    listener: TcpListener,
    /// The listener is on loopback.
    loopback: bool,
    shared: Arc<Shared<S::Snapshot>>,
    desk: Desk<S::Snapshot>,
    site: S,
    /// The oldest first.
    connections: Vec<Connection<S::Resource>>,
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

impl<S: Site> Server<S> {
    /// A server of `site` on `listener`, with the loops behind `shared`.
    #[must_use]
    pub fn new(listener: Listener, site: S, shared: Arc<Shared<S::Snapshot>>) -> Self {
        Self {
            loopback: listener.address.ip().is_loopback(),
            listener: listener.socket,
            desk: Desk::new(shared.clone()),
            shared,
            site,
            connections: Vec::with_capacity(CONNECTIONS_MAX),
            accept_from: None,
        }
    }

    /// Serves until [`Shared::stop`].
    pub fn run(mut self) {
        while !self.shared.is_stopped() {
            let found = match self.wait(now()) {
                Ok(found) => found,
                Err(error) => {
                    tracing::error!(%error, "the admin thread cannot go on; packets pass as before");
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
        let (desk, site) = (&mut self.desk, &self.site);
        self.connections.retain_mut(|connection| {
            let progress = if ready.next() == Some(&true) {
                connection.advance(S::find, now)
            } else {
                Progress::Pending
            };
            settle(connection, progress, desk, site, now)
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
            let progress = connection.advance(S::find, now);
            if !settle(&mut connection, progress, &mut self.desk, &self.site, now) {
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
fn settle<S: Site>(
    connection: &mut Connection<S::Resource>,
    progress: Progress<S::Resource>,
    desk: &mut Desk<S::Snapshot>,
    site: &S,
    now: Instant,
) -> bool {
    let progress = match progress {
        Progress::Asks(Err(refusal)) => {
            connection.answer(Answer::refuse(refusal, S::RESOURCES).bytes(false), S::find, now)
        }
        Progress::Asks(Ok(_)) | Progress::Pending => match connection.waiting() {
            Some((request, since)) => {
                let fresh = !S::needs_figures(request.resource) || desk.is_fresh(since, now);
                if !fresh && now < connection.deadline() {
                    return true;
                }
                let answer = site.respond(request.resource, desk, now);
                connection.answer(answer.bytes(request.head_only), S::find, now)
            }
            None => progress,
        },
        Progress::Over => return false,
    };
    !matches!(progress, Progress::Over) && now < connection.deadline()
}

#[expect(
    clippy::disallowed_methods,
    reason = "the admin thread is a driver of its own: here its time enters"
)]
fn now() -> Instant {
    Instant::now()
}
