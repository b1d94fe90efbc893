//! The offloads that flags can leave out.

use std::str::FromStr;

use clap::ValueEnum;

use super::{EngineArgs, Switch};
use crate::sys::tun::TunOptions;

/// Something that lets many packets cross the kernel at once. Each works without the others, but for what needs
/// [`Offload::VnetHdr`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Offload {
    /// The header in front of each packet of a TUN device, which tells of the next two
    VnetHdr,
    /// Superpackets from a TUN device: of TCP (TSO) and UDP (USO)
    TunTso,
    /// Superpackets to a TUN device
    TunGro,
    /// Superpackets out of UDP sockets
    UdpGso,
    /// Superpackets into UDP sockets
    UdpGro,
}

/// Some offloads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads(u8);

impl Offloads {
    /// Whether this one is among them.
    #[must_use]
    pub fn contains(self, offload: Offload) -> bool {
        self.0 & 1 << offload as u8 != 0
    }
}

impl FromStr for Offloads {
    type Err = String;

    /// Names between commas.
    fn from_str(text: &str) -> Result<Self, String> {
        let known = Offload::value_variants().iter().filter_map(ValueEnum::to_possible_value);
        let wanted = || {
            let names: Vec<_> = known.clone().map(|value| value.get_name().to_owned()).collect();
            format!("write some of {} with commas between them", names.join(", "))
        };
        text.split(',').try_fold(Self::default(), |set, name| {
            let offload = Offload::from_str(name.trim(), false).map_err(|_| wanted())?;
            Ok(Self(set.0 | 1 << offload as u8))
        })
    }
}

impl EngineArgs {
    /// Whether an offload is to be used, as far as the kernel has it. `--gso off` is all that make superpackets.
    #[must_use]
    pub fn uses(&self, offload: Offload) -> bool {
        let wanted = self.gso == Switch::On || offload == Offload::VnetHdr;
        wanted && !self.no_offload.is_some_and(|without| without.contains(offload))
    }

    /// What a TUN device is asked for.
    #[must_use]
    pub fn tun_options(&self) -> TunOptions {
        let header = self.uses(Offload::VnetHdr);
        TunOptions {
            header,
            superpackets_in: header && self.uses(Offload::TunTso),
            superpackets_out: header && self.uses(Offload::TunGro),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Io;
    use super::*;

    fn args(gso: Switch, without: &str) -> EngineArgs {
        let no_offload = (!without.is_empty()).then(|| without.parse().expect("names"));
        EngineArgs { io: Io::Auto, ingress: None, gso, no_offload, completions: None, busy_poll: 0 }
    }

    #[test]
    fn each_offload_is_left_out_alone_and_gso_is_all_superpackets() {
        let all = Offload::value_variants();
        for (index, offload) in all.iter().enumerate() {
            let name = offload.to_possible_value().expect("a name").get_name().to_owned();
            for (other, wanted) in all.iter().enumerate() {
                assert_eq!(args(Switch::On, &name).uses(*wanted), index != other, "{name} {wanted:?}");
            }
            assert_eq!(args(Switch::Off, "").uses(*offload), *offload == Offload::VnetHdr);
        }
        let options = args(Switch::On, "vnet-hdr").tun_options();
        assert_eq!(
            (options.header, options.superpackets_in, options.superpackets_out),
            (false, false, false)
        );
        assert!(args(Switch::On, "udp-gso, tun-gro").tun_options().superpackets_in);
    }

    #[test]
    fn an_unknown_name_is_answered_with_those_that_there_are() {
        for bad in ["gso", "", "udp-gso,", "udp_gso"] {
            let error = bad.parse::<Offloads>().expect_err(bad);
            assert!(error.contains("vnet-hdr, tun-tso, tun-gro, udp-gso, udp-gro"), "{error}");
        }
    }
}
