//! Side-by-side runs of Towpath and the programs it is compared with. Every figure is a ratio inside one run.

pub mod forward;
pub mod instructions;
pub mod load;
pub mod peers;
pub mod process;
pub mod ring;
pub mod stages;
