//! W31: what seems to come from a peer, from its very address and under its session, and is garbage. Other peers keep
//! their packets, and the peer its session and path.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use dataplane::packet::Packet;
use dataplane::sys::udp::{RECEIVE_LEN, ReceiveBatch, UdpSocket};
use dataplane::tunnel::{Path, PeerConfig, PeerIndex, Tunnel, TunnelConfig};
use serde_json::Value;

use super::shutdown::ledger;
use super::tunnel::End;
use super::world::{World, sh, socket, try_sh};

const LAB: &str = env!("CARGO_BIN_EXE_towpath-lab");
const SERVER: &str = "10.2.0.2:51820";
/// Messages a second, each of so many bytes: 120 Mbit/s, all of which have to be decrypted to be told from good ones.
const RATE: u32 = 50_000;
const LEN: usize = 304;
/// What others have to keep of what they have without it.
const KEPT: f64 = 0.9;

#[expect(clippy::disallowed_methods, reason = "a test may read the clock")]
fn now() -> Instant {
    Instant::now()
}

/// A peer in the test's own hands.
struct Peer {
    tunnel: Tunnel,
    socket: UdpSocket,
    server: SocketAddr,
}

const ONLY: PeerIndex = PeerIndex(0);

impl Peer {
    fn new(end: &End, server: &End, address: &str) -> Self {
        let to: SocketAddr = SERVER.parse().unwrap();
        let peer = PeerConfig {
            public_key: server.public().parse().unwrap(),
            preshared_key: None,
            allowed_ips: vec!["10.77.0.2/32".parse().unwrap()],
            path: Some(Path::Direct { to, from: None }),
            awaits_path: false,
            persistent_keepalive: None,
        };
        let config = TunnelConfig {
            private_key: end.private().parse().unwrap(),
            mtu: 1_420,
            peers: vec![peer],
            seed: 7,
            cookie_secret: [7; 32],
        };
        Self { tunnel: Tunnel::new(&config, now()), socket: socket("a", address), server: to }
    }

    /// An echo request to the server's inner address, sealed.
    fn echo_request(&mut self) -> Option<Vec<u8>> {
        let mut packet = vec![0; 32];
        packet[..12].copy_from_slice(&[0x45, 0, 0, 32, 0, 0, 0, 0, 64, 1, 0, 0]);
        packet[12..20].copy_from_slice(&[10, 77, 0, 9, 10, 77, 0, 2]);
        packet[20] = 8;
        for (range, place) in [(0..20, 10), (20..32, 22)] {
            let words = packet[range].chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]));
            let sum: u32 = words.sum();
            let folded = !((sum & 0xffff) + (sum >> 16)) as u16;
            packet[place..place + 2].copy_from_slice(&folded.to_be_bytes());
        }
        let mut sealed = vec![0; Tunnel::sealed_len(packet.len())];
        if self.tunnel.ready(ONLY, now()).is_none() {
            self.tunnel.stage(ONLY, &packet, now());
            return None;
        }
        self.tunnel.seal(ONLY, &packet, &mut sealed, now()).then_some(sealed)
    }

    /// Sends what the protocol wants to say, and takes what comes for a moment; whether that was a packet.
    fn turn(&mut self) -> bool {
        while let Some(message) = self.tunnel.poll_transmit() {
            self.send(message.bytes(), message.bytes().len());
        }
        let mut batch = ReceiveBatch::new(16, RECEIVE_LEN);
        std::thread::sleep(Duration::from_millis(2));
        self.socket.receive_batch(&mut batch).unwrap();
        let (mut packet, mut heard) = (Packet::new(), false);
        for arrival in batch.iter_mut() {
            let path = Path::Direct { to: self.server, from: None };
            heard |= self.tunnel.open(arrival.bytes, path, &mut packet, now())
                == dataplane::tunnel::Opened::Packet(ONLY);
        }
        heard
    }

    fn send(&self, bytes: &[u8], size: usize) {
        // What does not fit into the socket is not sent.
        let _ = self.socket.send_segments(self.server, None, 0, bytes, size);
    }

    /// Pings until an answer comes; the last request.
    fn ping(&mut self) -> Vec<u8> {
        let deadline = now() + Duration::from_secs(10);
        loop {
            assert!(now() < deadline, "no answer through the tunnel");
            let request = self.echo_request();
            if let Some(request) = &request {
                self.send(request, request.len());
            }
            if (0..25).any(|_| self.turn())
                && let Some(request) = request
            {
                return request;
            }
        }
    }
}

/// Sends messages that nobody sealed under the session of `sealed`, and that one again and again, until it is told to stop;
/// how many messages that were, without the replays.
fn garbage(peer: &Peer, sealed: &[u8], stop: &AtomicBool) -> u64 {
    const BATCH: u32 = 50;
    let (began, mut sent) = (now(), 0_u64);
    let mut bytes = vec![0x5a; LEN * BATCH as usize];
    while !stop.load(Ordering::Relaxed) {
        let due = (began.elapsed().as_secs_f64() * f64::from(RATE)) as u64;
        while sent < due {
            for message in bytes.chunks_mut(LEN) {
                message[..8].copy_from_slice(&sealed[..8]);
                message[8..16].copy_from_slice(&(1_000_000 + sent).to_le_bytes());
                sent += 1;
            }
            peer.send(&bytes, LEN);
        }
        peer.send(sealed, sealed.len());
        std::thread::sleep(Duration::from_millis(1));
    }
    sent
}

/// What of a load of the other peer arrived.
fn share(rate: &str) -> f64 {
    let command = format!(
        "ip netns exec a {LAB} run tunnel 10.77.0.2:9000 --rate {rate} --size 1000 --flows 4 --warmup 100ms \
         --duration 1000ms --drain 300ms --json"
    );
    let output = try_sh(&command);
    let errors = String::from_utf8_lossy(&output.stderr);
    let result: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{errors}"));
    let count = |name: &str| result["ledger"][name].as_f64().unwrap();
    assert!(count("sent") > 1_000.0, "{}", result["ledger"]);
    count("received") / count("sent")
}

fn server(world: &World, server: &End, others: [&End; 2]) -> super::world::Process {
    let peers = others.map(|end| {
        let inside = if end.host == "a" { 1 } else { 9 };
        format!("[Peer]\nPublicKey = {}\nAllowedIPs = 10.77.0.{inside}/32\n", end.public())
    });
    let text = format!(
        "[Interface]\nPrivateKey = {}\nListenPort = 51820\nAddress = 10.77.0.2/24\nMTU = 1420\n{}",
        server.private(),
        peers.concat()
    );
    world.tunnel("b", &world.file("towb.conf", &text), &["--log-format", "json"])
}

pub fn garbage_from_a_peers_address_costs_no_other_peer_its_packets(world: World) {
    let (good, own, spoofed) = (End::new("a", 1), End::new("b", 2), End::new("nowhere", 9));
    let callee = server(&world, &own, [&good, &spoofed]);
    let caller = super::tunnel::start_towpath_with(&world, &good, &own, Some(SERVER), "MTU = 1420", &[]);
    let reflector = world.start("b", &[LAB, "reflect", "10.77.0.2:9000"], "10.77.0.2:9000");
    sh("ip netns exec a ping -c 2 -i 0.05 -W 5 10.77.0.2");
    let mut peer = Peer::new(&spoofed, &own, "10.1.0.2:51999");
    let sealed = peer.ping();
    let alone = share("5kpps");
    let stop = AtomicBool::new(false);
    let (beside, sent) = std::thread::scope(|scope| {
        let flood = scope.spawn(|| garbage(&peer, &sealed, &stop));
        std::thread::sleep(Duration::from_millis(100));
        let beside = share("5kpps");
        stop.store(true, Ordering::Relaxed);
        (beside, flood.join().unwrap())
    });
    println!(
        "{sent} messages of garbage; the other peer keeps {beside:.4} of its packets, {alone:.4} without"
    );
    assert!(beside >= KEPT * alone, "{beside} {alone}");
    // The session goes on, at the same place.
    let endpoint = || sh(&format!("ip netns exec b wg show towb endpoints | grep -F '{}'", spoofed.public()));
    assert!(endpoint().contains("10.1.0.2:51999"), "{}", endpoint());
    peer.ping();
    drop(reflector);
    caller.stop();
    let figures = ledger(&callee.stop());
    let count = |cause: &str| figures["application_drops"][cause].as_u64().unwrap_or(0);
    assert_eq!(figures["unexplained"], 0, "{figures}");
    assert!(count("bad_tag") > sent / 2 && count("bad_tag") <= sent, "{sent}: {figures}");
    assert!(count("replay") > 100, "{figures}");
}
