//! A gateway with many peers: how long it takes to start, what it keeps for each, and what their handshakes cost it. The far
//! ends are all in this process, with an address for each ten.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, bail};
use dataplane::ingress::Meta;
use dataplane::netlink::{Handle, Ipv4Net};
use dataplane::sys::udp::{RECEIVE_LEN, ReceiveBatch, UdpOptions, UdpSocket};
use dataplane::tunnel::Path;
use dataplane::tunnel::key::{PublicKey, SecretKey};
use dataplane::tunnel::noise::{self, CONTROL_LEN, Identity, Noise, Outset};
use dataplane::wire::wireguard::{COOKIE_REPLY, DATA_OVERHEAD, RESPONSE, SessionIndex};
use tools::netns::Address;

use super::figures::Ledger;
use super::world::World;
use crate::load;
use crate::process::{Process, Role, now};

const PORT: u16 = 51_820;
/// Prefixes that are routed to each peer.
pub const PREFIXES_EACH: usize = 13;
/// Far ends behind one address: twenty handshakes a second are what an address gets without a cookie.
const AT_ONE_ADDRESS: usize = 10;
/// Handshakes under way at a time.
const AT_A_TIME: usize = 64;
/// How long a gateway may take to start: each prefix is a route of the kernel's.
const START_PATIENCE: Duration = Duration::from_secs(120);
/// How long nobody may be answered.
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// What was measured.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    /// From the start to `ready`.
    pub start: Duration,
    /// Resident when it is ready, in KiB …
    pub idle_kib: u64,
    /// … when every peer has one session, and when each has two: the one before is kept until it has expired.
    pub active_kib: [u64; 2],
    /// Sessions that the gateway had made by then, altogether: more than one for a peer whose initiation was sent again.
    pub sessions: [u64; 2],
    /// How long it took until each had one.
    pub storm: Duration,
    /// CPU time of the gateway for one of them, with its cookie and its first packet.
    pub handshake_cpu: Duration,
}

/// A far end.
struct Far {
    identity: Identity,
    world: noise::World,
    noise: Noise,
    /// Of the next session.
    index: u32,
    inside: Ipv4Addr,
    address: IpAddr,
    done: bool,
    /// Responses that it has had, of which each is a session of the gateway's.
    responses: u64,
}

fn private(seed: u32) -> SecretKey {
    let mut key = [0x42; 32];
    key[..4].copy_from_slice(&seed.to_be_bytes());
    SecretKey::new(key).clamped()
}

fn inside(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(0x6440_0000 | number)
}

/// Each peer has an address of both families, six networks of IPv4 and five of IPv6 behind it.
fn configuration(gateway: &SecretKey, publics: &[PublicKey]) -> String {
    let mut text = format!(
        "[Interface]\nPrivateKey = {}\nAddress = 100.127.0.1/32\nListenPort = {PORT}\nMTU = 1420\n",
        *gateway.to_base64()
    );
    for (number, public) in (0..).zip(publics) {
        let inside = inside(number);
        let _ = write!(text, "[Peer]\nPublicKey = {public}\nAllowedIPs = {inside}/32, fd64::{number:x}/128");
        for (place, len) in (0..).zip(25..=30) {
            // Not where the world's own addresses are.
            let network = Ipv4Addr::from_bits((11 << 24 | number << 10) + (place << 7));
            let _ = write!(text, ", {network}/{len}");
        }
        for (place, len) in [48, 56, 60, 64, 64].into_iter().enumerate() {
            let _ = write!(text, ", 2001:db8:{number:x}:{:x}::/{len}", place << 8);
        }
        text.push('\n');
    }
    text
}

/// Starts a gateway with `peers` of them, and lets all shake hands, twice.
///
/// # Errors
/// When it does not start or does not answer.
pub fn measure(world: &World, peers: usize) -> anyhow::Result<Measured> {
    let gateway = private(u32::MAX);
    let public = noise::public_key(&gateway);
    let keys: Vec<SecretKey> = (0..peers as u32).map(private).collect();
    let publics: Vec<PublicKey> = keys.iter().map(noise::public_key).collect();
    let file = world.write("gateway.conf", &configuration(&gateway, &publics))?;
    let arguments = ["up", &file, "--log-format", "json"].map(str::to_owned);
    let begun = now();
    let mut process = Process::start("towpath", Role::Tunnel, &arguments, Some(&world.topology.b))?;
    process.wait_for("\"ready\"", START_PATIENCE)?;
    let start = begun.elapsed();
    std::thread::sleep(Duration::from_secs(1));
    let idle_kib = load::resident_kib(process.pid(), "VmRSS");

    let addresses = give_addresses(world, peers.div_ceil(AT_ONE_ADDRESS))?;
    let socket = world.topology.a.run(|| {
        let options = UdpOptions { receive_buffer: 8 << 20, ..UdpOptions::default() };
        UdpSocket::bind(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0), &options)
    })??;
    let mut ends: Vec<Far> = (0..)
        .zip(&keys)
        .map(|(number, key)| Far {
            identity: Identity::new(key, &[7; 32]),
            world: noise::World::system(),
            noise: Noise::new(public, None),
            index: number << 8,
            inside: inside(number),
            address: addresses[number as usize / AT_ONE_ADDRESS],
            done: false,
            responses: 0,
        })
        .collect();
    let before = load::cpu_seconds(process.pid())?;
    let begun = now();
    shake_hands(&socket, &mut ends)?;
    let storm = begun.elapsed();
    let used = load::cpu_seconds_since(process.pid(), before)?;
    let held = |ends: &[Far]| {
        std::thread::sleep(Duration::from_secs(1));
        let sessions = ends.iter().map(|end| end.responses).sum::<u64>();
        (load::resident_kib(process.pid(), "VmRSS"), sessions)
    };
    let one = held(&ends);
    ends.iter_mut().for_each(|end| end.done = false);
    shake_hands(&socket, &mut ends)?;
    let two = held(&ends);
    let ledger = Ledger::read(&process.stop()?).context("towpath ended without a ledger")?;
    if ledger.unexplained != 0 || ledger.drops.get("allowed_ips").is_some_and(|count| *count > 0) {
        bail!("the gateway lost packets: {ledger:?}");
    }
    let handshake_cpu = Duration::from_secs_f64(used / peers as f64);
    let (active_kib, sessions) = ([one.0, two.0], [one.1, two.1]);
    Ok(Measured { start, idle_kib, active_kib, sessions, storm, handshake_cpu })
}

/// Addresses at A that B finds there.
fn give_addresses(world: &World, count: usize) -> anyhow::Result<Vec<IpAddr>> {
    const NET: u32 = 0x0a48_0000;
    let addresses: Vec<Ipv4Addr> = (1..=count as u32).map(|host| Ipv4Addr::from_bits(NET | host)).collect();
    world.topology.a.run(|| {
        let mut handle = Handle::open()?;
        let index = handle.link_index("a-b")?;
        // The second time they are there.
        addresses.iter().for_each(|address| {
            let _ = handle.add_address(index, Ipv4Net::new_assert(*address, 32).into());
        });
        anyhow::Ok(())
    })??;
    let net = Ipv4Net::new_assert(Ipv4Addr::from_bits(NET), 16).into();
    world.topology.b.run(|| {
        let _ = Handle::open()?.add_route_via(net, Address::A_DIRECT.into());
        anyhow::Ok(())
    })??;
    Ok(addresses.into_iter().map(IpAddr::from).collect())
}

/// Each end shakes hands with the gateway, with a cookie where it has to, and sends a packet.
fn shake_hands(socket: &UdpSocket, ends: &mut [Far]) -> anyhow::Result<()> {
    let mut batch = ReceiveBatch::new(32, RECEIVE_LEN);
    let (mut begun, mut done, mut last, mut again) = (0, 0, now(), now());
    while done < ends.len() {
        while begun < ends.len() && begun - done < AT_A_TIME {
            ends[begun].initiate(socket)?;
            begun += 1;
        }
        let count = socket.receive_batch(&mut batch).unwrap_or(0);
        if count == 0 {
            if last.elapsed() > SILENCE_MAX {
                bail!("the gateway does not answer after {done} of {} peers", ends.len());
            }
            if again.elapsed() > Duration::from_millis(300) {
                // What was lost is sent again.
                for end in ends[..begun].iter_mut().filter(|end| !end.done) {
                    end.initiate(socket)?;
                }
                again = now();
            }
            std::thread::sleep(Duration::from_micros(200));
            continue;
        }
        for arrival in batch.iter_mut() {
            let Some(Meta::Udp { segment_size, .. }) = arrival.meta else { continue };
            for datagram in arrival.bytes.chunks(segment_size.max(1)) {
                let number = number_of(datagram);
                if let Some(end) = number.and_then(|number| ends.get_mut(number))
                    && end.receive(datagram, socket)?
                {
                    done += 1;
                    (last, again) = (now(), now());
                }
            }
        }
    }
    Ok(())
}

/// Which end a response or cookie reply is for.
fn number_of(datagram: &[u8]) -> Option<usize> {
    let at = match datagram.len() {
        RESPONSE => 8,
        COOKIE_REPLY => 4,
        _ => return None,
    };
    let index = u32::from_le_bytes(datagram.get(at..at + 4)?.try_into().ok()?);
    Some((index >> 8) as usize)
}

impl Far {
    fn send(&self, socket: &UdpSocket, message: &[u8]) -> anyhow::Result<()> {
        let to = SocketAddr::new(Address::B_DIRECT.into(), PORT);
        Ok(socket.send_segments(to, Some(self.address), 0, message, message.len())?)
    }

    fn initiate(&mut self, socket: &UdpSocket) -> anyhow::Result<()> {
        let mut message = [0; CONTROL_LEN];
        // The upper bits say which end it is, so that answers find it.
        self.index = self.index & !0xff | self.index.wrapping_add(1) & 0xff;
        let to = SocketAddr::new(Address::B_DIRECT.into(), PORT);
        let outset = Outset { index: SessionIndex(self.index), path: Path::Direct { to, from: None } };
        let Self { identity, world, noise, .. } = self;
        let len = noise.initiate(identity, world, outset, &mut message, now()).context("no initiation")?;
        self.send(socket, &message[..len])
    }

    /// Takes what is for it; whether it has a session now and had none.
    fn receive(&mut self, datagram: &[u8], socket: &UdpSocket) -> anyhow::Result<bool> {
        let mut message = [0; CONTROL_LEN];
        if datagram.len() == COOKIE_REPLY {
            if self.noise.handle_cookie_reply(datagram, now()).is_ok() {
                self.initiate(socket)?;
            }
            return Ok(false);
        }
        self.responses += 1;
        let Self { identity, world, noise, .. } = self;
        let Ok(len) = noise.handle_response(identity, world, datagram, &mut message, now()) else {
            // To an initiation that was sent again.
            return Ok(false);
        };
        self.send(socket, &message[..len])?;
        // To an address of the gateway's network where nobody answers.
        let mut packet = [0; 32];
        packet[..12].copy_from_slice(&[0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0]);
        packet[12..16].copy_from_slice(&self.inside.octets());
        packet[16..20].copy_from_slice(&[100, 127, 0, 1]);
        packet[20..28].copy_from_slice(&[0, 9, 0, 9, 0, 8, 0, 0]);
        let mut sealed = [0; 32 + DATA_OVERHEAD];
        if self.noise.seal(&packet, &mut sealed, now()) {
            self.send(socket, &sealed)?;
        }
        Ok(!std::mem::replace(&mut self.done, true))
    }
}
