//! SIGTERM under load, and which system calls carry packets.

use super::world::{World, command, keys, sh};

/// Starts a tunnel between two of ours; the caller with the given flags.
fn configs(world: &World) -> [std::path::PathBuf; 2] {
    let ((private_a, public_a), (private_b, public_b)) = (keys(), keys());
    let config = |private: &str, public: &str, own: u8, other: u8, endpoint: &str| {
        format!(
            "[Interface]\nPrivateKey = {private}\nListenPort = 51820\nAddress = 10.77.0.{own}/24\n[Peer]\n\
             PublicKey = {public}\nAllowedIPs = 10.77.0.{other}/32\n{endpoint}"
        )
    };
    let b = world.file("towb.conf", &config(&private_b, &public_a, 2, 1, ""));
    let a = world.file("towa.conf", &config(&private_a, &public_b, 1, 2, "Endpoint = 10.2.0.2:51820\n"));
    [a, b]
}

/// The `figures` of the ledger line.
pub(super) fn ledger(lines: &[String]) -> serde_json::Value {
    let line =
        lines.iter().rev().find(|line| line.contains("\"ledger\"")).unwrap_or_else(|| panic!("{lines:#?}"));
    let record: serde_json::Value = serde_json::from_str(line).unwrap();
    record["figures"].clone()
}

pub fn sigterm_under_load_delivers_what_was_accepted(world: World) {
    let [a, b] = configs(&world);
    let epoll = ["uring", "suspend", "threaded", "runtime"].map(|design| (design, "epoll"));
    for (design, ingress) in epoll.into_iter().chain([("uring", "uring")]) {
        let callee = world.tunnel("b", &b, &["--log-format", "json"]);
        let caller = world.tunnel("a", &a, &["--log-format", "json", "--io", design, "--ingress", ingress]);
        sh("ip netns exec a ping -c 2 -i 0.05 -W 3 10.77.0.2");
        let server = world.start("b", &["iperf3", "-s", "-1", "--forceflush"], "listening");
        let mut load = command("ip")
            .args([
                "netns",
                "exec",
                "a",
                "iperf3",
                "-c",
                "10.77.0.2",
                "-t",
                "5",
                "-u",
                "-b",
                "200M",
                "-l",
                "1000",
            ])
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(std::time::Duration::from_millis(1000));
        let figures = ledger(&caller.stop());
        let _ = load.kill();
        let _ = load.wait();
        drop(server);
        let received = ledger(&callee.stop());
        assert_eq!(figures["unexplained"], 0, "{design}: {figures}");
        assert_eq!(figures["egress_drops"].get("shutdown"), None, "{design}: {figures}");
        assert!(figures["sent"].as_u64().unwrap() > 10_000, "{design}: {figures}");
        // Everything the caller's sockets took has arrived: nothing is between two processes on this machine. What it
        // wrote to its own interface (answers of iperf3) is in `sent` as well, but the callee has read all of that from
        // its interface before, so that it has read as much at least.
        let arrived = received["ingress"]["packets"].as_u64().unwrap();
        let lost = received["ingress"]["kernel_drops_skbs"].as_u64().unwrap();
        assert_eq!(lost, 0, "{design}: {received}");
        let sent = figures["sent"].as_u64().unwrap();
        assert!(arrived >= sent, "{design}, {ingress}: {sent} sent, {arrived} arrived: {figures} {received}");
    }
}

pub fn the_ring_carries_every_packet(world: World) {
    let [a, b] = configs(&world);
    let callee = world.tunnel("b", &b, &[]);
    let caller = world.tunnel("a", &a, &["--io", "uring"]);
    sh("ip netns exec a ping -c 2 -i 0.05 -W 3 10.77.0.2");
    let trace = world.file("trace", "");
    let calls = "trace=sendto,sendmsg,sendmmsg,write,writev,pwrite64,pwritev,io_uring_enter";
    let pid = caller.pid().to_string();
    let mut strace = command("strace")
        .args(["-f", "-qq", "-e", calls, "-o", &trace.display().to_string(), "-p", &pid])
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    std::thread::sleep(std::time::Duration::from_millis(500));
    sh("ip netns exec a ping -c 50 -i 0.01 -W 3 10.77.0.2");
    if let Some(pid) = rustix::process::Pid::from_raw(strace.id() as i32) {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::INT);
    }
    let _ = strace.wait();
    drop((caller, callee));
    let text = std::fs::read_to_string(&trace).unwrap();
    assert!(text.contains("io_uring_enter"), "strace saw nothing:\n{text}");
    // What is asked of the kernel about addresses and routes is no packet.
    let others = ["io_uring_enter", "---", "{nlmsg_len="];
    let packets: Vec<&str> =
        text.lines().filter(|line| !others.iter().any(|other| line.contains(other))).collect();
    assert!(packets.is_empty(), "packets outside the ring: {packets:#?}");
}
