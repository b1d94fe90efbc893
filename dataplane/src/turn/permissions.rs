//! Which peers the server lets in, and until when (RFC 8656 section 9).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// A permission lasts 5 minutes (RFC 8656 section 9); it is asked for again before that.
const REFRESH_AFTER: Duration = Duration::from_secs(4 * 60);
/// How long a refused one waits.
const RETRY_AFTER: Duration = Duration::from_secs(60);
/// Most peers at a time; what RFC 8656 lets channels have.
const PERMISSIONS_MAX: usize = 4096;

struct Permission {
    /// Asked for by itself, not only as part of a channel.
    explicit: bool,
    granted: bool,
    /// When to ask; `None` while a request is in flight, or for a channel's until it is bound.
    due: Option<Instant>,
}

/// All permissions of an allocation.
#[derive(Default)]
pub(super) struct Permissions(BTreeMap<IpAddr, Permission>);

impl Permissions {
    /// Wants a permission; `false` when there are too many.
    pub(super) fn want(&mut self, peer: IpAddr, now: Instant) -> bool {
        if self.0.len() >= PERMISSIONS_MAX && !self.0.contains_key(&peer) {
            return false;
        }
        let permission =
            self.0.entry(peer).or_insert(Permission { explicit: true, granted: false, due: Some(now) });
        permission.explicit = true;
        true
    }

    /// A request for it succeeded, or one for a channel, which includes it (RFC 8656 section 12.2).
    pub(super) fn grant(&mut self, peer: IpAddr, now: Instant) {
        let permission =
            self.0.entry(peer).or_insert(Permission { explicit: false, granted: true, due: None });
        permission.granted = true;
        permission.due = Some(now + REFRESH_AFTER);
    }

    /// A request for it failed. The old grant runs out by itself.
    pub(super) fn refuse(&mut self, peer: IpAddr, now: Instant) {
        if let Some(permission) = self.0.get_mut(&peer) {
            permission.due = Some(now + RETRY_AFTER);
        }
    }

    /// Whether data from this peer is wanted.
    pub(super) fn holds(&self, peer: IpAddr) -> bool {
        self.0.get(&peer).is_some_and(|permission| permission.granted)
    }

    /// The channel that brought it is gone.
    pub(super) fn release(&mut self, peer: IpAddr) {
        if self.0.get(&peer).is_some_and(|permission| !permission.explicit) {
            self.0.remove(&peer);
        }
    }

    /// The allocation is gone: channels bring theirs again, the others have to be asked for.
    pub(super) fn reset(&mut self, now: Instant) {
        self.0.retain(|_, permission| permission.explicit);
        for permission in self.0.values_mut() {
            permission.granted = false;
            permission.due = Some(now);
        }
    }

    /// The next peer to ask for, marked as in flight.
    pub(super) fn take_due(&mut self, now: Instant) -> Option<IpAddr> {
        let (&peer, permission) =
            self.0.iter_mut().find(|(_, permission)| permission.due.is_some_and(|due| due <= now))?;
        permission.due = None;
        Some(peer)
    }

    pub(super) fn next_due(&self) -> Option<Instant> {
        self.0.values().filter_map(|permission| permission.due).min()
    }
}
