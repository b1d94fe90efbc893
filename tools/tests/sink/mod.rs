//! A far end that takes everything and gives back only what asks whether it is there.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use dataplane::ingress::Meta;
use dataplane::sys::udp::{RECEIVE_LEN, ReceiveBatch, UdpOptions, UdpSocket};
use tools::run::payload::{self, Parsed, Phase};

pub struct Sink {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<u64>,
}

impl Sink {
    pub fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0".parse().unwrap(), &UdpOptions::default()).unwrap();
        let address = socket.local_addr();
        let stop = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut batch = ReceiveBatch::new(32, RECEIVE_LEN);
            let mut taken = 0;
            while !flag.load(Ordering::Relaxed) {
                if socket.receive_batch(&mut batch).unwrap() == 0 {
                    thread::sleep(Duration::from_micros(200));
                }
                for arrival in batch.iter_mut() {
                    let Some(Meta::Udp { from, segment_size, .. }) = arrival.meta else { continue };
                    // By a byte first: to check a datagram costs more than to send it.
                    let probe = arrival.bytes.get(5).is_some_and(|phase| phase >> 1 == Phase::Probe as u8);
                    let measured =
                        arrival.bytes.get(5).is_some_and(|phase| phase >> 1 == Phase::Measured as u8);
                    if measured {
                        taken += arrival.bytes.len().div_ceil(segment_size.max(1)) as u64;
                    }
                    if probe && matches!(payload::parse(arrival.bytes), Parsed::Good(_)) {
                        socket.send_segments(from, None, 0, arrival.bytes, arrival.bytes.len()).unwrap();
                    }
                }
            }
            taken
        });
        Self { address, stop, thread }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends it; the answer is how many datagrams of measured sending it has taken.
    pub fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}
