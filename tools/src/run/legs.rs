//! The legs of a run, there and back: what was lost on each, and what the device under test carried.

use super::dut::DutCpu;
use super::ledger::Ledger;
use super::peer::Books;
use super::receiver::Receiver;
use super::sender::Outcome;
use super::spec::RunSpec;

/// Ledgers of all legs.
pub(super) struct Ledgers {
    /// There and back, by flow.
    pub by_flow: Vec<Ledger>,
    /// There and back.
    pub round: Ledger,
    /// From here to the far end, where that is in this process and sends back.
    pub up: Option<Ledger>,
    /// And back.
    pub down: Option<Ledger>,
}

impl Ledgers {
    /// Balances what arrived against what was sent, on each leg.
    pub(super) fn close(outcome: &Outcome, receiver: &Receiver, peer: Option<&Books>) -> Self {
        let (by_flow, mut round) = receiver.arrivals.close_scheduled(&outcome.sent);
        let Some(peer) = peer else { return Self { by_flow, round, up: None, down: None } };
        let (_, up) = peer.arrivals.close_scheduled(&outcome.sent);
        let (_, mut down) = receiver.arrivals.close(&peer.sent);
        // By sequence number the way back would be charged for what the way there overtook.
        down.reordered = receiver.down_reordered;
        // The peer returns each datagram once, so what was doubled or harmed on the way there shows only in its books.
        round.duplicate += up.duplicate;
        round.corrupt += up.corrupt;
        Self { by_flow, round, up: Some(up), down: Some(down) }
    }
}

/// What the device under test had to do, in datagrams, each way counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Carried {
    /// It was given, as far as that is known: what came back had been sent back.
    pub offered: u64,
    /// It delivered in time.
    pub delivered: u64,
}

impl Carried {
    /// By what each leg has lost.
    pub(super) fn of(spec: &RunSpec, ledgers: &Ledgers) -> Self {
        let Ledger { sent, received, .. } = ledgers.round;
        match (&ledgers.up, &ledgers.down) {
            _ if spec.kind.is_one_way() => Self { offered: sent, delivered: received },
            (Some(up), Some(down)) => Self { offered: sent + down.sent, delivered: up.received + received },
            // Of what was lost nobody knows on which way.
            _ => Self { offered: sent + received, delivered: 2 * received },
        }
    }
}

/// Processor time of all of them for each of so many datagrams, in nanoseconds; `None` without either.
pub(super) fn cpu_per_packet(dut: &[DutCpu], packets: u64) -> Option<f64> {
    let cpu_ns: u64 = dut.iter().map(|process| process.cpu_ns).sum();
    (!dut.is_empty() && packets > 0).then(|| cpu_ns as f64 / packets as f64)
}

#[cfg(test)]
mod tests {
    use super::super::kind::Kind;
    use super::*;

    #[test]
    fn processor_time_is_divided_by_what_was_delivered() {
        let spec = RunSpec::new(Kind::Udp, "127.0.0.1:9".parse().unwrap());
        let round = Ledger { sent: 100, received: 60, ..Ledger::default() };
        let up = Ledger { sent: 100, received: 80, ..Ledger::default() };
        let down = Ledger { sent: 80, received: 60, ..Ledger::default() };
        let alone = Ledgers { by_flow: Vec::new(), round, up: None, down: None };
        assert_eq!(Carried::of(&spec, &alone), Carried { offered: 160, delivered: 120 });
        let one_way = RunSpec { kind: Kind::WgRx, ..spec.clone() };
        assert_eq!(Carried::of(&one_way, &alone), Carried { offered: 100, delivered: 60 });
        let both = Ledgers { up: Some(up), down: Some(down), ..alone };
        assert_eq!(Carried::of(&spec, &both), Carried { offered: 180, delivered: 140 });
        let dut = DutCpu { pid: 1, name: String::new(), cpu_ns: 280, threads: 1, ended_early: false };
        assert_eq!(cpu_per_packet(std::slice::from_ref(&dut), 140), Some(2.0));
        assert_eq!(cpu_per_packet(&[dut], 0), None, "nothing was carried");
    }
}
