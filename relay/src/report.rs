//! What went wrong, in the log: one line for each cause and error code every ten seconds at most, never per packet.

use std::time::{Duration, Instant};

use dataplane::drops::Drops;

use crate::server::Server;
use crate::server::rules::Refused;

/// How often a line may be repeated.
const INTERVAL: Duration = Duration::from_secs(10);

/// What has been logged so far.
#[derive(Debug, Default)]
pub struct Report {
    next: Option<Instant>,
    drops: Drops,
    refusals: Vec<(u16, u64)>,
    port_conflicts: u64,
}

impl Report {
    /// Logs what has happened since the last time, if it is time.
    pub fn handle_timeout(&mut self, drops: &Drops, server: &Server, now: Instant) {
        if self.next.is_some_and(|next| now < next) {
            return;
        }
        // Without news the loop need not wake for this.
        self.next = self.finish(drops, server).then(|| now + INTERVAL);
    }

    /// Logs what has happened since the last time, whenever that was: called once more at the end. The answer is whether
    /// there was anything.
    pub fn finish(&mut self, drops: &Drops, server: &Server) -> bool {
        let mut news = false;
        for (cause, packets) in drops.iter() {
            let new = packets - self.drops.get(cause);
            if new > 0 {
                news = true;
                tracing::warn!(cause = cause.name(), packets = new, "packets lost");
            }
        }
        for (code, requests) in server.refusals() {
            let before =
                self.refusals.iter().find(|&&(known, _)| known == code).map_or(0, |&(_, count)| count);
            let new = requests - before;
            if new > 0 {
                news = true;
                tracing::info!(code, requests = new, reason = reason(code), "requests refused");
            }
        }
        let (conflicts, last) = server.port_conflicts();
        if let (new @ 1.., Some((relayed, peer))) = (conflicts - self.port_conflicts, last) {
            news = true;
            self.port_conflicts = conflicts;
            tracing::warn!(
                requests = new,
                port = relayed.port(),
                peer = %peer.0,
                "permissions refused with 508: another client on the same relayed port has this peer; a wider --relay-ports helps"
            );
        }
        if news {
            self.drops = drops.clone();
            self.refusals = server.refusals().collect();
        }
        news
    }

    /// When there may be something to log. Only set while there was something last time: the driver calls in every
    /// 10 ms under load anyway.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.next
    }
}

/// Logs each refusal that has not been told yet: which rule, for whom, and what would help.
pub fn log_refused(server: &mut Server) {
    while let Some(Refused { why, user, client }) = server.poll_refused() {
        let shown = |value: Option<String>| value.map(tracing::field::display);
        tracing::info!(
            code = why.rule.code().0,
            rule = why.rule.name(),
            range = shown(why.range.map(|range| range.to_string())),
            peer = shown(why.peer.map(|peer| peer.to_string())),
            user = %String::from_utf8_lossy(&user).escape_debug(),
            %client,
            reason = why.rule.remedy(),
            "refused"
        );
    }
}

/// What an error code means to an operator.
fn reason(code: u16) -> &'static str {
    match code {
        300 => "sent to the alternate server, because this one drains",
        400 => "malformed request, or a weakened offer, which a line that begins with \"refused\" tells",
        401 => "no or wrong credentials; each client's first request counts",
        403 => "peer not allowed; the lines that begin with \"refused\" name the rule",
        420 => "unknown attribute",
        437 => "no allocation, or one exists already",
        438 => "nonce too old or for another address",
        440 => "address family not available; --relay-address adds one",
        441 => "another user's allocation",
        442 => "only UDP can be relayed",
        443 => "peer of the other address family",
        486 => "user or source address has too many allocations",
        508 => "out of ports, sockets, allocations, permissions, channels or new peers, or draining",
        _ => "",
    }
}
