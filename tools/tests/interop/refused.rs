//! A relay that refuses a peer which was heard through it: it is not shown as the way to that peer.

use super::paths::{Pair, relay};
use super::world::{World, sh};

/// What `towpath show` says of the only peer, and of its path in JSON.
fn shown() -> (String, serde_json::Value) {
    let lab = env!("CARGO_BIN_EXE_towpath-lab");
    // Its parent is the shell.
    let show = |flags: &str| sh(&format!("ip netns exec a {lab} __tunnel - $$ show towa {flags}"));
    let json: serde_json::Value = serde_json::from_str(show("--json").lines().next().unwrap()).unwrap();
    (show(""), json["peers"][0].clone())
}

pub fn a_relay_that_refuses_the_peers_new_port_is_not_shown_as_its_way(world: World) {
    let pair = Pair::new("tow", 78);
    let (lines, server) = relay(&world, &["--allow-peer", "10.2.0.0/24"]);
    let first = world.tunnel("b", &pair.b(&world, "Address = 10.78.0.2/24"), &[]);
    let mut caller = world.tunnel("a", &pair.a(&world, &lines, "#towpath: Path = relay"), &[]);
    sh("ip netns exec a ping -c 1 -W 5 10.78.0.2");
    let (text, peer) = shown();
    assert!(text.contains("path: relayed by 10.1.0.1:3478") && peer["path"] == "relayed", "{text}\n{peer:#}");
    let ours = text.lines().find_map(|line| line.split_once("our address ")).unwrap().1.to_owned();
    drop(first);

    // From a port that the relay refuses, it is let in by the permission for its address.
    let file = pair.b(&world, "Address = 10.78.0.2/24");
    let moved = std::fs::read_to_string(&file).unwrap().replace("ListenPort = 51878", "ListenPort = 900");
    std::fs::write(&file, format!("{moved}Endpoint = {ours}\nPersistentKeepalive = 1\n")).unwrap();
    let second = world.tunnel("b", &file, &[]);
    caller.wait_for("refuses a channel to peer 10.2.0.2:900 (403)");
    for _ in 0..3 {
        let (text, peer) = shown();
        assert!(text.contains("relay: refuses this peer (403)"), "{text}");
        assert!(!text.contains("path: ") && peer["path"].is_null() && peer["relay"].is_null(), "{text}");
        // It goes on calling meanwhile.
        std::thread::sleep(std::time::Duration::from_millis(300));
    }
    drop((second, caller, server));
}
