//! Session indices: they stand in clear text in every message.

use std::collections::BTreeSet;

use super::*;

/// The index that `a` calls its newest handshake by, and `b` calls the session by that comes of it.
fn next_indices(pair: &mut Pair) -> [u32; 2] {
    let index = |bytes: &[u8]| u32::from_le_bytes(bytes[4..8].try_into().expect("4 bytes"));
    pair.a.start_handshake(PEER, pair.now);
    let initiation = pair.a.poll_transmit().expect("an initiation");
    pair.at_b(initiation.bytes());
    let response = pair.b.poll_transmit().expect("a response");
    pair.at_a(response.bytes());
    pair.settle();
    [index(initiation.bytes()), index(response.bytes())]
}

#[test]
fn they_do_not_tell_that_two_sessions_are_of_one_peer() {
    let mut pair = Pair::new();
    let mut seen = [BTreeSet::new(), BTreeSet::new()];
    for round in 0..100 {
        pair.pass(6 * SECOND);
        if round % 10 == 9 {
            // All is forgotten in between.
            pair.pass(200 * SECOND);
        }
        for (seen, index) in seen.iter_mut().zip(next_indices(&mut pair)) {
            seen.insert((index >> 16) as u16);
            seen.insert(index as u16);
        }
    }
    // Of 200 numbers below 2^16 some 0.3 are the same by chance; what has a part in common has far more.
    for seen in seen {
        assert!(seen.len() > 190, "{seen:x?}");
    }
}

#[test]
fn those_of_sessions_that_are_gone_lead_to_nobody_and_take_no_room() {
    let mut pair = Pair::new();
    for _ in 0..50 {
        pair.pass(6 * SECOND);
        next_indices(&mut pair);
        for end in [&pair.a, &pair.b] {
            let held = end.by_index.keys().filter(|index| end.peers[PEER].noise.has_index(**index)).count();
            // What the last session has pushed out goes before the next.
            assert!(held >= 1 && end.by_index.len() <= held + 1, "{held} of {:?}", end.by_index);
            assert_eq!(end.by_index.len(), end.peers[PEER].indices.len());
        }
    }
    pair.pass(200 * SECOND);
    assert_eq!((pair.a.by_index.len(), pair.b.by_index.len()), (0, 0));
    assert!(pair.a.peers[PEER].indices.is_empty() && pair.b.peers[PEER].indices.is_empty());
}
