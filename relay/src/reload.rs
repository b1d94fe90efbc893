//! Reading the configuration again, beside the loop: a thread reads and checks files and makes keys, the loop only swaps.

use std::io;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread;

use dataplane::tunnel::apart::apart;
use rustls::ServerConfig;

use crate::admin::AdminChoice;
use crate::cli::{OwnSockets, settings, wall_clock};
use crate::config::{Args, Config, ConfigError};
use crate::life::DrainPlan;
use crate::secrets::Secrets;
use crate::server::Settings;
use crate::stream::Limits;

/// What a reload came to.
pub struct Reloaded {
    /// For the server.
    pub settings: Settings,
    /// For connections that come from now on.
    pub limits: Limits,
    /// Their certificate.
    pub tls: Option<Arc<ServerConfig>>,
    /// What SIGTERM will do.
    pub drain: DrainPlan,
    /// How many users there are.
    pub users: usize,
}

/// What the thread starts from: everything the program was started with.
#[derive(Debug)]
pub struct Source {
    /// The flags, which win over files at each reading as at the first.
    pub args: Args,
    /// What has been read once already.
    pub secrets: Secrets,
    /// The settings in force that cannot be changed.
    pub fixed: Fixed,
    /// Sockets that are never peers.
    pub own_sockets: OwnSockets,
}

/// Settings that belong to sockets and keys in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fixed {
    listen: Vec<SocketAddr>,
    listen_tcp: Vec<SocketAddr>,
    listen_tls: Vec<SocketAddr>,
    tcp_queue_bytes: usize,
    realm: String,
    relay_ports: RangeInclusive<u16>,
    /// What port-sharing comes to: it may be another number of ports or allocations that changes it.
    shares_ports: bool,
    workers: Option<u16>,
    admin: Option<AdminChoice>,
    admin_users: bool,
}

impl Fixed {
    /// Those of a configuration.
    #[must_use]
    pub fn of(config: &Config) -> Self {
        Self {
            listen: config.listen.clone(),
            listen_tcp: config.streams.tcp.clone(),
            listen_tls: config.streams.tls.clone(),
            tcp_queue_bytes: config.streams.limits.queue_bytes,
            realm: config.realm.0.clone(),
            relay_ports: config.relay_ports.clone(),
            shares_ports: config.shares_ports(),
            workers: config.workers,
            admin: config.admin,
            admin_users: config.admin_users,
        }
    }

    /// The names of those that are different in `other`.
    fn different(&self, other: &Self) -> impl Iterator<Item = &'static str> {
        let different = [
            ("listen", self.listen != other.listen),
            ("listen-tcp", self.listen_tcp != other.listen_tcp),
            ("listen-tls", self.listen_tls != other.listen_tls),
            ("tcp-queue-kib", self.tcp_queue_bytes != other.tcp_queue_bytes),
            ("realm", self.realm != other.realm),
            ("relay-ports", self.relay_ports != other.relay_ports),
            ("port-sharing", self.shares_ports != other.shares_ports),
            ("workers", self.workers != other.workers),
            ("admin", self.admin != other.admin),
            ("admin-users", self.admin_users != other.admin_users),
        ];
        different.into_iter().filter(|&(_, is_different)| is_different).map(|(name, _)| name)
    }
}

/// The loop's end of the thread.
#[derive(Debug)]
pub struct Reloader {
    requests: Sender<()>,
    results: Receiver<Result<Reloaded, ConfigError>>,
    /// A result is to come.
    under_way: bool,
    /// Another request came meanwhile: what is being read may be older than it.
    again: bool,
}

impl Reloader {
    /// Starts the thread. It owns `source`, and ends when this end is dropped. It inherits the signal mask, so that it has
    /// to be started when that is set.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(mut source: Source) -> io::Result<Self> {
        let (requests, wanted) = channel();
        let (sender, results) = channel();
        thread::Builder::new().name("towpath-reload".into()).spawn(move || {
            while wanted.recv().is_ok() {
                // What was read of secrets does not stay on the stack of a thread that may sleep for days.
                if sender.send(apart(|| source.read())).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { requests, results, under_way: false, again: false })
    }

    /// Asks for a reading; not more than one waits.
    pub fn request(&mut self) {
        self.again = self.under_way;
        if !self.under_way {
            // The thread ends only with this value.
            self.under_way = self.requests.send(()).is_ok();
        }
    }

    /// Whether [`Reloader::poll`] is worth a call.
    #[must_use]
    pub fn is_under_way(&self) -> bool {
        self.under_way
    }

    /// What has been read, once it is there.
    pub fn poll(&mut self) -> Option<Result<Reloaded, ConfigError>> {
        match self.results.try_recv() {
            Ok(result) => {
                self.under_way = false;
                if std::mem::take(&mut self.again) {
                    self.request();
                }
                Some(result)
            }
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => {
                self.under_way = false;
                None
            }
        }
    }
}

impl Source {
    fn read(&mut self) -> Result<Reloaded, ConfigError> {
        let mut config = Config::load_again(&self.args, &mut self.secrets)?;
        let tls = config.streams.load_tls(&mut self.secrets)?;
        if let Some(warning) = tls.as_ref().and_then(|tls| tls.warning(wall_clock())) {
            tracing::warn!("{warning}");
        }
        for setting in &config.overridden {
            tracing::warn!(setting, "what the file says has no effect: the flag of that name wins");
        }
        for sentence in &config.host_bits {
            tracing::warn!("{sentence}");
        }
        let fixed = Fixed::of(&config);
        for setting in self.fixed.different(&fixed) {
            tracing::warn!(setting, "changed, and stays as it is: that takes a restart");
        }
        // Keys are made for the realm in force.
        self.fixed.realm.clone_into(&mut config.realm.0);
        let (users, drain, limits) = (config.users.len(), DrainPlan::of(&config), config.streams.limits);
        let settings = settings(config, &self.own_sockets);
        Ok(Reloaded { settings, limits, tls: tls.map(|tls| tls.config), drain, users })
    }
}
