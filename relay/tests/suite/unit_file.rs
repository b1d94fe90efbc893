//! The systemd unit: what it is started with, what it leaves room for, and how much it shuts in, in the judgement of systemd's
//! own tools.

#![allow(clippy::unwrap_used, reason = "a test panics when it cannot go on and says where")]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use crate::harness::http::get;
use crate::harness::stream::{StreamClient, TestCertificate, connect, connect_tls};
use crate::harness::{
    Client, PASSWORD, REALM, RelayProcess, USER, code, program, receive, socket, write_private,
};
use crate::left_out::left_out;
use crate::unit;
use crate::unit::{call_groups, calls_in};
use clap::Parser as _;
use dataplane::stun::{Class, Message, Method, TransactionId, Writer};
use relay::config::{Args, Config};
use relay::server::WORKERS_MAX;
use rustix::process::Signal;

fn unit_path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/towpath-relay.service")
}

fn unit_text() -> String {
    fs::read_to_string(unit_path()).unwrap()
}

/// What the unit file says under a name, line by line.
fn of_unit(name: &str) -> Vec<String> {
    unit::lines_of(&unit_text(), name)
}

/// Each worker has a thread and one that reaps for it; besides there are those for the admin address and for reloads.
#[test]
fn the_unit_file_has_room_for_the_threads_of_all_workers() {
    let [most] = &of_unit("TasksMax")[..] else { panic!("one limit") };
    assert!(most.parse::<u32>().unwrap() >= 2 * u32::from(WORKERS_MAX) + 2, "{most}");
}

/// By default five failures within ten seconds are the end, and with so short a pause they take less than one.
#[test]
fn the_service_is_started_again_however_often_it_fails() {
    assert_eq!(of_unit("Restart"), ["on-failure"]);
    assert_eq!(
        (of_unit("RestartSec"), of_unit("StartLimitIntervalSec")),
        (vec!["100ms".into()], vec!["0".into()])
    );
}

/// The unit file, and with what the README adds to it, judged by the tools that an operator would use.
#[test]
fn the_unit_file_is_good_and_sandboxed() {
    let unit = unit_text();
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let added = readme.split("```").find(|block| block.starts_with("text\n[Service]\n")).unwrap();
    let added = added.trim_start_matches("text\n");
    assert!(added.contains("SupplementaryGroups="), "{added}");
    // The program is where the unit has it only on a machine that the package is installed on.
    let unit = unit.replace("/usr/bin/towpath-relay", env!("CARGO_BIN_EXE_towpath-relay"));
    for text in [unit.clone(), format!("{unit}\n{added}")] {
        let Some(level) = unit::exposure(&text, "towpath-relay.service") else { return };
        assert!(level <= 2.0, "{level}");
    }
}

/// The unit's sandbox leaves room for what listens on the admin address, and for the addresses of this machine.
#[test]
fn the_unit_file_permits_the_admin_port_and_netlink() {
    for closed in ["PrivateNetwork", "SocketBindDeny", "SocketBindAllow", "IPAddressDeny"] {
        assert_eq!(of_unit(closed), [""; 0], "{closed}");
    }
    let families = of_unit("RestrictAddressFamilies").concat();
    for family in ["AF_INET", "AF_INET6", "AF_NETLINK", "AF_UNIX"] {
        assert!(families.split(' ').any(|other| other == family), "{family} is not in {families}");
    }
}

/// What the relay lets itself do once it serves, the unit lets it do as well.
#[test]
fn the_unit_file_permits_every_system_call_of_a_confined_relay() {
    let Some(groups) = call_groups() else { return };
    let allowed = unit::allowed_calls(&unit_text(), &groups);
    // Each call that the relay's own filter names.
    let source = include_str!("../../src/confine/system_calls.rs");
    let calls = source.split("libc::SYS_").skip(1).map(|rest| {
        let end = rest.find(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_').unwrap();
        rest[..end].to_owned()
    });
    let calls: BTreeSet<String> = calls.collect();
    assert!(calls.len() > 60, "{calls:?}");
    let missing: Vec<_> = calls.difference(&allowed).collect();
    assert!(missing.is_empty(), "{missing:?}");
    for call in ["mount", "setpriority", "ptrace", "init_module", "reboot"] {
        assert!(!allowed.contains(call), "{call}");
    }
}

/// What a relay calls from its start to its end: one that serves by UDP, TCP and TLS, shows its figures, tells a service
/// manager, reads its configuration again, and drains.
fn calls_of_a_life(engine: &[&str]) -> Option<BTreeSet<String>> {
    if program("strace").arg("-V").output().is_err() {
        left_out("the system calls of a whole life: apt-get install strace");
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let certificate = TestCertificate::new();
    certificate.write(folder.path());
    write_private(&at("users"), &format!("{USER}:{PASSWORD}\n"));
    let config = format!(
        "listen = [\"127.0.0.1:0\"]\nlisten-tcp = [\"127.0.0.1:0\"]\nlisten-tls = [\"127.0.0.1:0\"]\nadmin = \"127.0.0.1:0\"\n\
         tls-certificate = {:?}\ntls-key = {:?}\nrealm = \"{REALM}\"\nuser-file = {:?}\nworkers = 2\n\
         allow-peer = [\"127.0.0.0/8\"]\n",
        at("relay.pem"),
        at("relay.key"),
        at("users")
    );
    write_private(&at("relay.toml"), &config);
    let manager = UnixDatagram::bind(at("notify")).unwrap();
    let mut command = program("strace");
    // The relay is the process that was started, and strace a grandchild of it.
    command.args(["-D", "-f", "-q", "-o"]).arg(at("trace")).arg(env!("CARGO_BIN_EXE_towpath-relay"));
    command.arg("--config").arg(at("relay.toml")).args(engine);
    command.env("NOTIFY_SOCKET", at("notify")).env("WATCHDOG_USEC", "200000");
    let relay = RelayProcess::spawn(command);
    let mut client = Client::new(relay.listen[0]);
    let relayed = client.allocate();
    let peer = socket();
    let permit = |writer: &mut Writer<'_>| {
        writer.xor_peer_address(peer.local_addr().unwrap());
    };
    assert_eq!(code(&client.ask(Method::CreatePermission, permit)), None);
    peer.send_to(b"served", relayed).unwrap();
    receive(&client.socket);
    StreamClient::new(connect(relay.tcp[0])).allocate();
    StreamClient::new(connect_tls(relay.tls[0], &certificate)).allocate();
    for resource in ["/metrics", "/status.json", "/"] {
        assert_eq!(get(relay.admin(), resource).status, 200);
    }
    relay.signal(Signal::HUP);
    relay.wait_for("in force");
    let mut message = [0; 200];
    while !message.starts_with(b"WATCHDOG=1") {
        let len = manager.recv(&mut message).unwrap();
        assert!(len > 0);
    }
    relay.signal(Signal::TERM);
    relay.wait_for("draining");
    client.ask(Method::Refresh, |writer| {
        writer.lifetime(0);
    });
    let (status, log) = relay.wait();
    assert!(status.success(), "{log}");
    Some(calls_in(&at("trace")))
}

#[test]
fn the_unit_file_permits_every_system_call_from_start_to_end() {
    let Some(groups) = call_groups() else { return };
    let allowed = unit::allowed_calls(&unit_text(), &groups);
    for engine in [&["--io", "uring", "--ingress", "uring"][..], &["--io", "suspend"]] {
        let Some(calls) = calls_of_a_life(engine) else { return };
        for known in ["execve", "bind", "seccomp", "landlock_restrict_self", "setsockopt", "exit_group"] {
            assert!(calls.contains(known), "{known} is not in {calls:?}");
        }
        let missing: Vec<_> = calls.difference(&allowed).collect();
        assert!(missing.is_empty(), "{engine:?}: {missing:?}");
    }
}

/// A limit of the unit, in bytes or as a number.
fn limit(name: &str) -> u64 {
    let [text] = &of_unit(name)[..] else { panic!("{name} is there once") };
    let number = text.trim_end_matches(['M', 'G']).parse::<u64>().unwrap();
    match text.chars().last() {
        Some('M') => number << 20,
        Some('G') => number << 30,
        _ => number,
    }
}

#[test]
fn the_limits_of_the_unit_file_suffice_for_the_files_that_there_may_be() {
    let config = Config::load(&Args::try_parse_from(["towpath-relay"]).unwrap()).unwrap();
    let clients = u64::from(config.allocations_max) + 2 * u64::from(config.streams.limits.connections_max);
    // Listeners of both families by UDP, TCP and TLS, rings and their descriptors for waking.
    let own = 16 * u64::from(WORKERS_MAX) + 64;
    assert!(limit("LimitNOFILE") >= clients + own, "{clients} for clients, {own} of its own");
}

/// Otherwise clients that read slowly could have the kernel end the relay.
#[test]
fn the_memory_of_the_service_and_of_the_pod_is_above_what_the_defaults_can_come_to() {
    const MIB: u64 = 1 << 20;
    let config = Config::load(&Args::try_parse_from(["towpath-relay"]).unwrap()).unwrap();
    let streams = config.streams.limits;
    // Data and answers each at most as much as may wait.
    let queues = 2 * streams.queues_bytes as u64;
    // A message that has begun to come and one that has begun to go, 64 KiB each, and what TLS has taken: 64 KiB and a message.
    let begun = u64::from(streams.connections_max) * MIB / 4;
    // README: many cores. As many as machines usually have at most.
    let workers = 64 * 12 * MIB;
    let allocations = u64::from(config.allocations_max) * 2048;
    let most = queues + begun + workers + allocations;
    assert!(limit("MemoryMax") >= most, "{} MiB", most / MIB);
    let pod = fs::read_to_string(unit_path().with_file_name("kubernetes/deployment.yaml")).unwrap();
    let pod = pod.split_once("limits:\n").unwrap().1.split_once("memory: ").unwrap().1;
    let pod = pod.split_once("Gi\n").unwrap().0.parse::<u64>().unwrap() << 30;
    assert!(pod >= most, "{} MiB", most / MIB);
    assert!(most > limit("MemoryMax") / 2, "and not far above: {} MiB", most / MIB);
}

/// Without a privilege, a part of the most workers has its rings within the same part of the limit on locked memory. As root,
/// because only root can be somebody else, whose locked memory is counted.
#[test]
fn the_limits_of_the_unit_file_suffice_for_the_rings_of_all_workers() {
    const WORKERS: u16 = WORKERS_MAX / 16;
    if !rustix::process::geteuid().is_root() {
        return left_out("the limits of the unit file without a privilege: root, to be another user");
    }
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let relay = folder.path().join("towpath-relay");
    fs::copy(env!("CARGO_BIN_EXE_towpath-relay"), &relay).unwrap();
    let mut command = program("prlimit");
    let part = limit("LimitMEMLOCK") / u64::from(WORKERS_MAX / WORKERS);
    command.args([format!("--memlock={part}"), "--core=0".to_owned()]);
    // A user whom nobody else is, as the unit's is not.
    command.args(["setpriv", "--reuid=64217", "--regid=64217", "--clear-groups", "--no-new-privs"]);
    command.args(["--bounding-set=-all", "--inh-caps=-all"]).arg(&relay);
    command.args(["--listen", "127.0.0.1:0", "--admin", "off", "--io", "uring", "--ingress", "uring"]);
    command.args(["--workers", &WORKERS.to_string()]);
    let relay = RelayProcess::spawn(command);
    let threads = fs::read_dir(format!("/proc/{}/task", relay.id())).unwrap().count() as u64;
    let most = threads * u64::from(WORKERS_MAX / WORKERS);
    assert!(threads >= 2 * u64::from(WORKERS) && most <= limit("TasksMax"), "{threads} threads");
    let mut buffer = [0; 20];
    let writer = Writer::new(&mut buffer, Class::Request, Method::Binding, TransactionId([7; 12])).unwrap();
    assert_eq!(writer.finish(None, false), Some(20));
    let socket = socket();
    socket.send_to(&buffer, relay.listen[0]).unwrap();
    assert_eq!(Message::parse(&receive(&socket).0).unwrap().class(), Class::Success);
    assert!(relay.stop().0.success());
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
    let users = fs::read_to_string(unit_path().with_file_name("sysusers.d/towpath-relay.conf")).unwrap();
    assert!(users.contains(&format!("\nu {} - ", of_unit("User")[0])), "{users}");
}

/// The commands of the README that install the unit without a package.
fn installation() -> Vec<Vec<String>> {
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let (_, rest) = readme.split_once("**systemd.** Without the").unwrap();
    let (steps, _) = rest.split_once("\nFor a program elsewhere").unwrap();
    let lines = steps.lines().filter_map(|line| line.strip_prefix("sudo "));
    lines.map(|line| line.split(' ').map(str::to_owned).collect()).collect()
}

/// What the README says for systems without the package, with another root for every path: then the files are where the unit
/// and the configuration look for them, of whom and for whom they have to be, and the relay runs with them.
#[test]
fn the_installation_of_the_readme_makes_what_the_unit_starts() {
    if !rustix::process::geteuid().is_root() {
        return left_out("the installation by hand: root, to make a user in another root");
    }
    if program("systemd-sysusers").arg("--version").output().is_err() {
        return left_out("the installation by hand: apt-get install systemd");
    }
    let folder = tempfile::tempdir().unwrap();
    let inside = |path: &str| folder.path().join(path.trim_start_matches('/'));
    let mut owner = String::new();
    let mut services = 0;
    for command in installation() {
        let (name, words) = command.split_first().unwrap();
        let output = match name.as_str() {
            "systemd-sysusers" => {
                let output =
                    program(name).arg(format!("--root={}", folder.path().display())).args(words).output();
                let passwd = fs::read_to_string(inside("/etc/passwd")).unwrap();
                let line = passwd.lines().find(|line| line.starts_with(&format!("{}:", of_unit("User")[0])));
                owner = line
                    .unwrap_or_else(|| panic!("{output:?}: {passwd}"))
                    .split(':')
                    .nth(2)
                    .unwrap()
                    .to_owned();
                output
            }
            "install" => {
                let words = words.iter().map(|word| match word.as_str() {
                    "/dev/null" => word.into(),
                    "target/release/towpath-relay" => env!("CARGO_BIN_EXE_towpath-relay").into(),
                    "towpath-relay" => owner.clone().into(),
                    path if path.starts_with('/') => inside(path).into_os_string(),
                    other => other.into(),
                });
                let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
                program(name).args(words).current_dir(workspace).output()
            }
            "systemctl" => {
                services += 1;
                assert!(words.last().is_some_and(|word| word == "towpath-relay" || word == "daemon-reload"));
                continue;
            }
            other => panic!("{other} is nothing that this test knows"),
        };
        let output = output.unwrap();
        assert!(output.status.success(), "{command:?}: {output:?}");
    }
    assert_eq!(services, 3);
    let unit = fs::read_to_string(inside("/etc/systemd/system/towpath-relay.service")).unwrap();
    assert_eq!(unit, fs::read_to_string(unit_path()).unwrap());
    let users = fs::metadata(inside("/etc/towpath-relay/users")).unwrap();
    assert_eq!((users.mode() & 0o777, users.uid().to_string()), (0o600, owner.clone()));
    // The configuration names the users where they are on a machine.
    let config = inside("/etc/towpath-relay/towpath-relay.toml");
    let text = fs::read_to_string(&config).unwrap();
    let place = inside("/etc/towpath-relay/users");
    fs::write(&config, text.replace("/etc/towpath-relay/users", place.to_str().unwrap())).unwrap();
    let [start] = &of_unit("ExecStart")[..] else { panic!("one command") };
    let mut words =
        start.split(' ').map(|word| if word.starts_with('/') { inside(word) } else { word.into() });
    // As the unit's user, who must be able to read all of it.
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = program("setpriv");
    command.args([format!("--reuid={owner}"), format!("--regid={owner}")]).arg("--clear-groups");
    command.arg(words.next().unwrap()).args(words);
    command.args(["--listen", "127.0.0.1:0", "--admin", "off"]);
    let relay = RelayProcess::spawn(command);
    assert!(relay.stop().0.success());
}
