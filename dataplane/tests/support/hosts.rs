//! Two hosts with a cable between them, in network namespaces inside a user and mount namespace of the calling test's own, and
//! the programs that run there.
//!
//! ```text
//!   a  192.0.2.1, 2001:db8::1  left ── right  192.0.2.2, 2001:db8::2  b
//! ```
#![allow(dead_code, reason = "each test file uses its part")]

#[path = "user_namespace.rs"]
pub mod user_namespace;

use std::fs;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use dataplane::netlink::Handle;
use dataplane::sys::namespace;
use dataplane::tunnel::key::SecretKey;
use dataplane::tunnel::noise;
use rustix::process::{Pid, Signal, kill_process};
use user_namespace::left_out::left_out;

pub const TOWPATH: &str = env!("CARGO_BIN_EXE_towpath");
pub const PATIENCE: Duration = Duration::from_secs(10);

/// A network namespace: whatever is to happen in it runs on a thread that has entered it.
pub struct Namespace(fs::File);

impl Namespace {
    fn new() -> Self {
        let made = std::thread::spawn(|| {
            namespace::unshare_net().unwrap();
            fs::File::open("/proc/thread-self/ns/net").unwrap()
        });
        Self(made.join().unwrap())
    }

    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                namespace::enter(self.0.as_fd()).unwrap();
                work()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// What a shell command prints, which must succeed.
    pub fn sh(&self, script: &str) -> String {
        let output = self.run(|| shell(script));
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{script}\n{text}\n{}", String::from_utf8_lossy(&output.stderr));
        text
    }
}

/// The output of a shell command, with the programs for administrators in its path.
pub fn shell(script: &str) -> Output {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    Command::new("sh").args(["-ec", script]).env("PATH", path).stdin(Stdio::null()).output().unwrap()
}

/// The two hosts.
pub struct Cable {
    pub a: Namespace,
    pub b: Namespace,
}

impl Cable {
    /// Runs the calling test again inside and answers `None`, also where it cannot run; inside, answers the hosts.
    pub fn enter(test: &str) -> Option<Self> {
        if let Err(error) = fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun") {
            left_out(&format!("/dev/net/tun: {error}"));
            return None;
        }
        user_namespace::inside(test).then(Self::new)
    }

    fn new() -> Self {
        let (a, b) = (Namespace::new(), Namespace::new());
        let mut handle = Handle::open().unwrap();
        let (left, right) = handle.add_veth("left", "right").unwrap();
        handle.move_to_namespace(left, a.0.as_fd()).unwrap();
        handle.move_to_namespace(right, b.0.as_fd()).unwrap();
        for (side, name, number) in [(&a, "left", 1), (&b, "right", 2)] {
            side.run(|| {
                // No address of the link, which would come by itself, some time later.
                fs::write(format!("/proc/sys/net/ipv6/conf/{name}/addr_gen_mode"), "1").unwrap();
                let mut handle = Handle::open().unwrap();
                for up in ["lo", name] {
                    let index = handle.link_index(up).unwrap();
                    handle.set_up(index).unwrap();
                }
                let index = handle.link_index(name).unwrap();
                for address in [format!("192.0.2.{number}/24"), format!("2001:db8::{number}/64")] {
                    handle.add_address(index, address.parse().unwrap()).unwrap();
                }
            });
        }
        Self { a, b }
    }
}

/// A configuration of host 1 or 2, with lines of `[Interface]` and of its `[Peer]`, which is the other one.
pub fn configuration(number: u8, interface: &str, peer: &str) -> String {
    let key = |number: u8| SecretKey::new([number; 32]).clamped();
    format!(
        "[Interface]\nPrivateKey = {}\nAddress = 10.99.0.{number}/24, fd99::{number}/64\n{interface}\n\
         [Peer]\nPublicKey = {}\n{peer}\n",
        *key(number).to_base64(),
        noise::public_key(&key(3 - number)),
    )
}

/// A running program of ours and what it has logged.
pub struct Running {
    pub child: Child,
    log: PathBuf,
}

impl Running {
    /// Starts a program on a host.
    pub fn spawn(side: &Namespace, mut command: Command, log: PathBuf) -> Self {
        let output = fs::File::create(&log).unwrap();
        command.stdin(Stdio::null()).stdout(output.try_clone().unwrap()).stderr(output);
        Self { child: side.run(|| command.spawn().unwrap()), log }
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// Waits until this is in the log.
    pub fn wait_for(&mut self, text: &str) {
        let start = Instant::now();
        while !self.log().contains(text) {
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none() && start.elapsed() < PATIENCE, "no {text:?}: {}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    pub fn wait(&mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(start.elapsed() < PATIENCE, "it does not end: {}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The lines of a log in JSON.
    pub fn lines(&self) -> Vec<serde_json::Value> {
        self.log().lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Asks it to end and answers the ledger in its log, which is in JSON.
    pub fn stop(mut self) -> serde_json::Value {
        self.signal(Signal::TERM);
        let status = self.wait();
        assert!(status.success(), "{status}: {}", self.log());
        let lines = self.lines();
        let ledger = lines.iter().find(|line| line["message"] == "ledger").expect("a ledger");
        ledger["figures"].clone()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // A failed test must not leave it behind; otherwise it has ended, or is not looked at any more.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
