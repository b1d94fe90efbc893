//! Clients over TCP and TLS on the engine: what is done for them where UDP clients have sockets of the egress.

use std::io;
use std::time::Instant;

use super::Relay;
use super::policing::ClientCache;
use crate::server::Listener;
use crate::server::figures::Volume;
use crate::stream::{Kind, Streams};
use dataplane::drops::Cause;
use dataplane::egress::Egress;
use dataplane::ingress::{Ingress, Meta, Token};

impl Relay {
    /// Serves clients over TCP and TLS, too.
    #[must_use]
    pub fn with_streams(mut self, streams: Streams) -> Self {
        self.streams = streams;
        self
    }

    /// The connections over TCP and TLS.
    #[must_use]
    pub fn streams(&self) -> &Streams {
        &self.streams
    }

    /// The same, to reconfigure them.
    pub fn streams_mut(&mut self) -> &mut Streams {
        &mut self.streams
    }

    pub(super) fn start_streams<I: Ingress>(&mut self, ingress: &mut I) -> io::Result<()> {
        // The server tells transports apart by the number of the listener, so these come behind those for UDP.
        let first = u16::try_from(self.listeners.len()).map_err(io::Error::other)?;
        self.streams.start(first, ingress)?;
        let tcp = self.streams.listen(Kind::Tcp).count() as u16;
        self.server.set_connections_from(Listener(first), Listener(first + tcp));
        for kind in [Kind::Tcp, Kind::Tls] {
            let listen: Vec<String> = self.streams.listen(kind).map(|address| address.to_string()).collect();
            if !listen.is_empty() && self.is_first() {
                tracing::info!(listen = listen.join(" "), "serves clients over {kind}");
            }
        }
        Ok(())
    }

    /// A source that is not read by the ingress.
    pub(super) fn handle_stream<E: Egress>(
        &mut self,
        token: Token,
        meta: Meta,
        egress: &mut E,
        now: Instant,
    ) {
        let Some(mut turn) = self.streams.handle(token, meta, now) else { return };
        let client = turn.client();
        let mut cache = ClientCache::default();
        while let Some(message) = turn.next_message() {
            cache.judge_anew();
            let load = Volume::of(message.len());
            match self.handle_segment(&client, message, load, &mut cache, egress, now) {
                Ok(()) => turn.note_useful(),
                Err(cause) => self.drops.count(cause),
            }
        }
        if turn.is_malformed() {
            self.drops.count(Cause::MalformedOuter);
        }
        self.count_channel_data(&mut cache);
        let is_known = self.server.find(&client, now).is_some();
        self.streams.finish(turn, is_known, now);
    }

    /// Closes connections that have ended, with their allocations, and takes new ones.
    pub(super) fn change_streams<I: Ingress>(&mut self, ingress: &mut I, now: Instant) {
        self.streams.accept(ingress, now);
        while let Some(client) = self.streams.close_next(ingress, &mut self.drops) {
            self.server.handle_disconnected(&client);
        }
    }

    /// Writes what the batch has come to.
    pub(super) fn write_streams<I: Ingress>(&mut self, ingress: &mut I, now: Instant) {
        self.streams.write(ingress, now);
        self.streams.register(ingress, now);
    }

    pub(super) fn stop_streams(&mut self) {
        self.streams.stop(&mut self.drops);
    }
}
