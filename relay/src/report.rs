//! What went wrong, in the log: one line for each cause and error code every ten seconds at most for all workers, never per
//! packet.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use dataplane::drops::Drops;

use crate::server::rules::Refused;
use crate::server::{PeerSocket, Server};

/// How often a line may be repeated.
const INTERVAL: Duration = Duration::from_secs(10);

/// What all workers have to tell and is not logged yet.
#[derive(Debug)]
pub struct Tally {
    /// When the next lines may come.
    next: Option<Instant>,
    news: News,
    /// Workers that have not finished.
    workers: usize,
}

impl Tally {
    /// Of so many workers.
    #[must_use]
    pub fn of(workers: usize) -> Arc<Mutex<Self>> {
        Arc::new(Mutex::new(Self { next: None, news: News::default(), workers }))
    }

    fn log(&mut self, now: Instant) {
        let news = std::mem::take(&mut self.news);
        // Without news no loop need wake for this.
        self.next = (!news.is_empty()).then(|| now + INTERVAL);
        news.log();
    }
}

/// What has happened since it was told last.
#[derive(Debug, Default)]
struct News {
    drops: Drops,
    refusals: BTreeMap<u16, u64>,
    port_conflicts: u64,
    last_conflict: Option<(SocketAddr, PeerSocket)>,
}

impl News {
    fn is_empty(&self) -> bool {
        self.drops.total() == 0 && self.refusals.is_empty() && self.port_conflicts == 0
    }

    fn merge(&mut self, other: Self) {
        self.drops.merge(&other.drops);
        for (code, requests) in other.refusals {
            *self.refusals.entry(code).or_default() += requests;
        }
        self.port_conflicts += other.port_conflicts;
        self.last_conflict = other.last_conflict.or(self.last_conflict);
    }

    fn log(&self) {
        for (cause, packets) in self.drops.iter() {
            tracing::warn!(cause = cause.name(), packets, "packets lost");
        }
        for (&code, &requests) in &self.refusals {
            tracing::info!(code, requests, reason = reason(code), "requests refused");
        }
        if let (requests @ 1.., Some((relayed, peer))) = (self.port_conflicts, self.last_conflict) {
            tracing::warn!(
                requests,
                port = relayed.port(),
                peer = %peer.0,
                "permissions refused with 508: another client on the same relayed port has this peer; a wider --relay-ports helps"
            );
        }
    }
}

/// One worker's part of it.
#[derive(Debug)]
pub struct Report {
    tally: Arc<Mutex<Tally>>,
    /// When this worker looks again whether it is time for what it told too early.
    next: Option<Instant>,
    /// What it has told so far.
    drops: Drops,
    refusals: Vec<(u16, u64)>,
    port_conflicts: u64,
}

impl Default for Report {
    fn default() -> Self {
        Self::to(Tally::of(1))
    }
}

impl Report {
    /// Of one worker, to what is logged for all.
    #[must_use]
    pub fn to(tally: Arc<Mutex<Tally>>) -> Self {
        Self { tally, next: None, drops: Drops::default(), refusals: Vec::new(), port_conflicts: 0 }
    }

    /// Tells what has happened since the last time, and logs what all have told, if it is time.
    pub fn handle_timeout(&mut self, drops: &Drops, server: &Server, now: Instant) {
        if self.next.is_some_and(|next| now < next) {
            return;
        }
        let news = self.news(drops, server);
        if self.next.is_none() && news.is_empty() {
            return;
        }
        let mut tally = self.tally.lock().unwrap_or_else(PoisonError::into_inner);
        tally.news.merge(news);
        if tally.next.is_none_or(|next| now >= next) {
            tally.log(now);
        }
        self.next = tally.next;
    }

    /// Tells what has happened since the last time, at the end. The last worker logs it, whenever the last lines were.
    pub fn finish(&mut self, drops: &Drops, server: &Server) {
        let news = self.news(drops, server);
        let mut tally = self.tally.lock().unwrap_or_else(PoisonError::into_inner);
        tally.news.merge(news);
        tally.workers -= 1;
        if tally.workers == 0 {
            tally.news.log();
        }
    }

    fn news(&mut self, drops: &Drops, server: &Server) -> News {
        let mut news = News::default();
        for (cause, packets) in drops.iter() {
            news.drops.add(cause, packets - self.drops.get(cause));
        }
        for (code, requests) in server.refusals() {
            let before =
                self.refusals.iter().find(|&&(known, _)| known == code).map_or(0, |&(_, count)| count);
            if requests > before {
                news.refusals.insert(code, requests - before);
            }
        }
        let (conflicts, last) = server.port_conflicts();
        (news.port_conflicts, news.last_conflict) = (conflicts - self.port_conflicts, last);
        if !news.is_empty() {
            self.drops = drops.clone();
            self.refusals = server.refusals().collect();
            self.port_conflicts = conflicts;
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
