//! A relay that serves has given up what it does not need: a canary in its process tries, and everything is refused but what
//! serving takes. (The other tests run confined as well: it is the default.)

#![allow(clippy::unwrap_used, reason = "a test panics when it cannot go on and says where")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write as _};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use crate::harness;
use crate::harness::http::get;
use crate::harness::{Client, PASSWORD, REALM, RelayProcess, USER, code, program, receive, socket};
use crate::left_out::left_out;
use dataplane::stun::{Method, Writer};
use rustix::net::{AddressFamily, Protocol, SocketType, netlink};
use rustix::process::Pid;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};

/// What this process is to be instead of a test: `canary`, or with Landlock and seccomp missing from the kernel `lacking`, or
/// `userless` without users.
const ROLE: &str = "TOWPATH_TEST_ROLE";
/// The directory that the canary's relay may read.
const DIRECTORY: &str = "TOWPATH_TEST_DIRECTORY";

/// The relay in this very process, so that a canary can be put beside it. It does nothing unless a test starts it.
#[test]
fn the_relay_with_a_canary() {
    let Some(role) = std::env::var_os(ROLE) else { return };
    let directory = std::env::var(DIRECTORY).unwrap();
    if role != "canary" {
        // As on a kernel without them.
        refuse([libc::SYS_landlock_create_ruleset, libc::SYS_seccomp]);
    }
    let config = format!("{directory}/relay.toml");
    let arguments = ["towpath-relay", "--config", &config, "--drain-timeout", "0"].map(Into::into);
    let parent = rustix::process::getppid().unwrap();
    let sings = role == "canary";
    let serve = move || {
        // Where nothing is refused, the first attempt to run another program would be the end of it.
        if !sings {
            // Only the process itself can ask.
            let dumps = rustix::process::dumpable_behavior().unwrap();
            let core = rustix::process::getrlimit(rustix::process::Resource::Core).maximum;
            writeln!(io::stderr(), "its memory: {dumps:?}, in a file {core:?}").unwrap();
            return;
        }
        // A thread, so that the relay serves while the canary sings; it inherits what the loop's thread is left with.
        std::thread::spawn(move || sing(Path::new(&directory), parent));
    };
    let ended = relay::cli::main_with(arguments.into_iter(), serve);
    assert_eq!(format!("{ended:?}"), format!("{:?}", std::process::ExitCode::SUCCESS));
}

/// Makes system calls fail with ENOSYS.
fn refuse<const N: usize>(calls: [i64; N]) {
    let rules = calls.into_iter().map(|call| (call, Vec::new())).collect();
    let absent = SeccompAction::Errno(libc::ENOSYS as u32);
    let architecture = std::env::consts::ARCH.try_into().unwrap();
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, absent, architecture).unwrap();
    let filter: BpfProgram = filter.try_into().unwrap();
    apply_filter(&filter).unwrap();
}

/// A socket that is made and closed again.
fn socket_of(family: AddressFamily, kind: SocketType, protocol: Option<Protocol>) -> io::Result<()> {
    rustix::net::socket(family, kind, protocol)?;
    Ok(())
}

/// Tries everything, and says of each how it ended.
#[expect(clippy::disallowed_methods, reason = "whether programs can be started is the question")]
fn sing(directory: &Path, parent: Pid) {
    let config = directory.join("relay.toml");
    let attempts: Vec<(&str, io::Result<()>)> = vec![
        // What serving takes.
        ("may read its configuration", fs::read(&config).map(drop)),
        ("may list its directory", fs::read_dir(directory).map(drop)),
        ("may open a relay socket", UdpSocket::bind("127.0.0.1:0").map(drop)),
        ("may open an IPv6 socket", socket_of(AddressFamily::INET6, SocketType::DGRAM, None)),
        ("may ask for addresses", socket_of(AddressFamily::NETLINK, SocketType::RAW, None)),
        (
            "may read the addresses of this machine",
            dataplane::netlink::Handle::open()
                .and_then(|mut handle| handle.addresses())
                .map(drop)
                .map_err(io::Error::other),
        ),
        ("may start a thread", std::thread::Builder::new().spawn(|| {}).map(drop)),
        ("may read its own state", fs::read("/proc/self/status").map(drop)),
        // Programs and processes.
        ("execve", Err(Command::new("/bin/true").exec())),
        ("start a program", Command::new("/bin/true").status().map(drop)),
        ("signal the parent", rustix::process::test_kill_process(parent).map_err(Into::into)),
        (
            "open the parent",
            rustix::process::pidfd_open(parent, rustix::process::PidfdFlags::empty())
                .map(drop)
                .map_err(Into::into),
        ),
        // Files.
        ("read /etc/passwd", fs::read("/etc/passwd").map(drop)),
        (
            "read the parent's environment",
            fs::read(format!("/proc/{}/environ", parent.as_raw_nonzero())).map(drop),
        ),
        ("list /", fs::read_dir("/").map(drop)),
        ("read by a way out", fs::read(directory.join("../../../../../../../../etc/passwd")).map(drop)),
        ("write its configuration", fs::write(&config, "")),
        ("append to its configuration", fs::OpenOptions::new().append(true).open(&config).map(drop)),
        ("make a file", fs::File::create(directory.join("new")).map(drop)),
        ("make a file in /tmp", fs::File::create(std::env::temp_dir().join("towpath-canary")).map(drop)),
        ("make a directory", fs::create_dir(directory.join("directory"))),
        ("remove its configuration", fs::remove_file(&config)),
        ("rename its configuration", fs::rename(&config, directory.join("other"))),
        ("link a file", fs::hard_link(&config, directory.join("link"))),
        ("make a symbolic link", std::os::unix::fs::symlink("/etc", directory.join("etc"))),
        ("change a mode", fs::set_permissions(&config, fs::metadata(&config).unwrap().permissions())),
        ("write its own memory", fs::OpenOptions::new().write(true).open("/proc/self/mem").map(drop)),
        ("change directory", std::env::set_current_dir("/")),
        ("change root", rustix::process::chroot(directory).map_err(Into::into)),
        (
            "make a file in memory",
            rustix::fs::memfd_create("canary", rustix::fs::MemfdFlags::CLOEXEC).map(drop).map_err(Into::into),
        ),
        (
            "watch files",
            rustix::fs::inotify::init(rustix::fs::inotify::CreateFlags::CLOEXEC)
                .map(drop)
                .map_err(Into::into),
        ),
        // Other families and kinds of sockets.
        ("a UNIX socket", UnixDatagram::unbound().map(drop)),
        ("a pair of UNIX sockets", UnixStream::pair().map(drop)),
        ("connect by TCP", TcpStream::connect("127.0.0.1:9").map(drop)),
        ("listen by TCP", TcpListener::bind("127.0.0.1:0").map(drop)),
        ("a raw socket", socket_of(AddressFamily::INET, SocketType::RAW, Some(rustix::net::ipproto::ICMP))),
        ("a packet socket", socket_of(AddressFamily::PACKET, SocketType::RAW, None)),
        ("a socket to the hypervisor", socket_of(AddressFamily::VSOCK, SocketType::STREAM, None)),
        (
            "a socket to the kernel's cryptography",
            socket_of(AddressFamily::from_raw(libc::AF_ALG as u16), SocketType::SEQPACKET, None),
        ),
        ("the audit log", socket_of(AddressFamily::NETLINK, SocketType::RAW, Some(netlink::AUDIT))),
        ("netfilter", socket_of(AddressFamily::NETLINK, SocketType::RAW, Some(netlink::NETFILTER))),
        // The rest of the kernel.
        ("a new ring", dataplane::ingress::UringIngress::new(false).map(drop)),
        (
            "dump core",
            rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::Dumpable)
                .map_err(Into::into),
        ),
        (
            "more files",
            rustix::process::setrlimit(
                rustix::process::Resource::Nofile,
                rustix::process::Rlimit { current: Some(9), maximum: Some(9) },
            )
            .map_err(Into::into),
        ),
        ("a new session", rustix::process::setsid().map(drop).map_err(Into::into)),
        ("another priority", rustix::process::nice(1).map(drop).map_err(Into::into)),
        ("another name of the host", rustix::system::sethostname(b"canary").map_err(Into::into)),
    ];
    let mut song = String::new();
    for (what, result) in attempts {
        let end = match result {
            Ok(()) => "done".to_owned(),
            Err(error) => {
                error.raw_os_error().map_or_else(|| error.to_string(), |errno| format!("errno {errno}"))
            }
        };
        song.push_str(&format!("canary: {what}: {end}\n"));
    }
    song.push_str("canary: silent\n");
    io::stderr().write_all(song.as_bytes()).unwrap();
}

/// A relay in a process of this test's own program.
fn start(directory: &Path, role: &str) -> RelayProcess {
    fs::create_dir(directory.join("conf")).unwrap();
    let directory = directory.join("conf");
    let users = if role == "userless" { String::new() } else { format!("\"{USER}:{PASSWORD}\"") };
    let text = format!(
        "listen = [\"127.0.0.1:0\"]\nrealm = \"{REALM}\"\nuser = [{users}]\nallow-peer = [\"127.0.0.0/8\"]\nadmin = \"127.0.0.1:0\"\n"
    );
    harness::write_private(&directory.join("relay.toml"), &text);
    let mut command = program(std::env::current_exe().unwrap().to_str().unwrap());
    command.args(["--exact", "confined::the_relay_with_a_canary", "--nocapture", "--test-threads=1"]);
    command.env(ROLE, role).env(DIRECTORY, directory);
    RelayProcess::spawn(command)
}

/// Both ways through the relay, on a new allocation.
fn serves(relay: &RelayProcess) {
    let mut client = Client::new(relay.listen[0]);
    let relayed = client.allocate();
    let peer = socket();
    let permit = |writer: &mut Writer<'_>| {
        writer.xor_peer_address(peer.local_addr().unwrap());
    };
    assert_eq!(code(&client.ask(Method::CreatePermission, permit)), None);
    peer.send_to(b"served", relayed).unwrap();
    assert!(receive(&client.socket).0.windows(6).any(|bytes| bytes == b"served"));
}

/// Its figures, from the admin thread.
fn shows(relay: &RelayProcess) {
    for target in ["/", "/metrics", "/status.json", "/healthz", "/readyz"] {
        let answer = get(relay.admin(), target);
        assert_eq!(answer.status, 200, "{target}: {answer:?}");
    }
}

/// The canary's lines up to its silence. It may begin before the relay says that it is ready.
fn song(relay: &RelayProcess) -> BTreeMap<String, String> {
    let mut early = relay.before_ready().lines().filter(|line| line.contains("canary: ")).map(str::to_owned);
    let mut song = BTreeMap::new();
    loop {
        let line = early.next().unwrap_or_else(|| relay.wait_for("canary: "));
        let (_, line) = line.split_once("canary: ").unwrap();
        match line.rsplit_once(": ") {
            Some((what, end)) => song.insert(what.to_owned(), end.to_owned()),
            None => return song,
        };
    }
}

#[test]
fn everything_that_serving_does_not_take_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let relay = start(directory.path(), "canary");
    serves(&relay);
    shows(&relay);
    let song = song(&relay);
    assert!(song.len() > 40, "{song:#?}");
    let (permitted, refused): (Vec<_>, Vec<_>) = song.iter().partition(|(what, _)| what.starts_with("may "));
    let denied = [libc::EPERM, libc::EACCES].map(|errno| format!("errno {errno}"));
    let wrong: Vec<_> = permitted
        .iter()
        .filter(|(_, end)| *end != "done")
        .chain(refused.iter().filter(|(_, end)| !denied.contains(end)))
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    // Every thread, those of the rings included.
    let tasks = fs::read_dir(format!("/proc/{}/task", relay.id())).unwrap();
    let mut threads = BTreeSet::new();
    for task in tasks {
        let status = fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        let value = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name)).unwrap();
            line.split_whitespace().nth(1).unwrap().to_owned()
        };
        assert_eq!((value("Seccomp:").as_str(), value("NoNewPrivs:").as_str()), ("2", "1"), "{status}");
        // The test's own main thread is not one that the relay started.
        let name = value("Name:");
        if name.starts_with("towpath-") {
            assert_eq!(
                [value("CapEff:"), value("CapPrm:"), value("CapAmb:")],
                ["0"; 3].map(|zero| zero.repeat(16))
            );
            threads.insert(name);
        }
    }
    for name in ["towpath-reload", "towpath-admin"] {
        assert!(threads.contains(name), "{threads:?}");
    }
    serves(&relay);
    shows(&relay);
    // No signal: the thread of the test's own harness would take it. `life.rs` has reloads of a confined relay.
}

#[test]
fn what_the_kernel_lacks_is_said_once_and_the_relay_serves() {
    let directory = tempfile::tempdir().unwrap();
    let relay = start(directory.path(), "lacking");
    let log = relay.before_ready();
    for piece in ["files, because this kernel has no Landlock", "system calls, because seccomp"] {
        assert_eq!(log.matches(&format!("not confined: {piece}")).count(), 1, "{log}");
    }
    assert!(log.contains("files=all system_calls=all"), "{log}");
    serves(&relay);
    shows(&relay);
}

/// Users may come by a reload, when it is too late to forbid it.
#[test]
fn nobody_sees_the_memory_of_a_relay_even_if_it_has_no_secrets_yet() {
    for role in ["lacking", "userless"] {
        let directory = tempfile::tempdir().unwrap();
        let relay = start(directory.path(), role);
        let early = relay.before_ready().lines().find(|line| line.contains("its memory: "));
        let line = early.map_or_else(|| relay.wait_for("its memory: "), str::to_owned);
        assert!(line.ends_with("NotDumpable, in a file Some(0)"), "{role}: {line}");
    }
}

#[test]
fn confinement_can_be_switched_off() {
    let relay = RelayProcess::on_loopback(&["--confine", "off"]);
    assert!(!relay.before_ready().contains("confined"));
    let status = fs::read_to_string(format!("/proc/{}/status", relay.id())).unwrap();
    assert!(status.contains("Seccomp:\t0\n") && status.contains("NoNewPrivs:\t0\n"), "{status}");
    serves(&relay);
    let confined = RelayProcess::on_loopback(&[]);
    let log = confined.before_ready();
    assert_eq!(log.matches("INFO  confined ").count(), 1, "{log}");
    assert!(log.contains("capabilities=none files=none system_calls=\""), "{log}");
}

#[test]
fn a_directory_in_which_others_keep_files_is_warned_about() {
    let warning = "not confined: files, because all in this directory stay readable";
    let users = "carol:hidden\n";
    let mut shared = tempfile::NamedTempFile::new_in("/tmp").unwrap();
    shared.write_all(users.as_bytes()).unwrap();
    let relay = RelayProcess::on_loopback(&["--user-file", shared.path().to_str().unwrap()]);
    let log = relay.before_ready();
    if log.contains("this kernel has no Landlock") {
        return left_out("which directories stay readable: a kernel with Landlock, lsm=landlock");
    }
    assert_eq!(log.matches(warning).count(), 1, "{log}");
    assert!(log.contains("directory=/tmp") && log.contains("files=\"read only, below /tmp\" "), "{log}");
    let own = tempfile::tempdir_in("/tmp").unwrap();
    harness::write_private(&own.path().join("users"), users);
    let relay = RelayProcess::on_loopback(&["--user-file", own.path().join("users").to_str().unwrap()]);
    assert!(!relay.before_ready().contains(warning), "{}", relay.before_ready());
}
