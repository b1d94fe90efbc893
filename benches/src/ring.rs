//! What the ring costs above the raw kernel path: CPU time per forwarded packet, in turns.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, bail};
use dataplane::sys::udp::{UdpOptions, UdpSocket};

use crate::load::{self, Counted, Flow, Load};
use crate::process::{Process, Role};

/// One kind of traffic.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// Its name in the table.
    pub name: &'static str,
    /// Sockets that the forwarder listens on.
    pub sockets: usize,
    /// What is sent.
    pub load: Load,
    /// The ratio that is allowed.
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
            load: Load { rate: 400_000, size: 1252, burst: 40, superpackets: true, duration, patient: false },
            limit: 1.20,
        },
        Case {
            name: "sparse, 1,000 sockets, 160 B",
            sockets: 1000,
            load: Load { rate: 30_000, size: 160, burst: 1, superpackets: false, duration, patient: false },
            limit: 1.15,
        },
    ]
}

/// What one turn came to.
#[derive(Clone, Debug)]
pub struct Turn {
    /// CPU nanoseconds per packet that arrived at the sink.
    pub nanoseconds: f64,
    /// The load's ledger.
    pub counted: Counted,
    /// Largest resident memory in KiB.
    pub resident_kib: u64,
    /// What the forwarder printed.
    pub log: Vec<String>,
}

/// One turn of `benches forward` with `arguments`.
///
/// # Errors
/// When the forwarder does not start or nothing arrives.
pub fn measure(case: &Case, arguments: &[&str]) -> anyhow::Result<Turn> {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let options = UdpOptions { packet_info: false, receive_buffer: 32 << 20, ..UdpOptions::default() };
    let sink = UdpSocket::bind(any, &options)?;
    let program = std::env::current_exe()?.display().to_string();
    let (sockets, to) = (case.sockets.to_string(), sink.local_addr().to_string());
    let mut command_line = vec![program.as_str(), "forward", "--sockets", &sockets, "--sink", &to];
    command_line.extend(arguments);
    let command_line: Vec<String> = command_line.into_iter().map(str::to_owned).collect();
    let mut forwarder = Process::start("the forwarder", Role::Program, &command_line, None)?;
    let line = forwarder.wait_for("127.0.0.1:", Duration::from_secs(10))?;
    let first: SocketAddr = line.trim().parse().with_context(|| format!("the forwarder said {line:?}"))?;
    let source = UdpSocket::bind(any, &UdpOptions::default())?;
    let flows: Vec<Flow> = (0..case.sockets as u16)
        .map(|index| SocketAddr::new(first.ip(), first.port() + index))
        .map(|to| Flow { socket: source.clone(), to, header: Vec::new() })
        .collect();
    let before = load::cpu_seconds(forwarder.pid())?;
    let counted = load::run(case.load, &flows, &sink)?;
    let used = load::cpu_seconds_since(forwarder.pid(), before)?;
    let resident_kib = load::resident_kib(forwarder.pid(), "VmHWM");
    let log = forwarder.stop()?;
    if counted.arrived == 0 {
        bail!("nothing arrived at the sink");
    }
    Ok(Turn { nanoseconds: used * 1e9 / counted.arrived as f64, counted, resident_kib, log })
}
