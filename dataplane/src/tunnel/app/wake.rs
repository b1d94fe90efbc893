//! What wakes the loop besides packets, and the number by which each is told apart.

use crate::driver::OWN_TOKENS;
use crate::ingress::Token;

/// A source of which only readiness is reported. The numbers go down from the end of their range, of which the driver has the
/// last ones for itself: ports of sockets count up from zero and never get that far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Wake {
    /// What `wg` has asked for.
    Control = OWN_TOKENS - 1,
    /// What the interface tells of itself.
    Link = OWN_TOKENS - 2,
    /// The admin thread wants figures.
    Figures = OWN_TOKENS - 3,
    /// The connection to the relay.
    Stream = OWN_TOKENS - 4,
    /// Names that were looked up.
    Names = OWN_TOKENS - 5,
    /// Routes have changed.
    Routes = OWN_TOKENS - 6,
    /// Addresses of this machine have come or gone.
    Addresses = OWN_TOKENS - 7,
    /// A while has passed, sleep included.
    Alarm = OWN_TOKENS - 8,
}

impl Wake {
    /// All of them.
    const ALL: [Self; 8] = [
        Self::Control,
        Self::Link,
        Self::Figures,
        Self::Stream,
        Self::Names,
        Self::Routes,
        Self::Addresses,
        Self::Alarm,
    ];

    /// Its number at the ingress.
    pub const fn token(self) -> Token {
        Token(self as u32)
    }

    /// The source that has this number.
    pub fn of(token: Token) -> Option<Self> {
        Self::ALL.into_iter().find(|source| source.token() == token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_source_is_known_by_its_number_and_no_port_is_taken_for_one() {
        for source in Wake::ALL {
            assert_eq!(Wake::of(source.token()), Some(source));
        }
        for other in [u32::MAX, OWN_TOKENS, OWN_TOKENS - 9, 0] {
            assert_eq!(Wake::of(Token(other)), None);
        }
    }
}
