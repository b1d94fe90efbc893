//! The addresses of this machine: no client may reach them through the relay, those included that come while it runs.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use dataplane::netlink::{AddressWatch, Error, Handle};

/// Where containers come and go, addresses change all the time: they are read again no more often than this. The first
/// change after a pause is dealt with at once.
const INTERVAL: Duration = Duration::from_millis(100);

/// What is known of them, and how more is learnt. Both descriptors stay open, so that a sandbox need not allow new ones.
pub struct OwnAddresses {
    watch: AddressWatch,
    handle: Handle,
    has_changed: bool,
    not_before: Option<Instant>,
    failed: bool,
}

impl OwnAddresses {
    /// Reads the addresses for the first time and watches them from before that.
    ///
    /// # Errors
    /// When the kernel or a sandbox forbids it.
    pub fn open() -> Result<(Self, BTreeSet<IpAddr>), Error> {
        let watch = AddressWatch::open()?;
        let mut own =
            Self { watch, handle: Handle::open()?, has_changed: false, not_before: None, failed: false };
        let addresses = own.read()?;
        Ok((own, addresses))
    }

    fn read(&mut self) -> Result<BTreeSet<IpAddr>, Error> {
        Ok(self.handle.addresses()?.into_iter().map(|address| address.net.addr()).collect())
    }

    /// The descriptor is readable: something has changed.
    pub fn handle_ready(&mut self) {
        self.has_changed |= self.watch.take();
    }

    /// The addresses after a change, when it is time to look. Then the old ones are no longer true.
    pub fn poll(&mut self, now: Instant) -> Option<BTreeSet<IpAddr>> {
        if !self.has_changed || self.not_before.is_some_and(|at| now < at) {
            return None;
        }
        self.not_before = Some(now + INTERVAL);
        match self.read() {
            Ok(addresses) => {
                (self.has_changed, self.failed) = (false, false);
                Some(addresses)
            }
            Err(error) => {
                // Tried again after the interval; said once until it works again.
                if !std::mem::replace(&mut self.failed, true) {
                    tracing::warn!(%error, "the addresses of this machine have changed and cannot be read: new ones are not refused as peers");
                }
                None
            }
        }
    }

    /// When [`OwnAddresses::poll`] wants to be asked again.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.not_before.filter(|_| self.has_changed)
    }
}

impl AsFd for OwnAddresses {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.watch.as_fd()
    }
}

impl std::fmt::Debug for OwnAddresses {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OwnAddresses").field("has_changed", &self.has_changed).finish_non_exhaustive()
    }
}
