//! Makes the hosts of a scenario and joins them: namespaces, links, addresses, rates, routes, forwarding, NAT.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use anyhow::{Context, bail};
use dataplane::netlink::Handle;

use super::files::Mounts;
use super::scenario::{self, Bucket, Link, Scenario, device};
use crate::netns::Namespace;

/// A host: a network, and the places in which its programs leave files.
#[derive(Debug)]
pub struct Host {
    /// Its devices.
    pub network: Arc<Namespace>,
    /// Its files.
    pub mounts: Mounts,
}

/// The hosts, by name. They end with this value and with the processes in them.
#[derive(Debug)]
pub struct Hosts(BTreeMap<String, Host>);

impl Hosts {
    /// Makes them, in a lab with this directory; the process must be allowed to (own user namespace, or CAP_SYS_ADMIN and
    /// CAP_NET_ADMIN).
    ///
    /// # Errors
    /// What could not be made, with its remedy.
    pub fn new(scenario: &Scenario, directory: &Path) -> anyhow::Result<Self> {
        let mut hosts = BTreeMap::new();
        for (name, host) in &scenario.hosts {
            let namespace = Namespace::new().with_context(|| format!("cannot make the host {name}"))?;
            namespace.run(|| prepare(host))?.with_context(|| format!("host {name}"))?;
            let mounts = Mounts::new(name, directory)?;
            hosts.insert(name.clone(), Host { network: Arc::new(namespace), mounts });
        }
        let hosts = Self(hosts);
        for link in &scenario.links {
            hosts
                .join(link)
                .with_context(|| format!("link between {} and {}", link.ends[0], link.ends[1]))?;
        }
        for (name, host) in &scenario.hosts {
            let finished = hosts.get(name)?.network.run(|| finish(host))?;
            finished.with_context(|| format!("host {name}"))?;
        }
        Ok(hosts)
    }

    /// One of them.
    ///
    /// # Errors
    /// When there is none of this name.
    pub fn get(&self, name: &str) -> anyhow::Result<&Host> {
        self.0.get(name).with_context(|| {
            let there: Vec<&str> = self.0.keys().map(String::as_str).collect();
            format!("there is no host {name:?}; there are {}", there.join(", "))
        })
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Host)> {
        self.0.iter().map(|(name, host)| (name.as_str(), host))
    }

    fn join(&self, link: &Link) -> anyhow::Result<()> {
        let [a, b] = &link.ends;
        let (near, far) = (&self.get(a)?.network, &self.get(b)?.network);
        let names = [device(a, b), device(b, a)];
        near.run(|| {
            let mut handle = Handle::open()?;
            let (_, index) = handle.add_veth(&names[0], &names[1])?;
            handle.move_to_namespace(index, far.as_fd())
        })??;
        for ((namespace, name), addresses) in [near, far].into_iter().zip(&names).zip(&link.addresses) {
            namespace.run(|| -> Result<(), dataplane::netlink::Error> {
                let mut handle = Handle::open()?;
                let index = handle.link_index(name)?;
                for &address in addresses {
                    handle.add_address(index, address)?;
                }
                if let Some(mtu) = link.mtu {
                    handle.set_mtu(index, mtu)?;
                }
                handle.set_up(index)?;
                if let Some(Bucket { rate, burst, queue }) = link.bucket {
                    handle.add_tbf(index, rate, burst, queue)?;
                }
                Ok(())
            })??;
        }
        Ok(())
    }
}

/// Before there are devices.
fn prepare(host: &scenario::Host) -> anyhow::Result<()> {
    if !host.ipv6 {
        for name in ["all", "default"] {
            set(&format!("ipv6/conf/{name}/disable_ipv6"))?;
        }
    }
    if host.forward {
        set("ipv4/ip_forward")?;
        if host.ipv6 {
            set("ipv6/conf/all/forwarding")?;
        }
    }
    let mut handle = Handle::open()?;
    let loopback = handle.link_index("lo")?;
    handle.set_up(loopback)?;
    Ok(())
}

/// When all devices are there.
fn finish(host: &scenario::Host) -> anyhow::Result<()> {
    let mut handle = Handle::open()?;
    for &(net, gateway) in &host.routes {
        handle.add_route_via(net, gateway)?;
    }
    if !host.masquerade.is_empty() {
        let devices: Vec<String> = host.masquerade.iter().map(|device| format!("\"{device}\"")).collect();
        let rule = format!("oifname {{ {} }} masquerade", devices.join(", "));
        let hook = "type nat hook postrouting priority srcnat";
        nft(&format!("table inet lab_nat {{\n chain leaving {{\n  {hook}\n  {rule}\n }}\n}}\n"))?;
    }
    host.nft.as_deref().map_or(Ok(()), nft)
}

/// Switches a setting below /proc/sys/net on, in the calling thread's network namespace.
fn set(name: &str) -> anyhow::Result<()> {
    let path = format!("/proc/sys/net/{name}");
    std::fs::write(&path, "1")
        .with_context(|| format!("cannot write {path}; is /proc mounted read-only here?"))
}

/// Gives rules to nft(8), in the calling thread's network namespace.
fn nft(rules: &str) -> anyhow::Result<()> {
    #[expect(clippy::disallowed_methods, reason = "the lab starts programs and has no ring open")]
    let mut command = Command::new("nft");
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    command.args(["-f", "-"]).env("PATH", path);
    let spawned = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
    let mut process = spawned.context("NAT and rules need nft: apt-get install nftables")?;
    if let Some(mut stdin) = process.stdin.take() {
        stdin.write_all(rules.as_bytes())?;
    }
    let output = process.wait_with_output()?;
    if !output.status.success() {
        bail!("nft refuses its rules: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
