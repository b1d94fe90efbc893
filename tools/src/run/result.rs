//! What a run found: verdict, ledger, latency and cost, as written to `run.json`.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::account::Account;
use super::distribution::{CurvePoint, Distribution};
use super::dut::DutCpu;
use super::environment::Environment;
use super::ledger::Ledger;
use super::order::Reordering;
use super::server::ServerDrops;
use super::spec::RunSpec;
use super::verdict::{Delays, Verdict};

/// Version of the layout of `run.json`.
pub const SCHEMA: u32 = 1;

/// What a run found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RunResult {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Version of the tool that wrote it.
    pub tool_version: String,
    /// What was asked for.
    pub spec: RunSpec,
    /// Tells its schedule from others; absent in files of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<String>,
    /// Tells this run's datagrams from those of others; hexadecimal.
    pub run_id: String,
    /// Start of measured sending (RFC 3339, UTC).
    pub started: String,
    /// Start of measured sending, nanoseconds since the epoch.
    pub started_unix_ns: u64,
    /// The host.
    pub environment: Environment,
    /// Whether the run itself can be believed.
    pub verdict: Verdict,
    /// Whether it was ended early.
    pub interrupted: bool,
    /// Seconds of measured sending.
    pub measured_s: f64,
    /// Datagrams sent per second of measured sending.
    pub offered_pps: f64,
    /// Datagrams that arrived per second of measured sending.
    pub received_pps: f64,
    /// Bits of payload sent per second of measured sending.
    #[serde(default)]
    pub offered_bps: f64,
    /// Bits of payload that arrived per second of measured sending.
    #[serde(default)]
    pub received_bps: f64,
    /// Processor time of the sending thread for each datagram sent, its waiting included, in nanoseconds: what one core of this
    /// host can offer follows from it where the pace is `sleep`.
    #[serde(default)]
    pub sender_cpu_ns_per_packet: f64,
    /// What happened to the measured datagrams, there and back.
    pub ledger: Ledger,
    /// How far datagrams were overtaken, there and back, over all flows.
    #[serde(default)]
    pub reordering: Reordering,
    /// The ledger from here to the far end, where the far end is in this process and sends back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ledger_up: Option<Ledger>,
    /// The same from the far end to here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ledger_down: Option<Ledger>,
    /// Where every datagram of the schedule is; absent in files of earlier versions.
    #[serde(default)]
    pub account: Account,
    /// What the servers that were asked lost meanwhile.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub servers: Vec<ServerDrops>,
    /// One ledger for each flow, there and back (corrupt datagrams cannot be told apart by flow).
    pub ledger_by_flow: Vec<Ledger>,
    /// Figures of the histograms.
    pub latency: Latency,
    /// Response latency as a curve over the share of sent datagrams.
    pub curve: Vec<CurvePoint>,
    /// CPU time of each observed process.
    pub dut: Vec<DutCpu>,
    /// CPU time of all observed processes divided by the datagrams that were delivered, each way counted: one that drops does not
    /// get cheaper by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dut_cpu_ns_per_packet: Option<f64>,
    /// The same divided by the datagrams that were offered, as far as that is known: those that were sent, and sent back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dut_cpu_ns_per_offered: Option<f64>,
    /// The scenario of `towpath-lab lab run` whose hosts it was made on, by its file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scenario: Option<String>,
    /// The histograms themselves; written as `.hlog` and `.hgrm`, not into the JSON.
    #[serde(skip)]
    pub histograms: Option<Histograms>,
    /// Why the interval log of [`RunSpec::log`] is not whole.
    #[serde(skip)]
    pub log_error: Option<String>,
}

/// Figures of the histograms, in nanoseconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// Arrival less intended send time: what a user of the path waits.
    pub response: Distribution,
    /// Arrival less actual send time: without the sender's own lateness.
    pub service: Distribution,
    /// Actual less intended send time: the sender's own lateness.
    pub lateness: Distribution,
    /// Arrival less arrival in the kernel: how late this process was to read it, the in-process peer included. Of streams, which have no
    /// stamps, what it was late at least. Absent in files of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receiving: Option<Distribution>,
    /// When the device took a datagram less actual send time, of some sends (kernel's time stamps); lost are the stamps that did not
    /// come.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to_device: Option<Distribution>,
    /// Arrival in the kernel less actual send time: without the receiver's own waking up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<Distribution>,
    /// One way, from intended send time to arrival at the far end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub up: Option<Distribution>,
    /// One way, from the far end's send to arrival here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub down: Option<Distribution>,
}

impl Latency {
    /// What a verdict looks at.
    #[must_use]
    pub fn delays(&self) -> Delays<'_> {
        Delays { lateness: &self.lateness, receiving: self.receiving.as_ref(), service: &self.service }
    }
}

/// The histograms of a run, values in nanoseconds.
#[derive(Clone, Debug)]
pub struct Histograms {
    /// Arrival less intended send time.
    pub response: Histogram<u64>,
    /// Arrival less actual send time.
    pub service: Histogram<u64>,
    /// Actual less intended send time.
    pub lateness: Histogram<u64>,
    /// When the device took a datagram less actual send time.
    pub to_device: Option<Histogram<u64>>,
    /// Arrival in the kernel less actual send time.
    pub kernel: Option<Histogram<u64>>,
    /// One way to the far end.
    pub up: Option<Histogram<u64>>,
    /// One way back.
    pub down: Option<Histogram<u64>>,
    /// Arrival less the time of the last send, of what came after that.
    pub tail: Histogram<u64>,
}
