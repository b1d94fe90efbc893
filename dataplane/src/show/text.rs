//! A tunnel as text: the lines of `wg show`, and those for what `wg` does not know.

use std::fmt::Write as _;

use super::Tunnel;
use super::duration::{ago, bytes, counted, long};
use crate::uapi::status::{Device, Peer};

/// Everything about a tunnel.
pub(super) fn of(tunnel: &Tunnel) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail, here and below.
    let _ = writeln!(text, "interface: {}", tunnel.device.interface);
    device(&mut text, &tunnel.device);
    let mut peers: Vec<&Peer> = tunnel.peers.iter().collect();
    // As `wg` does: those heard of last come first.
    peers.sort_by(|left, right| age(left).total_cmp(&age(right)));
    for peer in peers {
        let _ = writeln!(text, "\npeer: {}", peer.public_key);
        of_peer(&mut text, peer);
    }
    text
}

/// Of one without a handshake, more than any.
fn age(peer: &Peer) -> f64 {
    peer.handshake_age_s.unwrap_or(f64::INFINITY)
}

fn device(text: &mut String, device: &Device) {
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "  {name}: {value}");
    };
    if let Some(key) = &device.public_key {
        line("public key", key.clone());
        line("private key", "(hidden)".to_owned());
    }
    if device.listen_port != 0 {
        line("listening port", device.listen_port.to_string());
    }
    if device.fwmark != 0 {
        line("fwmark", format!("{:#x}", device.fwmark));
    }
    if let Some(relay) = device.relay {
        let own =
            device.relayed.map_or_else(|| "no address yet".to_owned(), |own| format!("our address {own}"));
        line("relay", format!("{relay}, {own}"));
    }
    let state = if device.up { "" } else { ", down" };
    line("design", format!("{} out, {} in, MTU {}{state}", device.io, device.ingress_design, device.mtu));
    if let Some(lost) = lost(device) {
        line("lost packets", lost);
    }
}

/// What was lost, most first.
fn lost(device: &Device) -> Option<String> {
    let mut lost: Vec<_> = device.drops.iter().filter(|&(_, &count)| count > 0).collect();
    lost.sort_by(|left, right| right.1.cmp(left.1).then_with(|| left.0.cmp(right.0)));
    let named: Vec<_> = lost.into_iter().map(|(cause, count)| format!("{count} {cause}")).collect();
    (!named.is_empty()).then(|| named.join(", "))
}

fn of_peer(text: &mut String, peer: &Peer) {
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "  {name}: {value}");
    };
    if peer.preshared_key {
        line("preshared key", "(hidden)".to_owned());
    }
    if let Some(endpoint) = peer.endpoint {
        line("endpoint", endpoint.to_string());
    }
    if let Some(path) = peer.path {
        let relay = peer.relay.map_or_else(String::new, |relay| format!(" by {relay}"));
        let silent = if peer.path_answered == Some(false) { " (no answer yet)" } else { "" };
        line("path", format!("{}{relay}{silent}", path.name()));
    }
    if let Some(code) = peer.relay_refusal {
        line("relay", format!("refuses this peer ({code})"));
    }
    if let Some(prefixes) = &peer.allowed_ips {
        let prefixes: Vec<_> = prefixes.iter().map(ToString::to_string).collect();
        line("allowed ips", if prefixes.is_empty() { "(none)".to_owned() } else { prefixes.join(", ") });
    }
    if let Some(age) = peer.handshake_age_s {
        line("latest handshake", ago(age as u64));
    }
    if peer.received_bytes > 0 || peer.sent_bytes > 0 {
        line("transfer", format!("{} received, {} sent", bytes(peer.received_bytes), bytes(peer.sent_bytes)));
    }
    if peer.missing_messages > 0 {
        line("missing", format!("{} that it has sent", counted(peer.missing_messages, "message")));
    }
    if peer.path_switches > 0 {
        let overtaken = counted(peer.path_overlapped, "message");
        line("path changes", format!("{}, {overtaken} overtaken", peer.path_switches));
    }
    if peer.persistent_keepalive_s > 0 {
        line("persistent keepalive", format!("every {}", long(peer.persistent_keepalive_s.into())));
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::uapi::status::Way;

    /// Two peers, one of which has been heard of, something lost.
    pub fn tunnel() -> Tunnel {
        let device = Device {
            version: "0.1.0".into(),
            interface: "wg0".into(),
            public_key: Some("DEVICE=".into()),
            listen_port: 51_820,
            fwmark: 0xca6c,
            mtu: 1_420,
            up: true,
            time_unix_s: 1_700_000_100.5,
            uptime_s: 100.0,
            io: "uring".into(),
            ingress_design: "epoll".into(),
            drops: [("no_route", 3), ("replay", 0), ("bad_tag", 70)]
                .map(|(name, count)| (name.to_owned(), count))
                .into(),
            ..Device::default()
        };
        let silent = Peer { public_key: "SILENT=".into(), allowed_ips: Some(vec![]), ..Peer::default() };
        let heard = Peer {
            public_key: "HEARD=".into(),
            preshared_key: true,
            endpoint: Some("192.0.2.2:51820".parse().unwrap()),
            path: Some(Way::Relayed),
            path_answered: Some(true),
            relay: Some("203.0.113.5:3478".parse().unwrap()),
            relay_refusal: None,
            allowed_ips: Some(["10.0.0.2/32", "fd00::/64"].map(|net| net.parse().unwrap()).into()),
            handshake_age_s: Some(62.9),
            persistent_keepalive_s: 25,
            received_bytes: 38_333,
            sent_bytes: 2 << 20,
            received_packets: 30,
            sent_packets: 40,
            missing_messages: 5,
            path_switches: 2,
            path_overlapped: 17,
            path_probes: 9,
        };
        Tunnel { device, peers: vec![silent, heard] }
    }

    #[test]
    fn a_tunnel_reads_as_in_wg_show_with_lines_of_our_own() {
        let expected = "\
interface: wg0
  public key: DEVICE=
  private key: (hidden)
  listening port: 51820
  fwmark: 0xca6c
  design: uring out, epoll in, MTU 1420
  lost packets: 70 bad_tag, 3 no_route

peer: HEARD=
  preshared key: (hidden)
  endpoint: 192.0.2.2:51820
  path: relayed by 203.0.113.5:3478
  allowed ips: 10.0.0.2/32, fd00::/64
  latest handshake: 1 minute, 2 seconds ago
  transfer: 37.43 KiB received, 2.00 MiB sent
  missing: 5 messages that it has sent
  path changes: 2, 17 messages overtaken
  persistent keepalive: every 25 seconds

peer: SILENT=
  allowed ips: (none)
";
        assert_eq!(of(&tunnel()), expected);

        let mut relayed = tunnel();
        relayed.device.relay = Some("203.0.113.5:3478".parse().unwrap());
        assert!(of(&relayed).contains("\n  relay: 203.0.113.5:3478, no address yet\n"));
        relayed.peers[1].path_answered = Some(false);
        assert!(of(&relayed).contains("\n  path: relayed by 203.0.113.5:3478 (no answer yet)\n"));
        (relayed.peers[1].path, relayed.peers[1].relay) = (Some(Way::Direct), None);
        assert!(of(&relayed).contains("\n  path: direct (no answer yet)\n"));
        relayed.peers[1].path_answered = None;
        assert!(of(&relayed).contains("\n  path: direct\n"));
        relayed.peers[1].relay_refusal = Some(403);
        assert!(of(&relayed).contains("\n  path: direct\n  relay: refuses this peer (403)\n"));
        relayed.device.relayed = Some("203.0.113.5:49160".parse().unwrap());
        assert!(of(&relayed).contains("\n  relay: 203.0.113.5:3478, our address 203.0.113.5:49160\n"));
    }

    #[test]
    fn a_device_without_key_and_peers_says_what_there_is() {
        let device = Device {
            interface: "wg1".into(),
            io: "drop".into(),
            ingress_design: "uring".into(),
            mtu: 1_420,
            ..Device::default()
        };
        let text = of(&Tunnel { device, peers: vec![] });
        assert_eq!(text, "interface: wg1\n  design: drop out, uring in, MTU 1420, down\n");
    }
}
