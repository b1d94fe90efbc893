//! What the queues of a lab's devices drop without telling who sends: those of TUN devices that nobody reads in time, and token
//! buckets. Who owns the network can look.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::sync::Arc;

use dataplane::netlink::Handle;

use super::problem::Problem;
use super::server::ServerDrops;
use crate::netns::Namespace;

/// Ends the name of what a device's queues dropped.
pub const QUEUE: &str = "_queue_skbs";

/// A host of a lab.
#[derive(Clone, Debug)]
pub struct Host {
    /// What it is called in the account.
    pub name: String,
    /// Where its devices are.
    pub namespace: Arc<Namespace>,
}

/// What the queues of all hosts had dropped at one moment.
#[derive(Debug)]
pub(super) struct Snapshot(Vec<(Host, BTreeMap<String, u64>)>);

impl Snapshot {
    /// Looks at all of them.
    ///
    /// # Errors
    /// [`Problem::Setup`], naming the host.
    pub(super) fn take(hosts: &[Host]) -> Result<Self, Problem> {
        let look = |host: &Host| {
            let problem = |error| {
                Problem::Setup(format!("cannot read what the devices of {} dropped: {error}", host.name))
            };
            Ok((host.clone(), read(host).map_err(problem)?))
        };
        Ok(Self(hosts.iter().map(look).collect::<Result<_, _>>()?))
    }

    /// What each has dropped since, as `DEVICE_queue_skbs`.
    #[must_use]
    pub(super) fn until_now(self) -> Vec<ServerDrops> {
        let since = |(host, before): (Host, BTreeMap<String, u64>)| {
            let (after, trouble) = match read(&host) {
                Ok(after) => (after, None),
                Err(error) => {
                    (BTreeMap::new(), Some(format!("its devices cannot be read any more: {error}")))
                }
            };
            let grown = |(device, now): (String, u64)| {
                let skbs = now.saturating_sub(before.get(&device).copied().unwrap_or(0));
                (format!("{device}{QUEUE}"), skbs)
            };
            let causes = after.into_iter().map(grown).filter(|entry| entry.1 > 0).collect();
            ServerDrops { name: host.name, causes, trouble, ..ServerDrops::default() }
        };
        self.0
            .into_iter()
            .map(since)
            .filter(|drops| !drops.causes.is_empty() || drops.trouble.is_some())
            .collect()
    }
}

/// Superpackets that each device's queues have dropped on the way out: the device's own, and its discipline's.
fn read(host: &Host) -> io::Result<BTreeMap<String, u64>> {
    host.namespace.run(|| {
        let mut handle = Handle::open().map_err(io::Error::other)?;
        // The thread's own view: it is in the host.
        let table = fs::read_to_string("/proc/thread-self/net/dev")?;
        let mut drops = BTreeMap::new();
        for (device, dropped) in table.lines().filter_map(sent_dropped) {
            let index = handle.link_index(device).map_err(io::Error::other)?;
            let discipline = handle.qdisc_stats(index).map_err(io::Error::other)?.drops;
            drops.insert(device.to_owned(), dropped + u64::from(discipline));
        }
        Ok(drops)
    })?
}

/// Name and dropped packets on the way out in a line of /proc/net/dev.
fn sent_dropped(line: &str) -> Option<(&str, u64)> {
    let (device, figures) = line.split_once(':')?;
    Some((device.trim(), figures.split_whitespace().nth(11)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_devices_are_read_and_others_are_not() {
        let line = "  wg0:     100       1    0    2    0     0          0         0      200       3    0    7    0     0       0          0";
        assert_eq!(sent_dropped(line), Some(("wg0", 7)));
        assert_eq!(sent_dropped("Inter-|   Receive                  |  Transmit"), None);
        assert_eq!(
            sent_dropped(" face |bytes    packets errs drop fifo frame compressed multicast|bytes"),
            None
        );
    }
}
