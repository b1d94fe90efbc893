//! The systemd unit: what it is started with, what it leaves room for, and how much it shuts in, in the judgement of systemd's
//! own tools.

#![allow(clippy::unwrap_used, reason = "a test panics when it cannot go on and says where")]

#[path = "../../dataplane/tests/support/left_out.rs"]
mod left_out;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use left_out::left_out;

fn unit_path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/towpath-relay.service")
}

/// What the unit file says under a name, line by line.
fn of_unit(name: &str) -> Vec<String> {
    let unit = fs::read_to_string(unit_path()).unwrap();
    let lines = unit.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    lines.map(str::to_owned).collect()
}

/// Each worker has a thread and one that reaps for it; besides there are those for the admin address and for reloads.
#[test]
fn the_unit_file_has_room_for_the_threads_of_all_workers() {
    let [most] = &of_unit("TasksMax")[..] else { panic!("one limit") };
    assert!(most.parse::<u32>().unwrap() >= 2 * u32::from(relay::server::WORKERS_MAX) + 2, "{most}");
}

/// By default five failures within ten seconds are the end, and with so short a pause they take less than one.
#[test]
fn the_service_is_started_again_however_often_it_fails() {
    assert_eq!(of_unit("Restart"), ["on-failure"]);
    assert_eq!((of_unit("RestartSec"), of_unit("StartLimitIntervalSec")), (vec!["100ms".into()], vec!["0".into()]));
}

/// What systemd-analyze(1) says; `None` where there is none.
#[expect(clippy::disallowed_methods, reason = "a test starts programs")]
fn systemd_analyze(arguments: &[&str]) -> Option<Output> {
    match Command::new("systemd-analyze").args(arguments).output() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            left_out("what systemd-analyze says of the unit file: apt-get install systemd");
            None
        }
        output => Some(output.unwrap()),
    }
}

/// The unit file, and with what the README adds to it, judged by the tools that an operator would use.
#[test]
fn the_unit_file_is_good_and_sandboxed() {
    let unit = fs::read_to_string(unit_path()).unwrap();
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md")).unwrap();
    let added = readme.split("```").find(|block| block.starts_with("text\n[Service]\n")).unwrap();
    let added = added.trim_start_matches("text\n");
    assert!(added.contains("SupplementaryGroups="), "{added}");
    // The program is where the unit has it only on a machine that the package is installed on.
    let unit = unit.replace("/usr/bin/towpath-relay", env!("CARGO_BIN_EXE_towpath-relay"));
    for text in [unit.clone(), format!("{unit}\n{added}")] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("towpath-relay.service");
        fs::write(&path, text).unwrap();
        let path = path.to_str().unwrap();
        let Some(verified) = systemd_analyze(&["verify", "--man=no", path]) else { return };
        assert!(verified.status.success() && verified.stderr.is_empty(), "{verified:?}");
        let judged = systemd_analyze(&["security", "--offline=true", "--no-pager", path]).unwrap();
        let text = String::from_utf8(judged.stdout).unwrap();
        let line = text
            .lines()
            .find(|line| line.contains("Overall exposure level"))
            .unwrap_or_else(|| panic!("{text}"));
        let level = line.split_whitespace().find_map(|word| word.parse::<f64>().ok()).unwrap();
        assert!(level <= 2.0, "{text}");
    }
}

/// The groups of system calls that unit files name, as this systemd has them.
fn call_groups() -> Option<BTreeMap<String, Vec<String>>> {
    let output = systemd_analyze(&["syscall-filter", "--no-pager"])?;
    let mut groups: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut name = String::new();
    for line in String::from_utf8(output.stdout).unwrap().lines() {
        let word = line.trim();
        if line.starts_with('@') {
            name = word.to_owned();
        } else if !word.is_empty() && !word.starts_with('#') {
            groups.entry(name.clone()).or_default().push(word.to_owned());
        }
    }
    Some(groups)
}

/// The system calls behind a name.
fn calls_of(name: &str, groups: &BTreeMap<String, Vec<String>>) -> BTreeSet<String> {
    if !name.starts_with('@') {
        return [name.to_owned()].into();
    }
    let members = groups.get(name).unwrap_or_else(|| panic!("no group {name} in {groups:#?}"));
    members.iter().flat_map(|member| calls_of(member, groups)).collect()
}

/// The unit's sandbox leaves room for what listens on the admin address, and for the addresses of this machine.
#[test]
fn the_unit_file_permits_the_admin_port_and_netlink() {
    for closed in ["PrivateNetwork", "SocketBindDeny", "SocketBindAllow", "IPAddressDeny"] {
        assert_eq!(of_unit(closed), [""; 0], "{closed}");
    }
    let families = of_unit("RestrictAddressFamilies").concat();
    for family in ["AF_INET", "AF_INET6", "AF_NETLINK"] {
        assert!(families.split(' ').any(|other| other == family), "{family} is not in {families}");
    }
    let Some(groups) = call_groups() else { return };
    let mut allowed = BTreeSet::new();
    for value in of_unit("SystemCallFilter") {
        let names = value.trim_start_matches('~').split(' ');
        for call in names.flat_map(|name| calls_of(name, &groups)) {
            if value.starts_with('~') {
                allowed.remove(&call)
            } else {
                allowed.insert(call)
            };
        }
    }
    let needed = "socket bind listen accept4 setsockopt getsockopt getsockname ppoll shutdown eventfd2 read write \
                  recvfrom sendto recvmsg sendmsg ioctl futex clone prlimit64 close";
    for call in needed.split_whitespace() {
        assert!(allowed.contains(call), "{call} is not in {allowed:?}");
    }
    assert!(!allowed.contains("mount") && !allowed.contains("setpriority"), "{allowed:?}");
}

/// The unit starts the relay with the configuration file alone: what is in there, a reload can change, and no flag wins over it.
#[test]
fn the_unit_file_leaves_everything_to_the_configuration() {
    let start = "/usr/bin/towpath-relay --config /etc/towpath-relay/towpath-relay.toml";
    assert_eq!(of_unit("ExecStart"), [start]);
    assert_eq!(of_unit("ExecStartPre"), [format!("{start} --check-config")]);
    for snapshot in ["LoadCredential", "DynamicUser"] {
        assert_eq!(of_unit(snapshot), [""; 0], "{snapshot}");
    }
    let users = fs::read_to_string(unit_path().with_file_name("sysusers.conf")).unwrap();
    assert!(users.contains(&format!("\nu {} - ", of_unit("User")[0])), "{users}");
}
