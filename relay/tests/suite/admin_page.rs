//! The status page in a browser, without a network: charts are drawn, and nothing goes wrong on the way.

#![allow(clippy::unwrap_used, reason = "a test panics when it cannot go on and says where")]

use crate::harness::{Client, RelayProcess, USER, browser, code, program, receive, socket};
use crate::left_out::left_out;
use crate::user_namespace;
use dataplane::stun::channel_data;
use dataplane::stun::{ChannelNumber, Method, Writer};

/// Milliseconds of the page's own time, which passes as fast as it has nothing to wait for: every second of it asks once,
/// and figures are new ten times in a real second.
const PAGE_TIME_MS: u32 = 180_000;

/// The value of a `data-` attribute of the body.
fn data<'a>(dom: &'a str, name: &str) -> &'a str {
    let (_, rest) =
        dom.split_once(&format!("data-{name}=\"")).unwrap_or_else(|| panic!("no {name} in {dom}"));
    rest.split_once('"').unwrap().0
}

#[test]
fn charts_are_drawn_in_a_browser_without_network() {
    let Some(browser) = browser::path() else {
        return left_out("the status page in a browser: apt-get install chromium");
    };
    if !user_namespace::inside("admin_page::charts_are_drawn_in_a_browser_without_network") {
        return;
    }
    let mut handle = dataplane::netlink::Handle::open().unwrap();
    let loopback = handle.link_index("lo").unwrap();
    handle.set_up(loopback).unwrap();
    // Every allocation there is, so that the last one is refused.
    let relay = RelayProcess::on_loopback(&["--admin", "127.0.0.1:0", "--allocations-max", "1"]);
    let mut client = Client::new(relay.listen[0]);
    client.allocate();
    let peer = socket();
    let bind = |writer: &mut Writer<'_>| {
        writer.channel_number(ChannelNumber::MIN).xor_peer_address(peer.local_addr().unwrap());
    };
    assert_eq!(code(&client.ask(Method::ChannelBind, bind)), None);
    let payload = [7; 1000];
    let header = channel_data::header(ChannelNumber::MIN, payload.len()).unwrap();
    client.socket.send(&[&header[..], &payload].concat()).unwrap();
    receive(&peer);

    let profile = tempfile::tempdir().unwrap();
    // It takes some five seconds, and a browser that hangs must not hang the tests.
    let output = program("timeout")
        .args(["120", browser.to_str().unwrap()])
        .args(["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"])
        .args(["--enable-logging=stderr", "--v=0", "--dump-dom"])
        .arg(format!("--virtual-time-budget={PAGE_TIME_MS}"))
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .arg(format!("http://{}/", relay.admin()))
        .env("HOME", profile.path())
        .output()
        .unwrap();
    let dom = String::from_utf8_lossy(&output.stdout);
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{log}");
    // The browser logs what a page writes to its console, and what its policy forbids; its own pages are not meant.
    let console =
        log.lines().filter(|line| line.contains(":CONSOLE:") && !line.contains("source: chrome://"));
    let console: Vec<&str> = console.collect();
    assert!(console.is_empty(), "{console:?}");
    assert_eq!(data(&dom, "errors"), "0");
    let samples: u32 = data(&dom, "samples").parse().unwrap();
    assert!(samples >= 3, "{samples} samples: {dom}");
    // Eight lines in five charts, each with two points at least.
    assert_eq!(data(&dom, "lines"), "8", "{dom}");
    assert_eq!(dom.matches("<svg").count(), 5);
    assert!(dom.contains(">live</p>"), "{dom}");
    for cell in [USER, "438", "slots in flight, of"] {
        assert!(dom.contains(&format!("<td>{cell}</td>")), "{cell}: {dom}");
    }
    assert!(dom.contains("<td>1k</td>"), "a thousand bytes were relayed: {dom}");
}
