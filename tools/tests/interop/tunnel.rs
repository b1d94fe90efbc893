//! `towpath` and Debian's `wireguard-go`, each as either end, IPv4 and IPv6, MTU 1280 and 1420.

use super::shutdown::ledger;
use super::world::{Process, World, keys, sh};

/// One end of a tunnel.
pub(super) struct End {
    pub host: &'static str,
    private: String,
    pub public: String,
    /// Last byte of its inner addresses.
    number: u8,
}

impl End {
    pub fn new(host: &'static str, number: u8) -> Self {
        let (private, public) = keys();
        Self { host, private, public, number }
    }

    pub fn private(&self) -> &str {
        &self.private
    }

    pub fn public(&self) -> &str {
        &self.public
    }

    /// The configuration; `endpoint` is where the other end is, if this one calls first.
    pub fn config(&self, other: &Self, endpoint: Option<&str>, quick: &str) -> String {
        let endpoint = endpoint.map_or_else(String::new, |endpoint| format!("Endpoint = {endpoint}\n"));
        format!(
            "[Interface]\nPrivateKey = {}\nListenPort = 51820\n{quick}\n[Peer]\nPublicKey = {}\n\
             AllowedIPs = 10.77.0.{}/32, fd77::{}/128\n{endpoint}",
            self.private, other.public, other.number, other.number
        )
    }
}

fn start_towpath(world: &World, end: &End, other: &End, endpoint: Option<&str>, mtu: u16) -> Process {
    start_towpath_with(world, end, other, endpoint, &format!("MTU = {mtu}"), &[])
}

/// `towpath up` on the host of an end, with more lines in `[Interface]`, and flags.
pub(super) fn start_towpath_with(
    world: &World,
    end: &End,
    other: &End,
    endpoint: Option<&str>,
    interface: &str,
    flags: &[&str],
) -> Process {
    let quick = format!("Address = 10.77.0.{0}/24, fd77::{0}/64\n{interface}", end.number);
    let file = world.file(&format!("tow{}.conf", end.host), &end.config(other, endpoint, &quick));
    world.tunnel(end.host, &file, flags)
}

pub(super) fn start_wireguard_go(
    world: &World,
    end: &End,
    other: &End,
    endpoint: Option<&str>,
    mtu: u16,
) -> Process {
    let file = world.file(&format!("go{}.conf", end.host), &end.config(other, endpoint, ""));
    let (host, name, number) = (end.host, format!("go{}", end.host), end.number);
    let process = world.start(
        host,
        &["env", "LOG_LEVEL=verbose", "wireguard-go", "-f", &name],
        "UAPI listener started",
    );
    sh(&format!(
        "ip netns exec {host} wg setconf {name} {}
         ip -n {host} addr add 10.77.0.{number}/24 dev {name}
         ip -n {host} addr add fd77::{number}/64 dev {name} nodad
         ip -n {host} link set {name} mtu {mtu} up",
        file.display()
    ));
    process
}

/// Pings and iperf3 both ways, inner IPv4 and IPv6.
fn carry(world: &World, mtu: u16) {
    let size = mtu - 28;
    sh(&format!("ip netns exec a ping -c 3 -i 0.05 -W 3 -s {size} -M do 10.77.0.2"));
    sh("ip netns exec a ping -6 -c 3 -i 0.05 -W 3 fd77::2");
    sh("ip netns exec b ping -c 3 -i 0.05 -W 3 10.77.0.1");
    for address in ["10.77.0.2", "fd77::2"] {
        let [out, back] = world.iperf("a", "b", address, 16);
        println!("mtu {mtu} {address}: {out:.2} Gbit/s there, {back:.2} back");
    }
}

fn either_end(world: &World, endpoint: &str) {
    for mtu in [1280, 1420] {
        let (a, b) = (End::new("a", 1), End::new("b", 2));
        println!("towpath calls wireguard-go at {endpoint}");
        let callee = start_wireguard_go(world, &b, &a, None, mtu);
        let caller = start_towpath(world, &a, &b, Some(endpoint), mtu);
        carry(world, mtu);
        drop((caller, callee));
        println!("wireguard-go calls towpath at {endpoint}");
        let callee = start_towpath(world, &b, &a, None, mtu);
        let caller = start_wireguard_go(world, &a, &b, Some(endpoint), mtu);
        carry(world, mtu);
        drop((caller, callee));
    }
}

pub fn wireguard_go_is_either_end_over_ipv4(world: World) {
    either_end(&world, "10.2.0.2:51820");
}

pub fn wireguard_go_is_either_end_over_ipv6(world: World) {
    either_end(&world, "[fd02::2]:51820");
}

pub fn every_design_carries_a_tunnel(world: World) {
    for flags in [
        ["--io", "uring", "--completions", "thread"],
        ["--io", "uring", "--completions", "inline"],
        ["--io", "uring", "--ingress", "epoll"],
        ["--io", "uring", "--gso", "off"],
        ["--io", "uring", "--busy-poll", "200"],
        ["--io", "threaded", "--ingress", "epoll"],
        ["--io", "suspend", "--ingress", "epoll"],
        ["--io", "drop", "--ingress", "uring"],
        ["--io", "runtime", "--ingress", "epoll"],
    ] {
        let (a, b) = (End::new("a", 1), End::new("b", 2));
        let quick = |end: &End| format!("Address = 10.77.0.{0}/24, fd77::{0}/64\nMTU = 1420", end.number);
        let file = world.file("towb.conf", &b.config(&a, None, &quick(&b)));
        let callee = world.tunnel("b", &file, &flags);
        let file = world.file("towa.conf", &a.config(&b, Some("10.2.0.2:51820"), &quick(&a)));
        sh(
            "ip netns exec a sh -c 'echo 0 > /proc/sys/net/ipv4/ip_forward; echo 0 > /proc/sys/net/ipv6/conf/all/forwarding'",
        );
        let caller = world.tunnel("a", &file, &flags);
        // What TCP puts into a superpacket leaves as one: 45 packets of this MTU, sealed, fill a datagram of 64 KiB.
        sh("ip -n a -d link show towa | grep -w 'gso_max_segs 45'");
        sh("ip netns exec a ping -c 3 -i 0.05 -W 3 10.77.0.2");
        let [out, back] = world.iperf("a", "b", "10.77.0.2", 192);
        println!("{flags:?}: {out:.2} Gbit/s there, {back:.2} back");
        drop((caller, callee));
    }
}

/// Both ends of a tunnel whose caller reaches its peer through a relay: caller and callee.
fn relayed(world: &World, relay: &str, flags: &[&str]) -> [Process; 2] {
    let (a, b) = (End::new("a", 1), End::new("b", 2));
    let quick = |end: &End| format!("Address = 10.77.0.{0}/24, fd77::{0}/64", end.number);
    let file = world.file("towb.conf", &b.config(&a, None, &quick(&b)));
    let callee = world.tunnel("b", &file, flags);
    let password = world.file("password", "secret\n");
    let relayed = format!(
        "{}\n#towpath: Relay = turn:{relay}\n#towpath: RelayUsername = user\n#towpath: RelayPasswordFile = {}",
        quick(&a),
        password.display()
    );
    let config = a.config(&b, Some("10.2.0.2:51820"), &relayed) + "#towpath: Path = relay\n";
    let file = world.file("towa.conf", &config);
    let caller = world.tunnel("a", &file, flags);
    sh("ip netns exec a ping -c 3 -i 0.05 -W 5 10.77.0.2");
    [caller, callee]
}

fn carry_relayed(world: &World, relay: &str) {
    let ends = relayed(world, relay, &[]);
    let [out, back] = world.iperf("a", "b", "10.77.0.2", 64);
    println!("through the relay: {out:.2} Gbit/s there, {back:.2} back");
    drop(ends);
}

/// Our relay at 10.1.0.1:3478, which knows `user`.
fn our_relay(world: &World) -> Process {
    let users = world.file("users", "user:secret\n");
    let users = users.display().to_string();
    world.relay(
        "r",
        &[
            "--listen",
            "10.1.0.1:3478",
            "--realm",
            "test",
            "--user-file",
            &users,
            "--allow-peer",
            "10.2.0.0/24",
        ],
    )
}

pub fn the_tunnel_goes_through_our_relay(world: World) {
    let relay = our_relay(&world);
    carry_relayed(&world, "10.1.0.1:3478");
    drop(relay);
}

pub fn crypto_threads_open_what_comes_in_channel_data(world: World) {
    let relay = our_relay(&world);
    let [caller, callee] =
        relayed(&world, "10.1.0.1:3478", &["--crypto-threads", "1", "--log-format", "json"]);
    let server = world.start("b", &["iperf3", "-s", "-1", "--forceflush"], "listening");
    sh("ip netns exec a iperf3 -c 10.77.0.2 -n 64M --connect-timeout 3000 -R");
    drop(server);
    // What the caller sends, acknowledgements, is too little to have others seal it: all that was handed over was opened.
    let figures = ledger(&caller.stop());
    let handed_over = figures["crypto"]["handed_over"].as_u64().unwrap();
    assert!(handed_over > 10 && figures["unexplained"] == 0, "{figures}");
    drop((callee, relay));
}

pub fn the_tunnel_goes_through_coturn(world: World) {
    let turnserver = [
        "turnserver",
        "-n",
        "-L",
        "10.1.0.1",
        "-E",
        "10.1.0.1",
        "--lt-cred-mech",
        "-u",
        "user:secret",
        "-r",
        "test",
        "--no-tls",
        "--no-dtls",
        "--no-cli",
        "-l",
        "stdout",
        "--simple-log",
        "--log-binding",
        "--userdb",
        "/run/turn.db",
        "--pidfile",
        "/run/turn.pid",
        "--allow-loopback-peers",
        "--cli-password",
        "x",
    ];
    let relay = world.start("r", &turnserver, "Total General servers");
    carry_relayed(&world, "10.1.0.1:3478");
    drop(relay);
}
