//! Three hosts, `a` — `r` — `b`, in network namespaces inside a user and mount namespace of the test's own.
//!
//! ```text
//!   a 10.1.0.2, fd01::2 ── r 10.1.0.1, fd01::1 | 10.2.0.1, fd02::1 ── b 10.2.0.2, fd02::2
//! ```

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use dataplane::sys::namespace;
use dataplane::sys::udp::{UdpOptions, UdpSocket};
use rustix::process::{Pid, Signal, kill_process};

/// The programs that `apt-get` installs, with their packages.
const PROGRAMS: [(&str, &str); 11] = [
    ("wireguard-go", "wireguard-go"),
    ("wg", "wireguard-tools"),
    ("wg-quick", "wireguard-tools"),
    ("nft", "nftables"),
    ("sysctl", "procps"),
    ("turnserver", "coturn"),
    ("turnutils_uclient", "coturn"),
    ("iperf3", "iperf3"),
    ("ip", "iproute2"),
    ("ping", "iputils-ping"),
    ("strace", "strace"),
];

/// The three hosts; everything in them ends with this value.
pub struct World {
    dir: PathBuf,
}

/// Starts a program in namespaces of its own, where it may build a [`World`].
pub fn unshare() -> Command {
    let mut command = command("unshare");
    command.args(["--user", "--map-root-user", "--net", "--mount"]);
    command
}

/// A command of the test's own.
pub fn command(program: &str) -> Command {
    #[expect(clippy::disallowed_methods, reason = "a test starts programs and has no ring open")]
    Command::new(program)
}

/// What a world needs and this machine has not.
pub fn missing() -> Option<String> {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let has = |program: &str| path.split(':').any(|dir| PathBuf::from(dir).join(program).exists());
    let packages: Vec<&str> =
        PROGRAMS.iter().filter(|(program, _)| !has(program)).map(|&(_, package)| package).collect();
    if !packages.is_empty() {
        return Some(format!("programs to compare with: apt-get install {}", packages.join(" ")));
    }
    let probe = unshare().args(["sh", "-c", "exec 3<>/dev/net/tun"]).output();
    match probe {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(format!(
            "user namespaces and TUN (sysctl kernel.unprivileged_userns_clone=1, chmod 0666 /dev/net/tun): {}",
            String::from_utf8_lossy(&output.stderr).trim()
        )),
        Err(error) => Some(format!("`unshare`: {error}; apt-get install util-linux")),
    }
}

/// The output of a shell command that must succeed.
pub fn sh(script: &str) -> String {
    let output = try_sh(script);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{script}\n{text}\n{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// The output of a shell command that may fail.
pub fn try_sh(script: &str) -> Output {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    command("sh").args(["-ec", script]).env("PATH", path).stdin(Stdio::null()).output().unwrap()
}

impl World {
    /// Builds the hosts in the namespaces of this process, which has to be in its own.
    pub fn new() -> Self {
        let dir = std::env::temp_dir().join(format!("towpath-world-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        sh("mount -t tmpfs tmpfs /run && mkdir -p /run/netns /run/wireguard");
        for (host, link, near, far) in [("a", "1", "2", "1"), ("b", "2", "2", "1")] {
            sh(&format!(
                "ip netns list | grep -qw r || ip netns add r; ip netns add {host}
                 ip link add {host}0 netns {host} type veth peer name r{host} netns r
                 ip -n {host} addr add 10.{link}.0.{near}/24 dev {host}0
                 ip -n {host} addr add fd0{link}::{near}/64 dev {host}0 nodad
                 ip -n r addr add 10.{link}.0.{far}/24 dev r{host}
                 ip -n r addr add fd0{link}::{far}/64 dev r{host} nodad
                 ip -n {host} link set lo up; ip -n r link set lo up
                 ip -n {host} link set {host}0 up; ip -n r link set r{host} up
                 ip -n {host} route add default via 10.{link}.0.{far}
                 ip -n {host} -6 route add default via fd0{link}::{far}"
            ));
        }
        sh(
            "ip netns exec r sh -c 'echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding'",
        );
        Self { dir }
    }

    /// Where [`World::file`] writes.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Writes a file that only its owner can read.
    pub fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, content).unwrap();
        sh(&format!("chmod 600 {}", path.display()));
        path
    }

    /// Starts a program on a host and waits until a line of its output contains `ready`.
    pub fn start(&self, host: &str, program: &[&str], ready: &str) -> Process {
        let mut command = command("ip");
        command.args(["netns", "exec", host]).args(program);
        command.env("PATH", std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = Process::new(command.spawn().unwrap());
        process.wait_for(ready);
        process
    }

    /// Starts `towpath up FILE` with flags.
    pub fn tunnel(&self, host: &str, file: &std::path::Path, flags: &[&str]) -> Process {
        let file = file.display().to_string();
        let parent = std::process::id().to_string();
        let mut program = vec![env!("CARGO_BIN_EXE_towpath-lab"), "__tunnel", "-", &parent, "up", &file];
        program.extend(flags);
        self.start(host, &program, "ready")
    }

    /// Starts `towpath-relay` with flags.
    pub fn relay(&self, host: &str, flags: &[&str]) -> Process {
        let parent = std::process::id().to_string();
        let mut program = vec![env!("CARGO_BIN_EXE_towpath-lab"), "__relay", "-", &parent];
        if !flags.contains(&"--drain-timeout") {
            program.extend(["--drain-timeout", "0"]);
        }
        program.extend(flags);
        self.start(host, &program, "ready")
    }

    /// Sends so many megabytes by `iperf3` from one host to another, and as many back, and answers the Gbit/s received.
    pub fn iperf(&self, from: &str, to: &str, address: &str, megabytes: u32) -> [f64; 2] {
        ["", "-R"].map(|direction| {
            let server = self.start(to, &["iperf3", "-s", "-1", "--forceflush"], "listening");
            let json = sh(&format!(
                "ip netns exec {from} iperf3 -c {address} -n {megabytes}M --connect-timeout 3000 -J {direction}"
            ));
            drop(server);
            let result: serde_json::Value = serde_json::from_str(&json).unwrap();
            let bits = result["end"]["sum_received"]["bits_per_second"].as_f64().unwrap_or(0.0);
            assert!(bits > 1e6, "iperf3 {direction} {address}: {bits} bit/s\n{json}");
            bits / 1e9
        })
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// A program, ended with this value.
pub struct Process {
    child: Child,
    lines: std::sync::mpsc::Receiver<String>,
    seen: Vec<String>,
}

impl Process {
    /// Reads the lines of one whose output goes to pipes.
    pub fn new(mut child: Child) -> Self {
        let (sender, lines) = std::sync::mpsc::channel();
        let streams: [Box<dyn std::io::Read + Send>; 2] =
            [Box::new(child.stdout.take().unwrap()), Box::new(child.stderr.take().unwrap())];
        for stream in streams {
            let sender = sender.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(stream).lines().map_while(Result::ok) {
                    let _ = sender.send(line);
                }
            });
        }
        Self { child, lines, seen: Vec::new() }
    }

    /// Waits, 10 s at most, until a line contains `text`.
    pub fn wait_for(&mut self, text: &str) {
        #[expect(clippy::disallowed_methods, reason = "a test may read the clock")]
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            match self.lines.recv_timeout(Duration::from_millis(100)) {
                Ok(line) => {
                    let found = line.contains(text);
                    self.seen.push(line);
                    if found {
                        return;
                    }
                }
                Err(_) => {
                    #[expect(clippy::disallowed_methods, reason = "a test may read the clock")]
                    let late = Instant::now() > deadline;
                    let ended = self.child.try_wait().unwrap();
                    assert!(
                        !late && ended.is_none(),
                        "no {text:?} ({ended:?}) in:\n{}",
                        self.seen.join("\n")
                    );
                }
            }
        }
    }

    /// Process number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Asks it to end, waits, and answers everything it has printed.
    pub fn stop(mut self) -> Vec<String> {
        self.terminate();
        while let Ok(line) = self.lines.recv_timeout(Duration::from_millis(500)) {
            self.seen.push(line);
        }
        std::mem::take(&mut self.seen)
    }

    fn terminate(&mut self) {
        if let Some(pid) = Pid::from_raw(self.child.id() as i32) {
            let _ = kill_process(pid, Signal::TERM);
        }
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.terminate();
        }
    }
}

/// A UDP socket on a host, which tells ECN bits.
pub fn socket(host: &str, address: &str) -> UdpSocket {
    let (host, address) = (format!("/run/netns/{host}"), address.parse::<SocketAddr>().unwrap());
    let made = std::thread::spawn(move || {
        namespace::enter(fs::File::open(host).unwrap()).unwrap();
        UdpSocket::bind(address, &UdpOptions { ecn: true, ..UdpOptions::default() }).unwrap()
    });
    made.join().unwrap()
}

/// A pair of keys: private and public.
pub fn keys() -> (String, String) {
    let private = sh("wg genkey").trim().to_owned();
    let public = sh(&format!("echo {private} | wg pubkey")).trim().to_owned();
    (private, public)
}
