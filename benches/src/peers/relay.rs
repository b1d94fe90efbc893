//! Relays, ours and coturn, and their clients.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::time::Duration;

use anyhow::{Context, bail};
use dataplane::admin::client;
use dataplane::stun::channel_data;
use dataplane::sys::udp::{RECEIVE_LEN, ReceiveBatch, UdpOptions, UdpSocket};
use dataplane::turn::{Client, ClientConfig, Event};
use relay::admin::ADDRESS_DEFAULT;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tools::netns::{Address, Namespace};
use zeroize::Zeroizing;

use super::figures::Ledger;
use super::programs::Programs;
use super::rows::{Contender, Who};
use super::world::World;
use crate::load::Flow;
use crate::process::{Process, Role, now};

const PORT: u16 = 3478;
/// The one user of all clients.
pub const USER: &str = "bench";
/// Its password.
pub const PASSWORD: &str = "in-its-own-namespace";
/// How long a relay may take to start, or to answer a client.
const PATIENCE: Duration = Duration::from_secs(10);

/// A running relay.
pub struct Relay {
    process: Process,
    ours: bool,
}

impl Relay {
    /// Starts the contender's relay and waits until it serves.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start(world: &World, contender: &Contender, programs: &Programs) -> anyhow::Result<Self> {
        let namespace = Some(&world.topology.relay);
        let address = Address::RELAY.to_string();
        let ours = contender.who == Who::Towpath;
        let (mut process, ready) = if ours {
            let users = world.write("users", &format!("{USER}:{PASSWORD}\n"))?;
            let listen = format!("{address}:{PORT}");
            let mut arguments = vec!["--listen", &listen, "--realm", "bench", "--user-file", &users];
            arguments.extend(["--allow-peer", Address::ALL, "--allocations-per-user-max", "10000"]);
            // All flows are of one user and start at once.
            arguments.extend(["--new-peers-per-user", "0", "--log-format", "json", "--drain-timeout", "0"]);
            arguments.extend(contender.flags.split_whitespace());
            let arguments: Vec<String> = arguments.into_iter().map(str::to_owned).collect();
            (Process::start("towpath-relay", Role::Relay, &arguments, namespace)?, "\"ready\"")
        } else {
            let (database, pid) = (world.path("turn.db"), world.path("turn.pid"));
            let (program, login) = (programs.path("turnserver")?, format!("{USER}:{PASSWORD}"));
            let mut arguments = vec![program.as_str(), "-n", "-L", &address, "-E", &address, "-r", "bench"];
            arguments.extend(["--lt-cred-mech", "-u", &login, "--userdb", &database, "--pidfile", &pid]);
            arguments.extend(["--no-tls", "--no-dtls", "--no-cli", "-l", "stdout", "--simple-log"]);
            let arguments: Vec<String> = arguments.into_iter().map(str::to_owned).collect();
            (Process::start("turnserver", Role::Program, &arguments, namespace)?, "Total General servers")
        };
        process.wait_for(ready, PATIENCE)?;
        Ok(Self { process, ours })
    }

    /// Starts the page of kernel calls in the relay's place, with one thread or as many as the relay has workers.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start_middle(
        world: &World,
        contender: &Contender,
        sink: SocketAddr,
        flows: usize,
    ) -> anyhow::Result<Self> {
        let program = std::env::current_exe()?.display().to_string();
        let (sink, flows, listen) = (sink.to_string(), flows.to_string(), server().to_string());
        let threads = match contender.who {
            Who::KernelOnEveryCore => std::thread::available_parallelism()?.get(),
            _ => 1,
        };
        let threads = threads.to_string();
        let mut arguments = vec![program.as_str(), "middle", "--listen", &listen, "--sink", &sink];
        arguments.extend(["--flows", &flows, "--threads", &threads]);
        let arguments: Vec<String> = arguments.into_iter().map(str::to_owned).collect();
        let namespace = Some(&world.topology.relay);
        let mut process = Process::start("the forwarder", Role::Program, &arguments, namespace)?;
        process.wait_for(&listen, PATIENCE)?;
        Ok(Self { process, ours: false })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Waits until a client of ours has an allocation and a channel.
    ///
    /// # Errors
    /// When none has in time, or the relay shows no metrics.
    pub fn wait_for_channel(&self, world: &World) -> anyhow::Result<()> {
        world.topology.relay.run(|| {
            let deadline = now() + PATIENCE;
            while now() < deadline {
                let reply = client::get(ADDRESS_DEFAULT, "/metrics", PATIENCE)?;
                let text = String::from_utf8_lossy(&reply.body);
                let channels = text.lines().find_map(|line| line.strip_prefix("towpath_relay_channels "));
                if channels.context("the relay does not say how many channels it has")? != "0" {
                    return Ok(());
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            bail!("no channel was bound in {PATIENCE:?}")
        })?
    }

    /// Ends it; ours says what it did.
    ///
    /// # Errors
    /// When ours does not end or keeps no ledger.
    pub fn stop(self) -> anyhow::Result<Option<Ledger>> {
        if !self.ours {
            // It has nothing left to say, and its dropping kills it.
            return Ok(None);
        }
        Ok(Some(Ledger::read(&self.process.stop()?).context("towpath-relay ended without a ledger")?))
    }
}

/// Where clients find the relay.
#[must_use]
pub fn server() -> SocketAddr {
    SocketAddr::from((Address::RELAY, PORT))
}

/// A client with an allocation.
pub struct TurnClient {
    client: Client,
    socket: UdpSocket,
    relayed: Option<SocketAddr>,
}

impl TurnClient {
    /// Allocates at the relay and binds a channel to `peer`.
    ///
    /// # Errors
    /// What the relay refuses, or its silence.
    pub fn connect(socket: UdpSocket, peer: SocketAddr, seed: u64) -> anyhow::Result<Self> {
        let mut this = Self::allocate(socket, seed)?;
        this.bind(peer)?;
        Ok(this)
    }

    /// A client that has yet to ask.
    pub fn new(socket: UdpSocket, seed: u64) -> Self {
        let config = ClientConfig {
            server: server(),
            username: USER.to_owned(),
            password: Zeroizing::new(PASSWORD.to_owned()),
            family: None,
            seed,
        };
        Self { client: Client::new(config, now()), socket, relayed: None }
    }

    /// Allocates at the relay.
    ///
    /// # Errors
    /// As [`TurnClient::connect`].
    pub fn allocate(socket: UdpSocket, seed: u64) -> anyhow::Result<Self> {
        let mut this = Self::new(socket, seed);
        this.wait_for(|this| this.relayed.is_some())?;
        Ok(this)
    }

    /// Binds a channel to `peer`.
    ///
    /// # Errors
    /// As [`TurnClient::connect`].
    pub fn bind(&mut self, peer: SocketAddr) -> anyhow::Result<()> {
        self.want(peer)?;
        self.wait_for(|this| this.has(peer))
    }

    /// Where peers reach it.
    ///
    /// # Errors
    /// Never after [`TurnClient::allocate`].
    pub fn relayed(&self) -> anyhow::Result<SocketAddr> {
        self.relayed.context("no allocation")
    }

    fn wait_for(&mut self, done: impl Fn(&Self) -> bool) -> anyhow::Result<()> {
        let deadline = now() + PATIENCE;
        let mut batch = ReceiveBatch::new(1, RECEIVE_LEN);
        while !done(self) {
            if now() > deadline {
                bail!("the relay does not answer");
            }
            self.send()?;
            let mut fds = [PollFd::from_borrowed_fd(self.socket.fd().as_fd(), PollFlags::IN)];
            poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 20_000_000 }))?;
            self.receive(&mut batch)?;
        }
        Ok(())
    }

    /// Sends what is due.
    ///
    /// # Errors
    /// What sendmsg(2) answers.
    pub fn send(&mut self) -> anyhow::Result<()> {
        if self.client.poll_timeout().is_some_and(|due| due <= now()) {
            self.client.handle_timeout(now());
        }
        while let Some(message) = self.client.poll_transmit() {
            self.socket.send_segments(server(), None, 0, &message, message.len())?;
        }
        Ok(())
    }

    /// Takes the answers that are here.
    ///
    /// # Errors
    /// When the relay refuses.
    pub fn receive(&mut self, batch: &mut ReceiveBatch) -> anyhow::Result<()> {
        self.socket.receive_batch(batch)?;
        for arrival in batch.iter_mut() {
            self.client.handle_input(arrival.bytes, now());
        }
        while let Some(event) = self.client.poll_event() {
            match event {
                Event::Failed { reason } => bail!("the relay: {reason}"),
                Event::Allocated { relayed, .. } => self.relayed = Some(relayed),
                _ => {}
            }
        }
        Ok(())
    }

    /// Wants a channel to `peer`, once there is an allocation.
    ///
    /// # Errors
    /// When it has no channel left.
    pub fn want(&mut self, peer: SocketAddr) -> anyhow::Result<()> {
        self.client.bind_channel(peer, now()).context("no channel left")?;
        Ok(())
    }

    /// Whether it has an allocation and the channel to `peer`.
    #[must_use]
    pub fn has(&self, peer: SocketAddr) -> bool {
        self.relayed.is_some() && self.client.channel(peer).is_some()
    }

    /// Its socket.
    #[must_use]
    pub fn socket(&self) -> &UdpSocket {
        &self.socket
    }

    /// The flow of datagrams of `size` bytes to `peer`.
    ///
    /// # Errors
    /// When there is no channel, or a datagram would be too long.
    pub fn flow(&self, peer: SocketAddr, size: usize) -> anyhow::Result<Flow> {
        let number = self.client.channel(peer).context("no channel")?;
        let header = channel_data::header(number, size).context("longer than a ChannelData message")?;
        Ok(Flow { socket: self.socket.clone(), to: server(), header: header.to_vec() })
    }
}

/// Sockets at `address` in a namespace.
///
/// # Errors
/// What bind(2) answers.
pub fn sockets(
    namespace: &Namespace,
    address: IpAddr,
    count: usize,
    buffer: usize,
) -> anyhow::Result<Vec<UdpSocket>> {
    let options = UdpOptions {
        receive_buffer: buffer,
        send_buffer: buffer,
        packet_info: false,
        ..UdpOptions::default()
    };
    let bind = || UdpSocket::bind(SocketAddr::new(address, 0), &options);
    let sockets: std::io::Result<Vec<UdpSocket>> = namespace.run(|| (0..count).map(|_| bind()).collect())?;
    Ok(sockets?)
}
