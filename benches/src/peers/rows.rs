//! What is measured: the rows, who competes in each, and what the project demands of them.

use std::time::Duration;

use super::Plan;
use crate::load::Load;

/// Which question a row answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// The project's targets; always run.
    Targets,
    /// What the I/O designs cost on the same work (`--io-designs`).
    Designs,
    /// What a flag is worth (`--settings`): the measurements behind the defaults.
    Settings,
}

/// Who does the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// Towpath, with flags.
    Towpath,
    /// A page of system calls, without an engine.
    Kernel,
    /// Debian's wireguard-go.
    WireguardGo,
    /// Debian's coturn.
    Coturn,
}

/// One side of a row.
#[derive(Clone, Copy, Debug)]
pub struct Contender {
    /// Its name in the table.
    pub name: &'static str,
    /// The program.
    pub who: Who,
    /// Flags of Towpath's engine.
    pub flags: &'static str,
}

/// A load without its length.
#[derive(Clone, Copy, Debug)]
pub struct Traffic {
    /// Datagrams a second.
    pub rate: u64,
    /// Bytes in a datagram.
    pub size: usize,
    /// Datagrams that leave at once.
    pub burst: usize,
    /// As one superpacket, or by a system call each.
    pub superpackets: bool,
}

impl Traffic {
    pub(super) fn lasting(self, duration: Duration) -> Load {
        let Self { rate, size, burst, superpackets } = self;
        Load { rate, size, burst, superpackets, duration }
    }
}

/// What each side does in a turn.
#[derive(Clone, Copy, Debug)]
pub enum Work {
    /// Forward datagrams on loopback: the case of this index in [`crate::ring::cases`].
    Forward(usize),
    /// Relay one flow of ChannelData from a client to a peer.
    Relay(Traffic),
    /// Carry one TCP stream of iperf3 through a tunnel of MTU 1420.
    TunnelStream,
    /// Carry one flow of UDP datagrams through the same tunnel.
    TunnelDatagrams(Traffic),
    /// Hold allocations.
    RelayMemory,
}

impl Work {
    /// What the cost is measured in.
    #[must_use]
    pub fn cost_unit(self) -> &'static str {
        match self {
            Self::Forward(_) | Self::Relay(_) | Self::TunnelDatagrams(_) => "CPU ns/datagram",
            Self::TunnelStream => "CPU s/GB",
            Self::RelayMemory => "KiB/allocation",
        }
    }

    /// What the rate is measured in.
    #[must_use]
    pub fn rate_unit(self) -> &'static str {
        match self {
            Self::Forward(_) | Self::Relay(_) | Self::TunnelDatagrams(_) => "k/s",
            Self::TunnelStream => "Gbit/s",
            Self::RelayMemory => "allocations",
        }
    }

    /// Turns: memory hardly varies, and two thousand allocations take their time.
    pub(super) fn runs(self, plan: &Plan) -> usize {
        if matches!(self, Self::RelayMemory) { plan.runs.min(3) } else { plan.runs }
    }
}

/// What is demanded of the last side against the first.
#[derive(Clone, Copy, Debug, Default)]
pub struct Target {
    /// Largest ratio of costs.
    pub cost_ratio_max: Option<f64>,
    /// Smallest ratio of rates.
    pub rate_ratio_min: Option<f64>,
    /// Largest resident memory of each process in KiB.
    pub resident_kib_max: Option<u64>,
    /// Largest cost.
    pub cost_max: Option<f64>,
}

/// One table.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// What the command line calls it.
    pub name: &'static str,
    /// What the table calls it.
    pub title: &'static str,
    /// Which question it answers.
    pub group: Group,
    /// What is done.
    pub work: Work,
    /// By whom; ratios are to the first.
    pub contenders: &'static [Contender],
    /// What is demanded.
    pub target: Target,
}

const NO_TARGET: Target =
    Target { cost_ratio_max: None, rate_ratio_min: None, resident_kib_max: None, cost_max: None };
const KERNEL: Contender = Contender { name: "kernel calls", who: Who::Kernel, flags: "" };
const COTURN: Contender = Contender { name: "coturn", who: Who::Coturn, flags: "" };
const WIREGUARD_GO: Contender = Contender { name: "wireguard-go", who: Who::WireguardGo, flags: "" };
const OURS: Contender = ours("towpath", "--io uring");

const fn ours(name: &'static str, flags: &'static str) -> Contender {
    Contender { name, who: Who::Towpath, flags }
}

const DESIGNS: &[Contender] = &[
    ours("uring, thread", "--io uring --completions thread"),
    ours("uring, inline", "--io uring --completions inline"),
    ours("suspend", "--io suspend"),
    ours("threaded", "--io threaded"),
    ours("drop", "--io drop"),
    ours("runtime", "--io runtime"),
];
const INGRESS: &[Contender] =
    &[ours("epoll", "--io uring --ingress epoll"), ours("io_uring", "--io uring --ingress uring")];
const INGRESS_AND_KERNEL: &[Contender] = &[KERNEL, INGRESS[0], INGRESS[1]];
const COMPLETIONS: &[Contender] =
    &[ours("inline", "--io uring --completions inline"), ours("thread", "--io uring --completions thread")];
const GSO: &[Contender] = &[ours("on", "--io uring --gso on"), ours("off", "--io uring --gso off")];

/// One datagram in a millisecond: every one is alone.
const SPARSE: Traffic = Traffic { rate: 1_000, size: 1_252, burst: 1, superpackets: false };
/// A few at a time.
const MEDIUM: Traffic = Traffic { rate: 20_000, size: 1_252, burst: 1, superpackets: false };
/// Superpackets, at a rate that coturn can follow.
const BULK: Traffic = Traffic { rate: 40_000, size: 1_252, burst: 40, superpackets: true };
/// The same from a client that makes a system call for each.
const TRAIN: Traffic = Traffic { superpackets: false, ..BULK };

const MEBIBYTE_KIB: u64 = 1_024;

const fn setting(
    name: &'static str,
    title: &'static str,
    work: Work,
    contenders: &'static [Contender],
) -> Row {
    Row { name, title, group: Group::Settings, work, contenders, target: NO_TARGET }
}

/// Every row.
pub const ROWS: &[Row] = &[
    Row {
        name: "ring-bulk",
        title: "Forwarding on loopback, 1 socket, 400,000/s of 1,252 B in superpackets of 40",
        group: Group::Targets,
        work: Work::Forward(0),
        contenders: &[KERNEL, OURS],
        target: Target { cost_ratio_max: Some(1.20), ..NO_TARGET },
    },
    Row {
        name: "ring-sparse",
        title: "Forwarding on loopback, 1,000 sockets, 30,000/s of 160 B one by one",
        group: Group::Targets,
        work: Work::Forward(1),
        contenders: &[KERNEL, OURS],
        target: Target { cost_ratio_max: Some(1.15), ..NO_TARGET },
    },
    Row {
        name: "relay-bulk",
        title: "Relay, 1 flow of ChannelData, 40,000/s of 1,252 B in superpackets of 40",
        group: Group::Targets,
        work: Work::Relay(BULK),
        contenders: &[COTURN, OURS],
        target: Target { cost_ratio_max: Some(0.2), resident_kib_max: Some(30 * MEBIBYTE_KIB), ..NO_TARGET },
    },
    Row {
        name: "relay-train",
        title: "Relay, 1 flow of ChannelData, 40,000/s of 1,252 B in trains of 40, a system call each",
        group: Group::Targets,
        work: Work::Relay(TRAIN),
        contenders: &[COTURN, OURS],
        target: NO_TARGET,
    },
    Row {
        name: "relay-single",
        title: "Relay, 1 flow of ChannelData, 20,000/s of 1,252 B one by one",
        group: Group::Targets,
        work: Work::Relay(MEDIUM),
        contenders: &[COTURN, OURS],
        target: NO_TARGET,
    },
    Row {
        name: "tunnel",
        title: "Tunnel, 1 TCP stream of iperf3, MTU 1420, CPU of both ends",
        group: Group::Targets,
        work: Work::TunnelStream,
        contenders: &[WIREGUARD_GO, OURS],
        target: Target {
            cost_ratio_max: Some(1.0),
            rate_ratio_min: Some(1.0),
            resident_kib_max: Some(30 * MEBIBYTE_KIB),
            cost_max: None,
        },
    },
    Row {
        name: "relay-memory",
        title: "Relay, memory for allocations with a channel and some traffic each",
        group: Group::Targets,
        work: Work::RelayMemory,
        contenders: &[COTURN, OURS],
        target: Target { cost_max: Some(2.0), ..NO_TARGET },
    },
    Row {
        name: "io-tunnel",
        title: "I/O designs: tunnel, 1 TCP stream of iperf3, MTU 1420",
        group: Group::Designs,
        work: Work::TunnelStream,
        contenders: DESIGNS,
        target: NO_TARGET,
    },
    Row {
        name: "io-relay",
        title: "I/O designs: relay, 1 flow, 40,000/s of 1,252 B in superpackets of 40",
        group: Group::Designs,
        work: Work::Relay(BULK),
        contenders: DESIGNS,
        target: NO_TARGET,
    },
    setting("ingress-tunnel-stream", "--ingress: tunnel, 1 TCP stream", Work::TunnelStream, INGRESS),
    setting("ingress-tunnel-medium", "--ingress: tunnel, 20,000/s", Work::TunnelDatagrams(MEDIUM), INGRESS),
    setting("ingress-tunnel-sparse", "--ingress: tunnel, 1,000/s", Work::TunnelDatagrams(SPARSE), INGRESS),
    setting("ingress-relay-bulk", "--ingress: relay, 40,000/s in superpackets", Work::Relay(BULK), INGRESS),
    setting("ingress-relay-medium", "--ingress: relay, 20,000/s one by one", Work::Relay(MEDIUM), INGRESS),
    setting("ingress-relay-sparse", "--ingress: relay, 1,000/s one by one", Work::Relay(SPARSE), INGRESS),
    setting(
        "ingress-forward",
        "--ingress: forwarding, 1 socket, 400,000/s in superpackets",
        Work::Forward(0),
        INGRESS_AND_KERNEL,
    ),
    setting("ingress-sockets", "--ingress: forwarding, 1,000 sockets, 30,000/s", Work::Forward(1), INGRESS),
    setting(
        "completions-tunnel-stream",
        "--completions: tunnel, 1 TCP stream",
        Work::TunnelStream,
        COMPLETIONS,
    ),
    setting(
        "completions-tunnel-medium",
        "--completions: tunnel, 20,000/s",
        Work::TunnelDatagrams(MEDIUM),
        COMPLETIONS,
    ),
    setting(
        "completions-tunnel-sparse",
        "--completions: tunnel, 1,000/s",
        Work::TunnelDatagrams(SPARSE),
        COMPLETIONS,
    ),
    setting(
        "completions-relay-bulk",
        "--completions: relay, 40,000/s in superpackets",
        Work::Relay(BULK),
        COMPLETIONS,
    ),
    setting(
        "completions-relay-medium",
        "--completions: relay, 20,000/s one by one",
        Work::Relay(MEDIUM),
        COMPLETIONS,
    ),
    setting(
        "completions-relay-sparse",
        "--completions: relay, 1,000/s one by one",
        Work::Relay(SPARSE),
        COMPLETIONS,
    ),
    setting("gso-tunnel", "--gso: tunnel, 1 TCP stream", Work::TunnelStream, GSO),
    setting("gso-relay", "--gso: relay, 40,000/s in superpackets", Work::Relay(BULK), GSO),
];
