//! Changing the configuration under live allocations.

use super::{Server, Settings};

impl Server {
    /// Applies `settings` as a whole, between two datagrams. Allocations go on, and with them the permissions and channels of
    /// peers that the new policy allows; those of others end at once. A user who is gone, or whose name was made with a
    /// secret that is gone, is answered 401 from now on, so that what they have ends by its own time at the latest; one with
    /// a new password needs that.
    ///
    /// Relay ports, whether they are shared, and the realm stay: they belong to sockets and keys that are in use.
    ///
    /// The time it takes grows with the number of users, and packets wait meanwhile: some milliseconds for ten thousand.
    pub fn reconfigure(&mut self, settings: Settings) {
        // Named one by one, so that a new setting cannot be forgotten here.
        let Settings {
            credentials,
            policy,
            relay_ports: _,
            relay_addresses,
            external,
            channel_numbers,
            allocations_max,
            allocations_per_user_max,
            limits,
            hairpin,
            port_sharing: _,
        } = settings;
        self.relay_addresses = relay_addresses;
        self.external = external;
        self.channel_numbers = channel_numbers;
        self.allocations_max = allocations_max;
        self.allocations_per_user_max = allocations_per_user_max;
        self.reflection.reconfigure(&limits);
        self.has_rates = limits.has_rates();
        self.limits = limits;
        self.hairpin = hairpin;
        self.credentials = credentials;
        let Self { credentials, users, .. } = self;
        users.retain_static(|name| credentials.has_user(name));
        self.set_policy(policy);
    }
}
