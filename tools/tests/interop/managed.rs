//! What `wg` sets of a tunnel that `towpath up` runs and that has more than `wg` knows of: a relay, names.

use std::time::Duration;

use super::paths::{Pair, relay};
use super::world::{World, sh, try_sh};

/// By which way the only peer of a tunnel on `a` is reached, and where.
fn way(interface: &str) -> (String, String) {
    let lab = env!("CARGO_BIN_EXE_towpath-lab");
    // Its parent is the shell.
    let text = sh(&format!("ip netns exec a sh -c '{lab} __tunnel - $$ show {interface} --json'"));
    let tunnel: serde_json::Value = serde_json::from_str(text.trim()).unwrap();
    let of = |name: &str| tunnel["peers"][0][name].as_str().unwrap_or_default().to_owned();
    (of("path"), of("endpoint"))
}

/// What `wg` may read of the configuration of `a`.
fn for_wg(world: &World, pair: &Pair, more: &str) -> String {
    let text = format!(
        "[Interface]\nPrivateKey = {}\n[Peer]\nPublicKey = {}\nAllowedIPs = 10.77.0.2/32\nEndpoint = 10.2.0.2:51877\n{more}",
        pair.a.0, pair.b.1
    );
    world.file("wg.conf", &text).display().to_string()
}

pub fn wg_sets_a_tunnel_that_has_a_relay(world: World) {
    let (lines, relay) = relay(&world, &[]);
    let pair = Pair::new("tow", 77);
    let callee = world.tunnel("b", &pair.b(&world, "Address = 10.77.0.2/24"), &[]);
    let caller = world.tunnel("a", &pair.a(&world, &lines, "#towpath: Path = relay"), &[]);
    sh("ip netns exec a ping -c 2 -i 0.05 -W 5 10.77.0.2");
    let port = sh("ip netns exec a wg show towa listen-port");
    // Neither has ListenPort; what comes behind that is done as well.
    for (verb, seconds) in [("syncconf", 21), ("setconf", 22)] {
        let file = for_wg(&world, &pair, &format!("PersistentKeepalive = {seconds}\n"));
        sh(&format!("ip netns exec a wg {verb} towa {file}"));
        let set = sh("ip netns exec a wg show towa persistent-keepalive");
        assert!(set.trim().ends_with(&format!("\t{seconds}")), "{verb}: {set}");
        assert_eq!(sh("ip netns exec a wg show towa listen-port"), port, "{verb}");
        // The peer that was made anew is still reached over the relay only.
        sh("ip netns exec a ping -c 3 -i 0.2 -W 5 10.77.0.2");
        assert_eq!(way("towa"), ("relayed".to_owned(), "10.2.0.2:51877".to_owned()), "{verb}");
    }
    let refused = try_sh("ip netns exec a wg set towa listen-port 4444");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("not supported"), "{refused:?}");
    drop((caller, callee, relay));
}

pub fn an_endpoint_is_set_back_to_where_the_relay_has_it(world: World) {
    let (lines, relay) = relay(&world, &[]);
    let pair = Pair::new("tow", 77);
    let callee = world.tunnel("b", &pair.b(&world, "Address = 10.77.0.2/24"), &[]);
    let caller = world.tunnel("a", &pair.a(&world, &lines, ""), &[]);
    sh("ip netns exec a ping -c 2 -i 0.05 -W 5 10.77.0.2");
    assert_eq!(way("towa"), ("direct".to_owned(), "10.2.0.2:51877".to_owned()));
    // The peer moves and is followed; then it comes back and is silent.
    let moves = |from: u8, to: u8| {
        // The second address would go with the first.
        sh(&format!(
            "ip -n b addr del 10.2.0.{from}/24 dev b0; ip -n b addr add 10.2.0.{to}/24 dev b0
             ip -n b route replace default via 10.2.0.1"
        ));
    };
    moves(2, 3);
    sh("ip netns exec b ping -c 10 -i 0.2 -W 5 10.77.0.1");
    assert_eq!(way("towa").1, "10.2.0.3:51877");
    drop(callee);
    moves(3, 2);
    let callee = world.tunnel("b", &pair.b(&world, "Address = 10.77.0.2/24"), &[]);
    sh(&format!("ip netns exec a wg set towa peer {} endpoint 10.2.0.2:51877", pair.b.1));
    assert_eq!(way("towa"), ("direct".to_owned(), "10.2.0.2:51877".to_owned()));
    // What is sent under the session of before is not answered, and the relay is asked as well.
    try_sh("ip netns exec a ping -c 15 -i 0.2 -W 1 10.77.0.2");
    std::thread::sleep(Duration::from_millis(100));
    sh("ip netns exec a ping -c 3 -i 0.2 -W 5 10.77.0.2");
    drop((caller, callee, relay));
}
