//! One worker among several: data for and from clients of others, and what all workers are ordered to do.

use std::net::SocketAddr;
use std::time::Instant;

use dataplane::drops::Cause;
use dataplane::egress::Egress;

use super::Relay;
use super::way::Delivery;
use crate::crew::{Farewell, Member};
use crate::server::figures::{Direction, Volume};
use crate::server::{AllocationId, PeerSocket, WorkerId};

/// Parcels unpacked before the other sources have their turn.
const PARCELS_PER_TURN: usize = 256;

/// Datagrams one after another with the same way.
struct Run {
    relayed: SocketAddr,
    seen_as: SocketAddr,
    way: Result<(AllocationId, Delivery), Cause>,
    relayed_volume: Volume,
}

impl Relay {
    /// One of several workers of a process.
    #[must_use]
    pub fn in_crew(mut self, member: Member) -> Self {
        self.member = Some(member);
        self
    }

    /// Whether it speaks for all workers, or is alone.
    pub(super) fn is_first(&self) -> bool {
        self.member.as_ref().is_none_or(|member| member.number() == WorkerId(0))
    }

    /// Sends a datagram to another worker's client.
    ///
    /// # Errors
    /// The cause to count when that worker is too far behind.
    pub(super) fn post(
        &mut self,
        worker: WorkerId,
        relayed: SocketAddr,
        seen_as: PeerSocket,
        payload: &[u8],
    ) -> Result<(), Cause> {
        let member = self.member.as_mut().ok_or(Cause::NoAllocation)?;
        if member.post(worker, relayed, seen_as.0, payload) { Ok(()) } else { Err(Cause::WorkerBehind) }
    }

    /// The bell has rung: unpacks what others have sent.
    pub(super) fn handle_bell<E: Egress>(&mut self, egress: &mut E, now: Instant) {
        let Some(member) = self.member.take() else { return };
        member.handle_ready();
        if self.unpack(&member, PARCELS_PER_TURN, egress, now) {
            member.ring();
        }
        self.member = Some(member);
    }

    /// Unpacks so many parcels; `true` when there may be more.
    fn unpack<E: Egress>(&mut self, member: &Member, count: usize, egress: &mut E, now: Instant) -> bool {
        let mut run: Option<Run> = None;
        for _ in 0..count {
            let Some(parcel) = member.take_parcel() else {
                self.count_run(run);
                return false;
            };
            let is_same = |run: &Run| (run.relayed, run.seen_as) == (parcel.relayed, parcel.seen_as);
            if !run.as_ref().is_some_and(is_same) {
                self.count_run(run.take());
            }
            let run = run.get_or_insert_with(|| {
                let (relayed, seen_as) = (parcel.relayed, parcel.seen_as);
                let way = self.way_of_posted(relayed, PeerSocket(seen_as), now);
                Run { relayed, seen_as, way, relayed_volume: Volume::default() }
            });
            let payload = parcel.payload();
            let delivered = match &run.way {
                Ok((receiver, delivery)) => self
                    .server
                    .admit(*receiver, Direction::ToClient, Volume::of(payload.len()), now)
                    .and_then(|()| self.deliver(delivery, payload, egress, now)),
                &Err(cause) => Err(cause),
            };
            match delivered {
                Ok(()) => run.relayed_volume.count(payload.len()),
                Err(cause) => self.drops.count(cause),
            }
            member.give_back(parcel);
        }
        self.count_run(run);
        true
    }

    fn way_of_posted(
        &self,
        relayed: SocketAddr,
        seen_as: PeerSocket,
        now: Instant,
    ) -> Result<(AllocationId, Delivery), Cause> {
        let (receiver, to) = self.server.handle_posted(relayed, seen_as, now)?;
        Ok((receiver, self.delivery(to, seen_as)?))
    }

    fn count_run(&mut self, run: Option<Run>) {
        if let Some(Run { way: Ok((receiver, delivery)), relayed_volume, .. }) = run {
            self.server.count_relayed(receiver, Direction::ToClient, delivery.carrier(), relayed_volume);
            self.hairpinned.add(relayed_volume);
            self.posted.add(relayed_volume);
        }
    }

    /// Tells others what this batch has sent them, and does what is ordered. O(1) when there is neither.
    pub(super) fn maintain_crew(&mut self, now: Instant) {
        let Some(member) = &mut self.member else { return };
        member.dispatch();
        let Some((number, orders)) = member.poll_orders() else { return };
        if let Some(machine) = member.new_machine(&orders) {
            self.server.set_machine_addresses(machine.as_ref().clone());
        }
        if let Some(new) = member.new_settings(&orders) {
            self.server.reconfigure(new.settings.clone());
            self.streams.reconfigure(new.limits, new.tls.clone());
        }
        if let Some(alternates) = &orders.drain {
            self.server.drain(alternates.clone(), now);
        }
        member.obey(number, orders);
    }

    /// The end: what others have sent is still delivered, and what they send later the last one counts as lost.
    pub(super) fn stop_crew<E: Egress>(&mut self, egress: &mut E, now: Instant) {
        let Some(mut member) = self.member.take() else { return };
        member.dispatch();
        while self.unpack(&member, PARCELS_PER_TURN, egress, now) {}
        self.member = Some(member);
    }

    /// Last words, in the log once for all workers.
    pub(super) fn say_farewell(&mut self) {
        let own = Farewell {
            workers: 1,
            hairpinned: self.hairpinned,
            posted: self.posted,
            connections: self.streams.accepted_total(),
            traffic: self.streams.traffic(),
        };
        let all = match &self.member {
            Some(member) => {
                let all = member.crew().say_farewell(&own);
                if all.is_some() {
                    // Nobody is there any more to take it.
                    self.drops.add(Cause::Shutdown, member.crew().left_behind());
                }
                all
            }
            None => Some(own),
        };
        self.duties.finish(&self.drops, &self.server);
        if let Some(all) = all {
            all.log();
        }
    }
}
