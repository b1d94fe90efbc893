//! What must not count as carried: what a connection that was reset has swallowed, and what a queue hands out after a trial.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use tools::run::{Arrivals, Kind, Pace, RunSpec, run};
use tools::search::Trial;
use tools::search::measure::trial;

use super::bad_reflector::{BadReflector, Plan};
use super::user_namespace;

const SIZE: usize = 200;
/// Messages of each connection that are sent back before it is reset.
const ANSWERED: usize = 100;

/// Sends back so many messages of each connection that it is given, and resets it.
fn resetting_server(connections: usize) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let answer = |mut stream: TcpStream| {
        let mut message = [0; SIZE];
        for _ in 0..ANSWERED {
            // One that ends before is the other end's affair.
            if stream.read_exact(&mut message).and_then(|()| stream.write_all(&message)).is_err() {
                return;
            }
        }
        // Time for the answers to be read: a reset takes those along that were not.
        thread::sleep(Duration::from_millis(20));
        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    };
    thread::spawn(move || {
        for stream in listener.incoming().take(connections) {
            thread::spawn(move || answer(stream.unwrap()));
        }
    });
    address
}

#[test]
fn what_a_reset_connection_has_swallowed_is_lost_and_the_servers_fault() {
    let spec = RunSpec {
        rate_pps: 1_000.0,
        size: SIZE,
        flows: 2,
        duration: Duration::from_millis(600),
        warmup: Duration::ZERO,
        drain: Duration::from_millis(200),
        pace: Pace::Sleep,
        ..RunSpec::new(Kind::Tcp, resetting_server(2))
    };
    let result = run(&spec, |_| {}).unwrap();
    let (ledger, response) = (&result.ledger, &result.latency.response);
    println!("{ledger:?} {:?}", result.verdict);
    assert!(ledger.balances() && ledger.refused > 100 && ledger.received <= 2 * ANSWERED as u64);
    // About two thirds were never answered, most of them refused.
    assert!(ledger.loss_fraction() > 0.5, "{}", ledger.loss_fraction());
    assert_eq!(response.lost + response.count, ledger.intended - ledger.unsent);
    assert_eq!(response.quantile("p90").unwrap().value_ns, None, "{response:?}");
    let blames_itself = |reason: &String| reason.contains("of the scheduled datagrams were sent");
    assert!(!result.verdict.reasons.iter().any(blames_itself), "{:?}", result.verdict);
}

#[test]
fn what_a_queue_hands_out_after_a_trial_was_not_carried_by_it() {
    if !user_namespace::inside("gone::what_a_queue_hands_out_after_a_trial_was_not_carried_by_it") {
        return;
    }
    let mut handle = dataplane::netlink::Handle::open().unwrap();
    let loopback = handle.link_index("lo").unwrap();
    handle.set_up(loopback).unwrap();
    // 1.25 MB/s, there and back: 600 datagrams of 1,042 bytes with headers. 10 kB may pass at once, and the queue never fills.
    handle.add_tbf(loopback, 1_250_000, 10_000, 1_000_000).unwrap();
    let reflector = BadReflector::start(Plan::default());
    let trial_at = |rate_pps: f64| -> Trial {
        let spec = RunSpec {
            rate_pps,
            size: 1_000,
            arrivals: Arrivals::Periodic,
            duration: Duration::from_secs(1),
            warmup: Duration::ZERO,
            drain: Duration::from_secs(2),
            pace: Pace::Sleep,
            ..RunSpec::new(Kind::Udp, reflector.address)
        };
        let result = run(&spec, |_| {}).unwrap();
        // The drain alone would call it free of loss.
        assert_eq!((result.ledger.received, result.ledger.gone()), (result.ledger.intended, 0));
        trial(&result, rate_pps, 1.0, 5_000_000)
    };
    // A fifth more than it carries: in the end 120 of them wait, less what may pass at once.
    let above = trial_at(720.0);
    assert!((80..200).contains(&above.queued) && above.lost == above.queued, "{above:?}");
    assert!(above.loss > 0.1);
    // Of two thirds none waits, unless the machine stands still just then; it is tried again.
    let below: Vec<Trial> = (0..5).map(|_| trial_at(400.0)).take_while(|trial| trial.lost > 0).collect();
    assert!(below.len() < 5, "{below:?}");
    reflector.finish();
}
