//! What this user may do on this machine, found out by doing it in a process of its own: what a process has entered or
//! lost it does not get back.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use dataplane::sys::slab::Slab;
use dataplane::sys::tun::{Tun, TunOptions};
use dataplane::sys::udp::{UdpOptions, UdpSocket};
use dataplane::sys::{namespace, ring};
use serde::{Deserialize, Serialize};

use super::child;
use super::plan::{BOTTLENECK_RATE, TOKEN_BUCKET};
use super::role::Role;
use crate::netns::{Cable, Topology};

/// What works; where something does not, one sentence with the fix.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Facts {
    /// Why there can be no network of our own.
    pub no_network: Option<String>,
    /// Why there can be no TUN device.
    pub no_tun: Option<String>,
    /// Why there can be no bottleneck.
    pub no_bottleneck: Option<String>,
    /// Why there can be no io_uring.
    pub no_uring: Option<String>,
    /// What a socket's send buffer holds, as the kernel accounts it (SO_SNDBUF), in bytes.
    pub send_buffer: u32,
}

impl Facts {
    /// Asks a child process.
    ///
    /// # Errors
    /// When it cannot be started or its answer cannot be read.
    pub fn find() -> anyhow::Result<Self> {
        let answer = child::output_of(Role::Probe, &[], None)?;
        serde_json::from_str(&answer).context("cannot read what the probe found")
    }
}

/// The child's side: tries everything and prints [`Facts`] as JSON.
pub(super) fn probe() -> ExitCode {
    let mut facts = Facts::default();
    let topology = isolate().and_then(|()| Topology::new());
    // Asked inside: what root may, root of a user namespace may not.
    facts.no_uring = no_uring();
    match topology {
        Err(error) => {
            facts.no_network = Some(format!("{error:#}"));
            facts.send_buffer = send_buffer();
        }
        Ok(topology) => {
            let inside = topology.a.run(|| (Tun::open("lab-probe", TunOptions::ALL).err(), send_buffer()));
            let (no_tun, send_buffer) = inside.unwrap_or_else(|error| (Some(error), 0));
            facts.no_tun = no_tun.map(|error| with_tun_fix(&error));
            facts.send_buffer = send_buffer;
            facts.no_bottleneck = topology
                .add_bottleneck(Cable::Direct, BOTTLENECK_RATE, TOKEN_BUCKET, TOKEN_BUCKET)
                .err()
                .map(|error| format!("{error:#}"));
        }
    }
    let Ok(json) = serde_json::to_string(&facts) else { return ExitCode::FAILURE };
    match std::io::Write::write_all(&mut std::io::stdout(), json.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Moves this process, which must have one thread, into a network namespace of its own, without privileges where that is
/// allowed.
///
/// # Errors
/// Where neither a user namespace nor CAP_SYS_ADMIN is at hand, with the fix.
pub fn isolate() -> anyhow::Result<()> {
    let Err(refusal) = namespace::unshare_user_and_net() else { return Ok(()) };
    // Root in a container without user namespaces may still make network namespaces.
    if namespace::unshare_net().is_ok() {
        return Ok(());
    }
    anyhow::bail!("user namespaces are forbidden here ({refusal}): {}", user_namespace_fix());
}

/// The setting that forbids user namespaces, as the command that allows them.
fn user_namespace_fix() -> &'static str {
    let is = |name: &str, value: &str| {
        std::fs::read_to_string(format!("/proc/sys/{name}")).is_ok_and(|content| content.trim() == value)
    };
    if is("kernel/unprivileged_userns_clone", "0") {
        "sudo sysctl kernel.unprivileged_userns_clone=1"
    } else if is("kernel/apparmor_restrict_unprivileged_userns", "1") {
        "sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0"
    } else if is("user/max_user_namespaces", "0") {
        "sudo sysctl user.max_user_namespaces=10000"
    } else {
        "run as root, or in a container with `--security-opt seccomp=unconfined --cap-add SYS_ADMIN`"
    }
}

/// Why a TUN device could not be opened, in one line that ends with the fix for an ordinary user.
fn with_tun_fix(error: &std::io::Error) -> String {
    use std::os::unix::fs::PermissionsExt;
    let closed =
        std::fs::metadata("/dev/net/tun").is_ok_and(|meta| meta.permissions().mode() & 0o006 != 0o006);
    if closed {
        return "/dev/net/tun is closed to ordinary users: sudo chmod 0666 /dev/net/tun".to_owned();
    }
    error.to_string()
}

/// Why the kernel gives no io_uring, asked by setting up a ring.
fn no_uring() -> Option<String> {
    let set_up = || ring::new(Arc::new(Slab::new(1)?.0), 1).map(drop);
    let error = set_up().err()?;
    let disabled = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
    Some(match disabled.trim() {
        setting @ ("1" | "2") => {
            format!("kernel.io_uring_disabled={setting}: sudo sysctl kernel.io_uring_disabled=0")
        }
        _ if error.kind() == std::io::ErrorKind::OutOfMemory => {
            format!("{error}: raise the limit of locked memory (ulimit -l)")
        }
        _ if error.kind() == std::io::ErrorKind::PermissionDenied => {
            "a sandbox forbids it: in a container, --security-opt seccomp=unconfined".to_owned()
        }
        _ => format!("{error}: it needs Linux 6.1 with CONFIG_IO_URING"),
    })
}

/// What the kernel grants a socket that asks as tunnel and relay do.
fn send_buffer() -> u32 {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let Ok(socket) = UdpSocket::bind(address, &UdpOptions::default()) else { return 0 };
    let bytes = rustix::net::sockopt::socket_send_buffer_size(socket.fd().as_fd()).unwrap_or(0);
    u32::try_from(bytes).unwrap_or(u32::MAX)
}
