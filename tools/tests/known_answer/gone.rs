//! What must not count as carried: what a connection that was reset has swallowed.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use tools::run::{Kind, Pace, RunSpec, run};

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
