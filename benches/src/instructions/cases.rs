//! What is counted: one operation of each hot function.

use std::hint::black_box;

use dataplane::offload::checksum;
use dataplane::packet::Packet;
use dataplane::stun::Message;

use crate::stages::offload::{Coalesce, Split};
use crate::stages::relayed::{self, Relayed};
use crate::stages::routes::Routes;
use crate::stages::taker::Leaving;
use crate::stages::tunnel::Pair;
use crate::stages::turn::Sealing;

/// One operation, set up and counted.
#[derive(Clone, Copy)]
pub struct Case {
    /// Its name on the command line and in the baseline.
    pub name: &'static str,
    /// What the operation does.
    pub title: &'static str,
    /// How many are counted.
    pub operations: usize,
    /// Sets up; what is returned does one operation and may be called a few times more than [`Case::operations`].
    pub set_up: fn() -> Box<dyn FnMut()>,
}

/// Operations counted where one takes tens of thousands of instructions.
const FEW: usize = 10;
/// Operations counted of the others.
const MANY: usize = 100;

/// Every case.
pub const CASES: &[Case] = &[
    Case {
        name: "packet",
        title: "copy 1,375 B into the stack packet and pad it",
        operations: MANY,
        set_up: || {
            let mut packet: Box<Packet> = Box::default();
            let content = vec![0x5a; 1_375];
            Box::new(move || {
                black_box(packet.copy_from(black_box(&content)).and_then(|()| packet.pad_to(16)));
            })
        },
    },
    Case {
        name: "checksum",
        title: "sum 1,400 B",
        operations: MANY,
        set_up: || {
            let bytes = vec![0x5a; 1_400];
            Box::new(move || {
                black_box(checksum::sum(black_box(&bytes)));
            })
        },
    },
    Case {
        name: "copy-and-sum",
        title: "copy and sum 1,400 B",
        operations: MANY,
        set_up: || {
            let (mut target, source) = (vec![0; 1_400], vec![0x5a; 1_400]);
            Box::new(move || {
                black_box(checksum::copy_and_sum(black_box(&mut target), black_box(&source)));
            })
        },
    },
    Case {
        name: "split",
        title: "take a superpacket of 45 TCP segments apart, 1,420 B each",
        operations: FEW,
        set_up: || {
            let mut split = Split::new();
            Box::new(move || {
                black_box(split.run());
            })
        },
    },
    Case {
        name: "coalesce",
        title: "merge 45 TCP segments of 1,420 B",
        operations: FEW,
        set_up: || {
            let mut coalesce = Coalesce::new();
            Box::new(move || {
                black_box(coalesce.run());
            })
        },
    },
    Case {
        name: "deliver",
        title: "deliver 45 TCP segments of 1,420 B to a device, submit, reap",
        operations: FEW,
        set_up: || {
            let mut leaving = Leaving::new(1);
            Box::new(move || leaving.deliver())
        },
    },
    Case {
        name: "append",
        title: "append 45 datagrams of 1,420 B to one destination, submit, reap",
        operations: FEW,
        set_up: || {
            let mut leaving = Leaving::new(1);
            Box::new(move || leaving.append())
        },
    },
    Case {
        name: "append-spread",
        title: "append a datagram of 1,420 B to each of 48 destinations, submit, reap",
        operations: FEW,
        set_up: || {
            let mut leaving = Leaving::new(48);
            Box::new(move || leaving.append_one_each())
        },
    },
    Case { name: "seal-64", title: "seal a packet of 64 B", operations: MANY, set_up: || seal(64) },
    Case { name: "seal-1420", title: "seal a packet of 1,420 B", operations: MANY, set_up: || seal(1_420) },
    Case { name: "open-64", title: "open a packet of 64 B", operations: MANY, set_up: || open(64) },
    Case { name: "open-1420", title: "open a packet of 1,420 B", operations: MANY, set_up: || open(1_420) },
    Case {
        name: "turn",
        title: "1,000 turns of the loop, a packet of 64 B sealed and submitted in each, not timed",
        operations: FEW,
        set_up: || turns(false),
    },
    Case {
        name: "turn-timed",
        title: "the same with the histograms of the stages",
        operations: FEW,
        set_up: || turns(true),
    },
    Case {
        name: "stun-parse",
        title: "parse an Allocate request",
        operations: MANY,
        set_up: || {
            let request = allocate_request();
            Box::new(move || {
                black_box(Message::parse(black_box(&request)).is_ok());
            })
        },
    },
    Case {
        name: "stun-integrity",
        title: "parse an Allocate request, verify MESSAGE-INTEGRITY and FINGERPRINT",
        operations: MANY,
        set_up: || {
            let (request, key) = (allocate_request(), relayed::key());
            Box::new(move || {
                let message = Message::parse(black_box(&request)).expect("a request");
                assert!(message.verify_integrity(&key) && message.verify_fingerprint() == Some(true));
            })
        },
    },
    Case {
        name: "stun-write",
        title: "write a Binding answer",
        operations: MANY,
        set_up: || {
            let (mut buffer, mapped) = ([0; 100], ([192, 0, 2, 1], 32_853).into());
            Box::new(move || {
                black_box(relayed::write_binding_success(&mut buffer, black_box(mapped)));
            })
        },
    },
    Case {
        name: "route",
        title: "find the peer of an address among 10,000 prefixes of one length",
        operations: MANY,
        set_up: || {
            let mut routes = Routes::new(10_000, &[24]);
            Box::new(move || {
                black_box(routes.find());
            })
        },
    },
    // One allocation: the keys of the relay's table are random, and so is the number of collisions among many.
    Case {
        name: "channel-from-client",
        title: "find allocation and peer of a client's ChannelData",
        operations: MANY,
        set_up: || {
            let mut relayed = Relayed::new(1, 1);
            Box::new(move || relayed.from_client())
        },
    },
    Case {
        name: "channel-from-peer",
        title: "find client and channel of a peer's datagram",
        operations: MANY,
        set_up: || {
            let mut relayed = Relayed::new(1, 1);
            Box::new(move || relayed.from_peer())
        },
    },
];

fn seal(len: usize) -> Box<dyn FnMut()> {
    let mut pair = Pair::connected();
    let mut out = vec![0; pair.load(len)];
    Box::new(move || pair.seal(&mut out))
}

fn open(len: usize) -> Box<dyn FnMut()> {
    let mut pair = Pair::connected();
    // A sealed packet can be opened once, so there is one for every call.
    let sealed = pair.sealed(MANY + 10, len);
    let mut next = 0;
    Box::new(move || {
        pair.open(&sealed[next]);
        next += 1;
    })
}

fn turns(timed: bool) -> Box<dyn FnMut()> {
    let mut sealing = Sealing::new(1, 64, timed);
    Box::new(move || sealing.run(1_000))
}

fn allocate_request() -> Vec<u8> {
    let mut buffer = vec![0; 300];
    let len = relayed::write_allocate(&mut buffer, &relayed::key(), b"0123456789abcdef");
    buffer.truncate(len);
    buffer
}
