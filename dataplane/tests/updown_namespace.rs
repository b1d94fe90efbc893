//! `towpath up` and `towpath down` and what they do to the host, in network namespaces of their own: default route, rules,
//! name servers, hooks, and that all of it is taken back, also after SIGKILL. Needs user namespaces, an open /dev/net/tun and
//! iproute2's `ip`; without them each test says that it is left out.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]
#![expect(clippy::disallowed_methods, reason = "a test starts programs and waits for them")]

#[path = "support/user_namespace.rs"]
mod user_namespace;

use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use dataplane::netlink::Handle;
use dataplane::sys::namespace;
use dataplane::tunnel::key::SecretKey;
use dataplane::tunnel::noise;
use rustix::process::{Pid, Signal, kill_process};
use user_namespace::left_out::left_out;

const TOWPATH: &str = env!("CARGO_BIN_EXE_towpath");
const PATIENCE: Duration = Duration::from_secs(10);

/// A network namespace: whatever is to happen in it runs on a thread that has entered it.
struct Namespace(fs::File);

impl Namespace {
    fn new() -> Self {
        let made = std::thread::spawn(|| {
            namespace::unshare_net().unwrap();
            fs::File::open("/proc/thread-self/ns/net").unwrap()
        });
        Self(made.join().unwrap())
    }

    fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                namespace::enter(self.0.as_fd()).unwrap();
                work()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// What a shell command prints, which must succeed.
    fn sh(&self, script: &str) -> String {
        let output = self.run(|| shell(script));
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{script}\n{text}\n{}", String::from_utf8_lossy(&output.stderr));
        text
    }
}

fn shell(script: &str) -> Output {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    Command::new("sh").args(["-ec", script]).env("PATH", path).stdin(Stdio::null()).output().unwrap()
}

/// Hosts `a` and `b`. Beside the cable between them, which is 192.0.2.0/24 and 2001:db8::/64, `b` has 198.51.100.1 and
/// 2001:db8:5::1, which `a` reaches by its default route only, and 203.0.113.9 and 2001:db8:9::9.
struct Hosts {
    a: Namespace,
    b: Namespace,
    folder: tempfile::TempDir,
}

/// Answers `None` where the test cannot run, and outside of the namespaces that it is then run in.
fn hosts(test: &str) -> Option<Hosts> {
    if let Err(error) = fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun") {
        left_out(&format!("/dev/net/tun: {error}"));
        return None;
    }
    if !shell("command -v ip").status.success() {
        left_out("routes and rules: apt-get install iproute2");
        return None;
    }
    if !user_namespace::inside(test) {
        return None;
    }
    let (a, b) = (Namespace::new(), Namespace::new());
    let mut handle = Handle::open().unwrap();
    let (left, right) = handle.add_veth("left", "right").unwrap();
    handle.move_to_namespace(left, a.0.as_fd()).unwrap();
    handle.move_to_namespace(right, b.0.as_fd()).unwrap();
    for (side, name, own, far) in [(&a, "left", 1, 2), (&b, "right", 2, 1)] {
        side.sh(&format!(
            "ip link set lo up; ip link set {name} addrgenmode none; ip addr add 192.0.2.{own}/24 dev {name}; ip addr add 2001:db8::{own}/64 dev {name} nodad
             ip link set {name} up; ip route add default via 192.0.2.{far}; ip -6 route add default via 2001:db8::{far}"
        ));
    }
    b.sh("for it in 198.51.100.1/32 203.0.113.9/32 2001:db8:5::1/128 2001:db8:9::9/128; do ip addr add $it dev lo; done");
    let folder = tempfile::tempdir().unwrap();
    for name in ["bin", "conf", "logs"] {
        fs::create_dir(folder.path().join(name)).unwrap();
    }
    Some(Hosts { a, b, folder })
}

impl Hosts {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file that only its owner can read.
    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path("conf").join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    }

    /// The configuration of host 1 or 2 with more lines of `[Interface]` and of its `[Peer]`.
    fn configuration(&self, number: u8, interface: &str, peer: &str) -> PathBuf {
        let key = |number: u8| SecretKey::new([number; 32]).clamped();
        let other = 3 - number;
        let port = if number == 2 { "ListenPort = 51820\n" } else { "" };
        let text = format!(
            "[Interface]\nPrivateKey = {}\nAddress = 10.99.0.{number}/24, fd99::{number}/64\n{port}{interface}\n\
             [Peer]\nPublicKey = {}\n{peer}\n",
            *key(number).to_base64(),
            noise::public_key(&key(other)),
        );
        self.file(&format!("tow{number}.conf"), &text)
    }

    /// `b`'s side of every tunnel here.
    fn callee(&self) -> Running {
        Running::start(self, &self.b, &self.configuration(2, "", "AllowedIPs = 10.99.0.1/32, fd99::1/128"))
    }

    /// A program of ours with its own folder for what runs, and its own commands first in the PATH.
    fn towpath(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(TOWPATH);
        let path = std::env::var("PATH").unwrap_or_default();
        command.args(arguments).env("RUNTIME_DIRECTORY", self.path("run")).env_remove("RUST_LOG");
        command.env("PATH", format!("{}:{path}:/usr/sbin:/sbin", self.path("bin").display()));
        command.stdin(Stdio::null());
        command
    }

    /// `towpath down` on host `a`.
    fn down(&self, name: &str) -> Output {
        self.a.run(|| self.towpath(&["down", name]).output().unwrap())
    }

    /// All that a tunnel may change on host `a`.
    fn state(&self) -> String {
        let firewall = if shell("command -v nft").status.success() { "nft list ruleset" } else { ":" };
        self.a.sh(&format!(
            "ip rule; ip -6 rule; ip -4 route show table all; ip -6 route show table all; ip -o link; {firewall}
             cat /proc/sys/net/ipv4/conf/all/src_valid_mark; cd {}; ls -A . run 2>&1 || true; cat names 2>&1 || true",
            self.folder.path().display()
        ))
    }

    /// A program of the host's, as a shell script.
    fn stub(&self, name: &str, script: &str) {
        let bin = self.path("bin");
        fs::write(bin.join(name), format!("#!/bin/sh\nset -e\n{script}\n")).unwrap();
        fs::set_permissions(bin.join(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
}

/// A running `towpath up`.
struct Running {
    child: Child,
    log: PathBuf,
}

impl Running {
    /// Waits until it is ready.
    fn start(hosts: &Hosts, side: &Namespace, file: &Path) -> Self {
        let mut running = Self::spawn(hosts, side, file);
        running.wait_for(" ready ");
        running
    }

    fn spawn(hosts: &Hosts, side: &Namespace, file: &Path) -> Self {
        Self::of(hosts, side, hosts.towpath(&["up", file.to_str().unwrap(), "--io", "suspend"]))
    }

    fn of(hosts: &Hosts, side: &Namespace, mut command: Command) -> Self {
        let number = fs::read_dir(hosts.path("logs")).unwrap().count();
        let log = hosts.path("logs").join(number.to_string());
        let output = fs::File::create(&log).unwrap();
        command.stdout(output.try_clone().unwrap()).stderr(output);
        Self { child: side.run(|| command.spawn().unwrap()), log }
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    fn wait_for(&mut self, text: &str) {
        let start = Instant::now();
        while !self.log().contains(text) {
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none() && start.elapsed() < PATIENCE, "no {text:?}: {}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    fn wait(&mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(start.elapsed() < PATIENCE, "it does not end: {}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn kill(&mut self) {
        kill_process(self.pid(), Signal::KILL).unwrap();
        self.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // A failed test must not leave it behind; otherwise it has ended, or is not looked at any more.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends a datagram from `a` to an address of `b` and back; where it came from.
fn echo(hosts: &Hosts, to: &str) -> SocketAddr {
    let to: SocketAddr = to.parse().unwrap();
    let theirs = hosts.b.run(|| UdpSocket::bind(to).unwrap());
    let any: SocketAddr = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse().unwrap();
    let ours = hosts.a.run(|| UdpSocket::bind(any).unwrap());
    for socket in [&theirs, &ours] {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
    }
    let mut buffer = [0; 100];
    ours.send_to(b"there", to).unwrap();
    let (_, from) = theirs.recv_from(&mut buffer).unwrap();
    theirs.send_to(b"and back", from).unwrap();
    let (len, _) = ours.recv_from(&mut buffer).unwrap();
    assert_eq!(&buffer[..len], b"and back");
    from
}

const DEFAULT: &str = "AllowedIPs = 0.0.0.0/0, ::/0";

#[test]
fn a_default_route_leads_through_the_tunnel_and_goes_with_it() {
    let Some(hosts) = hosts("a_default_route_leads_through_the_tunnel_and_goes_with_it") else { return };
    if !shell("command -v nft").status.success() {
        left_out("a default route with strict reverse-path filtering: apt-get install nftables");
        return;
    }
    // The strictest a host can be: a packet whose answer would leave elsewhere is not received.
    hosts.a.sh(
        "echo 1 > /proc/sys/net/ipv4/conf/all/rp_filter; echo 1 > /proc/sys/net/ipv4/conf/left/rp_filter",
    );
    let _callee = hosts.callee();
    assert_eq!(echo(&hosts, "203.0.113.9:9").ip().to_string(), "192.0.2.1", "not through a tunnel yet");
    for endpoint in ["198.51.100.1:51820", "[2001:db8:5::1]:51820"] {
        let file = hosts.configuration(1, "", &format!("{DEFAULT}\nEndpoint = {endpoint}"));
        let before = hosts.state();
        let mut running = Running::start(&hosts, &hosts.a, &file);
        assert_eq!(echo(&hosts, "203.0.113.9:9").ip().to_string(), "10.99.0.1", "{endpoint}");
        assert_eq!(echo(&hosts, "[2001:db8:9::9]:9").ip().to_string(), "fd99::1", "{endpoint}");
        // What has a narrower route keeps it.
        assert_eq!(echo(&hosts, "192.0.2.2:9").ip().to_string(), "192.0.2.1");
        for family in ["-4", "-6"] {
            let rules = hosts.a.sh(&format!("ip {family} rule"));
            assert!(rules.contains("32764:\tfrom all lookup main suppress_prefixlength 0"), "{rules}");
            assert!(rules.contains("32765:\tnot from all fwmark 0xca6c lookup 51820"), "{rules}");
        }
        let down = hosts.down("tow1");
        assert!(down.status.success() && down.stderr.is_empty(), "{down:?}");
        assert!(running.wait().success(), "{}", running.log());
        assert_eq!(hosts.state(), before);
        assert_eq!(echo(&hosts, "203.0.113.9:9").ip().to_string(), "192.0.2.1");
    }
    let again = hosts.down("tow1");
    assert_eq!(again.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&again.stderr).contains("tow1 is not up"), "{again:?}");
}

#[test]
fn what_a_killed_one_leaves_is_taken_back_by_up_and_by_down() {
    let Some(hosts) = hosts("what_a_killed_one_leaves_is_taken_back_by_up_and_by_down") else { return };
    hosts.stub("resolvconf", &names_stub(&hosts));
    let hooks = hosts.path("conf").join("hooks");
    let lines = format!(
        "DNS = 10.99.0.2\nFwMark = 0x77\nPostUp = echo up %i >> {0}\nPreDown = echo pre-down %i >> {0}\n\
         PostDown = echo post-down %i >> {0}",
        hooks.display()
    );
    let ran = || fs::read_to_string(&hooks).unwrap();
    let file = hosts.configuration(1, &lines, &format!("{DEFAULT}\nEndpoint = 198.51.100.1:51820"));
    let before = hosts.state();
    let start = || {
        let mut running = Running::start(&hosts, &hosts.a, &file);
        running.wait_for("PostUp");
        let start = Instant::now();
        while !fs::read_to_string(&hooks).is_ok_and(|text| text.ends_with("up tow1\n")) {
            assert!(start.elapsed() < PATIENCE, "{}", running.log());
            std::thread::sleep(Duration::from_millis(5));
        }
        running
    };
    let rules = || hosts.a.sh("ip rule; ip -6 rule").matches("0x77").count();
    let mut first = start();
    assert_eq!(rules(), 2);

    // A second one is told so, and harms nothing.
    let mut second = Running::spawn(&hosts, &hosts.a, &file);
    assert_eq!(second.wait().code(), Some(1), "{}", second.log());
    let told = format!("tow1 is up already, by process {}: run `towpath down tow1` first", first.pid());
    assert!(second.log().contains(&told), "{}", second.log());
    assert_eq!((rules(), ran().as_str()), (2, "up tow1\n"));
    assert!(hosts.path("names").exists());

    first.kill();
    assert_eq!(rules(), 2, "nobody has taken them back");
    let down = hosts.down(file.to_str().unwrap());
    assert!(down.status.success(), "{down:?}");
    assert!(String::from_utf8_lossy(&down.stderr).contains("was killed"), "{down:?}");
    assert_eq!(ran(), "up tow1\npre-down tow1\npost-down tow1\n");
    fs::remove_file(&hooks).unwrap();
    fs::remove_file(hosts.path("calls")).unwrap();
    assert_eq!(hosts.state(), before);

    let mut first = start();
    first.kill();
    let mut next = start();
    assert!(next.log().contains("it is taken back"), "{}", next.log());
    assert_eq!(ran(), "up tow1\npre-down tow1\npost-down tow1\nup tow1\n");
    assert_eq!(rules(), 2);
    assert!(hosts.down("tow1").status.success());
    assert!(next.wait().success(), "{}", next.log());
    fs::remove_file(hosts.path("calls")).unwrap();
    assert_eq!(hosts.state(), before);
}

/// A resolvconf that keeps its records in a file and its calls in another.
fn names_stub(hosts: &Hosts) -> String {
    format!(
        r##"cd {}; touch names; echo "$@" >> calls
           case $1 in -a) {{ echo "# $2"; cat; }} >> names;; -d) sed -i '/^# '"$2"'$/,$d' names;; esac
           test -s names || rm names"##,
        hosts.folder.path().display()
    )
}

#[test]
fn name_servers_are_told_to_resolvconf_or_to_resolved() {
    let Some(hosts) = hosts("name_servers_are_told_to_resolvconf_or_to_resolved") else { return };
    if ["resolvconf", "resolvectl"].iter().any(|name| shell(&format!("command -v {name}")).status.success()) {
        return left_out("name servers without a resolvconf: a machine that has none, such as a container");
    }
    let lines = "DNS = 10.99.0.2, example.org\nDNS = fd99::2 corp.example";
    let file = hosts.configuration(1, lines, "AllowedIPs = 10.99.0.2/32");
    let mut refused = Running::spawn(&hosts, &hosts.a, &file);
    assert_eq!(refused.wait().code(), Some(1));
    assert!(refused.log().contains("apt-get install openresolv"), "{}", refused.log());

    let calls = || fs::read_to_string(hosts.path("calls")).unwrap();
    hosts.stub("resolvectl", &format!("echo \"$@\" >> {}", hosts.path("calls").display()));
    let mut running = Running::start(&hosts, &hosts.a, &file);
    let set = "dns tow1 10.99.0.2 fd99::2\ndomain tow1 ~. example.org corp.example\n";
    assert_eq!(calls(), set);
    assert!(hosts.down("tow1").status.success() && running.wait().success());
    assert_eq!(calls(), format!("{set}revert tow1\n"));

    // Where both are there, resolvconf is asked, as wg-quick does.
    fs::remove_file(hosts.path("calls")).unwrap();
    hosts.stub("resolvconf", &names_stub(&hosts));
    let mut running = Running::start(&hosts, &hosts.a, &file);
    assert_eq!(calls(), "-a tow1 -m 0 -x\n");
    assert_eq!(
        fs::read_to_string(hosts.path("names")).unwrap(),
        "# tow1\nnameserver 10.99.0.2\nnameserver fd99::2\nsearch example.org corp.example\n"
    );
    assert!(hosts.down("tow1").status.success() && running.wait().success());
    assert_eq!(calls(), "-a tow1 -m 0 -x\n-d tow1 -f\n");
    assert!(!hosts.path("names").exists());

    // What resolvconf says about a failure is passed on, and nothing stays.
    hosts.stub("resolvconf", "echo no such thing >&2; exit 3");
    let before = hosts.state();
    let mut refused = Running::spawn(&hosts, &hosts.a, &file);
    assert_eq!(refused.wait().code(), Some(1));
    assert!(refused.log().contains("no such thing"), "{}", refused.log());
    assert_eq!(hosts.state(), before);
}

#[test]
fn hooks_run_in_order_and_see_the_interface_come_and_go() {
    let Some(hosts) = hosts("hooks_run_in_order_and_see_the_interface_come_and_go") else { return };
    let file = hosts.path("conf").join("hooks");
    let hook = |key: &str| {
        format!(
            "{key} = echo {key} %i $(ip -o link show %i 2> /dev/null | grep -o UP, || echo absent) >> {}",
            file.display()
        )
    };
    let ping =
        "PostUp = ping -c 1 -W 5 10.99.0.2 > /dev/null\nPreDown = ping -c 1 -W 5 10.99.0.2 > /dev/null";
    // `<(…)` is bash's, as wg-quick runs hooks in it.
    let bash = format!("PostUp = cat <(echo bash) >> {}", file.display());
    let lines = [&hook("PreUp"), &hook("PostUp"), ping, &bash, &hook("PreDown"), &hook("PostDown")];
    let peer = "AllowedIPs = 10.99.0.2/32\nEndpoint = 192.0.2.2:51820";
    let configuration = hosts.configuration(1, &lines.map(|line: &str| line).join("\n"), peer);
    let callee = hosts.callee();
    let manager = UnixDatagram::bind(hosts.path("conf").join("manager")).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut command = hosts.towpath(&["up", configuration.to_str().unwrap(), "--io", "suspend"]);
    command.env("NOTIFY_SOCKET", hosts.path("conf").join("manager"));
    let mut running = Running::of(&hosts, &hosts.a, command);
    let told = || {
        let mut message = [0; 200];
        let len = manager.recv(&mut message).unwrap();
        String::from_utf8_lossy(&message[..len]).into_owned()
    };
    assert!(told().starts_with("READY=1\n"), "{}", running.log());
    let up = "PreUp tow1 absent\nPostUp tow1 UP,\nbash\n";
    assert_eq!(fs::read_to_string(&file).unwrap(), up, "before it is ready: {}", running.log());
    kill_process(running.pid(), Signal::TERM).unwrap();
    assert!(running.wait().success(), "{}", running.log());
    assert!(told().starts_with("STOPPING=1\n"));
    assert!(!running.log().contains(" WARN "), "{}", running.log());
    assert_eq!(fs::read_to_string(&file).unwrap(), format!("{up}PreDown tow1 UP,\nPostDown tow1 absent\n"));
    drop(callee);
}

#[test]
fn a_hook_that_fails_or_hangs_ends_the_tunnel_in_good_order() {
    let Some(hosts) = hosts("a_hook_that_fails_or_hangs_ends_the_tunnel_in_good_order") else { return };
    let before = hosts.state();
    let file = hosts.path("conf").join("hooks");
    let end =
        format!("PreDown = echo pre-down >> {0}; false\nPostDown = echo post-down >> {0}", file.display());
    let run = |lines: &str, signal: Option<Signal>| {
        let _ = fs::remove_file(&file);
        let peer = format!("{DEFAULT}\nEndpoint = 192.0.2.2:51820");
        let file = hosts.configuration(1, &format!("{lines}\n{end}"), &peer);
        let mut running = Running::spawn(&hosts, &hosts.a, &file);
        if let Some(signal) = signal {
            running.wait_for("Up: ");
            kill_process(running.pid(), signal).unwrap();
        }
        let code = running.wait().code();
        assert_eq!(hosts.state(), before);
        (code, running.log(), fs::read_to_string(hosts.path("conf").join("hooks")).unwrap())
    };
    let (code, log, ran) = run("PreUp = echo no >&2; exit 7", None);
    assert_eq!((code, ran.as_str()), (Some(1), "post-down\n"), "{log}");
    assert!(log.contains("PreUp: echo no >&2; exit 7: exit status 7"), "{log}");
    let (code, log, ran) = run("PostUp = exit 8", None);
    assert_eq!((code, ran.as_str()), (Some(1), "pre-down\npost-down\n"), "{log}");
    assert!(log.contains("PostUp: exit 8: exit status 8"), "{log}");
    assert!(log.contains("PreDown: echo pre-down"), "{log}");
    for (key, expected) in [("PreUp", "post-down\n"), ("PostUp", "pre-down\npost-down\n")] {
        for signal in [Signal::TERM, Signal::INT] {
            let (code, log, ran) = run(&format!("{key} = exec sleep 60"), Some(signal));
            assert_eq!((code, ran.as_str()), (Some(0), expected), "{log}");
        }
    }
}

#[test]
fn table_and_mark_are_as_they_are_written() {
    let Some(hosts) = hosts("table_and_mark_are_as_they_are_written") else { return };
    let peer = format!("{DEFAULT}, 10.99.0.2/32, 10.98.0.0/16\nEndpoint = 192.0.2.2:51820");
    let routes = |lines: &str| {
        let file = hosts.configuration(1, lines, &peer);
        let mut running = Running::start(&hosts, &hosts.a, &file);
        let device = "grep 'dev tow1' | grep -v -e 'table local' -e multicast -e fe80 | sed 's/ metric.*//; s/ proto kernel.*//'";
        let routes = hosts
            .a
            .sh(&format!("ip -4 route show table all | {device}; ip -6 route show table all | {device}"));
        let rules = hosts.a.sh("ip rule; ip -6 rule").matches("suppress").count();
        assert!(hosts.down("tow1").status.success() && running.wait().success());
        let mut routes: Vec<String> = routes.lines().map(|line| line.trim().to_owned()).collect();
        routes.sort();
        (routes, rules)
    };
    let connected = ["10.99.0.0/24 dev tow1", "fd99::/64 dev tow1"];
    assert_eq!(routes("Table = off"), (connected.map(str::to_owned).to_vec(), 0));
    let (found, rules) = routes("Table = 1234");
    let expected = [
        "10.98.0.0/16 dev tow1 table 1234 scope link",
        connected[0],
        "10.99.0.2 dev tow1 table 1234 scope link",
        "default dev tow1 table 1234",
        "default dev tow1 table 1234 scope link",
        connected[1],
    ];
    assert_eq!((found, rules), (expected.map(str::to_owned).to_vec(), 0));
    // A table that has routes is left to whom it belongs.
    hosts.a.sh("ip route add 192.0.2.77/32 dev left table 51820; ip -6 route add 2001:db8::77/128 dev left table 51821");
    let (found, rules) = routes("Table = auto");
    let expected = [
        "10.98.0.0/16 dev tow1 scope link",
        connected[0],
        "default dev tow1 table 51822",
        "default dev tow1 table 51822 scope link",
        connected[1],
    ];
    assert_eq!((found, rules), (expected.map(str::to_owned).to_vec(), 2));
}

#[test]
fn two_default_routes_go_one_by_one() {
    let Some(hosts) = hosts("two_default_routes_go_one_by_one") else { return };
    let before = hosts.state();
    let start = |name: &str, number: u8| {
        let text = fs::read_to_string(hosts.configuration(
            number,
            "",
            &format!("{DEFAULT}\nEndpoint = 192.0.2.2:1"),
        ))
        .unwrap();
        let file = hosts.file(name, &text.replace("ListenPort = 51820\n", ""));
        Running::start(&hosts, &hosts.a, &file)
    };
    let mark = || hosts.a.sh("cat /proc/sys/net/ipv4/conf/all/src_valid_mark").trim().to_owned();
    let mut one = start("o=n+e.conf", 1);
    assert!(!one.log().contains(" WARN "), "{}", one.log());
    let with_one = hosts.a.sh("ip rule; ip -6 rule");
    let mut two = start("two.conf", 2);
    assert!(hosts.a.sh("ip rule").contains("lookup 51821"));
    assert!(hosts.down("two").status.success() && two.wait().success());
    assert_eq!(hosts.a.sh("ip rule; ip -6 rule"), with_one);
    let mut two = start("two.conf", 2);
    // The older one first: what the newer one has stays.
    assert!(hosts.down("o=n+e").status.success() && one.wait().success());
    assert!(hosts.a.sh("ip rule; ip -6 rule").matches("lookup 51821").count() == 2);
    assert!(["1", ""].contains(&mark().as_str()));
    assert!(hosts.down("two").status.success() && two.wait().success());
    for name in ["o=n+e.conf", "two.conf", "tow1.conf", "tow2.conf"] {
        let _ = fs::remove_file(hosts.path("conf").join(name));
    }
    assert_eq!(hosts.state(), before);
}

#[test]
fn the_file_is_saved_as_the_tunnel_is_set_in_the_end() {
    let Some(hosts) = hosts("the_file_is_saved_as_the_tunnel_is_set_in_the_end") else { return };
    // Nobody has told the callee where its peer is.
    let file = hosts.configuration(
        2,
        "SaveConfig = true",
        "#towpath is better\nAllowedIPs = 10.99.0.1/32, fd99::1/128",
    );
    // Its socket for `wg` is not in a folder of the test's own, where other tests have theirs.
    let file = hosts.file("saved.conf", &fs::read_to_string(&file).unwrap());
    let mut callee = Running::start(&hosts, &hosts.b, &file);
    if callee.log().contains("does not see this tunnel") {
        return left_out("SaveConfig: root, who may write to /var/run/wireguard");
    }
    let caller =
        hosts.configuration(1, "ListenPort = 40001", "AllowedIPs = 10.99.0.2/32\nEndpoint = 192.0.2.2:51820");
    let _caller = Running::start(&hosts, &hosts.a, &caller);
    echo(&hosts, "10.99.0.2:9");
    let before = fs::read_to_string(&file).unwrap();
    kill_process(callee.pid(), Signal::TERM).unwrap();
    assert!(callee.wait().success(), "{}", callee.log());
    let after = fs::read_to_string(&file).unwrap();
    assert!(after.contains("Endpoint = 192.0.2.1:40001\n"), "{after}");
    let own = ["Endpoint = 192.0.2.1:40001", "#towpath is better", ""];
    let without = |text: &str| text.lines().filter(|line| !own.contains(line)).collect::<Vec<_>>().join("\n");
    assert_eq!(without(&after), without(&before));
    assert!(after.contains("#towpath is better\n"));
}
