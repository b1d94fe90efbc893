//! Traffic that is counted, so that what is lost shows.

#![allow(dead_code, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use dataplane::stun::channel_data::{self, ChannelData, ChannelNumber};
use dataplane::stun::{Method, Writer};

use super::{Client, code, peer};

/// Numbered datagrams through one channel to a peer that sends each back, until told to stop.
pub struct Load {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<(Client, u64, u64)>,
}

impl Load {
    /// So many on their way at most: far less than any socket buffer holds, so that whatever is missing was lost by the
    /// relay.
    pub const WINDOW: u64 = 32;

    /// On a new allocation of this client.
    pub fn start(mut client: Client) -> Self {
        client.allocate();
        let peer = peer();
        let number = ChannelNumber::MIN;
        let bind = |writer: &mut Writer<'_>| {
            writer.channel_number(number).xor_peer_address(peer.local_addr().unwrap());
        };
        assert_eq!(code(&client.ask(Method::ChannelBind, bind)), None);
        let stop = Arc::new(AtomicBool::new(false));
        let told = stop.clone();
        let thread = std::thread::spawn(move || Self::run(client, &peer, number, &told));
        Self { stop, thread }
    }

    fn run(client: Client, peer: &UdpSocket, number: ChannelNumber, stop: &AtomicBool) -> (Client, u64, u64) {
        let (mut sent, mut returned) = (0_u64, 0_u64);
        while !stop.load(Ordering::Relaxed) {
            for _ in 0..Self::WINDOW {
                let mut message = channel_data::header(number, 8).unwrap().to_vec();
                message.extend(sent.to_be_bytes());
                client.socket.send(&message).unwrap();
                sent += 1;
            }
            let mut buffer = [0; 100];
            for _ in 0..Self::WINDOW {
                // A loss shows as the end of patience.
                let Ok((len, from)) = peer.recv_from(&mut buffer) else { return (client, sent, returned) };
                peer.send_to(&buffer[..len], from).unwrap();
            }
            for _ in 0..Self::WINDOW {
                let Ok(len) = client.socket.recv(&mut buffer) else { return (client, sent, returned) };
                let data = ChannelData::parse(&buffer[..len]).unwrap();
                assert_eq!(data.payload, returned.to_be_bytes(), "in order, each once");
                returned += 1;
            }
        }
        (client, sent, returned)
    }

    /// Ends it; the client, and how many datagrams came all the way.
    pub fn finish(self) -> (Client, u64) {
        self.stop.store(true, Ordering::Relaxed);
        let (client, sent, returned) = self.thread.join().unwrap();
        assert_eq!(sent, returned, "lost");
        (client, sent)
    }
}
