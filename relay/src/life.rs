//! The life of a relay process: it starts, reads its configuration again at SIGHUP, drains at SIGTERM, and ends.

use std::fmt;
use std::io;
use std::time::{Duration, Instant};

use dataplane::driver::Next;
use dataplane::sys::signal::Signal;

use crate::config::Config;
use crate::confine::Confinement;
use crate::notify::Notifier;
use crate::reload::{Reloader, Source};
use crate::server::{Alternates, Server};
use crate::stream::Streams;

/// How often the end of a reading is looked for while nothing else wakes the loop.
const RELOAD_INTERVAL: Duration = Duration::from_millis(10);

/// What SIGTERM does.
#[derive(Clone, Copy, Debug, Default)]
pub struct DrainPlan {
    /// How long allocations may go on; zero ends at once.
    pub timeout: Duration,
    /// Where new clients are sent meanwhile.
    pub alternates: Alternates,
}

impl DrainPlan {
    /// As configured.
    #[must_use]
    pub fn of(config: &Config) -> Self {
        Self { timeout: config.drain_timeout, alternates: config.alternates }
    }
}

/// Readings of the configuration since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reloads {
    /// Applied.
    pub applied: u64,
    /// Refused, because something was wrong: the configuration before stays in force.
    pub refused: u64,
    /// The last one was refused, so that the files are not what is in force.
    pub last_refused: bool,
}

/// What someone who embeds the relay wants done once it serves.
struct Hook(Box<dyn FnOnce() + Send>);

impl fmt::Debug for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hook(…)")
    }
}

/// Where a relay process is in its life. Without a source of configuration SIGHUP changes nothing.
#[derive(Debug, Default)]
pub struct Life {
    /// Until the loop runs.
    source: Option<Box<Source>>,
    reloader: Option<Reloader>,
    reload_due: Option<Instant>,
    reloads: Reloads,
    confinement: Option<Confinement>,
    once_ready: Option<Hook>,
    notifier: Notifier,
    plan: DrainPlan,
    /// When draining is over at the latest.
    drained_by: Option<Instant>,
}

impl Life {
    /// A life with something to read again, a plan for its end, and someone to tell.
    #[must_use]
    pub(crate) fn new(
        source: Source,
        plan: DrainPlan,
        notifier: Notifier,
        confinement: Option<Confinement>,
    ) -> Self {
        Self { source: Some(Box::new(source)), plan, notifier, confinement, ..Self::default() }
    }

    /// The same, with something to be called by the loop's thread, confined as it is, once the relay serves.
    #[must_use]
    pub fn once_ready(self, hook: impl FnOnce() + Send + 'static) -> Self {
        Self { once_ready: Some(Hook(Box::new(hook))), ..self }
    }

    /// The loop is about to take the first packet: signals are blocked and every other thread runs.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(&mut self, now: Instant) -> io::Result<()> {
        if let Some(source) = self.source.take() {
            self.reloader = Some(Reloader::start(*source)?);
        }
        if let Some(confinement) = &self.confinement {
            confinement.when_ready();
        }
        self.notifier.ready(now);
        if let Some(Hook(hook)) = self.once_ready.take() {
            hook();
        }
        Ok(())
    }

    /// Readings of the configuration since the start.
    #[must_use]
    pub fn reloads(&self) -> Reloads {
        self.reloads
    }

    /// Whether it only serves what is allocated, until that ends.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.drained_by.is_some()
    }

    /// SIGHUP reads the configuration again. SIGTERM drains, unless there is nothing to wait for; a second one ends.
    /// SIGINT ends: whoever presses Ctrl-C waits for it.
    pub fn handle_signal(&mut self, signal: Signal, server: &mut Server, now: Instant) -> Next {
        match signal {
            Signal::Hangup => {
                if let Some(reloader) = &mut self.reloader {
                    if self.drained_by.is_none() {
                        self.notifier.reloading();
                    }
                    reloader.request();
                    self.reload_due = Some(now + RELOAD_INTERVAL);
                }
                Next::Continue
            }
            Signal::Interrupt => Next::Stop,
            Signal::Terminate if self.drained_by.is_some() => {
                tracing::info!(allocations = server.allocations(), "told to stop a second time, not drained");
                Next::Stop
            }
            Signal::Terminate => {
                let time = if server.allocations() == 0 { Duration::ZERO } else { self.plan.timeout };
                self.notifier.stopping(time);
                if time.is_zero() {
                    return Next::Stop;
                }
                server.drain(self.plan.alternates);
                self.drained_by = Some(now + time);
                tracing::info!(
                    allocations = server.allocations(),
                    seconds = time.as_secs(),
                    "draining: what is allocated goes on, nothing new is"
                );
                Next::Continue
            }
        }
    }

    /// Called after each batch; O(1) unless a configuration has just been read.
    pub fn maintain(&mut self, server: &mut Server, streams: &mut Streams, now: Instant) -> Next {
        if self.reload_due.is_some() {
            self.take_reloaded(server, streams, now);
        }
        let Some(drained_by) = self.drained_by else { return Next::Continue };
        if server.allocations() == 0 {
            tracing::info!("drained");
            return Next::Stop;
        }
        if now >= drained_by {
            tracing::warn!(
                allocations = server.allocations(),
                "the time to drain is over; --drain-timeout is how long it lasts"
            );
            return Next::Stop;
        }
        Next::Continue
    }

    /// Applies what has been read, or tells why not.
    fn take_reloaded(&mut self, server: &mut Server, streams: &mut Streams, now: Instant) {
        let Some(reloader) = &mut self.reloader else { return };
        let result = reloader.poll();
        self.reload_due = reloader.is_under_way().then(|| now + RELOAD_INTERVAL);
        match result {
            None => return,
            Some(Ok(reloaded)) => {
                server.reconfigure(reloaded.settings);
                streams.reconfigure(reloaded.limits, reloaded.tls);
                self.plan = reloaded.drain;
                if server.is_draining() {
                    server.drain(self.plan.alternates);
                }
                self.reloads.applied += 1;
                self.reloads.last_refused = false;
                tracing::info!(
                    users = reloaded.users,
                    "the configuration has been read again and is in force"
                );
            }
            Some(Err(error)) => {
                self.reloads.refused += 1;
                self.reloads.last_refused = true;
                tracing::error!(refused = self.reloads.refused, "the configuration stays as it was: {error}");
            }
        }
        if self.drained_by.is_none() {
            self.notifier.ready(now);
        }
    }

    /// Gives signs of life.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.notifier.handle_timeout(now);
    }

    /// When the loop has to come by; O(1).
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        [self.reload_due, self.drained_by, self.notifier.poll_timeout()].into_iter().flatten().min()
    }
}
