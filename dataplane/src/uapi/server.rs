//! The thread that serves clients, and the loop's end of it: whole requests one way, whole answers the other.

use std::collections::VecDeque;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use zeroize::{Zeroize as _, Zeroizing};

use super::answer::Part;
use super::request::{Parsed, Parser};
use super::{Listener, Request};
use crate::tunnel::apart::apart;

/// Clients at a time. More wait to be accepted, unless one of these has nothing to say.
const CLIENTS_MAX: usize = 8;
/// Bytes read from a client at once.
const READ_LEN: usize = 16 << 10;
/// How long a client may stop in the middle of its request or of our answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// A request of a client.
#[derive(Debug)]
pub struct Job {
    /// Whose it is.
    pub client: ClientId,
    /// What it asks for.
    pub request: Request,
}

/// A client's number, which is never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientId(u64);

/// An answer for a client; its parts follow one another.
struct Answer {
    client: ClientId,
    parts: VecDeque<Part>,
}

/// What both sides share besides the channels: a descriptor each to be woken by, and flags.
#[derive(Debug)]
struct Shared {
    to_loop: OwnedFd,
    to_server: OwnedFd,
    stopped: AtomicBool,
    removed: AtomicBool,
}

/// The loop's end.
pub struct Uapi {
    shared: Arc<Shared>,
    jobs: Receiver<Job>,
    answers: Sender<Answer>,
    thread: Option<JoinHandle<()>>,
}

impl Uapi {
    /// Starts the thread: it serves whom `listener` lets in, and `own`, a connection of this program's. Signals should be
    /// blocked by now: it inherits that.
    ///
    /// # Errors
    /// What eventfd(2) and clone(2) answer.
    pub fn start(listener: Option<Listener>, own: Option<UnixStream>) -> io::Result<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let shared = Arc::new(Shared {
            to_loop: eventfd(0, flags)?,
            to_server: eventfd(0, flags)?,
            stopped: AtomicBool::new(false),
            removed: AtomicBool::new(false),
        });
        let (send_job, jobs) = channel();
        let (answers, receive_answer) = channel();
        let mut server = Server {
            listener,
            shared: Arc::clone(&shared),
            jobs: send_job,
            answers: receive_answer,
            clients: Vec::with_capacity(CLIENTS_MAX + 1),
            next_id: 0,
            buffer: Zeroizing::new(vec![0; READ_LEN]),
        };
        if let Some(own) = own {
            own.set_nonblocking(true)?;
            server.add(own, true);
        }
        // Owns the listener, its file and its clients; ends when `stopped` is set and it is woken, by the drop of `Self`.
        let thread = std::thread::Builder::new().name("towpath-uapi".to_owned()).spawn(|| server.run())?;
        Ok(Self { shared, jobs, answers, thread: Some(thread) })
    }

    /// Readable when there is a job, or when the file is gone; [`Uapi::acknowledge`] makes it unreadable again.
    #[must_use]
    pub fn fd(&self) -> &OwnedFd {
        &self.shared.to_loop
    }

    /// Call it before looking for jobs.
    pub fn acknowledge(&self) {
        acknowledge(&self.shared.to_loop);
    }

    /// The next request.
    #[must_use]
    pub fn next(&self) -> Option<Job> {
        self.jobs.try_recv().ok()
    }

    /// Whether the file of the socket was removed, which asks the program to end.
    #[must_use]
    pub fn is_removed(&self) -> bool {
        self.shared.removed.load(Ordering::Acquire)
    }

    /// Answers a request. A client that has left by now gets nothing.
    pub fn answer(&self, client: ClientId, parts: VecDeque<Part>) {
        // Without the thread there is nobody to answer.
        let _ = self.answers.send(Answer { client, parts });
        wake(&self.shared.to_server);
    }
}

impl Drop for Uapi {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Release);
        wake(&self.shared.to_server);
        if let Some(thread) = self.thread.take() {
            // A panic there has been printed; ours may be under way.
            let _ = thread.join();
        }
    }
}

fn wake(fd: &OwnedFd) {
    // It fails only when the counter is full, and then it is readable.
    let _ = rustix::io::write(fd, &1_u64.to_ne_bytes());
}

fn acknowledge(fd: &OwnedFd) {
    // When there is nothing to read it is unreadable already.
    let _ = rustix::io::read(fd, &mut [0; 8]);
}

#[expect(clippy::disallowed_methods, reason = "this thread has no packets and a clock of its own")]
fn now() -> Instant {
    Instant::now()
}

struct Client {
    id: ClientId,
    stream: UnixStream,
    /// Made by this program: nobody makes it leave for others.
    is_own: bool,
    parser: Parser,
    /// Read and not parsed yet: a further request of a client that waits for an answer.
    rest: Zeroizing<Vec<u8>>,
    /// The loop has its request.
    waiting: bool,
    /// What has to be written, and how much of the first part is.
    out: VecDeque<Part>,
    written: usize,
    /// When something last went in or out.
    active: Instant,
}

/// A client is to be forgotten.
struct Gone;

struct Server {
    listener: Option<Listener>,
    shared: Arc<Shared>,
    jobs: Sender<Job>,
    answers: Receiver<Answer>,
    clients: Vec<Client>,
    next_id: u64,
    buffer: Zeroizing<Vec<u8>>,
}

impl Server {
    fn run(mut self) {
        while !self.shared.stopped.load(Ordering::Acquire) {
            let ready = self.wait();
            acknowledge(&self.shared.to_server);
            while let Ok(answer) = self.answers.try_recv() {
                let Some(client) = self.clients.iter_mut().find(|client| client.id == answer.client) else {
                    continue;
                };
                (client.waiting, client.out, client.active) = (false, answer.parts, now());
            }
            self.serve(&ready.clients);
            if ready.listener {
                self.accept();
            }
            let is_removed = || self.listener.as_ref().is_some_and(Listener::is_removed);
            if ready.watch && is_removed() && !self.shared.removed.swap(true, Ordering::AcqRel) {
                wake(&self.shared.to_loop);
            }
        }
    }

    /// Waits until there is something to do.
    fn wait(&self) -> Ready {
        let mut fds = vec![PollFd::new(&self.shared.to_server, PollFlags::IN)];
        let listens = self.guests().count() < CLIENTS_MAX || self.guests().any(Client::is_idle);
        let interest = if listens { PollFlags::IN } else { PollFlags::empty() };
        fds.extend(self.listener.as_ref().map(|listener| PollFd::new(listener, interest)));
        let watch = self.listener.as_ref().and_then(Listener::watch);
        fds.extend(watch.as_ref().map(|watch| PollFd::new(watch, PollFlags::IN)));
        let first = fds.len();
        // One that waits for the loop is not asked about: that it has hung up would be reported for ever.
        let asked = || self.clients.iter().filter(|client| !client.waiting);
        fds.extend(asked().map(|client| PollFd::new(&client.stream, client.interest())));
        let deadline =
            asked().filter(|client| !client.is_idle()).map(|client| client.active + PATIENCE).min();
        let timeout = deadline.map(|deadline| {
            let left = deadline.saturating_duration_since(now()) + Duration::from_millis(1);
            Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() }
        });
        if poll(&mut fds, timeout.as_ref()).is_err() {
            // A signal, or no memory for a moment: looked at again at once.
            return Ready::default();
        }
        let is_ready = |fd: &PollFd<'_>| !fd.revents().is_empty();
        let clients = asked().zip(&fds[first..]).filter(|(_, fd)| is_ready(fd)).map(|(client, _)| client.id);
        Ready {
            listener: self.listener.is_some() && is_ready(&fds[1]),
            watch: watch.is_some() && is_ready(&fds[2]),
            clients: clients.collect(),
        }
    }

    /// Those that have come by themselves.
    fn guests(&self) -> impl Iterator<Item = &Client> {
        self.clients.iter().filter(|client| !client.is_own)
    }

    fn accept(&mut self) {
        let Some(listener) = &self.listener else {
            return;
        };
        if self.guests().count() >= CLIENTS_MAX {
            // The one that has been silent longest between two requests makes room.
            let idle = self.guests().filter(|client| client.is_idle());
            let Some(longest) = idle.min_by_key(|client| client.active).map(|client| client.id) else {
                return;
            };
            self.clients.retain(|client| client.id != longest);
        }
        let stream = match listener.accept() {
            Ok(stream) => stream,
            Err(error) => {
                if !is_transient(&error) {
                    // No descriptors or no memory: the connection stays, and would be reported again at once.
                    std::thread::sleep(Duration::from_millis(100));
                }
                return;
            }
        };
        self.add(stream, false);
    }

    fn add(&mut self, stream: UnixStream, is_own: bool) {
        let id = ClientId(self.next_id);
        self.next_id += 1;
        self.clients.push(Client {
            id,
            stream,
            is_own,
            parser: Parser::default(),
            rest: Zeroizing::new(Vec::new()),
            waiting: false,
            out: VecDeque::new(),
            written: 0,
            active: now(),
        });
    }

    /// Reads from and writes to those that are ready, and forgets those that are gone or have no more patience to expect.
    fn serve(&mut self, ready: &[ClientId]) {
        let now = now();
        let Self { clients, buffer, jobs, shared, .. } = self;
        clients.retain_mut(|client| {
            let served = if ready.contains(&client.id) || !client.out.is_empty() {
                client.serve(buffer, now)
            } else {
                Ok(None)
            };
            match served {
                Ok(Some(request)) => {
                    client.waiting = true;
                    let job = Job { client: client.id, request };
                    if jobs.send(job).is_err() {
                        return false;
                    }
                    wake(&shared.to_loop);
                    true
                }
                Ok(None) => client.waiting || client.is_idle() || now < client.active + PATIENCE,
                Err(Gone) => false,
            }
        });
    }
}

#[derive(Default)]
struct Ready {
    listener: bool,
    watch: bool,
    clients: Vec<ClientId>,
}

impl Client {
    /// It has not begun a request, and has its last answer.
    fn is_idle(&self) -> bool {
        !self.waiting && self.out.is_empty() && self.parser.is_idle()
    }

    fn interest(&self) -> PollFlags {
        if self.out.is_empty() { PollFlags::IN } else { PollFlags::OUT }
    }

    /// Writes what there is to write; when that is all, reads. A request that is complete now.
    fn serve(&mut self, buffer: &mut [u8], now: Instant) -> Result<Option<Request>, Gone> {
        self.write(now)?;
        if !self.out.is_empty() || self.waiting {
            return Ok(None);
        }
        if !self.rest.is_empty() {
            let rest = std::mem::take(&mut self.rest);
            return self.parse(&rest);
        }
        match self.stream.read(buffer) {
            Ok(0) => Err(Gone),
            Ok(len) => {
                self.active = now;
                let request = self.parse(&buffer[..len]);
                buffer[..len].zeroize();
                request
            }
            Err(error) if is_transient(&error) => Ok(None),
            Err(_) => Err(Gone),
        }
    }

    fn parse(&mut self, bytes: &[u8]) -> Result<Option<Request>, Gone> {
        match apart(|| self.parser.push(bytes)) {
            Parsed::Incomplete => Ok(None),
            Parsed::Complete(request, len) => {
                self.rest = Zeroizing::new(bytes[len..].to_vec());
                Ok(Some(request))
            }
            Parsed::Foreign => Err(Gone),
        }
    }

    fn write(&mut self, now: Instant) -> Result<(), Gone> {
        while let Some(part) = self.out.front() {
            match self.stream.write(&part.as_bytes()[self.written..]) {
                Ok(len) => {
                    self.active = now;
                    self.written += len;
                    if self.written == part.len() {
                        self.out.pop_front();
                        self.written = 0;
                    }
                }
                Err(error) if is_transient(&error) => return Ok(()),
                Err(_) => return Err(Gone),
            }
        }
        Ok(())
    }
}

fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

impl AsFd for Uapi {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.to_loop.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::super::answer;
    use super::*;

    struct Bench {
        _directory: tempfile::TempDir,
        path: PathBuf,
        uapi: Uapi,
    }

    fn bench() -> Bench {
        let directory = tempfile::tempdir().expect("a directory");
        let listener = Listener::bind_in(directory.path(), "wg0").expect("bound");
        let path = listener.path().to_owned();
        Bench { _directory: directory, path, uapi: Uapi::start(Some(listener), None).expect("started") }
    }

    impl Bench {
        fn connect(&self) -> UnixStream {
            let stream = UnixStream::connect(&self.path).expect("connected");
            stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
            stream
        }

        fn next(&self) -> Job {
            let deadline = now() + Duration::from_secs(10);
            loop {
                self.uapi.acknowledge();
                if let Some(job) = self.uapi.next() {
                    return job;
                }
                assert!(now() < deadline, "no request came");
                let timeout = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
                let _ = poll(&mut [PollFd::new(&self.uapi, PollFlags::IN)], Some(&timeout));
            }
        }

        fn answer(&self, client: ClientId) {
            self.uapi.answer(client, [answer::device(None, 7, 0), answer::end(None)].into());
        }
    }

    const ANSWER: &[u8] = b"listen_port=7\nerrno=0\n\n";

    fn read(stream: &mut UnixStream) -> Vec<u8> {
        let mut bytes = vec![0; ANSWER.len()];
        stream.read_exact(&mut bytes).expect("an answer");
        bytes
    }

    #[test]
    fn a_client_is_answered_request_by_request_on_one_connection() {
        let bench = bench();
        let mut stream = bench.connect();
        stream.write_all(b"get=1\n\nset=1\nlisten_port=7\n\nget=1\n").expect("written");
        let job = bench.next();
        assert!(matches!(job.request, Request::Get));
        assert!(bench.uapi.next().is_none(), "the next one waits for the answer");
        bench.answer(job.client);
        assert_eq!(read(&mut stream), ANSWER);
        let job = bench.next();
        assert!(matches!(&job.request, Request::Set(set) if set.changes.len() == 1));
        bench.answer(job.client);
        assert_eq!(read(&mut stream), ANSWER);
        stream.write_all(b"\n").expect("written");
        let job = bench.next();
        bench.answer(job.client);
        assert_eq!(read(&mut stream), ANSWER);
    }

    #[test]
    fn silent_clients_make_room_and_one_in_the_middle_of_a_request_does_not() {
        let bench = bench();
        let mut half = bench.connect();
        half.write_all(b"get=1\n").expect("written");
        let silent: Vec<_> = (0..3 * CLIENTS_MAX).map(|_| bench.connect()).collect();
        let mut stream = bench.connect();
        stream.write_all(b"get=1\n\n").expect("written");
        let job = bench.next();
        bench.answer(job.client);
        assert_eq!(read(&mut stream), ANSWER);
        half.write_all(b"\n").expect("written");
        let job = bench.next();
        bench.answer(job.client);
        assert_eq!(read(&mut half), ANSWER);
        drop(silent);
    }

    #[test]
    fn a_connection_of_our_own_needs_no_socket_and_makes_no_room() {
        let directory = tempfile::tempdir().expect("a directory");
        let listener = Listener::bind_in(directory.path(), "wg0").expect("bound");
        let path = listener.path().to_owned();
        for (listener, guests) in [(Some(listener), 2 * CLIENTS_MAX), (None, 0)] {
            let (mut ours, own) = UnixStream::pair().expect("a pair");
            ours.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
            let uapi = Uapi::start(listener, Some(own)).expect("started");
            let bench =
                Bench { _directory: tempfile::tempdir().expect("a directory"), path: path.clone(), uapi };
            let _silent: Vec<_> = (0..guests).map(|_| bench.connect()).collect();
            if guests > 0 {
                // When this one is answered, the others have come and gone.
                let mut stream = bench.connect();
                stream.write_all(b"get=1\n\n").expect("written");
                let job = bench.next();
                bench.answer(job.client);
                assert_eq!(read(&mut stream), ANSWER);
            }
            ours.write_all(b"get=1\n\n").expect("written");
            let job = bench.next();
            bench.answer(job.client);
            assert_eq!(read(&mut ours), ANSWER);
        }
    }

    #[test]
    fn an_answer_larger_than_the_socket_takes_arrives_whole() {
        let bench = bench();
        let mut stream = bench.connect();
        stream.write_all(b"get=1\n\n").expect("written");
        let job = bench.next();
        let parts = (0..200).map(|_| Zeroizing::new("x".repeat(20_000))).collect();
        bench.uapi.answer(job.client, parts);
        let mut all = vec![0; 200 * 20_000];
        stream.read_exact(&mut all).expect("everything");
        assert!(all.iter().all(|byte| *byte == b'x'));
    }

    #[test]
    fn strangers_are_sent_away_and_clients_may_leave_at_any_time() {
        let bench = bench();
        let mut stranger = bench.connect();
        stranger.write_all(b"GET / HTTP/1.1\r\n\r\n").expect("written");
        assert!(stranger.read(&mut [0; 16]).is_ok_and(|len| len == 0) || stranger.take_error().is_ok());
        let mut leaving = bench.connect();
        leaving.write_all(b"get=1\n\n").expect("written");
        let job = bench.next();
        drop(leaving);
        bench.answer(job.client);
        let mut stream = bench.connect();
        stream.write_all(b"get=1\n\n").expect("written");
        let job = bench.next();
        bench.answer(job.client);
        assert_eq!(read(&mut stream), ANSWER);
    }

    #[test]
    fn the_end_of_the_file_is_told_and_the_end_of_the_loop_ends_the_thread() {
        let bench = bench();
        assert!(!bench.uapi.is_removed());
        std::fs::remove_file(&bench.path).expect("removed");
        let timeout = Timespec { tv_sec: 10, tv_nsec: 0 };
        assert_eq!(poll(&mut [PollFd::new(&bench.uapi, PollFlags::IN)], Some(&timeout)), Ok(1));
        assert!(bench.uapi.is_removed());
        let mut stream = {
            let other = self::bench();
            let stream = other.connect();
            drop(other.uapi);
            assert!(!other.path.exists());
            stream
        };
        // Reset, when the thread ended before it was accepted.
        assert!(stream.read(&mut [0; 1]).map_or(true, |len| len == 0));
    }
}
