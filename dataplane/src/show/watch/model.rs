//! What is on the screen, made of two looks at a tunnel and those of the last seconds.

use std::collections::{HashMap, VecDeque};

use super::super::Tunnel;
use crate::stages::{Counts, Stage};
use crate::uapi::status::{Peer, Stages, Way};

/// Looks that the latencies are taken over: as many seconds, and one to begin with.
const LOOKS: usize = 11;

/// A peer's line.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Row {
    /// Its public key.
    pub key: String,
    /// By which way, and over which address.
    pub way: String,
    /// Bits a second, where there were two looks.
    pub received: Option<f64>,
    /// As `received`.
    pub sent: Option<f64>,
    /// The part of its messages that did not arrive, 0 to 1, when any were sent.
    pub loss: Option<f64>,
    /// Seconds since the last handshake.
    pub handshake_age_s: Option<f64>,
}

impl Row {
    fn rate(&self) -> f64 {
        self.received.unwrap_or_default() + self.sent.unwrap_or_default()
    }
}

/// A cause with packets.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Loss {
    pub cause: String,
    pub total: u64,
    /// Packets a second.
    pub rate: Option<f64>,
}

/// What is known of a tunnel.
#[derive(Debug, Default)]
pub(super) struct Model {
    /// The last look.
    pub now: Tunnel,
    /// Peers, those that carry most first.
    pub rows: Vec<Row>,
    /// Causes that have lost anything, those that lose most now first.
    pub losses: Vec<Loss>,
    /// Bits and packets a second that came in and left.
    pub received: Option<(f64, f64)>,
    /// As `received`.
    pub sent: Option<(f64, f64)>,
    /// Why the last look was in vain.
    pub trouble: Option<String>,
    /// The first peer on the screen.
    pub scroll: usize,
    looks: VecDeque<Stages>,
}

impl Model {
    /// Takes another look.
    pub fn update(&mut self, tunnel: Tunnel) {
        self.trouble = None;
        let before = std::mem::replace(&mut self.now, tunnel);
        let seconds = self.now.device.uptime_s - before.device.uptime_s;
        // Another start counts from zero; the first look has nothing before it.
        let is_first = before.device.interface.is_empty();
        let seconds = (!is_first && seconds > 0.0).then_some(seconds);
        if seconds.is_none() {
            self.looks.clear();
        }
        self.count_peers(&before, seconds);
        self.losses = losses(&before, &self.now, seconds);
        if self.looks.len() == LOOKS {
            self.looks.pop_front();
        }
        self.looks.push_back(self.now.device.stages.take().unwrap_or_default());
    }

    /// A look was in vain.
    pub fn fail(&mut self, trouble: String) {
        self.trouble = Some(trouble);
    }

    /// Moves the list of peers by so many lines, of which `visible` are on the screen.
    pub fn scroll_by(&mut self, lines: isize, visible: usize) {
        let last = self.rows.len().saturating_sub(visible);
        self.scroll = self.scroll.saturating_add_signed(lines).min(last);
    }

    /// The time of packets in a stage lately; since the start while that is the only look.
    pub fn latency(&self, stage: Stage) -> Counts {
        let (Some(first), Some(last)) = (self.looks.front(), self.looks.back()) else {
            return Counts::default();
        };
        if self.looks.len() == 1 { last.of(stage).clone() } else { last.of(stage).since(first.of(stage)) }
    }

    /// Seconds that [`Model::latency`] is taken over.
    pub fn latency_s(&self) -> Option<usize> {
        self.looks.len().checked_sub(1).filter(|&looks| looks > 0)
    }

    fn count_peers(&mut self, before: &Tunnel, seconds: Option<f64>) {
        let earlier: HashMap<&str, &Peer> =
            before.peers.iter().map(|peer| (peer.public_key.as_str(), peer)).collect();
        let mut sums = [0.0; 4];
        let mut rows: Vec<Row> = Vec::with_capacity(self.now.peers.len());
        for peer in &self.now.peers {
            let old = earlier.get(peer.public_key.as_str()).copied();
            let rates = old.zip(seconds).map(|(old, seconds)| {
                let rate = |now: u64, old: u64| now.saturating_sub(old) as f64 / seconds;
                let rates = [
                    8.0 * rate(peer.received_bytes, old.received_bytes),
                    8.0 * rate(peer.sent_bytes, old.sent_bytes),
                    rate(peer.received_packets, old.received_packets),
                    rate(peer.sent_packets, old.sent_packets),
                ];
                for (sum, rate) in sums.iter_mut().zip(rates) {
                    *sum += rate;
                }
                (rates, loss(old, peer))
            });
            rows.push(Row {
                key: peer.public_key.clone(),
                way: way(peer),
                received: rates.map(|(rates, _)| rates[0]),
                sent: rates.map(|(rates, _)| rates[1]),
                loss: rates.and_then(|(_, loss)| loss),
                handshake_age_s: peer.handshake_age_s,
            });
        }
        let age = |row: &Row| row.handshake_age_s.unwrap_or(f64::INFINITY);
        rows.sort_by(|left, right| {
            right.rate().total_cmp(&left.rate()).then_with(|| age(left).total_cmp(&age(right)))
        });
        self.rows = rows;
        self.received = seconds.map(|_| (sums[0], sums[2]));
        self.sent = seconds.map(|_| (sums[1], sums[3]));
    }
}

/// The part of a peer's messages since `old` that did not arrive. Late ones of before make it less than none: that is none.
fn loss(old: &Peer, now: &Peer) -> Option<f64> {
    let missing = now.missing_messages.saturating_sub(old.missing_messages) as f64;
    let arrived = now.received_packets.saturating_sub(old.received_packets) as f64;
    (missing + arrived > 0.0).then(|| missing / (missing + arrived))
}

/// By which way a peer is reached: straight, with its address, or over a relay, with the relay's.
fn way(peer: &Peer) -> String {
    let address =
        |address: Option<std::net::SocketAddr>| address.map_or_else(String::new, |it| it.to_string());
    let silent = if peer.path_answered == Some(false) { " (no answer yet)" } else { "" };
    match peer.path {
        None => "unknown".to_owned(),
        Some(Way::Direct) => format!("direct{silent} {}", address(peer.endpoint)),
        Some(Way::Relayed) => format!("relay{silent} {}", address(peer.relay)),
    }
}

fn losses(before: &Tunnel, now: &Tunnel, seconds: Option<f64>) -> Vec<Loss> {
    let lost = now.device.drops.iter().filter(|&(_, &total)| total > 0);
    let mut losses: Vec<Loss> = lost
        .map(|(cause, &total)| {
            let old = before.device.drops.get(cause).copied().unwrap_or_default();
            let rate = seconds.map(|seconds| total.saturating_sub(old) as f64 / seconds);
            Loss { cause: cause.clone(), total, rate }
        })
        .collect();
    let rate = |loss: &Loss| loss.rate.unwrap_or_default();
    losses
        .sort_by(|left, right| rate(right).total_cmp(&rate(left)).then_with(|| right.total.cmp(&left.total)));
    losses
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::super::text;
    use super::*;

    /// The tunnel of [`text::tests::tunnel`], so many seconds later, with more of everything.
    pub fn later(seconds: u32) -> Tunnel {
        let mut tunnel = text::tests::tunnel();
        let (count, seconds) = (u64::from(seconds), f64::from(seconds));
        tunnel.device.uptime_s += seconds;
        let heard = &mut tunnel.peers[1];
        heard.received_bytes += count * 1_250_000;
        heard.sent_bytes += count * 125_000;
        heard.received_packets += count * 900;
        heard.sent_packets += count * 100;
        heard.missing_messages += count * 100;
        *tunnel.device.drops.get_mut("no_route").unwrap() += count * 20;
        let counts = |ns: u64| serde_json::from_value(serde_json::json!([[ns, 1 + count]])).unwrap();
        tunnel.device.stages =
            Some(Stages { read: counts(10), crypto: counts(20), ring: counts(30), kernel: counts(40) });
        tunnel
    }

    #[test]
    fn rates_are_counted_between_two_looks_by_the_tunnels_own_clock() {
        let mut model = Model::default();
        model.update(later(0));
        assert_eq!((model.received, model.rows[0].received), (None, None));
        assert_eq!(model.rows[0].way, "relay 203.0.113.5:3478");
        let mut silent = later(0);
        silent.peers[1].path_answered = Some(false);
        assert_eq!(way(&silent.peers[1]), "relay (no answer yet) 203.0.113.5:3478");
        assert_eq!(model.latency_s(), None);
        assert_eq!(model.latency(Stage::Ring).total(), 1, "since the start, for want of more");
        model.update(later(2));
        assert_eq!(model.received, Some((10e6, 900.0)));
        assert_eq!(model.sent, Some((1e6, 100.0)));
        let row = &model.rows[0];
        assert_eq!((row.key.as_str(), row.received, row.loss), ("HEARD=", Some(10e6), Some(0.1)));
        assert_eq!(model.rows[1].loss, None, "nothing was sent");
        let first = &model.losses[0];
        assert_eq!((first.cause.as_str(), first.total, first.rate), ("no_route", 43, Some(20.0)));
        assert_eq!((model.losses[1].cause.as_str(), model.losses.len()), ("bad_tag", 2));
        assert_eq!((model.latency(Stage::Ring).total(), model.latency_s()), (2, Some(1)));
    }

    #[test]
    fn latencies_are_those_of_the_last_ten_seconds() {
        let mut model = Model::default();
        (0..60).for_each(|second| model.update(later(second)));
        assert_eq!((model.latency(Stage::Kernel).total(), model.latency_s()), (10, Some(10)));
    }

    #[test]
    fn another_start_has_no_rates_and_nothing_negative() {
        let mut model = Model::default();
        model.update(later(50));
        model.update(later(51));
        model.update(later(3));
        assert_eq!((model.received, model.rows[0].sent, model.latency_s()), (None, None, None));
        assert!(model.losses.iter().all(|loss| loss.rate.is_none()));
        model.update(later(4));
        assert_eq!(model.rows[0].sent, Some(1e6));
    }

    #[test]
    fn the_list_is_scrolled_no_further_than_its_end() {
        let mut model = Model::default();
        let mut tunnel = later(0);
        tunnel.peers = vec![Peer::default(); 100];
        model.update(tunnel);
        model.scroll_by(-1, 10);
        assert_eq!(model.scroll, 0);
        model.scroll_by(1_000, 10);
        assert_eq!(model.scroll, 90);
    }
}
