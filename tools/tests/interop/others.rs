//! wireguard-go and boringtun-cli as either end, for longer than one session: preshared keys, new handshakes, moves.

use std::time::Duration;

use super::left_out::left_out;
use super::world::{Process, World, keys, sh, try_sh};

/// How much faster the clocks of a program run that is to renew its session soon.
const HURRY: u32 = 30;
/// How boringtun-cli comes onto a machine.
const INSTALL: &str = "cargo install boringtun-cli --version 0.7.1 --locked";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Program {
    Towpath,
    WireguardGo,
    Boringtun,
}

/// A tunnel from `a`, which calls, to `b`.
struct Pair {
    /// Of its networks, port and interfaces.
    number: u8,
    programs: [Program; 2],
    keys: [(String, String); 2],
    preshared: String,
    /// Where `b` is called.
    outside: &'static str,
    /// The library by which the caller's clocks are hurried, if they are.
    hurried: Option<String>,
}

impl Pair {
    fn new(number: u8, programs: [Program; 2], outside: &'static str) -> Self {
        let preshared = sh("wg genpsk").trim().to_owned();
        Self { number, programs, keys: [keys(), keys()], preshared, outside, hurried: None }
    }

    /// What a program is started by, as words before its own: the caller's clocks run [`HURRY`] times as fast where they are to.
    fn before(&self, side: usize) -> Vec<String> {
        let library = self.hurried.as_ref().filter(|_| side == 0);
        library.map_or_else(Vec::new, |library| {
            vec!["env".to_owned(), format!("LD_PRELOAD={library}"), format!("FAKETIME=+0 x{HURRY}")]
        })
    }

    fn interface(&self, side: usize) -> String {
        let program = match self.programs[side] {
            Program::Towpath => "tow",
            Program::WireguardGo => "go",
            Program::Boringtun => "bo",
        };
        format!("{program}{}{}", ["a", "b"][side], self.number)
    }

    /// The address inside of a side.
    fn inside(&self, side: usize) -> String {
        format!("10.{}.0.{}", self.number, side + 1)
    }

    /// Starts a side; it has its addresses then.
    fn start(&self, world: &World, side: usize) -> Process {
        let (number, host, interface) = (self.number, ["a", "b"][side], self.interface(side));
        let (own, other) = (side + 1, 2 - side);
        let addresses = [format!("10.{number}.0.{own}/24"), format!("fd{number}::{own}/64")];
        let quick = format!("Address = {}\nMTU = 1420\n", addresses.join(", "));
        let ours = self.programs[side] == Program::Towpath;
        let endpoint =
            if side == 0 { format!("Endpoint = {}:518{number}\n", self.outside) } else { String::new() };
        let text = format!(
            "[Interface]\nPrivateKey = {}\nListenPort = 518{number}\n{}[Peer]\nPublicKey = {}\nPresharedKey = {}\n\
             AllowedIPs = 10.{number}.0.{other}/32, fd{number}::{other}/128\n{endpoint}",
            self.keys[side].0,
            if ours { &quick } else { "" },
            self.keys[1 - side].1,
            self.preshared,
        );
        let file = world.file(&format!("{interface}.conf"), &text);
        let before = self.before(side);
        let before: Vec<&str> = before.iter().map(String::as_str).collect();
        let process = match self.programs[side] {
            Program::Towpath if before.is_empty() => return world.tunnel(host, &file, &[]),
            Program::Towpath => {
                let (parent, file) = (std::process::id().to_string(), file.display().to_string());
                let lab = [env!("CARGO_BIN_EXE_towpath-lab"), "__tunnel", "-", &parent, "up", &file];
                return world.start(host, &[&before[..], &lab].concat(), "ready");
            }
            Program::WireguardGo => {
                let program = ["env", "LOG_LEVEL=verbose", "wireguard-go", "-f", &interface];
                world.start(host, &program, "UAPI listener started")
            }
            Program::Boringtun => {
                // A connected socket would keep it from following a peer that moves.
                let flags =
                    ["-f", "--disable-drop-privileges", "--disable-connected-udp", "-v", "info", "-t", "1"];
                let program = [&before[..], &["boringtun-cli"], &flags[..], &[&interface]].concat();
                world.start(host, &program, "started successfully")
            }
        };
        sh(&format!(
            "ip netns exec {host} wg setconf {interface} {}
             ip -n {host} addr add {} dev {interface}; ip -n {host} addr add {} dev {interface} nodad
             ip -n {host} link set {interface} mtu 1420 up",
            file.display(),
            addresses[0],
            addresses[1],
        ));
        process
    }

    /// Pings from one side to the other; what ping says.
    fn ping(&self, from: usize, options: &str) -> String {
        sh(&format!("ip netns exec {} ping {options} -W 5 {}", ["a", "b"][from], self.inside(1 - from)))
    }

    /// When a side has completed its last handshake, in seconds since 1970; `None` of boringtun, which tells how long ago that is
    /// in its place.
    fn handshake(&self, side: usize) -> Option<u64> {
        if self.programs[side] == Program::Boringtun {
            return None;
        }
        let interface = self.interface(side);
        let text = sh(&format!("ip netns exec {} wg show {interface} latest-handshakes", ["a", "b"][side]));
        Some(text.split_whitespace().nth(1).unwrap().parse().unwrap())
    }

    /// Ping, TCP and UDP, both ways and of both families.
    fn carry(&self, world: &World) {
        for from in [0, 1] {
            self.ping(from, "-c 3 -i 0.05");
        }
        self.ping(0, "-c 2 -i 0.05 -s 1392 -M do");
        sh(&format!("ip netns exec a ping -6 -c 3 -i 0.05 -W 5 fd{}::2", self.number));
        let address = self.inside(1);
        let [out, back] = world.iperf("a", "b", &address, 8);
        let server = world.start("b", &["iperf3", "-s", "-1", "--forceflush"], "listening");
        let json = sh(&format!(
            "ip netns exec a iperf3 -c {address} -u -b 10M -l 1200 -t 1 --connect-timeout 3000 -J"
        ));
        drop(server);
        let result: serde_json::Value = serde_json::from_str(&json).unwrap();
        let lost = result["end"]["sum"]["lost_percent"].as_f64().unwrap();
        assert!(lost < 5.0, "{lost} % of the datagrams\n{json}");
        println!("{:?}: TCP {out:.2} Gbit/s there, {back:.2} back, UDP without {lost:.1} %", self.programs);
    }

    /// A new handshake under traffic, which `begin` makes necessary: few packets are lost meanwhile, and none afterwards.
    fn renew(&self, from: usize, begin: impl FnOnce()) {
        let before = [self.handshake(0), self.handshake(1)];
        // The times have seconds only.
        std::thread::sleep(Duration::from_millis(1_100));
        let host = ["a", "b"][from];
        let address = self.inside(1 - from);
        let during = std::thread::scope(|scope| {
            let ping = scope.spawn(|| {
                let all = try_sh(&format!("ip netns exec {host} ping -q -c 25 -i 0.05 -W 5 {address}"));
                String::from_utf8_lossy(&all.stdout).into_owned()
            });
            std::thread::sleep(Duration::from_millis(300));
            begin();
            ping.join().unwrap()
        });
        let after = self.ping(from, "-q -c 10 -i 0.05");
        assert!(after.contains(" 0% packet loss"), "{after}");
        println!("{:?}, a new handshake: {}", self.programs, during.lines().nth_back(1).unwrap_or_default());
        for side in [0, 1] {
            let (after, before) = (self.handshake(side), before[side]);
            assert!(after > before || before.is_none(), "side {side} of {:?}: {during}", self.programs);
        }
    }

    /// Ends the sessions of one side, which has the same key afterwards.
    fn end_sessions(&self, world: &World, side: usize) {
        let (host, interface) = (["a", "b"][side], self.interface(side));
        let [own, other] = [("own", &self.keys[side].0), ("other", &keys().0)]
            .map(|(name, key)| world.file(name, key).display().to_string());
        sh(&format!(
            "ip netns exec {host} sh -ec 'wg set {interface} private-key {other}; wg set {interface} private-key {own}'"
        ));
    }
}

/// Gives a host the third address of its network, and takes the second away; or back.
fn moves(host: &str, there: bool) {
    let link = if host == "a" { 1 } else { 2 };
    let (new, old) = if there { (3, 2) } else { (2, 3) };
    sh(&format!(
        "ip -n {host} addr del 10.{link}.0.{old}/24 dev {host}0; ip -n {host} addr add 10.{link}.0.{new}/24 dev {host}0
         ip -n {host} route replace default via 10.{link}.0.1"
    ));
}

/// Whether there is boringtun-cli; says so when there is not.
fn has_boringtun() -> bool {
    let is_there = try_sh("command -v boringtun-cli").status.success();
    if !is_there {
        left_out(&format!("boringtun-cli as the other end: {INSTALL}"));
    }
    is_there
}

pub fn boringtun_is_either_end(world: World) {
    if !has_boringtun() {
        return;
    }
    use Program::{Boringtun, Towpath};
    for (number, programs) in [(81, [Towpath, Boringtun]), (82, [Boringtun, Towpath])] {
        let pair = Pair::new(number, programs, "10.2.0.2");
        let callee = pair.start(&world, 1);
        let mut caller = pair.start(&world, 0);
        pair.carry(&world);
        // A new handshake from our side, and one from boringtun, which knows nothing of a session that we have.
        let ours = usize::from(programs[1] == Towpath);
        pair.renew(ours, || pair.end_sessions(&world, ours));
        if programs[0] == Boringtun {
            drop(caller);
            caller = pair.start(&world, 0);
            pair.ping(0, "-c 3 -i 0.05");
        }
        // Whoever calls moves and is followed, and moves back.
        for there in [true, false] {
            moves("a", there);
            pair.ping(0, "-c 5 -i 0.1");
            let endpoint = sh(&format!("ip netns exec b wg show {} endpoints", pair.interface(1)));
            assert!(endpoint.contains(if there { "10.1.0.3:" } else { "10.1.0.2:" }), "{endpoint}");
            pair.ping(1, "-c 3 -i 0.05");
        }
        drop((caller, callee));
        let pair = Pair::new(number + 2, programs, "[fd02::2]");
        let (callee, caller) = (pair.start(&world, 1), pair.start(&world, 0));
        pair.ping(0, "-c 3 -i 0.05");
        pair.ping(1, "-c 3 -i 0.05");
        drop((caller, callee));
    }
}

pub fn either_end_makes_a_new_handshake_with_wireguard_go(world: World) {
    use Program::{Towpath, WireguardGo};
    for (number, programs) in [(81, [Towpath, WireguardGo]), (82, [WireguardGo, Towpath])] {
        let pair = Pair::new(number, programs, "10.2.0.2");
        let (callee, caller) = (pair.start(&world, 1), pair.start(&world, 0));
        pair.ping(0, "-c 2 -i 0.05");
        for side in [0, 1] {
            // Who has no session any more makes one as soon as it has something to send.
            pair.renew(side, || pair.end_sessions(&world, side));
        }
        drop((caller, callee));
    }
}

/// For whoever calls, two minutes are over in four seconds: it renews its session while packets pass, and the far end, whose
/// clocks are right, goes over to the new one. wireguard-go is only called: it reads its clocks without the library that could
/// hurry them.
pub fn sessions_that_are_renewed_early_lose_nothing(world: World) {
    let found = sh("ls /usr/lib/*/faketime/libfaketimeMT.so.1 2>/dev/null || true");
    let Some(library) = found.lines().next() else {
        left_out("clocks that are hurried: apt-get install libfaketime");
        return;
    };
    use Program::{Boringtun, Towpath, WireguardGo};
    let mut programs = vec![[Towpath, Towpath], [Towpath, WireguardGo]];
    if has_boringtun() {
        programs.extend([[Towpath, Boringtun], [Boringtun, Towpath]]);
    }
    let pairs: Vec<Pair> = (81..)
        .zip(programs)
        .map(|(number, programs)| Pair {
            hurried: Some(library.to_owned()),
            ..Pair::new(number, programs, "10.2.0.2")
        })
        .collect();
    let running: Vec<_> = pairs.iter().map(|pair| (pair.start(&world, 1), pair.start(&world, 0))).collect();
    std::thread::scope(|scope| {
        for pair in &pairs {
            scope.spawn(|| {
                pair.ping(0, "-c 2 -i 0.05");
                let first = [pair.handshake(0), pair.handshake(1)];
                let text = pair.ping(0, "-q -c 350 -i 0.02");
                assert!(text.contains(" 0% packet loss"), "{:?}: {text}", pair.programs);
                // The caller's times are of its own clock.
                for (side, least) in [(0, 100), (1, 2)] {
                    let Some((later, first)) = pair.handshake(side).zip(first[side]) else { continue };
                    let later = later - first;
                    assert!(later >= least, "{:?}, side {side}: {later} s", pair.programs);
                }
            });
        }
    });
    drop(running);
}

/// Nothing is forced here: sessions are renewed by those who made them, after the 120 seconds of the protocol.
pub fn a_session_is_renewed_in_time_without_a_loss(world: World) {
    if !has_boringtun() {
        return;
    }
    use Program::{Boringtun, Towpath, WireguardGo};
    let pairs = [
        Pair::new(81, [Towpath, WireguardGo], "10.2.0.2"),
        Pair::new(82, [WireguardGo, Towpath], "10.2.0.2"),
        Pair::new(83, [Towpath, Boringtun], "10.2.0.2"),
        Pair::new(84, [Boringtun, Towpath], "10.2.0.2"),
        Pair::new(85, [Towpath, Towpath], "10.2.0.2"),
    ];
    let running: Vec<_> = pairs.iter().map(|pair| (pair.start(&world, 1), pair.start(&world, 0))).collect();
    std::thread::scope(|scope| {
        for pair in &pairs {
            scope.spawn(|| {
                pair.ping(0, "-c 2 -i 0.05");
                let first = [pair.handshake(0), pair.handshake(1)];
                let text = pair.ping(0, "-q -c 700 -i 0.2");
                assert!(text.contains(" 0% packet loss"), "{:?}: {text}", pair.programs);
                for side in [0, 1] {
                    let Some(later) = pair.handshake(side).zip(first[side]) else { continue };
                    let later = later.0 - later.1;
                    assert!((115..=135).contains(&later), "{:?}, side {side}: {later} s", pair.programs);
                }
            });
        }
    });
    drop(running);
}
