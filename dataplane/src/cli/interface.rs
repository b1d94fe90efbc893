//! `towpath wg0`: in place of wireguard-go, with its flags and its environment.
//!
//! | variable | meaning |
//! |---|---|
//! | `LOG_LEVEL` | `verbose` or `debug`, `error` (the default), `silent` |
//! | `WG_TUN_FD` | number of a descriptor that is attached to the device |
//! | `WG_UAPI_FD` | number of a socket that listens for `wg` |
//! | `WG_PROCESS_FOREGROUND` | `1`: as `-f` |
//! | `TOWPATH_LINES` | `off`: does without the lines that begin with `#towpath:` in wg-quick's configuration |

use std::env;
use std::io::{self, IsTerminal as _, Write as _};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::process::ExitCode;

use clap::Args;
use tracing::level_filters::LevelFilter;

use super::marking::MarkingArgs;
use super::{Failure, bind_admin, now, randomness};
use crate::config::{Lines, NoLines};
use crate::crypto::CryptoArgs;
use crate::engine::{self, EngineArgs, Offload};
use crate::log::{self, LogFormat};
use crate::sys::daemon::{self, Notice, Side};
use crate::sys::tun::{self, Tun};
use crate::tunnel::apart::keep_memory_private;
use crate::tunnel::app::{App, Binding, Inquiries, Management, Sockets};
use crate::tunnel::key::{KEY_LEN, SecretKey};
use crate::tunnel::lookup::Found;
use crate::tunnel::{Tunnel, TunnelConfig, setup};
use crate::uapi::Listener;

/// Words that somebody takes for commands, and what to run for them. An interface that is to have such a name can be brought up
/// from a file.
const NO_INTERFACES: [(&str, &str); 9] = [
    ("start", "up"),
    ("restart", "down and up"),
    ("stop", "down"),
    ("status", "show"),
    ("list", "show"),
    ("sync", "reload"),
    ("syncconf", "reload"),
    ("save", "down, with SaveConfig = true in the file"),
    ("version", "--version"),
];

/// The flags of `towpath INTERFACE`.
#[derive(Debug, Args)]
pub(super) struct Flags {
    /// Make this interface and let `wg` and `wg-quick` set it, as wireguard-go does
    #[arg(value_name = "INTERFACE", required = true)]
    name: Option<String>,
    /// Stay in the foreground
    #[arg(short, long)]
    foreground: bool,
    #[command(flatten)]
    engine: EngineArgs,
    #[command(flatten)]
    crypto: CryptoArgs,
    #[command(flatten)]
    marking: MarkingArgs,
    /// Where Prometheus finds totals: /metrics, without a password, so better on 127.0.0.1 [default: nowhere]
    #[arg(long, value_name = "ADDR:PORT")]
    admin: Option<SocketAddr>,
    /// How log lines look
    #[arg(long, value_enum, default_value = "text")]
    log_format: LogFormat,
}

/// Runs the interface until it ends, or starts that in the background.
pub(super) fn run(flags: &Flags) -> Result<ExitCode, Failure> {
    let name = flags.name.as_deref().unwrap_or_default();
    flags.engine.check().map_err(Failure::usage)?;
    flags.crypto.check(flags.engine.io).map_err(Failure::usage)?;
    if name.contains('/') || name.ends_with(".conf") {
        return Err(Failure::usage(format!(
            "{name:?} is no interface name; for a configuration file run: towpath up {name}"
        )));
    }
    tun::check_name(name).map_err(|error| Failure::usage(error.to_string()))?;
    if let Some((_, command)) = NO_INTERFACES.iter().find(|(word, _)| *word == name) {
        return Err(Failure::usage(format!(
            "{name} is no command, and is not taken for the name of an interface; run: towpath {command}"
        )));
    }
    let foreground =
        flags.foreground || env::var_os("WG_PROCESS_FOREGROUND").is_some_and(|value| value == "1");
    if let Some(command) = mistyped(name).filter(|_| !foreground && !Lines::has_file(name)) {
        return Err(Failure::usage(format!(
            "{name} is no command, did you mean towpath {command}? To make an interface of this name: towpath -f {name}"
        )));
    }
    let level = env::var("LOG_LEVEL").unwrap_or_default();
    let says = level != "silent";
    let lines = lines_of_ours(name, says)?.map(|lines| with_addresses(lines, says));
    let notice = if foreground {
        None
    } else {
        match daemon::split(!level.is_empty() && level != "silent")? {
            Side::Foreground(waiting) => {
                let code = waiting.wait();
                if code == 0 && level != "silent" && io::stderr().is_terminal() {
                    // For whoever has mistyped a command. Nobody may see it.
                    let _ = writeln!(io::stderr(), "towpath: the interface {name} is made; wg sets it");
                }
                return Ok(ExitCode::from(code));
            }
            Side::Background(notice) => Some(notice),
        }
    };
    log::init(flags.log_format, log_level(&level));
    keep_memory_private();
    let app = assemble(name, flags, lines.as_ref(), notice);
    app.and_then(|app| Ok(engine::run(app, &flags.engine)?))
        .map_err(|failure| failure.formatted(flags.log_format))?;
    Ok(ExitCode::SUCCESS)
}

/// The command that a word is, but for a slip or two of the hand. A name with a digit, as most interfaces have one, is never taken
/// for that, and `up` is too short to be told by.
fn mistyped(word: &str) -> Option<String> {
    let word = word.to_ascii_lowercase();
    if !word.bytes().all(|byte| byte.is_ascii_alphabetic()) {
        return None;
    }
    let cli = super::command();
    let commands = cli.get_subcommands().map(clap::Command::get_name).chain(["help"]);
    let is_meant = |command: &&str| {
        let slips = match command.len() {
            ..4 => return false,
            4 => 1,
            _ => 2,
        };
        word.len().abs_diff(command.len()) <= 1 && strsim::osa_distance(&word, command) <= slips
    };
    commands.into_iter().find(is_meant).map(str::to_owned)
}

/// What wg-quick does not hand on of its configuration. Says in one line what is taken from where, as long as somebody sees it.
fn lines_of_ours(name: &str, says: bool) -> Result<Option<Lines>, Failure> {
    const VARIABLE: &str = "TOWPATH_LINES";
    let say = |text: &str| {
        if says {
            // Nobody may see it.
            let _ = writeln!(io::stderr(), "towpath: {text}");
        }
    };
    match env::var(VARIABLE).unwrap_or_default().as_str() {
        "" | "on" => {}
        "off" => return Ok(None),
        other => return Err(Failure::usage(format!("{VARIABLE} is {other:?}; write on or off"))),
    }
    match Lines::of_interface(name) {
        Ok(lines) => {
            say(&lines.summary());
            for warning in &lines.warnings {
                say(&format!("{}: {warning}", lines.file.display()));
            }
            Ok(Some(lines))
        }
        Err(NoLines::Absent) => Ok(None),
        Err(NoLines::Distrusted(why)) => {
            say(&why);
            Ok(None)
        }
        Err(NoLines::Wrong(error)) => Err(Failure::usage(format!("{error} (or {VARIABLE}=off)"))),
    }
}

/// Looks the names of relays up, while somebody still sees what is said about those that have no address.
fn with_addresses(lines: Lines, says: bool) -> (Lines, Found) {
    let found = Found::look_up(&lines.relays, &[]);
    for (_, sentence) in found.missing.iter().filter(|_| says) {
        // Nobody may see it.
        let _ = writeln!(io::stderr(), "towpath: {}: {sentence}", lines.file.display());
    }
    (lines, found)
}

/// What `LOG_LEVEL` asks for; errors when it asks for nothing that is known.
fn log_level(level: &str) -> LevelFilter {
    match level {
        "verbose" | "debug" => LevelFilter::DEBUG,
        "silent" => LevelFilter::OFF,
        _ => LevelFilter::ERROR,
    }
}

fn assemble(
    name: &str,
    flags: &Flags,
    lines: Option<&(Lines, Found)>,
    notice: Option<Notice>,
) -> Result<App, Failure> {
    let options = flags.engine.tun_options();
    let (seeds, cookie_secret) = randomness()?;
    let (waiting_relay, inquiries) = match lines {
        Some((lines, found)) => setup::relay_plan(lines, found, seeds[1])?,
        None => (None, Inquiries::default()),
    };
    let tun = match inherited("WG_TUN_FD")? {
        Some(fd) => Tun::inherited(fd, options).map_err(|error| of_variable("WG_TUN_FD", &error))?,
        None => setup::make_bare_interface(name, options)?,
    };
    let listener = match inherited("WG_UAPI_FD")? {
        Some(fd) => Listener::inherited(fd, tun.name()).map_err(|error| of_variable("WG_UAPI_FD", &error))?,
        None => Listener::bind(tun.name())?,
    };
    let admin = bind_admin(flags.admin)?;
    let config = TunnelConfig {
        private_key: SecretKey::new([0; KEY_LEN]),
        mtu: setup::BARE_MTU,
        peers: Vec::new(),
        seed: seeds[0],
        cookie_secret,
    };
    let now = now();
    let mut tunnel = Tunnel::new(&config, now);
    // Until the interface is brought up.
    tunnel.set_running(false, now);
    let binding = Binding { listen_port: 0, firewall_mark: 0, gro: flags.engine.uses(Offload::UdpGro) };
    let marking = flags.marking.over(lines.map(|(lines, _)| lines.marking).unwrap_or_default());
    let management = Management {
        binding,
        marking,
        inquiries,
        waiting_relay,
        listener: Some(listener),
        own: None,
        drop_in: true,
        notice,
        admin,
        crypto_threads: flags.crypto.threads(),
    };
    Ok(App::new(tunnel, tun, Sockets::NONE, None, management))
}

/// The descriptor whose number a variable holds.
fn inherited(variable: &str) -> Result<Option<OwnedFd>, Failure> {
    let Some(value) = env::var_os(variable).filter(|value| !value.is_empty()) else {
        return Ok(None);
    };
    let number = value.to_str().and_then(|value| value.parse().ok());
    let number: i32 = number.filter(|number| *number >= 0).ok_or_else(|| {
        Failure::usage(format!("{variable} is {value:?}; it has to be the number of a descriptor"))
    })?;
    daemon::inherited(number).map(Some).map_err(|error| of_variable(variable, &error))
}

fn of_variable(variable: &str, error: &io::Error) -> Failure {
    Failure::other(format!("{variable}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_close_to_a_command_is_told_from_the_name_of_an_interface() {
        for (word, command) in [
            ("shwo", "show"),
            ("sho", "show"),
            ("shows", "show"),
            ("donw", "down"),
            ("Show", "show"),
            ("relaod", "reload"),
            ("reolad", "reload"),
            ("genkye", "genkey"),
            ("pubky", "pubkey"),
            ("tickte", "ticket"),
            ("hlep", "help"),
        ] {
            assert_eq!(mistyped(word).as_deref(), Some(command), "{word}");
        }
        for name in [
            "wg", "wg0", "wg1", "tun", "tun0", "utun", "tap0", "vpn", "vpn1", "home", "work", "office",
            "lan", "wan", "dmz", "mesh", "corp", "show1", "up1", "ups", "wg-shwo", "tip", "shadow",
            "towpath",
        ] {
            assert_eq!(mistyped(name), None, "{name}");
        }
    }
}
