//! The text of answers.

use std::fmt::Write as _;

use zeroize::Zeroizing;

use super::Refusal;
use crate::tunnel::key::{KEY_LEN, SecretKey};
use crate::tunnel::{Path, PeerView};

/// A part of an answer. It may hold keys and is wiped when dropped.
pub type Part = Zeroizing<String>;

/// The end of every answer. The number is negative, as wireguard-go has it and `wg` understands it.
#[must_use]
pub fn end(refusal: Option<Refusal>) -> Part {
    let number = refusal.map_or(0, |refusal| -refusal.number());
    Zeroizing::new(format!("errno={number}\n\n"))
}

/// What there is to say about the device itself. A port of 0 and a mark of 0 are none.
#[must_use]
pub fn device(private_key: Option<&SecretKey>, listen_port: u16, firewall_mark: u32) -> Part {
    let mut text = part(160);
    if let Some(key) = private_key {
        push_key(&mut text, "private_key", key.expose());
    }
    if listen_port != 0 {
        push(&mut text, format_args!("listen_port={listen_port}"));
    }
    if firewall_mark != 0 {
        push(&mut text, format_args!("fwmark={firewall_mark}"));
    }
    text
}

/// What there is to say about a peer. The time of the last handshake is counted from 1970.
#[must_use]
pub fn peer(view: &PeerView<'_>) -> Part {
    const LINES: usize = 512;
    const PREFIX_LINE: usize = "allowed_ip=ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255/128\n".len();
    let mut text = part(LINES + PREFIX_LINE * view.allowed_ips.len());
    push_key(&mut text, "public_key", &view.public_key.0);
    let preshared = view.preshared_key.map_or(&[0; KEY_LEN], SecretKey::expose);
    push_key(&mut text, "preshared_key", preshared);
    push(&mut text, format_args!("protocol_version=1"));
    if let Some(endpoint) = view.path.as_ref().map(Path::remote) {
        push(&mut text, format_args!("endpoint={endpoint}"));
    }
    let last = view.stats.last_handshake.map(|handshake| handshake.wall).unwrap_or_default();
    push(&mut text, format_args!("last_handshake_time_sec={}", last.as_secs()));
    push(&mut text, format_args!("last_handshake_time_nsec={}", last.subsec_nanos()));
    push(&mut text, format_args!("tx_bytes={}", view.stats.sent_message_bytes));
    push(&mut text, format_args!("rx_bytes={}", view.stats.received_message_bytes));
    push(&mut text, format_args!("persistent_keepalive_interval={}", view.persistent_keepalive));
    for prefix in view.allowed_ips {
        push(&mut text, format_args!("allowed_ip={prefix}"));
    }
    text
}

/// Room for a whole part: text that holds a key and grows would leave a copy behind.
fn part(capacity: usize) -> Part {
    Zeroizing::new(String::with_capacity(capacity))
}

fn push(text: &mut String, line: std::fmt::Arguments<'_>) {
    // Writing to a string does not fail.
    let _ = writeln!(text, "{line}");
}

fn push_key(text: &mut String, name: &str, key: &[u8; KEY_LEN]) {
    text.push_str(name);
    text.push('=');
    for byte in key {
        for digit in [byte >> 4, byte & 15] {
            text.push(char::from_digit(digit.into(), 16).unwrap_or_default());
        }
    }
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::tunnel::key::PublicKey;
    use crate::tunnel::{Handshake, PeerStats};

    #[test]
    #[expect(clippy::disallowed_methods, reason = "a test needs some instant")]
    fn a_peer_is_told_in_the_words_of_the_specification() {
        let allowed_ips: BTreeSet<_> =
            ["10.0.0.2/32", "fd00::/64"].map(|net| net.parse().expect("a prefix")).into();
        let wall = Duration::new(1_700_000_000, 7);
        let stats = PeerStats {
            sent_message_bytes: 38_333,
            received_message_bytes: 2_224,
            last_handshake: Some(Handshake { at: Instant::now(), slept: Duration::ZERO, wall }),
            ..PeerStats::default()
        };
        let preshared = SecretKey::new([0xab; KEY_LEN]);
        let mut view = PeerView {
            public_key: PublicKey([1; KEY_LEN]),
            preshared_key: Some(&preshared),
            path: Some(Path::Direct { to: "[fe80::1%2]:51820".parse().expect("an address"), from: None }),
            is_heard: true,
            allowed_ips: &allowed_ips,
            persistent_keepalive: 25,
            stats,
            paths: Default::default(),
        };
        let text = peer(&view);
        let expected = format!(
            "public_key={}\npreshared_key={}\nprotocol_version=1\nendpoint=[fe80::1%2]:51820\n\
             last_handshake_time_sec=1700000000\nlast_handshake_time_nsec=7\ntx_bytes=38333\nrx_bytes=2224\n\
             persistent_keepalive_interval=25\nallowed_ip=10.0.0.2/32\nallowed_ip=fd00::/64\n",
            "01".repeat(32),
            "ab".repeat(32)
        );
        assert_eq!(*text, expected);
        (view.preshared_key, view.path, view.stats.last_handshake) = (None, None, None);
        let text = peer(&view);
        assert!(text.contains(&format!("preshared_key={}\n", "0".repeat(64))) && !text.contains("endpoint"));
        assert!(text.contains("last_handshake_time_sec=0\n"));
    }

    #[test]
    fn a_device_without_key_port_and_mark_says_nothing() {
        assert_eq!(*device(None, 0, 0), "");
        let key = SecretKey::new([0x0f; KEY_LEN]);
        let text = device(Some(&key), 51_820, 7);
        assert_eq!(*text, format!("private_key={}\nlisten_port=51820\nfwmark=7\n", "0f".repeat(32)));
        assert_eq!(*end(None), "errno=0\n\n");
        assert_eq!(*end(Some(Refusal::Invalid)), format!("errno=-{}\n\n", libc::EINVAL));
    }
}
