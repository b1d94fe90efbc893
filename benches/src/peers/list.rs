//! Every row: what the project demands, what the designs cost, what the flags are worth.

use super::figures::Figure;
use super::rows::{Contender, Group, Row, Traffic, Who, Work};
use super::target::{Demand, Target};
use Demand::{AtMost, NotWorse, RatioAtLeast, RatioAtMost};
use Figure::{Cost, P50, P99, P999, Rate, Resident, SystemCalls};

const KERNEL: Contender = Contender { name: "kernel calls", who: Who::Kernel, flags: "" };
const KERNEL_ON_EVERY_CORE: Contender =
    Contender { name: "kernel, every core", who: Who::KernelOnEveryCore, flags: "" };
const CABLE: Contender = Contender { name: "bare veth", who: Who::Kernel, flags: "" };
const COTURN: Contender = Contender { name: "coturn", who: Who::Coturn, flags: "" };
const WIREGUARD_GO: Contender = Contender { name: "wireguard-go", who: Who::WireguardGo, flags: "" };
const BORINGTUN: Contender = Contender { name: "boringtun", who: Who::Boringtun, flags: "" };
const OURS: Contender = ours("towpath", "--io uring");

const fn ours(name: &'static str, flags: &'static str) -> Contender {
    Contender { name, who: Who::Towpath, flags }
}

const TUNNELS: &[Contender] = &[WIREGUARD_GO, OURS];
const SINGLE_THREADED: &[Contender] = &[BORINGTUN, OURS];
const RELAYS: &[Contender] = &[COTURN, OURS];
const RELAYS_AND_KERNEL: &[Contender] = &[COTURN, KERNEL, OURS];
/// Coturn and the relay have a thread for each core, and so has a raw forwarder; beside them both with one.
const RELAYS_AND_ONE_WORKER: &[Contender] =
    &[COTURN, KERNEL, KERNEL_ON_EVERY_CORE, ours("1 worker", "--io uring --workers 1"), OURS];
/// What a packet may cost beside a forwarder of as many threads, with all workers and with one.
const fn of_equal_threads(ratio: f64) -> [Target; 2] {
    [
        target(Cost, RatioAtMost(ratio), "kernel, every core"),
        target(Cost, RatioAtMost(ratio), "kernel calls").of("1 worker"),
    ]
}
const FLOWS: [Target; 2] = of_equal_threads(1.15);
const MANY_FLOWS: [Target; 2] = of_equal_threads(1.2);
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
const BUSY_POLL: &[Contender] =
    &[BORINGTUN, ours("asleep", "--io uring"), ours("busy", "--io uring --busy-poll 10000")];
const GSO: &[Contender] = &[ours("on", "--io uring --gso on"), ours("off", "--io uring --gso off")];

/// One datagram in a millisecond: every one is alone.
const SPARSE: Traffic = Traffic { rate: 1_000, size: 1_252, burst: 1, superpackets: false };
/// A few at a time.
const MEDIUM: Traffic = Traffic { rate: 20_000, size: 1_252, burst: 1, superpackets: false };
/// Superpackets of nearly 64 KiB, as a bulk sender makes them, at a rate that coturn can follow.
const BULK: Traffic = Traffic { rate: 40_000, size: 1_252, burst: 50, superpackets: true };
/// From a client that makes a system call for each, so that 40 arrive one right after the other. At 40,000/s coturn loses up
/// to a third of that in its receive buffer; at half of it both sides are free of loss.
const TRAIN: Traffic = Traffic { rate: 20_000, size: 1_252, burst: 40, superpackets: false };
/// Eight at a time, as a video frame comes, and not many of them.
const LIGHT: Traffic = Traffic { rate: 12_000, size: 1_252, burst: 8, superpackets: false };
/// Many flows, each of them slow.
const MANY: Traffic = Traffic { rate: 20_000, size: 160, burst: 1, superpackets: false };
/// What a call or a game sends.
const SMALL: Traffic = Traffic { rate: 20_000, size: 64, burst: 1, superpackets: false };
/// Forty flows of a thousand datagrams a second each.
const FORTY: Traffic = Traffic { rate: 40_000, size: 1_252, burst: 1, superpackets: false };

const fn target(figure: Figure, demand: Demand, against: &'static str) -> Target {
    Target::new(figure, demand, against)
}

const fn not_worse(figure: Figure, against: &'static str) -> Target {
    Target::new(figure, NotWorse, against).of("uring, thread")
}

const fn relay(traffic: Traffic) -> Work {
    Work::Relay { traffic, flows: 1 }
}

const fn demanded(
    name: &'static str,
    title: &'static str,
    work: Work,
    contenders: &'static [Contender],
    targets: &'static [Target],
) -> Row {
    Row::new(name, title, Group::Targets, work, contenders, targets)
}

const fn setting(
    name: &'static str,
    title: &'static str,
    work: Work,
    contenders: &'static [Contender],
) -> Row {
    Row::new(name, title, Group::Settings, work, contenders, &[])
}

/// Every row.
pub const ROWS: &[Row] = &[
    demanded(
        "ring-bulk",
        "Forwarding on loopback, 1 socket, 400,000/s of 1,252 B in superpackets of 40",
        Work::Forward(0),
        &[KERNEL, OURS],
        &[target(Cost, RatioAtMost(1.20), "kernel calls")],
    )
    .quick(&[target(Cost, RatioAtMost(3.0), "kernel calls")]),
    demanded(
        "ring-sparse",
        "Forwarding on loopback, 1,000 sockets, 30,000/s of 160 B one by one",
        Work::Forward(1),
        &[KERNEL, OURS],
        &[target(Cost, RatioAtMost(1.15), "kernel calls")],
    )
    .quick(&[target(Cost, RatioAtMost(2.0), "kernel calls")]),
    demanded(
        "relay-bulk",
        "Relay, 1 flow of ChannelData, 40,000/s of 1,252 B in superpackets of 50",
        relay(BULK),
        RELAYS_AND_KERNEL,
        &[
            target(Cost, RatioAtMost(0.1), "coturn").must(),
            target(Cost, RatioAtMost(1.15), "kernel calls"),
            target(Resident, AtMost(30.0), ""),
        ],
    )
    .quick(&[
        target(Cost, RatioAtMost(0.3), "coturn"),
        target(Cost, RatioAtMost(3.0), "kernel calls"),
    ]),
    demanded(
        "relay-train",
        "Relay, 1 flow of ChannelData, 20,000/s of 1,252 B in trains of 40, a system call each, veth without UDP segmentation",
        relay(TRAIN),
        RELAYS,
        &[target(Cost, RatioAtMost(0.6), "coturn").must()],
    )
    .without_segmentation(),
    demanded(
        "relay-single",
        "Relay, 1 flow of ChannelData, 20,000/s of 1,252 B one by one, evenly, veth without UDP segmentation",
        relay(MEDIUM),
        RELAYS,
        &[target(Cost, RatioAtMost(0.6), "coturn")],
    )
    .without_segmentation(),
    demanded(
        "relay-hairpin",
        "Relay, 1 flow of ChannelData from a client to a client of the same relay, 20,000/s of 1,252 B one by one",
        Work::RelayHairpin(MEDIUM),
        RELAYS,
        &[target(Cost, RatioAtMost(0.5), "coturn").must()],
    )
    .quick(&[target(Cost, RatioAtMost(0.9), "coturn")]),
    demanded(
        "relay-bulk-100",
        "Relay, 100 flows of ChannelData, together 40,000/s of 1,252 B in superpackets of 50",
        Work::Relay { traffic: BULK, flows: 100 },
        RELAYS_AND_ONE_WORKER,
        &[],
    ),
    demanded(
        "relay-bulk-10000",
        "Relay, 10,000 flows of ChannelData, together 40,000/s of 1,252 B in superpackets of 50",
        Work::Relay { traffic: BULK, flows: 10_000 },
        RELAYS_AND_ONE_WORKER,
        &[],
    ),
    demanded(
        "relay-flows-1",
        "Relay, 1 flow of ChannelData, 20,000/s of 160 B one by one",
        Work::Relay { traffic: MANY, flows: 1 },
        RELAYS_AND_ONE_WORKER,
        &[],
    ),
    demanded(
        "relay-flows-100",
        "Relay, 100 flows of ChannelData, together 20,000/s of 160 B one by one",
        Work::Relay { traffic: MANY, flows: 100 },
        RELAYS_AND_ONE_WORKER,
        &[],
    ),
    demanded(
        "relay-flows",
        "Relay, 1,000 flows of ChannelData, together 20,000/s of 160 B one by one",
        Work::Relay { traffic: MANY, flows: 1_000 },
        RELAYS_AND_ONE_WORKER,
        &[
            target(Cost, RatioAtMost(0.85), "coturn"),
            FLOWS[0],
            FLOWS[1],
            target(Cost, RatioAtMost(1.15), "kernel calls"),
        ],
    ),
    demanded(
        "relay-flows-10000",
        "Relay, 10,000 flows of ChannelData, together 20,000/s of 160 B one by one",
        Work::Relay { traffic: MANY, flows: 10_000 },
        RELAYS_AND_ONE_WORKER,
        &[MANY_FLOWS[0], MANY_FLOWS[1], target(Cost, RatioAtMost(1.2), "kernel calls")],
    ),
    demanded(
        "relay-allocations",
        "Relay, 5,000 allocations as fast as one core grants them, 64 clients at a time",
        Work::RelayAllocations(5_000),
        RELAYS,
        &[target(Rate, RatioAtLeast(5.0), "coturn")],
    )
    .quick(&[target(Rate, RatioAtLeast(1.5), "coturn")]),
    demanded(
        "relay-calls",
        "Relay, 40 flows of ChannelData, together 40,000/s of 1,252 B one by one, system calls",
        Work::RelaySystemCalls { traffic: FORTY, flows: 40 },
        RELAYS,
        &[target(SystemCalls, AtMost(0.3), "")],
    ),
    demanded(
        "relay-latency",
        "Relay, 1 flow of 1,252 B one by one at half of coturn's loss-free rate, one way from the time due",
        Work::RelayLatency(1_252),
        RELAYS,
        &[target(P99, RatioAtMost(0.7), "coturn"), target(P999, RatioAtMost(0.7), "coturn")],
    ),
    demanded(
        "relay-memory",
        "Relay, memory for allocations with a channel and some traffic each",
        Work::RelayMemory,
        RELAYS,
        &[target(Cost, AtMost(2.0), "")],
    ),
    demanded(
        "tunnel",
        "Tunnel, 1 TCP stream of iperf3, MTU 1420, CPU of both ends",
        Work::TunnelStream(1),
        TUNNELS,
        &[
            target(Rate, RatioAtLeast(1.6), "wireguard-go").must(),
            target(Cost, RatioAtMost(0.55), "wireguard-go").must(),
            target(Cost, AtMost(1.8), ""),
            target(Resident, RatioAtMost(0.125), "wireguard-go"),
            target(Resident, AtMost(30.0), ""),
        ],
    )
    .quick(&[target(Cost, RatioAtMost(1.0), "wireguard-go")]),
    demanded(
        "tunnel-cut",
        "Tunnel, 1 TCP stream of iperf3, MTU 1420, CPU of both ends, veth without UDP segmentation",
        Work::TunnelStream(1),
        TUNNELS,
        &[
            target(Rate, RatioAtLeast(1.6), "wireguard-go").must(),
            target(Cost, RatioAtMost(0.6), "wireguard-go").must(),
        ],
    )
    .without_segmentation(),
    demanded(
        "tunnel-streams",
        "Tunnel, 4 TCP streams of iperf3, MTU 1420, CPU of both ends",
        Work::TunnelStream(4),
        TUNNELS,
        &[target(Rate, RatioAtLeast(2.0), "wireguard-go")],
    ),
    demanded(
        "tunnel-loss-free-64",
        "Tunnel, highest rate of 64 B datagrams, a system call each, with at most 0.1 % lost",
        Work::TunnelLossFree(64),
        TUNNELS,
        &[target(Rate, RatioAtLeast(2.0), "wireguard-go")],
    ),
    demanded(
        "tunnel-loss-free-1200",
        "Tunnel, highest rate of 1,200 B datagrams, a system call each, with at most 0.1 % lost",
        Work::TunnelLossFree(1_200),
        TUNNELS,
        &[target(Rate, RatioAtLeast(2.0), "wireguard-go")],
    ),
    demanded(
        "tunnel-small",
        "Tunnel, 20,000/s of 64 B one by one, CPU of both ends",
        Work::TunnelDatagrams(SMALL),
        SINGLE_THREADED,
        &[target(Cost, RatioAtMost(0.8), "boringtun")],
    ),
    demanded(
        "tunnel-idle",
        "Tunnel, round trip of 64 B, 200/s and nothing else, from the time due",
        Work::TunnelEcho(200),
        SINGLE_THREADED,
        &[target(P50, RatioAtMost(1.0), "boringtun"), target(P99, RatioAtMost(1.0), "boringtun")],
    ),
    demanded(
        "tunnel-beside",
        "Tunnel, round trip of 64 B, 2,000/s beside a TCP stream of iperf3, from the time due",
        Work::TunnelEchoBesideStream(2_000),
        TUNNELS,
        &[target(P999, RatioAtMost(0.5), "wireguard-go")],
    ),
    demanded(
        "cable",
        "Yardstick: 1 TCP stream of iperf3 over the bare cable, CPU of both iperf3",
        Work::CableStream,
        &[CABLE],
        &[],
    ),
    Row::new(
        "io-tunnel",
        "I/O designs: tunnel, 1 TCP stream of iperf3, MTU 1420",
        Group::Designs,
        Work::TunnelStream(1),
        DESIGNS,
        &[
            not_worse(Cost, "suspend"),
            not_worse(Rate, "suspend"),
            not_worse(Cost, "threaded"),
            not_worse(Rate, "threaded"),
        ],
    ),
    Row::new(
        "io-relay",
        "I/O designs: relay, 1 flow, 40,000/s of 1,252 B in superpackets of 50",
        Group::Designs,
        relay(BULK),
        DESIGNS,
        &[not_worse(Cost, "suspend"), not_worse(Cost, "threaded")],
    ),
    Row::new(
        "io-relay-light",
        "I/O designs: relay, 1 flow, 12,000/s of 1,252 B, eight at a time by a system call each",
        Group::Designs,
        relay(LIGHT),
        DESIGNS,
        &[not_worse(Cost, "suspend"), not_worse(Cost, "threaded")],
    ),
    Row::new(
        "io-tunnel-idle",
        "I/O designs: tunnel, round trip of 64 B, 200/s and nothing else",
        Group::Designs,
        Work::TunnelEcho(200),
        DESIGNS,
        &[
            not_worse(P50, "suspend"),
            not_worse(P99, "suspend"),
            not_worse(P50, "threaded"),
            not_worse(P99, "threaded"),
        ],
    ),
    setting("ingress-tunnel-stream", "--ingress: tunnel, 1 TCP stream", Work::TunnelStream(1), INGRESS),
    setting("ingress-tunnel-medium", "--ingress: tunnel, 20,000/s", Work::TunnelDatagrams(MEDIUM), INGRESS),
    setting("ingress-tunnel-sparse", "--ingress: tunnel, 1,000/s", Work::TunnelDatagrams(SPARSE), INGRESS),
    setting(
        "ingress-tunnel-idle",
        "--ingress: tunnel, round trip of 64 B, 200/s and nothing else",
        Work::TunnelEcho(200),
        INGRESS,
    ),
    setting("ingress-relay-bulk", "--ingress: relay, 40,000/s in superpackets", relay(BULK), INGRESS),
    setting("ingress-relay-medium", "--ingress: relay, 20,000/s one by one", relay(MEDIUM), INGRESS),
    setting("ingress-relay-sparse", "--ingress: relay, 1,000/s one by one", relay(SPARSE), INGRESS),
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
        Work::TunnelStream(1),
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
    setting("completions-relay-bulk", "--completions: relay, 40,000/s in superpackets", relay(BULK), COMPLETIONS),
    setting("completions-relay-medium", "--completions: relay, 20,000/s one by one", relay(MEDIUM), COMPLETIONS),
    setting("completions-relay-sparse", "--completions: relay, 1,000/s one by one", relay(SPARSE), COMPLETIONS),
    setting(
        "busy-poll-tunnel-idle",
        "--busy-poll: tunnel, round trip of 64 B, 200/s and nothing else",
        Work::TunnelEcho(200),
        BUSY_POLL,
    ),
    setting("gso-tunnel", "--gso: tunnel, 1 TCP stream", Work::TunnelStream(1), GSO),
    setting("gso-relay", "--gso: relay, 40,000/s in superpackets", relay(BULK), GSO),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_demand_names_sides_and_a_figure_that_its_row_has() {
        for row in ROWS {
            for target in row.targets.iter().chain(row.bands) {
                let has = |name: &str| row.contenders.iter().any(|contender| contender.name == name);
                let compared = !matches!(target.demand, AtMost(_));
                assert!(has(target.of), "{}: {}", row.name, target.of);
                assert!(!compared || has(target.against), "{}: {}", row.name, target.against);
                let measured = row.work.columns().iter().any(|column| column.figure == target.figure);
                assert!(measured || target.figure == Resident, "{}: {:?}", row.name, target.figure);
            }
        }
    }

    #[test]
    fn rows_have_names_of_their_own() {
        for (index, row) in ROWS.iter().enumerate() {
            assert!(ROWS[..index].iter().all(|other| other.name != row.name), "{}", row.name);
        }
    }
}
