//! The workers of one process, as far as they have to do with each other: each serves clients, sockets and allocations of its
//! own, and all that passes between them passes here.
//!
//! ```text
//!  worker 0 (signals, readiness, configuration) ── orders ──► every worker
//!  any worker ── datagrams for another's client ── parcels ──► that worker
//!  any worker ── what was lost, and the figures at the end ──► one line in the log
//! ```
//! A worker is woken by a bell of its own. What it takes then never makes it wait for another.

mod farewell;
mod orders;
mod parcel;
mod pulse;

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use dataplane::ingress::{Ingress, Source};
use rustix::event::{EventfdFlags, eventfd};

pub use self::farewell::Farewell;
use self::orders::Board;
pub use self::orders::{Orders, Reconfiguration};
pub use self::parcel::Parcel;
use self::parcel::Parcels;
use self::pulse::Pulse;
use crate::ready::ReadySource;
use crate::server::WorkerId;

/// All workers of a process.
#[derive(Debug)]
pub struct Crew {
    mailboxes: Box<[Mailbox]>,
    board: Board,
    farewells: Mutex<Farewell>,
}

/// What others leave for one worker.
#[derive(Debug)]
struct Mailbox {
    parcels: Parcels,
    pulse: Pulse,
    bell: Bell,
}

/// A descriptor that becomes readable, and is written only when it is not.
#[derive(Debug)]
struct Bell {
    fd: OwnedFd,
    has_rung: AtomicBool,
}

impl Bell {
    fn new() -> io::Result<Self> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { fd, has_rung: AtomicBool::new(false) })
    }

    /// Whatever was left before is seen by the worker after its next [`Bell::silence`]: both change the flag by a swap, so that
    /// the later one sees everything before the earlier one.
    fn ring(&self) {
        if !self.has_rung.swap(true, Ordering::AcqRel) {
            // It cannot be full, because it is read before the flag allows for another write.
            let _ = rustix::io::write(&self.fd, &1_u64.to_ne_bytes());
        }
    }

    fn silence(&self) {
        // Read first, or it could stay silent although somebody has rung after that. It fails when it has not rung at all.
        let _ = rustix::io::read(&self.fd, &mut [0_u8; 8]);
        self.has_rung.swap(false, Ordering::AcqRel);
    }
}

impl Crew {
    /// A crew of so many.
    ///
    /// # Errors
    /// What eventfd(2) answers.
    pub fn new(workers: u16) -> io::Result<Arc<Self>> {
        let mailbox = |_| {
            let parcels = Parcels::new(workers > 1);
            Ok(Mailbox { parcels, pulse: Pulse::default(), bell: Bell::new()? })
        };
        let mailboxes = (0..workers).map(mailbox).collect::<io::Result<_>>()?;
        Ok(Arc::new(Self { mailboxes, board: Board::default(), farewells: Mutex::default() }))
    }

    /// How many there are.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.mailboxes.len()
    }

    /// The place of one worker.
    #[must_use]
    pub fn member(self: &Arc<Self>, number: u16) -> Member {
        let addressed = vec![false; self.mailboxes.len()].into();
        Member {
            crew: self.clone(),
            number: WorkerId(number),
            addressed,
            sends: false,
            seen: 0,
            obeyed: Orders::default(),
        }
    }

    /// What every worker is to do from now on; `change` changes the orders there are. The answer is the number of the change.
    pub fn order(&self, change: impl FnOnce(&mut Orders)) -> u64 {
        let number = self.board.change(change);
        self.mailboxes.iter().for_each(|mailbox| mailbox.bell.ring());
        number
    }

    /// Whether every worker has done what was ordered up to a change.
    #[must_use]
    pub fn have_obeyed(&self, number: u64) -> bool {
        self.mailboxes.iter().all(|mailbox| mailbox.pulse.obeyed() >= number)
    }

    /// A worker has nothing more to say. The answer to the last one is what all have said together.
    pub fn say_farewell(&self, farewell: &Farewell) -> Option<Farewell> {
        let mut sum = self.farewells.lock().unwrap_or_else(PoisonError::into_inner);
        sum.merge(farewell);
        (sum.workers == self.mailboxes.len()).then(|| sum.clone())
    }

    /// Takes what was sent to workers that are no longer there; how many datagrams it was.
    #[must_use]
    pub fn left_behind(&self) -> u64 {
        let of_one = |mailbox: &Mailbox| std::iter::from_fn(|| mailbox.parcels.take_full()).count() as u64;
        self.mailboxes.iter().map(of_one).sum()
    }

    /// Asks every worker for a sign of life.
    pub fn ask(&self) {
        for mailbox in &self.mailboxes {
            mailbox.pulse.ask();
            mailbox.bell.ring();
        }
    }

    /// Whether every worker has given one since it was asked last.
    #[must_use]
    pub fn are_alive(&self) -> bool {
        self.mailboxes.iter().all(|mailbox| mailbox.pulse.has_answered())
    }
}

/// One worker's place in the crew.
#[derive(Debug)]
pub struct Member {
    crew: Arc<Crew>,
    number: WorkerId,
    /// Whom something was sent in this batch, by worker, and whether to anybody.
    addressed: Box<[bool]>,
    sends: bool,
    /// The number of the last change that was obeyed, and the orders it came to.
    seen: u64,
    obeyed: Orders,
}

impl Member {
    /// Its number.
    #[must_use]
    pub fn number(&self) -> WorkerId {
        self.number
    }

    /// All workers.
    #[must_use]
    pub fn crew(&self) -> &Arc<Crew> {
        &self.crew
    }

    fn mailbox(&self) -> &Mailbox {
        &self.crew.mailboxes[usize::from(self.number.0)]
    }

    /// Has the loop woken by the bell.
    ///
    /// # Errors
    /// What the ingress answers.
    pub fn start<I: Ingress>(&self, ingress: &mut I) -> io::Result<()> {
        ingress.add_borrowed(self.mailbox().bell.fd.as_fd(), ReadySource::Crew.token(), Source::Ready)
    }

    /// Rings one's own bell: there is more to do than one turn takes.
    pub fn ring(&self) {
        self.mailbox().bell.ring();
    }

    /// The bell has rung.
    pub fn handle_ready(&self) {
        let mailbox = self.mailbox();
        mailbox.bell.silence();
        mailbox.pulse.answer();
    }

    /// Gives a sign of life: a loop that is suspended does not hear the bell.
    pub fn handle_timeout(&self) {
        self.mailbox().pulse.answer();
    }

    /// The orders, where they have changed; [`Member::obey`] follows. O(1) otherwise.
    #[must_use]
    pub fn poll_orders(&self) -> Option<(u64, Orders)> {
        self.crew.board.changed_since(self.seen)
    }

    /// The settings in these orders, where they are others than those obeyed before.
    #[must_use]
    pub fn new_settings(&self, orders: &Orders) -> Option<Arc<Reconfiguration>> {
        changed(&self.obeyed.settings, &orders.settings)
    }

    /// The addresses of this machine in these orders, likewise.
    #[must_use]
    pub fn new_machine(&self, orders: &Orders) -> Option<Arc<BTreeSet<IpAddr>>> {
        changed(&self.obeyed.machine, &orders.machine)
    }

    /// The orders up to this change are carried out.
    pub fn obey(&mut self, number: u64, orders: Orders) {
        (self.seen, self.obeyed) = (number, orders);
        self.mailbox().pulse.obey(number);
    }

    /// Sends a datagram to another worker's client; that worker is told by [`Member::dispatch`]. The answer is whether there
    /// was room: not when that worker is too far behind.
    #[must_use]
    pub fn post(
        &mut self,
        worker: WorkerId,
        relayed: SocketAddr,
        seen_as: SocketAddr,
        payload: &[u8],
    ) -> bool {
        let index = usize::from(worker.0);
        let parcels = &self.crew.mailboxes[index].parcels;
        let Some(mut parcel) = parcels.take_empty(payload.len()) else { return false };
        parcel.pack(relayed, seen_as, payload);
        parcels.put_full(parcel);
        self.addressed[index] = true;
        self.sends = true;
        true
    }

    /// Tells those who were sent anything in this batch. O(1) when nobody was.
    pub fn dispatch(&mut self) {
        if !std::mem::take(&mut self.sends) {
            return;
        }
        for (mailbox, is_addressed) in self.crew.mailboxes.iter().zip(&mut self.addressed) {
            if std::mem::take(is_addressed) {
                mailbox.bell.ring();
            }
        }
    }

    /// The next parcel from another worker; [`Member::give_back`] follows.
    #[must_use]
    pub fn take_parcel(&self) -> Option<Parcel> {
        self.mailbox().parcels.take_full()
    }

    /// A parcel is unpacked.
    pub fn give_back(&self, parcel: Parcel) {
        self.mailbox().parcels.give_back(parcel);
    }
}

/// What has taken the place of `old`, if anything has.
fn changed<T>(old: &Option<Arc<T>>, new: &Option<Arc<T>>) -> Option<Arc<T>> {
    let is_old = |new: &Arc<T>| old.as_ref().is_some_and(|old| Arc::ptr_eq(old, new));
    new.clone().filter(|new| !is_old(new))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_worker_obeys_before_all_have() {
        let crew = Crew::new(3).unwrap();
        let mut members: Vec<_> = (0..3).map(|number| crew.member(number)).collect();
        assert!(crew.have_obeyed(0) && members[0].poll_orders().is_none());
        let number = crew.order(|orders| orders.drain = Some(Default::default()));
        for member in &mut members {
            assert!(!crew.have_obeyed(number));
            let (number, orders) = member.poll_orders().unwrap();
            assert!(orders.drain.is_some());
            member.obey(number, orders);
            assert!(member.poll_orders().is_none());
        }
        assert!(crew.have_obeyed(number));
    }

    #[test]
    fn one_worker_without_a_sign_of_life_is_enough() {
        let crew = Crew::new(2).unwrap();
        let members = [crew.member(0), crew.member(1)];
        assert!(crew.are_alive(), "nobody has asked");
        crew.ask();
        members[1].handle_ready();
        assert!(!crew.are_alive());
        members[0].handle_timeout();
        assert!(crew.are_alive());
    }

    #[test]
    fn a_bell_rings_again_after_it_was_silenced() {
        let bell = Bell::new().unwrap();
        let is_readable = || rustix::io::read(&bell.fd, &mut [0_u8; 8]).is_ok();
        bell.ring();
        bell.ring();
        bell.silence();
        assert!(!is_readable());
        bell.ring();
        assert!(is_readable());
    }

    #[test]
    fn datagrams_arrive_in_order_and_what_finds_no_room_is_known() {
        let crew = Crew::new(2).unwrap();
        let (mut from, to) = (crew.member(1), crew.member(0));
        let (relayed, seen_as) = ("192.0.2.1:1".parse().unwrap(), "192.0.2.1:2".parse().unwrap());
        let payload = |number: u32| [&number.to_be_bytes()[..], &[7; 1000]].concat();
        assert!(
            from.post(WorkerId(0), relayed, seen_as, &[1; 65_507])
                && from.post(WorkerId(0), relayed, seen_as, &[])
        );
        let mut sent = 0;
        while from.post(WorkerId(0), relayed, seen_as, &payload(sent)) {
            sent += 1;
        }
        from.dispatch();
        assert!(sent > 2000, "{sent}");
        let mut received = Vec::new();
        while let Some(parcel) = to.take_parcel() {
            assert_eq!((parcel.relayed, parcel.seen_as), (relayed, seen_as));
            received.push(parcel.payload().to_vec());
            to.give_back(parcel);
        }
        assert_eq!((received[0].len(), received[1].len()), (65_507, 0));
        assert_eq!(received[2..], (0..sent).map(payload).collect::<Vec<_>>());
        assert!(from.post(WorkerId(0), relayed, seen_as, &[]), "there is room again");
    }
}
