//! The command line of `towpath`.

mod interface;
mod marking;
mod reload;
mod strip;
mod ticket;

use std::ffi::OsString;
use std::io::{self, Read as _, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use clap::{Args, CommandFactory as _, Parser, Subcommand};
use tracing::level_filters::LevelFilter;
use zeroize::Zeroizing;

use crate::admin;
use crate::config::{self, Config, ConfigError};
use crate::crypto::CryptoArgs;
use crate::engine::{self, EngineArgs, Offload};
use crate::host::{self, Host};
use crate::log::{self, LogFormat};
use crate::netlink;
use crate::show::{self, ShowArgs, ShowError};
use crate::sys::udp::LISTEN_PATIENCE;
use crate::tunnel::apart::{apart, keep_memory_private};
use crate::tunnel::app::{App, Binding, Management, Relay};
use crate::tunnel::key::{KEY_LEN, PublicKey, SecretKey};
use crate::tunnel::lookup::Found;
use crate::tunnel::setup::{self, Plan};
use crate::tunnel::{Tunnel, noise};
use crate::uapi::Listener;

/// Exit status of a mistake in what the user wrote: flags, configuration, keys.
const USAGE: u8 = 2;

/// WireGuard tunnels through io_uring, straight to the peer or over a TURN relay.
#[derive(Debug, Parser)]
#[command(
    name = "towpath",
    version,
    arg_required_else_help = true,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    interface: interface::Flags,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Bring up the tunnel of a configuration file in wg-quick's format, and stay in the foreground
    Up(Up),
    /// Show what the tunnels of this machine do: peers, paths, losses, and where time goes
    Show(ShowArgs),
    /// End a tunnel that `towpath up` runs, and take back what one that was killed has left behind
    Down(Down),
    /// Set a running tunnel to what its file says now: peers, private key and port, while packets pass
    Reload(reload::Flags),
    /// Print what `wg setconf` and `wg syncconf` take of a configuration
    Strip(strip::Flags),
    /// Print a new private key
    Genkey,
    /// Read a private key from standard input and print its public key
    Pubkey,
    /// Print a new preshared key
    Genpsk,
    /// Print where a running tunnel can be reached, signed, for its peer; or give it the peer's
    Ticket(ticket::Flags),
}

#[derive(Debug, Args)]
struct Up {
    /// The configuration, or the name of one in /etc/towpath or /etc/wireguard; the interface is named after it, without the
    /// ending
    file: PathBuf,
    #[command(flatten)]
    engine: EngineArgs,
    #[command(flatten)]
    crypto: CryptoArgs,
    #[command(flatten)]
    marking: marking::MarkingArgs,
    /// Where Prometheus finds totals: /metrics, without a password, so better on 127.0.0.1 [default: nowhere]
    #[arg(long, value_name = "ADDR:PORT")]
    admin: Option<SocketAddr>,
    /// How log lines look
    #[arg(long, value_enum, default_value = "text")]
    log_format: LogFormat,
}

#[derive(Debug, Args)]
struct Down {
    /// The interface, or the configuration it was brought up with
    #[arg(value_name = "NAME|FILE")]
    name: PathBuf,
}

/// The command line as it is described, for manual pages and completions.
#[must_use]
pub fn command() -> clap::Command {
    Cli::command()
}

/// Runs the program. The first of `args` is its name.
pub fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // Help goes to standard output; nobody is left to tell when that is closed.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(USAGE));
        }
    };
    let outcome = match cli.command {
        None => interface::run(&cli.interface),
        Some(command) => run(command).map(|()| ExitCode::SUCCESS),
    };
    outcome.unwrap_or_else(|failure| {
        failure.report();
        ExitCode::from(failure.status)
    })
}

fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Up(up) => {
            log::init(up.log_format, LevelFilter::INFO);
            up_tunnel(&up).map_err(|failure| failure.formatted(up.log_format))
        }
        Command::Show(args) => match show::run(&args) {
            // Whoever read has gone, as `head` does.
            Err(ShowError::Print(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            shown => Ok(shown?),
        },
        Command::Down(down) => {
            log::init(LogFormat::Text, LevelFilter::WARN);
            Ok(host::down::down(&config::interface_of(&down.name)?)?)
        }
        Command::Reload(flags) => reload::run(&flags),
        Command::Strip(flags) => strip::run(&flags),
        Command::Genkey => random_key().and_then(|key| print_secret(&key.clamped())),
        Command::Genpsk => random_key().and_then(|key| print_secret(&key)),
        Command::Pubkey => print_public_key(),
        Command::Ticket(flags) => ticket::run(&flags),
    }
}

/// What ended the program, in one sentence, and its exit status.
#[derive(Debug)]
struct Failure {
    text: String,
    status: u8,
    /// It is written as a JSON log line, like everything else then.
    as_log: bool,
}

impl Failure {
    fn usage(text: impl Into<String>) -> Self {
        Self { text: text.into(), status: USAGE, as_log: false }
    }

    /// What is asked for is right, and something else is in the way.
    fn other(text: impl Into<String>) -> Self {
        Self { text: text.into(), status: 1, as_log: false }
    }

    /// Written like everything else that is logged.
    fn formatted(self, format: LogFormat) -> Self {
        Self { as_log: format == LogFormat::Json, ..self }
    }

    fn report(&self) {
        if self.as_log {
            tracing::error!("{}", self.text);
        } else {
            // Nobody is left to tell when standard error is closed.
            let _ = writeln!(io::stderr(), "towpath: {}", self.text);
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        let remedy = match error.raw_os_error() {
            Some(libc::EMFILE | libc::ENFILE) => "; raise the limit with `ulimit -n 1024`",
            _ => "",
        };
        Self::other(format!("{error}{remedy}"))
    }
}

impl From<ShowError> for Failure {
    fn from(error: ShowError) -> Self {
        match error {
            ShowError::Usage(text) => Self::usage(text),
            error => Self::other(error.to_string()),
        }
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::usage(error.to_string())
    }
}

fn up_tunnel(up: &Up) -> Result<(), Failure> {
    up.engine.check().map_err(Failure::usage)?;
    up.crypto.check(up.engine.io).map_err(Failure::usage)?;
    let file = config::find(&up.file)?;
    keep_memory_private();
    let (config, warnings) = apart(|| Config::load(&file))?;
    let name = config::interface_name(&file)?;
    for warning in warnings {
        tracing::warn!("{}: {warning}", file.display());
    }
    let mut host = Host::open(&name, &file, &config)?;
    let outcome = run_tunnel(&file, &name, config, up, &mut host);
    host.end();
    outcome
}

fn run_tunnel(file: &Path, name: &str, config: Config, up: &Up, host: &mut Host) -> Result<(), Failure> {
    let (seeds, cookie_secret) = randomness()?;
    let from = file.to_owned();
    let look_up = move || (Found::wait_for(&from, &config), config);
    let looked_up = host.before_interface().and_then(|()| host.beside(look_up));
    let (found, mut config) = match looked_up {
        // We are to end, and so we do.
        Err(error) if error.kind() == io::ErrorKind::Interrupted => {
            tracing::info!("{error}");
            return Ok(());
        }
        looked_up => looked_up?,
    };
    // Here and not beside: what a thread has allocated goes back to it, and the plan for many peers is megabytes.
    let plan = apart(|| setup::plan(file, &config, found, seeds, cookie_secret));
    // From here on the keys are the tunnel's alone.
    config.forget_keys();
    let plan = plan?;
    let app = apart(|| assemble(file, name, config, plan, up, host))?;
    host.serve(|halt, started| engine::run_until(app, &up.engine, halt, || started.tell()))?;
    Ok(())
}

fn assemble(
    file: &Path,
    name: &str,
    config: Config,
    plan: Plan,
    up: &Up,
    host: &mut Host,
) -> Result<App, Failure> {
    let gro = up.engine.uses(Offload::UdpGro);
    for warning in &plan.warnings {
        tracing::warn!("{}: {warning}", file.display());
    }
    let admin = bind_admin(up.admin)?;
    let sockets = setup::bind_sockets(config.listen_port, gro, LISTEN_PATIENCE)?;
    let mut handle = netlink::Handle::open().map_err(io::Error::from)?;
    let (tun, index) =
        setup::make_interface(&mut handle, name, &config, plan.tunnel.mtu, up.engine.tun_options())?;
    let firewall_mark = host.connect(&mut handle, index, &config)?;
    setup::mark_sockets(&sockets, firewall_mark)?;
    let listener = Listener::bind(name)
        .inspect_err(|error| match error.kind() {
            io::ErrorKind::AddrInUse => tracing::warn!(
                "`wg` does not see this tunnel, nor does `towpath show`: {error}, which is that of the file"
            ),
            _ => tracing::info!("`wg` does not see this tunnel: {error}"),
        })
        .ok();
    tracing::info!(
        interface = name,
        mtu = plan.tunnel.mtu,
        listen_port = sockets.port(),
        peers = plan.tunnel.peers.len(),
        offloads = %tun.offloads(),
        "interface is up"
    );
    let now = now();
    // What cannot be asked yet waits until it can be.
    let (relay, waiting_relay) = match plan.relay {
        Some(relay) if relay.has_address() => (Some(Relay::new(relay, now)), None),
        relay => (None, relay),
    };
    let binding = Binding { listen_port: config.listen_port, firewall_mark, gro };
    let marking = up.marking.over(config.marking);
    let management = Management {
        binding,
        marking,
        inquiries: plan.inquiries,
        waiting_relay,
        listener,
        own: host.connection()?,
        drop_in: false,
        notice: None,
        admin,
        crypto_threads: up.crypto.threads(),
    };
    // With many peers that is megabytes: the tunnel takes their place, instead of standing beside them until it ends.
    drop(config);
    Ok(App::new(Tunnel::new(&plan.tunnel, now), tun, sockets, relay, management))
}

/// The socket for totals, if there are to be any.
fn bind_admin(address: Option<SocketAddr>) -> io::Result<Option<admin::Listener>> {
    address.map(|address| admin::Listener::bind_flag(address, "the tunnel's totals")).transpose()
}

#[expect(clippy::disallowed_methods, reason = "set-up happens before the driver reads the clock")]
fn now() -> Instant {
    Instant::now()
}

/// Two seeds and a secret for cookies.
fn randomness() -> io::Result<([u64; 2], [u8; KEY_LEN])> {
    let mut cookie_secret = [0; KEY_LEN];
    fill_random(&mut cookie_secret)?;
    let mut seeds = [[0; 8]; 2];
    for seed in &mut seeds {
        fill_random(seed)?;
    }
    Ok((seeds.map(u64::from_ne_bytes), cookie_secret))
}

fn fill_random(bytes: &mut [u8]) -> io::Result<()> {
    getrandom::fill(bytes).map_err(|error| {
        io::Error::other(format!("the kernel gives no randomness: {error}; check /dev/urandom"))
    })
}

fn random_key() -> Result<SecretKey, Failure> {
    let mut bytes = Zeroizing::new([0; KEY_LEN]);
    fill_random(bytes.as_mut_slice())?;
    Ok(SecretKey::new(*bytes))
}

fn print_secret(key: &SecretKey) -> Result<(), Failure> {
    let stdout = io::stdout();
    let stat = rustix::fs::fstat(&stdout).map_err(io::Error::from)?;
    let is_file = rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file();
    if is_file && stat.st_mode & 0o007 != 0 {
        let text = "warning: the key goes to a file that everyone can read; set umask 077 and make a new one";
        // The key is what matters on standard output; a closed standard error must not keep it back.
        let _ = writeln!(io::stderr(), "towpath: {text}");
    }
    writeln!(stdout.lock(), "{}", *key.to_base64())?;
    Ok(())
}

fn print_public_key() -> Result<(), Failure> {
    /// A key, a newline, and room to see that there is more.
    const READ_MAX: u64 = 256;
    let mut text = Zeroizing::new(String::new());
    io::stdin()
        .take(READ_MAX)
        .read_to_string(&mut text)
        .map_err(|error| Failure::usage(format!("standard input: {error}; pipe a private key in")))?;
    let key: SecretKey =
        text.trim().parse().map_err(|error| Failure::usage(format!("standard input: {error}")))?;
    let public: PublicKey = noise::public_key(&key);
    writeln!(io::stdout(), "{public}")?;
    Ok(())
}
