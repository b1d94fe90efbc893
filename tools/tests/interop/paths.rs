//! A peer that is reached directly or over a relay, while either of the two comes and goes.

use std::path::PathBuf;
use std::process::Output;
use std::time::{Duration, Instant};

use dataplane::tunnel::ticket::{Candidate, Ticket};

use super::world::{Process, World, keys, sh, try_sh};

/// What a relay needs to forward to `b`.
const RELAY: [&str; 4] = ["--realm", "test", "--allow-peer", "10.2.0.0/24"];

/// Two ends of a tunnel, of which the first knows the relay.
pub(super) struct Pair {
    name: &'static str,
    /// The network inside.
    inside: u8,
    /// Keys: private and public.
    pub a: (String, String),
    pub b: (String, String),
}

impl Pair {
    pub fn new(name: &'static str, inside: u8) -> Self {
        Self { name, inside, a: keys(), b: keys() }
    }

    pub fn a(&self, world: &World, interface: &str, peer: &str) -> PathBuf {
        let Self { name, inside, a, b } = self;
        let text = format!(
            "[Interface]\nPrivateKey = {}\nAddress = 10.{inside}.0.1/24\n{interface}\n[Peer]\nPublicKey = {}\n\
             AllowedIPs = 10.{inside}.0.2/32\nEndpoint = 10.2.0.2:518{inside}\n{peer}\n",
            a.0, b.1
        );
        world.file(&format!("{name}a.conf"), &text)
    }

    pub fn b(&self, world: &World, address: &str) -> PathBuf {
        let Self { name, inside, a, b } = self;
        let text = format!(
            "[Interface]\nPrivateKey = {}\nListenPort = 518{inside}\n{address}\n[Peer]\nPublicKey = {}\n\
             AllowedIPs = 10.{inside}.0.1/32\n",
            b.0, a.1
        );
        world.file(&format!("{name}b.conf"), &text)
    }
}

/// The lines about a relay on the usual port, and that relay, which knows `user` and its password.
pub(super) fn relay(world: &World, flags: &[&str]) -> (String, Process) {
    let password = world.file("password", "secret\n");
    world.file("users", "user:secret\n");
    let lines = format!(
        "#towpath: Relay = turn:10.1.0.1:3478\n#towpath: RelayUsername = user\n#towpath: RelayPasswordFile = {}",
        password.display()
    );
    let mut all = vec!["--listen", "10.1.0.1:3478"];
    all.extend(flags);
    (lines, start_relay(world, &all))
}

/// The lines without the first, which names the relay.
fn login(lines: &str) -> &str {
    lines.split_once('\n').unwrap().1
}

/// A relay for the users in the file.
fn start_relay(world: &World, flags: &[&str]) -> Process {
    let users = world.path("users").display().to_string();
    let mut all = RELAY.to_vec();
    all.extend(["--user-file", &users]);
    all.extend(flags);
    world.relay("r", &all)
}

#[expect(clippy::disallowed_methods, reason = "a test may read the clock")]
fn now() -> Instant {
    Instant::now()
}

fn pass(time: Duration) {
    std::thread::sleep(time);
}

/// Runs a TCP stream for some seconds, towards `a` (`-R`) or away from it; the longest time without a byte that arrived, s.
fn longest_gap(world: &World, address: &str, seconds: u32, direction: &str) -> f64 {
    const INTERVAL: f64 = 0.1;
    let listen = ["iperf3", "-s", "-1", "-i", "0.1", "-B", address, "--forceflush"];
    let server = world.start("b", &listen, "listening");
    let text = sh(&format!(
        "ip netns exec a iperf3 -c {address} -t {seconds} -i 0.1 --connect-timeout 3000 -b 50M -f k \
         --get-server-output {direction}"
    ));
    drop(server);
    // What the receiving end saw: `[  5]   0.00-0.10   sec   640 KBytes  52428 Kbits/sec`.
    let end = if direction == "-R" {
        text.split("Server output:").next()
    } else {
        text.split("Server output:").nth(1)
    };
    let intervals: Vec<bool> = end
        .unwrap()
        .lines()
        .take_while(|line| !line.contains("- - -"))
        .filter_map(|line| line.split_once(" sec ")?.1.split_whitespace().next()?.parse::<f64>().ok())
        .map(|amount| amount > 0.0)
        .collect();
    assert!(intervals.len() > 50, "{text}");
    let gap = intervals.split(|moves| *moves).map(<[bool]>::len).max().unwrap_or(0);
    assert!(intervals.iter().rev().take(10).any(|moves| *moves), "the stream ended in silence: {text}");
    gap as f64 * INTERVAL
}

pub fn a_stream_goes_over_the_relay_while_the_direct_path_is_cut(world: World) {
    let (lines, relay) = relay(&world, &[]);
    // One far end is ours, the other knows nothing of relays.
    let (ours, stock) = (Pair::new("ours", 77), Pair::new("stock", 78));
    let callee = world.tunnel("b", &ours.b(&world, "Address = 10.77.0.2/24"), &[]);
    let go =
        world.start("b", &["env", "LOG_LEVEL=verbose", "wireguard-go", "-f", "go"], "UAPI listener started");
    sh(&format!(
        "ip netns exec b wg setconf go {}
         ip -n b addr add 10.78.0.2/24 dev go; ip -n b link set go mtu 1280 up",
        stock.b(&world, "").display()
    ));
    let mut callers = [&ours, &stock].map(|pair| world.tunnel("a", &pair.a(&world, &lines, ""), &[]));
    sh("ip netns exec a ping -c 2 -i 0.05 -W 5 10.77.0.2; ip netns exec a ping -c 2 -i 0.05 -W 5 10.78.0.2");
    let gaps = std::thread::scope(|scope| {
        let world = &world;
        let streams = [("10.77.0.2", ""), ("10.78.0.2", "-R")]
            .map(|(address, direction)| scope.spawn(move || longest_gap(world, address, 14, direction)));
        pass(Duration::from_secs(2));
        // Only what is forwarded: the relay is reached as before.
        sh(
            "ip netns exec r nft 'table inet cut { chain forward { type filter hook forward priority 0; policy drop; }; }'",
        );
        let cut = now();
        for caller in &mut callers {
            caller.wait_for("another path is used");
        }
        let noticed = cut.elapsed();
        assert!(noticed < Duration::from_secs(2), "noticed after {noticed:?}");
        pass(Duration::from_secs(2));
        sh("ip netns exec r nft delete table inet cut");
        let healed = now();
        for caller in &mut callers {
            caller.wait_for("another path is used");
        }
        println!("left after {noticed:?}, taken back {:?} after it healed", healed.elapsed());
        streams.map(|stream| stream.join().unwrap())
    });
    println!("longest gaps in the streams: {gaps:.1?} s");
    assert!(gaps.iter().all(|gap| *gap < 2.0), "{gaps:?}");
    drop((callers, callee, go, relay));
}

/// The longest time between two answers of a ping that runs for some seconds meanwhile, s.
fn longest_outage(world: &World, host: &str, seconds: u32, meanwhile: impl FnOnce(&World)) -> f64 {
    std::thread::scope(|scope| {
        let ping = scope.spawn(move || {
            sh(&format!("ip netns exec {host} ping -D -i 0.05 -w {seconds} 10.77.0.2 || true"))
        });
        meanwhile(world);
        let text = ping.join().unwrap();
        let times: Vec<f64> = text
            .lines()
            .filter(|line| line.contains("bytes from"))
            .filter_map(|line| line.strip_prefix('[')?.split_once(']')?.0.parse().ok())
            .collect();
        assert!(times.len() > 20, "{text}");
        // What is not answered any more by its end counts as well.
        let silent = times[0] + f64::from(seconds) - times[times.len() - 1];
        times.windows(2).map(|pair| pair[1] - pair[0]).fold(silent, f64::max)
    })
}

pub fn a_relay_that_was_started_again_is_taken_up_again(world: World) {
    let (lines, first) = relay(&world, &[]);
    let pair = Pair::new("tow", 77);
    let callee = world.tunnel("b", &pair.b(&world, "Address = 10.77.0.2/24"), &[]);
    let caller = world.tunnel("a", &pair.a(&world, &lines, "#towpath: Path = relay"), &[]);
    sh("ip netns exec a ping -c 2 -i 0.05 -W 5 10.77.0.2");
    let mut second = None;
    let outage = longest_outage(&world, "a", 6, |world| {
        // What a relay has given and lost again within two seconds is asked for after a pause only.
        pass(Duration::from_secs(2));
        sh(&format!("kill -9 {}", first.pid()));
        second = Some(relay(world, &[]));
    });
    println!("without the relay for {outage:.2} s");
    assert!(outage < 2.0, "{outage}");
    drop((caller, callee, first, second));
}

pub fn the_next_relay_takes_over_from_a_silent_one(world: World) {
    let (lines, first) = relay(&world, &[]);
    let others = ["--listen", "10.1.0.1:3479", "--relay-ports", "40000-40100", "--admin", "127.0.0.1:0"];
    let second = start_relay(&world, &others);
    let pair = Pair::new("tow", 77);
    let callee = world.tunnel("b", &pair.b(&world, "Address = 10.77.0.2/24"), &[]);
    let lines =
        format!("#towpath: Relay = turn:10.1.0.1\n#towpath: Relay = turn:10.1.0.1:3479\n{}", login(&lines));
    let mut caller = world.tunnel("a", &pair.a(&world, &lines, "#towpath: Path = relay"), &[]);
    sh("ip netns exec a ping -c 2 -i 0.05 -W 5 10.77.0.2");
    let outage = longest_outage(&world, "a", 6, |_| {
        pass(Duration::from_secs(1));
        sh(&format!("kill -9 {}", first.pid()));
        caller.wait_for("going over to relay 10.1.0.1:3479");
    });
    println!("without a relay for {outage:.2} s");
    assert!(outage < 2.0, "{outage}");
    drop((caller, callee, first, second));
}

pub fn a_relay_whose_name_leads_elsewhere_is_followed_there(world: World) {
    sh("ip -n r addr add 10.1.0.3/24 dev ra");
    let hosts = world.file("hosts", "").display().to_string();
    sh(&format!("chmod 644 {hosts}; mount --bind {hosts} /etc/hosts"));
    let leads_to = |address: &str| {
        std::fs::write(&hosts, format!("127.0.0.1 localhost\n{address} relay.example\n")).unwrap();
    };
    let pair = Pair::new("tow", 77);
    let callee = world.tunnel("b", &pair.b(&world, "Address = 10.77.0.2/24"), &[]);
    world.file("users", "user:secret\n");
    let password = world.file("password", "secret\n").display().to_string();
    for (transport, listen) in [("udp", "--listen"), ("tcp", "--listen-tcp")] {
        leads_to("10.1.0.1");
        // One that speaks TCP speaks UDP as well.
        let flags = |address: &'static str| -> Vec<&str> {
            if transport == "udp" {
                vec![listen, address]
            } else {
                vec![listen, address, "--listen", address]
            }
        };
        let first = start_relay(&world, &flags("10.1.0.1:3478"));
        let lines = format!(
            "#towpath: Relay = turn:relay.example?transport={transport}\n#towpath: RelayUsername = user\n\
             #towpath: RelayPasswordFile = {password}"
        );
        let mut caller = world.tunnel("a", &pair.a(&world, &lines, "#towpath: Path = relay"), &[]);
        sh("ip netns exec a ping -c 2 -i 0.05 -W 5 10.77.0.2");
        let mut second = None;
        let outage = longest_outage(&world, "a", 5, |world| {
            pass(Duration::from_millis(500));
            // Before the name is looked up, which is not done again soon.
            leads_to("10.1.0.3");
            sh(&format!("kill -9 {}", first.pid()));
            second = Some(start_relay(world, &flags("10.1.0.3:3478")));
            caller.wait_for("going over to relay 10.1.0.3:3478");
        });
        println!("over {transport}, away from the relay for {outage:.2} s");
        assert!(outage < 2.0, "{outage}");
        drop((caller, first, second));
    }
    drop(callee);
}

pub fn a_relay_that_drains_sends_its_clients_elsewhere(world: World) {
    let drains = ["--drain-timeout", "60", "--alternate-server", "10.1.0.1:3479"];
    let (lines, mut first) = relay(&world, &drains);
    let others = ["--listen", "10.1.0.1:3479", "--relay-ports", "40000-40100", "--admin", "127.0.0.1:0"];
    let second = start_relay(&world, &others);
    let old = Pair::new("old", 77);
    let callee = world.tunnel("b", &old.b(&world, "Address = 10.77.0.2/24"), &[]);
    let mut holder = world.tunnel("a", &old.a(&world, &lines, "#towpath: Path = relay"), &[]);
    sh("ip netns exec a ping -c 2 -i 0.05 -W 5 10.77.0.2");
    // Who is there goes elsewhere, and the relay ends when nobody is left.
    let outage = longest_outage(&world, "a", 5, |_| {
        pass(Duration::from_secs(1));
        sh(&format!("kill -TERM {}", first.pid()));
        first.wait_for("draining");
        holder.wait_for("going over to relay 10.1.0.1:3479");
    });
    println!("on the way to the other relay for {outage:.2} s");
    assert!(outage < 1.0, "{outage}");
    first.wait_for("drained");
    drop((holder, callee, first, second));
}

pub fn a_password_that_changes_is_read_again(world: World) {
    let (lines, first) = relay(&world, &[]);
    let pair = Pair::new("tow", 77);
    let callee = world.tunnel("b", &pair.b(&world, "Address = 10.77.0.2/24"), &[]);
    let mut caller = world.tunnel("a", &pair.a(&world, &lines, "#towpath: Path = relay"), &[]);
    sh("ip netns exec a ping -c 2 -i 0.05 -W 5 10.77.0.2");
    world.file("password", "other\nsomebody\n");
    world.file("users", "somebody:other\n");
    sh(&format!("kill -9 {}", first.pid()));
    let second = start_relay(&world, &["--listen", "10.1.0.1:3478"]);
    // Nobody misses the relay before something is sent.
    sh("ip netns exec a ping -c 20 -i 0.1 -W 1 10.77.0.2 || true");
    caller.wait_for("new credentials for relay");
    sh("ip netns exec a ping -c 2 -i 0.05 -W 5 10.77.0.2");
    drop((caller, callee, first, second));
}

pub fn a_shared_secret_makes_the_name_and_the_password(world: World) {
    let secret = world.file("secret", "north\n").display().to_string();
    let flags = ["--listen", "10.1.0.1:3478", "--realm", "test", "--allow-peer", "10.2.0.0/24"];
    let flags: Vec<&str> = flags.into_iter().chain(["--secret-file", &secret]).collect();
    let relay = world.relay("r", &flags);
    let pair = Pair::new("tow", 77);
    let callee = world.tunnel("b", &pair.b(&world, "Address = 10.77.0.2/24"), &[]);
    let lines = format!("#towpath: Relay = turn:10.1.0.1\n#towpath: RelaySecretFile = {secret}");
    let caller = world.tunnel("a", &pair.a(&world, &lines, "#towpath: Path = relay"), &[]);
    sh("ip netns exec a ping -c 2 -i 0.05 -W 5 10.77.0.2");
    drop((caller, callee, relay));
}

/// A certificate for the relay and its key, in files.
fn certificate(world: &World) -> [String; 2] {
    let made = rcgen::generate_simple_self_signed(["10.1.0.1".to_owned()]).unwrap();
    let certificate = world.file("certificate", &made.cert.pem());
    let key = world.file("key", &made.signing_key.serialize_pem());
    [certificate, key].map(|file| file.display().to_string())
}

pub fn a_relay_is_reached_over_tcp_and_tls_where_udp_does_not_pass(world: World) {
    let [certificate, key] = certificate(&world);
    let flags = [
        "--listen-tcp",
        "10.1.0.1:3478",
        "--listen-tls",
        "10.1.0.1:5349",
        "--tls-certificate",
        &certificate,
        "--tls-key",
        &key,
    ];
    let (lines, mut relay) = relay(&world, &flags);
    sh(
        "ip netns exec r nft 'table inet cut { chain input { type filter hook input priority 0; iifname ra meta l4proto udp drop; }; }'",
    );
    let pair = Pair::new("tow", 77);
    let callee = world.tunnel("b", &pair.b(&world, "Address = 10.77.0.2/24"), &[]);
    for uri in ["turn:10.1.0.1:3478?transport=tcp", "turns:10.1.0.1:5349"] {
        let login = login(&lines);
        let lines = format!("#towpath: Relay = {uri}\n{login}\n#towpath: RelayCertificate = {certificate}");
        // Its totals are shown beside.
        let file = pair.a(&world, &lines, "#towpath: Path = relay");
        let caller = world.tunnel("a", &file, &["--admin", "127.0.0.1:9586"]);
        sh("ip netns exec a ping -c 3 -i 0.05 -W 5 -s 1200 10.77.0.2");
        let [out, back] = world.iperf("a", "b", "10.77.0.2", 64);
        println!("{uri}: {out:.2} Gbit/s there, {back:.2} back");
        let outage = longest_outage(&world, "a", 5, |world| {
            pass(Duration::from_secs(1));
            sh(&format!("kill -9 {}", relay.pid()));
            let mut all = vec!["--listen", "10.1.0.1:3478"];
            all.extend(flags);
            relay = start_relay(world, &all);
        });
        println!("{uri}: without the relay for {outage:.2} s");
        assert!(outage < 2.0, "{outage}");
        let log = caller.stop().join("\n");
        assert!(log.contains("ledger"), "{log}");
    }
    drop((callee, relay));
}

pub fn a_relay_with_a_certificate_that_nobody_knows_is_not_used(world: World) {
    let [certificate, key] = certificate(&world);
    let (lines, relay) = relay(
        &world,
        &["--listen-tls", "10.1.0.1:5349", "--tls-certificate", &certificate, "--tls-key", &key],
    );
    let other = rcgen::generate_simple_self_signed(["10.1.0.1".to_owned()]).unwrap();
    let other = world.file("other", &other.cert.pem()).display().to_string();
    let pair = Pair::new("tow", 77);
    let login = login(&lines);
    let lines =
        format!("#towpath: Relay = turns:10.1.0.1:5349\n{login}\n#towpath: RelayCertificate = {other}");
    let mut caller = world.tunnel("a", &pair.a(&world, &lines, ""), &[]);
    caller.wait_for("the connection to relay 10.1.0.1:5349 ended: TLS: ");
    let refused = ticket("a", "towa");
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && said.contains("no address at a relay"), "{said}");
    drop((caller, relay));
}

/// Hosts `c` and `d` behind `a` and `b`, which translate addresses as `masquerade` says, and let in what answers.
fn behind_nat(masquerade: &str) {
    for (nat, host, network) in [("a", "c", "192.168.1"), ("b", "d", "192.168.2")] {
        sh(&format!(
            "ip netns add {host}
             ip link add {host}0 netns {host} type veth peer name {nat}{host} netns {nat}
             ip -n {host} addr add {network}.2/24 dev {host}0
             ip -n {nat} addr add {network}.1/24 dev {nat}{host}
             ip -n {host} link set lo up; ip -n {host} link set {host}0 up; ip -n {nat} link set {nat}{host} up
             ip -n {host} route add default via {network}.1
             ip -n {host} addr add fd0{host}::2/64 dev {host}0 nodad
             ip -n {host} -6 route add default via fd0{host}::1
             ip netns exec {nat} sh -c 'echo 1 > /proc/sys/net/ipv4/ip_forward'
             ip netns exec {nat} nft 'table ip nat {{
                 chain post {{ type nat hook postrouting priority srcnat; oifname {nat}0 {masquerade}; }}
                 chain input {{ type filter hook input priority 0; iifname {nat}0 ct state new drop; }}
                 chain forward {{ type filter hook forward priority 0; iifname {nat}0 ct state new drop; }}
             }}'"
        ));
    }
}

/// Two tunnels behind NAT, whose owners have exchanged tickets; `c` first.
fn meet(world: &World, masquerade: &str, sites: bool) -> (Process, Process, Process) {
    behind_nat(masquerade);
    let (lines, relay) = relay(world, &["--allow-peer", "10.1.0.0/24"]);
    let (c, d) = (keys(), keys());
    let start = |host: &'static str, number: u8, private: &str, peer: &str| {
        // As between two sites where `sites` says so: what a peer has for its own address is reached through the tunnel.
        let site = if sites { format!(", 192.168.{}.0/24", 3 - number) } else { String::new() };
        let text = format!(
            "[Interface]\nPrivateKey = {private}\nAddress = 10.77.0.{number}/24\nListenPort = 51820\n{lines}\n[Peer]\n\
             PublicKey = {peer}\nAllowedIPs = 10.77.0.0/24{site}\nPersistentKeepalive = 25\n"
        );
        world.tunnel(host, &world.file(&format!("tow{host}.conf"), &text), &[])
    };
    let (first, second) = (start("c", 1, &c.0, &d.1), start("d", 2, &d.0, &c.1));
    let (of_c, of_d) = (ticket_of("c"), ticket_of("d"));
    assert!(of_c.starts_with("towpath1:") && of_c.lines().count() == 1, "{of_c}");
    // What it has of both families; how the relay sees it is a third address.
    let said = of_c.parse::<Ticket>().unwrap().candidates;
    for own in ["192.168.1.2:51820", "[fd0c::2]:51820"] {
        assert!(said.contains(&Candidate::Own(own.parse().unwrap())), "{said:?}");
    }
    accept("c", &of_d).unwrap();
    accept("d", &of_c).unwrap();
    (first, second, relay)
}

/// `towpath ticket` with these arguments.
fn ticket(host: &str, arguments: &str) -> Output {
    let lab = env!("CARGO_BIN_EXE_towpath-lab");
    // Its parent is the shell.
    try_sh(&format!("ip netns exec {host} {lab} __tunnel - $$ ticket {arguments}"))
}

fn ticket_of(host: &str) -> String {
    let output = ticket(host, &format!("tow{host}"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// What is said when it is refused.
fn accept(host: &str, text: &str) -> Result<(), String> {
    let output = ticket(host, &format!("tow{host} --accept {text}"));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() { Ok(()) } else { Err(said) }
}

pub fn two_ends_behind_nat_meet_directly(world: World) {
    // The port stays, and only whoever was sent to is let in.
    let (mut first, mut second, relay) = meet(&world, "masquerade", false);
    sh("ip netns exec c ping -c 3 -i 0.2 -W 5 10.77.0.2");
    let ping = std::thread::spawn(|| sh("ip netns exec c ping -c 100 -i 0.1 -W 2 10.77.0.2"));
    first.wait_for("another path is used");
    second.wait_for("another path is used");
    ping.join().unwrap();
    // It goes on without the relay.
    drop(relay);
    sh("ip netns exec c ping -c 5 -i 0.2 -W 2 10.77.0.2");
    drop((first, second));
}

pub fn two_ends_behind_random_nat_meet_at_the_relay(world: World) {
    let (first, second, relay) = meet(&world, "masquerade random", true);
    let older = ticket_of("d");
    sh("ip netns exec c ping -c 30 -i 0.2 -W 5 10.77.0.2; ip netns exec d ping -c 3 -i 0.2 -W 5 10.77.0.1");
    let newer = ticket_of("d");
    accept("c", &newer).unwrap();
    assert!(accept("c", &older).unwrap_err().contains("newer ticket"));
    assert!(accept("d", &newer).unwrap_err().contains("has no peer"));
    let changed = newer.trim().replace(&newer[60..64], "AAAA");
    assert!(accept("c", &changed).unwrap_err().contains("signature is wrong"));
    // Neither end knows more of the other than its address at the relay, which is started again.
    let mut again = None;
    let outage = longest_outage(&world, "c", 8, |world| {
        pass(Duration::from_secs(1));
        sh(&format!("kill -9 {}", relay.pid()));
        again = Some(self::relay(world, &["--allow-peer", "10.1.0.0/24"]));
    });
    println!("without the relay for {outage:.2} s");
    assert!(outage <= 2.0, "{outage}");
    sh("ip netns exec c ping -c 3 -i 0.2 -W 2 10.77.0.2");
    let log = first.stop().join("\n");
    assert!(!log.contains("another path is used"), "{log}");
    drop((second, relay, again));
}
