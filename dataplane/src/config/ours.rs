//! The lines that begin with `#towpath:` in a configuration that wg-quick reads, for a program that wg-quick has started: it
//! hands on everything else, and these to nobody.

use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::parse::{Interface, NO_RELAY, Peer, towpath_comment};
use super::{ConfigError, FILE_MAX, RelayConfig, read_whole};
use crate::tunnel::key::PublicKey;
use crate::tunnel::marking::Marking;
use crate::tunnel::paths::Policy;

/// Where wg-quick keeps its configurations.
const FOLDER: &str = "/etc/wireguard";

/// What these lines say.
#[derive(Debug)]
pub struct Lines {
    /// The file they stand in.
    pub file: PathBuf,
    /// The relays, in the order in which they are tried.
    pub relays: Vec<RelayConfig>,
    /// DSCP and ECN outside.
    pub marking: Marking,
    /// By which ways peers may be reached: those of whom it is said.
    pub policies: Vec<(PublicKey, Policy)>,
    /// Things that work, but should be looked at.
    pub warnings: Vec<String>,
    /// What there was, in the order of the file.
    taken: Vec<String>,
}

/// Why there are none.
#[derive(Debug)]
pub enum NoLines {
    /// There is no such file, or none of ours in it; or it cannot be read, and then wg-quick has not read it either.
    Absent,
    /// Somebody else may have written them. Says what to do.
    Distrusted(String),
    /// They cannot be used.
    Wrong(ConfigError),
}

impl Lines {
    /// Those in the configuration that wg-quick has for an interface, with the files that they name.
    ///
    /// # Errors
    /// Why there are none; of lines that cannot be used, the first, with what is wrong and the remedy.
    pub fn of_interface(interface: &str) -> Result<Self, NoLines> {
        Self::load(&Path::new(FOLDER).join(format!("{interface}.conf")))
    }

    /// Whether wg-quick has a configuration for an interface.
    #[must_use]
    pub fn has_file(interface: &str) -> bool {
        Path::new(FOLDER).join(format!("{interface}.conf")).exists()
    }

    fn load(file: &Path) -> Result<Self, NoLines> {
        let opened = File::open(file).map_err(|_| NoLines::Absent)?;
        let metadata = opened.metadata().map_err(|_| NoLines::Absent)?;
        if !metadata.is_file() || metadata.len() > FILE_MAX {
            return Err(NoLines::Absent);
        }
        let bytes = read_whole(opened, metadata.len()).map_err(|_| NoLines::Absent)?;
        let text = std::str::from_utf8(&bytes).map_err(|_| NoLines::Absent)?;
        if !text.lines().any(|line| towpath_comment(line).is_some()) {
            return Err(NoLines::Absent);
        }
        // As it was when it was opened, so that nobody puts another one in its place meanwhile.
        let distrusted = |why: &str, remedy: &str| {
            let shown = file.display();
            NoLines::Distrusted(format!(
                "{shown}: its lines that begin with #towpath: are left out, because {why}; run: {remedy} {shown}"
            ))
        };
        let ourselves = rustix::process::geteuid().as_raw();
        if metadata.uid() != 0 && metadata.uid() != ourselves {
            return Err(distrusted("it belongs to another user", "chown root"));
        }
        if metadata.mode() & 0o022 != 0 {
            return Err(distrusted("others may write it", "chmod go-w"));
        }
        Self::parse(file, text).map_err(NoLines::Wrong)
    }

    fn parse(file: &Path, text: &str) -> Result<Self, ConfigError> {
        let at =
            |line: usize| move |problem: String| ConfigError { file: file.into(), line: Some(line), problem };
        let (mut interface, mut peers, mut in_peer) = (None, Vec::<Peer>::new(), false);
        let mut taken: Vec<String> = Vec::new();
        for (number, raw) in (1..).zip(text.lines()) {
            let Some(ours) = towpath_comment(raw) else {
                // Whatever is wrong with these lines, wg-quick and `wg` say.
                let text = raw.split('#').next().unwrap_or_default().trim();
                match text.to_ascii_lowercase().as_str() {
                    "[interface]" => {
                        interface.get_or_insert_with(|| Interface::on(number));
                        in_peer = false;
                    }
                    "[peer]" => {
                        peers.push(Peer::on(number));
                        in_peer = true;
                    }
                    _ => {
                        let key_value = text.split_once('=').map(|(key, value)| (key.trim(), value.trim()));
                        if let (Some((key, value)), Some(peer), true) = (key_value, peers.last_mut(), in_peer)
                            && key.eq_ignore_ascii_case("publickey")
                        {
                            let _ = peer.set(key, value, number); // `wg` says so as well
                        }
                    }
                }
                continue;
            };
            if ours.is_empty() {
                continue;
            }
            let wanted = || "write #towpath: KEY = VALUE".to_owned();
            let (key, value) = ours.split_once('=').ok_or_else(wanted).map_err(at(number))?;
            let (key, value) = (key.trim(), value.trim());
            let set = match (in_peer, &mut interface, peers.last_mut()) {
                (true, _, Some(peer)) => peer.set_ours(key, value, number),
                (false, Some(interface), _) => interface.set_ours(key, value, number),
                _ => {
                    Err("this line stands before the first section; move it below [Interface] or [Peer]"
                        .into())
                }
            };
            set.map_err(at(number))?;
            if key.eq_ignore_ascii_case("relay") || !taken.iter().any(|other| key.eq_ignore_ascii_case(other))
            {
                taken.push(if key.eq_ignore_ascii_case("relay") { value } else { key }.to_owned());
            }
        }
        let (mut warnings, mut marking, mut relays) = (Vec::new(), Marking::default(), Vec::new());
        if let Some(mut interface) = interface {
            marking = interface.marking();
            let directory = file.parent().unwrap_or(Path::new(""));
            let lines = std::mem::take(&mut interface.relays);
            relays = lines.finish(directory, &mut warnings).map_err(|(line, problem)| at(line)(problem))?;
        }
        let mut policies = Vec::new();
        for peer in peers {
            let Some((policy, line)) = peer.path else { continue };
            let key =
                peer.public_key.ok_or_else(|| "this peer has no PublicKey".to_owned()).map_err(at(line))?;
            if policy == Policy::Relay && relays.is_empty() {
                return Err(at(line)(NO_RELAY.to_owned()));
            }
            policies.push((key.0, policy));
        }
        Ok(Self { file: file.into(), relays, marking, policies, warnings, taken })
    }

    /// One line: what was taken, and from where.
    #[must_use]
    pub fn summary(&self) -> String {
        format!(
            "{}: its lines that begin with #towpath: are followed ({}); TOWPATH_LINES=off leaves them out",
            self.file.display(),
            self.taken.join(", ")
        )
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const KEY: &str = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("towpath-lines-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder");
        fs::write(folder.join("password"), "secret\n").expect("a file");
        folder
    }

    fn wrong(text: &str) -> String {
        Lines::parse(Path::new("/nowhere/wg0.conf"), text).expect_err("refused").to_string()
    }

    #[test]
    fn what_only_we_read_is_taken_and_what_wg_reads_is_left_to_it() {
        let folder = folder("taken");
        let text = format!(
            "[Interface]\nPrivateKey = not looked at\nNonsense = x\n#towpath: Relay = turn:192.0.2.1\n\
             # towpath: relay = turns:relay.example\n#towpath: RelayUsername = alice\n\
             #towpath: RelayPasswordFile = password\n#towpath: ECN = off\n[Peer]\npublickey={KEY} # that one\n\
             #towpath: Path = relay\nAllowedIPs = nonsense\n[Peer]\nPublicKey = nobody's\n"
        );
        let lines = Lines::parse(&folder.join("wg0.conf"), &text).expect("good");
        assert_eq!((lines.relays.len(), lines.marking.ecn), (2, false));
        assert_eq!(lines.policies, [(KEY.parse().expect("a key"), Policy::Relay)]);
        let summary = lines.summary();
        let taken = "(turn:192.0.2.1, turns:relay.example, RelayUsername, RelayPasswordFile, ECN, Path)";
        assert!(summary.contains(taken), "{summary}");
        fs::remove_dir_all(&folder).expect("removed");
    }

    #[test]
    fn a_line_that_cannot_be_used_is_named() {
        let peer = format!("[Peer]\nPublicKey = {KEY}\n");
        for (text, problem) in [
            ("#towpath: ECN = on\n[Interface]\n".to_owned(), ":1: this line stands before"),
            ("[Interface]\n#towpath: Relay\n".to_owned(), ":2: write #towpath: KEY = VALUE"),
            ("[Interface]\n\n#towpath: Rely = turn:x\n".to_owned(), ":3: \"Rely\" is unknown"),
            ("[Interface]\n#towpath: Relay = turn:192.0.2.1\n".to_owned(), ":2: Relay, RelayUsername"),
            (
                format!("[Interface]\n{peer}#towpath: Path = relay\n"),
                ":4: Path is relay, and there is no relay",
            ),
            ("[Interface]\n[Peer]\n#towpath: Path = auto\n".to_owned(), ":3: this peer has no PublicKey"),
        ] {
            let said = wrong(&text);
            assert!(said.contains(problem), "{said}");
        }
    }

    #[test]
    fn what_others_may_have_written_is_left_out() {
        let folder = folder("mode");
        let file = folder.join("wg0.conf");
        assert!(matches!(Lines::load(&file), Err(NoLines::Absent)));
        fs::write(&file, "[Interface]\n# towpath is a program\n").expect("a file");
        assert!(matches!(Lines::load(&file), Err(NoLines::Absent)));
        fs::write(&file, "[Interface]\n#towpath: DSCP = copy\n").expect("a file");
        for (mode, trusted) in [(0o644, true), (0o664, false), (0o602, false), (0o600, true)] {
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).expect("a mode");
            match Lines::load(&file) {
                Ok(_) => assert!(trusted, "{mode:o}"),
                Err(NoLines::Distrusted(said)) => {
                    assert!(!trusted && said.contains("run: chmod go-w"), "{mode:o}: {said}");
                }
                Err(other) => panic!("{mode:o}: {other:?}"),
            }
        }
        fs::remove_dir_all(&folder).expect("removed");
    }
}
