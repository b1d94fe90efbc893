//! What is left of passwords and secrets in the memory of a running relay, and who may look there.

use std::os::unix::fs::FileExt as _;

use super::left_out::left_out;
use super::*;

/// Nothing else looks like these.
const FIRST: &str = "V7kQ-first-dNw3xLr9uE";
const SECOND: &str = "h2Wm-second-Gz5tYc8bA";
/// Leaves a program, run by root, without capabilities.
const LIMITED: [&str; 2] = ["setpriv", "--bounding-set=-all"];

/// How often a text is in the memory of a process; `None` when that may not be read.
fn found(process: u32, text: &str) -> Option<usize> {
    let memory = fs::File::open(format!("/proc/{process}/mem")).ok()?;
    let maps = fs::read_to_string(format!("/proc/{process}/maps")).ok()?;
    let mut count = 0;
    for map in maps.lines().filter(|line| !line.contains("[v") && line.contains(" r")) {
        let (start, end) = map.split(' ').next().and_then(|range| range.split_once('-')).unwrap();
        let [start, end] = [start, end].map(|address| u64::from_str_radix(address, 16).unwrap());
        let mut bytes = vec![0; (end - start) as usize];
        // What was unmapped meanwhile holds nothing.
        let len = memory.read_at(&mut bytes, start).unwrap_or(0);
        count += bytes[..len].windows(text.len()).filter(|window| *window == text.as_bytes()).count();
    }
    Some(count)
}

#[test]
fn passwords_leave_the_memory_when_their_keys_are_made() {
    let directory = tempfile::tempdir().unwrap();
    let users = directory.path().join("users");
    let configured = Configured::start_in(directory, LOOPBACK, &["--drain-timeout", "0"], |_| {
        write_private(&users, &format!("alice:{FIRST}\nbob:{FIRST}\n"));
    });
    let process = configured.relay.id();
    let Some(names) = found(process, "alice") else {
        return left_out("the memory of a relay: run it as root, with CAP_SYS_PTRACE");
    };
    assert!(names > 0, "it would be found");
    configured.client().with_user("alice", FIRST).allocate();
    assert_eq!(found(process, FIRST), Some(0));
    write_private(&users, &format!("carol:{SECOND}\n"));
    assert!(configured.reload().contains("in force"));
    configured.client().with_user("carol", SECOND).allocate();
    assert_eq!((found(process, FIRST), found(process, SECOND)), (Some(0), Some(0)));
}

#[test]
fn an_unconfined_relay_cannot_be_read_by_its_like() {
    if !rustix::process::geteuid().is_root() || program("setpriv").arg("--version").output().is_err() {
        return left_out("memory that others cannot read: run it as root; apt-get install util-linux");
    }
    let mut command = program(LIMITED[0]);
    command.args(&LIMITED[1..]).arg(env!("CARGO_BIN_EXE_towpath-relay"));
    command.args(["--listen", "127.0.0.1:0", "--admin", "off", "--confine", "off"]);
    let relay = RelayProcess::spawn(command);
    let read = |process: u32| {
        let mut head = program(LIMITED[0]);
        head.args(&LIMITED[1..]).args(["head", "-c", "1", &format!("/proc/{process}/auxv")]);
        head.output().unwrap().status.success()
    };
    let mut like_it = program(LIMITED[0]).args(&LIMITED[1..]).args(["sleep", "60"]).spawn().unwrap();
    let start = Instant::now();
    while !read(like_it.id()) {
        assert!(start.elapsed() < PATIENCE, "another process can be read");
        std::thread::sleep(Duration::from_millis(5));
    }
    like_it.kill().unwrap();
    like_it.wait().unwrap();
    assert!(!read(relay.id()));
}
