//! Names of endpoints and relays, looked up until they have an address, and again when nobody answers there.
//!
//! Looking up blocks for as long as name servers are silent, so that a thread does it. It is started when it is needed first.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};

use super::App;
use super::wake::Wake;
use crate::config::{Endpoint, check_endpoint};
use crate::egress::Egress;
use crate::ingress::{Ingress, Source};
use crate::tunnel::PeerIndex;
use crate::tunnel::key::PublicKey;
use crate::tunnel::lookup::{AGAIN_MAX, AGAIN_MIN};
use crate::tunnel::paths::{Paths, Policy};

/// How soon one name is looked up again.
const AGAIN: Duration = Duration::from_secs(15);
/// How long the end of the program waits for a look-up under way. One that takes longer ends with the process.
const PATIENCE: Duration = Duration::from_millis(500);

/// Who has a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Subject {
    /// A peer.
    Peer(PeerIndex),
    /// A relay, by its place among the choices.
    Relay(usize),
}

/// The names of peers and relays.
#[derive(Default)]
pub(super) struct Names {
    /// What the configuration calls peers, those that are gone as well: `wg setconf` makes all of them anew.
    written: HashMap<PublicKey, Endpoint, foldhash::fast::RandomState>,
    named: HashMap<Subject, Named, foldhash::fast::RandomState>,
    /// Peers of which somebody gave an address that is perhaps their name's, and relays that do not answer.
    doubted: Vec<Subject>,
    /// Those whose names have no address yet.
    missing: Vec<Subject>,
    /// When these are looked up, and how long the pause before that was.
    missing_at: Option<Instant>,
    pause: Duration,
    lookups: Option<Lookups>,
    /// There are answers.
    pub news: bool,
}

struct Named {
    endpoint: Endpoint,
    /// When it was looked up last.
    asked: Option<Instant>,
    /// The answer has not come.
    pending: bool,
    /// The address that somebody gave: unless the name has it too, the name is no longer of interest.
    given: Option<SocketAddr>,
    /// Of a relay, what was found last: its next address is tried without another look-up, when it was lately.
    found: Vec<SocketAddr>,
}

impl Named {
    fn new(endpoint: Endpoint) -> Self {
        Self { endpoint, asked: None, pending: false, given: None, found: Vec::new() }
    }
}

impl Names {
    /// Of these peers and relays, by what the configuration calls them. Some are still `missing`: they have no address.
    pub fn new(
        peers: Vec<(PeerIndex, PublicKey, Endpoint)>,
        relays: Vec<(usize, Endpoint)>,
        missing: Vec<Subject>,
    ) -> Self {
        let mut all = Self { missing, ..Self::default() };
        for (peer, key, endpoint) in peers {
            all.named.insert(Subject::Peer(peer), Named::new(endpoint.clone()));
            all.written.insert(key, endpoint);
        }
        for (relay, endpoint) in relays {
            all.named.insert(Subject::Relay(relay), Named::new(endpoint));
        }
        all
    }

    /// When [`App::serve_names`] has something to do by itself.
    pub fn timeout(&self) -> Option<Instant> {
        self.missing_at
    }

    /// What has no address may have one now.
    pub fn hurry(&mut self, now: Instant) {
        if !self.missing.is_empty() {
            (self.missing_at, self.pause) = (Some(now), Duration::ZERO);
        }
    }

    /// Asks for what has no address, when it is time to.
    fn ask_missing<I: Ingress>(&mut self, ingress: &mut I, now: Instant) {
        if self.missing.is_empty() {
            self.missing_at = None;
            return;
        }
        if self.missing_at.is_some_and(|at| at > now) {
            return;
        }
        for subject in self.missing.clone() {
            if let Some(named) = self.named.get_mut(&subject) {
                named.asked = None;
            }
            self.ask(subject, ingress, now);
        }
        self.pause = (self.pause * 2).clamp(AGAIN_MIN, AGAIN_MAX);
        self.missing_at = Some(now + self.pause);
    }

    /// Whether somebody had no address at the start, and none since.
    fn is_missing(&self, subject: Subject) -> bool {
        self.missing.contains(&subject)
    }

    /// Somebody has an address.
    fn is_found(&mut self, subject: Subject) {
        self.missing.retain(|missing| *missing != subject);
    }

    /// Nobody answers at the address of this relay.
    pub fn doubt_relay(&mut self, relay: usize) {
        let relay = Subject::Relay(relay);
        if self.named.contains_key(&relay) && !self.doubted.contains(&relay) {
            self.doubted.push(relay);
        }
    }

    /// A peer is gone.
    pub fn forget(&mut self, peer: PeerIndex) {
        self.named.remove(&Subject::Peer(peer));
        self.is_found(Subject::Peer(peer));
    }

    /// Somebody gave the address of a peer, which had another one or none so far. `wg syncconf` looks names up itself and tells
    /// what it has found: where the peer has a name, whether it is this one's address is found out.
    pub fn was_told(
        &mut self,
        peer: PeerIndex,
        key: PublicKey,
        address: SocketAddr,
        current: Option<SocketAddr>,
    ) {
        let subject = Subject::Peer(peer);
        self.is_found(subject);
        if current == Some(address) && self.named.contains_key(&subject) {
            return;
        }
        if let Some(endpoint) = self.written.get(&key) {
            let named = self.named.entry(subject).or_insert_with(|| Named::new(endpoint.clone()));
            named.given = Some(address);
            self.doubted.push(subject);
        }
    }

    /// Asks for a name, unless that was done a moment ago: then answers what was found, as far as that was kept.
    fn ask<I: Ingress>(&mut self, subject: Subject, ingress: &mut I, now: Instant) -> &[SocketAddr] {
        let Some(named) = self.named.get_mut(&subject) else {
            return &[];
        };
        let soon = named.asked.is_some_and(|asked| now.saturating_duration_since(asked) < AGAIN);
        if named.pending || soon && named.given.is_none() {
            return &named.found;
        }
        if self.lookups.is_none() {
            let started = Lookups::start().and_then(|lookups| {
                ingress.add_borrowed(lookups.ready.as_fd(), Wake::Names.token(), Source::Ready)?;
                Ok(lookups)
            });
            match started {
                Ok(lookups) => self.lookups = Some(lookups),
                Err(error) => {
                    tracing::warn!("names cannot be looked up: {error}");
                    return &[];
                }
            }
        }
        if named.given.is_none() {
            named.asked = Some(now);
        }
        named.pending = self.lookups.as_ref().is_some_and(|lookups| lookups.ask(subject, &named.endpoint));
        &[]
    }

    /// The next answer that came, of somebody who is still there and has still its name.
    fn next(&mut self) -> Option<(Subject, Endpoint, io::Result<Vec<SocketAddr>>)> {
        loop {
            let (subject, answer) = self.lookups.as_ref()?.answers.try_recv().ok()?;
            let Some(named) = self.named.get_mut(&subject) else {
                continue;
            };
            named.pending = false;
            if let (Subject::Relay(_), Ok(found)) = (subject, &answer) {
                named.found.clone_from(found);
            }
            match named.given.take() {
                None => return Some((subject, named.endpoint.clone(), answer)),
                Some(given) if answer.is_ok_and(|found| found.contains(&given)) => {}
                Some(given) => {
                    tracing::info!(
                        "{} is not looked for by its name any more: it is at {given}",
                        named.endpoint
                    );
                    self.named.remove(&subject);
                }
            }
        }
    }
}

impl App {
    /// Looks names up of peers and relays that did not answer, and turns to the addresses that were found.
    pub(super) fn serve_names<I: Ingress, E: Egress>(
        &mut self,
        ingress: &mut I,
        egress: &mut E,
        now: Instant,
    ) {
        self.outside.names.ask_missing(ingress, now);
        while let Some(peer) = self.tunnel.poll_unanswered() {
            self.outside.names.ask(Subject::Peer(peer), ingress, now);
        }
        while let Some(subject) = self.outside.names.doubted.pop() {
            let known = self.outside.names.ask(subject, ingress, now);
            if let (Subject::Relay(relay), false) = (subject, known.is_empty()) {
                let known = known.to_vec();
                self.seek_relay(relay, &known, egress, now);
            }
        }
        if !std::mem::take(&mut self.outside.names.news) {
            return;
        }
        if let Some(lookups) = &self.outside.names.lookups {
            // It is only read to be no longer readable.
            let _ = rustix::io::read(&*lookups.ready, &mut [0; 8]);
        }
        while let Some((subject, endpoint, answer)) = self.outside.names.next() {
            match (answer, subject) {
                (Ok(found), Subject::Peer(peer)) => self.seek_peer(peer, &endpoint, &found, now),
                (Ok(found), Subject::Relay(relay)) => self.seek_relay(relay, &found, egress, now),
                (Err(error), _) => tracing::debug!("{endpoint}: {error}"),
            }
        }
        self.send_control(egress, now);
    }

    /// Turns to the address of a peer's name that is behind the present one.
    fn seek_peer(&mut self, peer: PeerIndex, endpoint: &Endpoint, found: &[SocketAddr], now: Instant) {
        // Over the relay it is reached where it was found first.
        let direct = self.tunnel.paths(peer).and_then(Paths::direct);
        let current = direct.or_else(|| self.tunnel.path(peer).map(|path| path.remote()));
        if self.outside.names.is_missing(Subject::Peer(peer)) && current.is_some() {
            // It has called meanwhile: where it is then is better than any of its name's addresses.
            self.outside.names.is_found(Subject::Peer(peer));
            return;
        }
        if let Some(address) = next_address(&self.with_socket(found), current) {
            tracing::info!("{endpoint} is looked for at {address} now");
            self.outside.names.is_found(Subject::Peer(peer));
            if let (Some(relay), Some(view)) = (&mut self.relay, self.tunnel.view(peer)) {
                relay.choose_family(&view.public_key, address, now);
            }
            self.set_endpoint(peer, address, now);
            if self.policy(peer) != Policy::Relay {
                // Whoever can be reached directly need not wait for the relay.
                self.report_ready();
            }
        }
    }

    /// The same of a relay.
    fn seek_relay<E: Egress>(&mut self, relay: usize, found: &[SocketAddr], egress: &mut E, now: Instant) {
        let current = self.relay.as_ref().and_then(|plan| plan.server_of(relay));
        if let Some(address) = next_address(&self.with_socket(found), current) {
            self.outside.names.is_found(Subject::Relay(relay));
            self.move_relay(relay, address, egress, now);
        }
    }

    /// Those of the families that this machine has, as far as that is known by now.
    fn with_socket(&self, found: &[SocketAddr]) -> Vec<SocketAddr> {
        let is_closed = self.sockets.port() == 0;
        found.iter().copied().filter(|address| is_closed || self.ports.of(*address).is_some()).collect()
    }

    /// By which ways a peer may be reached.
    fn policy(&self, peer: PeerIndex) -> Policy {
        let plan = self.relay.as_ref().map(|relay| &relay.plan).or(self.waiting_relay.as_ref());
        let key = self.tunnel.view(peer).map(|view| view.public_key);
        plan.zip(key).map_or(Policy::Direct, |(plan, key)| plan.policy_of(&key))
    }
}

/// The address to turn to when there is no answer at the current one: the one behind it, or the first of those found when the
/// name no longer has it. `None` when there is no other.
fn next_address(found: &[SocketAddr], current: Option<SocketAddr>) -> Option<SocketAddr> {
    let usable: Vec<SocketAddr> =
        found.iter().copied().filter(|address| check_endpoint(*address).is_ok()).collect();
    let place = usable.iter().position(|address| Some(*address) == current);
    let next = place.map_or(0, |place| (place + 1) % usable.len());
    usable.get(next).copied().filter(|address| Some(*address) != current)
}

/// The thread that looks up, and the loop's end of it.
struct Lookups {
    jobs: Option<Sender<(Subject, Endpoint)>>,
    answers: Receiver<(Subject, io::Result<Vec<SocketAddr>>)>,
    /// Readable when there are answers.
    ready: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Lookups {
    fn start() -> io::Result<Self> {
        let ready = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let (jobs, receive_job) = channel::<(Subject, Endpoint)>();
        let (send_answer, answers) = channel();
        let theirs = Arc::clone(&ready);
        // Owns its ends of the channels; ends when the loop's are gone, by the drop of `Self`.
        let thread = std::thread::Builder::new().name("towpath-names".to_owned()).spawn(move || {
            while let Ok((subject, endpoint)) = receive_job.recv() {
                if send_answer.send((subject, endpoint.addresses())).is_err() {
                    return;
                }
                // It fails only when so many answers wait that it is readable anyway.
                let _ = rustix::io::write(&*theirs, &1_u64.to_ne_bytes());
            }
        })?;
        Ok(Self { jobs: Some(jobs), answers, ready, thread: Some(thread) })
    }

    fn ask(&self, subject: Subject, endpoint: &Endpoint) -> bool {
        self.jobs.as_ref().is_some_and(|jobs| jobs.send((subject, endpoint.clone())).is_ok())
    }
}

impl Drop for Lookups {
    fn drop(&mut self) {
        const PAUSE: Duration = Duration::from_millis(5);
        self.jobs = None;
        // What is queued would be looked up first: nobody hears of it.
        drop(std::mem::replace(&mut self.answers, channel().1));
        let Some(thread) = self.thread.take() else {
            return;
        };
        let mut waited = Duration::ZERO;
        while !thread.is_finished() && waited < PATIENCE {
            std::thread::sleep(PAUSE);
            waited += PAUSE;
        }
        if thread.is_finished() {
            let _ = thread.join(); // a panic of it has been reported by itself
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().expect("address")).collect()
    }

    #[test]
    fn the_address_behind_the_silent_one_is_next() {
        let found = addresses(&["192.0.2.1:9", "[2001:db8::1]:9", "192.0.2.2:9"]);
        assert_eq!(next_address(&found, None), Some(found[0]));
        assert_eq!(next_address(&found, Some(found[0])), Some(found[1]));
        assert_eq!(next_address(&found, Some(found[2])), Some(found[0]));
        let elsewhere = "192.0.2.9:9".parse().expect("address");
        assert_eq!(next_address(&found, Some(elsewhere)), Some(found[0]));
        assert_eq!(next_address(&found[..1], Some(found[0])), None, "there is no other");
        assert_eq!(next_address(&[], Some(elsewhere)), None);
        assert_eq!(
            next_address(&addresses(&["224.0.0.1:9", "192.0.2.1:0"]), None),
            None,
            "nobody to send to"
        );
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "a test needs some instant to count from")]
    fn what_has_no_address_is_asked_for_less_and_less_often_until_it_has_one() {
        let mut ingress = crate::ingress::Epoll::new().expect("epoll");
        let endpoint = Endpoint { host: crate::config::Host::Name("localhost".to_owned()), port: 9 };
        let peer = Subject::Peer(PeerIndex(1));
        let key = PublicKey([7; crate::tunnel::key::KEY_LEN]);
        let mut names = Names::new(vec![(PeerIndex(1), key, endpoint)], Vec::new(), vec![peer]);
        let start = Instant::now();
        // The pauses after each time that it is asked for, in seconds.
        let pauses = |names: &mut Names, ingress: &mut crate::ingress::Epoll, count: usize| -> Vec<u64> {
            let mut pause = || {
                let at = names.timeout().expect("it is missing");
                names.ask_missing(ingress, at);
                names.timeout().expect("it is missing still").saturating_duration_since(at).as_secs()
            };
            (0..count).map(|_| pause()).collect()
        };
        names.hurry(start);
        assert_eq!(names.timeout(), Some(start));
        assert_eq!(pauses(&mut names, &mut ingress, 6), [1, 2, 4, 8, 15, 15]);
        assert!(names.named[&peer].pending, "it was asked for");
        let due = names.timeout().expect("it is missing");
        names.ask_missing(&mut ingress, due - Duration::from_millis(1));
        assert_eq!(names.timeout(), Some(due), "too early");
        // There is another network, perhaps: at once, and the pauses are short again.
        names.hurry(start);
        assert_eq!(names.timeout(), Some(start));
        assert_eq!(pauses(&mut names, &mut ingress, 2), [1, 2]);
        // While it has an address nobody is asked for.
        names.is_found(peer);
        names.hurry(start);
        names.ask_missing(&mut ingress, start + Duration::from_secs(60));
        assert_eq!(names.timeout(), None);
    }

    #[test]
    fn a_name_is_looked_up_beside_the_loop_and_the_thread_ends() {
        let lookups = Lookups::start().expect("a thread");
        let endpoint = Endpoint { host: crate::config::Host::Name("localhost".to_owned()), port: 9 };
        let subject = Subject::Peer(PeerIndex(1));
        assert!(lookups.ask(subject, &endpoint));
        let (answered, found) = lookups.answers.recv_timeout(Duration::from_secs(60)).expect("an answer");
        assert_eq!(answered, subject);
        assert!(found.expect("localhost").iter().all(|address| address.ip().is_loopback()));
        let thread = lookups.thread.as_ref().map(|thread| thread.thread().id());
        assert!(thread.is_some());
        drop(lookups);
    }
}
