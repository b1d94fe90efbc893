//! The loop: wait, hand over, flush, timers. The only place of the engine that reads the clock.

use std::io;
use std::time::Instant;

use crate::drops::Drops;
use crate::egress::Egress;
use crate::ingress::{Ingress, Received};

/// What runs on the loop: the tunnel endpoint or the relay.
pub trait Application {
    /// Registers sockets and devices, once, before the first packet.
    ///
    /// # Errors
    /// What keeps the program from serving; the message names the remedy.
    fn start<I: Ingress, E: Egress>(
        &mut self,
        ingress: &mut I,
        egress: &mut E,
        now: Instant,
    ) -> io::Result<()>;

    /// Takes one superpacket, appends what leaves to `egress`.
    fn handle<E: Egress>(&mut self, received: Received<'_>, egress: &mut E, now: Instant);

    /// Called at least every 10 ms under load and whenever [`Application::poll_timeout`] has passed.
    fn handle_timeout<E: Egress>(&mut self, egress: &mut E, now: Instant);

    /// When [`Application::handle_timeout`] wants to be called next; O(1).
    fn poll_timeout(&self) -> Option<Instant>;

    /// Called after each batch, outside the handler: sockets are opened and closed here. O(1) when there is nothing to do.
    fn maintain<I: Ingress, E: Egress>(&mut self, ingress: &mut I, egress: &mut E, now: Instant) -> Next;

    /// Sources whose reading stops while egress answers [`crate::egress::Flush::Waiting`] (a TUN device).
    fn slow_down<I: Ingress>(&mut self, ingress: &mut I, reading: bool);

    /// Called once when the program is told to stop, before the egress is drained: last words (a TURN Refresh of zero).
    fn stop<E: Egress>(&mut self, egress: &mut E, now: Instant);

    /// Packets the application itself lost, by cause.
    fn drops(&self) -> Drops;
}

/// Whether the loop goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Go on.
    Continue,
    /// Drain and return.
    Stop,
}
