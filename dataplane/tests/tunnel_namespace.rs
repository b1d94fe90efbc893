//! `towpath up` end to end: two endpoints in network namespaces of their own, real packets between them. Needs user
//! namespaces and an open /dev/net/tun; without them each test says that it is left out.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]
#![expect(clippy::disallowed_methods, reason = "a test starts programs and waits for them")]

#[path = "tunnel_namespace/show.rs"]
mod show;
#[path = "support/user_namespace.rs"]
mod user_namespace;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use dataplane::netlink::Handle;
use dataplane::sys::namespace;
use dataplane::tunnel::key::SecretKey;
use dataplane::tunnel::noise;
use user_namespace::left_out::left_out;

const TOWPATH: &str = env!("CARGO_BIN_EXE_towpath");
const PATIENCE: Duration = Duration::from_secs(10);

/// Runs the calling test again as root of new namespaces and answers `false`; answers `true` there.
fn inside_namespace(test: &str) -> bool {
    if let Err(error) = std::fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun") {
        left_out(&format!("/dev/net/tun: {error}"));
        return false;
    }
    user_namespace::inside(test)
}

/// A network namespace: whatever is to happen in it runs on a thread that has entered it.
struct Namespace(std::fs::File);

impl Namespace {
    fn new() -> Self {
        let made = std::thread::spawn(|| {
            namespace::unshare_net().unwrap();
            std::fs::File::open("/proc/thread-self/ns/net").unwrap()
        });
        Self(made.join().unwrap())
    }

    fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                namespace::enter(self.0.as_fd()).unwrap();
                work()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

/// Two namespaces with a cable between them: 192.0.2.1 and 192.0.2.2, 2001:db8::1 and 2001:db8::2.
struct Cable {
    a: Namespace,
    b: Namespace,
    directory: tempfile::TempDir,
}

impl Cable {
    fn new() -> Self {
        let (a, b) = (Namespace::new(), Namespace::new());
        let mut handle = Handle::open().unwrap();
        let (left, right) = handle.add_veth("left", "right").unwrap();
        handle.move_to_namespace(left, a.0.as_fd()).unwrap();
        handle.move_to_namespace(right, b.0.as_fd()).unwrap();
        for (side, name, number) in [(&a, "left", 1), (&b, "right", 2)] {
            side.run(|| {
                let mut handle = Handle::open().unwrap();
                for up in ["lo", name] {
                    let index = handle.link_index(up).unwrap();
                    handle.set_up(index).unwrap();
                }
                let index = handle.link_index(name).unwrap();
                handle.add_address(index, format!("192.0.2.{number}/24").parse().unwrap()).unwrap();
                handle.add_address(index, format!("2001:db8::{number}/64").parse().unwrap()).unwrap();
            });
        }
        Self { a, b, directory: tempfile::tempdir().unwrap() }
    }

    /// Writes the configuration of side 1 (which knows the other's endpoint, if one is given) or side 2.
    fn configuration(&self, number: u8, interface: &str, peer: &str) -> PathBuf {
        let key = |number: u8| SecretKey::new([number; 32]).clamped();
        let other = 3 - number;
        let text = format!(
            "[Interface]\nPrivateKey = {}\nAddress = 10.99.0.{number}/24, fd99::{number}/64\nListenPort = 51820\n\
             {interface}\n[Peer]\nPublicKey = {}\nAllowedIPs = 10.99.0.{other}/32, fd99::{other}/128\n{peer}\n",
            *key(number).to_base64(),
            noise::public_key(&key(other)),
        );
        let file = self.directory.path().join(format!("towpath{number}.conf"));
        std::fs::write(&file, text).unwrap();
        file
    }
}

/// A running `towpath up`.
struct Running {
    child: Child,
    log: PathBuf,
}

impl Running {
    fn start(namespace: &Namespace, file: &Path, flags: &[&str]) -> Self {
        let log = file.with_extension("log");
        let output = std::fs::File::create(&log).unwrap();
        let child = namespace.run(|| {
            Command::new(TOWPATH)
                .arg("up")
                .arg(file)
                .args(["--log-format", "json"])
                .args(flags)
                .env("RUNTIME_DIRECTORY", file.with_file_name("run"))
                .stderr(Stdio::from(output))
                .spawn()
                .unwrap()
        });
        let mut running = Self { child, log };
        running.wait_for("ready");
        running
    }

    fn wait_for(&mut self, message: &str) {
        let start = Instant::now();
        while !self.lines().iter().any(|line| line["message"] == message) {
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none() && start.elapsed() < PATIENCE, "no {message:?}: {:#?}", self.lines());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn lines(&self) -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(&self.log).unwrap();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Asks it to stop and answers its ledger.
    fn stop(mut self) -> serde_json::Value {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let status = self.child.wait().unwrap();
        let lines = self.lines();
        assert!(status.success(), "{status}: {}", std::fs::read_to_string(&self.log).unwrap());
        let ledger = lines.iter().find(|line| line["message"] == "ledger").expect("a ledger");
        ledger["figures"].clone()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // A failed test must not leave it behind; after `stop` there is nothing to kill.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends datagrams of many sizes through the tunnel and back, one at a time.
fn echo_datagrams(cable: &Cable, from: &str, to: &str) {
    let bind = |side: &Namespace, address: &str| {
        let address: SocketAddr = address.parse().unwrap();
        side.run(|| {
            let socket = UdpSocket::bind(address).unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            socket
        })
    };
    let (ours, theirs) = (bind(&cable.a, from), bind(&cable.b, to));
    let mut buffer = [0; 2_000];
    for len in [0, 1, 15, 16, 17, 500, 1_232, 1_300] {
        let payload: Vec<u8> = (0..len).map(|index| (index % 251) as u8).collect();
        ours.send_to(&payload, theirs.local_addr().unwrap()).unwrap();
        let (received, source) = theirs.recv_from(&mut buffer).unwrap();
        assert_eq!((&buffer[..received], source), (&payload[..], ours.local_addr().unwrap()));
        theirs.send_to(&payload, source).unwrap();
        let (received, _) = ours.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..received], &payload[..]);
    }
}

/// Sends a stream through the tunnel in one direction, and checks every byte.
fn stream(server: &Namespace, client: &Namespace, address: &str) {
    const LEN: usize = 8 << 20;
    let address: SocketAddr = address.parse().unwrap();
    let pattern = |offset: usize| (offset / 7 % 256) as u8;
    std::thread::scope(|scope| {
        let listener = server.run(|| TcpListener::bind(address).unwrap());
        let receive = scope.spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut bytes = Vec::new();
            socket.read_to_end(&mut bytes).unwrap();
            bytes
        });
        client.run(|| {
            let mut socket = TcpStream::connect_timeout(&address, PATIENCE).unwrap();
            socket.set_write_timeout(Some(PATIENCE)).unwrap();
            socket.write_all(&(0..LEN).map(pattern).collect::<Vec<_>>()).unwrap();
        });
        let bytes = receive.join().unwrap();
        assert_eq!(bytes.len(), LEN);
        assert!(bytes.iter().enumerate().all(|(offset, byte)| *byte == pattern(offset)));
    });
}

/// Everything that goes through the tunnel when the cable is set up; then both ends stop with a clean ledger.
fn exercise(cable: &Cable, a: Running, b: Running) {
    echo_datagrams(cable, "10.99.0.1:7000", "10.99.0.2:7000");
    echo_datagrams(cable, "[fd99::1]:7000", "[fd99::2]:7000");
    stream(&cable.b, &cable.a, "10.99.0.2:7001");
    stream(&cable.a, &cable.b, "[fd99::1]:7001");
    for ledger in [a.stop(), b.stop()] {
        assert_eq!(ledger["unexplained"], 0, "{ledger:#}");
        let lost = &ledger["application_drops"];
        // The kernel's own neighbour and multicast reports on the new interface go nowhere.
        let others = lost.as_object().unwrap().keys().filter(|cause| *cause != "no_route").count();
        assert_eq!(others, 0, "{ledger:#}");
    }
}

fn carries_packets(io: &str, endpoint: &str, mtu: u16) {
    let cable = Cable::new();
    let interface = format!("MTU = {mtu}");
    let a = cable.configuration(1, &interface, &format!("Endpoint = {endpoint}"));
    let b = cable.configuration(2, &interface, "");
    let b = Running::start(&cable.b, &b, &["--io", io]);
    let a = Running::start(&cable.a, &a, &["--io", io]);
    exercise(&cable, a, b);
}

#[test]
fn packets_pass_with_suspend_over_ipv4() {
    if inside_namespace("packets_pass_with_suspend_over_ipv4") {
        carries_packets("suspend", "192.0.2.2:51820", 1_420);
    }
}

#[test]
fn packets_pass_with_uring_over_ipv6() {
    if inside_namespace("packets_pass_with_uring_over_ipv6") {
        carries_packets("uring", "[2001:db8::2]:51820", 1_420);
    }
}

#[test]
fn packets_pass_with_threaded_at_the_default_mtu() {
    if inside_namespace("packets_pass_with_threaded_at_the_default_mtu") {
        carries_packets("threaded", "192.0.2.2:51820", 1_280);
    }
}

#[test]
fn packets_pass_over_a_debian_turn_server() {
    if !inside_namespace("packets_pass_over_a_debian_turn_server") {
        return;
    }
    let cable = Cable::new();
    let server = cable.b.run(|| {
        Command::new("turnserver")
            .args([
                "-n",
                "--no-tls",
                "--no-dtls",
                "--no-cli",
                "-L",
                "192.0.2.2",
                "-p",
                "3478",
                "-a",
                "-r",
                "test",
            ])
            .args(["-u", "alice:secret", "-l", "stdout", "--userdb"])
            .arg(cable.directory.path().join("turndb"))
            .args(["--pidfile", "/dev/null"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
    });
    let Ok(mut server) = server else {
        left_out("coturn's turnserver: apt-get install coturn");
        return;
    };
    std::fs::write(cable.directory.path().join("password"), "secret\n").unwrap();
    let interface = "MTU = 1420\n#towpath: Relay = turn:192.0.2.2:3478\n#towpath: RelayUsername = alice\n\
                     #towpath: RelayPasswordFile = password";
    let a = cable.configuration(1, interface, "Endpoint = 192.0.2.2:51820\n#towpath: Path = relay");
    let b = cable.configuration(2, "MTU = 1420", "");
    let b = Running::start(&cable.b, &b, &["--io", "suspend"]);
    let a = Running::start(&cable.a, &a, &["--io", "suspend"]);
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| exercise(&cable, a, b)));
    server.kill().unwrap();
    server.wait().unwrap();
    outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

#[test]
fn a_relayed_interface_gets_an_mtu_that_fits() {
    if !inside_namespace("a_relayed_interface_gets_an_mtu_that_fits") {
        return;
    }
    let cable = Cable::new();
    std::fs::write(cable.directory.path().join("password"), "secret\n").unwrap();
    let interface = "MTU = 1420\n#towpath: Relay = turn:[2001:db8::2]:3478\n#towpath: RelayUsername = alice\n\
                     #towpath: RelayPasswordFile = password";
    let file = cable.configuration(1, interface, "Endpoint = [2001:db8::2]:51820");
    let log = std::fs::File::create(file.with_extension("log")).unwrap();
    let child = cable.a.run(|| {
        let mut command = Command::new(TOWPATH);
        command.arg("up").arg(&file).args(["--log-format", "json"]).stderr(log);
        command.env("RUNTIME_DIRECTORY", file.with_file_name("run")).spawn().unwrap()
    });
    let mut running = Running { child, log: file.with_extension("log") };
    running.wait_for("interface is up");
    let lines = running.lines();
    let warned = |line: &&serde_json::Value| {
        line["severity"] == "WARN" && line["message"].as_str().unwrap().contains("MTU = 1416")
    };
    assert!(lines.iter().find(warned).is_some(), "{lines:#?}");
    let mtu = cable.a.run(|| std::fs::read_to_string("/proc/self/net/dev").is_ok().then(interface_mtu));
    assert_eq!(mtu.flatten(), Some(1_416));
    running.stop();
}

/// The largest datagram that leaves in one piece says what the interface's MTU is.
fn interface_mtu() -> Option<usize> {
    let socket = UdpSocket::bind("10.99.0.1:0").unwrap();
    socket.connect("10.99.0.2:9").unwrap();
    rustix::net::sockopt::ip_mtu(&socket).ok().map(|mtu| mtu as usize)
}
