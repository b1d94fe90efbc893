//! How soon a tunnel that is started carries packets.

use std::net::UdpSocket;
use std::process::Stdio;
use std::time::{Duration, Instant};

use dataplane::sys::namespace;

use super::world::{Process, World, command, keys};

/// What the start may take, a handshake included, in the middle of some runs. A build for tests is slower, and is mostly run
/// beside something else.
const START_MAX: Duration = Duration::from_millis(if cfg!(debug_assertions) { 150 } else { 50 });
const RUNS: usize = 5;
/// How often is tried whether packets pass.
const KNOCK: Duration = Duration::from_micros(500);

#[expect(clippy::disallowed_methods, reason = "a test may read the clock")]
fn now() -> Instant {
    Instant::now()
}

/// Sends from an address as soon as there is one, until something comes back; when that was.
fn knock(from: &str, to: &str) -> Instant {
    let deadline = now() + Duration::from_secs(10);
    let mut socket = None;
    while now() < deadline {
        if socket.is_none() {
            socket = UdpSocket::bind(from).ok().inspect(|socket| socket.set_nonblocking(true).unwrap());
        }
        if let Some(socket) = &socket {
            // Refused while there is no route, and when somebody on a wrong way says so.
            let _ = socket.send_to(b"knock", to);
            if socket.recv_from(&mut [0; 16]).is_ok() {
                return now();
            }
        }
        std::thread::sleep(KNOCK);
    }
    panic!("nothing came back from {to}");
}

/// From the start of the program until it says `ready`, and until a packet has been answered through the tunnel.
fn start(world: &World, file: &std::path::Path) -> [Duration; 2] {
    std::thread::scope(|scope| {
        let knocking = scope.spawn(|| {
            namespace::enter(std::fs::File::open("/run/netns/a").unwrap()).unwrap();
            knock("10.77.0.1:7000", "10.77.0.2:7000")
        });
        let mut lab = command("nsenter");
        lab.args(["--net=/run/netns/a", env!("CARGO_BIN_EXE_towpath-lab"), "__tunnel", "-"]);
        lab.arg(std::process::id().to_string()).arg("up").arg(file);
        lab.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let began = now();
        let mut process = Process::new(lab.spawn().unwrap());
        process.wait_for("ready");
        let ready = now() - began;
        let answered = knocking.join().unwrap() - began;
        drop(process);
        let _ = world;
        [ready, answered]
    })
}

pub fn a_tunnel_carries_packets_soon_after_its_start(world: World) {
    let (a, b) = (keys(), keys());
    let peer =
        |key: &str, inside: u8| format!("[Peer]\nPublicKey = {key}\nAllowedIPs = 10.77.0.{inside}/32\n");
    let text = format!(
        "[Interface]\nPrivateKey = {}\nListenPort = 51820\nAddress = 10.77.0.2/24\n{}",
        b.0,
        peer(&a.1, 1)
    );
    let callee = world.tunnel("b", &world.file("far.conf", &text), &[]);
    let far = std::thread::spawn(|| {
        namespace::enter(std::fs::File::open("/run/netns/b").unwrap()).unwrap();
        UdpSocket::bind("10.77.0.2:7000").unwrap()
    });
    let far = far.join().unwrap();
    std::thread::spawn(move || {
        let mut bytes = [0; 16];
        while let Ok((len, from)) = far.recv_from(&mut bytes) {
            let _ = far.send_to(&bytes[..len], from);
        }
    });
    let text = format!(
        "[Interface]\nPrivateKey = {}\nAddress = 10.77.0.1/24\n{}Endpoint = 10.2.0.2:51820\n",
        a.0,
        peer(&b.1, 2)
    );
    // Another interface each time, so that none waits for the end of the one before.
    let runs: Vec<[Duration; 2]> =
        (0..RUNS).map(|run| start(&world, &world.file(&format!("near{run}.conf"), &text))).collect();
    for (which, what) in ["ready", "the first packet is answered"].into_iter().enumerate() {
        let mut times: Vec<Duration> = runs.iter().map(|run| run[which]).collect();
        times.sort();
        println!("{what} after {:.1?} (median of {RUNS}; {times:.1?})", times[RUNS / 2]);
        assert!(times[RUNS / 2] <= START_MAX, "{what}: {times:?}");
    }
    drop(callee);
}
