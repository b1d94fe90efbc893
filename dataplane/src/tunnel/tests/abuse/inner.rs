//! What is inside of authentic messages, and what comes from the TUN device: W19 to W23, W28 and W32.

use std::collections::HashMap;
use std::net::Ipv6Addr;

use super::*;
use crate::ingress::Received;
use crate::offload::split::Splitter;
use crate::tunnel::routes::AllowedIps;

pub(super) const ROWS: &[Row] = &[
    (19, 46, "dropped and counted; the sender is authentic and may roam", sources),
    (20, 363_122, "as a list that is searched in full", overlapping_prefixes),
    (21, 3_902, "dropped", lies),
    (22, 65, "cut to the length of the packet", padding),
    (23, 9, "passed on byte by byte", opaque),
    (28, 9, "sealed whole or refused by its length, never cut", long_packets),
    (32, 2_648, "split into what was there, or refused", lies_of_superpackets),
];

/// Seals at `a` and opens at `b`.
fn carry(bench: &mut Bench, inner: &[u8]) -> Result<Option<Vec<u8>>, Cause> {
    let mut sealed = vec![0; Tunnel::sealed_len(inner.len())];
    assert!(bench.pair.a.seal(PEER, inner, &mut sealed, bench.pair.now));
    bench.inputs += 1;
    open(&mut bench.pair.b, &sealed, A_OUTSIDE, bench.pair.now)
}

fn sources(bench: &mut Bench) {
    bench.pair.b.add_peer(&peer(3, &["10.0.0.3/32", "fd00::3/128"], None), bench.pair.now);
    let v4 = [
        "10.0.0.0",
        "10.0.0.2",
        "10.0.0.3",
        "10.0.0.255",
        "0.0.0.0",
        "127.0.0.1",
        "224.0.0.1",
        "239.1.2.3",
        "255.255.255.255",
        "169.254.1.1",
        "192.0.2.1",
        "192.0.2.2",
    ];
    let v6 = [
        "fd00::",
        "fd00::2",
        "fd00::3",
        "::",
        "::1",
        "ff02::1",
        "fe80::1",
        "::ffff:10.0.0.1",
        "::10.0.0.1",
        "2001:db8::1",
    ];
    for (source, to) in
        v4.map(|source| (source, B_INSIDE)).into_iter().chain(v6.map(|source| (source, "fd00::2")))
    {
        let received = bench.pair.b.stats(PEER).received_packets;
        let outcome = carry(bench, &packet(source, to, b"forged"));
        assert_eq!(outcome, Err(Cause::AllowedIps), "{source}");
        assert_eq!(bench.pair.b.stats(PEER).received_packets, received);
    }
    // Whoever may send from everywhere may not from addresses that no host has.
    for prefix in ["0.0.0.0/0", "::/0"] {
        bench.pair.b.add_allowed_ip(PEER, prefix.parse().expect("prefix"));
    }
    let nobodys = [
        "0.0.0.0",
        "0.1.2.3",
        "127.0.0.1",
        "127.255.255.254",
        "224.0.0.1",
        "239.1.2.3",
        "255.255.255.255",
        "::",
        "::1",
        "ff02::1",
        "ff0e::1",
        "::ffff:127.0.0.1",
        "::ffff:224.0.0.1",
    ];
    let somebodys = [
        ("10.0.0.0", true),
        ("10.0.0.3", false),
        ("198.51.100.1", true),
        ("169.254.1.1", true),
        ("1.0.0.0", true),
        ("223.255.255.255", true),
        ("128.0.0.1", true),
        ("fd00::3", false),
        ("fe80::1", true),
        ("2001:db8::1", true),
        ("::ffff:10.0.0.1", true),
    ];
    let all = nobodys.map(|source| (source, false)).into_iter().chain(somebodys);
    for (source, passes) in all {
        let to = if source.contains(':') { "fd00::2" } else { B_INSIDE };
        let inner = packet(source, to, b"from everywhere");
        let expected = if passes { Ok(Some(inner.clone())) } else { Err(Cause::AllowedIps) };
        assert_eq!(carry(bench, &inner), expected, "{source}");
    }
}

/// As many as the kernel's own test configures.
fn overlapping_prefixes(bench: &mut Bench) {
    const PREFIXES: usize = 130_561;
    /// Addresses in each of three states of the table.
    const LOOKED_UP: u32 = 34_000;
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(20);
    let mut table = AllowedIps::new(1);
    let mut found = [0_u64; 2];
    let mut list = Prefixes::default();
    let mut prefixes = Vec::with_capacity(PREFIXES);
    for number in 0..PREFIXES as u64 {
        // Few different bits, so that prefixes nest, /0 among them.
        let bits = rng.next_u64();
        let address: IpAddr = if number % 2 == 0 {
            Ipv4Addr::from_bits(bits as u32 & 0x0f0f_ffff).into()
        } else {
            Ipv6Addr::from_bits(u128::from(bits) << 64 & (0xf0ff_ffff << 96) | u128::from(bits >> 40)).into()
        };
        let len = (bits >> 33) as u8 % if address.is_ipv4() { 33 } else { 129 };
        let prefix = ipnet::IpNet::new(address, len).expect("a length").trunc();
        let owner = PeerIndex(number % 2_000);
        assert_eq!(table.insert(prefix, owner), list.insert(prefix, owner));
        prefixes.push(prefix);
        bench.inputs += 1;
    }
    let mut look_up = |table: &AllowedIps, list: &Prefixes, inputs: &mut u64| {
        for number in 0..LOOKED_UP {
            // Every other one is an edge of a prefix, or the address beyond; the rest are anywhere.
            let prefix = prefixes[rng.next_u64() as usize % PREFIXES];
            let address = match number % 4 {
                0 => prefix.broadcast(),
                2 => beyond(prefix.network()),
                _ => anywhere(prefix, rng.next_u64()),
            };
            let longest = longest(list, address);
            assert_eq!(table.find(address), longest, "{address}");
            found[usize::from(longest.is_some())] += 1;
            *inputs += 1;
        }
    };
    look_up(&table, &list, &mut bench.inputs);
    for (number, prefix) in prefixes.iter().enumerate() {
        bench.inputs += 1;
        if number == PREFIXES / 2 {
            look_up(&table, &list, &mut bench.inputs);
        }
        let Some(&owner) = list.get(prefix) else {
            assert!(!table.remove(*prefix, PeerIndex(0)), "{prefix} is gone");
            continue;
        };
        let other = PeerIndex(owner.0 + 1);
        assert!(!table.remove(*prefix, other) && table.remove(*prefix, owner), "{prefix}");
        list.remove(prefix);
    }
    assert!(list.is_empty());
    look_up(&table, &list, &mut bench.inputs);
    assert!(found.iter().all(|times| *times >= u64::from(LOOKED_UP)), "{found:?}");
}

type Prefixes = HashMap<ipnet::IpNet, PeerIndex, FixedState>;

/// The owner of the longest prefix that an address is in: each length is tried.
fn longest(list: &Prefixes, address: IpAddr) -> Option<PeerIndex> {
    let longest = if address.is_ipv4() { 32 } else { 128 };
    (0..=longest).rev().find_map(|len| {
        let prefix = ipnet::IpNet::new(address, len).expect("a length").trunc();
        list.get(&prefix).copied()
    })
}

/// The address before, or the last of all before the first.
fn beyond(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(address) => Ipv4Addr::from_bits(address.to_bits().wrapping_sub(1)).into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits().wrapping_sub(1)).into(),
    }
}

/// An address whose first bits are often a prefix's.
fn anywhere(prefix: ipnet::IpNet, bits: u64) -> IpAddr {
    match prefix.network() {
        IpAddr::V4(address) => {
            Ipv4Addr::from_bits(address.to_bits() ^ (bits >> 32 >> (bits % 32)) as u32).into()
        }
        IpAddr::V6(address) => {
            Ipv6Addr::from_bits(address.to_bits() ^ (u128::from(bits) << 64 >> (bits % 128))).into()
        }
    }
}

fn lies(bench: &mut Bench) {
    let v4 = packet(A_INSIDE, B_INSIDE, &[0; 60]);
    let v6 = packet("fd00::1", "fd00::2", &[0; 40]);
    let mut lies = Vec::new();
    let mut lie = |bytes: &[u8], change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = bytes.to_vec();
        change(&mut bytes);
        lies.push(bytes);
    };
    // Cut off anywhere.
    for len in 1..v4.len() {
        lie(&v4, &|bytes| bytes.truncate(len));
        lie(&v6, &|bytes| bytes.truncate(len));
    }
    // Versions, and header lengths below 5 or beyond the packet: 15 words of 80 bytes fit.
    for first in 0..=255_u8 {
        let good = first >> 4 == 4 && first & 15 >= 5 || first >> 4 == 6;
        if !good {
            lie(&v4, &|bytes| bytes[0] = first);
        }
    }
    // Total lengths beyond the packet or below the header.
    for len in (0..20).chain(81..2_000) {
        lie(&v4, &|bytes| bytes[2..4].copy_from_slice(&(len as u16).to_be_bytes()));
    }
    for len in 41..1_610 {
        lie(&v6, &|bytes| bytes[4..6].copy_from_slice(&(len as u16).to_be_bytes()));
    }
    for len in [u16::MAX, u16::MAX - 40, 0x8000] {
        lie(&v4, &|bytes| bytes[2..4].copy_from_slice(&len.to_be_bytes()));
        lie(&v6, &|bytes| bytes[4..6].copy_from_slice(&len.to_be_bytes()));
    }
    // A jumbogram: no length, and hop-by-hop options that have one (RFC 2675).
    lie(&v6, &|bytes| {
        bytes[4..7].fill(0);
        bytes[40..48].copy_from_slice(&[17, 0, 0xc2, 4, 0, 1, 0, 0]);
    });
    for lie in lies {
        assert_eq!(carry(bench, &lie), Err(Cause::MalformedInner), "{lie:02x?}");
    }
    // They are authentic, and more than the window is wide.
    bench.hold();
}

fn padding(bench: &mut Bench) {
    let inner = packet(A_INSIDE, B_INSIDE, b"payload");
    for more in (0..64).chain([1_000]) {
        let mut padded = inner.clone();
        padded.resize(inner.len() + more, 0);
        assert_eq!(carry(bench, &padded), Ok(Some(inner.clone())), "{more} bytes");
    }
}

fn opaque(bench: &mut Bench) {
    let v4 = packet(A_INSIDE, B_INSIDE, &[0; 60]);
    let v6 = packet("fd00::1", "fd00::2", &[0; 60]);
    let changed = |bytes: &[u8], change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = bytes.to_vec();
        change(&mut bytes);
        bytes
    };
    let packets = [
        // Fragments: the first, one in the middle, one beyond 65,535, two that overlap.
        changed(&v4, &|bytes| bytes[6..8].copy_from_slice(&0x2000_u16.to_be_bytes())),
        changed(&v4, &|bytes| bytes[6..8].copy_from_slice(&0x2008_u16.to_be_bytes())),
        changed(&v4, &|bytes| bytes[6..8].copy_from_slice(&0x1fff_u16.to_be_bytes())),
        changed(&v4, &|bytes| bytes[6..8].copy_from_slice(&0x0004_u16.to_be_bytes())),
        changed(&v6, &|bytes| {
            bytes[6] = 44;
            bytes[40..48].copy_from_slice(&[17, 0, 0xff, 0xf9, 1, 2, 3, 4]);
        }),
        // An ICMP error about a packet that lies about its lengths.
        changed(&v4, &|bytes| {
            bytes[9] = 1;
            bytes[20..24].copy_from_slice(&[3, 4, 0xff, 0xff]);
            bytes[28..32].copy_from_slice(&[0x4f, 0, 0xff, 0xff]);
        }),
        changed(&v6, &|bytes| {
            bytes[6] = 58;
            bytes[40..42].copy_from_slice(&[2, 0]);
            bytes[48] = 0x6f;
        }),
        // Hop-by-hop options whose chain leads beyond the packet; a header with options that are none.
        changed(&v6, &|bytes| {
            bytes[6] = 0;
            bytes[40..42].copy_from_slice(&[0, 255]);
        }),
        changed(&v4, &|bytes| bytes[0] = 0x4f),
    ];
    for packet in packets {
        assert_eq!(carry(bench, &packet), Ok(Some(packet.clone())), "{packet:02x?}");
    }
}

fn long_packets(bench: &mut Bench) {
    // Beyond the MTU nothing is padded, and nothing is cut. How long a datagram may be is the socket's to say: egress.
    for len in [1_419, 1_420, 1_421, 9_000, 65_000, 65_474, 65_475] {
        let inner = packet(A_INSIDE, B_INSIDE, &vec![7; len - 20]);
        let sealed = try_seal(&mut bench.pair.a, &inner, bench.pair.now).expect("a session");
        assert_eq!(sealed.len(), len.max(1_420) + 32, "{len}");
        assert_eq!(bench.pair.at_b(&sealed), Some(inner));
        bench.inputs += 1;
    }
    // A TTL of 1 is for routers to look at: the kernel has done so before the packet came here.
    let mut last_hop = packet(A_INSIDE, B_INSIDE, b"x");
    last_hop[8] = 1;
    assert_eq!(carry(bench, &last_hop), Ok(Some(last_hop.clone())));
    let mut out = vec![0; 100];
    assert!(!bench.pair.a.seal(PEER, &[0; 69], &mut out, bench.pair.now), "memory of another length");
    bench.inputs += 1;
}

fn lies_of_superpackets(bench: &mut Bench) {
    // Outside: whatever the kernel says of a superpacket's segments, they are the bytes that came, each once.
    for len in [0, 1, 2, 31, 32, 1_451, 1_452, 65_507] {
        let whole: Vec<u8> = (0..len).map(|at| at as u8).collect();
        for size in [0, 1, 2, 3, 32, 1_451, 1_452, 1_453, 65_507, 65_535, usize::MAX] {
            let mut bytes = whole.clone();
            let segments: Vec<Vec<u8>> =
                Received::segments(&mut bytes, size).map(|segment| segment.to_vec()).collect();
            assert_eq!(segments.concat(), whole);
            assert!(len > 0 || segments.len() == 1);
            let sizes = segments.iter().rev().skip(1).all(|segment| segment.len() == size.max(1));
            assert!(sizes, "only the last is shorter");
            bench.inputs += 1;
        }
    }
    // Inside: a superpacket of the TUN device, with every word of its virtio_net header (10 or more bytes) set to what it
    // should not be.
    let mut good = vec![0; crate::offload::virtio::HEADER_LEN];
    let mut tcp = packet(A_INSIDE, B_INSIDE, &[0; 20 + 3_000]);
    (tcp[9], tcp[32]) = (6, 0x50);
    good[..8].copy_from_slice(&[1, 1, 40, 0, 0xe8, 3, 20, 0]);
    good[8] = 16;
    good.extend(tcp);
    let count = |bytes: &mut [u8]| -> Option<usize> {
        let mut splitter = Splitter::new(bytes).ok()?;
        let mut payload = 0;
        for _ in 0..splitter.segment_count() {
            payload += splitter.next_packet().expect("as many as it says").len() - 40;
        }
        assert!(splitter.next_packet().is_none());
        Some(payload)
    };
    assert_eq!(count(&mut good.clone()), Some(3_000), "the right one");
    for byte in 0..10 {
        for value in 0..=255 {
            let mut lie = good.clone();
            lie[byte] = value;
            // Split or refused, without a panic; a TCP superpacket loses nothing.
            if let Some(payload) = count(&mut lie) {
                assert_eq!(payload, 3_000, "byte {byte} is {value}");
            }
            bench.inputs += 1;
        }
    }
}
