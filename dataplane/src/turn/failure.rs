//! What a TURN server's refusal means to the person who has to mend it (RFC 8656 section 19).

use std::net::SocketAddr;

use super::transaction::Request;
use crate::stun::ErrorCode;

/// The server wants credentials, or refuses those it got.
pub(super) const UNAUTHENTICATED: ErrorCode = ErrorCode(401);
/// Another server should be asked (RFC 8489 section 10).
pub(super) const TRY_ALTERNATE: ErrorCode = ErrorCode(300);
/// There is no room for another allocation.
pub(super) const INSUFFICIENT_CAPACITY: ErrorCode = ErrorCode(508);
/// The allocation is not (or already) there.
pub(super) const ALLOCATION_MISMATCH: ErrorCode = ErrorCode(437);
/// The nonce has expired; the response has a new one.
pub(super) const STALE_NONCE: ErrorCode = ErrorCode(438);

/// One sentence: what was refused and what to do about it.
pub(super) fn reason(server: SocketAddr, request: Request, code: ErrorCode) -> String {
    let what = match request {
        Request::Allocate { .. } => "an allocation".to_owned(),
        Request::Refresh | Request::Delete => "to refresh the allocation".to_owned(),
        Request::CreatePermission { peer } => format!("a permission for peer {peer}"),
        Request::ChannelBind { peer, .. } => format!("a channel to peer {peer}"),
    };
    let number = code.0;
    format!("relay {server} refuses {what} ({number}): {}", remedy(request, code))
}

/// User name or password are wrong.
pub(super) fn wrong_credentials(server: SocketAddr, username: &str) -> String {
    format!(
        "relay {server} refuses user {username:?} (401): check RelayUsername and the password in RelayPasswordFile"
    )
}

/// Nobody answered seven requests in 39.5 s.
pub(super) fn no_answer(server: SocketAddr, request: Request) -> String {
    let method = request.method();
    format!(
        "relay {server} does not answer {method:?}: check that it runs, its address and port, and that UDP passes firewalls"
    )
}

fn remedy(request: Request, code: ErrorCode) -> &'static str {
    let is_about_peer = matches!(request, Request::CreatePermission { .. } | Request::ChannelBind { .. });
    match code.0 {
        // Not what the same code says of an allocation.
        486 | 508 if is_about_peer => {
            "it takes no more peers of one client, or no more at once: raise that on the relay (towpath-relay: \
             --channels-max and --permissions-max, --new-peers-per-user)"
        }
        300 => "it names another server: configure that one as Relay",
        400 => "it finds the request malformed: check that it speaks RFC 8656 and look at its log",
        403 => "its policy forbids it: allow the peer on the relay (towpath-relay: --allow-peer)",
        437 => {
            "it holds an older allocation for this address and port, which is deleted now or expires within an hour; \
             another ListenPort works at once"
        }
        440 => "it has no addresses of the family asked for: use a peer address of the other family",
        441 => "another user's allocation is on this address and port: use another ListenPort",
        442 => "it does not relay UDP: use another relay",
        443 => {
            "the peer is of the other address family than the relayed address: use an address of the same family"
        }
        486 => "the user's quota is used up: close other sessions or raise the quota on the relay",
        508 => "it has no free port: widen its port range (towpath-relay: --relay-ports)",
        500..600 => "it has an internal error: look at its log",
        _ => "look at the relay's log",
    }
}
