//! Which traffic class (DSCP and ECN) the datagrams of a tunnel carry outside.

use std::fmt;
use std::str::FromStr;

use crate::wire::traffic_class;
use crate::wire::wireguard::{self, Message};

/// The DSCP that no packet exceeds.
const DSCP_MAX: u8 = 63;
/// The traffic class of initiations and responses: DSCP AF41 (RFC 2597), as the kernel's WireGuard sends them, so that a full
/// link does not cost a tunnel its keys.
pub const HANDSHAKE: u8 = 0x88;

/// The DSCP of data outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dscp {
    /// This one for all packets, so that it tells nothing about them.
    Fixed(u8),
    /// That of the packet inside.
    Copy,
}

impl Default for Dscp {
    fn default() -> Self {
        Self::Fixed(0)
    }
}

impl FromStr for Dscp {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.eq_ignore_ascii_case("copy") {
            return Ok(Self::Copy);
        }
        let number = text.parse().ok().filter(|number| *number <= DSCP_MAX);
        number.map(Self::Fixed).ok_or_else(|| format!("write copy, or a number from 0 to {DSCP_MAX}"))
    }
}

impl fmt::Display for Dscp {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(number) => write!(formatter, "{number}"),
            Self::Copy => formatter.write_str("copy"),
        }
    }
}

/// What datagrams say outside of what packets say inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marking {
    /// ECN is copied outside: the normal mode of RFC 6040. Otherwise queues on the way may not mark, and drop instead (its
    /// compatibility mode). Marks that arrive are taken over in any case.
    pub ecn: bool,
    /// DSCP outside.
    pub dscp: Dscp,
}

impl Default for Marking {
    fn default() -> Self {
        Self { ecn: true, dscp: Dscp::default() }
    }
}

impl Marking {
    /// The traffic class of the datagram that carries this packet. A relay need not hand marks on (RFC 8656 section 14), so
    /// that over one it is as with ECN off.
    #[must_use]
    pub fn outside(self, packet: &[u8], relayed: bool) -> u8 {
        let inside = traffic_class::of(packet);
        let dscp = match self.dscp {
            Dscp::Fixed(dscp) => dscp << 2,
            Dscp::Copy => inside & !traffic_class::CE,
        };
        dscp | if self.ecn && !relayed { inside & traffic_class::CE } else { traffic_class::NOT_ECT }
    }
}

/// The traffic class of a control message.
#[must_use]
pub fn of_control(message: &[u8]) -> u8 {
    match wireguard::parse(message) {
        Some(Message::Initiation { .. } | Message::Response { .. }) => HANDSHAKE,
        Some(Message::CookieReply { .. } | Message::Data { .. }) | None => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::traffic_class::{CE, ECT_0};

    fn packet(class: u8) -> [u8; 20] {
        let mut packet = [0; 20];
        (packet[0], packet[1]) = (0x45, class);
        packet
    }

    #[test]
    fn ecn_goes_outside_and_dscp_stays_inside_unless_asked_for() {
        let inside = 46 << 2 | ECT_0;
        assert_eq!(Marking::default().outside(&packet(inside), false), ECT_0);
        assert_eq!(Marking { ecn: false, ..Marking::default() }.outside(&packet(inside), false), 0);
        let copying = Marking { dscp: Dscp::Copy, ..Marking::default() };
        assert_eq!(copying.outside(&packet(inside), false), inside);
        let fixed = Marking { dscp: Dscp::Fixed(8), ..Marking::default() };
        assert_eq!(fixed.outside(&packet(46 << 2 | CE), false), 8 << 2 | CE);
        assert_eq!(fixed.outside(&packet(46 << 2 | CE), true), 8 << 2, "a relay may lose marks");
    }

    #[test]
    fn a_dscp_is_a_number_of_six_bits_or_copied() {
        assert_eq!("copy".parse(), Ok(Dscp::Copy));
        assert_eq!("63".parse(), Ok(Dscp::Fixed(63)));
        for bad in ["64", "-1", "", "af41"] {
            assert!(bad.parse::<Dscp>().is_err(), "{bad}");
        }
        for dscp in [Dscp::Copy, Dscp::Fixed(10)] {
            assert_eq!(dscp.to_string().parse(), Ok(dscp));
        }
    }

    #[test]
    fn handshakes_alone_are_marked_as_the_kernel_marks_them() {
        for (kind, len, class) in [(1, 148, 0x88), (2, 92, 0x88), (3, 64, 0), (4, 32, 0)] {
            let mut message = vec![0; len];
            message[0] = kind;
            assert_eq!(of_control(&message), class, "type {kind}");
        }
    }
}
