//! Side-by-side runs of Towpath and the programs it is compared with. Every figure is a ratio inside one run.

pub mod cores;
pub mod forward;
pub mod gateway;
pub mod instructions;
pub mod latency;
pub mod load;
pub mod middle;
pub mod peers;
pub mod process;
pub mod ring;
pub mod slots;
pub mod stages;
pub mod timing;
pub mod zero_copy;
