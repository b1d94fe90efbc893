//! What is left of keys in the memory of a running `towpath up`.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::UnixStream;

use dataplane::tunnel::key::{PublicKey, SecretKey};
use dataplane::tunnel::noise;

use super::*;

/// A key that nothing else looks like.
fn key(number: u64) -> SecretKey {
    let byte = |at: u64| ((number * 131 + at).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as u8;
    SecretKey::new(std::array::from_fn(|at| byte(at as u64))).clamped()
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The halves of a key as it is, and in both of its texts. The outermost bytes are left out: clamping changes them.
fn looks_of(key: &SecretKey) -> Vec<Vec<u8>> {
    let bytes = key.expose();
    let (base64, hexadecimal) = (key.to_base64(), hexadecimal(bytes));
    [&bytes[1..17], &bytes[15..31], &base64.as_bytes()[2..22], &base64.as_bytes()[22..42]]
        .into_iter()
        .chain([&hexadecimal.as_bytes()[2..32], &hexadecimal.as_bytes()[32..62]])
        .map(<[u8]>::to_vec)
        .collect()
}

/// Where keys are in the memory of a process.
fn found(process: &Running, keys: &[(&str, &SecretKey)]) -> Vec<String> {
    let folder = PathBuf::from(format!("/proc/{}", process.child.id()));
    let maps = fs::read_to_string(folder.join("maps")).unwrap();
    let memory = fs::File::open(folder.join("mem")).unwrap();
    let looks: Vec<_> = keys
        .iter()
        .flat_map(|(name, key)| {
            looks_of(key).into_iter().enumerate().map(move |(form, look)| (name, form, look))
        })
        .collect();
    let mut begins = [false; 256];
    looks.iter().for_each(|(.., look)| begins[usize::from(look[0])] = true);
    let mut places = Vec::new();
    for map in maps.lines().filter(|line| !line.contains("[v") && line.contains(" r")) {
        let (start, end) = map.split(' ').next().and_then(|range| range.split_once('-')).unwrap();
        let [start, end] = [start, end].map(|address| u64::from_str_radix(address, 16).unwrap());
        let mut bytes = vec![0; (end - start) as usize];
        // What was unmapped meanwhile holds nothing.
        let len = memory.read_at(&mut bytes, start).unwrap_or(0);
        for at in (0..len).filter(|at| begins[usize::from(bytes[*at])]) {
            let here = looks.iter().filter(|(.., look)| bytes[at..len].starts_with(look));
            places.extend(
                here.map(|(name, form, _)| {
                    format!("{name}, form {form}, at {:x} in {map}", start + at as u64)
                }),
            );
        }
    }
    places
}

/// Leaves a program the one capability that a tunnel needs.
const LIMITED: [&str; 2] = ["setpriv", "--bounding-set=-all,+net_admin"];

/// The answer of the tunnel to a request in the protocol of `wg`.
fn ask(request: &str) -> String {
    let mut stream = UnixStream::connect("/run/wireguard/tow1.sock").unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.ends_with("errno=0\n\n"), "{answer}");
    answer
}

#[test]
fn keys_that_are_replaced_or_removed_leave_the_memory() {
    let Some(hosts) = hosts("memory::keys_that_are_replaced_or_removed_leave_the_memory") else { return };
    if !shell("command -v setpriv").status.success() {
        return left_out("memory that others cannot read: apt-get install util-linux");
    }
    assert!(shell("mount -t tmpfs tmpfs /run; mkdir -p /run/wireguard").status.success());
    let [ours, theirs, shared, next, last, other] = [1, 2, 3, 4, 5, 6].map(key);
    let public = |key: &SecretKey| -> PublicKey { noise::public_key(key) };
    let file = |number: u8, own: &SecretKey, peer: &SecretKey, more: &str| {
        let text = format!(
            "[Interface]\nPrivateKey = {}\nAddress = 10.99.0.{number}/24\nListenPort = 5182{number}\n[Peer]\n\
             PublicKey = {}\nPresharedKey = {}\nAllowedIPs = 10.99.0.{}/32\n{more}\n",
            *own.to_base64(),
            public(peer),
            *shared.to_base64(),
            3 - number
        );
        hosts.file(&format!("tow{number}.conf"), &text)
    };
    let _callee = hosts.start(&hosts.b, &file(2, &theirs, &ours, ""));
    for io in ["suspend", "auto"] {
        let file = file(1, &ours, &theirs, "Endpoint = 192.0.2.2:51822");
        let plain = hosts.towpath(&["up", file.to_str().unwrap(), "--io", io]);
        let mut command = Command::new(LIMITED[0]);
        command.args(&LIMITED[1..]).arg(TOWPATH).args(plain.get_args());
        command
            .envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))))
            .env_remove("RUST_LOG");
        let mut running = hosts.run(&hosts.a, command);
        running.wait_for(" ready ");
        echo(&hosts, "10.99.0.2:9");
        let keys = [("private", &ours), ("preshared", &shared)];
        let before = found(&running, &keys);
        assert!(
            keys.iter().all(|(name, _)| before.iter().any(|place| place.starts_with(name))),
            "{before:?}"
        );
        is_closed_to_others(&running);

        // However often it is asked, it tells the same of one handshake.
        let told = || {
            let answer = ask("get=1\n\n");
            answer.lines().filter(|line| line.starts_with("last_handshake")).collect::<Vec<_>>().join(" ")
        };
        let first = told();
        assert!(!first.contains("sec=0 "), "{first}");
        assert!((0..100).all(|_| told() == first));

        let peer = hexadecimal(&public(&theirs).0);
        let hex = |key: &SecretKey| hexadecimal(key.expose());
        ask(&format!("set=1\nprivate_key={}\npublic_key={peer}\nremove=true\n\n", hex(&next)));
        is_gone(&running, &keys, &format!("--io {io}, from the file"));
        // The next ones come by this protocol, and a handshake is tried with them.
        ask(&format!(
            "set=1\npublic_key={peer}\npreshared_key={}\nendpoint=192.0.2.2:51822\nallowed_ip=10.99.0.2/32\n\
             persistent_keepalive_interval=1\n\n",
            hex(&other)
        ));
        ask("get=1\n\n");
        ask(&format!("set=1\nprivate_key={}\npublic_key={peer}\nremove=true\n\n", hex(&last)));
        is_gone(
            &running,
            &[("next private", &next), ("next preshared", &other)],
            &format!("--io {io}, by wg"),
        );
        running.signal(Signal::TERM);
        assert!(running.wait().success(), "{}", running.log());
    }
}

/// Waits for the end of what was under way, and no longer.
fn is_gone(running: &Running, keys: &[(&str, &SecretKey)], when: &str) {
    let start = Instant::now();
    loop {
        let places = found(running, keys);
        if places.is_empty() {
            return;
        }
        assert!(start.elapsed() < Duration::from_secs(3), "{when}: {places:#?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Who has what it may do and no more does not read its memory, and no core dump is made of it: both go by the same flag.
fn is_closed_to_others(running: &Running) {
    let read = |process: u32| shell(&format!("{} head -c 1 /proc/{process}/auxv", LIMITED.join(" "))).status;
    let mut like_it = Command::new(LIMITED[0]).args(&LIMITED[1..]).args(["sleep", "60"]).spawn().unwrap();
    let start = Instant::now();
    while !read(like_it.id()).success() {
        assert!(start.elapsed() < PATIENCE, "another process can be read");
    }
    like_it.kill().unwrap();
    like_it.wait().unwrap();
    assert!(!read(running.child.id()).success());
}
