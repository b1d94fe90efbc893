//! Peers that are refused, over real sockets in a network namespace of its own, where a firewall counts every packet that
//! leaves a relayed port: a witness outside the process.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test panics when it cannot go on and says what it saw"
)]

mod harness;
#[path = "../../dataplane/tests/support/user_namespace.rs"]
mod user_namespace;

use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::process::Stdio;
use std::time::Duration;

use dataplane::netlink::Handle;
use dataplane::stun::{AddressFamily, Class, Method, TransactionId, Writer};
use harness::{Client, RelayProcess, code, program};
use relay::server::policy::PeerPolicy;
use user_namespace::left_out::left_out;

/// The relay's own addresses, as public as any.
const OWN_V4: &str = "198.41.0.4";
const OWN_V6: &str = "2600::4";
/// Peers that may be reached; nobody is there.
const OPEN_V4: &str = "8.8.8.8:5000";
const OPEN_V6: &str = "[2606:4700::1]:5000";

/// Counts what leaves relayed ports, which no client has by chance: to the two open peers, and to anybody else. After every
/// other table has had its say.
const WITNESS: &str = "
table inet witness {
    counter open { }
    counter refused { }
    chain output {
        type filter hook output priority 10; policy accept;
        meta l4proto udp udp sport 20000-20999 ip daddr 8.8.8.8 counter name open accept
        meta l4proto udp udp sport 20000-20999 ip6 daddr 2606:4700::1 counter name open accept
        meta l4proto udp udp sport 20000-20999 counter name refused
    }
}
";

/// First and last addresses of the ranges of T32 and T33, and IPv4 targets in the encodings of T34.
const REFUSED: &[&str] = &[
    "0.0.0.0",
    "0.255.255.255",
    "10.0.0.0",
    "10.255.255.255",
    "100.64.0.0",
    "100.127.255.255",
    "127.0.0.1",
    "127.255.255.255",
    "169.254.0.0",
    "169.254.169.254",
    "172.16.0.0",
    "172.31.255.255",
    "192.0.0.0",
    "192.0.0.255",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.0.0",
    "192.168.255.255",
    "198.18.0.0",
    "198.19.255.255",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    OWN_V4,
    "8.8.4.4",
    "::",
    "::1",
    "fe80::1",
    "fec0::1",
    "fc00::1",
    "fdff::1",
    "ff02::1",
    "2001:db8::1",
    "100::1",
    "2001::1",
    "2001:1ff::1",
    "3fff::1",
    "5f00::1",
    OWN_V6,
    "2600:bad::1",
    "::ffff:127.0.0.1",
    "::127.0.0.1",
    "::ffff:0:127.0.0.1",
    "2002:7f00:1::1",
    "64:ff9b::127.0.0.1",
    "64:ff9b:1::8.8.8.8",
    "2001:0:808:808:8000:63bf:80ff:fffe",
    "2606::5efe:127.0.0.1",
    "2606::200:5efe:169.254.169.254",
    "::ffff:10.0.0.1",
    "2002:a9fe:a9fe::",
    "64:ff9b::198.41.0.4",
    "::ffff:198.41.0.4",
    "::ffff:8.8.4.4",
];

fn nft(script: &str) -> Option<String> {
    let mut nft = program("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .ok()?;
    nft.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    let output = nft.wait_with_output().unwrap();
    assert!(output.status.success(), "nft refused: {script}");
    Some(String::from_utf8(output.stdout).unwrap())
}

/// What the witness has counted under a name.
fn counted(name: &str) -> u64 {
    counted_by("witness", name)
}

/// What a table has counted under a name.
fn counted_by(table: &str, name: &str) -> u64 {
    let text = nft(&format!("list counter inet {table} {name}\n")).unwrap();
    let rest = text.split_once("packets ").unwrap().1;
    rest.split(' ').next().unwrap().parse().unwrap()
}

fn channel_bind(client: &mut Client, number: u16, peer: SocketAddr) -> Option<u16> {
    code(&client.ask(Method::ChannelBind, |writer| {
        let number = dataplane::stun::ChannelNumber::new(number).unwrap();
        writer.channel_number(number).xor_peer_address(peer);
    }))
}

fn permit(client: &mut Client, peer: SocketAddr) -> Option<u16> {
    code(&client.ask(Method::CreatePermission, |writer| {
        writer.xor_peer_address(peer);
    }))
}

fn send(client: &Client, peer: SocketAddr) {
    let mut buffer = [0; 200];
    let mut writer =
        Writer::new(&mut buffer, Class::Indication, Method::Send, TransactionId([2; 12])).unwrap();
    writer.xor_peer_address(peer).data(b"let me in");
    let len = writer.finish(None, false).unwrap();
    client.socket.send(&buffer[..len]).unwrap();
}

/// A client with an allocation of this family. Its next answer comes after everything it sent before.
fn allocated(relay: &RelayProcess, family: AddressFamily) -> Client {
    let mut client = Client::new(relay.listen[0]);
    let reply = client.ask(Method::Allocate, |writer| {
        writer.requested_transport(17).requested_address_family(family);
    });
    assert_eq!(code(&reply), None);
    client
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::V4 } else { AddressFamily::V6 }
}

/// Whether something comes true within a second.
fn soon(mut is_true: impl FnMut() -> bool) -> bool {
    (0..100).any(|_| {
        std::thread::sleep(Duration::from_millis(10));
        is_true()
    })
}

/// Interfaces, routes and witness. `None` where nft is missing.
fn network() -> Option<(Handle, u32)> {
    let mut handle = Handle::open().unwrap();
    let loopback = handle.link_index("lo").unwrap();
    handle.set_up(loopback).unwrap();
    let (left, right) = handle.add_veth("left", "right").unwrap();
    handle.add_address(left, format!("{OWN_V4}/24").parse().unwrap()).unwrap();
    handle.add_address(left, format!("{OWN_V6}/64").parse().unwrap()).unwrap();
    handle.set_up(left).unwrap();
    handle.set_up(right).unwrap();
    // Everything has a way out, so that only the relay keeps it in.
    handle.add_route_via("0.0.0.0/0".parse().unwrap(), "198.41.0.1".parse().unwrap()).unwrap();
    handle.add_route_via("::/0".parse().unwrap(), "2600::1".parse().unwrap()).unwrap();
    if nft(WITNESS).is_none() {
        left_out("the program nft: apt-get install nftables");
        return None;
    }
    Some((handle, left))
}

fn relay() -> RelayProcess {
    let flags = ["--listen", "127.0.0.1:0", "--relay-ports", "20000-20999", "--io", "suspend"];
    let addresses = ["--relay-address", OWN_V4, OWN_V6, "--deny-peer", "8.8.4.0/24", "2600:bad::/32"];
    RelayProcess::start(&[&flags[..], &addresses].concat())
}

/// T32 to T37 and T39 on the wire.
#[test]
fn no_packet_leaves_for_a_refused_peer() {
    if !user_namespace::inside("no_packet_leaves_for_a_refused_peer") {
        return;
    }
    let Some(_network) = network() else { return };
    let relay = relay();
    let mut inputs = 0;
    for chunk in REFUSED.chunks(15) {
        let mut clients = [AddressFamily::V4, AddressFamily::V6].map(|family| allocated(&relay, family));
        for address in chunk {
            let address: IpAddr = address.parse().unwrap();
            let client = &mut clients[usize::from(address.is_ipv6())];
            let peer = SocketAddr::new(address, 5000);
            assert_eq!(permit(client, peer), Some(403), "CreatePermission {peer}");
            assert_eq!(channel_bind(client, 0x4000, peer), Some(403), "ChannelBind {peer}");
            send(client, peer);
            client.socket.send(&[0x40, 0, 0, 4, 1, 2, 3, 4]).unwrap();
            inputs += 4;
        }
        for client in &mut clients {
            // The other family, and the answer says that everything before it is dealt with.
            assert_eq!(code(&client.ask(Method::Refresh, |_| {})), None);
        }
    }
    // Ports: the permission is for the address, and some ports of it stay closed.
    for open in [OPEN_V4, OPEN_V6] {
        let open: SocketAddr = open.parse().unwrap();
        let mut client = allocated(&relay, family(open.ip()));
        assert_eq!(permit(&mut client, open), None);
        for port in [1, 19, 53, 123, 161, 389, 1023, 1900, 11_211] {
            let peer = SocketAddr::new(open.ip(), port);
            assert_eq!(channel_bind(&mut client, 0x4000, peer), Some(403), "{peer}");
            send(&client, peer);
            inputs += 2;
        }
        assert_eq!(code(&client.ask(Method::Refresh, |_| {})), None);
        assert_eq!(counted("open"), 0, "closed ports of an open address");
        // The witness sees what is allowed: its silence means something.
        send(&client, open);
        assert_eq!(channel_bind(&mut client, 0x4000, open), None);
        client.socket.send(&[0x40, 0, 0, 4, 1, 2, 3, 4]).unwrap();
        assert!(soon(|| counted("open") == 2), "{} packets to {open}", counted("open"));
        nft("reset counter inet witness open\n").unwrap();
    }
    println!("{inputs} inputs");
    assert_eq!(counted("refused"), 0, "packets left for refused peers");
    let (status, log) = relay.stop();
    assert!(status.success(), "{log}");
    let told: Vec<&str> = log.lines().filter(|line| line.contains("refused code=403 rule=")).collect();
    assert!(told.iter().any(|line| line.contains("rule=special_range range=10.0.0.0/8")), "{log}");
    assert!(told.iter().any(|line| line.contains("rule=deny_peer range=8.8.4.0/24")), "{log}");
    assert!(told.iter().any(|line| line.contains("rule=own_address")), "{log}");
    assert!(told.iter().any(|line| line.contains("rule=peer_port")), "{log}");
    assert!(told.iter().all(|line| line.contains("user=alice")), "{log}");
}

/// T36: an address that comes to this machine while it is a peer.
#[test]
fn an_address_that_becomes_our_own_is_cut_off() {
    if !user_namespace::inside("an_address_that_becomes_our_own_is_cut_off") {
        return;
    }
    let Some((mut handle, left)) = network() else { return };
    let relay = relay();
    let mut client = allocated(&relay, AddressFamily::V4);
    let peer: SocketAddr = OPEN_V4.parse().unwrap();
    assert_eq!(channel_bind(&mut client, 0x4000, peer), None);
    let data = [0x40, 0, 0, 4, 1, 2, 3, 4];
    client.socket.send(&data).unwrap();
    assert_eq!(code(&client.ask(Method::Refresh, |_| {})), None);
    assert_eq!(counted("open"), 1);

    handle.add_address(left, "8.8.8.8/32".parse().unwrap()).unwrap();
    // The news is on its way when the call returns, and is dealt with at once: nobody has to wait for an interval.
    assert!(soon(|| permit(&mut client, peer) == Some(403)), "the address is still a peer");
    let before = counted("open");
    for _ in 0..10 {
        client.socket.send(&data).unwrap();
        send(&client, peer);
    }
    assert_eq!(channel_bind(&mut client, 0x4000, peer), Some(403));
    assert_eq!(counted("open"), before, "packets went on");
    let (status, log) = relay.stop();
    assert!(status.success() && log.contains("rule=own_address"), "{log}");
    assert!(log.contains("\"no_channel\":10") && log.contains("\"no_permission\":10"), "{log}");
}

/// One peer of each kind, all of which have a way out.
const SPECIAL: &[&str] = &[
    "10.0.0.1",
    "100.64.0.1",
    "127.0.0.1",
    "169.254.169.254",
    "172.31.255.255",
    "192.0.0.1",
    "192.168.0.1",
    "198.19.255.255",
    "203.0.113.1",
    "224.0.0.1",
    "240.0.0.1",
    "fc00::1",
    "2001:db8::1",
    "2001::1",
    "2002:7f00:1::1",
    "64:ff9b::10.0.0.1",
    "64:ff9b::169.254.169.254",
    "64:ff9b:1::8.8.8.8",
    "3fff::1",
    "ff0e::1",
];

/// The firewall rules in the package, with the relay's own policy opened as far as it goes.
fn the_packaged_rules_stop(io: &str) {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/nftables.conf");
    let rules = std::fs::read_to_string(path).unwrap();
    // The user and the ports of this test.
    let ours = rules
        .replace("define relay_user = towpath-relay\n", "define relay_user = 0\n")
        .replace("define relay_ports = 49152-65535\n", "define relay_ports = 20000-20999\n");
    nft(&ours).unwrap();
    nft("reset counters table inet witness\n").unwrap();
    let flags = ["--listen", "127.0.0.1:0", "--relay-ports", "20000-20999", "--io", io];
    let opened =
        ["--relay-address", OWN_V4, OWN_V6, "--allow-peer", "0.0.0.0/0", "::/0", "--new-peers-per-user", "0"];
    let relay = RelayProcess::start(&[&flags[..], &opened].concat());
    let mut clients = [AddressFamily::V4, AddressFamily::V6].map(|family| allocated(&relay, family));
    let peers: Vec<IpAddr> = SPECIAL.iter().map(|text| text.parse().unwrap()).collect();
    let open = [OPEN_V4, OPEN_V6].map(|text| text.parse::<SocketAddr>().unwrap());
    let all = peers.iter().map(|&address| SocketAddr::new(address, 5000)).chain(open);
    let all: Vec<SocketAddr> = all.collect();
    // Before the first packet: an ICMP error for one would come among the answers.
    for &peer in &all {
        assert_eq!(permit(&mut clients[usize::from(peer.is_ipv6())], peer), None, "{peer} is allowed");
    }
    let send_all = || all.iter().for_each(|&peer| send(&clients[usize::from(peer.is_ipv6())], peer));
    send_all();
    assert!(soon(|| counted("open") == 2), "what is public goes out");
    let v6 = peers.iter().filter(|address| address.is_ipv6()).count() as u64;
    let v4 = peers.len() as u64 - v6;
    let stopped = || ["special_v4", "special_v6"].map(|name| counted_by("towpath_relay", name));
    assert!(soon(|| stopped() == [v4, v6]), "{:?} of {v4} and {v6}", stopped());
    assert_eq!(counted("refused"), 0, "something left for an address that is not public");
    // Without the rules everything leaves: it is they who stopped it.
    nft("delete table inet towpath_relay\n").unwrap();
    send_all();
    assert!(soon(|| counted("refused") == v4 + v6), "{} of {}", counted("refused"), v4 + v6);
    let (status, log) = relay.stop();
    assert!(status.success(), "{log}");
    assert!(log.contains(&format!("\"egress_denied\":{}", v4 + v6)), "{log}");
}

#[test]
fn what_an_opened_policy_lets_out_the_packaged_firewall_rules_stop_and_count() {
    if !user_namespace::inside("what_an_opened_policy_lets_out_the_packaged_firewall_rules_stop_and_count") {
        return;
    }
    let Some(_network) = network() else { return };
    for io in ["suspend", "uring"] {
        the_packaged_rules_stop(io);
    }
}

/// The rules know every range that the relay's policy refuses by itself.
#[test]
fn the_packaged_firewall_rules_are_as_complete_as_the_policy() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/nftables.conf");
    let rules = std::fs::read_to_string(path).unwrap();
    let nets: Vec<ipnet::IpNet> = rules
        .split(|letter: char| letter.is_whitespace() || letter == ',')
        .filter_map(|word| word.parse().ok())
        .collect();
    assert!(nets.len() > 30, "{nets:?}");
    let policy = PeerPolicy::default();
    let mut seen = 0;
    for text in REFUSED {
        let address: IpAddr = text.parse().unwrap();
        let is_special = policy.judge_address(address).is_err();
        // The last two kinds of ISATAP are known by the end of an address that can begin with anything; mapped and translated
        // addresses are IPv4 to the kernel, or are routed nowhere.
        let is_elsewhere = text.contains("5efe") || text.starts_with("::ffff:0:");
        if is_special && !is_elsewhere {
            assert!(nets.iter().any(|net| net.contains(&address)), "{address}");
            seen += 1;
        }
    }
    assert!(seen > 40, "{seen}");
}
