//! The admin thread in front of loops that hang, or are slow.

#![expect(clippy::disallowed_methods, reason = "a test waits")]

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use dataplane::admin::{Shared, TURN_TIME_MAX};

use super::client::{AskError, ask, ask_fresh};
use super::observer::Snapshot;
use super::status::tests::snapshot;
use super::{Admin, AdminChoice};

fn now() -> Instant {
    Instant::now()
}

fn get(address: SocketAddr, target: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {target} HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn probes_fail_when_the_loop_has_stopped_and_the_admin_thread_answers_on() {
    let any = AdminChoice::At("127.0.0.1:0".parse().unwrap());
    let admin = Admin::bind(Some(any), true, true).unwrap().unwrap();
    let address = admin.address();
    // There is no loop behind it.
    let server = admin.serve(Shared::new(1).unwrap());
    std::thread::spawn(|| server.run());
    let start = now();
    assert!(get(address, "/healthz").starts_with("HTTP/1.1 200 "), "it may only be slow");
    assert!(get(address, "/metrics").starts_with("HTTP/1.1 503 "), "there are no figures");
    assert!(get(address, "/readyz").ends_with("starting\n"));
    assert!(get(address, "/").starts_with("HTTP/1.1 200 "), "the page needs no figures");
    std::thread::sleep((start + TURN_TIME_MAX).saturating_duration_since(now()));
    let answer = get(address, "/healthz");
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("for 3 s"), "{answer}");
}

/// An admin thread in front of a loop that answered once, `ago`, and is driven by the test.
fn with_old_figures(ago: Duration) -> (SocketAddr, Arc<Shared<Snapshot>>) {
    let any = AdminChoice::At("127.0.0.1:0".parse().unwrap());
    let admin = Admin::bind(Some(any), true, true).unwrap().unwrap();
    let address = admin.address();
    let shared = Shared::new(1).unwrap();
    shared.publish(0, snapshot(now() - ago));
    let server = admin.serve(shared.clone());
    std::thread::spawn(|| server.run());
    (address, shared)
}

#[test]
fn status_fails_when_the_loop_hangs_although_old_figures_are_served() {
    let (address, _shared) = with_old_figures(Duration::from_secs(60));
    let start = now();
    assert!(ask(address).unwrap().age_s >= 60.0);
    let error = ask_fresh(address).unwrap_err();
    assert!(matches!(error, AskError::Hangs { age_s, .. } if age_s >= 60.0), "{error}");
    assert!(error.to_string().contains("the relay hangs: its figures are 6"), "{error}");
    assert!(start.elapsed() >= TURN_TIME_MAX, "a busy loop is given as long as by the probe");
}

#[test]
fn status_waits_for_a_loop_that_is_only_busy() {
    let (address, shared) = with_old_figures(Duration::from_secs(60));
    let busy = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_secs(1));
        shared.publish(0, snapshot(now()));
    });
    assert!(ask_fresh(address).unwrap().age_s < 3.0);
    busy.join().unwrap();
}
