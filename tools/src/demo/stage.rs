//! Puts tunnels and relay into their places with their configuration, and takes them down again.

use std::fs;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;

use super::Interrupt;
use super::child::{Child, output_of};
use super::ledger::Figures;
use super::plan::{A_INSIDE, B_INSIDE, RELAY_PORT, Route, TUNNEL_PORT};
use super::role::Role;
use crate::netns::{Address, Topology};

/// Interface of client A's tunnel.
pub const DEVICE_A: &str = "lab-a";
/// Interface of client B's tunnel.
pub const DEVICE_B: &str = "lab-b";
/// The relay's one user.
pub const USER: &str = "lab";
/// How long a process may take to start.
const START_PATIENCE: Duration = Duration::from_secs(5);
/// How long it may take to end: what is queued behind the bottleneck may have to leave first.
const STOP_PATIENCE: Duration = Duration::from_secs(5);

/// Where the demo happens: its network, its files, its secrets.
pub struct Site {
    /// Absent where there is only loopback.
    pub topology: Option<Topology>,
    /// Of the relay's user.
    pub password: String,
    /// Where the relay listens when there is only loopback.
    pub loopback_port: u16,
    directory: Directory,
}

impl Site {
    /// Makes keys, passwords and configuration in a directory that only this user can read.
    ///
    /// # Errors
    /// When files cannot be written or keys cannot be made.
    pub fn new(topology: Option<Topology>) -> anyhow::Result<Self> {
        let tunnel = |arguments: &[&str], input| output_of(Role::Tunnel, arguments, input);
        // Random bytes in base64: as good a password as a key.
        let password = tunnel(&["genpsk"], None)?;
        let directory = Directory::new()?;
        directory.write("password", &password)?;
        directory.write("users", &format!("{USER}:{password}\n"))?;
        if topology.is_some() {
            let (private_a, private_b) = (tunnel(&["genkey"], None)?, tunnel(&["genkey"], None)?);
            let public_a = tunnel(&["pubkey"], Some(&private_a))?;
            let public_b = tunnel(&["pubkey"], Some(&private_b))?;
            let password_file = directory.path("password");
            for route in [Route::Direct, Route::Relayed] {
                directory.write(
                    &file(route, DEVICE_A),
                    &configuration_a(route, &private_a, &public_b, &password_file),
                )?;
                directory.write(&file(route, DEVICE_B), &configuration_b(&private_b, &public_a))?;
            }
        }
        // A port that was free a moment ago: nobody else waits for it on loopback.
        let loopback_port = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        Ok(Self { topology, password, loopback_port, directory })
    }
}

fn file(route: Route, device: &str) -> String {
    format!("{}/{device}.conf", route.name())
}

fn configuration_a(route: Route, private: &str, public_b: &str, password_file: &Path) -> String {
    let (relay, path, endpoint) = match route {
        Route::Direct | Route::RelayOnly => (String::new(), "", Address::B_DIRECT),
        Route::Relayed => (
            format!(
                "#towpath: Relay = turn:{}:{RELAY_PORT}\n#towpath: RelayUsername = {USER}\n#towpath: RelayPasswordFile = {}\n",
                Address::RELAY,
                password_file.display()
            ),
            "#towpath: Path = relay\n",
            Address::B_AT_RELAY,
        ),
    };
    format!(
        "[Interface]\nPrivateKey = {private}\nAddress = {A_INSIDE}/24\nListenPort = {TUNNEL_PORT}\n{relay}\n\
         [Peer]\nPublicKey = {public_b}\nAllowedIPs = {B_INSIDE}/32\nEndpoint = {endpoint}:{TUNNEL_PORT}\n{path}"
    )
}

/// B does not know where A is: it answers where A's handshake comes from, be it the relay.
fn configuration_b(private: &str, public_a: &str) -> String {
    format!(
        "[Interface]\nPrivateKey = {private}\nAddress = {B_INSIDE}/24\nListenPort = {TUNNEL_PORT}\n\n\
         [Peer]\nPublicKey = {public_a}\nAllowedIPs = {A_INSIDE}/32\n"
    )
}

/// The processes of one measurement, in the order in which they are stopped.
pub struct Stage(Vec<Child>);

impl Stage {
    /// Starts what `route` needs on the I/O design `design` and waits until all of it is ready.
    ///
    /// # Errors
    /// What did not come up, and what it said.
    pub fn start(site: &Site, design: &str, route: Route, interrupt: &Interrupt) -> anyhow::Result<Self> {
        let mut children = Vec::new();
        if route != Route::RelayOnly {
            let topology = site.topology.as_ref().context("tunnels need namespaces")?;
            for (device, namespace) in [(DEVICE_A, &topology.a), (DEVICE_B, &topology.b)] {
                let path = site.directory.path(&file(route, device)).display().to_string();
                let arguments = ["up", &path, "--io", design, "--log-format", "json"].map(str::to_owned);
                let name = format!("tunnel {}", if device == DEVICE_A { "A" } else { "B" });
                children.push(Child::start(&name, Role::Tunnel, &arguments, Some(namespace))?);
            }
        }
        if route != Route::Direct {
            let namespace = site.topology.as_ref().map(|topology| &topology.relay);
            let relay = Child::start("relay", Role::Relay, &relay_arguments(site, design), namespace)?;
            children.insert(children.len().min(1), relay);
        }
        let mut stage = Self(children);
        for child in &mut stage.0 {
            child.wait_ready(START_PATIENCE, interrupt)?;
        }
        Ok(stage)
    }

    /// Process ids in order.
    #[must_use]
    pub fn pids(&self) -> Vec<u32> {
        self.0.iter().map(Child::pid).collect()
    }

    /// Ends all of them and answers the names and figures of each.
    ///
    /// # Errors
    /// When one has to be killed, fails, or logs no ledger.
    pub fn stop(self) -> anyhow::Result<Vec<(String, Figures)>> {
        let stop = |child: Child| {
            let name = child.name.clone();
            let ledger = child.stop(STOP_PATIENCE)?;
            let ledger = ledger.with_context(|| format!("{name} ended without logging its ledger"))?;
            let figures = Figures::read(&ledger).with_context(|| name.clone())?;
            Ok((name, figures))
        };
        self.0.into_iter().map(stop).collect()
    }
}

fn relay_arguments(site: &Site, design: &str) -> Vec<String> {
    let (listen, peers) = match site.topology {
        Some(_) => (SocketAddr::from((Address::RELAY, RELAY_PORT)), Address::ALL),
        None => (SocketAddr::from((Ipv4Addr::LOCALHOST, site.loopback_port)), "127.0.0.0/8"),
    };
    let users = site.directory.path("users").display().to_string();
    let listen = listen.to_string();
    ["--listen", &listen, "--realm", "towpath-lab", "--user-file", &users, "--allow-peer", peers]
        .into_iter()
        .chain(["--io", design, "--log-format", "json", "--drain-timeout", "0"])
        .map(str::to_owned)
        .collect()
}

/// A directory that goes away with this value.
struct Directory(PathBuf);

impl Directory {
    fn new() -> anyhow::Result<Self> {
        let name = format!("towpath-demo-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::DirBuilder::new().mode(0o700).create(&path).with_context(|| {
            format!("cannot make {}; set TMPDIR to a directory you can write", path.display())
        })?;
        Ok(Self(path))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn write(&self, name: &str, content: &str) -> anyhow::Result<()> {
        let path = self.path(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        file.write_all(content.as_bytes()).with_context(|| format!("cannot write {}", path.display()))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // Left behind, it costs some disk; there is nobody to tell at this point.
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_for_this_user_only_and_go_away() {
        use std::os::unix::fs::PermissionsExt;
        let directory = Directory::new().unwrap();
        directory.write("direct/lab-a.conf", "secret").unwrap();
        let path = directory.path("direct/lab-a.conf");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(&directory.0).unwrap().permissions().mode() & 0o777, 0o700);
        assert!(directory.write("direct/lab-a.conf", "again").is_err(), "never writes over a file");
        drop(directory);
        assert!(!path.exists());
    }

    #[test]
    fn only_the_relayed_client_names_the_relay() {
        let relayed = configuration_a(Route::Relayed, "private", "public", Path::new("/p"));
        assert!(relayed.contains("#towpath: Relay = turn:10.71.2.2:3478\n"), "{relayed}");
        assert!(relayed.contains("Endpoint = 10.71.3.3:51820"), "{relayed}");
        let direct = configuration_a(Route::Direct, "private", "public", Path::new("/p"));
        assert!(!direct.contains("towpath") && direct.contains("Endpoint = 10.71.1.2:51820"), "{direct}");
    }
}
