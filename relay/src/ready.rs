//! What wakes the loop besides datagrams, and the number by which each is told apart. They are here together so that no two
//! are the same: the compiler refuses a number that is given twice.

use dataplane::driver::OWN_TOKENS;
use dataplane::ingress::Token;

/// A source of which only readiness is reported. The numbers go down from the end of their range, of which the driver has the
/// last ones for itself: ports of sockets count up from zero and never get that far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum ReadySource {
    /// The admin thread wants figures.
    Figures = OWN_TOKENS - 1,
    /// Addresses of this machine have come or gone.
    OwnAddresses = OWN_TOKENS - 2,
    /// Another worker has left something for this one.
    Crew = OWN_TOKENS - 3,
}

impl ReadySource {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Figures, Self::OwnAddresses, Self::Crew];

    /// Its number at the ingress.
    #[must_use]
    pub const fn token(self) -> Token {
        Token(self as u32)
    }

    /// The source that has this number.
    #[must_use]
    pub fn of(token: Token) -> Option<Self> {
        Self::ALL.into_iter().find(|source| source.token() == token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_source_is_known_by_its_number_and_no_port_is_taken_for_one() {
        for source in ReadySource::ALL {
            assert_eq!(ReadySource::of(source.token()), Some(source));
        }
        // The driver's own, and the highest that a port could ever have.
        for other in [u32::MAX, OWN_TOKENS, 0, 1 << 31] {
            assert_eq!(ReadySource::of(Token(other)), None);
        }
    }
}
