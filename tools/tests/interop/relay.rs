//! coturn's own client through `towpath-relay`: 0 lost, over channels and indications, IPv4 and IPv6.

use super::world::{World, sh};

fn uclient(server: &str, peer: &str, flags: &str) {
    let text = sh(&format!(
        "ip netns exec a timeout 60 turnutils_uclient -u user -w secret -e {peer} -r 3480 -n 80 -m 4 -l 170 -z 5 {flags} {server}"
    ));
    let total =
        text.lines().rev().find(|line| line.contains("tot_send_msgs=")).unwrap_or_default().to_owned();
    let figure = |name: &str| -> u64 {
        let start = total.find(name).unwrap_or_else(|| panic!("no {name} in:\n{text}")) + name.len();
        total[start..].chars().take_while(char::is_ascii_digit).collect::<String>().parse().unwrap()
    };
    assert!(figure("tot_send_msgs=") >= 320, "{text}");
    assert_eq!(figure("tot_send_msgs="), figure("tot_recv_msgs="), "{text}");
    assert!(text.contains("Total lost packets 0 "), "{text}");
}

pub fn coturns_client_loses_nothing(world: World) {
    let users = world.file("users", "user:secret\n");
    let users = users.display().to_string();
    let relay = world.relay(
        "r",
        &[
            "--listen",
            "10.1.0.1:3478",
            "--listen",
            "[fd01::1]:3478",
            "--realm",
            "test",
            "--user-file",
            &users,
            "--allow-peer",
            "10.2.0.0/24",
            "--allow-peer",
            "fd02::/64",
        ],
    );
    let echoes = ["10.2.0.2", "fd02::2"]
        .map(|peer| world.start("b", &["turnutils_peer", "-p", "3480", "-L", peer, "-v"], "98:end"));
    // Each waits for some seconds before it sends.
    std::thread::scope(|scope| {
        for channels in ["", "-s"] {
            for even_port in ["", "-c"] {
                scope.spawn(move || uclient("10.1.0.1", "10.2.0.2", &format!("{channels} {even_port}")));
            }
            scope.spawn(move || uclient("fd01::1", "fd02::2", &format!("{channels} -c -x")));
        }
    });
    drop((echoes, relay));
}
