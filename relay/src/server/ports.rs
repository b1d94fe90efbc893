//! Which relayed ports are taken, and which are kept back for the holder of a reservation token.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::hash::BuildHasher as _;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use foldhash::fast::RandomState;
use subtle::ConstantTimeEq;

use super::quotas::Source;
use super::random::Random;
use super::shared_account::UserName;

/// How long the second port of an EVEN-PORT request is kept (RFC 8656 section 7.2 asks for 30 s at least).
pub const RESERVATION_TIME: Duration = Duration::from_secs(30);
/// Most reservations kept at a time; beyond it EVEN-PORT with reservation is answered 508.
pub const RESERVATIONS_MAX: usize = 1024;
/// Most of them that one user has, or one source: nobody keeps all others from EVEN-PORT.
pub const RESERVATIONS_SHARE_MAX: usize = RESERVATIONS_MAX / 8;

/// A RESERVATION-TOKEN.
pub type Token = [u8; 8];

/// Which port is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// Any port.
    Any,
    /// The one that the client had before where nobody else has had it since, else any.
    Former(u16),
    /// An even port (EVEN-PORT, R = 0).
    Even,
    /// An even port whose successor is free as well (EVEN-PORT, R = 1).
    EvenAndNext,
}

/// Which ports a taker may have. An even port and its successor are always in the same lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lane {
    /// Its number, below `of`.
    pub number: u16,
    /// How many there are; with one, every port is in it.
    pub of: u16,
}

impl Lane {
    /// All ports.
    pub const ALL: Self = Self { number: 0, of: 1 };

    fn has(self, port: u16) -> bool {
        port / 2 % self.of == self.number
    }
}

/// For whom a port is kept: it counts as theirs, whoever shows the token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Keeper {
    pub user: UserName,
    pub source: Source,
}

#[derive(Debug)]
struct Reservation {
    token: Token,
    /// Nobody for a port that was only set aside.
    keeper: Option<Keeper>,
    address: IpAddr,
    port: u16,
    expires: Instant,
}

/// One bit for each port.
type Bits = Box<[u64; 1024]>;

/// By address and port.
#[derive(Default)]
struct Holders(HashMap<(IpAddr, u16), u64, RandomState>);

impl fmt::Debug for Holders {
    /// Nothing: what is remembered of ports is no part of what is held for anybody.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Holders")
    }
}

/// The ports of every relay address.
#[derive(Debug)]
pub struct Ports {
    range: RangeInclusive<u16>,
    taken: HashMap<IpAddr, Bits, RandomState>,
    /// Who had a port last, by a hash: a port that others know as somebody's is given to nobody else for the asking.
    holders: Holders,
    /// All live equally long, so the oldest expires first.
    reservations: VecDeque<Reservation>,
}

impl Ports {
    /// All ports of `range` are free.
    #[must_use]
    pub fn new(range: RangeInclusive<u16>) -> Self {
        Self { range, taken: HashMap::default(), holders: Holders::default(), reservations: VecDeque::new() }
    }

    /// Takes a free port of a lane, starting the search at a random one. `None` when there is none.
    pub fn take(&mut self, address: IpAddr, want: Want, lane: Lane, random: &mut Random) -> Option<u16> {
        let bits = self.taken.entry(address).or_insert_with(|| Box::new([0; 1024]));
        let low = *self.range.start();
        let count = u32::from(*self.range.end()).checked_sub(u32::from(low))? + 1;
        let start = random.below(count);
        for offset in 0..count {
            let port = low + ((start + offset) % count) as u16;
            let suits = match want {
                Want::Any | Want::Former(_) => true,
                Want::Even => port.is_multiple_of(2),
                Want::EvenAndNext => {
                    port.is_multiple_of(2) && self.range.contains(&(port + 1)) && !is_set(bits, port + 1)
                }
            };
            if suits && lane.has(port) && !is_set(bits, port) {
                set(bits, port, true);
                return Some(port);
            }
        }
        None
    }

    /// Takes this very port of a lane for a user, where it is free and nobody else had it last.
    pub(super) fn take_again(&mut self, address: IpAddr, port: u16, lane: Lane, user: &UserName) -> bool {
        let holder = self.holders.0.hasher().hash_one(user);
        let bits = self.taken.entry(address).or_insert_with(|| Box::new([0; 1024]));
        let is_theirs = self.holders.0.get(&(address, port)).is_none_or(|last| *last == holder);
        let taken = is_theirs && self.range.contains(&port) && lane.has(port) && !is_set(bits, port);
        if taken {
            set(bits, port, true);
        }
        taken
    }

    /// A user has a port from now on.
    pub(super) fn note_holder(&mut self, address: IpAddr, port: u16, user: &UserName) {
        let holder = self.holders.0.hasher().hash_one(user);
        self.holders.0.insert((address, port), holder);
    }

    /// Gives a port back.
    pub fn release(&mut self, address: IpAddr, port: u16) {
        if let Some(bits) = self.taken.get_mut(&address) {
            debug_assert!(is_set(bits, port), "port {port} was not taken");
            set(bits, port, false);
        }
    }

    /// Ports kept for a user, and for a source.
    pub(super) fn kept_for(&self, keeper: &Keeper) -> (usize, usize) {
        let kept = || self.reservations.iter().filter_map(|reservation| reservation.keeper.as_ref());
        let of_user = kept().filter(|kept| kept.user == keeper.user).count();
        (of_user, kept().filter(|kept| kept.source == keeper.source).count())
    }

    /// Whether more ports can be kept.
    #[must_use]
    pub fn has_room_for_reservations(&self) -> bool {
        self.reservations.len() < RESERVATIONS_MAX
    }

    /// Keeps a port for whoever shows the token that is returned. `None` when it is taken or there are too many.
    pub(super) fn reserve(
        &mut self,
        address: IpAddr,
        port: u16,
        keeper: Keeper,
        random: &mut Random,
        now: Instant,
    ) -> Option<Token> {
        self.expire_reservations(now);
        if !self.has_room_for_reservations() {
            return None;
        }
        let bits = self.taken.get_mut(&address)?;
        if is_set(bits, port) {
            return None;
        }
        set(bits, port, true);
        let (token, expires) = (random.bytes(), now + RESERVATION_TIME);
        self.reservations.push_back(Reservation { token, keeper: Some(keeper), address, port, expires });
        Some(token)
    }

    /// Keeps a port that was taken, and that somebody outside this program has, from being tried again soon.
    pub fn set_aside(&mut self, address: IpAddr, port: u16, random: &mut Random, now: Instant) {
        self.expire_reservations(now);
        if !self.has_room_for_reservations() {
            return self.release(address, port);
        }
        // A reservation whose token nobody is told.
        let (token, expires) = (random.bytes(), now + RESERVATION_TIME);
        self.reservations.push_back(Reservation { token, keeper: None, address, port, expires });
    }

    /// Turns a token into the port it stands for, once; the port stays taken.
    pub fn redeem(&mut self, token: &Token, now: Instant) -> Option<(IpAddr, u16)> {
        self.expire_reservations(now);
        let index = self.reservations.iter().position(|reservation| reservation.token.ct_eq(token).into())?;
        let reservation = self.reservations.remove(index)?;
        Some((reservation.address, reservation.port))
    }

    /// Frees what was reserved too long ago. Only takers care, so there is no timer for it.
    pub fn expire_reservations(&mut self, now: Instant) {
        while let Some(reservation) = self.reservations.pop_front_if(|oldest| oldest.expires <= now) {
            self.release(reservation.address, reservation.port);
        }
    }
}

fn is_set(bits: &Bits, port: u16) -> bool {
    bits[usize::from(port) / 64] & 1 << (port % 64) != 0
}

fn set(bits: &mut Bits, port: u16, value: bool) {
    let mask = 1 << (port % 64);
    let word = &mut bits[usize::from(port) / 64];
    *word = if value { *word | mask } else { *word & !mask };
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::auth::Identity;
    use super::*;

    const ADDRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    #[expect(clippy::disallowed_methods, reason = "an arbitrary origin for virtual time")]
    fn origin() -> Instant {
        Instant::now()
    }

    fn keeper() -> Keeper {
        Keeper { user: Identity::Static(b"alice").into(), source: ADDRESS.into() }
    }

    #[test]
    fn every_port_is_handed_out_once_and_comes_back() {
        let mut random = Random::from_seed(&[3; 32]);
        let mut ports = Ports::new(65_526..=65_535);
        for _ in 0..3 {
            let taken: BTreeSet<u16> =
                (0..10).map(|_| ports.take(ADDRESS, Want::Any, Lane::ALL, &mut random).unwrap()).collect();
            assert_eq!(taken, (65_526..=65_535).collect());
            assert_eq!(ports.take(ADDRESS, Want::Any, Lane::ALL, &mut random), None);
            for port in taken {
                ports.release(ADDRESS, port);
            }
        }
        // Each address has its own ports.
        assert!(ports.take("127.0.0.2".parse().unwrap(), Want::Any, Lane::ALL, &mut random).is_some());
    }

    #[test]
    fn a_port_of_before_is_given_to_who_had_it_or_where_nobody_is_known_to_have() {
        let mut random = Random::from_seed(&[3; 32]);
        let [alice, bob] = [&b"alice"[..], b"bob"].map(|name| UserName::from(Identity::Static(name)));
        let mut ports = Ports::new(1001..=1012);
        assert!(ports.take_again(ADDRESS, 1005, Lane::ALL, &alice), "as after a restart");
        ports.note_holder(ADDRESS, 1005, &alice);
        assert!(!ports.take_again(ADDRESS, 1005, Lane::ALL, &alice), "it is taken");
        ports.release(ADDRESS, 1005);
        assert!(!ports.take_again(ADDRESS, 1005, Lane::ALL, &bob), "alice's peers send there");
        assert!(ports.take_again(ADDRESS, 1005, Lane::ALL, &alice));
        assert!(!ports.take_again(ADDRESS, 1000, Lane::ALL, &alice), "out of range");
        let other = Lane { number: 1, of: 2 };
        assert!(!ports.take_again(ADDRESS, 1008, other, &alice), "another worker's");
        assert!(ports.take_again(ADDRESS, 1010, other, &alice));
        // What is asked for is no more than a wish.
        assert!(ports.take(ADDRESS, Want::Former(1005), Lane::ALL, &mut random).is_some());
    }

    #[test]
    fn each_port_is_in_one_lane() {
        let mut random = Random::from_seed(&[3; 32]);
        let mut ports = Ports::new(1001..=1012);
        let mut all = BTreeSet::new();
        for number in 0..3 {
            let lane = Lane { number, of: 3 };
            let pair = ports.take(ADDRESS, Want::EvenAndNext, lane, &mut random).unwrap();
            assert!(lane.has(pair + 1));
            all.insert(pair);
            while let Some(port) = ports.take(ADDRESS, Want::Any, lane, &mut random) {
                assert!(lane.has(port) && all.insert(port));
            }
        }
        assert_eq!(all, (1001..=1012).collect());
    }

    #[test]
    fn even_ports_leave_odd_ones_to_others() {
        let mut random = Random::from_seed(&[3; 32]);
        let mut ports = Ports::new(1001..=1004);
        let mut even = [(); 2].map(|()| ports.take(ADDRESS, Want::Even, Lane::ALL, &mut random).unwrap());
        even.sort_unstable();
        assert_eq!(even, [1002, 1004]);
        assert_eq!(ports.take(ADDRESS, Want::Even, Lane::ALL, &mut random), None);
        assert_eq!(ports.take(ADDRESS, Want::EvenAndNext, Lane::ALL, &mut random), None);
        ports.release(ADDRESS, 1004);
        // 1005 is outside the range.
        assert_eq!(ports.take(ADDRESS, Want::EvenAndNext, Lane::ALL, &mut random), None);
    }

    #[test]
    fn a_token_is_good_once_and_for_30_seconds() {
        let now = origin();
        let mut random = Random::from_seed(&[3; 32]);
        let mut ports = Ports::new(1002..=1003);
        assert_eq!(ports.take(ADDRESS, Want::EvenAndNext, Lane::ALL, &mut random), Some(1002));
        let token = ports.reserve(ADDRESS, 1003, keeper(), &mut random, now).unwrap();
        assert_eq!(ports.kept_for(&keeper()), (1, 1));
        assert_eq!(ports.take(ADDRESS, Want::Any, Lane::ALL, &mut random), None);
        let almost = now + RESERVATION_TIME - Duration::from_millis(1);
        assert_eq!(ports.redeem(&[0; 8], almost), None);
        assert_eq!(ports.redeem(&token, almost), Some((ADDRESS, 1003)));
        assert_eq!(ports.redeem(&token, almost), None);
        assert_eq!(ports.kept_for(&keeper()), (0, 0));
        ports.release(ADDRESS, 1003);

        let token = ports.reserve(ADDRESS, 1003, keeper(), &mut random, now).unwrap();
        assert_eq!(ports.redeem(&token, now + RESERVATION_TIME), None);
        assert_eq!(ports.take(ADDRESS, Want::Any, Lane::ALL, &mut random), Some(1003));
    }
}
