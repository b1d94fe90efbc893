//! One HTTP connection: reads a request, waits for its answer, writes it, and takes its leave. Every state has an end.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::time::{Duration, Instant};

use rustix::event::PollFlags;

use super::desk::ANSWER_PATIENCE;
use super::request::{REQUEST_LEN_MAX, Refusal, Request, parse};

/// How long a client may take to send its request, and again to take the answer.
pub(super) const CLIENT_TIME: Duration = Duration::from_secs(1);
/// How long is read on after the answer, so that a client that is still sending gets to see it: closed with unread
/// bytes, a connection is reset and what was sent lost.
const LINGER_TIME: Duration = Duration::from_millis(200);

/// Where a connection is.
#[derive(Debug)]
enum State<R> {
    Reading { len: usize },
    Waiting { request: Request<R>, since: Instant },
    Writing { answer: Vec<u8>, sent: usize },
    Leaving,
}

/// What has become of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress<R> {
    /// It waits for its client.
    Pending,
    /// It waits for [`Connection::answer`].
    Asks(Result<Request<R>, Refusal>),
    /// It is over: drop it.
    Over,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Connection<R> {
    stream: TcpStream,
    state: State<R>,
    deadline: Instant,
    buffer: Box<[u8; REQUEST_LEN_MAX]>,
    loopback: bool,
}

impl<R: Copy> Connection<R> {
    /// # Errors
    /// The kernel refuses to make the socket non-blocking.
    pub fn new(stream: TcpStream, loopback: bool, now: Instant) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            state: State::Reading { len: 0 },
            deadline: now + CLIENT_TIME,
            buffer: Box::new([0; REQUEST_LEN_MAX]),
            loopback,
        })
    }

    /// What to wait on, and for what.
    pub fn interest(&self) -> (BorrowedFd<'_>, PollFlags) {
        let flags = match self.state {
            State::Reading { .. } | State::Leaving => PollFlags::IN,
            State::Waiting { .. } => PollFlags::empty(),
            State::Writing { .. } => PollFlags::OUT,
        };
        (self.stream.as_fd(), flags)
    }

    /// When this state ends whatever the client does.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Since when it waits for the loop, and what it asked.
    pub fn waiting(&self) -> Option<(Request<R>, Instant)> {
        match self.state {
            State::Waiting { request, since } => Some((request, since)),
            State::Reading { .. } | State::Writing { .. } | State::Leaving => None,
        }
    }

    /// Who goes first when there are too many: the lower number. Those that wait for the loop never do: that ends soon.
    pub fn rank(&self) -> Option<u8> {
        match self.state {
            State::Leaving => Some(0),
            State::Reading { .. } => Some(1),
            State::Writing { .. } => Some(2),
            State::Waiting { .. } => None,
        }
    }

    /// Goes as far as it can without waiting. `find` knows what there is at a path.
    pub fn advance(&mut self, find: fn(&str) -> Option<R>, now: Instant) -> Progress<R> {
        match &mut self.state {
            State::Reading { len } => match self.stream.read(&mut self.buffer[*len..]) {
                Ok(0) => Progress::Over,
                Ok(more) => {
                    *len += more;
                    let parsed = parse(&self.buffer[..*len], self.loopback, find);
                    match parsed {
                        Some(Ok(request)) => {
                            self.state = State::Waiting { request, since: now };
                            self.deadline = now + ANSWER_PATIENCE;
                            Progress::Asks(Ok(request))
                        }
                        Some(Err(refusal)) => Progress::Asks(Err(refusal)),
                        None => Progress::Pending,
                    }
                }
                Err(error) => later(&error),
            },
            // Nothing is waited for but the end of the connection.
            State::Waiting { .. } => Progress::Over,
            State::Writing { answer, sent } => match self.stream.write(&answer[*sent..]) {
                Ok(more) => {
                    *sent += more;
                    if *sent < answer.len() {
                        return Progress::Pending;
                    }
                    self.leave(now)
                }
                Err(error) => later(&error),
            },
            // What a client still sends is read in small parts and forgotten.
            State::Leaving => match self.stream.read(&mut self.buffer[..]) {
                Ok(0) => Progress::Over,
                Ok(_) => Progress::Pending,
                Err(error) => later(&error),
            },
        }
    }

    fn leave(&mut self, now: Instant) -> Progress<R> {
        if self.stream.shutdown(Shutdown::Write).is_err() {
            return Progress::Over;
        }
        self.state = State::Leaving;
        self.deadline = now + LINGER_TIME;
        Progress::Pending
    }

    /// Gives the answer and begins to write it.
    pub fn answer(&mut self, answer: Vec<u8>, find: fn(&str) -> Option<R>, now: Instant) -> Progress<R> {
        self.state = State::Writing { answer, sent: 0 };
        self.deadline = now + CLIENT_TIME;
        self.advance(find, now)
    }
}

/// Nothing to be had now, or never again.
fn later<R>(error: &io::Error) -> Progress<R> {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Progress::Pending,
        _ => Progress::Over,
    }
}
