//! Our own I/O designs as the sides: relay and tunnel are started with each of them, in a network of their own.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use dataplane::engine::Io;

use super::Progress;
use crate::demo::{self, B_INSIDE, Facts, Interrupt, REFLECTOR_PORT, RELAY_PORT, Route, Site, Stage, USER};
use crate::netns::{Address, Topology};
use crate::reflect::Counts;
use crate::run::{Kind, Problem, RunResult, RunSpec, run};

/// What carries the load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Through {
    /// The relay alone: ChannelData to a peer and back; the CPU time is the relay's
    Relay,
    /// A tunnel from end to end, to a reflector and back; the CPU time is that of both ends
    Tunnel,
}

impl Through {
    /// As printed.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Relay => "relay",
            Self::Tunnel => "tunnel",
        }
    }

    const fn route(self) -> Route {
        match self {
            Self::Relay => Route::RelayOnly,
            Self::Tunnel => Route::Direct,
        }
    }
}

/// The network in which the designs run.
pub struct Designs {
    site: Site,
    facts: Facts,
    interrupt: Interrupt,
}

impl Designs {
    /// Makes the network. Call it from the main thread, before any other thread exists.
    ///
    /// # Errors
    /// [`Problem::Setup`] when one of `designs` cannot be run here, with the fix; what keeps the network from being made.
    pub fn new(designs: &[Io]) -> anyhow::Result<Self> {
        let facts = Facts::find()?;
        let needs_ring = designs.iter().find(|io| matches!(io, Io::Uring | Io::Runtime));
        if let Some((reason, design)) = facts.no_uring.as_ref().zip(needs_ring) {
            return Err(
                Problem::Setup(format!("--io {} cannot be run here: {reason}", demo::name(*design))).into()
            );
        }
        let topology = if facts.no_network.is_none() {
            let made = demo::isolate().and_then(|()| Topology::new());
            Some(made.map_err(|error| Problem::Setup(format!("{error:#}")))?)
        } else {
            None
        };
        let interrupt = Interrupt::new(None)?;
        Ok(Self { site: Site::new(topology)?, facts, interrupt })
    }

    /// Set by SIGINT or SIGTERM.
    #[must_use]
    pub fn stop(&self) -> &Arc<AtomicBool> {
        &self.interrupt.stop
    }

    /// Why there can be no load through `through`, with the fix.
    #[must_use]
    pub fn obstacle(&self, through: Through) -> Option<&str> {
        match through {
            Through::Relay => None,
            Through::Tunnel => self.facts.no_network.as_deref().or(self.facts.no_tun.as_deref()),
        }
    }

    /// Why the relay runs on loopback instead of a network of its own, if it does.
    #[must_use]
    pub fn loopback(&self) -> Option<&str> {
        self.facts.no_network.as_deref()
    }

    /// Starts what `through` needs on `design`, makes one run of `load` through it, and ends it again.
    ///
    /// # Errors
    /// What did not come up, or why the load could not be run.
    pub fn measure(
        &self,
        design: Io,
        through: Through,
        load: &RunSpec,
        progress: Progress<'_>,
    ) -> anyhow::Result<RunResult> {
        let stage = Stage::start(&self.site, demo::name(design), through.route(), &self.interrupt)?;
        let spec = self.spec(through, load, stage.pids());
        let topology = self.site.topology.as_ref();
        let tunnelled = topology.filter(|_| through == Through::Tunnel);
        let (result, _) = match topology {
            None => (run(&spec, progress)?, Counts::default()),
            Some(topology) => demo::with_reflector(tunnelled.map(|topology| &topology.b), || {
                topology.a.run(|| run(&spec, progress))?
            })?,
        };
        stage.stop()?;
        Ok(result)
    }

    fn spec(&self, through: Through, load: &RunSpec, dut_pids: Vec<u32>) -> RunSpec {
        let stop = Some(Arc::clone(&self.interrupt.stop));
        let spec = RunSpec { dut_pids, stop, ..load.clone() };
        let own_network = self.site.topology.is_some();
        match through {
            Through::Tunnel => {
                RunSpec { kind: Kind::Tunnel, target: SocketAddr::from((B_INSIDE, REFLECTOR_PORT)), ..spec }
            }
            Through::Relay => {
                let (relay, peer) = if own_network {
                    (SocketAddr::from((Address::RELAY, RELAY_PORT)), Address::A_AT_RELAY)
                } else {
                    let port = self.site.loopback_port;
                    (SocketAddr::from((Ipv4Addr::LOCALHOST, port)), Ipv4Addr::LOCALHOST)
                };
                let spec = RunSpec { kind: Kind::TurnChannel, target: relay, ..spec };
                demo::with_user(spec, USER, &self.site.password, IpAddr::V4(peer))
            }
        }
    }
}
