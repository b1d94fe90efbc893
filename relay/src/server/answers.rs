//! What is written back to clients: every success, every refusal and every challenge.

use dataplane::stun::message::UnknownAttributes;
use dataplane::stun::{AttributeType, BadAttribute, Class, ErrorCode, Key, Message, Method};

use super::reply::Envelope;
use super::requests::KNOWN;
use super::rules::Why;
use super::{ClientSocket, FromClient, Pair, Server};

pub(super) const TRY_ALTERNATE: ErrorCode = ErrorCode(300);
pub(super) const BAD_REQUEST: ErrorCode = ErrorCode(400);
pub(super) const UNAUTHORIZED: ErrorCode = ErrorCode(401);
pub(super) const UNKNOWN_ATTRIBUTE: ErrorCode = ErrorCode(420);
pub(super) const ALLOCATION_MISMATCH: ErrorCode = ErrorCode(437);
pub(super) const STALE_NONCE: ErrorCode = ErrorCode(438);
pub(super) const FAMILY_NOT_SUPPORTED: ErrorCode = ErrorCode(440);
pub(super) const WRONG_CREDENTIALS: ErrorCode = ErrorCode(441);
pub(super) const TRANSPORT_NOT_SUPPORTED: ErrorCode = ErrorCode(442);
pub(super) const PEER_FAMILY_MISMATCH: ErrorCode = ErrorCode(443);
pub(super) const INSUFFICIENT_CAPACITY: ErrorCode = ErrorCode(508);

/// A request that fails after it was found authentic.
pub(super) struct Refusal {
    pub code: ErrorCode,
    pub unknown: UnknownAttributes,
    /// The rule of the operator's that it broke, if it did.
    pub why: Option<Why>,
}

impl From<ErrorCode> for Refusal {
    fn from(code: ErrorCode) -> Self {
        Self { code, unknown: UnknownAttributes::default(), why: None }
    }
}

impl From<Why> for Refusal {
    fn from(why: Why) -> Self {
        Self { why: Some(why), ..why.rule.code().into() }
    }
}

impl From<BadAttribute> for Refusal {
    fn from(_: BadAttribute) -> Self {
        BAD_REQUEST.into()
    }
}

impl Server {
    pub(super) fn answer_binding(
        &mut self,
        envelope: Envelope,
        client: &ClientSocket,
        message: &Message<'_>,
    ) -> FromClient {
        let unknown = message.unknown_required(KNOWN);
        if !unknown.is_empty() {
            return self.answer_error(envelope, None, Refusal { unknown, ..UNKNOWN_ATTRIBUTE.into() });
        }
        self.replies.answer(envelope, Class::Success, None, |writer| {
            writer.xor_mapped_address(client.address);
        });
        FromClient::Reply
    }

    /// 401 and 438: how to do it right (RFC 8489 section 9.2.4). Nothing that could be left out is in it: it is what a
    /// spoofed request sends to its victim.
    pub(super) fn answer_challenge(
        &mut self,
        envelope: Envelope,
        client: &ClientSocket,
        code: ErrorCode,
    ) -> FromClient {
        self.refusals.count(code);
        let offer = self.credentials.offer();
        let nonce = self.nonces.issue(client.address, offer);
        let realm = self.credentials.realm().as_bytes();
        self.replies.answer(envelope, Class::Error, None, |writer| {
            writer.error_code(code, "").realm(realm).nonce(&nonce);
            let algorithms = offer.algorithms();
            if !algorithms.is_empty() {
                writer.password_algorithms(algorithms);
            }
        });
        FromClient::Reply
    }

    /// Without a reason phrase: it would only make answers longer than requests.
    pub(super) fn answer_error(
        &mut self,
        envelope: Envelope,
        key: Option<&Key>,
        refusal: Refusal,
    ) -> FromClient {
        self.refusals.count(refusal.code);
        self.replies.answer(envelope, Class::Error, key, |writer| {
            writer.error_code(refusal.code, "");
            if !refusal.unknown.is_empty() {
                writer.unknown_attributes(refusal.unknown.as_slice());
            }
        });
        FromClient::Reply
    }

    pub(super) fn answer_success(
        &mut self,
        envelope: Envelope,
        key: &Key,
        lifetime_s: Option<u32>,
    ) -> FromClient {
        self.replies.answer(envelope, Class::Success, Some(key), |writer| {
            if let Some(seconds) = lifetime_s {
                writer.lifetime(seconds);
            }
        });
        FromClient::Reply
    }

    /// The answer to the Allocate that made one allocation or two; the same each time.
    pub(super) fn answer_allocated(&mut self, pair: Pair) {
        let Some(allocation) = self.table.get(pair.first) else { return };
        let second = pair.second.and_then(|id| self.table.get(id));
        let envelope = Envelope {
            method: Method::Allocate,
            transaction: allocation.transaction,
            with_fingerprint: allocation.with_fingerprint,
        };
        let key = allocation.answer.schedule();
        let first = self.public(allocation.relayed);
        let second = second.map(|second| self.public(second.relayed));
        self.replies.answer(envelope, Class::Success, Some(&key), |writer| {
            writer.xor_relayed_address(first);
            if let Some(second) = second {
                writer.xor_relayed_address(second);
            }
            writer.lifetime(allocation.lifetime_s).xor_mapped_address(allocation.client.address);
            if let Some(token) = allocation.reservation {
                writer.reservation_token(token);
            }
            if let Some(refused) = allocation.refused {
                writer.attribute(AttributeType::ADDRESS_ERROR_CODE, &refused.value());
            }
        });
    }
}
