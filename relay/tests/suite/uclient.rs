//! coturn's clients at this relay: an independent reading of the same RFCs. In namespaces of their own, where every port is free.

#![allow(clippy::unwrap_used, reason = "a test panics when it cannot go on")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use crate::harness::stream::TestCertificate;
use crate::harness::{PASSWORD, RelayProcess, USER, program};
use crate::left_out::left_out;
use crate::{harness, user_namespace};

const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);
const PROGRAMS: [&str; 4] =
    ["turnutils_uclient", "turnutils_peer", "turnutils_stunclient", "turnutils_natdiscovery"];
/// The I/O designs that a set of cases is spread over.
const DESIGNS: [&str; 3] = ["auto", "suspend", "threaded"];
/// turnutils_peer has this port and the next, which RTP and RTCP go to.
const ECHO_PORT: u16 = 3480;
/// Each of two clients sends so many messages.
const MESSAGES: u64 = 50;
const CLIENTS: u64 = 2;
/// Clients at a time. Each waits for one to five seconds before it sends, which no flag of it changes, and then works for a tenth
/// of one.
const AT_A_TIME: usize = 24;

/// Runs `body` in a namespace with loopback, where coturn's programs and IPv6 are there.
fn with_programs(test: &str, body: impl FnOnce()) {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let is_there = |name: &&str| std::env::split_paths(&path).any(|folder| folder.join(name).exists());
    if !PROGRAMS.iter().all(is_there) {
        return left_out(&format!("{}: apt-get install coturn", PROGRAMS.join(", ")));
    }
    if !user_namespace::inside(&format!("uclient::{test}")) {
        return;
    }
    let mut handle = dataplane::netlink::Handle::open().unwrap();
    let loopback = handle.link_index("lo").unwrap();
    handle.set_up(loopback).unwrap();
    if UdpSocket::bind((V6, 0)).is_err() {
        return left_out("the address ::1: `sysctl net.ipv6.conf.default.disable_ipv6=0`");
    }
    body();
}

/// How clients reach the relay.
#[derive(Clone, Copy, Debug)]
enum Transport {
    Udp,
    Tcp,
    Tls,
}

impl Transport {
    const ALL: [Self; 3] = [Self::Udp, Self::Tcp, Self::Tls];

    fn flags(self) -> &'static [&'static str] {
        match self {
            Self::Udp => &[],
            Self::Tcp => &["-t"],
            Self::Tls => &["-t", "-S"],
        }
    }
}

/// A run of turnutils_uclient.
#[derive(Clone, Debug)]
struct Case {
    transport: Transport,
    /// Where the relay is asked.
    relay: IpAddr,
    /// Where messages go, unless they go from client to client.
    peer: IpAddr,
    flags: Vec<&'static str>,
    /// Whose allocations they are, as flags.
    user: [&'static str; 4],
    /// What relayed addresses have to be, each of them at least once.
    relayed: Vec<IpAddr>,
}

impl Case {
    fn new(transport: Transport, relay: IpAddr, peer: IpAddr, flags: &'static str) -> Self {
        let mut flags: Vec<&str> = flags.split_whitespace().collect();
        // With two addresses the client stops reading at the one that suits its peer, and IPv4 comes first.
        let relayed = if flags.contains(&"-Z") && peer == V6 { vec![V4, V6] } else { vec![peer] };
        if !flags.contains(&"-Z") {
            flags.push(if peer == V4 { "-X" } else { "-x" });
        }
        Self { transport, relay, peer, flags, user: ["-u", USER, "-w", PASSWORD], relayed }
    }

    /// By channels (what the client does when nothing is said) and indications (-s), alone (-c) and with a second allocation for RTCP on
    /// the next port, of both families and between them, of both at once (-Z), and with DONT-FRAGMENT (-g).
    fn with_peers(transport: Transport) -> Vec<Self> {
        let case = |relay, peer, flags| Self::new(transport, relay, peer, flags);
        let mut cases = Vec::new();
        for (relay, peer) in [(V4, V4), (V4, V6), (V6, V4), (V6, V6)] {
            cases.extend(["-c", "-c -s", "-Z", "-Z -s"].map(|flags| case(relay, peer, flags)));
        }
        cases.extend([V4, V6].map(|family| case(family, family, "")));
        cases.extend([V4, V6].map(|family| case(family, family, "-c -g")));
        cases.extend([V4, V6].map(|family| case(family, family, "-c -s -g")));
        cases
    }

    /// From client to client (-y) in the same ways.
    fn between_clients(transport: Transport) -> Vec<Self> {
        let flags = ["-y", "-y -s", "-y -c", "-y -c -s"];
        let case = |relay, relayed, flags| Self::new(transport, relay, relayed, flags);
        let mut cases: Vec<Self> =
            [V4, V6].iter().flat_map(|&family| flags.map(|flags| case(family, family, flags))).collect();
        cases.push(case(V4, V6, "-y -c"));
        cases.push(case(V6, V4, "-y -Z"));
        cases
    }
}

impl Case {
    /// Where this relay serves its clients.
    fn server(&self, relay: &RelayProcess) -> SocketAddr {
        let addresses = match self.transport {
            Transport::Udp => &relay.listen,
            Transport::Tcp => &relay.tcp,
            Transport::Tls => &relay.tls,
        };
        *addresses.iter().find(|address| address.ip() == self.relay).unwrap()
    }
}

/// Relays of every design, and the folder with their certificate.
struct Relays {
    relays: Vec<RelayProcess>,
    folder: tempfile::TempDir,
}

impl Relays {
    fn start(flags: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let files = TestCertificate::new().write(folder.path());
        let listen = ["127.0.0.1:0", "[::1]:0"];
        let start = |io| {
            let mut all = vec!["--io", io];
            for flag in ["--listen", "--listen-tcp", "--listen-tls"] {
                all.push(flag);
                all.extend(listen);
            }
            all.extend(files.iter().map(String::as_str));
            // All cases are one user's, who makes more of them at once than one should.
            all.extend(["--relay-address", "127.0.0.1", "::1", "--new-peers-per-user", "0"]);
            all.extend(flags);
            RelayProcess::start(&all)
        };
        Self { relays: DESIGNS.map(start).into(), folder }
    }

    fn certificate(&self) -> PathBuf {
        self.folder.path().join("relay.pem")
    }

    /// Spreads the cases over the relays, several at a time; every message of each has to arrive.
    fn run(&self, cases: &[Case]) {
        let placed = cases.iter().enumerate().map(|(index, case)| {
            // The next transport has the same case at the next relay.
            (case, case.server(&self.relays[(index + case.transport as usize) % self.relays.len()]))
        });
        let next = Mutex::new(placed.collect::<Vec<_>>().into_iter());
        let (failures, certificate) = (Mutex::new(Vec::new()), self.certificate());
        let work = || {
            loop {
                let Some((case, server)) = next.lock().unwrap().next() else { return };
                if let Err(failure) = run(case, server, &certificate) {
                    failures.lock().unwrap().push(format!("{case:?}: {failure}"));
                }
            }
        };
        std::thread::scope(|scope| (0..AT_A_TIME).for_each(|_| drop(scope.spawn(work))));
        let failures = failures.into_inner().unwrap();
        assert!(failures.is_empty(), "{}", failures.join("\n\n"));
    }

    /// Ends them; what they logged.
    fn stop(self) -> Vec<String> {
        let stop = |relay: RelayProcess| {
            let (status, log) = relay.stop();
            assert!(status.success() && log.contains(" unexplained=0 "), "{log}");
            log
        };
        self.relays.into_iter().map(stop).collect()
    }
}

/// Runs the client; why it did not do what it should.
fn run(case: &Case, server: SocketAddr, certificate: &Path) -> Result<(), String> {
    let text = |value: u64| value.to_string();
    let mut client = program("timeout");
    client
        .args(["60", "turnutils_uclient", "-v", "-p", &server.port().to_string()])
        .args(["-n", &text(MESSAGES), "-m", &text(CLIENTS), "-l", "121", "-z", "2"])
        .args(["-e", &case.peer.to_string(), "-r", &ECHO_PORT.to_string()])
        .args(case.user)
        .args(case.transport.flags())
        .args(&case.flags);
    if matches!(case.transport, Transport::Tls) {
        // It verifies the certificate then.
        client.arg("-E").arg(certificate);
    }
    let output = client.arg(server.ip().to_string()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let demand = |is_met: bool, what: &str| if is_met { Ok(()) } else { Err(format!("{what}\n{text}")) };
    demand(output.status.success(), "ends well")?;
    demand(text.contains("Total lost packets 0 (0.000000%), total send dropped 0 "), "nothing is lost")?;
    let total = text.lines().rfind(|line| line.contains("tot_send_msgs=")).unwrap_or_default();
    let sent = figure(total, "tot_send_msgs=");
    demand(sent >= Some(MESSAGES * CLIENTS), "sends everything")?;
    demand(sent == figure(total, "tot_recv_msgs="), "receives everything")?;
    let relayed: Vec<IpAddr> =
        text.lines().filter_map(|line| address(line, "Received relay addr: ")).collect();
    demand(case.relayed.iter().all(|address| relayed.contains(address)), "has the addresses it asks for")?;
    demand(relayed.iter().all(|address| case.relayed.contains(address)), "has no other addresses")
}

/// The number after this text.
fn figure(line: &str, name: &str) -> Option<u64> {
    let (_, rest) = line.split_once(name)?;
    rest.split(|character: char| !character.is_ascii_digit()).next()?.parse().ok()
}

/// The address after this text, which is written without brackets whatever its family.
fn address(line: &str, name: &str) -> Option<IpAddr> {
    let (_, rest) = line.split_once(name)?;
    rest.rsplit_once(':')?.0.parse().ok()
}

/// turnutils_peer, which sends everything back; killed when it is dropped.
struct Echo(Child);

impl Echo {
    fn start(ip: IpAddr) -> Self {
        let mut command = program("turnutils_peer");
        command.args(["-p", &ECHO_PORT.to_string(), "-L", &ip.to_string()]);
        let echo = Self(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        // It is ready when it answers.
        let probe = UdpSocket::bind((ip, 0)).unwrap();
        probe.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let answers = |port: u16| {
            (0..200).any(|_| probe.send_to(b"ready?", (ip, port)).is_ok() && probe.recv(&mut [0; 16]).is_ok())
        };
        assert!(answers(ECHO_PORT) && answers(ECHO_PORT + 1), "turnutils_peer does not answer");
        echo
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        // It has no other way to end, and nothing depends on how it does.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const ALLOW_LOOPBACK: [&str; 3] = ["--allow-peer", "127.0.0.0/8", "::1"];

fn through_the_relay(transport: Transport) {
    let _echoes = [V4, V6].map(Echo::start);
    let relays = Relays::start(&ALLOW_LOOPBACK);
    relays.run(&Case::with_peers(transport));
    relays.stop();
}

#[test]
fn nothing_is_lost_over_udp() {
    with_programs("nothing_is_lost_over_udp", || through_the_relay(Transport::Udp));
}

#[test]
fn nothing_is_lost_over_tcp() {
    with_programs("nothing_is_lost_over_tcp", || through_the_relay(Transport::Tcp));
}

#[test]
fn nothing_is_lost_over_tls() {
    with_programs("nothing_is_lost_over_tls", || through_the_relay(Transport::Tls));
}

/// Names and passwords by a service that knows one of two shared secrets, a user whose password is in a file, and one of whom only
/// the key is.
#[test]
fn nothing_is_lost_for_users_of_every_kind() {
    with_programs("nothing_is_lost_for_users_of_every_kind", || {
        let _echoes = [V4, V6].map(Echo::start);
        let secrets = harness::private_file("# until the end of the month\nsouth\n# since\nnorth\n");
        // turnadmin -k -u bob -r example.org -p hidden
        let users = harness::private_file("bob:0x0d60e873bc7d29982a338b2c923efa9f\ncarol:in the clear\n");
        let files = ["--secret-file", secrets.path().to_str().unwrap(), "--user-file"];
        let relays =
            Relays::start(&[&ALLOW_LOOPBACK[..], &files, &[users.path().to_str().unwrap()]].concat());
        let kinds = [
            ["-u", "someone", "-W", "south"],
            ["-u", "someone", "-W", "north"],
            ["-u", "bob", "-w", "hidden"],
            ["-u", "carol", "-w", "in the clear"],
        ];
        let case = |transport, family, user| Case { user, ..Case::new(transport, family, family, "-c") };
        let cases = Transport::ALL
            .into_iter()
            .zip([V4, V6, V4])
            .flat_map(|(transport, family)| kinds.map(|user| case(transport, family, user)));
        relays.run(&cases.collect::<Vec<_>>());
        relays.stop();
    });
}

/// Without exceptions for peers: every datagram stays inside the relay.
#[test]
fn nothing_is_lost_from_client_to_client_inside_the_relay() {
    with_programs("nothing_is_lost_from_client_to_client_inside_the_relay", || {
        let relays = Relays::start(&[]);
        let cases: Vec<Case> = Transport::ALL.into_iter().flat_map(Case::between_clients).collect();
        relays.run(&cases);
        let hairpinned: u64 = relays.stop().iter().filter_map(|log| figure(log, "hairpin packets=")).sum();
        assert!(hairpinned >= cases.len() as u64 * MESSAGES * CLIENTS, "{hairpinned}");
    });
}

/// By way of the kernel, as if it were two relays.
#[test]
fn nothing_is_lost_from_client_to_client_by_way_of_the_kernel() {
    with_programs("nothing_is_lost_from_client_to_client_by_way_of_the_kernel", || {
        let relays = Relays::start(&[&ALLOW_LOOPBACK[..], &["--hairpin", "off"]].concat());
        let cases = Transport::ALL
            .into_iter()
            .flat_map(|transport| [V4, V6].map(|family| Case::new(transport, family, family, "-y -c")));
        relays.run(&cases.collect::<Vec<_>>());
        assert!(relays.stop().iter().all(|log| !log.contains("hairpin packets=")));
    });
}

/// Everything a program says, which has to end well.
fn said(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{command:?}: {text}");
    text
}

/// The port of clients that are told one.
const CLIENT_PORT: u16 = 4_000;

/// turnutils_natdiscovery at this relay, from an address of the same family and [`CLIENT_PORT`].
fn discover(relay: SocketAddr, client: IpAddr, flags: &[&str]) -> String {
    let mut command = program("timeout");
    command
        .args(["30", "turnutils_natdiscovery", "-p", &relay.port().to_string(), "-L", &client.to_string()])
        .args(["-l", &CLIENT_PORT.to_string()])
        .args(flags)
        .arg(relay.ip().to_string());
    said(&mut command)
}

#[test]
fn stun_clients_learn_their_addresses() {
    with_programs("stun_clients_learn_their_addresses", || {
        let relays = Relays::start(&[]);
        for relay in &relays.relays {
            for (server, client) in relay.listen.iter().zip([Ipv4Addr::new(127, 0, 0, 5).into(), V6]) {
                let port = server.port();
                let mut command = program("timeout");
                command.args(["30", "turnutils_stunclient", "-p", &port.to_string()]).args([
                    "-L",
                    &client.to_string(),
                    &server.ip().to_string(),
                ]);
                let text = said(&mut command);
                let learnt = text.lines().find_map(|line| address(line, "UDP reflexive addr: "));
                assert_eq!(learnt, Some(client), "{text}");
            }
        }
    });
}

/// RFC 5780 needs a second address and is not offered. The tests of mapping (-m) and filtering (-f) end well after their first
/// step, which is a Binding, because no OTHER-ADDRESS comes with it; hairpinning (-H) and collision (-c) need one address only; the
/// lifetime of a mapping (-t) needs RESPONSE-PORT, and padded requests (-P) PADDING, which are refused as unknown attributes.
#[test]
fn nat_discovery_goes_as_far_as_one_address_takes_it() {
    with_programs("nat_discovery_goes_as_far_as_one_address_takes_it", || {
        let relays = Relays::start(&[]);
        let relay = &relays.relays[0];
        let reflexive = |client: IpAddr| format!("UDP reflexive addr: {client}:{CLIENT_PORT}\n");
        let no_nat = "No NAT! (Endpoint Independent Mapping)";
        let found = "Received a request (maybe a successful hairpinning)";
        for (&server, client) in relay.listen.iter().zip([V4, V6]) {
            for (flags, outcome) in [(["-m"], no_nat), (["-f"], no_nat), (["-H"], found)] {
                let text = discover(server, client, &flags);
                assert!(text.contains(&reflexive(client)) && text.contains(outcome), "{flags:?}: {text}");
            }
            let text = discover(server, client, &["-m", "-P"]);
            assert!(text.contains("The response is an error 420"), "{text}");
        }
        let other = Ipv4Addr::new(127, 0, 0, 5);
        let text = discover(relay.listen[0], V4, &["-c", "-A", &other.to_string()]);
        assert!(text.contains(&reflexive(V4)) && text.contains(&reflexive(other.into())), "{text}");
    });
}
