//! Tunnels from A to B: ours, wireguard-go and boringtun-cli.

use std::fmt::Write as _;
use std::io::{self, Read, Write};
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
use tools::netns::{Address, Namespace};

use super::figures::Ledger;
use super::programs::Programs;
use super::relay::{PASSWORD, Relay, USER, server, sockets};
use super::rows::{Contender, Who};
use super::world::World;
use crate::load;
use crate::process::{Process, Role, now};

/// Of the tunnel's devices.
pub const MTU: u32 = 1420;
const PORT: u16 = 51_820;
/// Where ours show their figures; each end has a namespace, and with it this port, to itself.
const ADMIN: &str = "127.0.0.1:9642";
/// How long a tunnel or a program inside may take to start.
pub const PATIENCE: Duration = Duration::from_secs(10);

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
    /// Of ours: A's end has an allocation there, and a channel to B's. Nothing is to go over it.
    relay: Option<Relay>,
}

/// Inner addresses of A and B.
pub const INSIDE: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 77, 0, 1), Ipv4Addr::new(10, 77, 0, 2)];

impl Tunnel {
    /// Starts both ends and waits until packets flow. Ours have everything switched on that waits for its time to come: figures at
    /// both ends, and a relay at A's, whose own cost is not counted.
    ///
    /// # Errors
    /// When an end does not start, or no packet comes through.
    pub fn start(world: &World, contender: &Contender, programs: &Programs) -> anyhow::Result<Self> {
        let end = |namespace, device, outside, inside| -> anyhow::Result<End<'_>> {
            let mut key = [0; 32];
            getrandom::fill(&mut key).map_err(|error| anyhow::anyhow!("no randomness: {error}"))?;
            Ok(End { namespace, device, private: SecretKey::new(key).clamped(), outside, inside })
        };
        let a = end(&world.topology.a, "bench-a", Address::A_DIRECT, INSIDE[0])?;
        let b = end(&world.topology.b, "bench-b", Address::B_DIRECT, INSIDE[1])?;
        let relay = match contender.who {
            Who::Towpath => Some(start_relay(world, programs)?),
            _ => None,
        };
        let start = |own: &End<'_>, other: &End<'_>| match contender.who {
            Who::Towpath => start_ours(world, contender, own, other),
            Who::Boringtun => {
                let flags = ["-f", "--disable-drop-privileges", "-t", "1"];
                start_other("boringtun-cli", &flags, programs, own, other)
            }
            _ => start_other("wireguard-go", &["-f"], programs, own, other),
        };
        let tunnel = Self { ends: [start(&a, &b)?, start(&b, &a)?], relay };
        if let Some(relay) = &tunnel.relay {
            relay.wait_for_channel(world)?;
        }
        shake_hands(world)?;
        Ok(tunnel)
    }

    /// CPU time of A's end and of B's so far.
    ///
    /// # Errors
    /// When one has ended.
    pub fn cpu_seconds(&self) -> io::Result<[f64; 2]> {
        let [a, b] = &self.ends;
        Ok([load::cpu_seconds(a.pid())?, load::cpu_seconds(b.pid())?])
    }

    /// CPU time of both since they had used `before`.
    ///
    /// # Errors
    /// When one has ended, or did nothing.
    pub fn cpu_seconds_since(&self, before: [f64; 2]) -> io::Result<[f64; 2]> {
        let [a, b] = &self.ends;
        Ok([load::cpu_seconds_since(a.pid(), before[0])?, load::cpu_seconds_since(b.pid(), before[1])?])
    }

    /// Of the larger end.
    pub fn resident_kib(&self) -> u64 {
        self.ends.iter().map(|end| load::resident_kib(end.pid(), "VmHWM")).max().unwrap_or(0)
    }

    /// Ends both; ours say what they did.
    ///
    /// # Errors
    /// When ours do not end or keep no ledger, or have left the direct path.
    pub fn stop(self) -> anyhow::Result<Option<Ledger>> {
        // Kept until they have ended.
        let Some(_relay) = self.relay else {
            // They have nothing left to say, and their dropping kills them.
            return Ok(None);
        };
        let mut sum = Ledger::default();
        for end in self.ends {
            let log = end.stop()?;
            if let Some(line) = log.iter().find(|line| line.contains("another path is used")) {
                bail!("the tunnel was to stay on its direct path: {line}");
            }
            sum.add(&Ledger::read(&log).context("towpath ended without a ledger")?);
        }
        Ok(Some(sum))
    }
}

/// A relay that reaches B's end where A's does, by another cable.
fn start_relay(world: &World, programs: &Programs) -> anyhow::Result<Relay> {
    let end = Ipv4Net::new_assert(Address::B_DIRECT, 32).into();
    world.topology.relay.run(|| {
        // The second time it is there.
        let _ = Handle::open()?.add_route_via(end, Address::B_AT_RELAY.into());
        anyhow::Ok(())
    })??;
    Relay::start(world, &Contender { name: "towpath", who: Who::Towpath, flags: "--workers 1" }, programs)
}

fn start_ours(
    world: &World,
    contender: &Contender,
    own: &End<'_>,
    other: &End<'_>,
) -> anyhow::Result<Process> {
    let relay = if own.outside == Address::A_DIRECT {
        let file = world.write("relay-password", PASSWORD)?;
        format!(
            "#towpath: Relay = turn:{}\n#towpath: RelayUsername = {USER}\n#towpath: RelayPasswordFile = {file}\n",
            server()
        )
    } else {
        String::new()
    };
    let text = format!(
        "[Interface]\nPrivateKey = {}\nAddress = {}/24\nListenPort = {PORT}\nMTU = {MTU}\n{relay}\
         [Peer]\nPublicKey = {}\nAllowedIPs = {}/32\nEndpoint = {}:{PORT}\n",
        *own.private.to_base64(),
        own.inside,
        other.public(),
        other.inside,
        other.outside
    );
    let file = world.write(&format!("{}.conf", own.device), &text)?;
    let flags = contender.flags.split_whitespace().map(str::to_owned);
    let arguments: Vec<String> = ["up", &file, "--log-format", "json", "--admin", ADMIN]
        .into_iter()
        .map(str::to_owned)
        .chain(flags)
        .collect();
    let mut process = Process::start("towpath", Role::Tunnel, &arguments, Some(own.namespace))?;
    process.wait_for("\"ready\"", PATIENCE)?;
    Ok(process)
}

/// In a mount namespace with a `/run` of its own, so that it needs no rights and touches nothing on the machine. It is
/// configured over its socket (wireguard.com/xplatform), so that no `wg` is needed.
fn start_other(
    name: &str,
    flags: &[&str],
    programs: &Programs,
    own: &End<'_>,
    other: &End<'_>,
) -> anyhow::Result<Process> {
    // Where /var/run is no link to /run, it is covered likewise.
    let script = "mount -t tmpfs tmpfs /run && { [ -L /var/run ] || mount -t tmpfs tmpfs /var/run; } && \
         mkdir -p /run/wireguard /var/run/wireguard && exec \"$0\" \"$@\"";
    let program = programs.path(name)?;
    let arguments = ["unshare", "--mount", "sh", "-c", script, &program].into_iter();
    let arguments = arguments.chain(flags.iter().copied()).chain([own.device]).map(str::to_owned);
    let arguments: Vec<String> = arguments.collect();
    let mut process = Process::start(name, Role::Program, &arguments, Some(own.namespace))?;
    configure(name, &mut process, own, other)?;
    own.namespace.run(|| {
        let mut handle = Handle::open()?;
        let index = handle.link_index(own.device)?;
        handle.set_mtu(index, MTU)?;
        handle.add_address(index, Ipv4Net::new_assert(own.inside, 24).into())?;
        handle.set_up(index)
    })??;
    Ok(process)
}

fn configure(name: &str, process: &mut Process, own: &End<'_>, other: &End<'_>) -> anyhow::Result<()> {
    // A link would lead out of its mount namespace, so both places are looked at.
    let socket = |run: &str| format!("/proc/{}/root{run}/wireguard/{}.sock", process.pid(), own.device);
    let sockets = ["/run", "/var/run"].map(socket);
    let connect = || UnixStream::connect(&sockets[0]).or_else(|_| UnixStream::connect(&sockets[1]));
    let deadline = now() + PATIENCE;
    let mut stream = loop {
        match connect() {
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
            Err(error) => return Err(error).with_context(|| format!("{name} opens no socket")),
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
        bail!("{name} refuses its configuration: {}", String::from_utf8_lossy(&answer[..len]));
    }
    Ok(())
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// A socket inside the tunnel at each end.
///
/// # Errors
/// What bind(2) answers.
pub fn inner_sockets(world: &World) -> anyhow::Result<[UdpSocket; 2]> {
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
