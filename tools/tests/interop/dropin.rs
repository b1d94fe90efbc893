//! `towpath wg0` in place of `wireguard-go wg0`: with `wg`, with `wg-quick`, and with wireguard-go at the other end.

use std::fs;
use std::io::Write as _;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use base64::Engine as _;
use dataplane::sys::namespace;
use dataplane::sys::tun::{Tun, TunOptions};

use super::paths;
use super::shutdown::ledger;
use super::world::{Process, World, command, keys, sh, try_sh};

const PATIENCE: Duration = Duration::from_secs(10);

/// Hosts `a` and `b`, and `towpath` as a command in a folder of its own.
struct Bench {
    world: World,
    bin: PathBuf,
}

impl Bench {
    fn new(world: World) -> Self {
        let bin = world.file(
            "towpath",
            &format!("#!/bin/sh\nexec {} __tunnel - $PPID \"$@\"\n", env!("CARGO_BIN_EXE_towpath-lab")),
        );
        sh(&format!("chmod 700 {}", bin.display()));
        let bin = bin.parent().unwrap().to_owned();
        Self { world, bin }
    }

    /// A shell command on a host, with `towpath` in its path.
    fn try_on(&self, host: &str, script: &str) -> Output {
        let script = script.replace('\'', "'\\''");
        try_sh(&format!(
            "export PATH={}:$PATH WG_QUICK_USERSPACE_IMPLEMENTATION=towpath; unset RUST_LOG
             ip netns exec {host} sh -ec '{script}'",
            self.bin.display()
        ))
    }

    /// The same, which must succeed; its output.
    fn on(&self, host: &str, script: &str) -> String {
        let output = self.try_on(host, script);
        let (text, errors) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{host}: {script}\n{text}\n{errors}");
        text.into_owned()
    }

    /// `towpath -f INTERFACE` on a host; it can be set when this returns.
    fn foreground(&self, host: &str, interface: &str) -> Process {
        self.foreground_with(host, interface, &[])
    }

    /// The same, with flags.
    fn foreground_with(&self, host: &str, interface: &str, flags: &[&str]) -> Process {
        let parent = std::process::id().to_string();
        let lab = env!("CARGO_BIN_EXE_towpath-lab");
        let mut program = vec!["env", "LOG_LEVEL=debug", "RUST_LOG=", lab, "__tunnel", "-", &parent];
        program.extend(["-f", interface]);
        program.extend(flags);
        self.world.start(host, &program, "ready")
    }

    /// wireguard-go on a host.
    fn wireguard_go(&self, host: &str, interface: &str) -> Process {
        let program = ["env", "LOG_LEVEL=verbose", "wireguard-go", "-f", interface];
        self.world.start(host, &program, "UAPI listener started")
    }
}

fn socket(interface: &str) -> PathBuf {
    PathBuf::from(format!("/var/run/wireguard/{interface}.sock"))
}

/// Waits until something is so.
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    #[expect(clippy::disallowed_methods, reason = "a test may read the clock")]
    let now = Instant::now;
    let deadline = now() + PATIENCE;
    while !is_so() {
        assert!(now() < deadline, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// One end: its keys and its configuration in the words of `wg setconf`.
struct End {
    private: String,
    public: String,
    /// Last byte of its inner addresses.
    number: u8,
}

impl End {
    fn new(number: u8) -> Self {
        let (private, public) = keys();
        Self { private, public, number }
    }

    fn interface(&self, port: u16) -> String {
        format!("[Interface]\nPrivateKey = {}\nListenPort = {port}\n", self.private)
    }

    /// This end as a peer.
    fn peer(&self, endpoint: Option<&str>, more: &str) -> String {
        let endpoint = endpoint.map_or_else(String::new, |endpoint| format!("Endpoint = {endpoint}\n"));
        format!(
            "[Peer]\nPublicKey = {0}\nAllowedIPs = 10.77.0.{1}/32, fd77::{1}/128\n{endpoint}{more}",
            self.public, self.number
        )
    }

    /// Addresses and up, as wg-quick does it.
    fn up(&self, interface: &str) -> String {
        format!(
            "ip addr add 10.77.0.{0}/24 dev {interface}; ip addr add fd77::{0}/64 dev {interface} nodad
             ip link set {interface} up",
            self.number
        )
    }
}

const PING: &str = "ping -c 3 -i 0.05 -W 5 10.77.0.2";

/// Received and sent bytes of the only peer of an interface.
fn transfer(bench: &Bench, host: &str, interface: &str) -> [u64; 2] {
    let text = bench.on(host, &format!("wg show {interface} transfer"));
    let figures: Vec<u64> = text.split_whitespace().skip(1).map(|word| word.parse().unwrap()).collect();
    figures.try_into().unwrap()
}

/// What one end has sent the other has received, handshakes and keepalives included: as long as nothing was lost.
fn counts_agree(bench: &Bench, interface_a: &str, interface_b: &str) {
    until("both ends count the same", || {
        let ([rx_a, tx_a], [rx_b, tx_b]) =
            (transfer(bench, "a", interface_a), transfer(bench, "b", interface_b));
        // A response and an echo reply, an initiation and an echo request.
        rx_a == tx_b && tx_a == rx_b && rx_a > 92 + 64 && tx_a > 148 + 64
    });
}

/// `towpath show` says whatever `wg show` says, in the same words and order.
fn is_shown_alike(bench: &Bench, interface: &str) {
    until("both say the same", || {
        let [ours, theirs] =
            ["towpath", "wg"].map(|program| bench.on("a", &format!("{program} show {interface}")));
        let mut lines = ours.lines();
        // A second passes or a keepalive comes between the two.
        theirs.lines().all(|line| lines.any(|other| other == line)) && theirs.contains("latest handshake")
    });
}

pub fn wg_quick_brings_a_tunnel_up_and_down(world: World) {
    let bench = Bench::new(world);
    let (a, b) = (End::new(1), End::new(2));
    let psk = format!("PresharedKey = {}\n", sh("wg genpsk").trim());
    let quick = |end: &End| format!("Address = 10.77.0.{0}/24, fd77::{0}/64\nMTU = 1380\n", end.number);
    // Everything of host `a` goes through the tunnel, but what the tunnel sends, which is marked.
    let default = "AllowedIPs = 0.0.0.0/0, ::/0\n";
    let conf = [
        a.interface(0) + &quick(&a) + &b.peer(Some("10.2.0.2:51820"), &(psk.clone() + default)),
        b.interface(51820) + &quick(&b) + &a.peer(None, &psk),
    ];
    let conf_a = bench.world.file("wga.conf", &conf[0]).display().to_string();
    let conf_b = bench.world.file("wgb.conf", &conf[1]).display().to_string();
    bench.on("b", &format!("wg-quick up {conf_b}"));
    bench.on("a", &format!("wg-quick up {conf_a}"));
    bench.on(
        "a",
        &format!("{PING}; ping -6 -c 3 -i 0.05 -W 5 fd77::2; ping -c 2 -i 0.05 -s 1352 -M do 10.77.0.2"),
    );
    counts_agree(&bench, "wga", "wgb");
    bench.on("a", "ip route get 192.0.2.99 | grep 'dev wga'; wg show wga fwmark | grep 0xca6c");
    bench.world.iperf("a", "b", "10.77.0.2", 16);
    assert_eq!(bench.on("a", "wg show interfaces").split_whitespace().collect::<Vec<_>>().len(), 2);
    bench.on("a", "ip link show wga | grep 'mtu 1380'");
    is_shown_alike(&bench, "wga");

    let [rx_a, tx_a] = transfer(&bench, "a", "wga");
    assert!(rx_a > 1_000_000 && tx_a > 1_000_000, "{rx_a} {tx_a}");
    let ago = bench.on("a", "echo $(($(date +%s) - $(wg show wga latest-handshakes | cut -f2)))");
    assert!((0..60).contains(&ago.trim().parse().unwrap()), "{ago}");

    for (host, conf, interface) in [("a", conf_a, "wga"), ("b", conf_b, "wgb")] {
        bench.on(host, &format!("wg-quick down {conf}"));
        assert!(!bench.try_on(host, &format!("ip link show {interface}")).status.success());
        until("the socket goes with the interface", || !socket(interface).exists());
    }
}

pub fn lines_that_wg_quick_does_not_pass_on_are_read(world: World) {
    let bench = Bench::new(world);
    sh("mount -t tmpfs tmpfs /etc/wireguard");
    let (a, b) = (End::new(1), End::new(2));
    let (lines, relay) = paths::relay(&bench.world, &["--listen-tcp", "10.1.0.1:3478"]);
    let quick = |end: &End| format!("Address = 10.77.0.{0}/24, fd77::{0}/64\n", end.number);
    let conf_b = b.interface(51820) + &quick(&b) + &a.peer(None, "");
    let conf_b = bench.world.file("wgb.conf", &conf_b).display().to_string();
    bench.on("b", &format!("wg-quick up {conf_b}"));
    // Everything goes through the tunnel, but what is marked, as soon as it is.
    let default = "AllowedIPs = 0.0.0.0/0\n";
    let write = |lines: &str, path: &str| {
        let peer = b.peer(Some("10.2.0.2:51820"), default);
        fs::write("/etc/wireguard/wga.conf", a.interface(0) + &quick(&a) + lines + "\n" + &peer + path)
            .unwrap();
        sh("chmod 600 /etc/wireguard/wga.conf");
    };
    // What it says, and from where the other end hears of it.
    let up = |environment: &str| {
        let output = bench.try_on("a", &format!("{environment} wg-quick up wga"));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        bench.on("a", PING);
        let endpoints = bench.on("b", "wg show wgb endpoints");
        (said, endpoints.split_whitespace().last().unwrap().split(':').next().unwrap().to_owned())
    };
    let down = || {
        bench.on("a", "wg-quick down wga");
        until("the end", || !socket("wga").exists());
    };
    for transport in ["", "?transport=tcp"] {
        let uri = format!("turn:10.1.0.1:3478{transport}");
        let lines = lines.replace("turn:10.1.0.1:3478", &uri);
        write(&lines, "#towpath: Path = relay\n");
        let (said, heard) = up("");
        assert!(
            said.contains(&format!("wga.conf: its lines that begin with #towpath: are followed ({uri}")),
            "{said}"
        );
        assert_eq!(heard, "10.1.0.1", "over {uri}");
        let relayed = |what: &str| {
            let shown = bench.on("a", "towpath show wga");
            assert!(shown.contains("path: relayed by 10.1.0.1:3478"), "{what}: {shown}");
        };
        relayed("at first");
        if transport.ends_with("tcp") {
            // It was begun before wg-quick gave it the mark, without which it would go through the tunnel.
            bench.on("a", "ss -tne dst 10.1.0.1 dport = 3478 | grep fwmark:0xca6c");
        }
        assert!(!bench.on("a", "towpath ticket wga").is_empty());
        // A peer that is made anew, and an interface that goes down and up.
        bench.on("a", "wg-quick strip wga > /run/stripped; wg set wga peer $(wg show wga peers) remove");
        bench.on("a", &format!("wg syncconf wga /run/stripped; {PING}"));
        relayed("made anew");
        bench.on("a", "ip link set wga down; ip link set wga up; ip route add default dev wga table 51820");
        bench.on("a", PING);
        relayed("up again");
        down();
    }
    // Directly while that works, and without the lines.
    write(&lines, "");
    let (said, heard) = up("");
    assert!(said.contains("are followed"), "{said}");
    assert_eq!(heard, "10.1.0.2");
    sh(
        "ip netns exec r nft 'table inet cut { chain forward { type filter hook forward priority 0; policy drop; }; }'",
    );
    until("the relay takes over", || bench.try_on("a", "ping -c 1 -W 1 10.77.0.2").status.success());
    sh("ip netns exec r nft delete table inet cut");
    down();
    let (said, _) = up("TOWPATH_LINES=off");
    assert!(!said.contains("#towpath"), "{said}");
    let refused = bench.try_on("a", "towpath ticket wga");
    let words = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && words.contains("no address at a relay"), "{words}");
    down();
    // Lines that anybody may have written, and such as cannot be followed.
    sh("chmod 606 /etc/wireguard/wga.conf");
    let (said, _) = up("");
    assert!(said.contains("are left out, because others may write it; run: chmod go-w"), "{said}");
    down();
    write("#towpath: Relay = turn:10.1.0.1", "");
    let refused = bench.try_on("a", "wg-quick up wga");
    let words = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && words.contains("wga.conf:5: Relay, RelayUsername"), "{words}");
    assert!(!bench.try_on("a", "ip link show wga").status.success());
    bench.on("b", &format!("wg-quick down {conf_b}"));
    drop(relay);
}

pub fn wg_sees_what_it_has_set(world: World) {
    let bench = Bench::new(world);
    let running = bench.foreground("a", "wga");
    bench.on("a", "ip link show wga | grep -q 'mtu 1420'; ip link show wga | grep -q 'state DOWN'");
    assert_eq!(bench.on("a", "ip -o addr show wga"), "", "it has no address of its own");
    let (own, one, two) = (End::new(1), End::new(2), End::new(3));
    let psk = sh("wg genpsk").trim().to_owned();
    let conf = own.interface(51999)
        + "FwMark = 0x1234\n"
        + &one.peer(Some("10.2.0.2:1000"), &format!("PresharedKey = {psk}\nPersistentKeepalive = 25\n"))
        + &two.peer(Some("[fd02::2]:2000"), "");
    let conf = bench.world.file("set.conf", &conf).display().to_string();
    bench.on("a", &format!("ip link set wga up; wg setconf wga {conf}"));
    let dump = || -> Vec<Vec<String>> {
        let text = bench.on("a", "wg show wga dump");
        let mut lines: Vec<Vec<String>> =
            text.lines().map(|line| line.split('\t').map(str::to_owned).collect()).collect();
        lines[1..].sort();
        lines
    };
    let lines = dump();
    assert_eq!(lines[0], [own.private.as_str(), &own.public, "51999", "0x1234"]);
    let peer =
        |key: &str| lines.iter().skip(1).find(|line| line[0] == key).unwrap_or_else(|| panic!("{lines:?}"));
    let (first, second) = (peer(&one.public), peer(&two.public));
    assert_eq!(first[1..5], [psk.as_str(), "10.2.0.2:1000", "10.77.0.2/32,fd77::2/128", "0"]);
    assert_eq!((first[5].as_str(), first[7].as_str()), ("0", "25"));
    assert_eq!(second[1..4], ["(none)", "[fd02::2]:2000", "10.77.0.3/32,fd77::3/128"]);
    assert_eq!(second[7], "off");

    // What showconf writes, syncconf takes without a change.
    bench.on("a", "wg showconf wga > /run/shown; wg syncconf wga /run/shown");
    assert_eq!(dump()[0], lines[0]);

    // An address that is given to another peer moves.
    bench.on("a", &format!("wg set wga peer {} allowed-ips 10.77.0.2/32,10.77.0.3/32", two.public));
    let allowed = |key: &str| dump().into_iter().find(|line| line[0] == key).map(|line| line[3].clone());
    assert_eq!(allowed(&two.public).as_deref(), Some("10.77.0.2/32,10.77.0.3/32"));
    assert_eq!(allowed(&one.public).as_deref(), Some("fd77::2/128"));

    bench.on("a", &format!(
        "wg set wga peer {0} preshared-key /dev/null persistent-keepalive off; wg set wga peer {1} remove; wg set wga \
         fwmark 0 listen-port 51998",
        one.public, two.public
    ));
    let lines = dump();
    assert_eq!((lines.len(), lines[0][2].as_str(), lines[0][3].as_str()), (2, "51998", "off"));
    assert_eq!((lines[1][1].as_str(), lines[1][7].as_str()), ("(none)", "off"));

    // The words of the error number, and the state of before.
    let holder = std::thread::spawn(|| {
        namespace::enter(fs::File::open("/run/netns/a").unwrap()).unwrap();
        std::net::UdpSocket::bind("0.0.0.0:51997").unwrap()
    });
    let holder = holder.join().unwrap();
    let taken = bench.try_on("a", "wg set wga listen-port 51997");
    let words = String::from_utf8_lossy(&taken.stderr);
    assert!(words.contains("Address already in use") && !taken.status.success(), "{taken:?}");
    drop(holder);
    assert_eq!(dump()[0][2], "51998");
    bench.on("a", &format!("wg setconf wga {conf}; wg set wga private-key /dev/null"));
    assert_eq!(dump()[0][..2], ["(none)", "(none)"]);
    let log = running.stop();
    assert!(!socket("wga").exists(), "{log:#?}");
}

pub fn wireguard_go_is_the_other_end_and_ports_keys_and_mtu_change_while_it_runs(world: World) {
    let bench = Bench::new(world);
    let (a, b) = (End::new(1), End::new(2));
    let ours = bench.foreground("a", "wga");
    let theirs = bench.wireguard_go("b", "gob");
    let conf = a.interface(0) + &b.peer(Some("10.2.0.2:51820"), "");
    let conf_a = bench.world.file("wga.conf", &conf).display().to_string();
    let conf_b =
        bench.world.file("gob.conf", &(b.interface(51820) + &a.peer(None, ""))).display().to_string();
    bench.on("b", &format!("wg setconf gob {conf_b}; {}", b.up("gob")));
    bench.on("a", &format!("wg setconf wga {conf_a}; {}; {PING}; ping -6 -c 2 -i 0.05 fd77::2", a.up("wga")));
    counts_agree(&bench, "wga", "gob");
    bench.world.iperf("a", "b", "10.77.0.2", 16);

    // Another port: nothing is lost but what was under way.
    bench.on("a", &format!("wg set wga listen-port 40123; {PING}"));
    let endpoint = bench.on("b", "wg show gob endpoints");
    assert!(endpoint.contains("10.1.0.2:40123"), "{endpoint}");

    // Another preshared key, on one end after the other: nothing is lost meanwhile.
    let psk = bench.world.file("psk", &sh("wg genpsk")).display().to_string();
    let loses_nothing = || {
        let text = bench.on("a", PING);
        assert!(text.contains(" 0% packet loss"), "{text}");
    };
    bench.on("a", &format!("wg set wga peer {} preshared-key {psk}", b.public));
    loses_nothing();
    bench.on("b", &format!("wg set gob peer {} preshared-key {psk}", a.public));
    loses_nothing();

    // Another key, which the other end learns at once.
    let new = End::new(1);
    let key = bench.world.file("key", &new.private).display().to_string();
    bench.on("a", &format!("wg set wga private-key {key}"));
    assert_eq!(bench.on("a", "wg show wga public-key").trim(), new.public);
    bench.on(
        "b",
        &format!(
            "wg set gob peer {} remove; wg set gob peer {} preshared-key {psk} allowed-ips 10.77.0.1/32,fd77::1/128",
            a.public, new.public
        ),
    );
    bench.on("a", PING);

    // The MTU that others set is what padding stops at.
    bench.on("a", "ip link set wga mtu 1300; ping -c 2 -i 0.05 -W 5 -s 1272 -M do 10.77.0.2");
    assert!(!bench.try_on("a", "ping -c 1 -W 1 -s 1273 -M do 10.77.0.2").status.success());

    // Down is silent, and up again it goes on.
    bench.on("a", "ip link set wga down");
    until("the socket is closed", || bench.on("a", "ss -uanH").lines().all(|line| !line.contains(":40123")));
    bench.on("a", &format!("ip link set wga up; ip addr replace fd77::1/64 dev wga nodad; {PING}"));
    bench.on("a", "ss -uanH | grep -q :40123");
    drop((ours, theirs));
}

pub fn every_design_opens_and_closes_sockets_while_it_runs(world: World) {
    let bench = Bench::new(world);
    let (a, b) = (End::new(1), End::new(2));
    let theirs = bench.foreground("b", "wgb");
    let file_b =
        bench.world.file("wgb.conf", &(b.interface(51820) + &a.peer(None, ""))).display().to_string();
    bench.on("b", &format!("wg setconf wgb {file_b}; {}", b.up("wgb")));
    let conf = a.interface(0) + &b.peer(Some("10.2.0.2:51820"), "");
    let file_a = bench.world.file("wga.conf", &conf).display().to_string();
    for flags in [
        ["--io", "uring", "--ingress", "epoll"],
        ["--io", "uring", "--completions", "inline"],
        ["--io", "threaded", "--ingress", "epoll"],
        ["--io", "suspend", "--ingress", "uring"],
        ["--io", "drop", "--ingress", "epoll"],
        ["--io", "runtime", "--ingress", "epoll"],
    ] {
        let ours = bench.foreground_with("a", "wga", &flags);
        bench.on("a", &format!("wg setconf wga {file_a}; {}; {PING}", a.up("wga")));
        for port in [40124, 40125, 40124] {
            bench.on("a", &format!("wg set wga listen-port {port}; {PING}; ss -uanH | grep -q :{port}"));
        }
        bench.on("a", &format!("ip link set wga down; ip link set wga up; {PING}; ip link del wga"));
        until("the end", || !socket("wga").exists());
        let log = ours.stop();
        assert!(log.iter().any(|line| line.contains("ledger")), "{flags:?}: {log:#?}");
    }
    drop(theirs);
}

pub fn peers_come_and_go_under_load_without_a_loss_to_another(world: World) {
    let bench = Bench::new(world);
    let (a, b) = (End::new(1), End::new(2));
    let start = |host, interface| bench.foreground_with(host, interface, &["--log-format", "json"]);
    let (ours, theirs) = (start("a", "wga"), start("b", "wgb"));
    let conf = |end: &End, port: u16, peer: String| end.interface(port) + &peer;
    let file_a = bench
        .world
        .file("wga.conf", &conf(&a, 51821, b.peer(Some("10.2.0.2:51820"), "")))
        .display()
        .to_string();
    let file_b = bench.world.file("wgb.conf", &conf(&b, 51820, a.peer(None, ""))).display().to_string();
    bench.on("b", &format!("wg setconf wgb {file_b}; {}", b.up("wgb")));
    bench.on("a", &format!("wg setconf wga {file_a}; {}; {PING}", a.up("wga")));
    let retransmits = |json: &str| -> (u64, f64) {
        let result: serde_json::Value = serde_json::from_str(json).unwrap();
        let sent = &result["end"]["sum_sent"];
        (sent["retransmits"].as_u64().unwrap(), sent["bits_per_second"].as_f64().unwrap())
    };
    let client = "iperf3 -c 10.77.0.2 -t 3 -b 300M --connect-timeout 3000 -J";
    let server = bench.world.start("b", &["iperf3", "-s", "-1", "--forceflush"], "listening");
    let alone = retransmits(&bench.on("a", client));
    drop(server);

    let server = bench.world.start("b", &["iperf3", "-s", "-1", "--forceflush"], "listening");
    let strangers: Vec<String> = (0..20).map(|_| keys().1).collect();
    let (both, rounds) = std::thread::scope(|scope| {
        let load = scope.spawn(|| bench.on("a", client));
        let ping = scope.spawn(|| bench.on("a", "ping -q -c 400 -i 0.01 -W 5 10.77.0.2"));
        let mut rounds = 0;
        // A second more of pings than of the stream, and changes beside both.
        while !load.is_finished() || !ping.is_finished() {
            let mut script = String::new();
            for (number, key) in strangers.iter().enumerate() {
                script.push_str(&format!(
                    "wg set wga peer {key} allowed-ips 10.78.{number}.0/24 endpoint 10.2.0.2:9 persistent-keepalive 1\n"
                ));
            }
            for key in &strangers {
                script.push_str(&format!("wg set wga peer {key} remove\n"));
            }
            // syncconf takes those away that are left, and leaves the one under load alone.
            script.push_str(&format!("wg syncconf wga {file_a}\n"));
            bench.on("a", &script);
            rounds += 1;
        }
        let pings = ping.join().unwrap();
        assert!(pings.contains(" 0% packet loss"), "{pings}");
        (retransmits(&load.join().unwrap()), rounds)
    });
    drop(server);
    println!("alone {alone:?}, with {} changes {both:?}", rounds * 41);
    assert!(rounds >= 2, "only {rounds} rounds of changes");
    assert!(both.0 <= 2 * alone.0 + 50, "retransmissions: {} alone, {} with changes", alone.0, both.0);
    assert!(both.1 > alone.1 / 2.0, "bit/s: {} alone, {} with changes", alone.1, both.1);
    assert_eq!(bench.on("a", "wg show wga peers").lines().count(), 1);
    // TCP would hide the loss of a few; the ends themselves know of each.
    for (end, process) in [("a", ours), ("b", theirs)] {
        let figures = ledger(&process.stop());
        assert_eq!(figures["unexplained"], 0, "{end}: {figures}");
        for drops in ["egress_drops", "application_drops"] {
            // The kernel's own multicast, and packets of before the first handshake.
            let lost = figures[drops].as_object().unwrap().iter().filter(|(cause, count)| {
                !["no_route", "no_endpoint"].contains(&cause.as_str()) && **count != 0
            });
            let lost: Vec<_> = lost.collect();
            assert!(lost.is_empty(), "{end}: {drops}: {lost:?}");
        }
    }
}

pub fn thousands_of_peers_and_idle_clients_hold_no_packet_up(world: World) {
    const PEERS: u32 = 2_000;
    let bench = Bench::new(world);
    let (a, b) = (End::new(1), End::new(2));
    let (ours, theirs) = (bench.foreground("a", "wga"), bench.foreground("b", "wgb"));
    let conf = a.interface(51821) + &b.peer(Some("10.2.0.2:51820"), "");
    let file_a = bench.world.file("wga.conf", &conf).display().to_string();
    let file_b =
        bench.world.file("wgb.conf", &(b.interface(51820) + &a.peer(None, ""))).display().to_string();
    bench.on("b", &format!("wg setconf wgb {file_b}; {}", b.up("wgb")));
    bench.on("a", &format!("wg setconf wga {file_a}; {}; {PING}", a.up("wga")));
    let mut many = String::new();
    for number in 0..PEERS {
        let mut key = [0x55; 32];
        key[..4].copy_from_slice(&number.to_le_bytes());
        let key = base64::engine::general_purpose::STANDARD.encode(key);
        many.push_str(&format!("[Peer]\nPublicKey = {key}\nAllowedIPs = "));
        let prefixes = (0..13_u32).map(|prefix| {
            let net = number * 13 + prefix;
            format!("10.{}.{}.{}/32", 100 + (net >> 16), net >> 8 & 255, net & 255)
        });
        many.push_str(&prefixes.collect::<Vec<_>>().join(","));
        many.push('\n');
    }
    let many = bench.world.file("many.conf", &many).display().to_string();

    // More connections than are served at a time, and one that stops in the middle of its request.
    let path = socket("wga");
    let idle: Vec<UnixStream> = (0..20).map(|_| UnixStream::connect(&path).unwrap()).collect();
    let mut half = UnixStream::connect(&path).unwrap();
    half.write_all(b"set=1\nlisten_p").unwrap();
    std::thread::scope(|scope| {
        let ping = scope.spawn(|| bench.on("a", "ping -q -c 300 -i 0.01 -W 5 10.77.0.2"));
        bench.on("a", &format!("wg addconf wga {many}"));
        assert_eq!(bench.on("a", "wg show wga peers").lines().count(), PEERS as usize + 1);
        let allowed = bench.on("a", "wg show wga allowed-ips | cut -f2");
        assert_eq!(allowed.split_whitespace().count(), 13 * PEERS as usize + 2);
        bench.on("a", &format!("wg syncconf wga {file_a}"));
        let pings = ping.join().unwrap();
        println!("{pings}");
        assert!(pings.contains(" 0% packet loss"), "{pings}");
    });
    assert_eq!(bench.on("a", "wg show wga peers").lines().count(), 1);
    drop((idle, half, ours, theirs));
}

pub fn it_goes_into_the_background_and_ends_with_interface_or_socket(world: World) {
    let bench = Bench::new(world);
    let pid = |interface: &str| -> String {
        let ends = format!("\0{interface}\0");
        let is_it = |pid: &String| {
            let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let words = String::from_utf8_lossy(&words);
            words.contains("\0__tunnel\0") && words.ends_with(&ends)
        };
        let processes = fs::read_dir("/proc").unwrap();
        let mut names = processes.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.find(is_it).unwrap()
    };
    let is_gone = |pid: &str| !PathBuf::from(format!("/proc/{pid}/exe")).exists();
    for end in ["ip link del wg7", "rm /var/run/wireguard/wg7.sock", "kill PID", "kill -INT PID"] {
        let output = bench
            .try_on("a", "towpath wg7; ip link show wg7; test -S /var/run/wireguard/wg7.sock; wg show wg7");
        assert!(output.status.success(), "{output:?}");
        assert_eq!(String::from_utf8_lossy(&output.stderr), "");
        let pid = pid("wg7");
        let mode = bench.on("a", "stat -c %a /var/run/wireguard/wg7.sock");
        assert_eq!(mode.trim(), "600");
        // A second one is told why not, and harms nothing.
        let second = bench.try_on("a", "towpath wg7");
        assert_eq!(second.status.code(), Some(1), "{second:?}");
        assert!(String::from_utf8_lossy(&second.stderr).contains("wg7"), "{second:?}");
        bench.on("a", "wg show wg7");
        bench.on("a", &end.replace("PID", &pid));
        until(end, || is_gone(&pid) && !socket("wg7").exists());
        assert!(!bench.try_on("a", "ip link show wg7").status.success(), "{end}");
    }
    // What a killed one leaves behind is in nobody's way.
    bench.on("a", "towpath wg7");
    let killed = pid("wg7");
    bench.on("a", &format!("kill -9 {killed}"));
    until("it is killed", || is_gone(&killed));
    assert!(socket("wg7").exists());
    bench.on("a", "towpath wg7; wg show wg7; ip link del wg7");
    until("the end", || !socket("wg7").exists());

    // In the foreground it says why it ends, and that is no failure.
    let running = bench.foreground("a", "wg8");
    bench.on("a", "ip link del wg8");
    until("the end", || !socket("wg8").exists());
    let log = running.stop();
    assert!(log.iter().any(|line| line.contains("the interface was deleted")), "{log:#?}");
    assert!(log.iter().any(|line| line.contains("ledger")), "{log:#?}");
}

pub fn an_interface_that_is_deleted_under_load_ends_the_program_in_good_order(world: World) {
    let bench = Bench::new(world);
    let (a, b) = (End::new(1), End::new(2));
    let theirs = bench.foreground("b", "wgb");
    let file_b =
        bench.world.file("wgb.conf", &(b.interface(51820) + &a.peer(None, ""))).display().to_string();
    bench.on("b", &format!("wg setconf wgb {file_b}; {}", b.up("wgb")));
    let conf = a.interface(0) + &b.peer(Some("10.2.0.2:51820"), "");
    let file_a = bench.world.file("wga.conf", &conf).display().to_string();
    for io in ["uring", "suspend", "threaded"] {
        let ours = bench.foreground_with("a", "wga", &["--io", io, "--log-format", "json"]);
        bench.on("a", &format!("wg setconf wga {file_a}; {}; {PING}", a.up("wga")));
        let server = bench.world.start("b", &["iperf3", "-s", "-1", "--forceflush"], "listening");
        std::thread::scope(|scope| {
            // Most packets are written to the device, which is what meets its end.
            let load = scope.spawn(|| bench.try_on("a", "timeout 2 iperf3 -R -c 10.77.0.2 -t 5"));
            std::thread::sleep(Duration::from_millis(700));
            bench.on("a", "ip link del wga");
            until("the end", || !socket("wga").exists());
            load.join().unwrap();
        });
        drop(server);
        let log = ours.stop();
        let ledger =
            log.iter().find(|line| line.contains("\"ledger\"")).unwrap_or_else(|| panic!("{io}: {log:#?}"));
        assert!(ledger.contains("\"unexplained\":0"), "{io}: {ledger}");
        assert!(!log.iter().any(|line| line.contains("\"ERROR\"")), "{io}: {log:#?}");
        assert_eq!(log.iter().filter(|line| line.contains("the interface was deleted")).count(), 1, "{io}");
    }
    drop(theirs);
}

pub fn an_interface_may_be_moved_to_another_namespace(world: World) {
    let bench = Bench::new(world);
    let (a, b) = (End::new(1), End::new(2));
    let (ours, theirs) = (bench.foreground("a", "wga"), bench.foreground("b", "wgb"));
    let conf = a.interface(0) + &b.peer(Some("10.2.0.2:51820"), "");
    let file_a = bench.world.file("wga.conf", &conf).display().to_string();
    let file_b =
        bench.world.file("wgb.conf", &(b.interface(51820) + &a.peer(None, ""))).display().to_string();
    bench.on("b", &format!("wg setconf wgb {file_b}; {}", b.up("wgb")));
    sh("ip netns add inner; ip -n inner link set lo up");
    bench.on("a", &format!("wg setconf wga {file_a}; ip link set wga netns inner"));
    // The packets outside still leave from where the program is.
    bench.on("inner", &format!("{}; {PING}", a.up("wga")));
    bench.on("inner", "ip link set wga mtu 1300; ping -c 2 -i 0.05 -W 5 -s 1272 -M do 10.77.0.2");
    bench.on("inner", "ip link del wga");
    until("the end", || !socket("wga").exists());
    drop((ours, theirs));
}

pub fn descriptors_may_come_from_whoever_starts_it(world: World) {
    let bench = Bench::new(world);
    // In the namespace of the test itself.
    let tun = Tun::open("wgf", TunOptions::ALL).unwrap();
    fs::create_dir_all("/var/run/wireguard").unwrap();
    let listener = UnixListener::bind(socket("wgf")).unwrap();
    let open = rustix::io::FdFlags::empty();
    rustix::io::fcntl_setfd(tun.fd(), open).unwrap();
    rustix::io::fcntl_setfd(&listener, open).unwrap();
    let number = |fd: &dyn AsFd| std::os::fd::AsRawFd::as_raw_fd(&fd.as_fd()).to_string();
    let mut lab: Command = command(env!("CARGO_BIN_EXE_towpath-lab"));
    lab.args(["__tunnel", "-", &std::process::id().to_string(), "ignored"]).stdin(Stdio::null());
    lab.env_remove("RUST_LOG").env("WG_UAPI_FD", number(&listener));
    let refused = lab.env("WG_TUN_FD", number(&listener)).output().unwrap();
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("WG_TUN_FD"), "{refused:?}");
    let started = lab.env("WG_TUN_FD", number(tun.fd())).output().unwrap();
    assert!(started.status.success(), "{started:?}");
    drop((tun, listener));
    assert_eq!(sh("wg show wgf listen-port; wg set wgf listen-port 41111; ip link set wgf up; wg show wgf listen-port").lines().last(), Some("41111"));
    sh("ip link del wgf");
    until("the end", || !socket("wgf").exists());
    drop(bench);
}

pub fn an_interface_of_towpath_up_is_seen_and_set_too(world: World) {
    let bench = Bench::new(world);
    let (a, b) = (End::new(1), End::new(2));
    let up = |end: &End, port: u16, peer: String| {
        format!("{}Address = 10.77.0.{}/24\n{peer}", end.interface(port), end.number)
    };
    let file_b = bench.world.file("upb.conf", &up(&b, 51820, a.peer(None, "")));
    let file_a = bench.world.file("upa.conf", &up(&a, 0, b.peer(None, "")));
    let callee = bench.world.tunnel("b", &file_b, &[]);
    let caller = bench.world.tunnel("a", &file_a, &[]);
    assert_eq!(bench.on("a", "wg show upa public-key").trim(), a.public);
    bench.on("a", &format!("wg set upa peer {} endpoint 10.2.0.2:51820; {PING}", b.public));
    let handshakes = bench.on("b", "wg show upb latest-handshakes");
    assert!(!handshakes.trim().ends_with("\t0"), "{handshakes}");
    // Removing the socket ends only what is in the place of wireguard-go.
    bench.on("a", &format!("rm /var/run/wireguard/upa.sock; sleep 0.3; {PING}"));
    drop((caller, callee));
    assert!(!socket("upb").exists());
}
