//! What a row is: the work, who does it, which figures come of it.

use std::time::Duration;

use super::figures::{Figure, Side};
use super::target::{Target, Verdict};
use crate::load::Load;

/// Which question a row answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// The project's targets; always run.
    Targets,
    /// What the I/O designs cost on the same work (`--io`).
    Designs,
    /// What a flag is worth (`--settings`): the measurements behind the defaults.
    Settings,
}

/// Who does the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// Towpath, with flags.
    Towpath,
    /// A page of system calls, without an engine; of a stream, the bare cable.
    Kernel,
    /// The same of a relay with a thread for each core, as the relay has workers.
    KernelOnEveryCore,
    /// wireguard-go.
    WireguardGo,
    /// boringtun-cli, on one thread.
    Boringtun,
    /// coturn.
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
        Load { rate, size, burst, superpackets, duration, patient: false }
    }
}

/// What each side does in a turn.
#[derive(Clone, Copy, Debug)]
pub enum Work {
    /// Forward datagrams on loopback: the case of this index in [`crate::ring::cases`].
    Forward(usize),
    /// Relay flows of ChannelData from as many clients to one peer.
    Relay {
        /// Of all flows together.
        traffic: Traffic,
        /// How many.
        flows: usize,
    },
    /// Relay one flow of ChannelData from a client to another client of the same relay.
    RelayHairpin(Traffic),
    /// [`Work::Relay`], counting system calls.
    RelaySystemCalls {
        /// Of all flows together.
        traffic: Traffic,
        /// How many.
        flows: usize,
    },
    /// Relay one flow of datagrams of this size at half of the rate that coturn relays without loss.
    RelayLatency(usize),
    /// Grant this many allocations, each to a client of its own.
    RelayAllocations(usize),
    /// Hold allocations.
    RelayMemory,
    /// Carry this many TCP streams of iperf3 through a tunnel of MTU 1420.
    TunnelStream(u8),
    /// Carry a TCP stream of iperf3 over the bare cable.
    CableStream,
    /// Carry one flow of UDP datagrams through the same tunnel.
    TunnelDatagrams(Traffic),
    /// The highest rate of datagrams of this size that the tunnel carries without loss.
    TunnelLossFree(usize),
    /// Datagrams of 64 bytes there and back through a tunnel that has nothing else to do, this many a second.
    TunnelEcho(u64),
    /// The same beside a TCP stream of iperf3.
    TunnelEchoBesideStream(u64),
}

/// A figure of a work, as the table has it.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    /// Which.
    pub figure: Figure,
    /// What it is measured in.
    pub unit: &'static str,
    /// Whether a ratio stands beside it: not where the load sets it.
    pub compared: bool,
}

const fn compared(figure: Figure, unit: &'static str) -> Column {
    Column { figure, unit, compared: true }
}

const fn given(figure: Figure, unit: &'static str) -> Column {
    Column { figure, unit, compared: false }
}

impl Work {
    /// What is measured.
    #[must_use]
    pub fn columns(self) -> &'static [Column] {
        const DATAGRAMS: &[Column] = &[compared(Figure::Cost, "CPU ns/datagram"), given(Figure::Rate, "k/s")];
        const TUNNEL_DATAGRAMS: &[Column] = &[DATAGRAMS[0], SENDING, RECEIVING, DATAGRAMS[1]];
        const SENDING: Column = given(Figure::CostSending, "of it A");
        const RECEIVING: Column = given(Figure::CostReceiving, "B");
        const STREAM: &[Column] =
            &[compared(Figure::Cost, "CPU s/GB"), SENDING, RECEIVING, compared(Figure::Rate, "Gbit/s")];
        const CALLS: &[Column] =
            &[compared(Figure::SystemCalls, "system calls/datagram"), given(Figure::Rate, "k/s")];
        const MEMORY: &[Column] =
            &[compared(Figure::Cost, "KiB/allocation"), given(Figure::Rate, "allocations")];
        const ALLOCATIONS: &[Column] =
            &[compared(Figure::Rate, "k allocations/s"), compared(Figure::Cost, "CPU µs/allocation")];
        const TIMES: &[Column] = &[
            compared(Figure::P50, "p50 µs"),
            compared(Figure::P99, "p99 µs"),
            compared(Figure::P999, "p99.9 µs"),
            given(Figure::Longest, "max µs"),
            given(Figure::Rate, "k/s"),
        ];
        const TIMES_BESIDE: &[Column] =
            &[TIMES[0], TIMES[1], TIMES[2], TIMES[3], given(Figure::Rate, "Gbit/s beside")];
        const LOSS_FREE: &[Column] = &[compared(Figure::Rate, "k/s without loss")];
        match self {
            Self::Forward(_) | Self::Relay { .. } | Self::RelayHairpin(_) => DATAGRAMS,
            Self::TunnelDatagrams(_) => TUNNEL_DATAGRAMS,
            Self::TunnelStream(_) | Self::CableStream => STREAM,
            Self::RelaySystemCalls { .. } => CALLS,
            Self::RelayAllocations(_) => ALLOCATIONS,
            Self::RelayMemory => MEMORY,
            Self::TunnelLossFree(_) => LOSS_FREE,
            Self::RelayLatency(_) | Self::TunnelEcho(_) => TIMES,
            Self::TunnelEchoBesideStream(_) => TIMES_BESIDE,
        }
    }
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
    /// By whom; the ratios in the table are to the first.
    pub contenders: &'static [Contender],
    /// Whether the cables take UDP superpackets whole (`tx-udp-segmentation`), as they do unless told otherwise.
    pub segmentation: bool,
    /// What is demanded.
    pub targets: &'static [Target],
    /// What `--quick` insists on; a row without is not part of it.
    pub bands: &'static [Target],
}

impl Row {
    pub(super) const fn new(
        name: &'static str,
        title: &'static str,
        group: Group,
        work: Work,
        contenders: &'static [Contender],
        targets: &'static [Target],
    ) -> Self {
        Self { name, title, group, work, contenders, segmentation: true, targets, bands: &[] }
    }

    /// With cables that make the kernel cut UDP superpackets.
    pub(super) const fn without_segmentation(mut self) -> Self {
        self.segmentation = false;
        self
    }

    /// As a part of `--quick`.
    pub(super) const fn quick(mut self, bands: &'static [Target]) -> Self {
        self.bands = bands;
        self
    }

    /// Judges one of its targets or bands.
    #[must_use]
    pub fn judge(&self, target: &Target, measured: &[(&Contender, Side)]) -> Verdict {
        let column = self.work.columns().iter().find(|column| column.figure == target.figure);
        Verdict::of(target, column.map_or(target.figure.name(), |column| column.unit), measured)
    }
}
