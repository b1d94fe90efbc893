//! The way between the ends changes: it is narrower than the tunnel, its ends have other addresses, one of them sleeps.

use std::process::Stdio;
use std::time::{Duration, Instant};

use super::shutdown::ledger;
use super::tunnel::{End, start_towpath_with, start_wireguard_go};
use super::world::{World, command, keys, sh, try_sh};

const JSON: [&str; 2] = ["--log-format", "json"];

/// Waits until something is so.
fn until(what: &str, patience: Duration, mut is_so: impl FnMut() -> bool) {
    #[expect(clippy::disallowed_methods, reason = "a test may read the clock")]
    let now = Instant::now;
    let deadline = now() + patience;
    while !is_so() {
        assert!(now() < deadline, "not within {patience:?}: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Whether one ping of a size comes back, and what ping says.
fn ping(options: &str) -> (bool, String) {
    let output = try_sh(&format!("ip netns exec a ping -c 1 -W 1 {options} 2>&1"));
    (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Sets the MTU of the link between `r` and `b`.
fn narrow(mtu: u16) {
    sh(&format!("ip -n r link set rb mtu {mtu}; ip -n b link set b0 mtu {mtu}"));
}

/// A figure of /proc/net/snmp on a host.
fn fragments(host: &str) -> u64 {
    let text = sh(&format!("ip netns exec {host} grep ^Ip: /proc/net/snmp"));
    let mut lines = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    values[names.iter().position(|name| *name == "FragCreates").unwrap()].parse().unwrap()
}

/// Packets of up to `mtu` bytes pass, senders of longer ones are told, what may be fragmented passes.
fn learns(world: &World, mtu: u16) {
    let whole = mtu - 28;
    until("the narrow way is noticed", Duration::from_secs(10), || {
        ping("-s 1392 -M do 10.77.0.2").1.contains(&format!("mtu={mtu}"))
            || ping("-s 1392 -M do 10.77.0.2").1.contains(&format!("mtu = {mtu}"))
    });
    assert!(ping(&format!("-s {whole} -M do 10.77.0.2")).0, "{whole}");
    assert!(ping("-s 1392 -M dont 10.77.0.2").0, "without DF");
    until("IPv6 is told as well", Duration::from_secs(5), || {
        let text = ping("-6 -s 1372 -M do fd77::2").1;
        text.contains("mtu=") || text.contains("mtu = ") || text.contains("mtu: ")
    });
    assert!(ping("-6 -s 1200 -M do fd77::2").0);
    let before = fragments("a");
    for address in ["10.77.0.2", "fd77::2"] {
        world.iperf("a", "b", address, 16);
    }
    // TCP has heard of it: what carries its segments is not fragmented, but for a few at the beginning.
    let made = fragments("a") - before;
    assert!(made < 200, "{made} fragments");
}

pub fn a_narrow_way_is_told_to_who_sends_on_it(world: World) {
    for (endpoint, mtu) in [("10.2.0.2:51820", 1312), ("[fd02::2]:51820", 1296)] {
        narrow(1500);
        let (a, b) = (End::new("a", 1), End::new("b", 2));
        let callee = start_towpath_with(&world, &b, &a, None, "MTU = 1420", &JSON);
        let caller = start_towpath_with(&world, &a, &b, Some(endpoint), "MTU = 1420", &JSON);
        assert!(ping("-s 1392 -M do 10.77.0.2").0);
        narrow(1380);
        learns(&world, mtu);
        let figures = ledger(&caller.stop());
        assert_eq!(figures["unexplained"], 0, "{figures}");
        assert!(figures["application_drops"]["mtu"].as_u64().unwrap() > 0, "{figures}");
        drop(callee);
        sh("for host in a b; do ip -n $host route flush cache; ip -n $host -6 route flush cache; done");
    }
}

pub fn a_narrow_way_to_wireguard_go_is_told_too(world: World) {
    let (a, b) = (End::new("a", 1), End::new("b", 2));
    let callee = start_wireguard_go(&world, &b, &a, None, 1280);
    let caller = start_towpath_with(&world, &a, &b, Some("10.2.0.2:51820"), "MTU = 1420", &[]);
    narrow(1380);
    until("the narrow way is noticed", Duration::from_secs(10), || {
        let text = ping("-s 1392 -M do 10.77.0.2").1;
        text.contains("mtu=1312") || text.contains("mtu = 1312")
    });
    // Its own interface is narrower still, so that the answer comes in fragments.
    assert!(ping("-s 1284 -M do 10.77.0.2").0);
    drop((caller, callee));
}

pub fn an_automatic_mtu_follows_the_routes(world: World) {
    sh("ip -n a link set a0 mtu 1480");
    let (a, b) = (End::new("a", 1), End::new("b", 2));
    let callee = start_towpath_with(&world, &b, &a, None, "MTU = auto", &[]);
    let caller = start_towpath_with(&world, &a, &b, Some("10.2.0.2:51820"), "MTU = auto", &[]);
    let mtu = |host: &str| -> u32 {
        sh(&format!("ip netns exec {host} cat /sys/class/net/tow{host}/mtu")).trim().parse().unwrap()
    };
    assert_eq!((mtu("a"), mtu("b")), (1_400, 1_420));
    sh("ip -n a link set a0 mtu 1430");
    until("the interface is narrower", Duration::from_secs(5), || mtu("a") == 1_350);
    sh("ip -n a route change default via 10.1.0.1 mtu lock 1400");
    until("so is the route", Duration::from_secs(5), || mtu("a") == 1_320);
    assert!(ping("-s 1292 -M do 10.77.0.2").0);
    sh("ip -n a link set a0 mtu 1500; ip -n a route change default via 10.1.0.1");
    until("all is as before", Duration::from_secs(5), || mtu("a") == 1_420);
    assert!(ping("-s 1392 -M do 10.77.0.2").0);
    // So does a peer that comes later, and one that is gone does not.
    let (_, public) = keys();
    sh("ip -n a route add 10.2.0.9/32 via 10.1.0.1 mtu lock 1390");
    sh(&format!("ip netns exec a wg set towa peer {public} endpoint 10.2.0.9:7"));
    until("the new peer's route is the narrowest", Duration::from_secs(5), || mtu("a") == 1_310);
    sh(&format!("ip netns exec a wg set towa peer {public} remove"));
    until("the peer is gone", Duration::from_secs(5), || mtu("a") == 1_420);
    drop((caller, callee));
}

pub fn a_name_that_leads_elsewhere_is_followed(world: World) {
    // Nobody is at the first address when it starts.
    let hosts = world.file("hosts", "127.0.0.1 localhost\n10.2.0.99 vpn.example\n").display().to_string();
    sh(&format!("chmod 644 {hosts}; mount --bind {hosts} /etc/hosts"));
    let (a, b) = (End::new("a", 1), End::new("b", 2));
    let callee = start_towpath_with(&world, &b, &a, None, "", &JSON);
    let mut caller = start_towpath_with(&world, &a, &b, Some("vpn.example:51820"), "", &JSON);
    // An address that is not the name's stands in its place; that which `wg` finds by the name does not, even for a peer that
    // was removed and made anew.
    let file = world.file("wg.conf", &a.config(&b, Some("vpn.example:51820"), "")).display().to_string();
    sh(&format!("ip netns exec a wg set towa peer {} endpoint 10.2.0.98:51820", b.public));
    caller.wait_for("vpn.example:51820 is not looked for by its name any more: it is at 10.2.0.98:51820");
    for verb in ["syncconf", "setconf"] {
        sh(&format!("ip netns exec a wg {verb} towa {file}"));
        // A second, in which the name is looked up.
        assert!(!ping("10.77.0.2").0);
    }
    std::fs::write(&hosts, "127.0.0.1 localhost\n10.2.0.2 vpn.example\n").unwrap();
    // Five seconds until the handshake has failed, and five more until the next attempt.
    until("the peer is found", Duration::from_secs(20), || ping("10.77.0.2").0);
    caller.wait_for("vpn.example:51820 is looked for at 10.2.0.2:51820 now");
    assert_eq!(ledger(&caller.stop())["unexplained"], 0);
    drop(callee);
}

/// TCP from `a` to `b` that goes on for some seconds; what `change` does happens in its midst, and it has to end well.
fn transfer_survives(world: &World, change: impl FnOnce()) {
    let server = world.start("b", &["iperf3", "-s", "-1", "--forceflush"], "listening");
    let client = command("ip")
        .args(["netns", "exec", "a", "timeout", "20", "iperf3", "-c", "10.77.0.2", "-t", "4", "-J"])
        .args(["--connect-timeout", "3000"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_secs(1));
    change();
    let output = client.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    let result: serde_json::Value = serde_json::from_str(&text).unwrap();
    let last = result["intervals"].as_array().unwrap().last().unwrap();
    assert!(last["sum"]["bits_per_second"].as_f64().unwrap() > 1e6, "it stands still at the end: {last}");
    drop(server);
}

pub fn an_address_that_changes_under_traffic_costs_a_moment(world: World) {
    for stock in [false, true] {
        let (a, b) = (End::new("a", 1), End::new("b", 2));
        let callee = if stock {
            start_wireguard_go(&world, &b, &a, None, 1420)
        } else {
            start_towpath_with(&world, &b, &a, None, "MTU = 1420", &[])
        };
        let caller = start_towpath_with(&world, &a, &b, Some("10.2.0.2:51820"), "MTU = 1420", &[]);
        assert!(ping("10.77.0.2").0);
        let (old, new) = if stock { ("10.1.0.66", "10.1.0.2") } else { ("10.1.0.2", "10.1.0.66") };
        transfer_survives(&world, || {
            sh(&format!(
                "ip -n a addr del {old}/24 dev a0; ip -n a addr add {new}/24 dev a0
                 ip -n a route replace default via 10.1.0.1"
            ));
        });
        // The interface itself goes down and comes back.
        transfer_survives(&world, || {
            sh("ip -n a link set a0 down; sleep 0.3; ip -n a link set a0 up
                ip -n a route replace default via 10.1.0.1");
        });
        drop((caller, callee));
    }
}

/// By its port: where its address goes away, wireguard-go itself sends from it for 15 s.
pub fn wireguard_go_that_moves_is_followed(world: World) {
    let (a, b) = (End::new("a", 1), End::new("b", 2));
    let callee = start_towpath_with(&world, &b, &a, None, "MTU = 1420", &[]);
    let caller = start_wireguard_go(&world, &a, &b, Some("10.2.0.2:51820"), 1420);
    assert!(ping("10.77.0.2").0);
    transfer_survives(&world, || {
        sh("ip netns exec a wg set goa listen-port 51999");
    });
    let endpoints = sh("ip netns exec b wg show towb endpoints");
    assert!(endpoints.contains(":51999"), "{endpoints}");
    drop((caller, callee));
}

pub fn a_process_that_slept_goes_on(world: World) {
    let (a, b) = (End::new("a", 1), End::new("b", 2));
    let callee = start_towpath_with(&world, &b, &a, None, "", &JSON);
    let caller = start_towpath_with(&world, &a, &b, Some("10.2.0.2:51820"), "", &JSON);
    assert!(ping("10.77.0.2").0);
    let pid = caller.pid();
    sh(&format!("kill -STOP {pid}; sleep 10; kill -CONT {pid}"));
    // Within one handshake's time: five seconds and a third.
    until("traffic resumes", Duration::from_millis(5_400), || ping("10.77.0.2").0);
    for process in [caller, callee] {
        assert_eq!(ledger(&process.stop())["unexplained"], 0);
    }
}
