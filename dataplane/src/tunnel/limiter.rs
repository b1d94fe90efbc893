//! Who may have a handshake message looked at: Diffie-Hellman is the one expensive thing a stranger can ask for.
//!
//! A message with a right mac1 is taken at once while handshakes take no more than a share of the time and its source address is
//! below its rate. Above either, the source must first prove that it receives what is sent to it, by the cookie in mac2
//! (WireGuard paper, section 5.3); a source that has proved it is still held to its own rate. A flood from forged
//! addresses thus costs cookies, and a flood from a real one costs only its own handshakes.
//!
//! The share is of processor time that was measured, not of a number of messages: what a stranger's message costs is a quarter of
//! what a peer's does, and either takes ten times as long on a small machine.

use std::hash::{BuildHasher, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use foldhash::fast::FixedState;

use super::bucket::{Bucket, Rate};
use super::noise::{CookieCheck, Identity};
use crate::drops::Cause;
use crate::wire::wireguard::COOKIE_REPLY;

/// Handshake messages a second for one source address (an IPv6 /64 counts as one), and how many may come at once.
const SOURCE_RATE: Rate = Rate { per_second: 20, burst: 5 };
/// Without cookies, handshakes take one part in so many of a processor's time: packets keep the rest.
const SHARE: u32 = 10;
/// How much of that may be saved up, and spent at once: packets wait so long for the handshakes before them.
const SAVED_MAX: Duration = Duration::from_millis(20);
/// How long a cookie is good for at most: all are of a period (WireGuard paper, section 5.4.7).
const COOKIE_PERIOD: Duration = Duration::from_secs(120);
/// Sources are spread over this many buckets by a keyed hash; two that share one share its rate.
const BUCKETS: usize = 4_096;

/// What is to be done with a handshake message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Go on with it.
    Accept,
    /// Forget it and send the cookie reply that was written.
    Reply,
    /// Forget it.
    Drop(Cause),
}

/// Time for the endpoint and token buckets for each source address, in fixed memory.
pub struct Limiter {
    budget: Budget,
    /// Sources whose address may be forged.
    claimed: Box<[Bucket]>,
    /// Sources that have sent a right cookie.
    proved: Box<[Bucket]>,
    hasher: FixedState,
    started: Instant,
}

impl Limiter {
    /// `seed` keeps strangers from choosing addresses that share a bucket.
    #[must_use]
    pub fn new(seed: u64, now: Instant) -> Self {
        let sources: Box<[Bucket]> = vec![Bucket::full(&SOURCE_RATE, now); BUCKETS].into();
        Self {
            budget: Budget { left: nanos(SAVED_MAX), filled: now },
            claimed: sources.clone(),
            proved: sources,
            hasher: FixedState::with_seed(seed),
            started: now,
        }
    }

    /// Judges a handshake initiation or response; a cookie reply may be written to `reply`.
    pub fn check(
        &mut self,
        identity: &Identity,
        datagram: &[u8],
        source: SocketAddr,
        reply: &mut [u8; COOKIE_REPLY],
        now: Instant,
    ) -> Verdict {
        if !identity.check_mac1(datagram) {
            return Verdict::Drop(Cause::BadTag);
        }
        let bucket = self.bucket_of(source.ip());
        let source_below = self.claimed[bucket].take(&SOURCE_RATE, now);
        if source_below && self.budget.has_some(now) {
            return Verdict::Accept;
        }
        let period = now.saturating_duration_since(self.started).as_secs() / COOKIE_PERIOD.as_secs();
        match identity.check_mac2(datagram, source, period, reply) {
            CookieCheck::Reply => Verdict::Reply,
            CookieCheck::Proved if self.proved[bucket].take(&SOURCE_RATE, now) => Verdict::Accept,
            CookieCheck::Proved => Verdict::Drop(Cause::RateLimited),
        }
    }

    /// Says how much processor time a message took that was accepted.
    pub fn spend(&mut self, work: Duration) {
        self.budget.spend(work);
    }

    /// What is left of the endpoint's time, nanoseconds, for tests that nothing may have been taken.
    #[cfg(test)]
    pub fn left(&self) -> i64 {
        self.budget.left
    }

    fn bucket_of(&self, source: IpAddr) -> usize {
        let mut hasher = self.hasher.build_hasher();
        match source {
            IpAddr::V4(address) => hasher.write_u32(address.to_bits()),
            IpAddr::V6(address) => hasher.write_u64((address.to_bits() >> 64) as u64),
        }
        hasher.finish() as usize % BUCKETS
    }
}

/// Time that may be spent, in nanoseconds.
struct Budget {
    left: i64,
    filled: Instant,
}

impl Budget {
    /// Whether anything is left. What one message costs is known afterwards, so that the last may cost more than that.
    fn has_some(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.filled).min(SAVED_MAX * 2 * SHARE);
        self.filled = self.filled.max(now);
        self.left = nanos(SAVED_MAX).min(self.left + nanos(passed / SHARE));
        self.left > 0
    }

    /// Debts are bounded: those who have proved their addresses may be many, and others are not shut out for long after them.
    fn spend(&mut self, work: Duration) {
        self.left = (-nanos(SAVED_MAX)).max(self.left - nanos(work.min(SAVED_MAX * 2)));
    }
}

/// Of a time of some seconds at most.
fn nanos(time: Duration) -> i64 {
    time.as_nanos() as i64
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test needs some instant to count from")]
mod tests {
    use super::*;
    use crate::tunnel::Path;
    use crate::tunnel::key::SecretKey;
    use crate::tunnel::noise::{self, CONTROL_LEN, Noise, Outset, World};

    struct Bench {
        server: Identity,
        limiter: Limiter,
        identity: Identity,
        client: Noise,
        world: World,
        start: Instant,
        /// What a message costs that is accepted.
        cost: Duration,
    }

    fn bench() -> Bench {
        let start = Instant::now();
        let server_key = SecretKey::new([1; 32]);
        let server = Identity::new(&server_key, &[9; 32]);
        let identity = Identity::new(&SecretKey::new([2; 32]), &[8; 32]);
        let client = Noise::new(noise::public_key(&server_key), None);
        let (limiter, world) = (Limiter::new(3, start), World::system());
        let cost = Duration::from_micros(100);
        Bench { server, limiter, identity, client, world, start, cost }
    }

    impl Bench {
        fn initiation(&mut self) -> [u8; CONTROL_LEN] {
            let mut message = [0; CONTROL_LEN];
            let Self { identity, client, world, start, .. } = self;
            let path = Path::Direct { to: SocketAddr::from(([192, 0, 2, 1], 1)), from: None };
            let outset = Outset { index: world.index(), path };
            assert_eq!(client.initiate(identity, world, outset, &mut message, *start), Some(CONTROL_LEN));
            message
        }

        fn check(&mut self, message: &[u8], source: &str, now: Instant) -> (Verdict, [u8; COOKIE_REPLY]) {
            let mut reply = [0; COOKIE_REPLY];
            let source = source.parse().expect("address");
            let verdict = self.limiter.check(&self.server, message, source, &mut reply, now);
            if verdict == Verdict::Accept {
                self.limiter.spend(self.cost);
            }
            (verdict, reply)
        }
    }

    #[test]
    fn a_wrong_mac1_is_dropped_without_a_reply() {
        let mut bench = bench();
        for byte in [0, 20, 100, 120, 131] {
            let mut message = bench.initiation();
            message[byte] ^= 1;
            let (verdict, _) = bench.check(&message, "192.0.2.1:1", bench.start);
            assert_eq!(verdict, Verdict::Drop(Cause::BadTag), "byte {byte}");
        }
    }

    #[test]
    fn a_source_above_its_rate_must_show_a_cookie_and_others_need_not() {
        let mut bench = bench();
        let start = bench.start;
        let message = bench.initiation();
        for _ in 0..5 {
            assert_eq!(bench.check(&message, "192.0.2.1:1", start).0, Verdict::Accept);
        }
        let (verdict, reply) = bench.check(&message, "192.0.2.1:1", start);
        assert_eq!(verdict, Verdict::Reply);
        assert_eq!(bench.check(&message, "192.0.2.2:1", start).0, Verdict::Accept, "another source");

        bench.client.handle_cookie_reply(&reply, start).expect("a cookie for us");
        let with_cookie = bench.initiation();
        assert_eq!(bench.check(&with_cookie, "192.0.2.1:1", start).0, Verdict::Accept);
        // The cookie is bound to address and port.
        assert_eq!(bench.check(&with_cookie, "192.0.2.1:2", start).0, Verdict::Reply);
    }

    #[test]
    fn a_cookie_dies_with_its_two_minutes() {
        let mut bench = bench();
        let start = bench.start;
        let message = bench.initiation();
        let mut reply = [0; COOKIE_REPLY];
        for _ in 0..6 {
            reply = bench.check(&message, "192.0.2.1:1", start).1;
        }
        bench.client.handle_cookie_reply(&reply, start).expect("a cookie for us");
        let with_cookie = bench.initiation();
        let judged = |bench: &mut Bench, now| {
            // What the source may send without a cookie is used up first.
            for _ in 0..5 {
                bench.check(&message, "192.0.2.1:1", now);
            }
            bench.check(&with_cookie, "192.0.2.1:1", now).0
        };
        assert_eq!(judged(&mut bench, start + COOKIE_PERIOD - Duration::from_millis(1)), Verdict::Accept);
        assert_eq!(judged(&mut bench, start + COOKIE_PERIOD), Verdict::Reply);
        assert_eq!(judged(&mut bench, start + 100 * COOKIE_PERIOD), Verdict::Reply);
        // A clock that went back is the first period again, and nothing else.
        assert_eq!(judged(&mut bench, start), Verdict::Accept);
    }

    #[test]
    fn a_proved_source_gets_20_a_second_after_a_burst_of_5() {
        let mut bench = bench();
        let start = bench.start;
        let first = bench.initiation();
        let mut reply = [0; COOKIE_REPLY];
        for _ in 0..6 {
            reply = bench.check(&first, "[2001:db8::1]:1", start).1;
        }
        bench.client.handle_cookie_reply(&reply, start).expect("a cookie for us");
        let message = bench.initiation();
        let mut accepted = 0;
        for millisecond in 0..10_000 {
            let now = start + Duration::from_millis(millisecond);
            match bench.check(&message, "[2001:db8::1]:1", now).0 {
                Verdict::Accept => accepted += 1,
                Verdict::Drop(cause) => assert_eq!(cause, Cause::RateLimited),
                Verdict::Reply => panic!("the cookie is right"),
            }
        }
        // Two buckets of 20/s: the one for claims lets 20/s through without a look at the cookie.
        assert!((395..=410).contains(&accepted), "{accepted}");
    }

    /// How many messages of a flood from as many addresses are accepted, `per_second` of them for so long.
    fn accepted(bench: &mut Bench, per_second: u32, seconds: u32) -> u32 {
        let message = bench.initiation();
        let mut accepted = 0;
        for host in 0..per_second * seconds {
            let source = format!("10.{}.{}.{}:5", host >> 16, host >> 8 & 255, host & 255);
            let now = bench.start + Duration::from_secs(1) * host / per_second;
            match bench.check(&message, &source, now).0 {
                Verdict::Accept => accepted += 1,
                verdict => assert_eq!(verdict, Verdict::Reply),
            }
        }
        accepted
    }

    #[test]
    fn a_flood_from_forged_addresses_gets_a_tenth_of_the_time_and_cookies_beyond() {
        // 100 us each: 1,000 in a second, and 200 that were saved up.
        assert!((1_190..=1_201).contains(&accepted(&mut bench(), 10_000, 1)));
        for (micros, expected) in [(25, 4_800), (1_000, 120)] {
            let cost = Duration::from_micros(micros);
            let taken = accepted(&mut Bench { cost, ..bench() }, 10_000, 1);
            assert!((expected * 98 / 100..=expected + 1).contains(&taken), "{taken} of {micros} us each");
        }
    }

    #[test]
    fn what_the_endpoint_can_do_is_done_without_cookies() {
        for per_second in [90, 150, 300, 990] {
            let mut bench = bench();
            // So many addresses that few share a bucket of theirs.
            assert_eq!(accepted(&mut bench, per_second, 2), per_second * 2, "{per_second}/s");
        }
    }

    #[test]
    fn a_debt_is_paid_within_a_fifth_of_a_second() {
        let mut bench = bench();
        let message = bench.initiation();
        // As many as have proved their addresses, and one message that took very long.
        for work in [Duration::from_micros(100); 5_000].into_iter().chain([Duration::MAX]) {
            bench.limiter.spend(work);
        }
        let owed = SAVED_MAX * SHARE;
        assert_eq!(bench.check(&message, "192.0.2.1:1", bench.start + owed).0, Verdict::Reply);
        let paid = bench.start + owed + Duration::from_micros(1);
        assert_eq!(bench.check(&message, "192.0.2.2:1", paid).0, Verdict::Accept);
        // After any rest no more is saved than ever.
        let later = paid + Duration::from_secs(1 << 40);
        assert_eq!(bench.check(&message, "192.0.2.2:1", later).0, Verdict::Accept);
        assert!(bench.limiter.left() < nanos(SAVED_MAX));
    }
}
