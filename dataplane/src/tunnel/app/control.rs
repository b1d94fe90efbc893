//! What `wg` asks for, done a bounded part at a time between two batches of packets.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::status::Telling;
use super::wake::Wake;
use super::{App, Binding, Inquiries, RelayPlan};
use crate::admin;
use crate::driver::Next;
use crate::egress::Egress;
use crate::ingress::{Ingress, Source};
use crate::sys::daemon::Notice;
use crate::tunnel::key::PublicKey;
use crate::tunnel::marking::Marking;
use crate::tunnel::paths::Paths;
use crate::tunnel::{Path, PeerConfig, PeerIndex, setup};
use crate::uapi::answer::{self, Part};
use crate::uapi::server::ClientId;
use crate::uapi::{Change, Job, Listener, Refusal, Request, Set, Uapi};

/// What one turn may cost, in changes that are table look-ups.
const TURN: usize = 64;
/// Peers told of in one turn.
pub(super) const PEERS_TOLD: usize = 32;
/// How long a port may be taken by our own former socket, of which a ring lets go a moment later.
const PORT_PATIENCE: Duration = Duration::from_millis(250);
/// How soon a port is tried again.
const PORT_AGAIN: Duration = Duration::from_millis(10);

/// How the endpoint is managed from outside.
#[derive(Debug)]
pub struct Management {
    /// How sockets are bound, from the start or when the interface goes up.
    pub binding: Binding,
    /// What datagrams say outside of the packets inside.
    pub marking: Marking,
    /// What is found out about the network outside.
    pub inquiries: Inquiries,
    /// A relay that is asked when the interface is up, which is when there are sockets, and when one of its names has an address.
    pub waiting_relay: Option<RelayPlan>,
    /// Where `wg` is served.
    pub listener: Option<Listener>,
    /// A connection of this program's own, which asks as `wg` does.
    pub own: Option<UnixStream>,
    /// As wireguard-go: the end of the interface, or of the socket's file, is the end of the program, in good order.
    pub drop_in: bool,
    /// Who waits until everything is there.
    pub notice: Option<Notice>,
    /// Threads that seal and open beside the loop.
    pub crypto_threads: usize,
    /// Where totals are shown.
    pub admin: Option<admin::Listener>,
}

/// The connection to `wg`.
pub(super) struct Control {
    uapi: Uapi,
    job: Option<Work>,
    /// The work goes on then.
    at: Option<Instant>,
    /// The program is up since.
    started: Instant,
}

/// A request under way.
enum Work {
    Get { client: ClientId, last: Option<PeerIndex>, parts: VecDeque<Part> },
    Set(Changes),
    Status(Telling),
}

struct Changes {
    client: ClientId,
    rest: std::vec::IntoIter<Change>,
    /// What is not done yet.
    current: Option<Change>,
    mistake: Option<Refusal>,
    subject: Subject,
    /// Until when a port may be taken.
    port_until: Option<Instant>,
}

/// What the next changes are about.
#[derive(Clone, Copy)]
enum Subject {
    Device,
    Peer(PeerIndex),
    /// A peer that is not to be made, or is ourselves.
    Nobody,
}

/// How far a change has come.
enum Step {
    Done {
        cost: usize,
    },
    /// The same once more.
    Part,
    /// The same once more, later.
    Later,
}

impl App {
    /// Begins to serve `wg`, if there is a way to come by.
    pub(super) fn open_control<I: Ingress>(
        &mut self,
        listener: Option<Listener>,
        own: Option<UnixStream>,
        ingress: &mut I,
        now: Instant,
    ) -> io::Result<()> {
        if listener.is_none() && own.is_none() {
            return Ok(());
        }
        let uapi = Uapi::start(listener, own)?;
        ingress.add_borrowed(uapi.fd().as_fd(), Wake::Control.token(), Source::Ready)?;
        self.control = Some(Control { uapi, job: None, at: None, started: now });
        Ok(())
    }

    /// There is news for [`App::serve_control`].
    pub(super) fn note_control(&mut self, now: Instant) {
        if let Some(control) = &mut self.control {
            control.uapi.acknowledge();
            control.at = Some(now);
        }
    }

    /// When [`App::serve_control`] has something to do.
    pub(super) fn control_timeout(&self) -> Option<Instant> {
        self.control.as_ref().and_then(|control| control.at)
    }

    /// Goes on with what was asked for, as far as one turn may go.
    pub(super) fn serve_control<I: Ingress, E: Egress>(
        &mut self,
        ingress: &mut I,
        egress: &mut E,
        now: Instant,
    ) -> Next {
        let Some(mut control) = self.control.take_if(|control| control.at.is_some_and(|at| at <= now)) else {
            return Next::Continue;
        };
        control.at = None;
        if control.uapi.is_removed() && self.drop_in {
            tracing::info!("the socket was removed");
            return Next::Stop;
        }
        while control.job.is_none() {
            let Some(job) = control.uapi.next() else { break };
            if let Request::Ticket = job.request {
                control.uapi.answer(job.client, self.tell_ticket());
                continue;
            }
            control.job = begin(job, &control);
        }
        match control.job.take() {
            None => {}
            Some(Work::Get { client, last, parts }) => {
                control.job = self.tell(client, last, parts, &control.uapi);
                control.at = Some(now);
            }
            Some(Work::Status(telling)) => {
                let left = self.tell_status(telling, &control.uapi, ingress, egress, now);
                control.job = left.map(Work::Status);
                control.at = Some(now);
            }
            Some(Work::Set(changes)) => {
                control.at = Some(now);
                self.change(changes, &mut control, ingress, egress, now);
            }
        }
        self.control = Some(control);
        Next::Continue
    }

    /// Tells of some peers; what is left to tell.
    fn tell(
        &self,
        client: ClientId,
        mut last: Option<PeerIndex>,
        mut parts: VecDeque<Part>,
        uapi: &Uapi,
    ) -> Option<Work> {
        if parts.is_empty() {
            let (key, mark) = (self.tunnel.private_key(), self.binding.firewall_mark);
            parts.push_back(answer::device(key, self.listen_port(), mark));
        }
        for _ in 0..PEERS_TOLD {
            last = self.tunnel.next_peer(last);
            let Some(view) = last.and_then(|index| self.tunnel.view(index)) else {
                parts.push_back(answer::end(None));
                uapi.answer(client, parts);
                return None;
            };
            parts.push_back(answer::peer(&view));
        }
        Some(Work::Get { client, last, parts })
    }

    /// The port of the sockets, or what it will be; 0 when the kernel is to choose.
    pub(super) fn listen_port(&self) -> u16 {
        Some(self.sockets.port()).filter(|port| *port != 0).unwrap_or(self.binding.listen_port)
    }

    /// Makes some changes.
    fn change<I: Ingress, E: Egress>(
        &mut self,
        mut changes: Changes,
        control: &mut Control,
        ingress: &mut I,
        egress: &mut E,
        now: Instant,
    ) {
        let mut spent = 0;
        while spent < TURN {
            let Some(change) = changes.current.take().or_else(|| changes.rest.next()) else {
                control.uapi.answer(changes.client, [answer::end(changes.mistake)].into());
                self.send_control(egress, now);
                return;
            };
            let step = match &change {
                Change::ListenPort(port) => self.change_port(*port, &mut changes, ingress, egress, now),
                _ => self.change_one(&change, &mut changes.subject, now),
            };
            match step {
                Ok(Step::Done { cost }) => spent += cost,
                Ok(Step::Part) => {
                    changes.current = Some(change);
                    break;
                }
                Ok(Step::Later) => {
                    changes.current = Some(change);
                    control.at = Some(now + PORT_AGAIN);
                    break;
                }
                Err(refusal) => {
                    // As with the kernel: what was done before stays.
                    changes.rest = Vec::new().into_iter();
                    changes.mistake = Some(refusal);
                }
            }
        }
        self.send_control(egress, now);
        control.job = Some(Work::Set(changes));
    }

    fn change_one(&mut self, change: &Change, subject: &mut Subject, now: Instant) -> Result<Step, Refusal> {
        match (change, *subject) {
            (Change::PrivateKey(key), _) => self.tunnel.set_private_key(key.as_deref().cloned()),
            (Change::FirewallMark(mark), _) => {
                setup::mark_sockets(&self.sockets, *mark).map_err(|error| Refusal::from(&error))?;
                self.mark_stream(*mark).map_err(|error| Refusal::from(&error))?;
                self.binding.firewall_mark = *mark;
                self.tunnel.set_marked(*mark != 0);
            }
            (Change::ReplacePeers, _) => {
                for _ in 0..TURN / 2 {
                    let Some(index) = self.tunnel.next_peer(None) else {
                        return Ok(Step::Done { cost: 1 });
                    };
                    if !self.forget_peer(index, now) {
                        break;
                    }
                }
                return Ok(Step::Part);
            }
            (&Change::Peer { key, update_only, remove }, _) => {
                let known = self.tunnel.peer(&key);
                *subject = match known {
                    Some(index) if remove && !self.forget_peer(index, now) => return Ok(Step::Part),
                    Some(_) if remove => Subject::Nobody,
                    Some(index) => Subject::Peer(index),
                    None if remove || update_only || self.is_ourselves(&key) => Subject::Nobody,
                    None => Subject::Peer(self.add_peer(key, now)),
                };
            }
            (Change::PresharedKey(key), Subject::Peer(peer)) => {
                self.tunnel.set_preshared_key(peer, key.as_deref().cloned());
            }
            (&Change::Endpoint(address), Subject::Peer(peer)) => {
                if let Some(view) = self.tunnel.view(peer) {
                    let current = view.path.map(|path| path.remote());
                    self.outside.names.was_told(peer, view.public_key, address, current);
                }
                self.set_endpoint(peer, address, now);
            }
            (Change::Ticket(ticket), Subject::Peer(peer)) => self.take_ticket(peer, ticket, now)?,
            (Change::Ticket(_), _) => return Err(Refusal::System(libc::ENOENT)),
            (&Change::PersistentKeepalive(seconds), Subject::Peer(peer)) => {
                self.tunnel.set_persistent_keepalive(peer, seconds, now);
            }
            (Change::ReplaceAllowedIps, Subject::Peer(peer)) => {
                if !self.tunnel.remove_allowed_ips(peer, TURN) {
                    return Ok(Step::Part);
                }
            }
            (&Change::AllowedIp(prefix), Subject::Peer(peer)) => self.tunnel.add_allowed_ip(peer, prefix),
            (&Change::NotAllowedIp(prefix), Subject::Peer(peer)) => {
                self.tunnel.remove_allowed_ip(peer, prefix);
            }
            // The rest of a peer that is not there; the request was read so that nothing else can be.
            (_, Subject::Nobody | Subject::Device | Subject::Peer(_)) => {}
        }
        Ok(Step::Done { cost: 1 })
    }

    fn change_port<I: Ingress, E: Egress>(
        &mut self,
        port: u16,
        changes: &mut Changes,
        ingress: &mut I,
        egress: &mut E,
        now: Instant,
    ) -> Result<Step, Refusal> {
        let unchanged = port != 0 && port == self.sockets.port();
        if unchanged || !self.tunnel.is_running() {
            self.binding.listen_port = port;
            return Ok(Step::Done { cost: 1 });
        }
        // What `wg setconf` and `wg syncconf` say of a file without ListenPort is no wish for another one.
        if self.relay.is_some() && port == 0 {
            return Ok(Step::Done { cost: 1 });
        }
        if self.relay.is_some() {
            tracing::warn!(
                "the relay knows this tunnel by its port: change ListenPort in the file and start again"
            );
            return Err(Refusal::Unsupported);
        }
        match self.rebind(port, ingress, egress) {
            Ok(()) => {
                (self.binding.listen_port, self.bind_at, changes.port_until) = (port, None, None);
                Ok(Step::Done { cost: TURN })
            }
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                if now < *changes.port_until.get_or_insert(now + PORT_PATIENCE) {
                    return Ok(Step::Later);
                }
                changes.port_until = None;
                Err(Refusal::System(libc::EADDRINUSE))
            }
            Err(error) => Err(Refusal::from(&error)),
        }
    }

    fn is_ourselves(&self, key: &PublicKey) -> bool {
        self.tunnel.private_key().is_some() && self.tunnel.public_key() == *key
    }

    fn add_peer(&mut self, key: PublicKey, now: Instant) -> PeerIndex {
        let index = self.tunnel.add_peer(&new_peer(key), now);
        let waiting = self.waiting_relay.as_ref().filter(|_| self.tunnel.is_running());
        if let Some(plan) = self.relay.as_ref().map(|relay| &relay.plan).or(waiting) {
            self.tunnel.choose_paths(index, plan.policy_of(&key), false, now);
        }
        index
    }

    /// Removes a peer; `false` when it has more prefixes than one turn takes away.
    fn forget_peer(&mut self, index: PeerIndex, now: Instant) -> bool {
        if !self.tunnel.remove_allowed_ips(index, TURN) {
            return false;
        }
        if let Some(view) = self.tunnel.view(index) {
            self.tickets.remove(&view.public_key);
        }
        self.tunnel.remove_peer(index);
        self.outside.forget(index, now);
        if let Some(relay) = &mut self.relay {
            relay.forget_peer(index, now);
        }
        if let Some(plan) = &mut self.waiting_relay {
            plan.peers.retain(|(peer, _)| *peer != index);
        }
        true
    }

    /// Sets where a peer is reached: directly, and where there is a relay, over it as well.
    pub(super) fn set_endpoint(&mut self, index: PeerIndex, address: SocketAddr, now: Instant) {
        self.outside.note_called(index, now);
        let (direct, relayed) = (Path::Direct { to: address, from: None }, Path::Relayed { peer: address });
        let paths = self.tunnel.paths(index);
        let allows = |path| paths.is_none_or(|paths| paths.allows(path));
        let Some(relay) = &mut self.relay else {
            let same = matches!(self.tunnel.path(index), Some(Path::Direct { to, .. }) if to == address);
            let goes_direct = allows(direct) && !same;
            if let Some(plan) = &mut self.waiting_relay {
                plan.peers.retain(|(peer, _)| *peer != index);
                plan.peers.push((index, address));
            }
            if goes_direct {
                self.tunnel.set_direct(index, address, now);
            }
            return;
        };
        // The direct way may have followed the peer to where it no longer is.
        let goes_direct = allows(direct) && paths.and_then(Paths::direct) != Some(address);
        let goes_relayed = allows(relayed) && relay.peer(index) != Some(address);
        if goes_direct {
            self.tunnel.set_direct(index, address, now);
        }
        if goes_relayed {
            let bound = relay.set_peer(index, address, now);
            self.tunnel.set_relayed(index, bound.then_some(relayed), now);
        }
    }
}

/// Begins with a request; one that cannot be done is answered at once.
fn begin(job: Job, control: &Control) -> Option<Work> {
    let client = job.client;
    match job.request {
        Request::Get => Some(Work::Get { client, last: None, parts: VecDeque::new() }),
        Request::Status(wanted) => Some(Work::Status(Telling::new(client, wanted, control.started))),
        Request::Set(Set { changes, mistake }) => Some(Work::Set(Changes {
            client,
            rest: changes.into_iter(),
            current: None,
            mistake,
            subject: Subject::Device,
            port_until: None,
        })),
        // It has been answered.
        Request::Ticket => None,
        Request::Bad(refusal) => {
            control.uapi.answer(client, [answer::end(Some(refusal))].into());
            None
        }
    }
}

fn new_peer(public_key: PublicKey) -> PeerConfig {
    PeerConfig {
        public_key,
        preshared_key: None,
        allowed_ips: Vec::new(),
        path: None,
        awaits_path: false,
        persistent_keepalive: None,
    }
}

/// Time since 1970, for the times of handshakes.
pub(super) fn wall_clock() -> Duration {
    #[expect(clippy::disallowed_methods, reason = "what people are told is told by their clock")]
    let now = SystemTime::now();
    now.duration_since(UNIX_EPOCH).unwrap_or_default()
}
