//! A direct path that carries one direction only: what the peer sends arrives, and what is sent to it does not.

use std::time::{Duration, Instant};

use super::paths::{Pair, relay};
use super::world::{World, sh};

/// wireguard-go starts a handshake when it has heard nothing for 15 s, and again 5 s later; then it is asked, and given a second.
const NOTICED_MAX: Duration = Duration::from_secs(25);

#[expect(clippy::disallowed_methods, reason = "a test may read the clock")]
fn now() -> Instant {
    Instant::now()
}

pub fn a_path_that_carries_only_what_the_peer_sends_is_left_for_the_relay(world: World) {
    let pair = Pair::new("oneway", 78);
    let (lines, relay) = relay(&world, &[]);
    let go =
        world.start("b", &["env", "LOG_LEVEL=verbose", "wireguard-go", "-f", "go"], "UAPI listener started");
    sh(&format!(
        "ip netns exec b wg setconf go {}
         ip -n b addr add 10.78.0.2/24 dev go; ip -n b link set go mtu 1280 up",
        pair.b(&world, "").display()
    ));
    let mut caller = world.tunnel("a", &pair.a(&world, &lines, ""), &[]);
    sh("ip netns exec a ping -c 2 -i 0.05 -W 5 10.78.0.2");
    // Nothing is ever silent: the peer goes on sending.
    let peers = world.start("b", &["ping", "-i", "0.5", "10.78.0.1"], "bytes from");
    // What the relay sends is not forwarded.
    sh(
        "ip netns exec r nft 'table inet cut { chain forward { type filter hook forward priority 0; ip daddr 10.2.0.2 udp dport 51878 counter drop; }; }'",
    );
    let cut = now();
    assert!(sh("ip netns exec b sh -c 'ping -c 2 -i 0.5 -W 1 10.78.0.1 || true'").contains(" 0 received"));
    // What it says meanwhile is kept.
    std::thread::sleep(Duration::from_secs(14));
    caller.wait_for("another path is used");
    let noticed = cut.elapsed();
    assert!(noticed < NOTICED_MAX, "noticed after {noticed:?}");
    for (host, address) in [("b", "10.78.0.1"), ("a", "10.78.0.2")] {
        sh(&format!("ip netns exec {host} ping -c 3 -i 0.2 -W 5 {address}"));
    }
    let dropped = sh("ip netns exec r nft list table inet cut");
    assert!(!dropped.contains("packets 0 "), "{dropped}");
    sh("ip netns exec r nft delete table inet cut");
    let healed = now();
    caller.wait_for("another path is used");
    println!("left after {noticed:?} at most, taken back {:?} after it healed", healed.elapsed());
    sh("ip netns exec a ping -c 3 -i 0.2 -W 5 10.78.0.2");
    drop((peers, caller, go, relay));
}
