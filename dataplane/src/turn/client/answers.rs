//! What the server's answers do to the client.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::{
    Allocation, BACKOFF_MAX, BACKOFF_MIN, Client, Event, Input, LASTED, LIFETIME_DEFAULT, REFRESH_MIN,
    STALE_NONCES_MAX, Transaction, failure,
};
use crate::drops::Cause;
use crate::stun::{AttributeType, Class, ErrorCode, Message};
use crate::turn::transaction::Request;

/// When a server that wants us elsewhere is asked again, while there is nowhere else.
const AGAIN: Duration = Duration::from_secs(60);

/// The server that a refusal names. Whoever is on the way could name another; unsigned, it is only a refusal.
fn alternate(message: &Message<'_>) -> Option<SocketAddr> {
    message.has_integrity().then(|| message.address(AttributeType::ALTERNATE_SERVER).ok().flatten())?
}

impl Client {
    pub(super) fn handle_response(&mut self, message: &Message<'_>, now: Instant) -> Input {
        let position = self.transactions.iter().position(|transaction| {
            transaction.id == message.transaction() && transaction.request.method() == message.method()
        });
        // The answer to a request that was answered already, or given up.
        let Some(position) = position else { return Input::Consumed };
        let success = message.class() == Class::Success;
        // A success must be signed when the request was; a refusal need not be, a signed one must be right
        // (RFC 8489 section 9.2.5).
        let must_be_right = (success && self.transactions[position].signed) || message.has_integrity();
        let is_right = || self.credentials.as_ref().is_some_and(|credentials| credentials.verify(message));
        if must_be_right && !is_right() {
            return Input::Ignored(Cause::Unauthenticated);
        }
        let transaction = self.transactions.swap_remove(position);
        self.watch.heard(now);
        if success {
            self.handle_success(transaction.request, message, now);
        } else {
            // A refusal without a readable code is one all the same.
            let code = message.error_code().ok().flatten().unwrap_or(ErrorCode(500));
            self.handle_refusal(&transaction, code, message, now);
        }
        self.advance(now);
        Input::Consumed
    }

    fn handle_success(&mut self, request: Request, message: &Message<'_>, now: Instant) {
        match request {
            Request::Allocate { .. } => {
                let Ok(Some(relayed)) = message.xor_relayed_address() else {
                    self.lose(
                        format!("relay {} names no relayed address: use another relay", self.server),
                        now,
                    );
                    return;
                };
                self.establish(message, now);
                (self.port, self.away) = (relayed.port(), false);
                self.backoff = BACKOFF_MIN;
                self.last_reason = None;
                let mapped = message.xor_mapped_address().ok().flatten();
                self.events.push_back(Event::Allocated { relayed, mapped });
            }
            Request::Refresh => self.establish(message, now),
            Request::Delete => {}
            Request::CreatePermission { peer } => self.permissions.grant(peer, now),
            Request::ChannelBind { number, peer } => {
                let jitter = self.jitter(Duration::from_secs(60));
                if self.channels.confirm(number, jitter, now) {
                    self.events.push_back(Event::ChannelBound { peer, number });
                }
                if self.channels.bound(peer) == Some(number) {
                    self.permissions.grant(peer.ip(), now);
                }
            }
        }
    }

    /// The allocation is good for another lifetime; refreshed at half of it.
    fn establish(&mut self, message: &Message<'_>, now: Instant) {
        let lifetime = message.lifetime().ok().flatten();
        let lifetime = lifetime.map_or(LIFETIME_DEFAULT, |seconds| Duration::from_secs(seconds.into()));
        let lifetime = lifetime.max(2 * REFRESH_MIN);
        let since = match self.allocation {
            Allocation::Established { since, .. } => since,
            _ => now,
        };
        self.urgent_until = None;
        self.allocation = Allocation::Established {
            since,
            refresh_at: Some(now + lifetime / 2),
            expires_at: now + lifetime,
        };
    }

    fn handle_refusal(
        &mut self,
        transaction: &Transaction,
        code: ErrorCode,
        message: &Message<'_>,
        now: Instant,
    ) {
        let request = transaction.request;
        let again = match code {
            failure::UNAUTHENTICATED if transaction.signed => {
                self.lose(failure::wrong_credentials(self.server, &self.username), now);
                self.events.push_back(Event::Unauthorized);
                return;
            }
            failure::UNAUTHENTICATED => Some(0),
            failure::STALE_NONCE if transaction.stale_nonces < STALE_NONCES_MAX => {
                Some(transaction.stale_nonces + 1)
            }
            _ => None,
        };
        let challenged = again.is_some()
            && self.credentials.as_mut().is_some_and(|credentials| credentials.take_challenge(message));
        if let (true, Some(stale_nonces)) = (challenged, again) {
            // What is preferred may have been said since.
            let allocates = matches!(request, Request::Allocate { .. });
            self.start(if allocates { self.allocate() } else { request }, stale_nonces, now);
            return;
        }
        let reason = failure::reason(self.server, request, code);
        match request {
            _ if code == failure::ALLOCATION_MISMATCH => {
                if let Request::Allocate { .. } = request {
                    // Most likely our own, from before a restart; then this deletes it.
                    self.transmit_delete();
                }
                let lasted = self.lasted(now);
                self.lose(reason, now);
                if lasted {
                    // The server was started again.
                    self.allocation = Allocation::Absent { retry_at: now };
                    self.hurry(now);
                }
            }
            // The server serves us until we have gone: the allocation stays.
            Request::Refresh if code == failure::TRY_ALTERNATE && alternate(message).is_some() => {
                self.events.push_back(Event::Unusable { alternate: alternate(message) });
                if let Allocation::Established { refresh_at, .. } = &mut self.allocation {
                    *refresh_at = Some(now + AGAIN);
                }
            }
            Request::Allocate { .. } | Request::Refresh | Request::Delete => {
                self.lose(reason, now);
                if matches!(code, failure::TRY_ALTERNATE | failure::INSUFFICIENT_CAPACITY) {
                    let alternate = alternate(message);
                    self.events.push_back(Event::Unusable { alternate });
                }
            }
            Request::CreatePermission { peer } => {
                self.permissions.refuse(peer, now);
                self.report(reason);
            }
            Request::ChannelBind { number, peer } => {
                self.channels.refuse(number, code, now);
                // Also of one that was never bound: where the peer was heard of before, it is taken to be reached so.
                self.events.push_back(Event::ChannelLost { peer });
                self.report(reason);
            }
        }
    }

    /// Gives the allocation up and tries again after a pause.
    pub(super) fn lose(&mut self, reason: String, now: Instant) {
        if let Allocation::Established { .. } = self.allocation {
            self.events.push_back(Event::Deallocated);
        }
        self.away = false;
        for peer in self.channels.reset(now) {
            self.events.push_back(Event::ChannelLost { peer });
        }
        self.permissions.reset(now);
        self.transactions.clear();
        if let Some(credentials) = &mut self.credentials {
            credentials.forget_challenge();
        }
        // Three quarters to five quarters: clients that lost the same relay do not return in step.
        let pause = self.backoff * 3 / 4 + self.jitter(self.backoff / 2);
        self.allocation = Allocation::Absent { retry_at: now + pause };
        self.backoff = (self.backoff * 2).min(BACKOFF_MAX);
        self.report(reason);
    }

    /// Whether the allocation is older than the blink of an eye.
    pub(super) fn lasted(&self, now: Instant) -> bool {
        matches!(self.allocation, Allocation::Established { since, .. }
            if now.saturating_duration_since(since) >= LASTED)
    }

    pub(super) fn report(&mut self, reason: String) {
        if self.last_reason.as_ref() != Some(&reason) {
            self.last_reason = Some(reason.clone());
            self.events.push_back(Event::Failed { reason });
        }
    }
}
