//! What every worker is to do, as it is now: a change takes the place of what was ordered before, so that nothing piles up
//! for a worker that is late.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustls::ServerConfig;

use crate::server::{Alternates, Settings};
use crate::stream::Limits;

/// Settings that have been read again.
#[derive(Debug)]
pub struct Reconfiguration {
    /// For the server.
    pub settings: Settings,
    /// For connections that come from now on.
    pub limits: Limits,
    /// Their certificate.
    pub tls: Option<Arc<ServerConfig>>,
}

/// Orders for all workers.
#[derive(Clone, Debug, Default)]
pub struct Orders {
    /// The settings in force, once they are others than those of the start.
    pub settings: Option<Arc<Reconfiguration>>,
    /// The addresses of this machine, once they have changed.
    pub machine: Option<Arc<BTreeSet<IpAddr>>>,
    /// Nobody allocates any more.
    pub drain: Option<Alternates>,
}

/// Where they are to be read.
#[derive(Debug, Default)]
pub(super) struct Board {
    orders: Mutex<(u64, Orders)>,
    /// Copy of the number, to be looked at for nothing.
    number: AtomicU64,
}

impl Board {
    /// Changes them; the answer is the number of the change.
    pub fn change(&self, change: impl FnOnce(&mut Orders)) -> u64 {
        let mut orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut orders.1);
        orders.0 += 1;
        self.number.store(orders.0, Ordering::Release);
        orders.0
    }

    /// The orders after this change, if there are any.
    pub fn changed_since(&self, seen: u64) -> Option<(u64, Orders)> {
        if self.number.load(Ordering::Acquire) == seen {
            return None;
        }
        Some(self.orders.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }
}
