//! A relay process on loopback, and a client that speaks to it over real sockets.

#![allow(dead_code, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

pub mod http;

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
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
    /// Where its figures are.
    admin: Option<SocketAddr>,
    /// What it logged before it was ready.
    before_ready: String,
    log: mpsc::Receiver<String>,
}

impl RelayProcess {
    /// Starts a relay with these flags besides its user, and waits until it is ready. There are many at a time, so that
    /// figures are shown only where the flags say so.
    pub fn start(flags: &[&str]) -> Self {
        let silent: &[&str] = if flags.contains(&"--admin") { &[] } else { &["--admin", "off"] };
        Self::start_as_it_is(&[flags, silent].concat())
    }

    /// As [`RelayProcess::start`], with nothing else.
    pub fn start_as_it_is(flags: &[&str]) -> Self {
        let mut child = program(env!("CARGO_BIN_EXE_towpath-relay"))
            .args(["--realm", REALM, "--user", &format!("{USER}:{PASSWORD}")])
            .args(flags)
            .env_remove("RUST_LOG")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = lines(child.stderr.take().unwrap());
        let mut seen = String::new();
        let mut admin = None;
        loop {
            let Ok(line) = log.recv_timeout(PATIENCE) else {
                let _ = child.kill();
                let _ = child.wait();
                panic!("the relay did not become ready:\n{seen}")
            };
            if let Some((_, listen)) = line.split_once("ready listen=") {
                let listen =
                    listen.trim_matches('"').split(' ').map(|address| address.parse().unwrap()).collect();
                return Self { child, listen, admin, before_ready: seen, log };
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

    /// Its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Tells it to stop, waits, and returns the rest of its log.
    pub fn stop(mut self) -> (ExitStatus, String) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
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
}

impl Client {
    pub fn new(relay: SocketAddr) -> Self {
        let socket = socket();
        socket.connect(relay).unwrap();
        Self { socket, nonce: Vec::new(), transactions: 0 }
    }

    fn key() -> Key {
        Key::long_term(USER.as_bytes(), REALM.as_bytes(), PASSWORD.as_bytes())
    }

    /// Sends a request with credentials; the first one is challenged and sent again.
    pub fn ask(&mut self, method: Method, fill: impl Fn(&mut Writer<'_>)) -> Vec<u8> {
        for _ in 0..2 {
            self.transactions += 1;
            let transaction = TransactionId([self.transactions; 12]);
            let mut buffer = [0; 1000];
            let mut writer = Writer::new(&mut buffer, Class::Request, method, transaction).unwrap();
            fill(&mut writer);
            writer.username(USER.as_bytes()).realm(REALM.as_bytes()).nonce(&self.nonce);
            let len = writer.finish(Some(&Self::key()), true).unwrap();
            self.socket.send(&buffer[..len]).unwrap();
            let (reply, _) = receive(&self.socket);
            let message = Message::parse(&reply).unwrap();
            assert_eq!((message.transaction(), message.method()), (transaction, method));
            assert_eq!(message.verify_fingerprint(), Some(true));
            match message.error_code().unwrap().map(|code| code.0) {
                Some(401 | 438) => self.nonce = message.nonce().unwrap().to_vec(),
                _ => {
                    assert!(message.verify_integrity(&Self::key()));
                    return reply;
                }
            }
        }
        panic!("the relay does not accept these credentials")
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
