//! `towpath up` and `towpath down` and what they do to the host, in network namespaces of their own: default route, rules,
//! name servers, hooks, and that all of it is taken back, also after SIGKILL. Needs user namespaces, an open /dev/net/tun and
//! iproute2's `ip`; without them each test says that it is left out.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]
#![expect(clippy::disallowed_methods, reason = "a test starts programs and waits for them")]

#[path = "updown_namespace/memory.rs"]
mod memory;
#[path = "support/hosts.rs"]
mod on_hosts;
#[path = "support/unwritable.rs"]
mod unwritable;

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use on_hosts::user_namespace::left_out::left_out;
use on_hosts::{Cable, Namespace, PATIENCE, Running, TOWPATH, shell};
use rustix::process::Signal;

/// Hosts `a` and `b`. Beside the cable between them, which is 192.0.2.0/24 and 2001:db8::/64, `b` has 198.51.100.1 and
/// 2001:db8:5::1, which `a` reaches by its default route only, and 203.0.113.9 and 2001:db8:9::9.
struct Hosts {
    a: Namespace,
    b: Namespace,
    folder: tempfile::TempDir,
}

/// Answers `None` where the test cannot run, and outside of the namespaces that it is then run in.
fn hosts(test: &str) -> Option<Hosts> {
    if !shell("command -v ip").status.success() {
        left_out("routes and rules: apt-get install iproute2");
        return None;
    }
    let Cable { a, b } = Cable::enter(test)?;
    for (side, far) in [(&a, 2), (&b, 1)] {
        side.sh(&format!(
            "ip route add default via 192.0.2.{far}; ip -6 route add default via 2001:db8::{far}"
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
        let port = if number == 2 { "ListenPort = 51820\n" } else { "" };
        let text = on_hosts::configuration(number, &format!("{port}{interface}"), peer);
        self.file(&format!("tow{number}.conf"), &text)
    }

    /// `b`'s side of every tunnel here.
    fn callee(&self) -> Running {
        self.start(&self.b, &self.configuration(2, "", "AllowedIPs = 10.99.0.1/32, fd99::1/128"))
    }

    /// Starts a tunnel and waits until it is ready.
    fn start(&self, side: &Namespace, file: &Path) -> Running {
        let mut running = self.spawn(side, file);
        running.wait_for(" ready ");
        running
    }

    fn spawn(&self, side: &Namespace, file: &Path) -> Running {
        self.run(side, self.towpath(&["up", file.to_str().unwrap(), "--io", "suspend"]))
    }

    fn run(&self, side: &Namespace, command: Command) -> Running {
        let number = fs::read_dir(self.path("logs")).unwrap().count();
        Running::spawn(side, command, self.path("logs").join(number.to_string()))
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

fn killed(running: &mut Running) {
    running.signal(Signal::KILL);
    running.wait();
}

/// Sends a datagram from `a` to an address of `b` and back; where it came from.
fn echo(hosts: &Hosts, to: &str) -> SocketAddr {
    echo_of(hosts, to, 5)
}

/// The same with so many bytes.
fn echo_of(hosts: &Hosts, to: &str, len: usize) -> SocketAddr {
    let to: SocketAddr = to.parse().unwrap();
    let theirs = hosts.b.run(|| UdpSocket::bind(to).unwrap());
    let any: SocketAddr = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse().unwrap();
    let ours = hosts.a.run(|| UdpSocket::bind(any).unwrap());
    for socket in [&theirs, &ours] {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
    }
    let mut buffer = [0; 100];
    ours.send_to(&vec![0; len], to).unwrap();
    let (received, from) = theirs.recv_from(&mut [0; 4_000]).unwrap();
    assert_eq!(received, len);
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
        let mut running = hosts.start(&hosts.a, &file);
        assert_eq!(echo(&hosts, "203.0.113.9:9").ip().to_string(), "10.99.0.1", "{endpoint}");
        assert_eq!(echo(&hosts, "[2001:db8:9::9]:9").ip().to_string(), "fd99::1", "{endpoint}");
        // What is for the host of the endpoint goes by the tunnel as all else, fragments and tunnels of others included.
        let outside: SocketAddr = endpoint.parse().unwrap();
        let service = SocketAddr::new(outside.ip(), 9).to_string();
        assert!(["10.99.0.1", "fd99::1"].contains(&&*echo_of(&hosts, &service, 3_000).ip().to_string()));
        let any = if outside.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let nested = hosts.a.run(|| UdpSocket::bind(any).unwrap());
        nested.send_to(b"another tunnel", outside).unwrap();
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
        assert!(!running.log().contains("routing_loop"), "{}", running.log());
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
        let mut running = hosts.start(&hosts.a, &file);
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
    let mut second = hosts.spawn(&hosts.a, &file);
    assert_eq!(second.wait().code(), Some(1), "{}", second.log());
    let told = format!("tow1 is up already, by process {}: run `towpath down tow1` first", first.pid());
    assert!(second.log().contains(&told), "{}", second.log());
    assert_eq!((rules(), ran().as_str()), (2, "up tow1\n"));
    assert!(hosts.path("names").exists());

    // Nor does anything leave beside the tunnel when its interface is down, or gone with the process.
    let ways =
        || ["203.0.113.9", "2001:db8:9::9"].map(|to| hosts.a.run(|| shell(&format!("ip route get {to}"))));
    assert!(
        ways().iter().all(|way| String::from_utf8_lossy(&way.stdout).contains("dev tow1")),
        "{:?}",
        ways()
    );
    hosts.a.sh("ip link set tow1 down");
    assert!(ways().iter().all(|way| !way.status.success()), "{:?}", ways());
    killed(&mut first);
    assert_eq!(rules(), 2, "nobody has taken them back");
    assert!(ways().iter().all(|way| !way.status.success()), "{:?}", ways());
    let down = hosts.down(file.to_str().unwrap());
    assert!(down.status.success(), "{down:?}");
    assert!(String::from_utf8_lossy(&down.stderr).contains("was killed"), "{down:?}");
    assert_eq!(ran(), "up tow1\npre-down tow1\npost-down tow1\n");
    fs::remove_file(&hooks).unwrap();
    fs::remove_file(hosts.path("calls")).unwrap();
    assert_eq!(hosts.state(), before);

    let mut first = start();
    killed(&mut first);
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
    let lines = "DNS = 10.99.0.2, example.org\nDNS = fd99::2 corp.example\nPostUp = true";
    let file = hosts.configuration(1, lines, "AllowedIPs = 10.99.0.2/32");
    let mut refused = hosts.spawn(&hosts.a, &file);
    assert_eq!(refused.wait().code(), Some(1));
    assert!(refused.log().contains("apt-get install openresolv"), "{}", refused.log());

    let calls = || fs::read_to_string(hosts.path("calls")).unwrap();
    hosts.stub("resolvectl", &format!("echo \"$@\" >> {}", hosts.path("calls").display()));
    let mut running = hosts.start(&hosts.a, &file);
    let set = "dns tow1 10.99.0.2 fd99::2\ndomain tow1 ~. example.org corp.example\n";
    assert_eq!(calls(), set);
    // From then on what is above the interface is taken back before the interface goes, with which resolved forgets it by itself.
    running.wait_for("PostUp: true");
    assert!(hosts.down("tow1").status.success() && running.wait().success());
    assert_eq!(calls(), format!("{set}revert tow1\n"), "{}", running.log());

    // Where both are there, resolvconf is asked, as wg-quick does.
    fs::remove_file(hosts.path("calls")).unwrap();
    hosts.stub("resolvconf", &names_stub(&hosts));
    let mut running = hosts.start(&hosts.a, &file);
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
    let mut refused = hosts.spawn(&hosts.a, &file);
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
    let mut running = hosts.run(&hosts.a, command);
    let told = || {
        let mut message = [0; 200];
        let len = manager.recv(&mut message).unwrap();
        String::from_utf8_lossy(&message[..len]).into_owned()
    };
    assert!(told().starts_with("READY=1\n"), "{}", running.log());
    let up = "PreUp tow1 absent\nPostUp tow1 UP,\nbash\n";
    assert_eq!(fs::read_to_string(&file).unwrap(), up, "before it is ready: {}", running.log());
    running.signal(Signal::TERM);
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
        let mut running = hosts.spawn(&hosts.a, &file);
        if let Some(signal) = signal {
            running.wait_for("Up: ");
            running.signal(signal);
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
fn a_closed_terminal_ends_the_tunnel_unless_nohup_says_otherwise() {
    let Some(hosts) = hosts("a_closed_terminal_ends_the_tunnel_unless_nohup_says_otherwise") else { return };
    hosts.stub("resolvconf", &names_stub(&hosts));
    let file = hosts.configuration(1, "DNS = 10.99.0.2", &format!("{DEFAULT}\nEndpoint = 192.0.2.2:51820"));
    let before = hosts.state();
    let start = |how: &str| {
        let mut command = hosts.towpath(&["up", file.to_str().unwrap(), "--io", "suspend"]);
        let words: Vec<_> = command.get_args().map(std::ffi::OsStr::to_owned).collect();
        let variables: Vec<_> = command
            .get_envs()
            .filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned())))
            .collect();
        command = Command::new("env");
        command.arg(how).arg(TOWPATH).args(words).envs(variables).env_remove("RUST_LOG").stdin(Stdio::null());
        let mut running = hosts.run(&hosts.a, command);
        running.wait_for(" ready ");
        running
    };
    let end = |running: &mut Running| {
        assert!(running.wait().success(), "{}", running.log());
        fs::remove_file(hosts.path("calls")).unwrap();
        assert_eq!(hosts.state(), before);
    };
    let mut running = start("--default-signal=HUP");
    running.signal(Signal::HUP);
    end(&mut running);
    let mut running = start("--ignore-signal=HUP");
    running.signal(Signal::HUP);
    // What the signal would have made it do comes before the answer to this.
    assert!(hosts.a.sh("ip rule").contains("suppress_prefixlength"));
    std::thread::sleep(Duration::from_millis(300));
    assert!(running.child.try_wait().unwrap().is_none(), "{}", running.log());
    assert!(hosts.path("names").exists() && !running.log().contains("ledger"), "{}", running.log());
    assert!(hosts.down("tow1").status.success());
    end(&mut running);
}

#[test]
fn a_log_that_cannot_be_written_is_lost_and_nothing_else_is() {
    let Some(hosts) = hosts("a_log_that_cannot_be_written_is_lost_and_nothing_else_is") else { return };
    let ran = hosts.path("conf").join("ran");
    let hooks =
        ["PostUp", "PreDown", "PostDown"].map(|key| format!("{key} = echo {key} >> {}", ran.display()));
    let file = hosts.configuration(1, &hooks.join("\n"), &format!("{DEFAULT}\nEndpoint = 192.0.2.2:51820"));
    let before = hosts.state();
    for output in [unwritable::full_disk, unwritable::pipe, unwritable::terminal] {
        let arguments = ["up", file.to_str().unwrap(), "--io", "suspend", "--admin", "127.0.0.1:9642"];
        let mut command = hosts.towpath(&arguments);
        command.stdout(output()).stderr(output());
        let mut child = hosts.a.run(|| command.spawn().unwrap());
        until_text(&ran, "PostUp\n");
        let metrics = hosts.a.run(|| {
            let mut stream = TcpStream::connect("127.0.0.1:9642").unwrap();
            stream
                .write_all(b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
                .unwrap();
            std::io::read_to_string(stream).unwrap()
        });
        let lost = metrics.lines().find_map(|line| line.strip_prefix("towpath_log_lines_lost_total "));
        assert!(lost.unwrap().parse::<u64>().unwrap() >= 2, "{metrics}");
        let down = hosts.down("tow1");
        let status = child.wait().unwrap();
        assert!(down.status.success() && status.success(), "{status} {down:?}");
        assert_eq!(fs::read_to_string(&ran).unwrap(), "PostUp\nPreDown\nPostDown\n");
        fs::remove_file(&ran).unwrap();
        assert_eq!(hosts.state(), before);
    }

    // A terminal that is closed while the tunnel is its foreground process, which then has a signal and no log any more.
    let (terminal, end) = unwritable::open_terminal();
    let program = hosts.towpath(&["up", file.to_str().unwrap(), "--io", "suspend"]);
    // Under nohup the signal would be ignored, by tests and program alike.
    let mut command = Command::new("env");
    command
        .args(["--default-signal=HUP", "setsid", "--ctty", TOWPATH])
        .args(program.get_args())
        .env_remove("RUST_LOG");
    command.envs(program.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.stdin(end.try_clone().unwrap()).stdout(end.try_clone().unwrap()).stderr(end);
    let mut child = hosts.a.run(|| command.spawn().unwrap());
    drop(command);
    until_text(&ran, "PostUp\n");
    drop(terminal);
    let status = child.wait().unwrap();
    assert_eq!(fs::read_to_string(&ran).unwrap(), "PostUp\nPreDown\nPostDown\n");
    assert!(status.success(), "{status}");
    fs::remove_file(&ran).unwrap();
    assert_eq!(hosts.state(), before);
}

/// Waits until a file holds this.
fn until_text(file: &Path, text: &str) {
    let start = Instant::now();
    while !fs::read_to_string(file).is_ok_and(|found| found == text) {
        assert!(start.elapsed() < PATIENCE, "{text:?} is not in {}", file.display());
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_signal_does_not_wait_for_a_silent_name_server() {
    let Some(hosts) = hosts("a_signal_does_not_wait_for_a_silent_name_server") else { return };
    let server = hosts.b.run(|| UdpSocket::bind("192.0.2.2:53").unwrap());
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    let (names, ran) = (hosts.file("resolv.conf", "nameserver 192.0.2.2\n"), hosts.path("conf").join("ran"));
    // Inside the namespace of this test, as everything.
    assert!(shell(&format!("mount --bind {} /etc/resolv.conf", names.display())).status.success());
    let lines = format!("PreUp = true\nPostDown = echo down >> {}", ran.display());
    let file = hosts.configuration(1, &lines, "AllowedIPs = 10.99.0.2/32\nEndpoint = silent.example:51820");
    let mut running = hosts.spawn(&hosts.a, &file);
    let (len, _) =
        server.recv_from(&mut [0; 512]).unwrap_or_else(|error| panic!("{error}: {}", running.log()));
    assert!(len > 12);
    let start = Instant::now();
    running.signal(Signal::TERM);
    assert!(running.wait().success(), "{}", running.log());
    // The resolver waits for five seconds, and then asks once more.
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
    assert_eq!(fs::read_to_string(&ran).unwrap(), "down\n");
}

/// As wg-quick(8) shows it; and an endpoint that has only an address of its link.
#[test]
fn a_hook_sets_the_key_and_a_neighbour_needs_no_other_address() {
    let Some(hosts) = hosts("a_hook_sets_the_key_and_a_neighbour_needs_no_other_address") else { return };
    if !shell("command -v wg").status.success() {
        return left_out("a key that a hook sets: apt-get install wireguard-tools");
    }
    hosts.b.sh("ip addr add fe80::2/64 dev right nodad");
    hosts.a.sh("ip addr add fe80::1/64 dev left nodad");
    let peer = "AllowedIPs = 10.99.0.2/32\nEndpoint = [fe80::2%left]:51820";
    let text = fs::read_to_string(hosts.configuration(1, "", peer)).unwrap();
    let (line, key) =
        text.lines().find_map(|line| Some((line, line.strip_prefix("PrivateKey = ")?))).unwrap();
    let key = hosts.file("key", key);
    // Its socket for `wg` is not in a folder of the test's own, where other tests have theirs.
    let file = hosts.file(
        "hooked.conf",
        &text.replace(
            line,
            &format!("PostUp = wg set %i private-key <(cat {})\nPostUp = true", key.display()),
        ),
    );
    let _callee = hosts.callee();
    let mut running = hosts.spawn(&hosts.a, &file);
    running.wait_for("interface is up");
    if running.log().contains("does not see this tunnel") {
        return left_out("a key that a hook sets: root, who may write to /var/run/wireguard");
    }
    // The key is set when the next command is run.
    running.wait_for("PostUp: true");
    echo(&hosts, "10.99.0.2:9");
    assert!(hosts.down("hooked").status.success() && running.wait().success(), "{}", running.log());

    let gone = hosts.configuration(1, "", &peer.replace("%left", "%gone"));
    let mut waiting = hosts.start(&hosts.a, &gone);
    waiting.wait_for("[fe80::2%gone]:51820 has no address (cannot find interface gone: ");
    hosts.a.sh("ip link add gone type veth peer name other; ip link set gone up");
    waiting.wait_for("[fe80::2%gone]:51820 is looked for at [fe80::2%");
    waiting.signal(Signal::TERM);
    assert!(waiting.wait().success(), "{}", waiting.log());
}

#[test]
fn table_and_mark_are_as_they_are_written() {
    let Some(hosts) = hosts("table_and_mark_are_as_they_are_written") else { return };
    let peer = format!("{DEFAULT}, 10.99.0.2/32, 10.98.0.0/16\nEndpoint = 192.0.2.2:51820");
    let routes = |lines: &str| {
        let file = hosts.configuration(1, lines, &peer);
        let mut running = hosts.start(&hosts.a, &file);
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
        hosts.start(&hosts.a, &file)
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
    let mut callee = hosts.start(&hosts.b, &file);
    let caller =
        hosts.configuration(1, "ListenPort = 40001", "AllowedIPs = 10.99.0.2/32\nEndpoint = 192.0.2.2:51820");
    let _caller = hosts.start(&hosts.a, &caller);
    echo(&hosts, "10.99.0.2:9");
    let before = fs::read_to_string(&file).unwrap();
    callee.signal(Signal::TERM);
    assert!(callee.wait().success(), "{}", callee.log());
    let after = fs::read_to_string(&file).unwrap();
    assert!(after.contains("Endpoint = 192.0.2.1:40001\n"), "{after}");
    let own = ["Endpoint = 192.0.2.1:40001", "#towpath is better", ""];
    let without = |text: &str| text.lines().filter(|line| !own.contains(line)).collect::<Vec<_>>().join("\n");
    assert_eq!(without(&after), without(&before));
    assert!(after.contains("#towpath is better\n"));
}

#[test]
fn a_second_signal_keeps_no_later_hook_from_being_run() {
    let Some(hosts) = hosts("a_second_signal_keeps_no_later_hook_from_being_run") else { return };
    let (ran, go) = (hosts.path("conf").join("ran"), hosts.path("conf").join("go"));
    // What comes while it is stopped is seen when this hook is over.
    let pre_down =
        format!("echo pre-down >> {}; until test -e {}; do sleep 0.02; done", ran.display(), go.display());
    let lines = format!(
        "PreDown = {pre_down}\nPostUp = echo up >> {0}\nPreUp = true\nPostDown = sleep 0.2; echo post-down >> {0}",
        ran.display()
    );
    let file = hosts.configuration(1, &lines, &format!("{DEFAULT}\nEndpoint = 192.0.2.2:51820"));
    let before = hosts.state();
    let mut running = hosts.start(&hosts.a, &file);
    // Before PostUp there is nothing for PreDown to undo.
    until_text(&ran, "up\n");
    running.signal(Signal::TERM);
    until_text(&ran, "up\npre-down\n");
    running.signal(Signal::STOP);
    fs::write(&go, "").unwrap();
    let ended = format!(
        "grep -lE '^PPid:\\s+{}$' /proc/[0-9]*/status | xargs -r grep -q '^State:.Z'",
        running.pid().as_raw_nonzero()
    );
    let start = Instant::now();
    while !shell(&ended).status.success() {
        assert!(start.elapsed() < PATIENCE, "the hook does not end");
        std::thread::sleep(Duration::from_millis(5));
    }
    running.signal(Signal::TERM);
    running.signal(Signal::INT);
    running.signal(Signal::CONT);
    assert!(running.wait().success(), "{}", running.log());
    assert_eq!(fs::read_to_string(&ran).unwrap(), "up\npre-down\npost-down\n", "{}", running.log());
    fs::remove_file(&go).unwrap();
    fs::remove_file(&ran).unwrap();
    assert_eq!(hosts.state(), before);
}

#[test]
fn a_tunnel_whose_interface_somebody_deletes_ends_in_order() {
    let Some(hosts) = hosts("a_tunnel_whose_interface_somebody_deletes_ends_in_order") else { return };
    let ran = hosts.path("conf").join("ran");
    let lines = format!("PostUp = true\nPreUp = true\nPostDown = echo post-down >> {}", ran.display());
    let file = hosts.configuration(1, &lines, &format!("{DEFAULT}\nEndpoint = 192.0.2.2:51820"));
    let before = hosts.state();
    for io in ["suspend", "uring"] {
        let mut running = hosts.run(&hosts.a, hosts.towpath(&["up", file.to_str().unwrap(), "--io", io]));
        running.wait_for(" ready ");
        hosts.a.sh("ip link del tow1");
        let status = running.wait();
        let log = running.log();
        assert!(status.success() && log.contains("the interface was deleted"), "{status}: {log}");
        assert!(log.contains("INFO  ledger "), "{log}");
        assert_eq!(fs::read_to_string(&ran).unwrap(), "post-down\n");
        fs::remove_file(&ran).unwrap();
        assert_eq!(hosts.state(), before);
    }
}

#[test]
fn an_address_of_a_family_that_is_off_names_the_setting() {
    let Some(hosts) = hosts("an_address_of_a_family_that_is_off_names_the_setting") else { return };
    hosts.a.sh("echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6");
    let file = hosts.configuration(1, "", "AllowedIPs = 10.99.0.2/32");
    let mut refused = hosts.spawn(&hosts.a, &file);
    assert_eq!(refused.wait().code(), Some(1));
    let log = refused.log();
    assert!(log.contains("tow1: cannot add address fd99::1/64"), "{log}");
    assert!(log.contains("net.ipv6.conf.all.disable_ipv6=0") && !log.contains("CAP_NET_ADMIN"), "{log}");
}

/// Its socket for `wg` is not in a folder of the test's own, so that the interface has a name of its own.
#[test]
fn a_reload_sets_the_tunnel_to_its_file_while_packets_pass() {
    let Some(hosts) = hosts("a_reload_sets_the_tunnel_to_its_file_while_packets_pass") else { return };
    let _callee = hosts.callee();
    let peer = "AllowedIPs = 10.99.0.2/32\nEndpoint = 192.0.2.2:51820";
    let text = fs::read_to_string(hosts.configuration(1, "", peer)).unwrap();
    let key = text.lines().find_map(|line| line.strip_prefix("PrivateKey = ")).unwrap();
    hosts.file("again.key", key);
    let text = text.replace(&format!("PrivateKey = {key}"), "PrivateKeyFile = again.key");
    let file = hosts.file("again.conf", &text);
    let mut running = hosts.spawn(&hosts.a, &file);
    running.wait_for(" ready ");
    if running.log().contains("does not see this tunnel") {
        return left_out("a reload: root, who may write to /var/run/wireguard");
    }
    echo(&hosts, "10.99.0.2:9");
    let ask =
        |command: &str| hosts.a.run(|| hosts.towpath(&[command, file.to_str().unwrap()]).output().unwrap());
    let told = |output: &Output| String::from_utf8_lossy(&output.stderr).into_owned();
    let port = || {
        let text = String::from_utf8(ask("strip").stdout).unwrap();
        text.lines().find_map(|line| line.strip_prefix("ListenPort = ")?.parse::<u16>().ok()).unwrap()
    };
    let chosen = port();
    let reload = ask("reload");
    assert!(reload.status.success(), "{reload:?}");
    assert_eq!(told(&reload), "towpath: again: 0 peers added, 0 changed, 0 removed\n");

    // By its name alone it takes the file it was brought up with, which lies where no name is looked up.
    let by_name = |command: &str| hosts.a.run(|| hosts.towpath(&[command, "again"]).output().unwrap());
    let reload = by_name("reload");
    assert_eq!(told(&reload), "towpath: again: 0 peers added, 0 changed, 0 removed\n");
    assert_eq!(by_name("strip").stdout, ask("strip").stdout);
    // A tunnel of the same name in another network namespace is another one.
    let elsewhere = hosts.b.run(|| hosts.towpath(&["reload", file.to_str().unwrap()]).output().unwrap());
    assert!(elsewhere.status.code() == Some(1), "{elsewhere:?}");
    assert!(told(&elsewhere).contains("is in another network namespace"), "{elsewhere:?}");

    // Another prefix of the same peer, and one peer more.
    let more =
        "\n[Peer]\nPublicKey = xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=\nAllowedIPs = 10.77.0.0/16\n";
    let changed = text.replace("10.99.0.2/32", "10.99.0.2/32, 203.0.113.9/32") + more;
    hosts.file("again.conf", &changed.replace("[Interface]", "[Interface]\nListenPort = 41234"));
    let reload = ask("reload");
    assert_eq!(told(&reload), "towpath: again: 1 peer added, 1 changed, 0 removed, another port\n");
    assert!(chosen != port() && port() == 41_234);
    let routes = hosts.a.sh("ip route show dev again");
    assert!(routes.contains("10.77.0.0/16") && routes.contains("203.0.113.9 "), "{routes}");
    assert_eq!(echo(&hosts, "203.0.113.9:9").ip().to_string(), "10.99.0.1");
    assert_eq!(running.log().matches("handshake complete").count(), 1, "{}", running.log());

    // What is for the start only is told of; the rest is taken over, also beside a name without an address.
    let start =
        changed.replace("10.99.0.1/24", "10.99.0.7/24").replace("[Interface]", "[Interface]\nMTU = 1400");
    hosts.file(
        "again.conf",
        &start.replace("203.0.113.9/32", "203.0.113.8/32").replace("192.0.2.2:", "nobody.invalid:"),
    );
    let reload = ask("reload");
    assert!(reload.status.success(), "{reload:?}");
    let lines = told(&reload);
    assert!(
        lines.contains("nobody.invalid:51820: ") && lines.contains("the peer stays at the address it has"),
        "{lines}"
    );
    assert!(
        lines.contains("\ntowpath: again: the file has other values of Address, MTU now: they take towpath down again, and up"),
        "{lines}"
    );
    assert!(lines.ends_with("\ntowpath: again: 0 peers added, 1 changed, 0 removed\n"), "{lines}");
    echo(&hosts, "10.99.0.2:9");

    // By what `wg` takes of the file.
    if shell("command -v wg").status.success() {
        hosts.file("again.conf", &text);
        let script =
            format!("towpath strip {} > stripped; wg syncconf again stripped; wg show again", file.display());
        let folder = hosts.path("conf");
        let run = hosts.a.run(|| {
            let own = Path::new(TOWPATH).parent().unwrap().display();
            shell(&format!("cd {}; PATH={own}:$PATH; {script}", folder.display()))
        });
        let shown = String::from_utf8_lossy(&run.stdout);
        assert!(run.status.success() && shown.contains("listening port: 41234"), "{run:?}");
        assert!(!shown.contains("10.77") && shown.matches("peer: ").count() == 1, "{shown}");
        echo(&hosts, "10.99.0.2:9");
    } else {
        left_out("wg syncconf of a stripped file: apt-get install wireguard-tools");
    }

    // What is wrong in the file changes nothing.
    hosts.file("again.conf", "[Interface]\nnonsense\n");
    let refused = ask("reload");
    assert!(refused.status.code() == Some(2) && told(&refused).contains("again.conf:2: "), "{refused:?}");
    echo(&hosts, "10.99.0.2:9");

    // Killed, it leaves a socket that nobody serves, which goes with the rest.
    let socket = Path::new("/var/run/wireguard/again.sock");
    killed(&mut running);
    assert!(socket.exists());
    assert!(hosts.down("again").status.success());
    assert!(!socket.exists());
    let gone = by_name("reload");
    assert!(told(&gone).contains("/etc/towpath/again.conf"), "nobody runs it any more: {gone:?}");
    let gone = ask("reload");
    assert_eq!(gone.status.code(), Some(2), "the file is still wrong: {gone:?}");
    hosts.file("again.conf", &text);
    let gone = ask("reload");
    assert!(gone.status.code() == Some(1) && told(&gone).contains("towpath up again"), "{gone:?}");
}

/// Whoever has mistyped a command sees what has become of it.
#[test]
fn an_interface_that_is_made_in_the_background_is_told_of_on_a_terminal() {
    let Some(hosts) = hosts("an_interface_that_is_made_in_the_background_is_told_of_on_a_terminal") else {
        return;
    };
    assert!(shell("mount -t tmpfs tmpfs /run; mkdir -p /run/wireguard").status.success());
    let (terminal, end) = unwritable::open_terminal();
    let mut command = hosts.towpath(&["told9"]);
    command.stdout(Stdio::null()).stderr(end);
    let status = hosts.a.run(|| command.status().unwrap());
    drop(command);
    let mut text = [0; 200];
    let len = rustix::io::read(&terminal, &mut text).unwrap();
    let text = String::from_utf8_lossy(&text[..len]);
    assert!(status.success() && text.contains("the interface told9 is made"), "{status}: {text}");
    hosts.a.sh("ip link del told9");
}

#[test]
fn only_the_own_tunnel_is_saved_whoever_serves_its_name() {
    let Some(hosts) = hosts("only_the_own_tunnel_is_saved_whoever_serves_its_name") else { return };
    // Where `wg` looks, of this test's own; network namespaces share it.
    assert!(shell("mount -t tmpfs tmpfs /run; mkdir -p /run/wireguard").status.success());
    let one = fs::read_to_string(hosts.configuration(1, "", "AllowedIPs = 10.99.0.2/32")).unwrap();
    let two =
        fs::read_to_string(hosts.configuration(2, "SaveConfig = true", "AllowedIPs = 10.99.0.1/32")).unwrap();
    fs::create_dir(hosts.path("conf").join("other")).unwrap();
    let (other, file) = (hosts.file("other/same.conf", &one), hosts.file("same.conf", &two));
    let mut others = hosts.start(&hosts.b, &other);
    assert!(!others.log().contains("does not see this tunnel"), "{}", others.log());
    let mut running = hosts.start(&hosts.a, &file);
    let log = running.log();
    let told = log.lines().find(|line| line.contains("does not see this tunnel")).unwrap_or_default();
    assert!(told.contains("WARN") && told.contains("use another interface name"), "{log}");
    let down = hosts.down("same");
    assert!(down.status.success() && running.wait().success(), "{down:?} {}", running.log());
    assert_eq!(fs::read_to_string(&file).unwrap().replace("\n\n", "\n"), two.replace("\n\n", "\n"));
    others.signal(Signal::TERM);
    assert!(others.wait().success(), "{}", others.log());

    // As `wg set` does it; the file has neither port nor mark.
    let file = hosts.configuration(1, "SaveConfig = true", "AllowedIPs = 10.99.0.2/32");
    let mut running = hosts.start(&hosts.a, &file);
    let mut wg = UnixStream::connect("/var/run/wireguard/tow1.sock").unwrap();
    wg.write_all(b"set=1\nfwmark=119\n\n").unwrap();
    let mut answer = [0; 64];
    let len = wg.read(&mut answer).unwrap();
    assert_eq!(&answer[..len], b"errno=0\n\n");
    let down = hosts.down("tow1");
    assert!(down.status.success() && running.wait().success(), "{down:?} {}", running.log());
    let saved = fs::read_to_string(&file).unwrap();
    assert!(saved.contains("\nFwMark = 119\n") && saved.contains("\nListenPort = "), "{saved}");
}

/// The kernel gives the inode of a namespace that is gone to the next one; what was killed there has another cookie noted.
#[test]
fn what_was_killed_in_a_namespace_that_is_gone_is_not_taken_back_in_another() {
    let Some(hosts) = hosts("what_was_killed_in_a_namespace_that_is_gone_is_not_taken_back_in_another")
    else {
        return;
    };
    let hook = hosts.path("conf").join("hook");
    let line = format!("PostDown = touch {}", hook.display());
    let file = hosts.configuration(1, &line, "AllowedIPs = 10.99.0.2/32");
    let leave_one = || {
        killed(&mut hosts.start(&hosts.a, &file));
        let mut journals = fs::read_dir(hosts.path("run")).unwrap();
        let journal = journals.next().unwrap().unwrap().path();
        let text = fs::read_to_string(&journal).unwrap();
        assert!(journals.next().is_none() && text.contains("\"namespace_cookie\":"), "{text}");
        fs::write(&journal, text.replace("\"namespace_cookie\":", "\"namespace_cookie\":9")).unwrap();
    };
    leave_one();
    let down = hosts.down("tow1");
    let told = String::from_utf8_lossy(&down.stderr);
    assert_eq!(down.status.code(), Some(1), "{down:?}");
    assert_eq!(told.matches("in a network namespace that is gone").count(), 1, "{told}");
    assert!(told.contains("tow1 is not up by `towpath up`"), "{told}");
    assert!(!hook.exists() && !hosts.path("run").exists());

    leave_one();
    let mut next = hosts.start(&hosts.a, &file);
    let log = next.log();
    assert_eq!(log.matches("in a network namespace that is gone").count(), 1, "{log}");
    assert!(!hook.exists() && !log.contains("it is taken back"), "{log}");
    assert!(hosts.down("tow1").status.success());
    assert!(next.wait().success() && hook.exists(), "{}", next.log());
}

#[test]
fn a_killed_one_is_not_saved_and_nothing_is_taken_from_who_has_its_name_now() {
    let Some(hosts) = hosts("a_killed_one_is_not_saved_and_nothing_is_taken_from_who_has_its_name_now")
    else {
        return;
    };
    assert!(shell("mount -t tmpfs tmpfs /run; mkdir -p /run/wireguard").status.success());
    let hooks = hosts.path("conf").join("hooks");
    let lines = format!(
        "SaveConfig = true\nPostUp = echo up >> {0}\nPreDown = echo pre-down >> {0}\nPostDown = echo post-down >> {0}",
        hooks.display()
    );
    let file = hosts.configuration(2, &lines, "AllowedIPs = 10.99.0.1/32");
    let text = fs::read_to_string(&file).unwrap();
    let mut running = hosts.start(&hosts.a, &file);
    let start = Instant::now();
    while !fs::read_to_string(&hooks).is_ok_and(|ran| ran == "up\n") {
        assert!(start.elapsed() < PATIENCE, "{}", running.log());
        std::thread::sleep(Duration::from_millis(5));
    }
    killed(&mut running);
    // Somebody else takes the name: the interface, and the socket that `wg` finds.
    let mut theirs = hosts.run(&hosts.a, hosts.towpath(&["tow2", "-f"]));
    let start = Instant::now();
    // The file of the killed one is there all the time, and nobody serves it.
    while UnixStream::connect("/run/wireguard/tow2.sock").is_err() {
        assert!(start.elapsed() < PATIENCE, "{}", theirs.log());
        std::thread::sleep(Duration::from_millis(5));
    }
    let down = hosts.down("tow2");
    let told = String::from_utf8_lossy(&down.stderr);
    assert_eq!(down.status.code(), Some(1), "{down:?}");
    assert!(told.contains("somebody else has made an interface of this name"), "{told}");
    assert_eq!(
        (fs::read_to_string(&hooks).unwrap().as_str(), fs::read_to_string(&file).unwrap()),
        ("up\n", text.clone())
    );
    let mut up = hosts.spawn(&hosts.a, &file);
    assert_eq!(up.wait().code(), Some(1), "{}", up.log());
    assert!(up.log().contains("tow2 is there already, and not by `towpath up`"), "{}", up.log());
    assert_eq!(fs::read_to_string(&hooks).unwrap(), "up\n");
    hosts.a.sh("ip link show tow2");

    theirs.signal(Signal::TERM);
    assert!(theirs.wait().success(), "{}", theirs.log());
    let down = hosts.down("tow2");
    let told = String::from_utf8_lossy(&down.stderr);
    assert!(down.status.success() && told.contains("stays as it was"), "{down:?}");
    assert_eq!(fs::read_to_string(&hooks).unwrap(), "up\npre-down\npost-down\n");
    assert_eq!(fs::read_to_string(&file).unwrap(), text);
}

#[test]
fn an_interface_of_somebody_else_is_left_as_it_is() {
    let Some(hosts) = hosts("an_interface_of_somebody_else_is_left_as_it_is") else { return };
    let hooks = hosts.path("conf").join("hooks");
    let lines = ["PreUp", "PostUp", "PreDown", "PostDown"]
        .map(|key| format!("{key} = echo {key} >> {}", hooks.display()))
        .join("\n");
    let file = hosts.configuration(1, &lines, "AllowedIPs = 10.99.0.2/32, 10.44.0.0/16");
    for make in [
        "ip tuntap add tow1 mode tun; ip link set tow1 mtu 1400",
        "ip link add tow1 type veth peer name other",
    ] {
        hosts.a.sh(&format!("{make}; ip addr add 10.31.0.1/24 dev tow1"));
        let show = || hosts.a.sh("ip addr show tow1; ip route show table all");
        let (before, state) = (show(), hosts.state());
        let down = hosts.down("tow1");
        let told = String::from_utf8_lossy(&down.stderr);
        assert!(down.status.code() == Some(1) && told.contains("RUNTIME_DIRECTORY"), "{told}");
        let mut refused = hosts.spawn(&hosts.a, &file);
        assert_eq!(refused.wait().code(), Some(1), "{}", refused.log());
        assert!(refused.log().contains("`ip link del tow1`"), "{}", refused.log());
        assert_eq!((show(), hosts.state()), (before, state));
        hosts.a.sh("ip link del tow1");
    }
    assert!(!hooks.exists(), "{}", fs::read_to_string(&hooks).unwrap());
    // One that comes at the last moment is not taken over either.
    let lines = format!("{lines}\nPreUp = ip tuntap add tow1 mode tun; ip link set tow1 mtu 1400");
    let file = hosts.configuration(1, &lines, "AllowedIPs = 10.99.0.2/32");
    let mut refused = hosts.spawn(&hosts.a, &file);
    assert_eq!(refused.wait().code(), Some(1), "{}", refused.log());
    assert!(refused.log().contains("it is there already"), "{}", refused.log());
    let left = hosts.a.sh("ip addr show tow1");
    assert!(left.contains("mtu 1400") && left.contains("DOWN") && !left.contains("10.99.0.1"), "{left}");
    assert_eq!(fs::read_to_string(&hooks).unwrap(), "PreUp\nPostDown\n");
}
