//! From the command line to a running relay.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::SystemTime;

use clap::Parser as _;
use dataplane::engine::{self, Switch};
use dataplane::sys::udp::{LISTEN_PATIENCE, UdpOptions, UdpSocket};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::level_filters::LevelFilter;
use zeroize::Zeroizing;

use crate::admin::{self, Admin, Observer};
use crate::app::Relay;
use crate::app::duties::Duties;
use crate::check::Effective;
use crate::config::{Args, Command, Config};
use crate::confine::{Confinement, Needs};
use crate::life::{DrainPlan, Life};
use crate::login;
use crate::notify::Notifier;
use crate::own_addresses::OwnAddresses;
use crate::reload::{Fixed, Source};
use crate::secrets::Secrets;
use crate::server::policy::PeerPolicy;
use crate::server::{ExternalAddress, Server, Settings};
use crate::stream::tls::Tls;
use crate::stream::{Kind, StreamListener, Streams};

/// The exit code for flags and files that cannot be used.
const EXIT_USAGE: u8 = 2;
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
    let args = match Args::try_parse_from(args) {
        Ok(args) => args,
        Err(error) => {
            // Help and version count as errors that end well. Nobody is left to tell when this cannot be printed.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(EXIT_USAGE));
        }
    };
    if let Some(Command::Status(status)) = &args.command {
        return admin::run_status(status);
    }
    let mut secrets = Secrets::default();
    let config = match Config::load_again(&args, &mut secrets) {
        Ok(config) => config,
        Err(error) => {
            // As above.
            let _ = writeln!(io::stderr(), "towpath-relay: {error}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    let tls = match config.streams.load_tls(&mut secrets) {
        Ok(tls) => tls,
        Err(error) => {
            // As above.
            let _ = writeln!(io::stderr(), "towpath-relay: {error}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    if args.check_config {
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
    raise_open_files();
    let gro = args.engine.gso == Switch::On;
    // Before anything is given up: ports may be such that take a privilege.
    let listeners = bind(&config, gro)?;
    let stream_listeners = bind_streams(&config)?;
    let admin = Admin::bind(config.admin, gro)?;
    let own_sockets: Vec<_> = listeners
        .iter()
        .map(UdpSocket::local_addr)
        .chain(stream_listeners.iter().map(StreamListener::local_addr))
        .chain(admin.as_ref().map(Admin::address))
        .collect();
    let mut seed = Zeroizing::new([0; 32]);
    getrandom::fill(&mut *seed)
        .map_err(|error| io::Error::other(format!("the kernel gives no random numbers: {error}")))?;
    let engine_args = args.engine;
    let (fixed, plan) = (Fixed::of(&config), DrainPlan::of(&config));
    let needs = Needs {
        files: config.files.clone(),
        low_ports: *config.relay_ports.start() < LOW_PORTS_END,
        secrets: !config.users.is_empty() || !config.secrets.is_empty() || tls.is_some(),
    };
    let streams = Streams::new(stream_listeners, tls.map(|tls| tls.config), config.streams.limits);
    let mut server = Server::new(settings(config, &own_sockets), &seed);
    let own_addresses = own_addresses(&mut server);
    if server.shares_ports() {
        tracing::info!(
            "there are fewer --relay-ports than --allocations-max: allocations will share ports once none is free"
        );
    }
    let notifier = Notifier::from_environment();
    let confinement = (args.confine == Switch::On).then(|| Confinement::before_threads(&needs));
    let source = Source { args, secrets, fixed, own_sockets };
    let life = Life::new(source, plan, notifier, confinement).once_ready(once_ready);
    let duties = Duties::new(life, Observer::new(admin));
    let relay = Relay::new(server, listeners, gro, duties).with_streams(streams).watching(own_addresses);
    engine::run(relay, &engine_args)
}

fn bind_streams(config: &Config) -> io::Result<Vec<StreamListener>> {
    let tcp = config.streams.tcp.iter().map(|&address| StreamListener::bind(address, Kind::Tcp));
    let tls = config.streams.tls.iter().map(|&address| StreamListener::bind(address, Kind::Tls));
    tcp.chain(tls).collect()
}

fn bind(config: &Config, gro: bool) -> io::Result<Vec<UdpSocket>> {
    let mut sockets = Vec::new();
    for &address in &config.listen {
        match bind_one(address, gro) {
            Ok(socket) => sockets.push(socket),
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

fn bind_one(address: SocketAddr, gro: bool) -> io::Result<UdpSocket> {
    // Only a wildcard socket has to be told where a datagram went.
    let packet_info = address.ip().is_unspecified();
    let options = UdpOptions { gro, packet_info, patience: LISTEN_PATIENCE, ..UdpOptions::default() };
    UdpSocket::bind(address, &options).map_err(|error| {
        let remedy = match error.kind() {
            io::ErrorKind::AddrInUse => "another program has it: stop that one or choose another --listen",
            io::ErrorKind::AddrNotAvailable => "no interface has this address: choose another --listen",
            io::ErrorKind::PermissionDenied => "ports below 1024 need CAP_NET_BIND_SERVICE",
            _ => "choose another --listen",
        };
        io::Error::new(error.kind(), format!("{error}; {remedy}"))
    })
}

/// What the server is told.
pub(crate) fn settings(config: Config, own_sockets: &[SocketAddr]) -> Settings {
    let credentials = login::credentials(&config);
    let listening = own_sockets.iter().map(SocketAddr::ip).filter(|ip| !ip.is_unspecified());
    let public = config.external.iter().map(|external| external.public);
    let own_addresses = listening.chain(public).chain(config.relay_addresses.iter().copied()).collect();
    // Through a NAT that leads back in, the relay's sockets are reached under their outer names too.
    let own_sockets = own_sockets
        .iter()
        .flat_map(|&own| [own].into_iter().chain(outer_names(own, &config.external)))
        .collect();
    Settings {
        credentials,
        policy: PeerPolicy {
            allow: config.allow_peers,
            deny: config.deny_peers,
            deny_ports: config.deny_peer_ports,
            own_sockets,
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
fn own_addresses(server: &mut Server) -> Option<OwnAddresses> {
    match OwnAddresses::open() {
        Ok((watched, known)) => {
            server.set_machine_addresses(known);
            Some(watched)
        }
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
fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
        if let Err(error) = setrlimit(Resource::Nofile, raised) {
            tracing::warn!(%error, "the limit of open files stays at {:?}", limit.current);
        }
    }
}
