//! Load on a schedule, over every transport: what is lost of it, and for how long nothing came.

#![allow(dead_code, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]
#![allow(clippy::disallowed_methods, reason = "load is paced and timed by the clock")]

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use dataplane::stun::channel_data::{self, ChannelNumber};
use dataplane::stun::{Class, Message, Method, TransactionId, Writer};
use rustix::net::sockopt;
use rustls::{ClientConnection, StreamOwned};

use super::load::Load;
use super::stream::{StreamClient, TestCertificate, try_connect, try_connect_tls};
use super::{Client, PATIENCE, code, peer};

/// How often a flow sends what is due and takes what has come.
const TICK: Duration = Duration::from_millis(1);
/// How soon a client whose relay is gone tries again.
const RETRY: Duration = Duration::from_millis(10);
/// How long a client waits for anything before it asks whether its relay is still there.
const SILENCE: Duration = Duration::from_millis(150);
/// A message: ChannelData with an 8-byte payload, which needs no padding on a stream.
const MESSAGE: usize = 12;
/// What a small datagram takes of a receive buffer, in bytes, with some to spare (on loopback 768).
const BUFFERED: usize = 1024;
const NUMBER: ChannelNumber = ChannelNumber::MIN;

/// Where and how a client reaches the relay.
#[derive(Clone)]
pub enum Access {
    Udp(SocketAddr),
    Tcp(SocketAddr),
    Tls(SocketAddr, Arc<TestCertificate>),
}

/// A client over any transport.
enum Link {
    Udp(Client),
    Tcp(StreamClient<TcpStream>),
    Tls(Box<StreamClient<StreamOwned<ClientConnection, TcpStream>>>),
}

impl Link {
    fn open(access: &Access) -> io::Result<Self> {
        Ok(match access {
            Access::Udp(relay) => {
                let client = Client::new(*relay);
                enlarge(&client.socket);
                Self::Udp(client)
            }
            Access::Tcp(relay) => Self::Tcp(StreamClient::new(try_connect(*relay)?)),
            Access::Tls(relay, certificate) => {
                Self::Tls(Box::new(StreamClient::new(try_connect_tls(*relay, certificate)?)))
            }
        })
    }

    /// After a crash: streams anew, and UDP from the same port, once somebody answers there.
    fn open_again(&mut self, access: &Access, attempt: u64) -> io::Result<()> {
        let Self::Udp(client) = self else {
            *self = Self::open(access)?;
            return Ok(());
        };
        client.socket.set_nonblocking(false)?;
        client.socket.set_read_timeout(Some(RETRY))?;
        let (request, mut buffer) = (binding(attempt), [0; 200]);
        client.socket.send(&request)?;
        // A socket keeps requests until its relay serves, so that the answers to earlier attempts may come first.
        loop {
            let len = client.socket.recv(&mut buffer)?;
            if Message::parse(&buffer[..len]).is_ok_and(|reply| reply.transaction() == transaction(attempt)) {
                return client.socket.set_read_timeout(Some(PATIENCE));
            }
        }
    }

    /// An allocation, and a channel to the peer; `false` when they were there already.
    fn bind(&mut self, peer: SocketAddr) -> io::Result<bool> {
        let allocated = self.ask(Method::Allocate, |writer| {
            writer.requested_transport(17);
        })?;
        let bound = self.ask(Method::ChannelBind, |writer| {
            writer.channel_number(NUMBER).xor_peer_address(peer);
        })?;
        match (code(&allocated), code(&bound)) {
            (None, None) => self.set_nonblocking(true).map(|()| true),
            (Some(437), None) => self.set_nonblocking(true).map(|()| false),
            refused => Err(io::Error::other(format!("{refused:?}"))),
        }
    }

    fn ask(&mut self, method: Method, fill: impl Fn(&mut Writer<'_>)) -> io::Result<Vec<u8>> {
        match self {
            Self::Udp(client) => Ok(client.ask(method, fill)),
            Self::Tcp(client) => client.try_ask(method, fill),
            Self::Tls(client) => client.try_ask(method, fill),
        }
    }

    fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        match self {
            Self::Udp(client) => client.socket.set_nonblocking(nonblocking),
            Self::Tcp(client) => client.stream.set_nonblocking(nonblocking),
            Self::Tls(client) => client.stream.sock.set_nonblocking(nonblocking),
        }
    }

    /// So little is on its way that every send buffer has room.
    fn send(&mut self, message: &[u8]) -> io::Result<()> {
        match self {
            Self::Udp(client) => client.socket.send(message).map(drop),
            Self::Tcp(client) => client.stream.write_all(message),
            Self::Tls(client) => client.stream.write_all(message).and_then(|()| client.stream.flush()),
        }
    }

    /// Adds everything that has come.
    fn receive(&mut self, bytes: &mut Vec<u8>) -> io::Result<()> {
        let mut buffer = [0; 4096];
        loop {
            let read = match self {
                Self::Udp(client) => client.socket.recv(&mut buffer),
                Self::Tcp(client) => client.stream.read(&mut buffer),
                Self::Tls(client) => client.stream.read(&mut buffer),
            };
            match read {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(len) => bytes.extend(&buffer[..len]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }
}

fn transaction(number: u64) -> TransactionId {
    let mut id = [0; 12];
    id[4..].copy_from_slice(&number.to_be_bytes());
    TransactionId(id)
}

fn binding(number: u64) -> [u8; 20] {
    let mut buffer = [0; 20];
    let writer = Writer::new(&mut buffer, Class::Request, Method::Binding, transaction(number));
    assert_eq!(writer.unwrap().finish(None, false), Some(20));
    buffer
}

/// A receive buffer as large as that of a relayed address, as far as it may be.
fn enlarge(socket: &UdpSocket) {
    const WANTED: usize = 1 << 20;
    if sockopt::set_socket_recv_buffer_size_force(socket, WANTED).is_err() {
        sockopt::set_socket_recv_buffer_size(socket, WANTED).unwrap();
    }
}

/// What came of a flow.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// Datagrams that came all the way.
    pub returned: u64,
    /// The longest time without any, in particular while the relay did something else.
    pub gap: Duration,
}

/// Numbered datagrams through one channel to a peer that sends each back, at a fixed rate whatever comes of them.
///
/// But for one limit: there are never more on their way than receive buffers surely hold, so that whatever is missing was lost
/// by the relay, and a relay that is slow shows as a gap. On a busy machine the load becomes less by that, and nothing fails.
pub struct Flow {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Outcome>,
}

impl Flow {
    /// On a new allocation, so many datagrams a second, beside so many flows in all.
    pub fn start(access: Access, rate: f64, flows: usize) -> Self {
        Self::start_telling(access, rate, flows, None)
    }

    /// The same for a relay that will crash: the client then comes back by itself, and each time tells when the first datagram
    /// came all the way.
    pub fn start_telling(access: Access, rate: f64, flows: usize, back: Option<Sender<Instant>>) -> Self {
        let peer = peer();
        enlarge(&peer);
        peer.set_nonblocking(true).unwrap();
        let mut link = Link::open(&access).unwrap();
        assert!(link.bind(peer.local_addr().unwrap()).unwrap());
        let on_their_way_max = sockopt::socket_recv_buffer_size(&peer).unwrap() / BUFFERED / flows;
        let stop = Arc::new(AtomicBool::new(false));
        let told = stop.clone();
        let state = State {
            access,
            link,
            peer,
            epoch: 0,
            sent: 0,
            returned: 0,
            unread: Vec::new(),
            start: Instant::now(),
            last: Instant::now(),
            gap: Duration::ZERO,
            asked: Instant::now(),
            tells: false,
            back,
        };
        let thread = std::thread::spawn(move || state.run(rate, on_their_way_max as u64, &told));
        Self { stop, thread }
    }

    /// Ends it once everything is back; whatever is not after [`PATIENCE`] is lost.
    pub fn finish(self) -> Outcome {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

struct State {
    access: Access,
    link: Link,
    peer: UdpSocket,
    /// Allocations before this one: what was on its way through those is not counted.
    epoch: u64,
    sent: u64,
    returned: u64,
    unread: Vec<u8>,
    /// Of the schedule.
    start: Instant,
    /// When something came last.
    last: Instant,
    gap: Duration,
    /// When the client last came back.
    asked: Instant,
    /// The next datagram is the first through a new allocation.
    tells: bool,
    back: Option<Sender<Instant>>,
}

impl State {
    fn run(mut self, rate: f64, on_their_way_max: u64, stop: &AtomicBool) -> Outcome {
        loop {
            let stopping = stop.load(Ordering::Relaxed);
            if stopping && self.sent == self.returned {
                break;
            }
            assert!(self.last.elapsed() < PATIENCE, "lost: {} of {}", self.sent - self.returned, self.sent);
            let due = if stopping { 0 } else { (self.start.elapsed().as_secs_f64() * rate) as u64 };
            let turned = self.turn(due.min(self.returned + on_their_way_max));
            if let (Err(error), None) = (&turned, &self.back) {
                panic!("the relay dropped its client: {error}");
            }
            if turned.is_err() || self.is_silent() {
                self.come_back();
            }
            std::thread::sleep(TICK);
        }
        self.link.set_nonblocking(false).unwrap();
        let deleted = self.link.ask(Method::Refresh, |writer| {
            writer.lifetime(0);
        });
        assert_eq!(code(&deleted.unwrap()), None);
        Outcome { returned: self.returned, gap: self.gap }
    }

    /// Sends until so many are sent, sends back, and takes what has come.
    fn turn(&mut self, due: u64) -> io::Result<()> {
        while self.sent < due {
            let mut message = channel_data::header(NUMBER, 8).unwrap().to_vec();
            message.extend((self.epoch << 48 | self.sent).to_be_bytes());
            self.link.send(&message)?;
            self.sent += 1;
        }
        let mut buffer = [0; 100];
        while let Ok((len, from)) = self.peer.recv_from(&mut buffer) {
            self.peer.send_to(&buffer[..len], from).unwrap();
        }
        let before = self.returned;
        let broken = self.link.receive(&mut self.unread);
        let whole = self.unread.len() / MESSAGE * MESSAGE;
        for message in self.unread.drain(..whole).as_slice().chunks(MESSAGE) {
            let number = u64::from_be_bytes(message[4..].try_into().unwrap());
            if number >> 48 == self.epoch {
                assert_eq!(number, self.epoch << 48 | self.returned, "in order, each once");
                self.returned += 1;
            }
        }
        if self.returned > before {
            let now = Instant::now();
            self.gap = self.gap.max(now - self.last);
            self.last = now;
            if let (true, Some(back)) = (std::mem::take(&mut self.tells), &self.back) {
                back.send(now).unwrap();
            }
        }
        broken
    }

    /// Whether a client whose relay may crash has to ask: over UDP a relay that crashed and came back before the next datagram
    /// left is met by silence only, and so is one that crashed with as much on the way as there may be.
    fn is_silent(&self) -> bool {
        let waits = self.last.elapsed().min(self.asked.elapsed()) > SILENCE;
        self.back.is_some() && matches!(self.link, Link::Udp(_)) && self.sent > self.returned && waits
    }

    /// Allocates on the relay that comes after one that crashed, and goes on. Where it turns out to have been slow only, what
    /// was on its way is no longer counted.
    fn come_back(&mut self) {
        let peer = self.peer.local_addr().unwrap();
        let mut attempt = 0;
        let anew = loop {
            match self.link.open_again(&self.access, attempt).and_then(|()| self.link.bind(peer)) {
                Ok(anew) => break anew,
                Err(error) => {
                    assert!(self.last.elapsed() < PATIENCE, "the client does not come back: {error}");
                    attempt += 1;
                    std::thread::sleep(RETRY);
                }
            }
        };
        self.asked = Instant::now();
        self.tells = self.tells || anew;
        self.epoch += 1;
        (self.sent, self.returned, self.start) = (0, 0, Instant::now());
        self.unread.clear();
    }
}

/// Half of what this machine can do with a relay, in datagrams a second that come all the way: several clients for a moment as
/// fast as they go.
pub fn half_of_capacity(relay: SocketAddr) -> f64 {
    let start = Instant::now();
    let loads: Vec<Load> = (0..3).map(|_| Load::start(Client::new(relay))).collect();
    std::thread::sleep(Duration::from_millis(200));
    let mut datagrams = 0;
    for load in loads {
        let (mut client, count) = load.finish();
        datagrams += count;
        let deleted = client.ask(Method::Refresh, |writer| {
            writer.lifetime(0);
        });
        assert_eq!(code(&deleted), None);
    }
    datagrams as f64 / start.elapsed().as_secs_f64() / 2.0
}
