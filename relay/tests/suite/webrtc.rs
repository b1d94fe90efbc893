//! Two pages of a headless browser call each other through the relay and nothing else: data and video, over every transport
//! of its clients.

#![allow(clippy::unwrap_used, reason = "a test panics when it cannot go on and says where")]
#![allow(clippy::disallowed_methods, reason = "a test has its own clock")]

#[path = "webrtc/board.rs"]
mod board;
#[path = "webrtc/browser.rs"]
mod browser;

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::harness::stream::TestCertificate;
use crate::harness::{PASSWORD, RelayProcess, USER, http};
use crate::left_out::left_out;
use crate::{harness, user_namespace};
use board::Board;
use browser::Browser;
use dataplane::netlink::Handle;
use serde_json::{Value, json};

/// The relay's addresses: browsers do not use loopback for calls. Relayed addresses are the first one whatever clients come
/// over, because a browser does not ask for a family and gets IPv4 then (RFC 8656 section 7.2).
const ADDRESS: &str = "10.77.0.1";
const ADDRESS_V6: &str = "fd77::1";
/// The namespace has nothing else, so that these are free.
const NARROW_PORTS: &str = "50000-50003";
const SIDES: [&str; 2] = ["offerer", "answerer"];
/// Each page sends so many messages.
const MESSAGES: u64 = 1_000;
const MESSAGE_BYTES: u64 = 1_024;
/// Each page decodes more pictures than this.
const FRAMES: u64 = 30;
/// For everything, on a busy machine; when all is well it takes less than a third of it.
const PATIENCE: Duration = Duration::from_secs(50);
/// Between two looks whether the browser is still there.
const BROWSER_CHECK: Duration = Duration::from_millis(500);

/// An interface with [`ADDRESS`] and [`ADDRESS_V6`], and a way to everywhere: a browser asks the kernel which address it
/// would use for the internet.
fn build_network() {
    let mut handle = Handle::open().unwrap();
    let loopback = handle.link_index("lo").unwrap();
    handle.set_up(loopback).unwrap();
    let (near, far) = handle.add_veth("near", "far").unwrap();
    handle.add_address(near, format!("{ADDRESS}/24").parse().unwrap()).unwrap();
    handle.add_address(near, format!("{ADDRESS_V6}/64").parse().unwrap()).unwrap();
    handle.set_up(near).unwrap();
    handle.set_up(far).unwrap();
    for everywhere in ["0.0.0.0/0", "::/0"] {
        handle.add_route(near, everywhere.parse().unwrap()).unwrap();
    }
}

/// A relay for clients over everything.
fn start_relay(certificate: &TestCertificate, flags: &[&str]) -> RelayProcess {
    let folder = tempfile::tempdir().unwrap();
    let files = certificate.write(folder.path());
    let listen = [format!("{ADDRESS}:0"), format!("[{ADDRESS_V6}]:0")];
    let mut all = Vec::new();
    for flag in ["--listen", "--listen-tcp", "--listen-tls"] {
        all.push(flag);
        all.extend(listen.iter().map(String::as_str));
    }
    all.extend(files.iter().map(String::as_str));
    all.extend(["--relay-address", ADDRESS, ADDRESS_V6, "--admin", "127.0.0.1:0"]);
    all.extend(flags);
    RelayProcess::start(&all)
}

/// The browser with both pages.
struct Pages {
    board: Board,
    browser: Browser,
    /// What they said besides results, for when something fails.
    notes: Vec<String>,
    deadline: Instant,
}

impl Pages {
    fn open(browser: &Path, certificate: &TestCertificate) -> Self {
        let board = Board::start(&["offerer", "answerer", "test"]);
        let page = format!("http://{}/page.html?side=offerer", board.address);
        let browser = Browser::start(browser, certificate, &page);
        Self { board, browser, notes: Vec::new(), deadline: Instant::now() + PATIENCE }
    }

    /// What each page says of this kind, in the order of [`SIDES`].
    fn both(&mut self, kind: &str) -> [Value; 2] {
        let mut found = [const { None }; 2];
        while found.contains(&None) {
            let may_come = Instant::now() < self.deadline && self.browser.is_running();
            assert!(may_come, "no {kind} of both pages: {:#?}\n{}", self.notes, self.browser.log());
            let Some(mail) = self.board.take("test", BROWSER_CHECK) else { continue };
            if mail["kind"] == kind {
                let side = SIDES.iter().position(|side| mail["from"] == *side).unwrap();
                found[side] = Some(mail);
            } else {
                self.notes.push(mail.to_string());
            }
        }
        found.map(Option::unwrap)
    }

    /// A call over the relay at this URL; what each side saw.
    fn call(&mut self, url: &str) -> [Value; 2] {
        for side in SIDES {
            let job = json!({
                "kind": "job", "url": url, "username": USER, "credential": PASSWORD,
                "messages": MESSAGES, "messageBytes": MESSAGE_BYTES, "frames": FRAMES,
            });
            self.board.post(side, job);
        }
        self.both("result").map(|mail| mail["result"].clone())
    }

    fn hang_up(&mut self) {
        SIDES.iter().for_each(|side| self.board.post(side, json!({"kind": "end"})));
        self.both("ended");
    }
}

fn check_result(result: &Value, protocol: &str) {
    let list = |name: &str| result[name].as_array().unwrap();
    assert!(!list("candidates").is_empty() && !list("locals").is_empty(), "{result:#}");
    for candidate in list("candidates") {
        assert_eq!(candidate["type"], "relay", "{result:#}");
    }
    for candidate in list("locals") {
        assert_eq!(candidate["candidateType"], "relay", "{result:#}");
        assert_eq!(candidate["relayProtocol"], protocol, "{result:#}");
    }
    for end in ["local", "remote"] {
        assert_eq!(result[end]["candidateType"], "relay", "{result:#}");
        assert_eq!(result[end]["address"], ADDRESS, "{result:#}");
    }
    assert_eq!(result["local"]["relayProtocol"], protocol, "{result:#}");
    assert_eq!(result["received"], MESSAGES, "{result:#}");
    assert_eq!(result["wrong"], 0, "each once, in order, as it was sent: {result:#}");
    let frames = |name: &str| result[name].as_u64().unwrap();
    assert!(frames("frames") > FRAMES && frames("frames") > frames("framesAtFirst"), "{result:#}");
    assert!(frames("width") > 0, "{result:#}");
}

/// The relay's figures once both have hung up: all that went through it stayed inside, because both relayed addresses are its own.
fn check_figures(admin: SocketAddr) {
    // Both sides' messages; video and checks come on top.
    let payload = 2 * MESSAGES * MESSAGE_BYTES;
    let sum = |status: &Value, direction: &str, unit: &str| -> u64 {
        let carriers = status["relayed"][direction].as_object().unwrap();
        carriers.values().map(|amount| amount[unit].as_u64().unwrap()).sum()
    };
    let lost = |status: &Value| -> u64 {
        status["drops"].as_object().unwrap().values().map(|packets| packets.as_u64().unwrap()).sum()
    };
    // Figures may be a tenth of a second old, and those of each worker of another moment. What one worker hands to another is
    // counted to a peer before it is known whether it is let in there: the first checks of a call come before permissions.
    http::settled(admin, |status| {
        let to_peer = sum(status, "to_peer", "packets");
        let to_client = sum(status, "to_client", "packets");
        let are_inside = ["packets", "bytes"]
            .into_iter()
            .all(|unit| status["hairpinned"][unit] == sum(status, "to_client", unit));
        let are_whole = ["to_peer", "to_client"].into_iter().all(|way| sum(status, way, "bytes") >= payload);
        are_inside && are_whole && (to_client..=to_client + lost(status)).contains(&to_peer)
    });
}

/// A whole call over one transport, with the relay at this address of its own.
fn call_over(protocol: &str, at: &str, pages: &mut Pages, certificate: &TestCertificate, flags: &[&str]) {
    let relay = start_relay(certificate, flags);
    let (scheme, addresses, transport) = match protocol {
        "udp" => ("turn", &relay.listen, "udp"),
        "tcp" => ("turn", &relay.tcp, "tcp"),
        "tls" => ("turns", &relay.tls, "tcp"),
        other => panic!("{other} is no transport"),
    };
    let at: IpAddr = at.parse().unwrap();
    let address = addresses.iter().find(|address| address.ip() == at).unwrap();
    let results = pages.call(&format!("{scheme}:{address}?transport={transport}"));
    results.iter().for_each(|result| check_result(result, protocol));
    let [offerer, answerer] = &results;
    assert_eq!(offerer["local"]["port"], answerer["remote"]["port"], "{results:#?}");
    assert_eq!(answerer["local"]["port"], offerer["remote"]["port"], "{results:#?}");
    pages.hang_up();
    check_figures(relay.admin());
    let (end, log) = relay.stop();
    assert!(end.success() && log.contains(" unexplained=0 "), "{log}");
}

#[test]
fn data_and_video_between_two_pages_over_every_transport() {
    let Some(browser) = harness::browser::path() else {
        return left_out("two pages of a browser: apt-get install chromium");
    };
    if !user_namespace::inside("webrtc::data_and_video_between_two_pages_over_every_transport") {
        return;
    }
    build_network();
    let certificate = TestCertificate::new();
    let mut pages = Pages::open(&browser, &certificate);
    for protocol in ["udp", "tcp", "tls"] {
        for at in [ADDRESS, ADDRESS_V6] {
            call_over(protocol, at, &mut pages, &certificate, &[]);
        }
    }
    // So few ports that allocations may share them.
    call_over("udp", ADDRESS, &mut pages, &certificate, &["--relay-ports", NARROW_PORTS]);
}
