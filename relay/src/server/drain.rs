//! The end of a relay's life: what is allocated goes on, and what is new is sent elsewhere.

use std::net::{IpAddr, SocketAddr};

use dataplane::stun::{Class, Key};

use super::answers::{Refusal, TRY_ALTERNATE};
use super::reply::Envelope;
use super::rules::{Rule, Why};
use super::{ClientSocket, FromClient, Server};

/// Where clients are sent while the relay drains: one address of each family at most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Alternates {
    v4: Option<SocketAddr>,
    v6: Option<SocketAddr>,
}

impl Alternates {
    /// The first address of each family.
    #[must_use]
    pub fn new(addresses: &[SocketAddr]) -> Self {
        let first = |is_ipv4| addresses.iter().copied().find(|address| address.is_ipv4() == is_ipv4);
        Self { v4: first(true), v6: first(false) }
    }

    /// Those there are, IPv4 first.
    pub fn iter(&self) -> impl Iterator<Item = SocketAddr> {
        self.v4.into_iter().chain(self.v6)
    }

    /// The alternate a client can reach as it reaches this relay, and then that of the other family (RFC 8489
    /// section 10): without the first, there is no redirection.
    fn for_client(&self, client: IpAddr) -> Option<(SocketAddr, Option<SocketAddr>)> {
        let (own, other) = if client.is_ipv4() { (self.v4, self.v6) } else { (self.v6, self.v4) };
        own.map(|own| (own, other))
    }
}

impl Server {
    /// From now on nobody can allocate: 300 with ALTERNATE-SERVER where there is an alternate of the client's family, else
    /// 508. Allocations go on as before.
    pub fn drain(&mut self, alternates: Alternates) {
        self.draining = Some(alternates);
    }

    /// Whether [`Server::drain`] was called.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.draining.is_some()
    }

    /// What a request for a new allocation is refused with while the relay drains.
    pub(super) fn refuse_new(&self, client: &ClientSocket) -> Result<(), Refusal> {
        match &self.draining {
            None => Ok(()),
            Some(alternates) if alternates.for_client(client.address.ip()).is_some() => {
                Err(Why::quota(Rule::Redirected).into())
            }
            Some(_) => Err(Why::quota(Rule::Draining).into()),
        }
    }

    /// 300: the client is to try another server (RFC 8489 sections 10 and 14.15). It carries MESSAGE-INTEGRITY, without
    /// which clients ignore it: or anybody on the way could redirect them.
    pub(super) fn answer_alternate(
        &mut self,
        envelope: Envelope,
        client: &ClientSocket,
        key: &Key,
    ) -> FromClient {
        self.refusals.count(TRY_ALTERNATE);
        let alternates = self.draining.unwrap_or_default().for_client(client.address.ip());
        self.replies.answer(envelope, Class::Error, Some(key), |writer| {
            writer.error_code(TRY_ALTERNATE, "");
            if let Some((own, other)) = alternates {
                writer.alternate_server(own);
                if let Some(other) = other {
                    writer.alternate_server(other);
                }
            }
        });
        FromClient::Reply
    }
}
