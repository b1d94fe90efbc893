//! A relay process on loopback, and a client that speaks to it over real sockets.

#![allow(dead_code, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

pub mod browser;
pub mod configured;
pub mod http;
pub mod load;
pub mod steady;
pub mod stream;

use std::cell::RefCell;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
pub use std::net::UdpSocket;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use dataplane::stun::{Class, Key, Message, Method, TransactionId, Writer};
use rustix::process::{Pid, Signal, kill_process};

/// The realm and the only user of every relay here.
pub const REALM: &str = "example.org";
pub const USER: &str = "alice";
pub const PASSWORD: &str = "secret";
/// Long enough for a busy machine; nothing waits that long when all is well.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// A program that tests start. The relay has no ring of the test process to inherit.
#[expect(clippy::disallowed_methods, reason = "a test starts programs")]
pub fn program(name: &str) -> Command {
    Command::new(name)
}

/// A running relay; killed when it is dropped.
pub struct RelayProcess {
    child: Child,
    /// Where it listens, in the order of its flags.
    pub listen: Vec<SocketAddr>,
    /// Where it listens for TCP and TLS.
    pub tcp: Vec<SocketAddr>,
    pub tls: Vec<SocketAddr>,
    /// Where its figures are.
    admin: Option<SocketAddr>,
    log: mpsc::Receiver<String>,
    before_ready: String,
    seen: RefCell<String>,
}

impl RelayProcess {
    /// Starts a relay with these flags besides its user, and waits until it is ready. There are many at a time, so that
    /// figures are shown only where the flags say so.
    pub fn start(flags: &[&str]) -> Self {
        Self::start_by(program(env!("CARGO_BIN_EXE_towpath-relay")), flags)
    }

    /// As [`RelayProcess::start`], by a command that ends in the program's name.
    pub fn start_by(command: Command, flags: &[&str]) -> Self {
        let silent: &[&str] = if flags.contains(&"--admin") { &[] } else { &["--admin", "off"] };
        Self::start_with(command, &[flags, silent].concat())
    }

    /// As [`RelayProcess::start`], with nothing else but an end that does not wait.
    pub fn start_as_it_is(flags: &[&str]) -> Self {
        Self::start_with(program(env!("CARGO_BIN_EXE_towpath-relay")), flags)
    }

    fn start_with(mut command: Command, flags: &[&str]) -> Self {
        command.args(["--realm", REALM, "--user", &format!("{USER}:{PASSWORD}")]).args(flags);
        // Most tests end with their allocations still there.
        if !flags.contains(&"--drain-timeout") {
            command.args(["--drain-timeout", "0"]);
        }
        Self::spawn(command)
    }

    /// Starts a relay by this command, and waits until it is ready.
    pub fn spawn(mut command: Command) -> Self {
        let mut child = command.env_remove("RUST_LOG").stderr(Stdio::piped()).spawn().unwrap();
        let log = lines(child.stderr.take().unwrap());
        let mut seen = String::new();
        let (mut tcp, mut tls, mut admin) = (Vec::new(), Vec::new(), None);
        loop {
            let Ok(line) = log.recv_timeout(PATIENCE) else {
                let _ = child.kill();
                let _ = child.wait();
                panic!("the relay did not become ready:\n{seen}")
            };
            let addresses = |before: &str| -> Option<Vec<SocketAddr>> {
                let (_, listen) = line.split_once(before)?;
                Some(listen.trim_matches('"').split(' ').map(|address| address.parse().unwrap()).collect())
            };
            tcp.extend(addresses("clients over TCP listen=").unwrap_or_default());
            tls.extend(addresses("clients over TLS listen=").unwrap_or_default());
            if let Some(listen) = addresses("ready listen=") {
                let before_ready = seen;
                return Self { child, listen, tcp, tls, admin, log, before_ready, seen: RefCell::default() };
            }
            if let Some((_, address)) = line.split_once("metrics and status page address=") {
                admin = Some(address.parse().unwrap());
            }
            seen.push_str(&line);
            seen.push('\n');
        }
    }

    /// A relay on 127.0.0.1 whose clients may reach loopback.
    pub fn on_loopback(flags: &[&str]) -> Self {
        let own = ["--listen", "127.0.0.1:0", "--allow-peer", "127.0.0.0/8"];
        Self::start(&[&own, flags].concat())
    }

    /// Where its figures are.
    pub fn admin(&self) -> SocketAddr {
        self.admin.expect("it was started with --admin")
    }

    /// What it logged before it was ready.
    pub fn before_ready(&self) -> &str {
        &self.before_ready
    }

    /// Every line that was waited for or passed over since.
    pub fn seen(&self) -> String {
        self.seen.borrow().clone()
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// The next line of its log that holds `text`.
    pub fn wait_for(&self, text: &str) -> String {
        loop {
            let Ok(line) = self.log.recv_timeout(PATIENCE) else {
                panic!("no {text:?} in the log:\n{}", self.seen.borrow())
            };
            self.seen.borrow_mut().push_str(&format!("{line}\n"));
            if line.contains(text) {
                return line;
            }
        }
    }

    /// Waits until its process is gone.
    pub fn wait_for_end(&mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }

    /// Tells it to stop, waits, and returns the rest of its log.
    pub fn stop(self) -> (ExitStatus, String) {
        self.signal(Signal::TERM);
        self.wait()
    }

    /// Waits for its end, and returns the rest of its log.
    pub fn wait(mut self) -> (ExitStatus, String) {
        let rest: Vec<String> = self.log.iter().collect();
        (self.child.wait().unwrap(), rest.join("\n"))
    }
}

impl Drop for RelayProcess {
    fn drop(&mut self) {
        // Gone already after `stop`.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A file that only its owner can read.
pub fn private_file(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

/// Writes a file that only its owner can read, as editors and configuration tools do it: a new file takes the place of the
/// old.
pub fn write_private(path: &Path, text: &str) {
    let new = path.with_extension("new");
    let mut options = fs::OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o600).open(&new).unwrap();
    file.write_all(text.as_bytes()).unwrap();
    fs::rename(&new, path).unwrap();
}

/// The lines of a pipe, read by a thread so that the writer never blocks on it.
fn lines(pipe: ChildStderr) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

/// Everything a finished child wrote.
pub fn output(child: &mut Child) -> String {
    let mut text = String::new();
    child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    text
}

/// A socket that gives up after [`PATIENCE`].
pub fn socket() -> UdpSocket {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// The same on another address.
pub fn socket_on(address: IpAddr) -> UdpSocket {
    let socket = UdpSocket::bind((address, 0)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// A peer, on an address of its own: its port can then not be one that the relay listens on for TCP, where peers are refused.
pub fn peer() -> UdpSocket {
    socket_on(Ipv4Addr::new(127, 0, 0, 2).into())
}

/// A range of this many ports (at most 10) for --relay-ports, free a moment ago. The kernel hands none of them out by itself, and
/// tests that run at the same time look in different places.
pub fn free_ports(count: u16) -> (u16, u16) {
    static ASKED: AtomicU16 = AtomicU16::new(0);
    let first = (std::process::id() as u16 % 400 + ASKED.fetch_add(1, Ordering::Relaxed)) % 400;
    let mut bases = (0..400).map(|step| 61_000 + (first + step) % 400 * 10);
    let is_free = |port| UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
    let base = bases.find(|&base| (base..base + count).all(is_free)).expect("there are free ports");
    (base, base + count - 1)
}

/// The next datagram and its sender.
pub fn receive(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut buffer = vec![0; 70_000];
    let (len, from) = socket.recv_from(&mut buffer).expect("a datagram arrives");
    buffer.truncate(len);
    (buffer, from)
}

/// A client that sends one request at a time.
pub struct Client {
    pub socket: UdpSocket,
    nonce: Vec<u8>,
    transactions: u8,
    user: (String, String),
}

impl Client {
    pub fn new(relay: SocketAddr) -> Self {
        let socket = if relay.is_ipv4() { socket() } else { socket_on(Ipv6Addr::LOCALHOST.into()) };
        socket.connect(relay).unwrap();
        Self { socket, nonce: Vec::new(), transactions: 0, user: (USER.to_owned(), PASSWORD.to_owned()) }
    }

    /// The same client, for another user.
    pub fn with_user(self, name: &str, password: &str) -> Self {
        Self { user: (name.to_owned(), password.to_owned()), ..self }
    }

    fn key(&self) -> Key {
        Key::long_term(self.user.0.as_bytes(), REALM.as_bytes(), self.user.1.as_bytes())
    }

    /// Sends a request with credentials; the first one is challenged and sent again.
    pub fn ask(&mut self, method: Method, fill: impl Fn(&mut Writer<'_>)) -> Vec<u8> {
        self.try_ask(method, fill).expect("the relay accepts these credentials")
    }

    /// As [`Client::ask`]; the code when the relay does not accept the credentials.
    pub fn try_ask(&mut self, method: Method, fill: impl Fn(&mut Writer<'_>)) -> Result<Vec<u8>, u16> {
        let mut last = 0;
        for _ in 0..2 {
            let transaction = self.tell(method, &fill);
            let (reply, _) = receive(&self.socket);
            let message = Message::parse(&reply).unwrap();
            assert_eq!((message.transaction(), message.method()), (transaction, method));
            assert_eq!(message.verify_fingerprint(), Some(true));
            match message.error_code().unwrap().map(|code| code.0) {
                Some(challenge @ (401 | 438)) => {
                    last = challenge;
                    self.nonce = message.nonce().unwrap().to_vec();
                }
                _ => {
                    assert!(message.verify_integrity(&self.key()));
                    return Ok(reply);
                }
            }
        }
        Err(last)
    }

    /// Sends a request whose nonce is good, and returns what arrives before its answer.
    pub fn ask_beside(&mut self, method: Method, fill: impl Fn(&mut Writer<'_>)) -> Vec<Vec<u8>> {
        let transaction = self.tell(method, &fill);
        let mut beside = Vec::new();
        loop {
            let (datagram, _) = receive(&self.socket);
            if Message::parse(&datagram).is_ok_and(|message| message.transaction() == transaction) {
                return beside;
            }
            beside.push(datagram);
        }
    }

    /// Sends a request with credentials and does not wait for the answer.
    pub fn tell(&mut self, method: Method, fill: impl Fn(&mut Writer<'_>)) -> TransactionId {
        self.transactions = self.transactions.wrapping_add(1);
        let transaction = TransactionId([self.transactions; 12]);
        let mut buffer = [0; 1000];
        let mut writer = Writer::new(&mut buffer, Class::Request, method, transaction).unwrap();
        fill(&mut writer);
        writer.username(self.user.0.as_bytes()).realm(REALM.as_bytes()).nonce(&self.nonce);
        let len = writer.finish(Some(&self.key()), true).unwrap();
        self.socket.send(&buffer[..len]).unwrap();
        transaction
    }

    /// Allocates and returns the relayed address.
    pub fn allocate(&mut self) -> SocketAddr {
        let reply = self.ask(Method::Allocate, |writer| {
            writer.requested_transport(17);
        });
        let message = Message::parse(&reply).unwrap();
        assert_eq!(message.class(), Class::Success, "{:?}", message.error_code());
        message.xor_relayed_address().unwrap().unwrap()
    }
}

/// The error code of an answer, or nothing.
pub fn code(reply: &[u8]) -> Option<u16> {
    Message::parse(reply).unwrap().error_code().unwrap().map(|code| code.0)
}
