//! From the command line to a running relay.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::{self, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::process::ExitCode;
use std::time::SystemTime;

use dataplane::engine::{self, Offload, Switch};
use dataplane::notify::Notifier;
use dataplane::sys::udp::{LISTEN_PATIENCE, UdpOptions, UdpSocket};
use dataplane::tunnel::apart::{apart, keep_memory_private};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::level_filters::LevelFilter;
use zeroize::Zeroizing;

use crate::admin::{self, Admin, Observer};
use crate::advice;
use crate::app::Relay;
use crate::app::duties::Duties;
use crate::check::Effective;
use crate::config::{Args, Command, Config};
use crate::confine::{Confinement, Needs};
use crate::crew::Crew;
use crate::import;
use crate::life::{DrainPlan, Life};
use crate::login;
use crate::own_addresses::OwnAddresses;
use crate::reload::{Fixed, Source};
use crate::report::Tally;
use crate::secrets::Secrets;
use crate::server::policy::PeerPolicy;
use crate::server::{Commons, ExternalAddress, Server, Settings, WORKERS_MAX, WorkerId};
use crate::stream::tls::Tls;
use crate::stream::{Kind, StreamListener, Streams};

/// The exit code for flags and files that cannot be used.
const EXIT_USAGE: u8 = 2;
/// Where allocations share ports, each worker has its part of them. With few in each part, one worker could refuse what another
/// still had a port for.
const SHARED_PORTS_OF_WORKER_MIN: usize = 1024;
/// Ports below this take a privilege to bind (net.ipv4.ip_unprivileged_port_start as it is usually set).
const LOW_PORTS_END: u16 = 1024;

/// Runs `towpath-relay` with these arguments, the program's name first, until SIGTERM or SIGINT end it.
pub fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    main_with(args, || {})
}

/// As [`main`]; `once_ready` is called by the loop's thread once the relay serves, and confined as it is from then on.
pub fn main_with(
    args: impl Iterator<Item = OsString>,
    once_ready: impl FnOnce() + Send + 'static,
) -> ExitCode {
    let args = match Args::from_words(args) {
        Ok(args) => args,
        Err(error) => {
            // Help and version count as errors that end well. Nobody is left to tell when this cannot be printed.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(EXIT_USAGE));
        }
    };
    match &args.command {
        Some(Command::Status(status)) => return admin::run_status(status),
        Some(Command::Import(import)) => return import::run(import),
        None => {}
    }
    // Before there is a secret in it. Confinement does the same, and may be off.
    keep_memory_private();
    let mut secrets = Secrets::default();
    let config = match apart(|| Config::load_again(&args, &mut secrets)) {
        Ok(config) => config,
        Err(error) => {
            // As above.
            let _ = writeln!(io::stderr(), "towpath-relay: {error}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    let tls = match apart(|| config.streams.load_tls(&mut secrets)) {
        Ok(tls) => tls,
        Err(error) => {
            // As above.
            let _ = writeln!(io::stderr(), "towpath-relay: {error}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    if args.check_config {
        for name in &config.overridden {
            // As above.
            let _ = writeln!(io::stderr(), "towpath-relay: warning: --{name} wins over {name} in the file");
        }
        for sentence in &config.host_bits {
            // As above.
            let _ = writeln!(io::stderr(), "towpath-relay: warning: {sentence}");
        }
        return match write!(io::stdout(), "{}", Effective(&config)) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        };
    }
    dataplane::log::init(args.log_format, LevelFilter::INFO);
    if !args.users.is_empty() {
        tracing::warn!("--user shows passwords in the process list; --user-file does not");
    }
    if config.users.is_empty() && config.secrets.is_empty() {
        tracing::warn!(
            "there are no users, so only STUN Binding is served; add some with --user-file or --secret-file"
        );
    }
    if let Some(warning) = tls.as_ref().and_then(|tls| tls.warning(wall_clock())) {
        tracing::warn!("{warning}");
    }
    match run(config, tls, args, secrets, once_ready) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Certificates are dated by it.
#[expect(clippy::disallowed_methods, reason = "only called outside the loop")]
pub(crate) fn wall_clock() -> SystemTime {
    SystemTime::now()
}

fn run(
    config: Config,
    tls: Option<Tls>,
    args: Args,
    secrets: Secrets,
    once_ready: impl FnOnce() + Send + 'static,
) -> io::Result<()> {
    advice::check_relay_addresses(&config)?;
    advice::give(&config, raise_open_files());
    let gro = args.engine.uses(Offload::UdpGro);
    // Before anything is given up: ports may be such that take a privilege.
    let workers = workers(&config);
    let steering = Steering { members: workers.into(), seed: u32::from_ne_bytes(random()?) };
    let listeners = bind(&config, gro, steering)?;
    let stream_listeners = bind_streams(&config, steering)?;
    let admin = Admin::bind(config.admin, config.admin_users, gro)?;
    let streams = stream_listeners.iter().map(|group| group[0].local_addr());
    let own_sockets = OwnSockets {
        datagrams: listeners.iter().map(|group| group[0].local_addr()).collect(),
        streams: streams.chain(admin.as_ref().map(Admin::address)).collect(),
    };
    let engine_args = args.engine;
    let (fixed, plan) = (Fixed::of(&config), DrainPlan::of(&config));
    let needs = Needs { files: config.files.clone(), low_ports: *config.relay_ports.start() < LOW_PORTS_END };
    let (tls, limits) = (tls.map(|tls| tls.config), config.streams.limits);
    let settings = apart(|| settings(config, &own_sockets));
    let (mut own_addresses, machine) = own_addresses().unzip();
    if settings.shares_ports() {
        tracing::info!(
            "there are fewer --relay-ports than --allocations-max: allocations will share ports once none is free"
        );
    }
    let notifier = Notifier::from_environment();
    let confinement = (args.confine == Switch::On).then(|| Confinement::before_threads(&needs));
    let source = Source { args, secrets, fixed, own_sockets };
    let crew = Crew::new(workers)?;
    let life = Life::new(source, plan, notifier, confinement, crew.clone()).once_ready(once_ready);
    // The first worker's; the others are told what to do.
    let mut lives = std::iter::once(life).chain(std::iter::repeat_with(Life::default));
    let commons = Commons::new(settings.relay_ports.clone(), workers);
    let tally = Tally::of(workers.into());
    let observers = Observer::of_crew(admin, workers.into())?;
    let sockets = by_worker(listeners, workers).zip(by_worker(stream_listeners, workers));
    let mut relays: Vec<Relay> = Vec::new();
    for ((number, observer), (listeners, stream_listeners)) in (0..).zip(observers).zip(sockets) {
        let seed = Zeroizing::new(random()?);
        let mut server = Server::of_worker(settings.clone(), &seed, WorkerId(number), commons.clone());
        if let Some(machine) = &machine {
            server.set_machine_addresses(machine.clone());
        }
        let life = lives.next().unwrap_or_default();
        let duties = Duties::new(life, observer).reporting_to(&tally);
        let mut streams = Streams::new(stream_listeners, tls.clone(), limits);
        if let Some(first) = relays.first() {
            streams = streams.beside(first.streams());
        }
        let relay = Relay::new(server, listeners, gro, duties).with_streams(streams);
        // The first worker tells the others.
        relays.push(relay.watching(own_addresses.take()).in_crew(crew.member(number)));
    }
    if workers > 1 {
        tracing::info!(workers, "serves on several cores: each client has one of the workers");
    }
    engine::run_workers(relays, &engine_args)
}

/// How many loops serve clients.
fn workers(config: &Config) -> u16 {
    let cores = || std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let wanted = config.workers.unwrap_or_else(|| cores().min(WORKERS_MAX.into()) as u16);
    let most =
        u16::try_from(config.relay_ports.len() / SHARED_PORTS_OF_WORKER_MIN).unwrap_or(u16::MAX).max(1);
    if wanted > most && config.shares_ports() {
        tracing::info!(
            workers = most,
            "fewer workers, because allocations may share ports, and each port is one worker's: --port-sharing off, or \
             as many --relay-ports as --allocations-max, allows for more"
        );
        return most;
    }
    wanted
}

/// Numbers that nobody can foresee.
fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)
        .map_err(|error| io::Error::other(format!("the kernel gives no random numbers: {error}")))?;
    Ok(bytes)
}

/// Which of the sockets on one address gets a packet.
#[derive(Clone, Copy)]
struct Steering {
    members: u32,
    seed: u32,
}

/// From the sockets of each address to those of each worker.
fn by_worker<T>(groups: Vec<Vec<T>>, workers: u16) -> impl Iterator<Item = Vec<T>> {
    let mut groups: Vec<_> = groups.into_iter().map(Vec::into_iter).collect();
    (0..workers).map(move |_| groups.iter_mut().filter_map(Iterator::next).collect())
}

fn bind_streams(config: &Config, steering: Steering) -> io::Result<Vec<Vec<StreamListener>>> {
    let Steering { members, seed } = steering;
    let tcp = config.streams.tcp.iter().map(|&address| (address, Kind::Tcp));
    let tls = config.streams.tls.iter().map(|&address| (address, Kind::Tls));
    tcp.chain(tls).map(|(address, kind)| StreamListener::bind_group(address, kind, members, seed)).collect()
}

fn bind(config: &Config, gro: bool, steering: Steering) -> io::Result<Vec<Vec<UdpSocket>>> {
    let mut sockets = Vec::new();
    for &address in &config.listen {
        match bind_group(address, gro, steering) {
            Ok(group) => sockets.push(group),
            Err(error)
                if config.listen_is_default
                    && address.is_ipv6()
                    && error.kind() != io::ErrorKind::AddrInUse =>
            {
                tracing::warn!(%error, "clients are not served over IPv6");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(sockets)
}

fn bind_group(address: SocketAddr, gro: bool, steering: Steering) -> io::Result<Vec<UdpSocket>> {
    // Only a wildcard socket has to be told where a datagram went.
    let packet_info = address.ip().is_unspecified();
    // RFC 8656 section 14, alternate behavior, on the way to clients over UDP.
    let without_df = true;
    let options =
        UdpOptions { gro, packet_info, without_df, patience: LISTEN_PATIENCE, ..UdpOptions::default() };
    UdpSocket::bind_group(address, &options, steering.members, steering.seed).map_err(|error| {
        let remedy = match error.kind() {
            io::ErrorKind::AddrInUse => {
                "another program has it, perhaps a relay that still drains, which a second SIGTERM ends: stop that one or choose another --listen"
            }
            io::ErrorKind::AddrNotAvailable => "no interface has this address: choose another --listen",
            io::ErrorKind::PermissionDenied => "ports below 1024 need CAP_NET_BIND_SERVICE",
            io::ErrorKind::Unsupported => "start the relay with --workers 1",
            _ => "choose another --listen",
        };
        io::Error::new(error.kind(), format!("{error}; {remedy}"))
    })
}

/// The sockets that clients and administrators talk to.
#[derive(Debug)]
pub(crate) struct OwnSockets {
    /// Over UDP.
    pub datagrams: Vec<SocketAddr>,
    /// Over TCP.
    pub streams: Vec<SocketAddr>,
}

/// What the server is told.
pub(crate) fn settings(config: Config, own_sockets: &OwnSockets) -> Settings {
    let credentials = login::credentials(&config);
    let all = || own_sockets.datagrams.iter().chain(&own_sockets.streams);
    let listening = all().map(SocketAddr::ip).filter(|ip| !ip.is_unspecified());
    let public = config.external.iter().map(|external| external.public);
    let own_addresses = listening.chain(public).chain(config.relay_addresses.iter().copied()).collect();
    // Through a NAT that leads back in, the relay's sockets are reached under their outer names too.
    let named = |&own: &SocketAddr| [own].into_iter().chain(outer_names(own, &config.external));
    let own_datagram_sockets = own_sockets.datagrams.iter().flat_map(named).collect();
    let own_sockets = all().flat_map(named).collect();
    Settings {
        credentials,
        policy: PeerPolicy {
            allow: config.allow_peers,
            deny: config.deny_peers,
            deny_ports: config.deny_peer_ports,
            own_sockets,
            own_datagram_sockets,
            own_addresses,
            machine_addresses: BTreeSet::new(),
        },
        relay_ports: config.relay_ports,
        relay_addresses: config.relay_addresses,
        external: config.external,
        channel_numbers: config.channel_numbers,
        allocations_max: config.allocations_max,
        allocations_per_user_max: config.allocations_per_user_max,
        limits: config.limits,
        hairpin: config.hairpin,
        port_sharing: config.port_sharing,
    }
}

/// Every address of this machine, those included that come later, so that clients cannot reach its own services through
/// the relay.
fn own_addresses() -> Option<(OwnAddresses, BTreeSet<IpAddr>)> {
    match OwnAddresses::open() {
        Ok(known) => Some(known),
        Err(error) => {
            tracing::warn!(%error, "the addresses of this machine are not known: public ones are not refused as peers");
            None
        }
    }
}

/// How a socket is called outside.
fn outer_names(own: SocketAddr, external: &[ExternalAddress]) -> impl Iterator<Item = SocketAddr> {
    let names = external.iter().filter(move |external| external.public.is_ipv4() == own.is_ipv4());
    let names = names.filter(move |external| external.local.is_none_or(|local| local == own.ip()));
    names.map(move |external| SocketAddr::new(external.public, own.port()))
}

/// Every allocation is a socket: the soft limit of open files is often 1,024, the hard one far above.
fn raise_open_files() -> Option<u64> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
        if let Err(error) = setrlimit(Resource::Nofile, raised) {
            tracing::warn!(%error, "the limit of open files stays at {:?}", limit.current);
            return limit.current;
        }
    }
    limit.maximum
}
