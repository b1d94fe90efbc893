//! How long the datagrams of the load are: all the same, or drawn by weight.

use std::net::SocketAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::kind::Kind;
use super::payload;

/// Ethernet header and frame check sequence, bytes: what the sizes of an IMIX count in.
const ETHERNET: usize = 18;
/// Simple IMIX: frames of Ethernet and how often each comes (RFC 6985 section 1 calls for the mix to be stated).
const IMIX: [(usize, u32); 3] = [(64, 7), (594, 4), (1_518, 1)];
/// Most sizes in a list.
const SIZES_MAX: usize = 64;
/// Largest weight.
const WEIGHT_MAX: u32 = 1_000_000;

/// One size of a mix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// UDP payload in bytes.
    pub size: usize,
    /// How often it comes, beside the others.
    pub weight: u32,
}

/// Sizes as given on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sizes {
    /// All the same, in bytes.
    One(usize),
    /// Drawn by weight.
    Mix(Vec<Share>),
    /// The simple IMIX, which depends on the kind of load.
    Imix,
}

impl FromStr for Sizes {
    type Err = String;

    /// Reads `200`, `imix`, `64,594,1518` and `64:7,594:4,1518:1`.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "{text:?} is no size; write it like 200, 64,594,1472 or 64:7,594:4,1472:1 (with weights), or imix"
            )
        };
        if text == "imix" {
            return Ok(Self::Imix);
        }
        if let Ok(size) = text.parse() {
            return Ok(Self::One(size));
        }
        let share = |part: &str| {
            let (size, weight) = part.split_once(':').unwrap_or((part, "1"));
            let share = Share { size: size.parse().ok()?, weight: weight.parse().ok()? };
            (1..=WEIGHT_MAX).contains(&share.weight).then_some(share)
        };
        let shares: Option<Vec<Share>> = text.split(',').map(share).collect();
        shares.filter(|shares| shares.len() <= SIZES_MAX).map(Self::Mix).ok_or_else(wrong)
    }
}

impl Sizes {
    /// The largest size, and the mix when there is one.
    #[must_use]
    pub fn resolve(self, kind: Kind, target: SocketAddr) -> (usize, Vec<Share>) {
        let mix = match self {
            Self::One(size) => return (size, Vec::new()),
            Self::Mix(mix) => mix,
            Self::Imix => imix(kind, target),
        };
        (mix.iter().map(|share| share.size).max().unwrap_or(0), mix)
    }
}

/// Payloads that fill the frames of the simple IMIX as far as the way of this kind lets them: the largest frame carries a
/// packet of 1,500 bytes, inside a tunnel of 1,420, and no payload is shorter than its header.
fn imix(kind: Kind, target: SocketAddr) -> Vec<Share> {
    let headers = if target.is_ipv4() { 20 + 8 } else { 40 + 8 };
    let inside = kind.inside_tunnel();
    let share = |&(frame, weight): &(usize, u32)| {
        let packet = (frame - ETHERNET).min(if inside { 1_420 } else { 1_500 });
        let size = packet.saturating_sub(headers + kind.framing(target)).max(payload::LEN);
        Share { size, weight }
    };
    IMIX.iter().map(share).collect()
}

/// Mean size of a mix, or `size` where there is none.
#[must_use]
pub fn mean(size: usize, mix: &[Share]) -> f64 {
    let weight: u64 = mix.iter().map(|share| u64::from(share.weight)).sum();
    if weight == 0 {
        return size as f64;
    }
    mix.iter().map(|share| share.size as f64 * f64::from(share.weight)).sum::<f64>() / weight as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target() -> SocketAddr {
        "192.0.2.1:9".parse().unwrap()
    }

    #[test]
    fn sizes_are_read_with_and_without_weights() {
        assert_eq!("200".parse(), Ok(Sizes::One(200)));
        let (largest, mix) = "64:7,594:4,1472".parse::<Sizes>().unwrap().resolve(Kind::Udp, target());
        assert_eq!((largest, mix.len(), mix[2]), (1_472, 3, Share { size: 1_472, weight: 1 }));
        assert!((mean(largest, &mix) - f64::from(64 * 7 + 594 * 4 + 1_472) / 12.0).abs() < 1e-9);
        assert_eq!(mean(200, &[]), 200.0);
        for text in ["", "big", "64:", "64:0", "64;7", "64:9999999", "-1", &"9,".repeat(65)] {
            assert!(text.parse::<Sizes>().unwrap_err().contains("imix"), "{text}");
        }
    }

    #[test]
    fn the_imix_fills_its_frames_and_is_never_fragmented() {
        let sizes = |kind, target: &str| -> Vec<usize> {
            let (_, mix) = Sizes::Imix.resolve(kind, target.parse().unwrap());
            assert_eq!(mix.iter().map(|share| share.weight).collect::<Vec<_>>(), [7, 4, 1]);
            mix.iter().map(|share| share.size).collect()
        };
        assert_eq!(sizes(Kind::Udp, "192.0.2.1:9"), [56, 548, 1_472]);
        assert_eq!(sizes(Kind::Udp, "[2001:db8::1]:9"), [56, 528, 1_452]);
        assert_eq!(sizes(Kind::Tunnel, "192.0.2.1:9"), [56, 548, 1_392]);
        assert_eq!(sizes(Kind::TurnChannel, "192.0.2.1:9"), [56, 544, 1_468]);
        // A message of STUN ends on a multiple of four bytes.
        assert_eq!(sizes(Kind::TurnSend, "192.0.2.1:9"), [56, 509, 1_433]);
    }
}
