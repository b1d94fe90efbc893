//! What a tunnel takes of its file at its start only, so that who changes it while the tunnel runs can be told.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{Config, PeerSection, RelayConfig};
use crate::tunnel::paths::Policy;

/// The values that are for the start, as text, without keys and passwords.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fixed {
    /// Of `[Interface]`, by key.
    interface: BTreeMap<String, String>,
    /// `Path` of those peers that do not have the usual one.
    paths: BTreeMap<String, String>,
}

impl Fixed {
    /// Those of a configuration.
    #[must_use]
    pub fn of(config: &Config) -> Self {
        let Config { addresses, mtu, mtu_auto, marking, host, relays, peers, .. } = config;
        let mut addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
        // In whichever order they are written.
        addresses.sort();
        let hooks = &host.hooks;
        let interface = [
            ("Address", addresses.join(" ")),
            ("MTU", if *mtu_auto { "auto".to_owned() } else { mtu.to_string() }),
            ("Table", format!("{:?}", host.table)),
            ("FwMark", host.firewall_mark.to_string()),
            ("DNS", format!("{:?} {:?}", host.name_servers, host.search_domains)),
            ("PreUp", hooks.pre_up.join("\n")),
            ("PostUp", hooks.post_up.join("\n")),
            ("PreDown", hooks.pre_down.join("\n")),
            ("PostDown", hooks.post_down.join("\n")),
            ("SaveConfig", host.save_config.to_string()),
            ("ECN", marking.ecn.to_string()),
            ("DSCP", marking.dscp.to_string()),
            ("Relay", relays.iter().map(relay).collect::<Vec<_>>().join("\n")),
        ];
        let paths = peers.iter().filter(|peer| peer.path != Policy::default());
        Self {
            interface: interface.map(|(key, value)| (key.to_owned(), value)).into(),
            paths: paths.map(|peer| (peer.public_key.to_string(), format!("{:?}", peer.path))).collect(),
        }
    }

    /// The keys whose values are others in a configuration. A peer that is no longer there is reached by no path.
    #[must_use]
    pub fn changed(&self, config: &Config) -> Vec<String> {
        let now = Self::of(config);
        let other = now.interface.iter().filter(|&(key, value)| self.interface.get(key) != Some(value));
        let mut changed: Vec<String> = other.map(|(key, _)| key.clone()).collect();
        let has_other_path = |peer: &PeerSection| {
            let key = peer.public_key.to_string();
            self.paths.get(&key) != now.paths.get(&key)
        };
        if config.peers.iter().any(has_other_path) {
            changed.push("Path".to_owned());
        }
        changed
    }
}

/// Which relay, and who we are there: what the file of the password holds is looked at again while the tunnel runs.
fn relay(relay: &RelayConfig) -> String {
    let RelayConfig { server, transport, certificate, login, .. } = relay;
    // Wherever the program was started.
    let whole = |file: &Path| std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
    let (certificate, file) = (certificate.as_deref().map(whole), whole(&login.file));
    format!("{server} {transport:?} {certificate:?} {:?} {:?} {file:?}", login.username, login.kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: &str = "[Interface]\nPrivateKey = yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=\nAddress = 10.9.0.1/24, fd09::1/64\n\
                         ListenPort = 7\nPostUp = true\n#towpath: Relay = turn:192.0.2.1\n#towpath: RelayUsername = u\n\
                         #towpath: RelayPasswordFile = password\n\
                         [Peer]\nPublicKey = xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=\nAllowedIPs = 10.9.0.2\n";

    fn load(folder: &Path, text: &str) -> Config {
        let file = folder.join("wg0.conf");
        std::fs::write(&file, text).unwrap();
        Config::load(&file).unwrap().0
    }

    #[test]
    fn what_is_for_the_start_only_is_told_by_its_key_when_it_changes() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("password"), "one").unwrap();
        let at_start = Fixed::of(&load(folder.path(), START));
        // It is kept in the journal.
        let kept = serde_json::to_string(&at_start).unwrap();
        let at_start: Fixed = serde_json::from_str(&kept).unwrap();
        assert!(!kept.contains("yAnz5TF") && !kept.contains("one\""), "{kept}");
        let changed = |from: &str, to: &str| {
            assert!(START.contains(from), "{from}");
            at_start.changed(&load(folder.path(), &START.replace(from, to)))
        };
        let interface = |line: &str| changed("[Interface]\n", &format!("[Interface]\n{line}\n"));
        // What a reload takes over, and what comes to the same.
        assert!(changed("ListenPort = 7", "ListenPort = 8").is_empty());
        assert!(changed("10.9.0.1/24, fd09::1/64", "fd09::1/64, 10.9.0.1/24").is_empty());
        assert!(changed("AllowedIPs = 10.9.0.2", "AllowedIPs = 10.9.0.3\n#towpath: Path = auto").is_empty());
        std::fs::write(folder.path().join("password"), "two").unwrap();
        assert!(interface("# nothing").is_empty());

        assert_eq!(changed("10.9.0.1/24", "10.9.0.7/24"), ["Address"]);
        assert_eq!(changed("PostUp = true", "PostUp = false\nPreUp = true"), ["PostUp", "PreUp"]);
        for (line, key) in [
            ("MTU = 1400", "MTU"),
            ("MTU = auto", "MTU"),
            ("Table = off", "Table"),
            ("FwMark = 7", "FwMark"),
            ("DNS = 10.9.0.2", "DNS"),
            ("PreDown = true", "PreDown"),
            ("PostDown = true", "PostDown"),
            ("SaveConfig = true", "SaveConfig"),
            ("#towpath: ECN = off", "ECN"),
            ("#towpath: DSCP = 7", "DSCP"),
        ] {
            assert_eq!(interface(line), [key], "{line}");
        }
        assert_eq!(changed("turn:192.0.2.1", "turn:192.0.2.2"), ["Relay"]);
        assert_eq!(changed("RelayUsername = u", "RelayUsername = v"), ["Relay"]);
        assert_eq!(changed("AllowedIPs = 10.9.0.2", "#towpath: Path = relay"), ["Path"]);
    }
}
