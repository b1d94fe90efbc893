//! How many connections there may be, in all and from one address.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use foldhash::fast::RandomState;

use super::ends::End;

/// Least bytes that may wait for one client, however many there are: the longest message (65,540 bytes) has to fit.
pub const QUEUE_BYTES_MIN: usize = 66 * 1024;

/// Bounds on what clients on streams may take up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Most connections in all.
    pub connections_max: u32,
    /// Most connections from one address; of IPv6, from one /64, which is what one subscriber has.
    pub per_address_max: u32,
    /// Most bytes that wait for one client.
    pub queue_bytes: usize,
    /// Most bytes that wait for all of them together; enough for [`QUEUE_BYTES_MIN`] of each.
    pub queues_bytes: usize,
}

impl Limits {
    /// Most bytes that wait for each of so many clients: an equal part of what there is for all, where that is less than one
    /// may have at most.
    #[must_use]
    pub fn queue_bytes_of_each(&self, connections: u32) -> usize {
        let part = self.queues_bytes / connections.max(1) as usize;
        self.queue_bytes.min(part.max(QUEUE_BYTES_MIN))
    }
}

/// The connections there are, those of other workers included: asked when one comes and when one goes.
#[derive(Clone, Debug)]
pub(super) struct Admission(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    book: Mutex<Book>,
    /// The total of the book, to be read without it.
    total: AtomicU32,
}

/// It has an entry for each address with a connection, and no others.
#[derive(Debug)]
struct Book {
    limits: Limits,
    total: u32,
    by_address: HashMap<IpAddr, u32, RandomState>,
}

impl Admission {
    pub fn new(limits: Limits) -> Self {
        let book = Mutex::new(Book { limits, total: 0, by_address: HashMap::default() });
        Self(Arc::new(Shared { book, total: AtomicU32::new(0) }))
    }

    /// Connections of all workers.
    pub fn total(&self) -> u32 {
        self.0.total.load(Ordering::Relaxed)
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.0.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Most connections in all.
    pub fn limit(&self) -> u32 {
        self.book().limits.connections_max
    }

    /// Takes other limits, for connections that come from now on.
    pub fn reconfigure(&self, limits: Limits) {
        self.book().limits = limits;
    }

    /// Takes a connection in.
    ///
    /// # Errors
    /// Why it has to be refused.
    pub fn admit(&self, from: IpAddr) -> Result<(), End> {
        let mut book = self.book();
        if book.total >= book.limits.connections_max {
            return Err(End::RefusedTotal);
        }
        let subscriber = subscriber(from);
        let count = book.by_address.get(&subscriber).copied().unwrap_or(0);
        if count >= book.limits.per_address_max {
            return Err(End::RefusedAddress);
        }
        book.by_address.insert(subscriber, count + 1);
        book.total += 1;
        self.0.total.store(book.total, Ordering::Relaxed);
        Ok(())
    }

    /// A connection that was taken in is gone.
    pub fn release(&self, from: IpAddr) {
        let subscriber = subscriber(from);
        let mut book = self.book();
        book.total -= 1;
        self.0.total.store(book.total, Ordering::Relaxed);
        let Some(count) = book.by_address.get_mut(&subscriber) else {
            debug_assert!(false, "released more often than admitted");
            return;
        };
        *count -= 1;
        if *count == 0 {
            book.by_address.remove(&subscriber);
        }
    }
}

/// Who shares one bound.
fn subscriber(from: IpAddr) -> IpAddr {
    match from {
        IpAddr::V4(_) => from,
        IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() >> 64 << 64)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn each_address_and_all_together_have_their_bound() {
        let limits = Limits { connections_max: 5, per_address_max: 2, queue_bytes: 0, queues_bytes: 0 };
        let admission = Admission::new(limits);
        for from in ["192.0.2.1", "192.0.2.1", "2001:db8::1"] {
            assert_eq!(admission.admit(ip(from)), Ok(()));
        }
        assert_eq!(admission.admit(ip("192.0.2.1")), Err(End::RefusedAddress));
        assert_eq!(admission.admit(ip("2001:db8::2")), Ok(()));
        assert_eq!(admission.admit(ip("2001:db8::3:0:0:1")), Err(End::RefusedAddress));
        assert_eq!(admission.admit(ip("2001:db8:0:1::1")), Ok(()));
        assert_eq!((admission.admit(ip("192.0.2.9")), admission.total()), (Err(End::RefusedTotal), 5));
        admission.release(ip("2001:db8::1"));
        assert_eq!(admission.admit(ip("192.0.2.1")), Err(End::RefusedAddress));
        admission.release(ip("192.0.2.1"));
        assert_eq!(admission.admit(ip("192.0.2.1")), Ok(()));
    }

    #[test]
    fn nothing_is_kept_of_addresses_without_connections() {
        let limits = Limits { connections_max: 10, per_address_max: 2, queue_bytes: 0, queues_bytes: 0 };
        let admission = Admission::new(limits);
        for host in 0..=255 {
            let from = IpAddr::from([192, 0, 2, host]);
            assert_eq!(admission.admit(from), Ok(()));
            admission.release(from);
        }
        assert!(admission.book().by_address.is_empty());
        assert_eq!(admission.total(), 0);
    }

    #[test]
    fn the_parts_of_all_are_never_more_than_there_is() {
        let limits = Limits {
            connections_max: 10_000,
            per_address_max: 1,
            queue_bytes: 256 * 1024,
            queues_bytes: 768 * 1024 * 1024,
        };
        assert_eq!(limits.queue_bytes_of_each(0), limits.queue_bytes);
        for connections in [1, 100, 3_072, 3_073, 9_999, 10_000] {
            let each = limits.queue_bytes_of_each(connections);
            assert!(each * connections as usize <= limits.queues_bytes, "{each} of {connections}");
            assert_eq!(each == limits.queue_bytes, connections <= 3_072, "{connections}");
            assert!(each >= QUEUE_BYTES_MIN);
        }
    }
}
