//! Tunnels, ours and wireguard-go, and the traffic inside them.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, bail};
use dataplane::netlink::{Handle, Ipv4Net};
use dataplane::sys::udp::UdpSocket;
use dataplane::tunnel::key::{PublicKey, SecretKey};
use dataplane::tunnel::noise;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::Value;
use tools::netns::{Address, Namespace};

use super::figures::{Ledger, Sample};
use super::programs::Programs;
use super::relay::sockets;
use super::rows::{Contender, Who};
use super::world::World;
use crate::load::{self, Flow, Load};
use crate::process::{Process, Role, now};

const MTU: u32 = 1420;
const PORT: u16 = 51_820;
/// How long a tunnel may take to start, and to shake hands.
const PATIENCE: Duration = Duration::from_secs(10);

/// One end, before it runs.
struct End<'a> {
    namespace: &'a Namespace,
    device: &'static str,
    private: SecretKey,
    outside: Ipv4Addr,
    inside: Ipv4Addr,
}

impl End<'_> {
    fn public(&self) -> PublicKey {
        noise::public_key(&self.private)
    }
}

/// A tunnel from A to B.
pub struct Tunnel {
    ends: [Process; 2],
    ours: bool,
}

/// Inner addresses of A and B.
const INSIDE: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 77, 0, 1), Ipv4Addr::new(10, 77, 0, 2)];

impl Tunnel {
    /// Starts both ends and waits until packets flow.
    fn start(world: &World, contender: &Contender, programs: &Programs) -> anyhow::Result<Self> {
        let end = |namespace, device, outside, inside| -> anyhow::Result<End<'_>> {
            let mut key = [0; 32];
            getrandom::fill(&mut key).map_err(|error| anyhow::anyhow!("no randomness: {error}"))?;
            Ok(End { namespace, device, private: SecretKey::new(key).clamped(), outside, inside })
        };
        let a = end(&world.topology.a, "bench-a", Address::A_DIRECT, INSIDE[0])?;
        let b = end(&world.topology.b, "bench-b", Address::B_DIRECT, INSIDE[1])?;
        let ours = contender.who == Who::Towpath;
        let start = |own: &End<'_>, other: &End<'_>| {
            if ours {
                start_ours(world, contender, own, other)
            } else {
                start_wireguard_go(programs, own, other)
            }
        };
        let tunnel = Self { ends: [start(&a, &b)?, start(&b, &a)?], ours };
        shake_hands(world)?;
        Ok(tunnel)
    }

    fn cpu_seconds(&self) -> f64 {
        self.ends.iter().map(|end| load::cpu_seconds(end.pid())).sum()
    }

    /// Of the larger end.
    fn resident_kib(&self) -> u64 {
        self.ends.iter().map(|end| load::resident_kib(end.pid(), "VmHWM")).max().unwrap_or(0)
    }

    /// Ends both; ours say what they did.
    fn stop(self) -> anyhow::Result<Option<Ledger>> {
        if !self.ours {
            // They have nothing left to say, and their dropping kills them.
            return Ok(None);
        }
        let mut sum = Ledger::default();
        for end in self.ends {
            sum.add(&Ledger::read(&end.stop()?).context("towpath ended without a ledger")?);
        }
        Ok(Some(sum))
    }
}

fn start_ours(
    world: &World,
    contender: &Contender,
    own: &End<'_>,
    other: &End<'_>,
) -> anyhow::Result<Process> {
    let text = format!(
        "[Interface]\nPrivateKey = {}\nAddress = {}/24\nListenPort = {PORT}\nMTU = {MTU}\n\
         [Peer]\nPublicKey = {}\nAllowedIPs = {}/32\nEndpoint = {}:{PORT}\n",
        *own.private.to_base64(),
        own.inside,
        other.public(),
        other.inside,
        other.outside
    );
    let file = world.write(&format!("{}.conf", own.device), &text)?;
    let flags = contender.flags.split_whitespace().map(str::to_owned);
    let arguments: Vec<String> =
        ["up", &file, "--log-format", "json"].into_iter().map(str::to_owned).chain(flags).collect();
    let mut process = Process::start("towpath", Role::Tunnel, &arguments, Some(own.namespace))?;
    process.wait_for("\"ready\"", PATIENCE)?;
    Ok(process)
}

/// In a mount namespace with a `/run` of its own, so that it needs no rights and touches nothing on the machine. It is
/// configured over its socket (wireguard.com/xplatform), so that no `wg` is needed.
fn start_wireguard_go(programs: &Programs, own: &End<'_>, other: &End<'_>) -> anyhow::Result<Process> {
    let script = "mount -t tmpfs tmpfs /run && mkdir /run/wireguard && exec \"$0\" -f \"$1\"";
    let program = programs.path("wireguard-go")?;
    let arguments = ["unshare", "--mount", "sh", "-c", script, &program, own.device].map(str::to_owned);
    let mut process = Process::start("wireguard-go", Role::Program, &arguments, Some(own.namespace))?;
    let socket = format!("/proc/{}/root/run/wireguard/{}.sock", process.pid(), own.device);
    let deadline = now() + PATIENCE;
    let mut stream = loop {
        match UnixStream::connect(&socket) {
            Ok(stream) => break stream,
            Err(_) if now() < deadline => {
                // Answers at once when it has ended.
                let waited = process.wait_for("\0", Duration::from_millis(10));
                if let Err(error) = waited
                    && error.to_string().contains("ended")
                {
                    return Err(error);
                }
            }
            Err(error) => return Err(error).context("wireguard-go opens no socket"),
        }
    };
    let text = format!(
        "set=1\nprivate_key={}\nlisten_port={PORT}\npublic_key={}\nendpoint={}:{PORT}\nallowed_ip={}/32\n\n",
        hexadecimal(own.private.expose()),
        hexadecimal(&other.public().0),
        other.outside,
        other.inside
    );
    stream.write_all(text.as_bytes())?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut answer = [0; 64];
    let len = stream.read(&mut answer)?;
    if !answer[..len].starts_with(b"errno=0\n") {
        bail!("wireguard-go refuses its configuration: {}", String::from_utf8_lossy(&answer[..len]));
    }
    own.namespace.run(|| {
        let mut handle = Handle::open()?;
        let index = handle.link_index(own.device)?;
        handle.set_mtu(index, MTU)?;
        handle.add_address(index, Ipv4Net::new_assert(own.inside, 24).into())?;
        handle.set_up(index)
    })??;
    Ok(process)
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// A socket inside the tunnel at each end.
fn inner_sockets(world: &World) -> anyhow::Result<[UdpSocket; 2]> {
    let source = sockets(&world.topology.a, INSIDE[0].into(), 1, 8 << 20)?.remove(0);
    let sink = sockets(&world.topology.b, INSIDE[1].into(), 1, 32 << 20)?.remove(0);
    Ok([source, sink])
}

/// Sends from A to B inside the tunnel until something arrives.
fn shake_hands(world: &World) -> anyhow::Result<()> {
    let [source, sink] = inner_sockets(world)?;
    let deadline = now() + PATIENCE;
    while now() < deadline {
        source.send_segments(sink.local_addr(), None, 0, b"hello", 5)?;
        let mut fds = [PollFd::from_borrowed_fd(sink.fd().as_fd(), PollFlags::IN)];
        if poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 50_000_000 }))? > 0 {
            return Ok(());
        }
    }
    bail!("no packet came through the tunnel in {PATIENCE:?}")
}

/// One turn: a TCP stream of iperf3 from A to B.
///
/// # Errors
/// When the tunnel or iperf3 does not work.
pub fn stream(
    world: &World,
    contender: &Contender,
    programs: &Programs,
    duration: Duration,
) -> anyhow::Result<Sample> {
    let iperf = programs.path("iperf3")?;
    let tunnel = Tunnel::start(world, contender, programs)?;
    let [to, from] = [INSIDE[1].to_string(), INSIDE[0].to_string()];
    let command = |arguments: &[&str]| -> Vec<String> {
        std::iter::once(iperf.as_str()).chain(arguments.iter().copied()).map(str::to_owned).collect()
    };
    let serve = command(&["-s", "-1", "-B", &to, "--forceflush"]);
    let mut server = Process::start("iperf3 -s", Role::Program, &serve, Some(&world.topology.b))?;
    server.wait_for("listening", PATIENCE)?;
    // iperf3 counts in whole seconds.
    let seconds = duration.as_secs().max(1).to_string();
    let call = command(&["-c", &to, "-B", &from, "-t", &seconds, "-J", "--connect-timeout", "3000"]);
    let before = tunnel.cpu_seconds();
    let client = Process::start("iperf3 -c", Role::Program, &call, Some(&world.topology.a))?;
    let output = client.finish(duration + PATIENCE)?.join("\n");
    let used = tunnel.cpu_seconds() - before;
    let resident_kib = tunnel.resident_kib();
    let result: Value = serde_json::from_str(&output).context("iperf3 answers no JSON")?;
    let figure = |part: &str, name: &str| result["end"][part][name].as_f64();
    let bytes = figure("sum_received", "bytes").context("iperf3 counts no bytes")?;
    let rate = figure("sum_received", "bits_per_second").context("iperf3 knows no rate")? / 1e9;
    if bytes < 1e6 {
        bail!("iperf3 carried {bytes} bytes");
    }
    let again = figure("sum_sent", "retransmits").unwrap_or(0.0);
    // 52 bytes of each packet are IP and TCP headers with timestamps.
    let segments = bytes / f64::from(MTU - 52);
    let ledger = tunnel.stop()?;
    Ok(Sample { cost: used / (bytes / 1e9), rate, lost: again / segments, resident_kib, ledger })
}

/// One turn: UDP datagrams from A to B.
///
/// # Errors
/// When the tunnel does not work.
pub fn datagrams(
    world: &World,
    contender: &Contender,
    programs: &Programs,
    load: Load,
) -> anyhow::Result<Sample> {
    let tunnel = Tunnel::start(world, contender, programs)?;
    let [source, sink] = inner_sockets(world)?;
    let flow = Flow { socket: source, to: sink.local_addr(), header: Vec::new() };
    let before = tunnel.cpu_seconds();
    let counted = load::run(load, &[flow], &sink)?;
    let used = tunnel.cpu_seconds() - before;
    let resident_kib = tunnel.resident_kib();
    if counted.arrived == 0 {
        bail!("nothing arrived at the other end");
    }
    Ok(Sample {
        cost: used * 1e9 / counted.arrived as f64,
        rate: counted.arrived as f64 / load.duration.as_secs_f64() / 1e3,
        lost: 1.0 - counted.share(),
        resident_kib,
        ledger: tunnel.stop()?,
    })
}
