//! The end of a relay's life: what is allocated goes on, and what is new is sent elsewhere.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use dataplane::stun::{AttributeType, Class, Key, Method, TransactionId};

use super::allocation::State;
use super::answers::{Refusal, TRY_ALTERNATE};
use super::reply::Envelope;
use super::rules::{Rule, Why};
use super::{ClientSocket, Command, FromClient, Server};

/// How often clients are told again.
const HINT_INTERVAL: Duration = Duration::from_secs(4);

/// One address of each family at most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Families {
    v4: Option<SocketAddr>,
    v6: Option<SocketAddr>,
}

impl Families {
    /// The first address of each.
    fn new(addresses: &[SocketAddr]) -> Self {
        let first = |is_ipv4| addresses.iter().copied().find(|address| address.is_ipv4() == is_ipv4);
        Self { v4: first(true), v6: first(false) }
    }

    fn iter(self) -> impl Iterator<Item = SocketAddr> {
        self.v4.into_iter().chain(self.v6)
    }
}

/// Where clients are sent while the relay drains. Who came over TLS goes on over TLS (RFC 8489 section 10), so that these are
/// sent elsewhere than all others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Alternates {
    plain: Families,
    tls: Families,
    tls_name: Option<Arc<str>>,
}

/// Where one client is sent.
struct Redirection<'a> {
    /// What it can reach as it reaches this relay.
    own: SocketAddr,
    /// Of the other family.
    other: Option<SocketAddr>,
    /// The name in the certificate.
    name: Option<&'a str>,
}

impl Alternates {
    /// The first address of each family, for clients over UDP and TCP.
    #[must_use]
    pub fn new(addresses: &[SocketAddr]) -> Self {
        Self { plain: Families::new(addresses), ..Self::default() }
    }

    /// The same, and the first address of each family for clients over TLS, with the name that the certificate there has, where
    /// it is not this relay's.
    #[must_use]
    pub fn with_tls(self, addresses: &[SocketAddr], name: Option<Arc<str>>) -> Self {
        Self { tls: Families::new(addresses), tls_name: name, ..self }
    }

    /// Those for clients over UDP and TCP, IPv4 first.
    pub fn iter(&self) -> impl Iterator<Item = SocketAddr> {
        self.plain.iter()
    }

    /// Those for clients over TLS, IPv4 first.
    pub fn tls(&self) -> impl Iterator<Item = SocketAddr> {
        self.tls.iter()
    }

    /// The name in the certificate there.
    #[must_use]
    pub fn tls_name(&self) -> Option<&str> {
        self.tls_name.as_deref()
    }

    /// The alternate a client can reach as it reaches this relay, and then that of the other family (RFC 8489
    /// section 10): without the first, there is no redirection.
    fn for_client(&self, client: IpAddr, is_tls: bool) -> Option<Redirection<'_>> {
        let (Families { v4, v6 }, name) =
            if is_tls { (self.tls, self.tls_name()) } else { (self.plain, None) };
        let (own, other) = if client.is_ipv4() { (v4, v6) } else { (v6, v4) };
        Some(Redirection { own: own?, other, name })
    }
}

impl Server {
    /// From now on nobody can allocate: 300 with ALTERNATE-SERVER where there is an alternate for the client's transport and
    /// family, else 508. Allocations go on as before. Clients that understand it, which are Towpath's, are told to ask: the
    /// same 300 answers their Refresh, and the allocation goes on until they have left by themselves.
    pub fn drain(&mut self, alternates: Alternates, now: Instant) {
        self.draining = Some(alternates);
        self.hint_all(now);
    }

    /// Has every such client with an alternate told. A hint may be lost, and who has left gets no more of them.
    pub(super) fn hint_all(&mut self, now: Instant) {
        let mut hints = Vec::new();
        for (_, allocation) in self.table.iter_mut() {
            if allocation.is_towpath && allocation.state == State::Live {
                hints.push(allocation.client);
            }
        }
        for client in hints {
            if self.is_redirected(&client) {
                self.commands.push_back(Command::Hint(client));
            }
        }
        self.hint_at = Some(now + HINT_INTERVAL);
    }

    /// Writes a Binding indication, which asks for no answer (RFC 8489 section 6.3.2), as the reply: the client shall ask how
    /// things stand. Anybody can send one, so that it says nothing else.
    pub fn hint(&mut self) {
        let transaction = TransactionId(self.random.bytes());
        let envelope = Envelope { method: Method::Binding, transaction, with_fingerprint: false };
        self.replies.answer(envelope, Class::Indication, None, |_| {});
    }

    /// Whether a client that asks is sent elsewhere.
    pub(super) fn is_redirected(&self, client: &ClientSocket) -> bool {
        let is_tls = self.is_tls(client);
        self.draining
            .as_ref()
            .is_some_and(|alternates| alternates.for_client(client.address.ip(), is_tls).is_some())
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
            Some(_) if self.is_redirected(client) => Err(Why::quota(Rule::Redirected).into()),
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
        let is_tls = self.is_tls(client);
        let redirection =
            self.draining.as_ref().and_then(|alternates| alternates.for_client(client.address.ip(), is_tls));
        self.replies.answer(envelope, Class::Error, Some(key), |writer| {
            writer.error_code(TRY_ALTERNATE, "");
            let Some(Redirection { own, other, name }) = redirection else { return };
            writer.alternate_server(own);
            if let Some(other) = other {
                writer.alternate_server(other);
            }
            if let Some(name) = name {
                writer.attribute(AttributeType::ALTERNATE_DOMAIN, name.as_bytes());
            }
        });
        FromClient::Reply
    }
}
