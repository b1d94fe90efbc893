//! Certificates read again at SIGHUP: who is connected goes on, who connects next sees the new one, and a bad file changes
//! nothing. The relay is confined, as it is by default.

#![allow(clippy::unwrap_used, reason = "a test panics when it cannot go on")]

use std::io::{Read, Write};
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;

use crate::harness::configured::{Configured, LOOPBACK};
use crate::harness::http::settled;
use crate::harness::stream::{StreamClient, TestCertificate, channel_message, connect, connect_tls};
use crate::harness::{code, peer, receive, write_private};
use dataplane::stun::channel_data::ChannelNumber;
use dataplane::stun::{AttributeType, Message, Method, Writer};
use rustix::process::Signal;
use serde_json::Value;

const NUMBER: ChannelNumber = ChannelNumber::MIN;

/// Binds a channel to the peer.
fn bind<S: Read + Write>(client: &mut StreamClient<S>, peer: &UdpSocket) -> SocketAddr {
    let relayed = client.allocate();
    let to = peer.local_addr().unwrap();
    let fill = |writer: &mut Writer<'_>| {
        writer.channel_number(NUMBER).xor_peer_address(to);
    };
    assert_eq!(code(&client.ask(Method::ChannelBind, fill)), None);
    relayed
}

/// One message there and one back.
fn ping_pong<S: Read + Write>(client: &mut StreamClient<S>, peer: &UdpSocket, relayed: SocketAddr) {
    client.send(&channel_message(NUMBER, b"ping"));
    assert_eq!(receive(peer), (b"ping".to_vec(), relayed));
    peer.send_to(b"pong", relayed).unwrap();
    assert_eq!(client.receive().unwrap(), channel_message(NUMBER, b"pong"));
}

fn config(folder: &Path, more: &str) -> String {
    let (certificate, key) = (folder.join("relay.pem"), folder.join("relay.key"));
    format!(
        "{LOOPBACK}\nlisten-tcp = [\"127.0.0.1:0\"]\nlisten-tls = [\"127.0.0.1:0\"]\n\
         tls-certificate = {certificate:?}\ntls-key = {key:?}\n{more}"
    )
}

/// Whether a TLS client that trusts this certificate gets through.
fn is_trusted(relay: SocketAddr, certificate: &TestCertificate) -> bool {
    let mut stream = connect_tls(relay, certificate);
    while stream.conn.is_handshaking() {
        if stream.conn.complete_io(&mut stream.sock).is_err() {
            return false;
        }
    }
    true
}

#[test]
fn a_new_certificate_is_shown_to_new_clients_and_drops_nobody() {
    let (old, new) = (TestCertificate::new(), TestCertificate::new());
    let directory = tempfile::tempdir().unwrap();
    let folder = directory.path().to_owned();
    old.write(&folder);
    let flags = ["--admin", "127.0.0.1:0", "--drain-timeout", "0"];
    let configured = Configured::start_in(directory, &config(&folder, ""), &flags, |_| {});
    let relay = &configured.relay;
    let peer = peer();
    let mut over_tls = StreamClient::new(connect_tls(relay.tls[0], &old));
    let mut over_tcp = StreamClient::new(connect(relay.tcp[0]));
    let (relayed_tls, relayed_tcp) = (bind(&mut over_tls, &peer), bind(&mut over_tcp, &peer));
    ping_pong(&mut over_tls, &peer, relayed_tls);

    new.write(&folder);
    let applied = configured.reload();
    assert!(applied.contains("in force"), "{applied}");
    ping_pong(&mut over_tls, &peer, relayed_tls);
    ping_pong(&mut over_tcp, &peer, relayed_tcp);
    assert!(is_trusted(relay.tls[0], &new), "new clients see the new certificate");
    assert!(!is_trusted(relay.tls[0], &old), "and not the old one");

    // The key of the old certificate under the new one's name, a file cut short, and one that is missing.
    for text in [Some(old.key_pem.as_str()), Some("-----BEGIN PRIVATE KEY-----\n"), None] {
        match text {
            Some(text) => write_private(&configured.path("relay.key"), text),
            None => std::fs::remove_file(configured.path("relay.key")).unwrap(),
        }
        let refused = configured.reload();
        assert!(refused.contains("stays as it was") && refused.contains("relay.key"), "{refused}");
        assert!(is_trusted(relay.tls[0], &new), "the certificate in force stays");
        ping_pong(&mut over_tls, &peer, relayed_tls);
    }

    // Mended, with less room for connections; what cannot be changed is named.
    new.write(&folder);
    configured.rewrite(&config(&folder, "tcp-connections-max = 2\ntcp-queue-kib = 512"));
    let applied = configured.reload();
    assert!(applied.contains("in force"), "{applied}");
    assert!(relay.seen().contains("setting=tcp-queue-kib"), "{}", relay.seen());
    let live = |status: &Value| status["connections"]["live"] == 2 && status["connections"]["limit"] == 2;
    let status = settled(relay.admin(), live);
    assert!(status["connections"]["accepted"].as_u64().unwrap() >= 7, "{status}");
    assert!(!is_trusted(relay.tls[0], &new), "two are connected, and there is room for two");
    settled(relay.admin(), |status| status["connections"]["ended"]["refused_total"] == 1);
    ping_pong(&mut over_tcp, &peer, relayed_tcp);
    let (status, log) = configured.relay.stop();
    assert!(status.success() && log.contains(" unexplained=0 "), "{log}");
}

#[test]
fn where_clients_over_tls_are_sent_is_read_again() {
    let directory = tempfile::tempdir().unwrap();
    let certificate = TestCertificate::new();
    certificate.write(directory.path());
    let before = config(directory.path(), "");
    let configured = Configured::start_in(directory, &before, &["--drain-timeout", "60"], |_| {});
    let tls = configured.relay.tls[0];
    let mut stays = StreamClient::new(connect_tls(tls, &certificate));
    stays.allocate();
    let folder = configured.path("relay.toml").parent().unwrap().to_owned();
    configured.rewrite(&config(&folder, "alternate-server-tls = [\"192.0.2.7:5349/relay2.example.org\"]"));
    assert!(configured.reload().contains("in force"));
    configured.relay.signal(Signal::TERM);
    configured.relay.wait_for("draining");
    let reply = StreamClient::new(connect_tls(tls, &certificate)).ask(Method::Allocate, |writer| {
        writer.requested_transport(17);
    });
    let message = Message::parse(&reply).unwrap();
    let address = message.address(AttributeType::ALTERNATE_SERVER).unwrap();
    let name = message.first(AttributeType::ALTERNATE_DOMAIN);
    assert_eq!((address, name), ("192.0.2.7:5349".parse().ok(), Some(&b"relay2.example.org"[..])));
}
