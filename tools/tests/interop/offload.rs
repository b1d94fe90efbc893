//! Offloads left out by a flag, and given up while packets pass: errors that this kernel does not make come from strace, where it
//! sees the system calls; those of io_uring's operations come from the device.

use std::collections::BTreeSet;

use dataplane::sys::udp::{RECEIVE_LEN, ReceiveBatch, UdpSocket};

use super::shutdown::ledger;
use super::tunnel::{End, start_towpath_with};
use super::world::{Process, World, command, sh, socket};

const JSON: [&str; 2] = ["--log-format", "json"];

fn pair(world: &World, flags_a: &[&'static str], flags_b: &[&'static str]) -> [Process; 2] {
    let (a, b) = (End::new("a", 1), End::new("b", 2));
    let with_json = |flags: &[&'static str]| -> Vec<&'static str> { [flags, &JSON].concat() };
    let callee = start_towpath_with(world, &b, &a, None, "MTU = 1420", &with_json(flags_b));
    let caller = start_towpath_with(world, &a, &b, Some("10.2.0.2:51820"), "MTU = 1420", &with_json(flags_a));
    sh("ip netns exec a ping -c 2 -i 0.05 -W 5 10.77.0.2");
    [caller, callee]
}

/// The flags of a device that is attached to a descriptor (IFF_VNET_HDR is 0x4000).
fn device_flags(host: &str, name: &str) -> u32 {
    let text = sh(&format!("ip netns exec {host} cat /sys/class/net/{name}/tun_flags"));
    u32::from_str_radix(text.trim().trim_start_matches("0x"), 16).unwrap()
}

pub fn every_offload_can_be_left_out(world: World) {
    for without in ["", "vnet-hdr", "tun-tso", "tun-gro", "udp-gso", "udp-gro"] {
        let flags: &[&'static str] = match without {
            "" => &[],
            "vnet-hdr" => &["--no-offload", "vnet-hdr"],
            "tun-tso" => &["--no-offload", "tun-tso"],
            "tun-gro" => &["--no-offload", "tun-gro"],
            "udp-gso" => &["--no-offload", "udp-gso"],
            _ => &["--no-offload", "udp-gro"],
        };
        let [caller, callee] = pair(&world, flags, flags);
        assert_eq!(device_flags("a", "towa") & 0x4000 != 0, without != "vnet-hdr");
        let server = world.start("b", &["iperf3", "-s", "-1", "--forceflush"], "listening");
        sh("ip netns exec a iperf3 -c 10.77.0.2 -n 32M --connect-timeout 3000");
        drop(server);
        let (sent, received) = (ledger(&caller.stop()), ledger(&callee.stop()));
        for figures in [&sent, &received] {
            assert_eq!((&figures["unexplained"], &figures["resent"]), (&0.into(), &0.into()), "{figures}");
        }
        // What there are no superpackets of now, by what the figures of one end say. Acknowledgements go the other way, and of
        // those a few share an operation.
        let ratio = |figures: &serde_json::Value, all: &str, operations: &str| {
            figures["ingress"][all].as_f64().unwrap() / figures["ingress"][operations].as_f64().unwrap()
        };
        let seen = BTreeSet::from_iter(
            [
                ("udp-gso", sent["segments_per_operation"].as_f64().unwrap() < 1.5),
                ("udp-gro", ratio(&received, "packets", "superpackets") < 1.5),
                ("tun-gro", received["segments_per_operation"].as_f64().unwrap() < 1.5),
                ("tun-tso", sent["ingress"]["packets"].as_f64().unwrap() > 20_000.0),
            ]
            .into_iter()
            .filter_map(|(name, is_so)| is_so.then_some(name)),
        );
        let expected = match without {
            "" => BTreeSet::new(),
            "vnet-hdr" => BTreeSet::from(["tun-gro", "tun-tso"]),
            // Between the two nobody puts datagrams together.
            "udp-gso" => BTreeSet::from(["udp-gso", "udp-gro"]),
            one => BTreeSet::from([one]),
        };
        assert_eq!(seen, expected, "without {without:?}: {sent} {received}");
    }
}

/// Lets the system calls of a process fail, until it is dropped.
struct Failing(std::process::Child);

impl Failing {
    fn new(world: &World, process: &Process, calls: &[&str]) -> Self {
        let trace = world.file("trace", "").display().to_string();
        let pid = process.pid().to_string();
        let strace = command("strace")
            .args(["-f", "-qq", "-o", &trace, "-p", &pid])
            .args(calls)
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(std::time::Duration::from_millis(500));
        Self(strace)
    }
}

impl Drop for Failing {
    fn drop(&mut self) {
        if let Some(pid) = rustix::process::Pid::from_raw(self.0.id() as i32) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::INT);
        }
        let _ = self.0.wait();
    }
}

fn said(lines: &[String], offload: &str) -> usize {
    lines.iter().filter(|line| line.contains(&format!("({offload})")) && line.contains("given up")).count()
}

pub fn superpackets_that_the_device_refuses_are_given_up(world: World) {
    for errno in ["EINVAL", "EIO"] {
        let [caller, mut callee] = pair(&world, &[], &["--io", "suspend"]);
        let (from, to) = (socket("a", "10.77.0.1:5000"), socket("b", "10.77.0.2:5000"));
        // A superpacket is written by `write`, and its packets one by one by `writev`.
        let inject = format!("inject=write:error={errno}:when=5");
        let failing =
            Failing::new(&world, &callee, &["-P", "/dev/net/tun", "-e", "trace=write", "-e", &inject]);
        for round in 0..10 {
            from.send_segments(to.local_addr(), None, 0, &[7; 40_000], 1_000).unwrap();
            let mut batch = ReceiveBatch::new(16, RECEIVE_LEN);
            let (mut arrived, mut looks) = (0, 0);
            while arrived < 40_000 && looks < 500 {
                to.receive_batch(&mut batch).unwrap();
                arrived += batch.iter_mut().map(|arrival| arrival.bytes.len()).sum::<usize>();
                looks += 1;
                std::thread::sleep(std::time::Duration::from_millis(2));
            }
            assert_eq!(arrived, 40_000, "superpacket {round}");
        }
        callee.wait_for("(tun-gro)");
        drop(failing);
        caller.stop();
        let lines = callee.stop();
        let figures = ledger(&lines);
        assert_eq!((&figures["unexplained"], &figures["egress_drops"]), (&0.into(), &serde_json::json!({})));
        assert_eq!(figures["resent"], 40, "{figures}");
        assert_eq!(said(&lines, "tun-gro"), 1);
    }
}

/// Whether a thread of a process is in an `io_uring_enter` that submits, as far as strace holds it there.
fn submits(process: &Process) -> bool {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", process.pid())).unwrap();
    tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("syscall")).ok()).any(|call| {
        let mut words = call.split_whitespace();
        // Its number, the ring, and how many are to be submitted.
        words.next() == Some("426") && words.nth(1).is_some_and(|count| count != "0x0")
    })
}

/// Waits until something is so, looking often.
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    for _ in 0..5_000 {
        if is_so() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    panic!("not within 10 s: {what}");
}

/// Bytes that arrive at a socket within a time.
fn arrived(to: &UdpSocket, wanted: usize) -> usize {
    let (mut batch, mut arrived) = (ReceiveBatch::new(16, RECEIVE_LEN), 0);
    for _ in 0..2_500 {
        to.receive_batch(&mut batch).unwrap();
        arrived += batch.iter_mut().map(|arrival| arrival.bytes.len()).sum::<usize>();
        if arrived >= wanted {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    arrived
}

pub fn a_superpacket_that_the_ring_writes_in_vain_is_written_packet_by_packet(world: World) {
    let [caller, mut callee] = pair(&world, &[], &["--io", "uring"]);
    let (from, to) = (socket("a", "10.77.0.1:5000"), socket("b", "10.77.0.2:5000"));
    let send = || from.send_segments(to.local_addr(), None, 0, &[7; 40_000], 1_000).unwrap();
    send();
    assert_eq!(arrived(&to, 40_000), 40_000);
    // The kernel answers EIO for a device that is down. strace holds the program before and after each submission, so that the
    // device is down for the superpacket and up again for its packets.
    let refused = || -> u64 {
        sh("ip netns exec b cat /sys/class/net/towb/statistics/rx_dropped").trim().parse().unwrap()
    };
    let hold =
        ["-e", "trace=io_uring_enter", "-e", "inject=io_uring_enter:delay_enter=400ms:delay_exit=1500ms"];
    let before = refused();
    let failing = Failing::new(&world, &callee, &hold);
    send();
    until("it is about to be written", || submits(&callee));
    sh("ip -n b link set towb down");
    until("it was refused", || refused() > before);
    sh("ip -n b link set towb up");
    // What waits would expire if the next submissions were held as well.
    drop(failing);
    assert_eq!(arrived(&to, 40_000), 40_000);
    callee.wait_for("(tun-gro)");
    // The others are still there.
    for _ in 0..3 {
        send();
        assert_eq!(arrived(&to, 40_000), 40_000);
    }
    caller.stop();
    let lines = callee.stop();
    let figures = ledger(&lines);
    assert_eq!((&figures["unexplained"], &figures["egress_drops"]), (&0.into(), &serde_json::json!({})));
    assert_eq!(figures["resent"], 40, "{figures}");
    assert_eq!(["tun-gro", "udp-gso", "udp-gro"].map(|offload| said(&lines, offload)), [1, 0, 0]);
    assert!(
        figures["ingress"]["packets"].as_u64()
            >= Some(8 * figures["ingress"]["superpackets"].as_u64().unwrap())
    );
}

pub fn a_socket_whose_receive_fails_goes_on_without_gro(world: World) {
    let [caller, mut callee] = pair(&world, &[], &["--io", "suspend", "--ingress", "epoll"]);
    let failing =
        Failing::new(&world, &callee, &["-e", "trace=recvmmsg", "-e", "inject=recvmmsg:error=EIO:when=2+2"]);
    let server = world.start("b", &["iperf3", "-s", "-1", "--forceflush"], "listening");
    sh("ip netns exec a iperf3 -c 10.77.0.2 -n 4M --connect-timeout 3000");
    callee.wait_for("(udp-gro)");
    drop((failing, server));
    caller.stop();
    let lines = callee.stop();
    assert_eq!(said(&lines, "udp-gro"), 1, "once, however often it fails");
    assert_eq!(ledger(&lines)["unexplained"], 0);
}

pub fn a_device_without_the_header_is_made_where_the_kernel_refuses_it(world: World) {
    // It ends with the process that started it, which is strace.
    let lab = env!("CARGO_BIN_EXE_towpath-lab");
    let strace = ["strace", "-f", "-qq", "-o", "/dev/null", "-P", "/dev/net/tun", "-e", "trace=ioctl"];
    let inject = ["-e", "inject=ioctl:error=EINVAL:when=1"];
    let script = format!("exec {lab} __tunnel - $PPID -f wga");
    let program = [&strace[..], &inject, &["sh", "-c", &script]].concat();
    let env = [&["env", "LOG_LEVEL=debug", "RUST_LOG="][..], &program].concat();
    let mut process = world.start("a", &env, "(vnet-hdr)");
    assert_eq!(device_flags("a", "wga") & 0x4000, 0);
    // strace itself takes no signals.
    sh("ip -n a link del wga");
    process.wait_for("the interface was deleted");
}
