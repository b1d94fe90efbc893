//! `towpath strip`: prints of a configuration what `wg setconf` and `wg syncconf` take, key files read in, TOML translated.
//!
//! `wg` sets what its file leaves out to nothing, the mark and the port too. So what the configuration leaves to the tunnel is
//! printed as it is at present, where the tunnel runs.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::Args;

use super::Failure;
use crate::config::{self, Config};
use crate::host;
use crate::show;
use crate::uapi::DIRECTORY;
use crate::uapi::status::{Device, Wanted};

#[derive(Debug, Args)]
pub(super) struct Flags {
    /// The configuration, or the name of one in /etc/towpath or /etc/wireguard
    file: PathBuf,
}

pub(super) fn run(flags: &Flags) -> Result<(), Failure> {
    let file = host::find_running(&flags.file)?;
    let (config, _) = Config::load(&file)?;
    let name = config::interface_name(&file)?;
    if config.private_key.is_zero() {
        let text = "warning: there is no PrivateKey in it, and wg setconf and wg syncconf take away the one that a hook has set";
        // The rest is good; a closed standard error must not keep it back.
        let _ = writeln!(io::stderr(), "towpath: {}: {text}", file.display());
    }
    // It need not run.
    let tunnel = show::ask(Path::new(DIRECTORY), &name, Wanted::default()).ok();
    let mut out = io::stdout().lock();
    strip(&mut out, &config, tunnel.as_ref().map(|tunnel| &tunnel.device))?;
    Ok(out.flush()?)
}

/// Writes the lines, in the words of wg(8).
fn strip(out: &mut impl Write, config: &Config, present: Option<&Device>) -> io::Result<()> {
    writeln!(out, "[Interface]")?;
    if !config.private_key.is_zero() {
        writeln!(out, "PrivateKey = {}", *config.private_key.to_base64())?;
    }
    let given = |number: u32| Some(number).filter(|&number| number != 0);
    let port = given(config.listen_port.into()).or(present.map(|device| device.listen_port.into()));
    if let Some(port) = port {
        writeln!(out, "ListenPort = {port}")?;
    }
    if let Some(mark) = given(config.host.firewall_mark).or(present.map(|device| device.fwmark)) {
        writeln!(out, "FwMark = {mark:#x}")?;
    }
    for peer in &config.peers {
        writeln!(out, "\n[Peer]\nPublicKey = {}", peer.public_key)?;
        if let Some(key) = &peer.preshared_key {
            writeln!(out, "PresharedKey = {}", *key.to_base64())?;
        }
        for prefixes in peer.allowed_ips.chunks(PREFIXES_IN_A_LINE) {
            let prefixes: Vec<String> = prefixes.iter().map(ToString::to_string).collect();
            writeln!(out, "AllowedIPs = {}", prefixes.join(", "))?;
        }
        if let Some((endpoint, _)) = &peer.endpoint {
            writeln!(out, "Endpoint = {endpoint}")?;
        }
        if peer.persistent_keepalive != 0 {
            writeln!(out, "PersistentKeepalive = {}", peer.persistent_keepalive)?;
        }
    }
    Ok(())
}

/// So that no line is very long.
const PREFIXES_IN_A_LINE: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tunnel::key::SecretKey;

    #[test]
    fn what_wg_takes_is_printed_with_the_key_of_the_file_and_what_the_tunnel_has_chosen() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let file = folder.path().join(name);
            std::fs::write(&file, text).unwrap();
            file
        };
        let key = SecretKey::new([7; 32]).clamped().to_base64();
        write("wg0.key", &key);
        let public = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";
        let ini = write(
            "wg0.conf",
            &format!(
                "[Interface]\nPrivateKeyFile = wg0.key\nAddress = 10.9.0.1/24\nMTU = auto\nPostUp = true\n#towpath: ECN = on\n\
                 [Peer]\nPublicKey = {public}\nAllowedIPs = 10.9.0.2, fd09::2\nEndpoint = vpn.example:7 # home\n\
                 PersistentKeepalive = 25\nPresharedKey = {public}\n"
            ),
        );
        let toml = write(
            "wg1.toml",
            &format!(
                "[interface]\nprivate-key-file = \"wg0.key\"\n[[peer]]\npublic-key = \"{public}\"\n\
                 allowed-ips = [\"10.9.0.2\", \"fd09::2\"]\nendpoint = \"vpn.example:7\"\npersistent-keepalive = 25\n\
                 preshared-key = \"{public}\"\n"
            ),
        );
        let peer = format!(
            "\n[Peer]\nPublicKey = {public}\nPresharedKey = {public}\nAllowedIPs = 10.9.0.2/32, fd09::2/128\n\
             Endpoint = vpn.example:7\nPersistentKeepalive = 25\n"
        );
        let of = |file: &Path, present: Option<&Device>| {
            let (config, _) = Config::load(file).unwrap();
            let mut text = Vec::new();
            strip(&mut text, &config, present).unwrap();
            String::from_utf8(text).unwrap()
        };
        for file in [ini, toml] {
            assert_eq!(of(&file, None), format!("[Interface]\nPrivateKey = {}\n{peer}", *key));
            let present = Device { listen_port: 4_500, fwmark: 0xca6c, ..Device::default() };
            assert_eq!(
                of(&file, Some(&present)),
                format!("[Interface]\nPrivateKey = {}\nListenPort = 4500\nFwMark = 0xca6c\n{peer}", *key)
            );
        }
        let set =
            write("wg2.conf", "[Interface]\nListenPort = 9\nFwMark = 5\nPostUp = wg set %i private-key k\n");
        let present = Device { listen_port: 4_500, fwmark: 7, ..Device::default() };
        assert_eq!(of(&set, Some(&present)), "[Interface]\nListenPort = 9\nFwMark = 0x5\n");
    }
}
