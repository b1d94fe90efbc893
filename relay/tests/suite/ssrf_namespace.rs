//! Peers that are refused, over real sockets in a network namespace of its own, where a firewall counts every packet that
//! leaves a relayed port: a witness outside the process.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test panics when it cannot go on and says what it saw"
)]

use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::Stdio;
use std::time::Duration;

use crate::harness::{Client, RelayProcess, code, program};
use crate::left_out::left_out;
use crate::{ranges, user_namespace};
use dataplane::netlink::Handle;
use dataplane::stun::{AddressFamily, Class, Method, TransactionId, Writer};
use relay::server::policy::PeerPolicy;

/// The relay's own addresses, as public as any.
const OWN_V4: &str = "198.41.0.4";
const OWN_V6: &str = "2600::4";
/// Peers that may be reached; nobody is there.
const OPEN_V4: &str = "8.8.8.8:5000";
const OPEN_V6: &str = "[2606:4700::1]:5000";
/// What --deny-peer refuses.
const DENIED_V4: (&str, u8) = ("8.8.4.0", 24);
const DENIED_V6: (&str, u8) = ("2600:bad::", 32);
/// How packets leave: by a ring, and by system calls.
const DESIGNS: [&str; 2] = ["uring", "suspend"];

/// Counts what leaves relayed ports, which no client has by chance: to peers that are open, and to anybody else. After every
/// other table has had its say.
const WITNESS: &str = "
table inet witness {
    set open4 { type ipv4_addr; elements = { 8.8.8.8 } }
    set open6 { type ipv6_addr; elements = { 2606:4700::1 } }
    counter open { }
    counter refused { }
    chain output {
        type filter hook output priority 10; policy accept;
        meta l4proto udp udp sport 20000-20999 ip daddr @open4 counter name open accept
        meta l4proto udp udp sport 20000-20999 ip6 daddr @open6 counter name open accept
        meta l4proto udp udp sport 20000-20999 counter name refused
    }
}
";

/// Everything of IPv4 that is refused here.
fn refused_v4() -> Vec<(&'static str, u8)> {
    [ranges::V4, &[("127.0.0.0", 8), DENIED_V4, (OWN_V4, 32)]].concat()
}

/// The same of IPv6, but for what carries an address of IPv4.
fn refused_v6() -> Vec<(&'static str, u8)> {
    [ranges::V6, &[DENIED_V6, (OWN_V6, 128)]].concat()
}

/// T32 to T35: the first and last address of every range with their neighbours outside, and the IPv4 ones in every encoding. Of
/// each whether it has to be refused, judged without the relay.
fn expanded() -> Vec<(IpAddr, bool)> {
    let (v4, v6) = (refused_v4(), refused_v6());
    let mut all = Vec::new();
    for &(net, prefix) in &v4 {
        let (first, last) = ranges::ends_v4(net, prefix);
        for bits in [first.checked_sub(1), Some(first), Some(last), last.checked_add(1)].into_iter().flatten()
        {
            let address = Ipv4Addr::from_bits(bits);
            let is_refused = ranges::is_in_v4(&v4, bits);
            all.push((address.into(), is_refused));
            // The ranges of Teredo and of NAT64 for local use are refused whatever is inside.
            let encodings = ranges::encodings(address)
                .map(|encoding| (encoding.into(), is_refused || ranges::is_in_v6(&v6, encoding.to_bits())));
            all.extend(encodings);
        }
    }
    for &(net, prefix) in &v6 {
        let (first, last) = ranges::ends_v6(net, prefix);
        for bits in [first.checked_sub(1), Some(first), Some(last), last.checked_add(1)].into_iter().flatten()
        {
            let is_refused = ranges::is_in_v6(&v6, bits);
            // What is neither special nor allocated to anybody yet (outside 2000::/3) is left to the relay.
            if is_refused || bits >> 125 == 1 {
                all.push((Ipv6Addr::from_bits(bits).into(), is_refused));
            }
        }
    }
    all
}

/// What those ranges leave out: where routers and clouds keep their secrets, ports of the relay under other names.
const ALSO_REFUSED: [&str; 6] = [
    "169.254.169.254",
    "fd00:ec2::254",
    "ff02::1",
    "::ffff:169.254.169.254",
    "64:ff9b::169.254.169.254",
    "fe80::5efe:8.8.8.8",
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

/// Whether something comes true, in ten seconds on a busy machine.
fn soon(mut is_true: impl FnMut() -> bool) -> bool {
    (0..200).any(|_| {
        std::thread::sleep(Duration::from_millis(50));
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

fn relay(design: &str) -> RelayProcess {
    let flags = ["--listen", "127.0.0.1:0", "--relay-ports", "20000-20999", "--io", design];
    let denied = [DENIED_V4, DENIED_V6].map(|(net, prefix)| format!("{net}/{prefix}"));
    let peers = ["--deny-peer", &denied[0], &denied[1], "--new-peers-per-user", "0"];
    RelayProcess::start(&[&flags[..], &["--relay-address", OWN_V4, OWN_V6], &peers].concat())
}

/// Clients whose allocations are still there: the kernel may give the port of one that is gone to another, which the relay would take
/// for the first.
type Kept = Vec<Client>;

/// Every way to peers that are refused; how many inputs those were.
fn try_refused(relay: &RelayProcess, refused: &[IpAddr], kept: &mut Kept) -> u64 {
    // A client has numbers for 255 requests.
    for chunk in refused.chunks(100) {
        let mut clients = [AddressFamily::V4, AddressFamily::V6].map(|family| allocated(relay, family));
        for &address in chunk {
            let client = &mut clients[usize::from(address.is_ipv6())];
            let peer = SocketAddr::new(address, 5000);
            assert_eq!(permit(client, peer), Some(403), "CreatePermission {peer}");
            assert_eq!(channel_bind(client, 0x4000, peer), Some(403), "ChannelBind {peer}");
            send(client, peer);
            client.socket.send(&[0x40, 0, 0, 4, 1, 2, 3, 4]).unwrap();
        }
        for client in &mut clients {
            // The answer says that everything before it is dealt with.
            assert_eq!(code(&client.ask(Method::Refresh, |_| {})), None);
        }
        kept.extend(clients);
    }
    4 * refused.len() as u64
}

/// Every way to peers that are not; how many packets have to leave.
fn try_open(relay: &RelayProcess, open: &[IpAddr], kept: &mut Kept) -> u64 {
    let mut left = 0;
    // As many as an allocation has room for.
    for chunk in open.chunks(60) {
        let mut clients = [AddressFamily::V4, AddressFamily::V6].map(|family| allocated(relay, family));
        for (number, &address) in (0x4000..).zip(chunk) {
            let client = &mut clients[usize::from(address.is_ipv6())];
            let peer = SocketAddr::new(address, 5000);
            assert_eq!(permit(client, peer), None, "CreatePermission {peer}");
            assert_eq!(channel_bind(client, number, peer), None, "ChannelBind {peer}");
        }
        // Nobody answers for these peers, which clients will be told of: nothing is asked of the relay from here on.
        for (number, &address) in (0x4000_u16..).zip(chunk) {
            let client = &clients[usize::from(address.is_ipv6())];
            let [high, low] = number.to_be_bytes();
            // The longer one second: the witness counts two that left as one superpacket once.
            client.socket.send(&[high, low, 0, 4, 1, 2, 3, 4]).unwrap();
            send(client, SocketAddr::new(address, 5000));
            // To an IPv4-mapped address a socket of IPv6 sends nothing.
            left += if address.to_canonical() == address { 2 } else { 0 };
        }
        kept.extend(clients);
    }
    left
}

/// Adds to the addresses that the witness knows as open.
fn open_up(addresses: &[IpAddr]) {
    for (set, is_v6) in [("open4", false), ("open6", true)] {
        let own = addresses.iter().filter(|address| address.is_ipv6() == is_v6);
        let elements: Vec<_> = own.map(IpAddr::to_string).collect();
        if elements.is_empty() {
            continue;
        }
        nft(&format!("add element inet witness {set} {{ {} }}\n", elements.join(", "))).unwrap();
    }
}

/// T32 to T37 and T39 on the wire.
#[test]
fn no_packet_leaves_for_a_refused_peer() {
    if !user_namespace::inside("ssrf_namespace::no_packet_leaves_for_a_refused_peer") {
        return;
    }
    let Some(_network) = network() else { return };
    let (refused, open): (Vec<_>, Vec<_>) = expanded().into_iter().partition(|&(_, is_refused)| is_refused);
    let also_refused = ALSO_REFUSED.iter().map(|text| text.parse::<IpAddr>().unwrap());
    let refused: Vec<IpAddr> = refused.into_iter().map(|(address, _)| address).chain(also_refused).collect();
    let open: Vec<IpAddr> = open.into_iter().map(|(address, _)| address).collect();
    open_up(&open);
    for design in DESIGNS {
        let relay = relay(design);
        let mut kept = Kept::new();
        let inputs = try_refused(&relay, &refused, &mut kept);
        assert!(inputs >= 1000, "{inputs} inputs");
        let ports = try_ports(&relay, &mut kept);
        assert_eq!((counted("open"), counted("refused")), (0, 0), "packets left ({design})");
        // The witness sees what is allowed, to the addresses beside those: its silence means something.
        let left = try_open(&relay, &open, &mut kept);
        if !soon(|| counted("open") == left) {
            let counted = counted("open");
            panic!("{counted} of {left} packets ({design}): {}", relay.stop().1);
        }
        nft("reset counter inet witness open\n").unwrap();
        assert_eq!(counted("refused"), 0, "packets left for refused peers ({design})");
        println!(
            "{design}: {inputs} inputs to refused peers, {ports} to refused ports, {left} packets to others"
        );
        let (status, log) = relay.stop();
        assert!(status.success(), "{log}");
        let told: Vec<&str> = log.lines().filter(|line| line.contains("refused code=403 rule=")).collect();
        for rule in
            ["special_range range=10.0.0.0/8", "deny_peer range=8.8.4.0/24", "own_address", "peer_port"]
        {
            assert!(told.iter().any(|line| line.contains(&format!("rule={rule}"))), "{rule}: {log}");
        }
        assert!(told.iter().all(|line| line.contains("user=alice")), "{log}");
    }
}

/// Ports of open peers that are refused: the permission is for the address, and some ports of it stay closed.
fn try_ports(relay: &RelayProcess, kept: &mut Kept) -> u64 {
    let mut inputs = 0;
    for open in [OPEN_V4, OPEN_V6] {
        let open: SocketAddr = open.parse().unwrap();
        let mut client = allocated(relay, family(open.ip()));
        assert_eq!(permit(&mut client, open), None);
        for port in [1, 19, 53, 123, 161, 389, 1023, 1900, 11_211] {
            let peer = SocketAddr::new(open.ip(), port);
            assert_eq!(channel_bind(&mut client, 0x4000, peer), Some(403), "{peer}");
            send(&client, peer);
            inputs += 2;
        }
        assert_eq!(code(&client.ask(Method::Refresh, |_| {})), None);
        kept.push(client);
    }
    inputs
}

/// T36: an address that comes to this machine while it is a peer.
#[test]
fn an_address_that_becomes_our_own_is_cut_off() {
    if !user_namespace::inside("ssrf_namespace::an_address_that_becomes_our_own_is_cut_off") {
        return;
    }
    let Some((mut handle, left)) = network() else { return };
    for (design, ip) in DESIGNS.into_iter().zip(["8.8.8.8", "8.8.8.9"]) {
        let peer = SocketAddr::new(ip.parse().unwrap(), 5000);
        open_up(&[peer.ip()]);
        let relay = relay(design);
        let mut client = allocated(&relay, AddressFamily::V4);
        assert_eq!(channel_bind(&mut client, 0x4000, peer), None);
        let data = [0x40, 0, 0, 4, 1, 2, 3, 4];
        let before = counted("open");
        client.socket.send(&data).unwrap();
        assert!(soon(|| counted("open") == before + 1), "{design}");

        handle.add_address(left, format!("{ip}/32").parse().unwrap()).unwrap();
        // The news is on its way when the call returns, and is dealt with at once: nobody has to wait for an interval.
        assert!(soon(|| permit(&mut client, peer) == Some(403)), "the address is still a peer ({design})");
        for _ in 0..10 {
            client.socket.send(&data).unwrap();
            send(&client, peer);
        }
        assert_eq!(channel_bind(&mut client, 0x4000, peer), Some(403));
        assert_eq!(counted("open"), before + 1, "packets went on ({design})");
        let (status, log) = relay.stop();
        assert!(status.success() && log.contains("rule=own_address"), "{log}");
        assert!(log.contains(".no_channel=10 ") && log.contains(".no_permission=10 "), "{log}");
    }
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
    assert!(log.contains(&format!(".egress_denied={} ", v4 + v6)), "{log}");
}

#[test]
fn what_an_opened_policy_lets_out_the_packaged_firewall_rules_stop_and_count() {
    if !user_namespace::inside(
        "ssrf_namespace::what_an_opened_policy_lets_out_the_packaged_firewall_rules_stop_and_count",
    ) {
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
    let v4 = ranges::V4.iter().flat_map(|&(net, prefix)| {
        let (first, last) = ranges::ends_v4(net, prefix);
        [first, last].map(|bits| IpAddr::V4(Ipv4Addr::from_bits(bits)))
    });
    let v6 = ranges::V6.iter().flat_map(|&(net, prefix)| {
        let (first, last) = ranges::ends_v6(net, prefix);
        [first, last].map(|bits| IpAddr::V6(Ipv6Addr::from_bits(bits)))
    });
    let mut seen = 0;
    for address in v4.chain(v6) {
        assert!(policy.judge_address(address).is_err(), "{address}");
        assert!(nets.iter().any(|net| net.contains(&address)), "{address}");
        seen += 1;
    }
    assert!(seen > 50, "{seen}");
}
