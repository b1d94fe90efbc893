//! DSCP and ECN across a tunnel, with a router between the ends that marks.

use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use dataplane::ingress::{Meta, Received};
use dataplane::sys::udp::{RECEIVE_LEN, ReceiveBatch, UdpSocket};

use super::shutdown::ledger;
use super::tunnel::{End, start_towpath_with, start_wireguard_go};
use super::world::{World, sh, socket};

const JSON: [&str; 2] = ["--log-format", "json"];
const CE: u8 = 3;

/// Sends a superpacket of five datagrams with these ECN bits from `a` to `b` until one arrives, which takes a handshake at
/// first; the bits that arrive.
fn crosses(sockets: &[UdpSocket; 2], ecn: u8) -> Option<u8> {
    crosses_within(sockets, ecn, Duration::from_secs(5))
}

/// The same, for as long as this at most.
fn crosses_within(sockets: &[UdpSocket; 2], ecn: u8, patience: Duration) -> Option<u8> {
    /// Tells what is sent now from what comes late.
    static NUMBER: AtomicU8 = AtomicU8::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let [from, to] = sockets;
    let mut batch = ReceiveBatch::new(16, RECEIVE_LEN);
    #[expect(clippy::disallowed_methods, reason = "a test may read the clock")]
    let now = Instant::now;
    let deadline = now() + patience;
    while now() < deadline {
        from.send_segments(to.local_addr(), None, ecn, &[number; 5_000], 1_000).unwrap();
        std::thread::sleep(Duration::from_millis(20));
        to.receive_batch(&mut batch).unwrap();
        let mut arrived = None;
        for arrival in batch.iter_mut() {
            let Some(Meta::Udp { segment_size, ecn: seen, .. }) = arrival.meta else { panic!() };
            let number_of = arrival.bytes[0];
            assert!(
                Received::segments(arrival.bytes, segment_size)
                    .all(|datagram| datagram == [number_of; 1_000])
            );
            if number_of != number {
                continue;
            }
            assert_eq!(*arrived.get_or_insert(seen), seen, "bits differ");
        }
        if arrived.is_some() {
            return arrived;
        }
    }
    None
}

/// What the router between does to what leaves `a`, in the words of nft.
fn router(rules: &str) {
    sh(&format!(
        "ip netns exec r nft -f - <<'END'
table inet marker
delete table inet marker
table inet marker {{
  chain forward {{
    type filter hook forward priority 0
    {rules}
  }}
}}
END"
    ));
}

/// Packets that the counters of the router's rules have seen, in their order.
fn counted() -> Vec<u64> {
    let text = sh("ip netns exec r nft list table inet marker");
    let words: Vec<&str> = text.split_whitespace().collect();
    words.windows(2).filter(|pair| pair[0] == "packets").map(|pair| pair[1].parse().unwrap()).collect()
}

/// A pair inside the tunnel for each family.
fn inner_sockets() -> [[UdpSocket; 2]; 2] {
    [("10.77.0.1:5000", "10.77.0.2:5000"), ("[fd77::1]:5000", "[fd77::2]:5000")]
        .map(|(a, b)| [socket("a", a), socket("b", b)])
}

pub fn what_a_router_marks_arrives_inside(world: World) {
    for (endpoint, outside) in [("10.2.0.2:51820", "ip"), ("[fd02::2]:51820", "ip6")] {
        let (a, b) = (End::new("a", 1), End::new("b", 2));
        let callee = start_towpath_with(&world, &b, &a, None, "", &JSON);
        let caller = start_towpath_with(&world, &a, &b, Some(endpoint), "", &JSON);
        for sockets in inner_sockets() {
            router("");
            for ecn in 0..=3 {
                assert_eq!(crosses(&sockets, ecn), Some(ecn), "nobody marks");
            }
            router(&format!("{outside} ecn {{ ect0, ect1 }} {outside} ecn set ce"));
            assert_eq!(
                [0, 1, 2, 3].map(|ecn| crosses(&sockets, ecn)),
                [Some(0), Some(CE), Some(CE), Some(CE)]
            );
            // A router that marks what must not be marked: that is lost, and nothing else.
            router(&format!("iif ra udp dport 51820 {outside} ecn set ce"));
            assert_eq!(crosses_within(&sockets, 0, Duration::from_millis(500)), None);
            assert_eq!(crosses(&sockets, 2), Some(CE));
        }
        caller.stop();
        let figures = ledger(&callee.stop());
        assert!(figures["application_drops"]["ecn"].as_u64().unwrap() >= 10, "{figures}");
        assert_eq!(figures["unexplained"], 0);
    }
}

/// A figure of /proc/net/netstat or /proc/net/snmp on a host.
fn figure(host: &str, file: &str, group: &str, name: &str) -> u64 {
    let text = sh(&format!("ip netns exec {host} cat /proc/net/{file}"));
    let rows: Vec<Vec<&str>> = text
        .lines()
        .filter(|line| line.starts_with(&format!("{group}:")))
        .map(|line| line.split_whitespace().collect())
        .collect();
    let column = rows[0].iter().position(|word| *word == name).unwrap();
    rows[1][column].parse().unwrap()
}

pub fn tcp_sees_the_marks_and_no_wrong_checksum(world: World) {
    sh("for host in a b; do ip netns exec $host sh -c 'echo 1 > /proc/sys/net/ipv4/tcp_ecn'; done");
    let (a, b) = (End::new("a", 1), End::new("b", 2));
    let callee = start_towpath_with(&world, &b, &a, None, "MTU = 1420", &JSON);
    let caller = start_towpath_with(&world, &a, &b, Some("10.2.0.2:51820"), "MTU = 1420", &JSON);
    router("ip ecn ect0 numgen random mod 50 0 ip ecn set ce");
    for address in ["10.77.0.2", "fd77::2"] {
        let before = figure("a", "netstat", "TcpExt", "TCPDeliveredCE");
        world.iperf("a", "b", address, 32);
        assert!(figure("a", "netstat", "TcpExt", "TCPDeliveredCE") > before, "{address}");
    }
    assert_eq!(figure("b", "snmp", "Tcp", "InCsumErrors"), 0);
    caller.stop();
    let figures = ledger(&callee.stop());
    assert_eq!(
        (&figures["unexplained"], &figures["application_drops"]["ecn"]),
        (&0.into(), &serde_json::Value::Null)
    );
}

pub fn the_dscp_outside_is_what_was_asked_for(world: World) {
    // Data with EF inside; handshakes have AF41 in any case. ECN as the packet has it, unless it is off.
    let rules = "iif ra ip dscp af41 ip length 176 counter
                 iif ra ip dscp ef ip length > 1000 ip ecn ect0 counter
                 iif ra ip dscp 10 ip length > 1000 ip ecn not-ect counter
                 iif ra ip dscp 0 ip length > 1000 ip ecn ect0 counter";
    let cases: [(&str, &[&str], usize); 4] = [
        ("", &["--dscp", "copy"], 1),
        ("#towpath: DSCP = copy", &[], 1),
        ("#towpath: DSCP = copy\n#towpath: ECN = off", &["--dscp", "10"], 2),
        ("", &[], 3),
    ];
    for (interface, flags, expected) in cases {
        let (a, b) = (End::new("a", 1), End::new("b", 2));
        router(rules);
        let callee = start_wireguard_go(&world, &b, &a, None, 1280);
        let caller = start_towpath_with(&world, &a, &b, Some("10.2.0.2:51820"), interface, flags);
        // EF with ECT(0).
        sh("ip netns exec a ping -c 3 -i 0.05 -W 3 -s 1000 -Q 0xba 10.77.0.2");
        let counted = counted();
        let seen: Vec<usize> = (1..4).filter(|rule| counted[*rule] > 0).collect();
        assert_eq!((counted[0] > 0, seen), (true, vec![expected]), "{interface} {flags:?}: {counted:?}");
        drop((caller, callee));
    }
}
