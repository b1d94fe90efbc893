//! The flags about DSCP and ECN.

use clap::Args;

use crate::engine::Switch;
use crate::tunnel::marking::{Dscp, Marking};

/// What datagrams say outside of the packets inside.
#[derive(Clone, Copy, Debug, Args)]
pub(super) struct MarkingArgs {
    /// Copy the ECN bits of packets to what carries them, so that queues on the way can mark [default: on]
    #[arg(long, value_enum)]
    ecn: Option<Switch>,
    /// DSCP of what carries data: a number, or copy for that of the packet inside [default: 0]
    #[arg(long, value_name = "N|copy")]
    dscp: Option<Dscp>,
}

impl MarkingArgs {
    /// What the flags say, and where they say nothing what the file does.
    pub fn over(self, file: Marking) -> Marking {
        Marking {
            ecn: self.ecn.map_or(file.ecn, |switch| switch == Switch::On),
            dscp: self.dscp.unwrap_or(file.dscp),
        }
    }
}
