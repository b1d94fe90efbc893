//! Chooses how packets come in and leave, once, and runs an application on the choice.

use std::io;

use clap::{Args, ValueEnum};

use crate::driver::Application;

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

/// The four flags that tunnel and relay share.
#[derive(Clone, Copy, Debug, Args)]
pub struct EngineArgs {
    /// How packets leave
    #[arg(long, value_enum, default_value = "auto")]
    pub io: Io,
    /// How packets come in (default: what was measured to be faster for this program)
    #[arg(long, value_enum)]
    pub ingress: Option<IngressKind>,
    /// Superpackets on UDP sockets and TUN devices
    #[arg(long, value_enum, default_value = "on")]
    pub gso: Switch,
    /// Who reaps completions; only with `--io uring` [default: thread]
    #[arg(long, value_enum)]
    pub completions: Option<Completions>,
}

/// Runs `application` until it stops or SIGTERM or SIGINT arrives, then drains and logs the ledger.
///
/// # Errors
/// Set-up failures, each with its remedy, and a broken ring or descriptor.
pub fn run<A: Application>(
    _application: A,
    _args: &EngineArgs,
    _default_ingress: IngressKind,
) -> io::Result<()> {
    Err(io::Error::other("in progress"))
}
