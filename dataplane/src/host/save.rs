//! `SaveConfig = true`: the file is written anew, from how the tunnel is set at its end.
//!
//! `[Interface]` stays as it is but for PrivateKey, where it is given, ListenPort, and FwMark, where it is given or was set since. Peers are those there are;
//! comments in a peer's section stay, and so does an Endpoint with a name.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use zeroize::Zeroizing;

use crate::config::Config;
use crate::tunnel::key::{KEY_LEN, PublicKey, SecretKey};

/// How long the loop may take for an answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// No answer is longer than this, bytes.
const ANSWER_MAX: u64 = 64 << 20;

/// Writes the configuration of a running tunnel anew; there is none any more after its process was killed. `mark` is what it was
/// brought up with, 0 for none.
pub(super) fn save(tunnel: Option<&UnixStream>, file: &Path, mark: u32) -> io::Result<()> {
    let saved = || -> io::Result<()> {
        let text = Zeroizing::new(fs::read_to_string(file)?);
        let device = ask(tunnel)?;
        let new = rewritten(&text, &device, mark)?;
        replace(file, &new)?;
        if is_other_key(file, &device) {
            tracing::warn!(
                "SaveConfig: {}: the private key that was set meanwhile is not saved: its PrivateKeyFile is left as it is",
                file.display()
            );
        }
        Ok(())
    };
    saved().map_err(|error| {
        io::Error::new(error.kind(), format!("SaveConfig: {} stays as it was: {error}", file.display()))
    })
}

/// How the tunnel is set, as `wg` is told.
fn ask(tunnel: Option<&UnixStream>) -> io::Result<Zeroizing<String>> {
    let killed = || io::Error::other("how the tunnel was set is not known, because its process was killed");
    let mut socket = tunnel.ok_or_else(killed)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.write_all(b"get=1\n\n")?;
    socket.shutdown(std::net::Shutdown::Write)?;
    let mut text = Zeroizing::new(String::new());
    socket.take(ANSWER_MAX).read_to_string(&mut text)?;
    if text.lines().rfind(|line| !line.is_empty()) != Some("errno=0") {
        return Err(io::Error::other("the tunnel does not say how it is set"));
    }
    Ok(text)
}

/// Whether the tunnel has another private key than the one in a file that its configuration names.
fn is_other_key(file: &Path, device: &str) -> bool {
    let has = Device::parse(device).ok().and_then(|device| device.private_key);
    let (Some(has), Ok((config, _))) = (has, Config::load(file)) else { return false };
    // `wg` clamps what it sets.
    let written = config.private_key;
    !written.is_zero() && *written.to_base64() != *has && *written.clamped().to_base64() != *has
}

/// Beside the file first, so that there is a whole one at any time; with the owner, group and mode of the old one. Where the
/// name is a link, what it leads to is replaced.
fn replace(name: &Path, text: &str) -> io::Result<()> {
    let file = &fs::canonicalize(name)?;
    let old = fs::metadata(file)?;
    let mut name = file.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let beside = file.with_file_name(name);
    let _ = fs::remove_file(&beside);
    let written = || -> io::Result<()> {
        let mut new = File::options().write(true).create_new(true).mode(0o600).open(&beside)?;
        let made = new.metadata()?;
        if (made.uid(), made.gid()) != (old.uid(), old.gid()) {
            fchown(&new, Some(old.uid()), Some(old.gid()))?;
        }
        // Behind the owner: a change of that takes bits of the mode away.
        new.set_permissions(fs::Permissions::from_mode(old.mode() & 0o7777))?;
        new.write_all(text.as_bytes())?;
        new.sync_all()?;
        fs::rename(&beside, file)
    };
    written().inspect_err(|_| _ = fs::remove_file(&beside))
}

/// A peer as the tunnel tells of it.
#[derive(Default)]
struct Peer {
    public_key: String,
    preshared_key: Option<Zeroizing<String>>,
    allowed_ips: Vec<String>,
    endpoint: Option<String>,
    persistent_keepalive: Option<String>,
}

/// The tunnel as it tells of itself.
#[derive(Default)]
struct Device {
    private_key: Option<Zeroizing<String>>,
    listen_port: Option<String>,
    firewall_mark: Option<String>,
    peers: Vec<Peer>,
}

impl Device {
    fn parse(text: &str) -> io::Result<Self> {
        let broken = || io::Error::other("the tunnel's answer cannot be read");
        let mut device = Self::default();
        for (key, value) in text.lines().filter_map(|line| line.split_once('=')) {
            match (key, device.peers.last_mut()) {
                ("private_key", _) => {
                    device.private_key = Some(SecretKey::new(key_of(value).ok_or_else(broken)?).to_base64());
                }
                ("listen_port", _) => device.listen_port = Some(value.to_owned()),
                ("fwmark", _) => device.firewall_mark = Some(value.to_owned()),
                ("public_key", _) => {
                    let public_key = PublicKey(key_of(value).ok_or_else(broken)?).to_string();
                    device.peers.push(Peer { public_key, ..Peer::default() });
                }
                ("preshared_key", Some(peer)) => {
                    let key = key_of(value).ok_or_else(broken)?;
                    peer.preshared_key = (key != [0; KEY_LEN]).then(|| SecretKey::new(key).to_base64());
                }
                ("allowed_ip", Some(peer)) => peer.allowed_ips.push(value.to_owned()),
                ("endpoint", Some(peer)) => peer.endpoint = Some(value.to_owned()),
                ("persistent_keepalive_interval", Some(peer)) if value != "0" => {
                    peer.persistent_keepalive = Some(value.to_owned());
                }
                _ => {}
            }
        }
        Ok(device)
    }
}

/// A key in hexadecimal digits.
fn key_of(hexadecimal: &str) -> Option<[u8; KEY_LEN]> {
    let mut key = [0; KEY_LEN];
    if hexadecimal.len() != 2 * KEY_LEN {
        return None;
    }
    for (byte, digits) in key.iter_mut().zip(hexadecimal.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(key)
}

/// A key of a configuration line, in lower case, and its value.
fn pair(line: &str) -> Option<(String, &str)> {
    let (key, value) = line.split('#').next()?.split_once('=')?;
    Some((key.trim().to_ascii_lowercase(), value.trim()))
}

fn is_heading(line: &str, name: &str) -> bool {
    line.split('#').next().unwrap_or_default().trim().eq_ignore_ascii_case(name)
}

/// The text of a configuration, with what the tunnel tells of itself in it.
fn rewritten(text: &str, answer: &str, mark: u32) -> io::Result<Zeroizing<String>> {
    let device = Device::parse(answer)?;
    // Text that holds keys and grows would leave copies of them behind.
    let mut new = Zeroizing::new(String::with_capacity(2 * text.len() + 2 * answer.len()));
    let lines: Vec<&str> = text.lines().collect();
    let first_peer = lines.iter().position(|line| is_heading(line, "[peer]")).unwrap_or(lines.len());
    let has = |wanted| lines[..first_peer].iter().filter_map(|line| pair(line)).any(|(key, _)| key == wanted);
    let port = device.listen_port.as_ref().filter(|_| !has("listenport"));
    // What the tunnel was brought up with is in the file already, or is what a default route has chosen and chooses anew.
    let is_set = device.firewall_mark.as_ref().map_or(Ok(0), |now| now.parse()) != Ok(mark);
    let new_mark = device.firewall_mark.as_ref().filter(|_| is_set && !has("fwmark"));
    for line in &lines[..first_peer] {
        let replaced = match pair(line).as_ref().map(|(key, _)| key.as_str()) {
            Some("listenport") => device.listen_port.as_ref().map(|port| ("ListenPort", port.as_str())),
            Some("privatekey") => device.private_key.as_ref().map(|key| ("PrivateKey", key.as_str())),
            Some("fwmark") if is_set => Some(("FwMark", device.firewall_mark.as_deref().unwrap_or("off"))),
            _ => None,
        };
        // Writing to a string does not fail, here and below.
        let _ = match replaced {
            Some((key, value)) => writeln!(new, "{key} = {value}"),
            None => writeln!(new, "{line}"),
        };
        if is_heading(line, "[interface]") {
            for (key, value) in [("ListenPort", port), ("FwMark", new_mark)] {
                let _ = value.map(|value| writeln!(new, "{key} = {value}"));
            }
        }
    }
    let sections = sections_of(&lines[first_peer..]);
    for peer in &device.peers {
        let old = sections.iter().find(|section| is_about(section, &peer.public_key)).copied();
        write_peer(&mut new, peer, old.unwrap_or_default());
    }
    Ok(new)
}

/// The lines of each peer, without its heading.
fn sections_of<'a, 'b>(lines: &'b [&'a str]) -> Vec<&'b [&'a str]> {
    lines.split(|line| is_heading(line, "[peer]")).skip(1).collect()
}

fn is_about(section: &[&str], public_key: &str) -> bool {
    section.iter().filter_map(|line| pair(line)).any(|(key, value)| key == "publickey" && value == public_key)
}

fn write_peer(new: &mut String, peer: &Peer, old: &[&str]) {
    if !new.is_empty() && !new.ends_with("\n\n") {
        new.push('\n');
    }
    new.push_str("[Peer]\n");
    for comment in old.iter().filter(|line| line.trim_start().starts_with('#')) {
        let _ = writeln!(new, "{comment}");
    }
    let _ = writeln!(new, "PublicKey = {}", peer.public_key);
    if let Some(key) = &peer.preshared_key {
        let _ = writeln!(new, "PresharedKey = {}", key.as_str());
    }
    if !peer.allowed_ips.is_empty() {
        let _ = writeln!(new, "AllowedIPs = {}", peer.allowed_ips.join(", "));
    }
    // An address is where the peer was last; a name is where it will be. Where the tunnel knows no address, as of a peer behind a
    // relay that was never reached, what was written is still the best there is.
    let written = old.iter().filter_map(|line| pair(line)).find(|(key, _)| key == "endpoint");
    let written = written.map(|(_, value)| value);
    let named = written.filter(|value| value.parse::<std::net::SocketAddr>().is_err());
    if let Some(endpoint) = named.or(peer.endpoint.as_deref()).or(written) {
        let _ = writeln!(new, "Endpoint = {endpoint}");
    }
    if let Some(seconds) = &peer.persistent_keepalive {
        let _ = writeln!(new, "PersistentKeepalive = {seconds}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_changed_is_written_and_what_has_not_stays() {
        let key = |byte: u8| (format!("{byte:02x}").repeat(KEY_LEN), PublicKey([byte; KEY_LEN]).to_string());
        let ((one, one64), (two, two64), (three, three64)) = (key(1), key(2), key(3));
        let text = format!(
            "# mine\n[Interface]\nPrivateKeyFile = wg0.key\nAddress = 10.9.0.1/24\nSaveConfig = true\nFwMark=5 # five\n\
             #towpath: Relay = turn:relay.example\nPostUp = echo %i # out\n\n[Peer]\n# the office\nPublicKey = {one64}\n\
             #towpath: Path = auto\nAllowedIPs = 10.9.0.2/32\nEndpoint = office.example:51820\n\n[peer]\n\
             PublicKey = {two64}\nAllowedIPs = 10.9.0.3/32\nEndpoint = 192.0.2.3:1\n"
        );
        let answer = format!(
            "private_key={three}\nlisten_port=40000\nfwmark=7\npublic_key={one}\npreshared_key={}\n\
             endpoint=192.0.2.9:51820\nlast_handshake_time_sec=0\npersistent_keepalive_interval=25\n\
             allowed_ip=10.9.0.2/32\nallowed_ip=fd09::2/128\npublic_key={three}\npreshared_key={two}\n\
             endpoint=[2001:db8::1]:7\npersistent_keepalive_interval=0\nerrno=0\n\n",
            "00".repeat(KEY_LEN)
        );
        let expected = format!(
            "# mine\n[Interface]\nListenPort = 40000\nPrivateKeyFile = wg0.key\nAddress = 10.9.0.1/24\nSaveConfig = true\n\
             FwMark = 7\n#towpath: Relay = turn:relay.example\nPostUp = echo %i # out\n\n[Peer]\n# the office\n\
             #towpath: Path = auto\nPublicKey = {one64}\nAllowedIPs = 10.9.0.2/32, fd09::2/128\n\
             Endpoint = office.example:51820\nPersistentKeepalive = 25\n\n[Peer]\nPublicKey = {three64}\n\
             PresharedKey = {two64}\nEndpoint = [2001:db8::1]:7\n"
        );
        assert_eq!(*rewritten(&text, &answer, 0).expect("good"), expected);
        // A second time nothing changes.
        assert_eq!(*rewritten(&expected, &answer, 0).expect("good"), expected);
        assert!(rewritten(&text, "public_key=12\n", 0).is_err());
    }

    #[test]
    fn a_mark_that_was_set_since_is_written_and_one_that_a_default_route_has_is_not() {
        let text = "[Interface]\nListenPort = 4000\nAddress = 10.9.0.1/24\n";
        let written = |answer: &str, mark| {
            let new = rewritten(text, &format!("listen_port=4000\n{answer}errno=0\n\n"), mark).expect("good");
            new.lines().find_map(|line| line.strip_prefix("FwMark = ")).map(str::to_owned)
        };
        assert_eq!(written("fwmark=119\n", 0).as_deref(), Some("119"));
        assert_eq!(written("fwmark=119\n", 51_820).as_deref(), Some("119"));
        assert_eq!(written("fwmark=51820\n", 51_820), None);
        assert_eq!(written("", 51_820), None);
        let off = "[Interface]\nListenPort = 4000\nFwMark = off\n";
        let new = rewritten(off, "listen_port=4000\nfwmark=51820\nerrno=0\n\n", 51_820).expect("good");
        assert_eq!(*new, off);
    }

    #[test]
    fn a_key_that_the_file_does_not_get_is_noticed() {
        let folder = tempfile::tempdir().expect("a directory");
        let file = folder.path().join("wg0.conf");
        let key = |byte: u8| SecretKey::new([byte; KEY_LEN]).clamped();
        let hexadecimal =
            |byte: u8| key(byte).expose().iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        fs::write(folder.path().join("wg0.key"), &*key(7).to_base64()).expect("written");
        fs::write(&file, "[Interface]\nPrivateKeyFile = wg0.key\n").expect("written");
        let noticed = |byte| is_other_key(&file, &format!("private_key={}\nerrno=0\n\n", hexadecimal(byte)));
        assert!(!noticed(7) && noticed(8));
        // Where the file has the key, it was written; where it has none, a hook sets it.
        fs::write(&file, "[Interface]\n").expect("written");
        assert!(!noticed(8));
    }

    #[test]
    fn an_address_that_the_tunnel_never_learned_stays() {
        let key = PublicKey([3; KEY_LEN]);
        let peer = |endpoint: Option<&str>| Peer {
            public_key: key.to_string(),
            preshared_key: None,
            allowed_ips: Vec::new(),
            endpoint: endpoint.map(str::to_owned),
            persistent_keepalive: None,
        };
        let written = |endpoint, old: &[&str]| {
            let mut new = String::new();
            write_peer(&mut new, &peer(endpoint), old);
            new.lines().find_map(|line| line.strip_prefix("Endpoint = ")).map(str::to_owned)
        };
        let literal = ["Endpoint = 192.0.2.2:51820"];
        assert_eq!(written(None, &literal).as_deref(), Some("192.0.2.2:51820"));
        assert_eq!(written(Some("192.0.2.9:7"), &literal).as_deref(), Some("192.0.2.9:7"));
        assert_eq!(written(Some("192.0.2.9:7"), &["Endpoint = a.example:1"]).as_deref(), Some("a.example:1"));
        assert_eq!(written(None, &[]), None);
    }

    #[test]
    fn a_file_is_replaced_as_a_whole_and_keeps_its_mode() {
        let folder = tempfile::tempdir().expect("a directory");
        let file = folder.path().join("wg0.conf");
        fs::write(&file, "old").expect("written");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).expect("set");
        replace(&file, "new").expect("replaced");
        assert_eq!(fs::read_to_string(&file).expect("text"), "new");
        assert_eq!(fs::metadata(&file).expect("there").permissions().mode() & 0o7777, 0o640);
        assert_eq!(fs::read_dir(folder.path()).expect("a directory").count(), 1);
    }

    #[test]
    fn a_link_stays_one_and_the_owner_of_what_it_leads_to_as_well() {
        let folder = tempfile::tempdir().expect("a directory");
        let (kept, link) = (folder.path().join("kept"), folder.path().join("wg0.conf"));
        fs::create_dir(&kept).expect("made");
        let file = kept.join("office.conf");
        fs::write(&file, "old").expect("written");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).expect("set");
        // Only root can give a file away.
        let given = std::os::unix::fs::chown(&file, Some(12_345), Some(54_321)).is_ok();
        let before = fs::metadata(&file).expect("there");
        assert!(!given || (before.uid(), before.gid()) == (12_345, 54_321));
        std::os::unix::fs::symlink("kept/office.conf", &link).expect("a link");
        replace(&link, "new").expect("replaced");
        assert!(fs::symlink_metadata(&link).expect("there").is_symlink());
        assert_eq!(fs::read_to_string(&file).expect("text"), "new");
        let after = fs::metadata(&file).expect("there");
        assert_eq!(
            (after.uid(), after.gid(), after.mode()),
            (before.uid(), before.gid(), before.mode()),
            "owner, group and mode"
        );
        assert_eq!(fs::read_dir(&kept).expect("a directory").count(), 1);
    }
}
