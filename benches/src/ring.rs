//! What the ring costs above the raw kernel path: CPU time per forwarded packet, in turns.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use dataplane::sys::udp::{UdpOptions, UdpSocket};

use crate::load::{self, Load};

/// One kind of traffic.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// Its name in the table.
    pub name: &'static str,
    /// Sockets that the forwarder listens on.
    pub sockets: usize,
    /// What is sent.
    pub load: Load,
    /// The ratio that issue 2 allows.
    pub limit: f64,
}

/// The cases of the target table.
#[must_use]
pub fn cases(seconds: f64) -> [Case; 2] {
    let duration = Duration::from_secs_f64(seconds);
    [
        Case {
            name: "bulk, 1 socket, 1,252 B × 40",
            sockets: 1,
            load: Load { rate: 400_000, size: 1252, burst: 40, duration },
            limit: 1.20,
        },
        Case {
            name: "sparse, 1,000 sockets, 160 B",
            sockets: 1000,
            load: Load { rate: 30_000, size: 160, burst: 1, duration },
            limit: 1.15,
        },
    ]
}

/// A forwarder in a process of its own, stopped and waited for when dropped.
struct Forwarder(Child);

impl Drop for Forwarder {
    fn drop(&mut self) {
        if let Ok(pid) = i32::try_from(self.0.id())
            && let Some(pid) = rustix::process::Pid::from_raw(pid)
        {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let _ = self.0.wait();
    }
}

/// CPU nanoseconds per packet that arrived at the sink, and the share that arrived.
///
/// # Errors
/// When the forwarder does not start.
#[expect(clippy::disallowed_methods, reason = "a benchmark starts programs")]
pub fn measure(case: &Case, arguments: &[&str]) -> anyhow::Result<(f64, f64)> {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let options = UdpOptions { packet_info: false, receive_buffer: 32 << 20, ..UdpOptions::default() };
    let sink = UdpSocket::bind(any, &options)?;
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("forward").args(arguments);
    command.args(["--sockets", &case.sockets.to_string(), "--sink", &sink.local_addr().to_string()]);
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn()?;
    let mut forwarder = Forwarder(child);
    let output = forwarder.0.stdout.take().context("no output")?;
    let mut line = String::new();
    BufReader::new(output).read_line(&mut line)?;
    let first: SocketAddr = line.trim().parse().with_context(|| format!("the forwarder said {line:?}"))?;
    let targets: Vec<SocketAddr> =
        (0..case.sockets as u16).map(|index| SocketAddr::new(first.ip(), first.port() + index)).collect();
    let before = load::cpu_seconds(forwarder.0.id());
    let counted = load::run(case.load, &targets, &sink)?;
    let used = load::cpu_seconds(forwarder.0.id()) - before;
    if counted.arrived == 0 {
        bail!("nothing arrived at the sink");
    }
    Ok((used * 1e9 / counted.arrived as f64, counted.arrived as f64 / counted.sent as f64))
}
