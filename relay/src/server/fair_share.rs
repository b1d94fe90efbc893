//! Who has to give way when the relay has more to do than it can: the allocations that take most, and only as long as it
//! lasts.
//!
//! Everything that clients send waits in one receive buffer of the kernel. When that overflows, the kernel drops whatever
//! comes next, also of those who send little. The remedy is to spend no further work on the packets of the heaviest
//! allocations: to read and drop a packet is several times cheaper than to relay it, so the buffer is emptied sooner.
//!
//! While the relay keeps up nothing is looked at and nobody is limited. Under overload each allocation may cost up to one
//! *level* in each interval of 10 ms. The level falls, from the cost of the heaviest allocation, until the overload ends
//! or those who are above it get so little that taking more from them would not help. It never falls below one and a half
//! times the average of all that are active: among equals nobody is to blame, and what the kernel drops unread costs less.
//! Without overload the level rises again until it is in nobody's way. What an allocation leaves unused it may use within
//! the next [`BURST`] intervals, so that a frame of video is not a flood.

use std::time::{Duration, Instant};

use super::figures::Volume;

/// The length of an interval: how often the driver's control tick comes under load.
const INTERVAL: Duration = Duration::from_millis(10);
/// What one operation costs, whatever it carries, in bytes: relaying a single datagram takes some 4 µs of CPU time, and
/// each further byte of a superpacket a quarter of a nanosecond.
const OPERATION_COST: u64 = 16_000;
/// For how many intervals an allowance that was not used is kept.
const BURST: u64 = 10;
/// No allocation ever comes near this level; small enough that [`BURST`] of it can be added.
const UNLIMITED: u64 = 1 << 48;
/// The level falls only while those above it get more than this part of everything.
const WORTHWHILE_PART: u64 = 16;
/// After this many intervals in which nothing was dropped, nobody is looked at any more.
const CALM_INTERVALS: u32 = 100;

/// An allocation's part.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Share {
    /// What it may still cost; below zero after a superpacket that overdrew it.
    allowance: i64,
    /// What it has cost in that interval.
    spent: u64,
    /// The interval it was last looked at in.
    interval: u32,
    /// Something of it was dropped in that interval.
    limited: bool,
}

/// The level, and what happened in this interval.
#[derive(Debug)]
pub(super) struct FairShare {
    engaged: bool,
    level: u64,
    interval: u32,
    epoch: Option<Instant>,
    calm_intervals: u32,
    seen: Seen,
}

/// What happened in one interval.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    /// Allocations with packets.
    active: u64,
    /// What all have cost.
    total: u64,
    /// What the heaviest has cost.
    most: u64,
    /// What those have cost that were above the level.
    limited: u64,
    /// Whether there were any.
    dropped: bool,
}

impl FairShare {
    /// Nobody is limited.
    #[must_use]
    pub fn new() -> Self {
        Self {
            engaged: false,
            level: UNLIMITED,
            interval: 0,
            epoch: None,
            calm_intervals: 0,
            seen: Seen::default(),
        }
    }

    /// Whether an allocation may have this relayed.
    #[must_use]
    pub fn admits(&mut self, share: &mut Share, load: Volume) -> bool {
        if !self.engaged {
            return true;
        }
        if share.interval != self.interval {
            let passed = u64::from(self.interval.wrapping_sub(share.interval)).min(BURST);
            let full = (BURST * self.level) as i64;
            share.allowance = full.min(share.allowance.saturating_add((passed * self.level) as i64));
            (share.interval, share.spent, share.limited) = (self.interval, 0, false);
            self.seen.active += 1;
        }
        if share.allowance <= 0 {
            if !share.limited {
                share.limited = true;
                self.seen.dropped = true;
                self.seen.limited += share.spent;
            }
            return false;
        }
        let cost = OPERATION_COST + load.bytes;
        share.allowance -= cost as i64;
        share.spent += cost;
        self.seen.total += cost;
        self.seen.most = self.seen.most.max(share.spent);
        true
    }

    /// Ends an interval: `overloaded` says whether anything was lost in it for want of time.
    pub fn handle_interval(&mut self, overloaded: bool, now: Instant) {
        let epoch = *self.epoch.get_or_insert(now);
        // Wraps after 497 days: then an allocation may have an allowance too much or too little, once.
        let passed = now.saturating_duration_since(epoch).as_millis() / INTERVAL.as_millis();
        // From one on: zero is the interval of allocations that nobody has looked at.
        self.interval = (passed as u32).wrapping_add(1);
        if !self.engaged {
            self.engaged = overloaded;
            return;
        }
        let seen = std::mem::take(&mut self.seen);
        if overloaded {
            self.calm_intervals = 0;
            let heaviest = self.level.min(seen.most);
            let average = seen.total / seen.active.max(1);
            // One alone, or nobody because the loop had no time at all, says nothing about who takes too much.
            let is_shared = seen.active > 1;
            if is_shared && (!seen.dropped || seen.limited > seen.total / WORTHWHILE_PART) {
                self.level = (heaviest - heaviest / 8).max(average + average / 2).max(OPERATION_COST);
            }
        } else {
            // Slowly: a buffer that overflows now and then is full all the time.
            self.level = (self.level + self.level / 64).min(UNLIMITED);
            self.calm_intervals = if seen.dropped { 0 } else { self.calm_intervals + 1 };
        }
        if self.calm_intervals >= CALM_INTERVALS {
            (self.engaged, self.level, self.calm_intervals) = (false, UNLIMITED, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    const PACKET: Volume = Volume { packets: 1, bytes: 1200 };
    /// Packets that fit into the receive buffer: 8 MiB of skbs with their overhead.
    const BUFFER_PACKETS: usize = 3500;
    /// CPU time to read a packet and drop it, and to read and relay it.
    const READ_NS: i64 = 1000;
    const RELAY_NS: i64 = 4000;
    /// What the machine relays at most.
    const CAPACITY_PPS: f64 = 1e9 / RELAY_NS as f64;
    const STEP: Duration = Duration::from_micros(100);

    #[expect(clippy::disallowed_methods, reason = "an arbitrary origin for virtual time")]
    fn origin() -> Instant {
        Instant::now()
    }

    /// What became of a user's packets.
    #[derive(Clone, Copy, Debug, Default)]
    struct User {
        rate_pps: f64,
        due: f64,
        offered: u64,
        read: u64,
        relayed: u64,
    }

    /// A relay on one core behind one receive buffer, in virtual time.
    struct Machine {
        fair: FairShare,
        limiting: bool,
        now: Instant,
        users: Vec<(User, Share)>,
        buffer: VecDeque<usize>,
        time_left_ns: i64,
        overflowed: bool,
        random: u64,
    }

    impl Machine {
        fn new(rates_pps: &[f64], limiting: bool) -> Self {
            let user = |&rate_pps| (User { rate_pps, ..User::default() }, Share::default());
            Self {
                fair: FairShare::new(),
                limiting,
                now: origin(),
                users: rates_pps.iter().map(user).collect(),
                buffer: VecDeque::new(),
                time_left_ns: 0,
                overflowed: false,
                random: 1,
            }
        }

        fn random(&mut self, below: usize) -> usize {
            self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (self.random >> 33) as usize % below
        }

        fn run(&mut self, time: Duration) {
            let end = self.now + time;
            let mut tick = self.now + INTERVAL;
            while self.now < end {
                self.now += STEP;
                self.arrive();
                self.work();
                if self.now >= tick {
                    tick += INTERVAL;
                    let overflowed = std::mem::take(&mut self.overflowed);
                    self.fair.handle_interval(self.limiting && overflowed, self.now);
                }
            }
        }

        fn arrive(&mut self) {
            let mut arrivals = Vec::new();
            for (index, (user, _)) in self.users.iter_mut().enumerate() {
                user.due += user.rate_pps * STEP.as_secs_f64();
                while user.due >= 1.0 {
                    user.due -= 1.0;
                    user.offered += 1;
                    arrivals.push(index);
                }
            }
            while !arrivals.is_empty() {
                let chosen = self.random(arrivals.len());
                let user = arrivals.swap_remove(chosen);
                if self.buffer.len() < BUFFER_PACKETS {
                    self.buffer.push_back(user);
                } else {
                    self.overflowed = true;
                }
            }
        }

        fn work(&mut self) {
            self.time_left_ns += STEP.as_nanos() as i64;
            while self.time_left_ns > 0 {
                let Some(index) = self.buffer.pop_front() else {
                    self.time_left_ns = 0;
                    return;
                };
                let (user, share) = &mut self.users[index];
                user.read += 1;
                let admitted = self.fair.admits(share, PACKET);
                user.relayed += u64::from(admitted);
                self.time_left_ns -= if admitted { RELAY_NS } else { READ_NS };
            }
        }

        /// The part that is relayed of what was read, and the part that is relayed of what was offered.
        fn parts(&self, index: usize) -> (f64, f64) {
            let (user, _) = &self.users[index];
            (user.relayed as f64 / user.read as f64, user.relayed as f64 / user.offered as f64)
        }
    }

    /// 99 users who offer half of what the machine can, one in ten of them five times as much as the others, and one
    /// abuser who offers twice of it.
    fn rates() -> Vec<f64> {
        let weight = |user: usize| if user.is_multiple_of(10) { 5.0 } else { 1.0 };
        let sum: f64 = (0..99).map(weight).sum();
        let honest = (0..99).map(|user| weight(user) / sum * CAPACITY_PPS / 2.0);
        honest.chain([2.0 * CAPACITY_PPS]).collect()
    }

    #[test]
    fn one_alone_is_never_limited_however_unevenly_it_is_served() {
        let mut fair = FairShare::new();
        let mut share = Share::default();
        let mut now = origin();
        // The loop gets no time in every third interval, and little in the next: what is dropped then is nobody's fault.
        for turn in 0..300 {
            let packets = [0, 1, 2000][turn % 3];
            for _ in 0..packets {
                assert!(fair.admits(&mut share, Volume { packets: 1, bytes: 1000 }), "turn {turn}");
            }
            now += INTERVAL;
            fair.handle_interval(true, now);
        }
    }

    #[test]
    fn one_abuser_among_99_users_takes_nothing_from_them() {
        let rates = rates();
        let mut without = Machine::new(&rates, false);
        without.run(Duration::from_secs(3));
        let mut with = Machine::new(&rates, true);
        with.run(Duration::from_secs(3));
        let (mut worst_before, mut worst) = (1.0_f64, 1.0_f64);
        for user in 0..99 {
            let (of_read, of_offered) = with.parts(user);
            assert!(of_read >= 0.95, "user {user}: {of_read:.3} of what the kernel delivered");
            worst = worst.min(of_offered);
            worst_before = worst_before.min(without.parts(user).1);
        }
        let abuser = with.parts(99).1;
        println!(
            "of what was offered: honest {worst:.3}, without the limiter {worst_before:.3}; abuser {abuser:.3}"
        );
        assert!(worst_before < 0.45, "the kernel drops from everyone");
        assert!(worst > 0.85, "{worst}");
        assert!(abuser > 0.0 && abuser < 0.2, "{abuser}");
    }

    #[test]
    fn below_capacity_nobody_is_limited_however_unequal() {
        let mut machine = Machine::new(&[0.9 * CAPACITY_PPS, 10.0, 0.05 * CAPACITY_PPS], true);
        machine.run(Duration::from_secs(1));
        for user in 0..3 {
            assert_eq!(machine.parts(user).0, 1.0);
        }
        assert!(!machine.fair.engaged);
    }

    #[test]
    fn one_alone_is_never_limited() {
        let mut machine = Machine::new(&[3.0 * CAPACITY_PPS], true);
        machine.run(Duration::from_secs(1));
        assert_eq!(machine.parts(0).0, 1.0);
        assert!(machine.users[0].0.relayed as f64 > 0.99 * CAPACITY_PPS);
    }

    #[test]
    fn equals_share_equally_and_the_machine_stays_busy() {
        let mut machine = Machine::new(&[0.5 * CAPACITY_PPS; 4], true);
        machine.run(Duration::from_secs(2));
        let relayed: Vec<f64> = machine.users.iter().map(|(user, _)| user.relayed as f64 / 2.0).collect();
        println!("relayed {relayed:?} a second of {CAPACITY_PPS}");
        for each in &relayed {
            assert!((0.2..0.3).contains(&(each / CAPACITY_PPS)), "{relayed:?}");
        }
        assert!(relayed.iter().sum::<f64>() > 0.85 * CAPACITY_PPS, "{relayed:?}");
    }

    #[test]
    fn the_limit_goes_away_with_the_overload() {
        let mut machine = Machine::new(&rates(), true);
        machine.run(Duration::from_secs(1));
        assert!(machine.fair.engaged);
        machine.users[99].0.rate_pps = 0.1 * CAPACITY_PPS;
        machine.run(Duration::from_secs(3));
        assert!(!machine.fair.engaged);
        let before = machine.users[99].0;
        machine.run(Duration::from_secs(1));
        let after = machine.users[99].0;
        assert_eq!(after.relayed - before.relayed, after.read - before.read);
    }
}
