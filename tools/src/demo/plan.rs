//! What the demo runs: the same for every I/O design.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use serde::Serialize;

use crate::netns::{Address, Cable};
use crate::run::{Arrivals, Kind, RunSpec};

/// Bytes a second through the bottleneck: 100 Mbit/s.
pub const BOTTLENECK_RATE: u32 = 12_500_000;
/// What the bottleneck lets through at once, in bytes: two full superpackets, far below a burst of the load.
pub const TOKEN_BUCKET: u32 = 128 << 10;
/// Client A inside the tunnel.
pub const A_INSIDE: Ipv4Addr = Ipv4Addr::new(10, 72, 0, 1);
/// Client B inside the tunnel.
pub const B_INSIDE: Ipv4Addr = Ipv4Addr::new(10, 72, 0, 2);
/// Where the far end reflects.
pub const REFLECTOR_PORT: u16 = 7007;
/// Where both tunnels listen.
pub const TUNNEL_PORT: u16 = 51820;
/// Where the relay listens.
pub const RELAY_PORT: u16 = 3478;
/// UDP payload of the load in bytes: fits MTU 1280 with headers.
const SIZE: usize = 1_200;
/// Offered in the steady part, in datagrams a second, both ways: a tenth of what one core tunnels.
const STEADY_RATE: f64 = 8_000.0;
/// Offered in a burst: five times what the bottleneck carries.
const BURST_RATE: f64 = 50_000.0;
/// Smallest burst in bytes.
const BURST_MIN: u64 = 2 << 20;

/// The way the load takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Route {
    /// Through the tunnel, straight to B.
    Direct,
    /// Through the tunnel, by way of the relay.
    Relayed,
    /// Through the relay, without a tunnel.
    RelayOnly,
}

impl Route {
    /// As printed.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Relayed => "relayed",
            Self::RelayOnly => "relay only",
        }
    }

    /// The first device after client A's socket.
    #[must_use]
    pub const fn cable(self) -> Cable {
        match self {
            Self::Direct => Cable::Direct,
            Self::Relayed | Self::RelayOnly => Cable::Relay,
        }
    }
}

/// What is offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Load {
    /// Below what anything on the way carries.
    Steady,
    /// One burst above the bottleneck's rate, larger than the send buffer.
    Bottleneck,
}

impl Load {
    /// As printed.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Steady => "steady",
            Self::Bottleneck => "bottleneck",
        }
    }
}

/// The sizes around the bottleneck, in bytes unless said otherwise; equal for all designs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Bottleneck {
    /// What the tunnel's socket holds, as the kernel accounts it.
    pub send_buffer: u32,
    /// What the token bucket queues before it drops without a word; more than the send buffer lets it have.
    pub limit: u32,
    /// What it lets through at once.
    pub token_bucket: u32,
    /// UDP payload of the burst that is offered.
    pub burst: u64,
    /// The same in datagrams.
    pub burst_datagrams: u64,
    /// Packets that may wait in the TUN device to be read: all of the burst. This is the queue bound.
    pub device_queue: u32,
}

impl Bottleneck {
    /// Sizes that make any sender overflow that does not wait.
    #[must_use]
    pub fn new(send_buffer: u32) -> Self {
        // While the burst is offered, a fifth of it drains; three buffers' worth overflows even so, and even though the
        // kernel accounts a datagram at up to twice its size.
        let burst = (3 * u64::from(send_buffer)).max(BURST_MIN);
        let burst_datagrams = burst.div_ceil(SIZE as u64);
        Self {
            send_buffer,
            limit: send_buffer.saturating_mul(2).max(1 << 20),
            token_bucket: TOKEN_BUCKET,
            burst: burst_datagrams * SIZE as u64,
            burst_datagrams,
            device_queue: u32::try_from(burst_datagrams + 1_000).unwrap_or(u32::MAX),
        }
    }

    /// One sentence for the report.
    #[must_use]
    pub fn sentence(&self) -> String {
        let kib = |bytes: u64| format!("{} KiB", bytes >> 10);
        format!(
            "Bottleneck: 100 Mbit/s token bucket of {} on client A's first device, limit {}; the tunnel's send buffer holds {}; \
             one burst of {} ({} datagrams of {SIZE} B at {BURST_RATE} a second); queue bound {} packets in the TUN device. \
             The same for all designs.",
            kib(self.token_bucket.into()),
            kib(self.limit.into()),
            kib(self.send_buffer.into()),
            kib(self.burst),
            self.burst_datagrams,
            self.device_queue,
        )
    }
}

/// The run that a design is measured with.
#[must_use]
pub fn spec(
    route: Route,
    load: Load,
    bottleneck: &Bottleneck,
    label: String,
    pids: Vec<u32>,
    stop: &Arc<AtomicBool>,
) -> RunSpec {
    let target = match route {
        Route::Direct | Route::Relayed => SocketAddr::from((B_INSIDE, REFLECTOR_PORT)),
        Route::RelayOnly => SocketAddr::from((Address::RELAY, RELAY_PORT)),
    };
    let kind = if route == Route::RelayOnly { Kind::TurnChannel } else { Kind::Tunnel };
    let spec = RunSpec {
        size: SIZE,
        flows: 8,
        arrivals: Arrivals::Poisson,
        interval: Duration::from_millis(100),
        label,
        dut_pids: pids,
        stop: Some(Arc::clone(stop)),
        ..RunSpec::new(kind, target)
    };
    match load {
        // Bursts of 8 in one send, as a QUIC sender makes them.
        Load::Steady => RunSpec {
            rate_pps: STEADY_RATE,
            burst: 8,
            gso: true,
            // More than 10,000 datagrams: enough for a p99.
            duration: Duration::from_millis(1_400),
            warmup: Duration::from_millis(200),
            drain: Duration::from_millis(500),
            ..spec
        },
        Load::Bottleneck => RunSpec {
            rate_pps: BURST_RATE,
            burst: 16,
            gso: true,
            arrivals: Arrivals::Periodic,
            duration: Duration::from_secs_f64(bottleneck.burst_datagrams as f64 / BURST_RATE),
            warmup: Duration::ZERO,
            // All of the burst through the bottleneck, with its headers, and a second for a busy machine.
            drain: Duration::from_secs_f64(bottleneck.burst as f64 * 1.1 / f64::from(BOTTLENECK_RATE))
                + Duration::from_secs(1),
            ..spec
        },
    }
}

/// Where the relay-only load goes when there are no namespaces: loopback.
#[must_use]
pub fn on_loopback(spec: RunSpec, port: u16) -> RunSpec {
    RunSpec { target: SocketAddr::from((Ipv4Addr::LOCALHOST, port)), ..spec }
}

/// Gives the relay-only load its credentials and the address of its peer.
#[must_use]
pub fn with_user(spec: RunSpec, user: &str, password: &str, peer: IpAddr) -> RunSpec {
    RunSpec {
        username: Some(user.to_owned()),
        password: Some(password.to_owned()),
        bind: Some(peer),
        peer: Some(peer),
        ..spec
    }
}
