//! `towpath-lab lab`: hosts in network namespaces, joined and set up as a scenario file says, with programs on them. Nothing
//! of the machine is changed, and no privilege is needed where everyone may make user namespaces.
//!
//! ```text
//!  lab run FILE   this process makes the hosts, measures, judges; all of it ends with the process
//!  lab up FILE    a keeper in the background makes them; `lab exec` enters; `lab down` ends the keeper and whoever is inside
//! ```

mod claim;
mod enter;
mod files;
mod hosts;
mod keeper;
mod programs;
mod role;
mod run;
mod scenario;
mod secrets;
mod state;

pub use claim::Claim;
pub use enter::exec;
pub use keeper::{down, up};
pub use role::dispatch;
pub use run::{Ran, Verdict, run};
pub use scenario::{DEMO, Scenario, ScenarioError};
