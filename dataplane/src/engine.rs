//! Chooses how packets come in and leave, once, and runs an application on the choice: one loop, or several workers.

mod offload;
mod workers;

use std::io;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};

use crate::crypto::Boss;
use crate::driver::{self, Application, Ends, Ledger};
use crate::drops::Drops;
use crate::egress::probe::{self, probe, setup_reason};
use crate::egress::{Direct, Egress, Runtime, Threaded, Uring, WhenBusy};
use crate::halt::Halt;
use crate::ingress::{Epoll, Ingress, UringIngress};
use crate::sys::ring::{ReapHalf, SubmitHalf};
use crate::sys::signal::StopSignals;

pub use self::offload::{Offload, Offloads};
pub use self::workers::run_workers;

/// How packets leave (`--io`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Io {
    /// `uring` when a real probe succeeds, else `suspend`
    Auto,
    /// Fixed ring, full-queue submission, completion thread
    Uring,
    /// Stack packets through two channels of 1,000 to writer threads
    Threaded,
    /// Written at once; the loop is suspended while the socket is busy
    Suspend,
    /// Written at once; dropped and counted while the socket is busy
    Drop,
    /// tokio-uring: one owned buffer and one operation per packet
    Runtime,
}

/// Who reaps completions (`--completions`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Completions {
    /// A thread of its own
    Thread,
    /// The submitting thread
    Inline,
}

/// How packets come in (`--ingress`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum IngressKind {
    /// Multishot receive with provided buffers
    Uring,
    /// epoll and recvmmsg
    Epoll,
}

/// On or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// Used where the kernel has it
    On,
    /// Never used
    Off,
}

/// The flags that tunnel and relay share.
#[derive(Clone, Copy, Debug, Args)]
pub struct EngineArgs {
    /// How packets leave
    #[arg(long, value_enum, default_value = "auto")]
    pub io: Io,
    /// How packets come in [default: epoll; for the tunnel with --io uring, uring where the kernel has it]
    #[arg(long, value_enum)]
    pub ingress: Option<IngressKind>,
    /// Superpackets on UDP sockets and TUN devices
    #[arg(long, value_enum, default_value = "on")]
    pub gso: Switch,
    /// Offloads to do without, with commas between them: vnet-hdr, tun-tso, tun-gro, udp-gso, udp-gro
    #[arg(long, value_name = "LIST")]
    pub no_offload: Option<Offloads>,
    /// Who reaps completions; only with `--io uring` [default: thread]
    #[arg(long, value_enum)]
    pub completions: Option<Completions>,
    /// Look for input this long before going to sleep: wakes sooner, keeps a core busy; 0 for never
    #[arg(long, value_name = "MICROSECONDS", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=10_000))]
    pub busy_poll: u32,
}

impl EngineArgs {
    /// Usage errors that the flags alone show.
    ///
    /// # Errors
    /// The text names the flags.
    pub fn check(&self) -> Result<(), String> {
        match (self.io, self.completions) {
            (Io::Uring | Io::Auto, _) | (_, None) => Ok(()),
            _ => Err("--completions only goes with --io uring: the other designs have no completions".into()),
        }
    }
}

/// Runs `application` until it stops, by itself or at a signal, then drains and logs the ledger.
///
/// # Errors
/// Set-up failures, each with its remedy, and a broken ring or descriptor.
pub fn run<A: Application>(mut application: A, args: &EngineArgs) -> io::Result<()> {
    let (signals, plan) = prepare(&application, args)?;
    let place = Place {
        number: 0,
        ends: Ends { signals: Some(&signals), halt: None },
        before_start: || Ok(()),
        after_start: || {},
    };
    let ledger = run_loop(&mut application, &plan, args, place)?;
    tracing::info!(figures = %figures(&ledger, 1), "ledger");
    Ok(())
}

/// As [`run`], of a program that waits for signals on a thread of its own: the loop ends with `halt`. `started` is called once
/// it is ready for packets.
///
/// # Errors
/// As [`run`].
pub fn run_until<A: Application>(
    mut application: A,
    args: &EngineArgs,
    halt: &Halt,
    started: impl FnOnce(),
) -> io::Result<()> {
    args.check().map_err(|text| io::Error::new(io::ErrorKind::InvalidInput, text))?;
    let plan = Plan::choose(&application, args);
    let place = Place {
        number: 0,
        ends: Ends { signals: None, halt: Some(halt) },
        before_start: || Ok(()),
        after_start: started,
    };
    let ledger = run_loop(&mut application, &plan, args, place)?;
    tracing::info!(figures = %figures(&ledger, 1), "ledger");
    Ok(())
}

/// What happens once in a process, before its first loop is set up: signals are blocked, and the design is chosen.
fn prepare<A: Application>(application: &A, args: &EngineArgs) -> io::Result<(StopSignals, Plan)> {
    args.check().map_err(|text| io::Error::new(io::ErrorKind::InvalidInput, text))?;
    let signals = StopSignals::with(application.signals())?;
    Ok((signals, Plan::choose(application, args)))
}

/// Which design packets leave by.
enum Plan {
    /// A flag says so.
    Chosen(Io),
    /// The ring where the probe succeeded, else why not.
    Probed(Result<(), String>),
}

impl Plan {
    fn choose<A: Application>(application: &A, args: &EngineArgs) -> Self {
        match args.io {
            Io::Auto => Self::Probed(probe(application.device(), now())),
            io => {
                tracing::info!("I/O design: {}", name(io));
                Self::Chosen(io)
            }
        }
    }
}

/// A loop among those of its process.
struct Place<'a, B, S> {
    number: usize,
    ends: Ends<'a>,
    /// Called when everything is set up, before the application is started.
    before_start: B,
    /// Called when the application is started.
    after_start: S,
}

/// Sets one loop up on the calling thread, and runs it until it ends.
fn run_loop<A: Application, B: FnOnce() -> io::Result<()>, S: FnOnce()>(
    application: &mut A,
    plan: &Plan,
    args: &EngineArgs,
    place: Place<'_, B, S>,
) -> io::Result<Ledger> {
    let gso = args.uses(Offload::UdpGso);
    let io = match plan {
        Plan::Probed(probed) => {
            // The ring itself is part of the attempt: locked memory can be enough for the probe and not for it.
            let ring = probed
                .clone()
                .and_then(|()| set_up_ring(application, args).map_err(|error| setup_reason(&error)));
            let number = place.number;
            match ring {
                Ok(egress) => {
                    if number == 0 {
                        tracing::info!("I/O design: uring, the probe succeeded");
                    }
                    return run_on_ring(application, egress, args, place);
                }
                Err(reason) if number == 0 => {
                    tracing::info!("I/O design: suspend, because uring is not available: {reason}");
                }
                Err(reason) if probed.is_ok() => {
                    tracing::warn!(
                        worker = number,
                        "I/O design: suspend, because uring is not available: {reason}"
                    );
                }
                Err(_) => {}
            }
            Io::Suspend
        }
        &Plan::Chosen(io) => io,
    };
    match io {
        Io::Uring => {
            let egress = set_up_ring(application, args).map_err(|error| {
                io::Error::new(error.kind(), format!("--io uring: {}", setup_reason(&error)))
            })?;
            run_on_ring(application, egress, args, place)
        }
        Io::Threaded => run_with(application, Threaded::new(gso)?, args, place),
        Io::Auto | Io::Suspend => run_with(application, Direct::new(WhenBusy::Suspend, gso)?, args, place),
        Io::Drop => run_with(application, Direct::new(WhenBusy::Drop, gso)?, args, place),
        Io::Runtime => {
            let egress = Runtime::new().map_err(|error| {
                io::Error::new(error.kind(), format!("--io runtime: {}", setup_reason(&error)))
            })?;
            run_with(application, egress, args, place)
        }
    }
}

/// The egress of `--io uring`.
fn set_up_ring<A: Application>(
    application: &A,
    args: &EngineArgs,
) -> io::Result<Uring<SubmitHalf, ReapHalf>> {
    let completions = args.completions.unwrap_or(Completions::Thread);
    let mut egress =
        Uring::new(args.uses(Offload::UdpGso), completions, application.device().is_some(), now())?;
    let threads = application.crypto_threads();
    if threads > 0 {
        let slots = egress.slots().capacity;
        match Boss::start(threads, slots, UringIngress::BUFFERS_MAX) {
            Ok(boss) => egress.set_boss(boss),
            Err(error) => tracing::warn!(
                "no crypto threads: {error}; the loop seals and opens by itself. Raise the limit on threads (`ulimit -u`, TasksMax)"
            ),
        }
    }
    egress.set_waiting_time(application.waiting_time());
    Ok(egress)
}

/// The ingress of `--ingress uring`, with the crypto threads of the egress, if it has any.
fn set_up_ingress<A: Application, E: Egress>(application: &A, egress: &E) -> io::Result<UringIngress> {
    let mut ingress = UringIngress::new(application.device().is_some())?;
    if let Some(boss) = egress.boss() {
        ingress.set_boss(boss);
    }
    Ok(ingress)
}

/// The flag value of a design.
fn name(io: Io) -> String {
    io.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

#[expect(clippy::disallowed_methods, reason = "set-up happens before the driver reads the clock")]
fn now() -> Instant {
    Instant::now()
}

/// Runs on the ring. Where the flags do not say how packets come in, the application does, as far as the kernel can.
fn run_on_ring<A: Application, B: FnOnce() -> io::Result<()>, S: FnOnce()>(
    application: &mut A,
    egress: Uring<SubmitHalf, ReapHalf>,
    args: &EngineArgs,
    place: Place<'_, B, S>,
) -> io::Result<Ledger> {
    if args.ingress.is_none() && application.default_ingress() == IngressKind::Uring {
        match set_up_ingress(application, &egress) {
            Ok(ingress) => return finish(application, ingress, egress, args, place),
            Err(error) => tracing::info!("ingress: epoll, because {}", setup_reason(&error)),
        }
    }
    run_with(application, egress, args, place)
}

/// Runs on any design; without a flag packets come in by epoll.
fn run_with<A: Application, E: Egress, B: FnOnce() -> io::Result<()>, S: FnOnce()>(
    application: &mut A,
    egress: E,
    args: &EngineArgs,
    place: Place<'_, B, S>,
) -> io::Result<Ledger> {
    match args.ingress {
        Some(IngressKind::Uring) => match set_up_ingress(application, &egress) {
            Ok(ingress) => finish(application, ingress, egress, args, place),
            Err(error) => {
                let text = format!("--ingress uring: {}", setup_reason(&error));
                Err(io::Error::new(error.kind(), text))
            }
        },
        Some(IngressKind::Epoll) | None => finish(application, Epoll::new()?, egress, args, place),
    }
}

fn finish<A: Application, I: Ingress, E: Egress, B: FnOnce() -> io::Result<()>, S: FnOnce()>(
    application: &mut A,
    mut ingress: I,
    mut egress: E,
    args: &EngineArgs,
    place: Place<'_, B, S>,
) -> io::Result<Ledger> {
    (place.before_start)()?;
    driver::start(application, &mut ingress, &mut egress, &place.ends)?;
    (place.after_start)();
    let busy_poll = Duration::from_micros(args.busy_poll.into());
    // Designs with threads of their own are only through with the socket once the egress is gone, at the end of this.
    driver::run(application, &mut ingress, &mut egress, &place.ends, busy_poll)
}

/// The ledger of all loops as one JSON object: the lab reads it.
fn figures(ledger: &Ledger, workers: usize) -> serde_json::Value {
    let causes = |drops: &Drops| -> serde_json::Map<String, serde_json::Value> {
        drops.iter().map(|(cause, packets)| (cause.name().to_owned(), packets.into())).collect()
    };
    let (egress, ingress) = (&ledger.egress, &ledger.ingress);
    let segments_per_operation = egress.sent as f64 / (egress.operations.max(1)) as f64;
    serde_json::json!({
        "workers": workers,
        "offered": egress.offered,
        "sent": egress.sent,
        "sent_bytes": egress.sent_bytes,
        "unexplained": egress.offered as i64 - egress.sent as i64 - egress.drops.total() as i64,
        "operations": egress.operations,
        "enters": egress.enters,
        "segments_per_operation": segments_per_operation,
        "waited": egress.waited,
        "ring_full": egress.ring_full,
        "completion_wakeups": egress.completion_wakeups,
        "gso_fallbacks": egress.gso_fallbacks,
        "cq_overflows": egress.cq_overflows,
        "resent": egress.resent,
        "kernel_workers": probe::kernel_workers(),
        "crypto": {
            "threads": ledger.crypto.threads,
            "handed_over": ledger.crypto.handed_over,
            "taken_back": ledger.crypto.taken_back,
            "naps": ledger.crypto.naps,
        },
        "egress_drops": causes(&egress.drops),
        "application_drops": causes(&ledger.application),
        "ingress": {
            "superpackets": ingress.superpackets,
            "packets": ingress.packets,
            "system_calls": ingress.system_calls,
            "kernel_drops_skbs": ingress.kernel_drops_skbs,
            "truncated": ingress.truncated,
            "errors": ingress.errors,
            "rearmed": ingress.rearmed,
            "cq_overflows": ingress.cq_overflows,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn completions_need_the_ring() {
        let args = |io, completions| EngineArgs {
            io,
            ingress: None,
            gso: Switch::On,
            no_offload: None,
            completions,
            busy_poll: 0,
        };
        assert!(args(Io::Uring, Some(Completions::Inline)).check().is_ok());
        assert!(args(Io::Suspend, None).check().is_ok());
        assert!(args(Io::Suspend, Some(Completions::Thread)).check().is_err());
    }
}
