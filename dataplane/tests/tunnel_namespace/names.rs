//! Names without an address at start: the tunnel is there all the same, and goes on when they have one.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::show::own_sockets;
use super::{Cable, Running, TOWPATH, debian_turn_server, echo_datagrams, left_out, run, spawn, start};

/// The names that this machine knows, in a file of the test's own.
struct Names(PathBuf);

impl Names {
    /// There are none but its own.
    fn new(cable: &Cable) -> Self {
        let names = Self(cable.directory.path().join("hosts"));
        names.set("");
        run(Command::new("mount").arg("--bind").arg(&names.0).arg("/etc/hosts"));
        names
    }

    fn set(&self, lines: &str) {
        std::fs::write(&self.0, format!("127.0.0.1 localhost\n{lines}\n")).unwrap();
    }
}

/// Warnings that a name has no address.
fn told(running: &Running, name: &str) -> usize {
    let is_about = |line: &serde_json::Value| {
        let message = line["message"].as_str().unwrap_or_default();
        line["severity"] == "WARN" && message.contains(name) && message.contains("has no address")
    };
    running.lines().iter().filter(|line| is_about(line)).count()
}

#[test]
fn a_tunnel_starts_without_the_address_of_its_peer_and_finds_it_later() {
    let test = "names::a_tunnel_starts_without_the_address_of_its_peer_and_finds_it_later";
    let Some(cable) = Cable::enter(test) else { return };
    let names = Names::new(&cable);
    let peer = "Endpoint = far.example:51820\nPersistentKeepalive = 25";
    let b = start(&cable.b, &cable.configuration(2, "MTU = 1420", ""), &[]);
    let mut a = start(&cable.a, &cable.configuration(1, "MTU = 1420", peer), &[]);
    // The second time that it is looked up.
    std::thread::sleep(std::time::Duration::from_millis(1_500));
    assert_eq!(told(&a, "far.example:51820"), 1, "{}", a.log());
    names.set("192.0.2.2 far.example");
    // Another address of this machine is a reason to look at once.
    cable.a.sh("ip addr add 192.0.2.77/24 dev left");
    a.wait_for("far.example:51820 is looked for at 192.0.2.2:51820 now");
    a.wait_for("handshake complete");
    echo_datagrams(&cable, "10.99.0.1:7000", "10.99.0.2:7000");
    assert_eq!(told(&a, "far.example:51820"), 1, "{}", a.log());
    for ledger in [a.stop(), b.stop()] {
        assert_eq!(ledger["unexplained"], 0, "{ledger:#}");
    }
}

#[test]
fn an_automatic_mtu_follows_the_route_to_a_peer_that_is_found_later() {
    let test = "names::an_automatic_mtu_follows_the_route_to_a_peer_that_is_found_later";
    let Some(cable) = Cable::enter(test) else { return };
    let names = Names::new(&cable);
    cable.a.sh("ip route replace 192.0.2.0/24 dev left src 192.0.2.1 mtu 1400");
    let mut a = start(&cable.a, &cable.configuration(1, "MTU = auto", "Endpoint = far.example:51820"), &[]);
    // No route changes from here on, and without a change all routes are looked at once a minute.
    std::thread::sleep(std::time::Duration::from_millis(1_500));
    names.set("192.0.2.2 far.example");
    a.wait_for("the MTU of the interface follows");
    assert!(cable.a.sh("ip link show towpath1").contains("mtu 1320 "), "{}", a.log());
    a.stop();
}

#[test]
fn a_peer_that_has_called_meanwhile_stays_where_it_is() {
    let test = "names::a_peer_that_has_called_meanwhile_stays_where_it_is";
    let Some(cable) = Cable::enter(test) else { return };
    let names = Names::new(&cable);
    let a = start(&cable.a, &cable.configuration(1, "MTU = 1420", "Endpoint = far.example:51820"), &[]);
    let calling = "Endpoint = 192.0.2.1:51820\nPersistentKeepalive = 1";
    let mut b = start(&cable.b, &cable.configuration(2, "MTU = 1420", calling), &[]);
    b.wait_for("handshake complete");
    echo_datagrams(&cable, "10.99.0.1:7000", "10.99.0.2:7000");
    // An address where nobody is, found now.
    names.set("192.0.2.99 far.example");
    cable.a.sh("ip addr add 192.0.2.77/24 dev left");
    std::thread::sleep(std::time::Duration::from_millis(500));
    echo_datagrams(&cable, "10.99.0.1:7000", "10.99.0.2:7000");
    assert!(!a.log().contains("is looked for"), "{}", a.log());
    for ledger in [a.stop(), b.stop()] {
        assert_eq!(ledger["unexplained"], 0, "{ledger:#}");
    }
}

#[test]
fn everything_is_routed_into_a_tunnel_only_when_its_peer_has_an_address() {
    let test = "names::everything_is_routed_into_a_tunnel_only_when_its_peer_has_an_address";
    let Some(cable) = Cable::enter(test) else { return };
    let names = Names::new(&cable);
    let other = "[Peer]\nPublicKey = xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=\nAllowedIPs = 10.98.0.0/16\n\
                 Endpoint = other.example:51820";
    let peer =
        &format!("Endpoint = far.example:51820\nPersistentKeepalive = 25\nAllowedIPs = 0.0.0.0/0\n{other}");
    let b = start(&cable.b, &cable.configuration(2, "", ""), &[]);
    let mut a = spawn(&cable.a, &cable.configuration(1, "", peer), &[]);
    a.wait_for("there is no tunnel before that");
    assert_eq!(cable.a.sh("ip -o link show towpath1 || echo none").trim(), "none");
    assert_eq!(cable.a.sh("ip rule | wc -l").trim(), "3");
    names.set("192.0.2.2 far.example");
    a.wait_for("\"ready\"");
    a.wait_for("handshake complete");
    // Nobody waits for the second, which is told of once as well.
    assert_eq!((told(&a, "far.example:51820"), told(&a, "other.example:51820")), (1, 1), "{}", a.log());
    assert_ne!(cable.a.sh("ip rule | wc -l").trim(), "3");
    for ledger in [a.stop(), b.stop()] {
        assert_eq!(ledger["unexplained"], 0, "{ledger:#}");
    }

    // What waits can be ended.
    names.set("");
    let mut a = spawn(&cable.a, &cable.configuration(1, "", peer), &[]);
    a.wait_for("there is no tunnel before that");
    a.signal(rustix::process::Signal::TERM);
    assert!(a.wait().success(), "{}", a.log());
}

#[test]
fn who_starts_an_interface_for_wg_is_told_of_a_relay_without_an_address() {
    let test = "names::who_starts_an_interface_for_wg_is_told_of_a_relay_without_an_address";
    let Some(cable) = Cable::enter(test) else { return };
    let lines = Path::new("/etc/wireguard");
    if !lines.is_dir() {
        return left_out("lines beside those of wg-quick: apt-get install wireguard-tools");
    }
    let _names = Names::new(&cable);
    own_sockets();
    run(Command::new("mount").args(["-t", "tmpfs", "tmpfs"]).arg(lines));
    let relay = "#towpath: Relay = turn:relay.example\n#towpath: RelayUsername = alice\n\
                 #towpath: RelayPasswordFile = password";
    std::fs::write(lines.join("password"), "secret\n").unwrap();
    std::fs::write(lines.join("towpath3.conf"), format!("[Interface]\n{relay}\n")).unwrap();
    let said = cable.a.sh(&format!("{TOWPATH} towpath3 2>&1; ip link set towpath3 up; ip link del towpath3"));
    assert!(said.contains("towpath3.conf: line 2: relay.example:3478 has no address"), "{said}");
}

#[test]
fn a_relay_and_the_peer_behind_it_are_found_later() {
    let test = "names::a_relay_and_the_peer_behind_it_are_found_later";
    let Some(cable) = Cable::enter(test) else { return };
    let names = Names::new(&cable);
    let Some(_server) = debian_turn_server(&cable, &["-E", "192.0.2.2", "-E", "2001:db8::2"]) else {
        return;
    };
    let relay = "MTU = 1420\n#towpath: Relay = turn:relay.example\n#towpath: RelayUsername = alice\n\
                 #towpath: RelayPasswordFile = password";
    let peer = "Endpoint = far.example:51820\nPersistentKeepalive = 25\n#towpath: Path = relay";
    let b = start(&cable.b, &cable.configuration(2, "MTU = 1416", ""), &[]);
    let mut a = spawn(&cable.a, &cable.configuration(1, relay, peer), &[]);
    a.wait_for("interface is up");
    assert_eq!((told(&a, "relay.example:3478"), told(&a, "far.example:51820")), (1, 1), "{}", a.log());
    names.set("192.0.2.2 relay.example");
    a.wait_for("relay allocated");
    assert!(a.log().contains("Endpoint is 192.0.2.2:"), "{}", a.log());
    // The peer has the other family: so must have the address at the relay.
    names.set("192.0.2.2 relay.example\n2001:db8::2 far.example");
    a.wait_for("Endpoint is [2001:db8::2]:");
    a.wait_for("handshake complete");
    echo_datagrams(&cable, "10.99.0.1:7000", "10.99.0.2:7000");
    for ledger in [a.stop(), b.stop()] {
        assert_eq!(ledger["unexplained"], 0, "{ledger:#}");
    }
}
