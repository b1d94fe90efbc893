//! Totals of the tunnel for its admin thread: counted a bounded part at a time when somebody asks, and not at all otherwise.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use super::App;
use super::wake::Wake;
use crate::admin::metrics::{CONTENT_TYPE, Metrics};
use crate::admin::{Answer, Desk, Listener, Server, Shared, Site, Snapshot, TURN_TIME_MAX};
use crate::egress::Egress;
use crate::ingress::{Ingress, Source};
use crate::stages::Stages;
use crate::tunnel::paths::PathFigures;
use crate::tunnel::{PeerIndex, PeerStats, noise};
use crate::uapi::status::{Device, Way};

/// Peers counted in one turn.
const PEERS_COUNTED: usize = 256;

/// What is seen of the tunnel from outside.
#[derive(Default)]
pub(super) struct Figures {
    /// Where the time of batches goes.
    pub stages: Stages,
    /// Bound, and not served yet.
    listener: Option<Listener>,
    work: Option<Work>,
}

/// What there is while figures are served.
struct Work {
    shared: Arc<Shared<Totals>>,
    /// Serves HTTP, and owns the listener and its connections; ends when this is dropped.
    thread: Option<JoinHandle<()>>,
    started: Instant,
    /// A count that is under way, and when it goes on.
    census: Option<(Census, Instant)>,
}

impl Drop for Work {
    fn drop(&mut self) {
        self.shared.stop();
        if let Some(thread) = self.thread.take() {
            // A panic there was reported where it happened, and there is nothing left to serve.
            let _ = thread.join();
        }
    }
}

impl Figures {
    /// With a listener, if totals are to be served.
    pub fn new(listener: Option<Listener>) -> Self {
        Self { listener, ..Self::default() }
    }

    /// Begins to serve. Signals should be blocked by now: the thread inherits that.
    pub fn start<I: Ingress>(&mut self, ingress: &mut I, now: Instant) -> io::Result<()> {
        let Some(listener) = self.listener.take() else {
            return Ok(());
        };
        let shared = Shared::new(1)?;
        ingress.add_borrowed(shared.loop_fd(0), Wake::Figures.token(), Source::Ready)?;
        let address = listener.address();
        let server = Server::new(listener, Page, shared.clone());
        let thread = std::thread::Builder::new().name("towpath-admin".into()).spawn(move || server.run())?;
        tracing::info!(%address, "metrics");
        self.work = Some(Work { shared, thread: Some(thread), started: now, census: None });
        Ok(())
    }

    /// Somebody asked.
    pub fn handle_ready(&mut self, now: Instant) {
        if let Some(work) = &self.work {
            work.shared.clear_loop_fd(0);
        }
        self.look(now);
    }

    /// Looks whether somebody asked: a loop that is suspended does not see its source.
    pub fn look(&mut self, now: Instant) {
        if let Some(work) = &mut self.work
            && work.census.is_none()
            && work.shared.take_question(0)
        {
            work.census = Some((Census::default(), now));
        }
    }

    /// When [`App::serve_figures`] has something to do.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.work.as_ref()?.census.as_ref().map(|&(_, at)| at)
    }
}

/// Sums over peers, as far as they have been counted.
#[derive(Clone, Copy, Debug, Default)]
struct Census {
    last: Option<PeerIndex>,
    peers: u64,
    with_session: u64,
    direct: u64,
    relayed: u64,
    stats: PeerStats,
    paths: PathFigures,
}

/// The totals of one moment.
#[derive(Debug)]
struct Totals {
    taken: Instant,
    device: Device,
    census: Census,
}

impl Snapshot for Totals {
    fn taken(&self) -> Instant {
        self.taken
    }

    /// There is one loop.
    fn merge(&mut self, _: Self) {}
}

impl App {
    /// Goes on counting, and publishes when every peer has been. O(1) when nobody asked.
    pub(super) fn serve_figures<I: Ingress, E: Egress>(&mut self, ingress: &I, egress: &E, now: Instant) {
        let Some(work) = &mut self.figures.work else {
            return;
        };
        let Some((mut census, _)) = work.census.take() else {
            return;
        };
        let started = work.started;
        if !self.count_peers(&mut census, now) {
            if let Some(work) = &mut self.figures.work {
                work.census = Some((census, now));
            }
            return;
        }
        census.stats.add(&self.tunnel.departed);
        census.paths.add(&self.tunnel.departed_paths);
        let device = self.device_status(started, false, ingress, egress, now);
        if let Some(work) = &self.figures.work {
            work.shared.publish(0, Totals { taken: now, device, census });
        }
    }

    /// Counts some peers; `true` when that were the last.
    fn count_peers(&self, census: &mut Census, now: Instant) -> bool {
        for _ in 0..PEERS_COUNTED {
            census.last = self.tunnel.next_peer(census.last);
            let Some(view) = census.last.and_then(|index| self.tunnel.view(index)) else {
                return true;
            };
            let age = view.stats.last_handshake.map(|handshake| self.tunnel.age_of(&handshake, now));
            census.peers += 1;
            census.with_session += u64::from(age.is_some_and(|age| age < noise::REJECT_AFTER_TIME));
            let way = self.way_shown(view.path);
            census.direct += u64::from(way == Some(Way::Direct));
            census.relayed += u64::from(way == Some(Way::Relayed));
            census.stats.add(&view.stats);
            census.paths.add(&view.paths);
        }
        false
    }
}

/// What is at the admin address.
#[derive(Debug)]
struct Page;

/// What can be asked for.
#[derive(Clone, Copy, Debug)]
enum Resource {
    /// `/metrics`
    Metrics,
    /// `/healthz`
    Health,
}

impl Site for Page {
    type Resource = Resource;
    type Snapshot = Totals;
    const RESOURCES: &'static str = "/metrics and /healthz";

    fn find(path: &str) -> Option<Resource> {
        match path {
            "/metrics" => Some(Resource::Metrics),
            "/healthz" => Some(Resource::Health),
            _ => None,
        }
    }

    fn needs_figures(_: Resource) -> bool {
        true
    }

    fn respond(&self, resource: Resource, desk: &Desk<Totals>, now: Instant) -> Answer {
        match resource {
            Resource::Health if desk.is_turning(now) => Answer::plain("200 OK", "ok\n"),
            Resource::Health => {
                let text = format!("packets have not been looked at for {} s\n", TURN_TIME_MAX.as_secs());
                Answer::plain("503 Service Unavailable", text)
            }
            Resource::Metrics => match desk.latest() {
                Some(totals) => Answer::ok(CONTENT_TYPE, metrics(totals, now)),
                None => Answer::plain("503 Service Unavailable", "there are no figures yet\n"),
            },
        }
    }
}

fn metrics(totals: &Totals, now: Instant) -> String {
    let Totals { taken, device, census } = totals;
    let mut metrics = Metrics::new("towpath_");
    metrics.info("build_info", "Always 1; the label is the version.", vec![("version", &device.version)]);
    let design = vec![("io", device.io.as_str()), ("ingress", device.ingress_design.as_str())];
    metrics.info("design_info", "Always 1; the labels say how packets leave and come in.", design);
    let started = device.time_unix_s - device.uptime_s;
    metrics.gauge("start_time_seconds", "Start of the program, in seconds since 1970.", started);
    let age = now.saturating_duration_since(*taken).as_secs_f64();
    metrics.gauge("figures_age_seconds", "How old the figures of the packet loop are.", age);
    metrics.log(crate::log::lines_lost());
    metrics.gauge("up", "1 while the interface is up.", f64::from(u8::from(device.up)));
    metrics.gauge("peers", "Peers.", census.peers as f64);
    let with_session = "Peers with a handshake that is no older than a session lives.";
    metrics.gauge("peers_with_session", with_session, census.with_session as f64);
    metrics.gauge("peers_direct", "Peers that are reached straight.", census.direct as f64);
    metrics.gauge("peers_relayed", "Peers that are reached over a relay.", census.relayed as f64);
    let stats = &census.stats;
    metrics.counter("received_packets_total", "Packets of peers that were let in.", stats.received_packets);
    metrics.counter("sent_packets_total", "Packets sealed for peers.", stats.sent_packets);
    metrics.counter(
        "received_bytes_total",
        "Bytes of all authentic messages, as wg counts them.",
        stats.received_message_bytes,
    );
    let sent = "Bytes of all messages to peers, as wg counts them.";
    metrics.counter("sent_bytes_total", sent, stats.sent_message_bytes);
    metrics.gauge(
        "missing_messages",
        "Data messages that peers have sent and that did not arrive; one that is only late counts until it comes.",
        stats.missing_messages as f64,
    );
    let paths = &census.paths;
    let switches =
        "How often peers were reached by the other of two ways, direct or over a relay, from then on.";
    metrics.counter("path_switches_total", switches, paths.switches);
    metrics.counter(
        "path_overlapped_total",
        "Messages that came by a way within a second after it was left, and so perhaps out of order.",
        paths.overlapped,
    );
    let probes = "Handshakes begun to find out whether a way works.";
    metrics.counter("path_probes_total", probes, paths.probes);
    let drops = "What was lost by cause, in packets unless the cause says skbs.";
    metrics.labelled("drops_total", drops, "cause", &device.drops);
    metrics.egress(&device.egress);
    metrics.ingress(&device.ingress);
    metrics.rings(&device.egress, &device.ingress);
    metrics.text()
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test needs some instant to count from")]
mod tests {
    use super::*;
    use crate::drops::Drops;
    use crate::egress::EgressStats;
    use crate::ingress::IngressStats;
    use crate::status;

    #[test]
    fn totals_are_metrics_and_no_label_comes_from_outside() {
        let now = Instant::now();
        let device = Device {
            version: "1.2.3".into(),
            io: "uring".into(),
            ingress_design: "epoll".into(),
            time_unix_s: 1_000.0,
            uptime_s: 400.0,
            up: true,
            drops: status::losses(&Drops::default(), &EgressStats::default(), &IngressStats::default()),
            ..Device::default()
        };
        let stats = PeerStats { received_packets: 5, sent_message_bytes: 9, ..PeerStats::default() };
        let paths = PathFigures { switches: 4, overlapped: 6, probes: 8 };
        let census = Census { peers: 3, with_session: 2, direct: 1, relayed: 1, stats, paths, last: None };
        let text = metrics(&Totals { taken: now, device, census }, now);
        for line in [
            "towpath_build_info{version=\"1.2.3\"} 1",
            "towpath_design_info{io=\"uring\",ingress=\"epoll\"} 1",
            "towpath_start_time_seconds 600",
            "towpath_peers 3",
            "towpath_peers_with_session 2",
            "towpath_received_packets_total 5",
            "towpath_sent_bytes_total 9",
            "towpath_path_switches_total 4",
            "towpath_path_overlapped_total 6",
            "towpath_path_probes_total 8",
            "towpath_drops_total{cause=\"replay\"} 0",
            "# TYPE towpath_missing_messages gauge",
            "towpath_egress_slots 0",
        ] {
            assert!(text.lines().any(|other| other == line), "{line} is missing:\n{text}");
        }
    }
}
