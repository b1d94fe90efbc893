//! What a run is asked to do: kind of load, target, rate, size, flows, times and seed.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::devices::Host;
use super::kind::Kind;
use super::live::Live;
use super::payload;
use super::problem::Problem;
use super::server::ServerAdmin;
use super::sizes::{self, Share};
use super::tcp;
use super::trace::Trace;
use super::verdict::Check;
use super::wireguard::{self, WireGuard};

/// Most datagrams in one GSO send (UDP_MAX_SEGMENTS of the kernel before 6.11; larger bursts are sent in pieces).
pub const GSO_SEGMENTS_MAX: u32 = 64;
/// Longest UDP payload over IPv4: 65,535 less 20 bytes of IP header and 8 of UDP header.
pub const SIZE_MAX: usize = 65_507;
/// Channels that one TURN allocation can bind: 0x4000 to 0x4FFF (RFC 8656 section 12).
pub const CHANNELS_PER_ALLOCATION: u32 = 4_096;
/// Most flows of a run; each costs a socket or a channel.
pub const FLOWS_MAX: u32 = 65_536;
/// Most datagrams of a run: the ledger keeps one bit for each in both directions (128 MiB at this count).
pub const PACKETS_MAX: f64 = 1e9;

/// Share of a core that the hypervisor may take: a neighbour's share that is felt in every quantile begins here.
pub const STEAL_LIMIT: f64 = 0.05;
/// Socket buffers that are asked for, in bytes.
pub const BUFFER: usize = 8 << 20;

/// The law of the gaps between send times.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Arrivals {
    /// Exponential gaps: what many independent senders look like
    Poisson,
    /// Equal gaps
    Periodic,
    /// Exponential gaps for a time, then silence for a time, again and again; the rate is the mean over both
    OnOff {
        /// How long it sends.
        #[serde(rename = "on_s", with = "seconds")]
        on: Duration,
        /// How long it is silent.
        #[serde(rename = "off_s", with = "seconds")]
        off: Duration,
    },
    /// Those of a file, which also has the sizes
    Trace,
}

/// How the sender's messages get to the kernel; two ways that share no code below [`super::post`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum SendBy {
    /// By `sendmsg` and `sendmmsg`
    #[default]
    Sendmmsg,
    /// Through this project's io_uring
    Uring,
}

/// How the sender waits for the next send time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Pace {
    /// Sleep until 60 µs before, then spin
    Hybrid,
    /// Sleep only: later by about 20 µs, and leaves the core to others
    Sleep,
    /// Spin only: takes a whole core
    Spin,
}

/// Everything that decides what is sent and when. Two runs with equal specs send the same datagrams at the same offsets.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RunSpec {
    /// The way the load takes.
    pub kind: Kind,
    /// The reflector, or the relay for the TURN kinds.
    pub target: SocketAddr,
    /// Datagrams per second over all flows.
    pub rate_pps: f64,
    /// UDP payload in bytes (inside the framing of TURN or WireGuard; of TCP a message); of a mix the largest.
    pub size: usize,
    /// Sizes to draw from; empty when all are the same.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mix: Vec<Share>,
    /// Source ports, TURN channels, or TCP connections.
    pub flows: u32,
    /// Datagrams of one flow that are due at the same instant; the rate stays the one in `rate_pps`.
    pub burst: u32,
    /// Whether the datagrams of one burst leave in one UDP GSO send.
    pub gso: bool,
    /// Datagrams of one flow that leave as one superpacket when the last of them is due, each at its own time of the
    /// schedule; 1 when they leave one by one.
    #[serde(default = "one")]
    pub gather: u32,
    /// The law of the gaps between bursts.
    pub arrivals: Arrivals,
    /// The file with the times, of [`Arrivals::Trace`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<Trace>,
    /// How messages get to the kernel.
    #[serde(default)]
    pub send: SendBy,
    /// How the sender waits.
    pub pace: Pace,
    /// Time of measured sending.
    #[serde(rename = "duration_s", with = "seconds")]
    pub duration: Duration,
    /// Time of unmeasured sending before it, at the same rate.
    #[serde(rename = "warmup_s", with = "seconds")]
    pub warmup: Duration,
    /// How long after the last send a datagram may arrive and still count as received.
    #[serde(rename = "drain_s", with = "seconds")]
    pub drain: Duration,
    /// Length of one line of the interval log; at least 100 ms.
    #[serde(rename = "interval_s", with = "seconds")]
    pub interval: Duration,
    /// p99.9 of the sender's or receiver's lateness above which the run counts as limited by the generator (unless it is less than a
    /// quarter of the p99.9 of the latency itself).
    #[serde(rename = "lateness_limit_s", with = "seconds")]
    pub lateness_limit: Duration,
    /// Whether the kernel says when each datagram arrived.
    #[serde(default)]
    pub kernel_stamps: bool,
    /// Of so many sends one, in the mean, is asked when the device took it; 0 when none is.
    #[serde(default)]
    pub tx_stamps: u32,
    /// Share of any core's time, 0 to 1, above which the hypervisor's taking voids the run.
    #[serde(default = "steal_limit")]
    pub steal_limit: f64,
    /// Receive buffer that the sockets of the load ask for, in bytes.
    #[serde(default = "buffer")]
    pub receive_buffer: usize,
    /// Send buffer likewise.
    #[serde(default = "buffer")]
    pub send_buffer: usize,
    /// Fixes the schedule, the choice of flows and the filling of payloads.
    pub seed: u64,
    /// TURN allocations over which the flows are spread.
    pub allocations: u32,
    /// TURN user name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// TURN password; never written to a file.
    #[serde(skip)]
    pub password: Option<String>,
    /// Who this process is to the server of the WireGuard kinds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wireguard: Option<WireGuard>,
    /// Source address of the load; chosen by the route when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bind: Option<IpAddr>,
    /// Address on which the peer of the TURN kinds listens, as the relay reaches it; the source address when absent. Of the
    /// WireGuard kinds the server's address inside the tunnel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<IpAddr>,
    /// Servers of this project that are asked what they lost.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub server_admins: Vec<ServerAdmin>,
    /// Hosts of a lab whose devices are looked at.
    #[serde(skip)]
    pub hosts: Vec<Host>,
    /// Processes whose CPU time is divided by the datagrams.
    pub dut_pids: Vec<u32>,
    /// Name of the run in tables and plots.
    pub label: String,
    /// Set from another thread to end the run early; the result is then marked as interrupted.
    #[serde(skip)]
    pub stop: Option<Arc<AtomicBool>>,
    /// A check that is not made, for tests of it ([`super::verdict::Tolerance::blind`]).
    #[serde(skip)]
    pub blind: Option<Check>,
    /// Looked at from another thread while the run goes on.
    #[serde(skip)]
    pub live: Option<Arc<Live>>,
    /// The interval log, which is written while the run goes on; none without.
    #[serde(skip)]
    pub log: Option<PathBuf>,
}

impl RunSpec {
    /// A modest run with every default of the command line: 1 kpps of 200 bytes on one flow for 5 s.
    #[must_use]
    pub fn new(kind: Kind, target: SocketAddr) -> Self {
        Self {
            kind,
            target,
            rate_pps: 1_000.0,
            size: 200,
            mix: Vec::new(),
            flows: 1,
            burst: 1,
            gso: false,
            gather: 1,
            arrivals: Arrivals::Poisson,
            trace: None,
            send: SendBy::Sendmmsg,
            pace: Pace::Hybrid,
            duration: Duration::from_secs(5),
            warmup: Duration::from_millis(500),
            drain: Duration::from_secs(1),
            interval: Duration::from_secs(1),
            lateness_limit: Duration::from_millis(1),
            kernel_stamps: false,
            tx_stamps: 0,
            steal_limit: STEAL_LIMIT,
            receive_buffer: BUFFER,
            send_buffer: BUFFER,
            seed: 1,
            allocations: 1,
            username: None,
            password: None,
            wireguard: None,
            bind: None,
            peer: None,
            server_admins: Vec::new(),
            hosts: Vec::new(),
            dut_pids: Vec::new(),
            label: String::new(),
            stop: None,
            blind: None,
            live: None,
            log: None,
        }
    }

    /// Whether datagrams leave in superpackets.
    #[must_use]
    pub fn superpackets(&self) -> bool {
        self.gso || self.gather > 1
    }

    /// Mean payload in bytes.
    #[must_use]
    pub fn mean_size(&self) -> f64 {
        sizes::mean(self.size, &self.mix)
    }

    /// Refuses what cannot be run.
    ///
    /// # Errors
    /// [`Problem::Usage`], naming the option and a value that works.
    pub fn check(&self) -> Result<(), Problem> {
        self.check_sizes()?;
        self.check_shape()?;
        self.check_times()?;
        self.check_stamps()?;
        match self.kind {
            Kind::TurnChannel | Kind::TurnSend => self.check_turn(),
            Kind::WgRx | Kind::WgTx => wireguard::check(self),
            Kind::Tcp => self.check_tcp(),
            Kind::Udp | Kind::Tunnel => Ok(()),
        }
    }

    /// Refuses a load whose rate cannot be set, for commands that vary it.
    ///
    /// # Errors
    /// [`Problem::Usage`], naming the option.
    pub fn check_rate_is_free(&self) -> Result<(), Problem> {
        if self.arrivals == Arrivals::Trace {
            return usage(
                "--arrivals trace has its own rate, which this command has to set; use another law"
                    .to_owned(),
            );
        }
        Ok(())
    }

    fn check_tcp(&self) -> Result<(), Problem> {
        if self.superpackets() || self.send != SendBy::Sendmmsg {
            return usage(
                "tcp leaves packets to the kernel: leave out --gso, --gather and --send".to_owned(),
            );
        }
        if self.flows > tcp::FLOWS_MAX {
            return usage(format!("--flows {}: tcp has at most {} connections", self.flows, tcp::FLOWS_MAX));
        }
        Ok(())
    }

    fn check_stamps(&self) -> Result<(), Problem> {
        if self.kind == Kind::Tcp && (self.kernel_stamps || self.tx_stamps > 0) {
            return usage(
                "--stamps kernel and --tx-stamps are for datagrams: a stream has none; leave them out"
                    .to_owned(),
            );
        }
        if self.kind.is_wireguard() && self.tx_stamps > 0 {
            return usage(format!(
                "--tx-stamps is for the kinds udp, tunnel, turn-channel and turn-send, not for {}; leave it out",
                self.kind.name()
            ));
        }
        if self.send == SendBy::Uring && self.tx_stamps > 0 {
            return usage("--tx-stamps needs --send sendmmsg: the ring does not ask for stamps".to_owned());
        }
        Ok(())
    }

    fn check_sizes(&self) -> Result<(), Problem> {
        let smallest = self.mix.iter().map(|share| share.size).min().unwrap_or(self.size);
        if smallest < payload::LEN {
            return usage(format!(
                "--size {smallest} is too small: each datagram carries sequence number, two times and a checksum; use --size {} or more",
                payload::LEN
            ));
        }
        let size_max = if self.kind.is_turn() || self.kind.is_wireguard() { SIZE_MAX - 96 } else { SIZE_MAX };
        if self.size > size_max {
            return usage(format!(
                "--size {} does not fit a UDP datagram; use at most {size_max}",
                self.size
            ));
        }
        Ok(())
    }

    /// How many flows, and what leaves together.
    fn check_shape(&self) -> Result<(), Problem> {
        if self.flows == 0 || self.flows > FLOWS_MAX {
            return usage(format!("--flows {}: use 1 to {FLOWS_MAX}", self.flows));
        }
        if self.burst == 0 || self.burst > 1_024 {
            return usage(format!("--burst {}: use 1 to 1024", self.burst));
        }
        if self.gather == 0 || self.gather > GSO_SEGMENTS_MAX {
            return usage(format!("--gather {}: use 1 to {GSO_SEGMENTS_MAX}", self.gather));
        }
        if self.gso && self.burst == 1 && self.gather == 1 {
            return usage(
                "--gso sends the datagrams of a burst together; add --burst N, for example --burst 16"
                    .to_owned(),
            );
        }
        if self.gather > 1 && self.burst > 1 {
            return usage("--gather and --burst exclude each other: the datagrams of a burst are due at once, gathered ones each at its own time".to_owned());
        }
        if self.arrivals == Arrivals::Trace && (self.burst > 1 || self.gather > 1) {
            return usage("--arrivals trace has its own bursts; leave out --burst and --gather".to_owned());
        }
        Ok(())
    }

    fn check_times(&self) -> Result<(), Problem> {
        if !(self.rate_pps.is_finite() && self.rate_pps > 0.0) {
            return usage(
                "--rate must be above zero, for example --rate 20kpps or --rate 100Mbit".to_owned(),
            );
        }
        if let Arrivals::OnOff { on, off } = self.arrivals
            && (on.is_zero() || off.is_zero())
        {
            return usage(
                "--arrivals on-off: both times must be above zero, for example on-off:20ms/80ms".to_owned(),
            );
        }
        if self.duration.is_zero() {
            return usage("--duration must be above zero, for example --duration 5s".to_owned());
        }
        if self.interval < Duration::from_millis(100) {
            return usage(
                "--interval must be at least 100ms: stamps in the .hlog have millisecond precision"
                    .to_owned(),
            );
        }
        if !(0.0..=1.0).contains(&self.steal_limit) {
            return usage("--steal-limit is a share of the processor time, for example 5%".to_owned());
        }
        let packets = self.rate_pps * (self.duration + self.warmup).as_secs_f64();
        if packets > PACKETS_MAX {
            return usage(format!(
                "{packets:.0} datagrams are more than the ledger holds ({PACKETS_MAX:.0}); lower --rate or --duration"
            ));
        }
        Ok(())
    }

    fn check_turn(&self) -> Result<(), Problem> {
        if self.username.is_none() || self.password.is_none() {
            return Err(Problem::Usage(format!(
                "{} needs the relay's credentials; add --user NAME:PASSWORD",
                self.kind.name()
            )));
        }
        if self.allocations == 0 || self.allocations > self.flows {
            return Err(Problem::Usage(format!(
                "--allocations {}: use 1 to the number of flows ({})",
                self.allocations, self.flows
            )));
        }
        let needed = self.flows.div_ceil(CHANNELS_PER_ALLOCATION);
        if self.allocations < needed {
            return Err(Problem::Usage(format!(
                "one allocation binds {CHANNELS_PER_ALLOCATION} channels; {} flows need --allocations {needed}",
                self.flows
            )));
        }
        Ok(())
    }
}

fn usage(message: String) -> Result<(), Problem> {
    Err(Problem::Usage(message))
}

const fn one() -> u32 {
    1
}

const fn steal_limit() -> f64 {
    STEAL_LIMIT
}

const fn buffer() -> usize {
    BUFFER
}

/// Durations as seconds in JSON.
mod seconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(value.as_secs_f64())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        Duration::try_from_secs_f64(f64::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn udp() -> RunSpec {
        RunSpec::new(Kind::Udp, "127.0.0.1:9".parse().unwrap())
    }

    #[test]
    fn a_payload_without_room_for_its_header_is_refused_with_the_smallest_size() {
        let error = RunSpec { size: payload::LEN - 1, ..udp() }.check().unwrap_err();
        assert!(error.to_string().contains(&format!("--size {}", payload::LEN)), "{error}");
        RunSpec { size: payload::LEN, ..udp() }.check().unwrap();
    }

    #[test]
    fn turn_without_credentials_or_with_too_few_channels_is_refused() {
        let turn = RunSpec { kind: Kind::TurnChannel, flows: 5_000, ..udp() };
        assert!(turn.check().unwrap_err().to_string().contains("--user"));
        let turn = RunSpec { username: Some("u".into()), password: Some("p".into()), ..turn };
        assert!(turn.check().unwrap_err().to_string().contains("--allocations 2"));
        RunSpec { allocations: 2, ..turn }.check().unwrap();
    }

    #[test]
    fn a_spec_survives_json_without_its_password() {
        let spec = RunSpec { password: Some("secret".into()), ..udp() };
        let json = serde_json::to_string(&spec).unwrap();
        assert!(!json.contains("secret"));
        let back: RunSpec = serde_json::from_str(&json).unwrap();
        assert_eq!((back.kind, back.duration, back.seed), (spec.kind, spec.duration, spec.seed));
    }
}
