//! What strangers can make this relay send to a third party (reflection): requests with a forged source are answered to
//! the victim. Therefore every prefix gets no more bytes without credentials than came from it in the last ten seconds,
//! but for a small number of answers a second, so that a single request is answered although its answer is longer.
//!
//! Nothing is kept for a source: the table has a fixed size, and prefixes that share a place share its budget.

use std::hash::{BuildHasher, Hasher};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use dataplane::drops::Cause;
use foldhash::fast::FixedState;

use super::limits::Limits;
use super::{ClientSocket, FromClient, Server};

/// Places in the table.
const PREFIXES: usize = 4096;
/// For how many seconds received bytes can be answered.
const WINDOW_S: usize = 10;
/// Answers a second in all that no received bytes pay for: with a short realm, some 13 Mbit/s of challenges.
const UNPAID_TOTAL_MAX: u32 = 20_000;

/// Bytes and answers by prefix.
#[derive(Debug)]
pub(super) struct Reflection {
    /// Each behind a lock of its own: requests of all workers come here.
    prefixes: Box<[Mutex<Prefix>]>,
    hasher: FixedState,
    unpaid_max: AtomicU32,
    strict: AtomicBool,
    /// Where seconds are counted from: the first request.
    epoch: OnceLock<Instant>,
    /// A second in the upper half, and in the lower the answers in it that nothing paid for.
    unpaid_total: AtomicU64,
}

/// One place: what came and went, by second.
#[derive(Clone, Debug, Default)]
struct Prefix {
    /// The second of the newest entries.
    second: u32,
    /// Answers that nothing paid for in that second.
    unpaid: u32,
    /// The newest second and the nine before it, so at most ten seconds.
    received: [u32; WINDOW_S],
    /// The newest second and the ten before it, so at least ten seconds: in doubt, less is sent.
    sent: [u32; WINDOW_S + 1],
    received_sum: u64,
    sent_sum: u64,
}

impl Reflection {
    /// An empty table. `seed` keeps strangers from choosing prefixes that share a place with others.
    #[must_use]
    pub fn new(limits: &Limits, seed: u64) -> Self {
        Self {
            prefixes: (0..PREFIXES).map(|_| Mutex::default()).collect(),
            hasher: FixedState::with_seed(seed),
            unpaid_max: AtomicU32::new(limits.unpaid_replies_per_s),
            strict: AtomicBool::new(limits.strict_reflection),
            epoch: OnceLock::new(),
            unpaid_total: AtomicU64::new(0),
        }
    }

    /// Takes other limits; what came and went is remembered.
    pub fn reconfigure(&self, limits: &Limits) {
        self.unpaid_max.store(limits.unpaid_replies_per_s, Ordering::Relaxed);
        self.strict.store(limits.strict_reflection, Ordering::Relaxed);
    }

    /// A request came that proved its source.
    pub fn credit(&self, source: IpAddr, request_len: usize, now: Instant) {
        let second = self.second(now);
        self.prefix(source, second).receive(request_len);
    }

    /// A request came that proved nothing: whether it may be answered with `reply_len` bytes.
    #[must_use]
    pub fn pays(&self, source: IpAddr, request_len: usize, reply_len: usize, now: Instant) -> bool {
        let second = self.second(now);
        let mut prefix = self.prefix(source, second);
        prefix.receive(request_len);
        if self.strict.load(Ordering::Relaxed) && reply_len > request_len {
            return false;
        }
        if prefix.sent_sum + reply_len as u64 <= prefix.received_sum {
            prefix.send(reply_len);
            return true;
        }
        let unpaid = prefix.unpaid < self.unpaid_max.load(Ordering::Relaxed) && self.take_unpaid(second);
        if unpaid {
            prefix.unpaid += 1;
        }
        unpaid
    }

    /// Takes one of the answers in all that nothing pays for in this second.
    fn take_unpaid(&self, second: u32) -> bool {
        let next = |total: u64| {
            let (of, count) = ((total >> 32) as u32, total as u32);
            // A worker that is late counts with the others.
            let count = if of < second { 0 } else { count };
            (count < UNPAID_TOTAL_MAX).then(|| u64::from(of.max(second)) << 32 | u64::from(count + 1))
        };
        self.unpaid_total.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).is_ok()
    }

    fn second(&self, now: Instant) -> u32 {
        let epoch = *self.epoch.get_or_init(|| now);
        // Wraps after 136 years.
        now.saturating_duration_since(epoch).as_secs() as u32
    }

    fn prefix(&self, source: IpAddr, second: u32) -> MutexGuard<'_, Prefix> {
        let mut hasher = self.hasher.build_hasher();
        match source.to_canonical() {
            IpAddr::V4(address) => hasher.write_u32(address.to_bits() >> 8),
            IpAddr::V6(address) => hasher.write_u64((address.to_bits() >> 72) as u64),
        }
        let prefix = &self.prefixes[hasher.finish() as usize % PREFIXES];
        let mut prefix = prefix.lock().unwrap_or_else(PoisonError::into_inner);
        prefix.advance(second);
        prefix
    }
}

impl Prefix {
    /// Forgets what is too old.
    fn advance(&mut self, second: u32) {
        let passed = second.saturating_sub(self.second) as usize;
        if passed == 0 {
            return;
        }
        if passed > WINDOW_S {
            *self = Self { second, ..Self::default() };
            return;
        }
        for newer in self.second + 1..=second {
            let received = &mut self.received[newer as usize % WINDOW_S];
            self.received_sum -= u64::from(std::mem::take(received));
            let sent = &mut self.sent[newer as usize % (WINDOW_S + 1)];
            self.sent_sum -= u64::from(std::mem::take(sent));
        }
        self.second = second;
        self.unpaid = 0;
    }

    fn receive(&mut self, len: usize) {
        let slot = &mut self.received[self.second as usize % WINDOW_S];
        self.received_sum += add(slot, len);
    }

    fn send(&mut self, len: usize) {
        let slot = &mut self.sent[self.second as usize % (WINDOW_S + 1)];
        self.sent_sum += add(slot, len);
    }
}

/// Adds as much as fits; what was added.
fn add(slot: &mut u32, len: usize) -> u64 {
    let added = u32::try_from(len).unwrap_or(u32::MAX).min(u32::MAX - *slot);
    *slot += added;
    added.into()
}

impl Server {
    /// Lets an answer pass if it is authentic, or if its receiver has sent enough.
    pub(super) fn within_budget(
        &self,
        client: &ClientSocket,
        request_len: usize,
        answer: FromClient,
        now: Instant,
    ) -> FromClient {
        let source = client.address.ip();
        if answer != FromClient::Reply || self.replies.is_authentic() {
            // The nonce in it went to this address and came back, so the source is not forged.
            self.reflection.credit(source, request_len, now);
            return answer;
        }
        let pays = self.reflection.pays(source, request_len, self.replies.bytes().len(), now);
        if pays { answer } else { FromClient::Drop(Cause::Reflection) }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::net::{Ipv4Addr, Ipv6Addr};
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    #[expect(clippy::disallowed_methods, reason = "an arbitrary origin for virtual time")]
    fn origin() -> Instant {
        Instant::now()
    }

    fn ledger(limits: &Limits) -> Reflection {
        Reflection::new(limits, 7)
    }

    const SOURCE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

    #[test]
    fn a_prefix_gets_ten_answers_a_second_beyond_what_it_sent() {
        let ledger = ledger(&Limits::default());
        let start = origin();
        // No byte at all pays, so that only the floor is left.
        let answers =
            |ledger: &Reflection, ip: IpAddr, now| (0..100).filter(|_| ledger.pays(ip, 0, 64, now)).count();
        for second in 0..5 {
            let now = start + Duration::from_secs(second);
            assert_eq!(answers(&ledger, SOURCE, now), 10);
            let neighbour = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 200));
            assert_eq!(answers(&ledger, neighbour, now), 0, "the same /24");
            let mapped = IpAddr::V6(Ipv4Addr::new(192, 0, 2, 9).to_ipv6_mapped());
            assert_eq!(answers(&ledger, mapped, now), 0, "the same /24 in other words");
        }
        assert_eq!(answers(&ledger, "198.51.100.1".parse().unwrap(), start), 10, "another /24");
        let six = |last: u128| IpAddr::V6(Ipv6Addr::from_bits(0x2001_0db8_0000_0100 << 64 | last));
        assert_eq!(answers(&ledger, six(1), start), 10);
        assert_eq!(answers(&ledger, six(0xff << 64 | 5), start), 0, "the same /56");
        assert_eq!(answers(&ledger, six(0x200 << 64), start), 10, "the next /56");
    }

    #[test]
    fn bytes_that_came_pay_for_ten_seconds_and_no_longer() {
        let ledger = ledger(&Limits { unpaid_replies_per_s: 0, ..Limits::default() });
        let start = origin();
        ledger.credit(SOURCE, 1000, start);
        let after = |ms| start + Duration::from_millis(ms);
        assert!(ledger.pays(SOURCE, 0, 600, after(1)));
        assert!(!ledger.pays(SOURCE, 0, 401, after(2)));
        assert!(ledger.pays(SOURCE, 0, 200, after(9_999)));
        assert!(!ledger.pays(SOURCE, 0, 200, after(10_001)), "too late");
        assert!(ledger.pays(SOURCE, 64, 64, after(30_000)), "a request pays for an answer of its length");
        assert!(!ledger.pays(SOURCE, 63, 64, after(30_000)));
    }

    #[test]
    fn strict_means_never_longer_than_the_request() {
        let ledger = ledger(&Limits { strict_reflection: true, ..Limits::default() });
        let start = origin();
        ledger.credit(SOURCE, 100_000, start);
        assert!(!ledger.pays(SOURCE, 20, 32, start));
        assert!(!ledger.pays(SOURCE, 63, 64, start));
        assert!(ledger.pays(SOURCE, 64, 64, start));
    }

    #[test]
    fn what_nothing_pays_for_is_capped_in_all() {
        let ledger = ledger(&Limits { unpaid_replies_per_s: u32::MAX, ..Limits::default() });
        let start = origin();
        let source = |n: u32| IpAddr::V4(Ipv4Addr::from_bits(n << 8));
        let answered = (0..100_000).filter(|&n| ledger.pays(source(n), 0, 64, start)).count();
        assert_eq!(answered, UNPAID_TOTAL_MAX as usize);
        assert!(ledger.pays(source(1), 64, 64, start), "who pays is answered all the same");
        assert!(ledger.pays(source(1), 0, 64, start + Duration::from_secs(1)));
    }

    proptest! {
        /// The promise, word for word, kept by a list of everything that happened.
        #[test]
        fn never_more_bytes_than_came_in_the_last_ten_seconds(
            events in proptest::collection::vec((0_u64..3_000, 0_usize..200, 1_usize..200, any::<bool>()), 1..200)
        ) {
            let ledger = ledger(&Limits { unpaid_replies_per_s: 0, ..Limits::default() });
            let mut now = origin();
            let (mut came, mut went) = (VecDeque::new(), VecDeque::new());
            for (pause_ms, request, reply, authentic) in events {
                now += Duration::from_millis(pause_ms);
                came.push_back((now, request));
                if authentic {
                    ledger.credit(SOURCE, request, now);
                    continue;
                }
                if ledger.pays(SOURCE, request, reply, now) {
                    went.push_back((now, reply));
                    let sum = |list: &VecDeque<(Instant, usize)>| -> usize {
                        list.iter().filter(|&&(at, _)| now - at < Duration::from_secs(10)).map(|&(_, len)| len).sum()
                    };
                    prop_assert!(sum(&went) <= sum(&came), "{went:?} {came:?}");
                }
            }
        }
    }
}
