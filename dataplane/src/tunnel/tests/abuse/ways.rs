//! Where the peer is, what waits for it, and what is configured: W24, W25, W27, W29 and W30.

use super::*;
use crate::config::{self, Config};
use crate::tunnel::staged::{ALL_BYTES_MAX, PACKETS_MAX};

pub(super) const ROWS: &[Row] = &[
    (
        24,
        200,
        "the first arrival may roam, its replay does not, the next packet roams back",
        replayed_elsewhere,
    ),
    (25, 21, "nothing is sent there", endpoints_that_are_none),
    (27, 8, "what comes back is dropped and counted", looping_routes),
    (29, 1_000_001, "bounded for each peer and in all, and nobody is called for ever", waiting_for_nobody),
    (30, 21, "a clear error, and no key in it", configurations),
];

fn replayed_elsewhere(bench: &mut Bench) {
    for _ in 0..100 {
        let sealed = bench.pair.seal_at_a(b"raced");
        let now = bench.pair.now;
        // Whoever is on the way is first.
        assert!(open(&mut bench.pair.b, &sealed, STRANGER, now).is_ok());
        assert_eq!(bench.pair.b.path(PEER), Some(path(STRANGER)));
        bench.refused(&sealed, A_OUTSIDE, Cause::Replay);
        let next = bench.pair.seal_at_a(b"next");
        assert!(bench.pair.at_b(&next).is_some());
        bench.refused(&sealed, STRANGER, Cause::Replay);
        assert_eq!(bench.pair.b.path(PEER), Some(path(A_OUTSIDE)));
    }
}

fn endpoints_that_are_none(bench: &mut Bench) {
    let none = [
        "203.0.113.9:0",
        "0.0.0.0:7",
        "224.0.0.1:7",
        "239.255.255.250:1900",
        "255.255.255.255:7",
        "[::]:7",
        "[ff02::1]:7",
        "[2001:db8::1]:0",
    ];
    for from in none {
        // In a file.
        assert!(config::check_endpoint(from.parse().expect("address")).is_err(), "{from}");
        // As `wg set` gives it: taken, and nothing leaves for it, with a session or without.
        let mut given = Pair::connected();
        for _ in 0..2 {
            given.a.set_persistent_keepalive(PEER, 1, given.now);
            given.a.set_path(PEER, Some(path(from)), given.now);
            let dropped = given.a.drops().get(Cause::NoEndpoint);
            let inner = packet(A_INSIDE, B_INSIDE, b"x");
            assert!(try_seal(&mut given.a, &inner, given.now).is_none(), "{from}");
            given.a.stage(PEER, &inner, given.now);
            assert_eq!(given.a.drops().get(Cause::NoEndpoint), dropped + 1);
            for _ in 0..300 {
                given.now += SECOND;
                given.a.handle_timeout(given.now);
                assert!(given.a.poll_transmit().is_none(), "{from}");
            }
        }
        given.a.set_path(PEER, Some(path(B_OUTSIDE)), given.now);
        assert_eq!(given.exchange(), [packet(A_INSIDE, B_INSIDE, b"hello")], "{from}");
        // As where an authentic packet, or a handshake, seems to come from.
        let sealed = bench.pair.seal_at_a(b"x");
        let now = bench.pair.now;
        assert!(matches!(open(&mut bench.pair.b, &sealed, from, now), Ok(Some(_))));
        assert_eq!(bench.pair.b.path(PEER), Some(path(A_OUTSIDE)), "{from}");
        bench.inputs += 1;
        bench.pair.now += 6 * SECOND;
        bench.pair.a.start_handshake(PEER, bench.pair.now);
        let initiation = bench.pair.a.poll_transmit().expect("an initiation");
        bench.refused(initiation.bytes(), from, Cause::MalformedOuter);
    }
    // Our own listening socket: what is sent comes back, and is nobody's.
    for _ in 0..5 {
        bench.pair.now += 6 * SECOND;
        bench.pair.b.start_handshake(PEER, bench.pair.now);
        let own = bench.pair.b.poll_transmit().expect("an initiation");
        bench.refused(own.bytes(), "192.0.2.2:2000", Cause::BadTag);
    }
    bench.pair.a.start_handshake(PEER, bench.pair.now);
    bench.pair.settle();
}

fn looping_routes(bench: &mut Bench) {
    let now = bench.pair.now;
    // The endpoints of two peers lie in what is routed to them.
    let a = &mut bench.pair.a;
    a.set_own_port(1_000);
    a.add_allowed_ip(PEER, "192.0.2.0/24".parse().expect("prefix"));
    let v6 = a.add_peer(&peer(5, &["2001:db8::/32"], Some("[2001:db8::5]:5")), now);
    let mut datagram = packet("192.0.2.1", "192.0.2.2", &[0; 40]);
    datagram[20..24].copy_from_slice(&[3, 232, 7, 208]);
    let mut over_v6 = packet("2001:db8::1", "2001:db8::5", &[0; 40]);
    over_v6[40..44].copy_from_slice(&[3, 232, 0, 5]);
    for (loops, from, peer) in [(&mut datagram, 21, PEER), (&mut over_v6, 41, v6)] {
        assert_eq!(a.route(loops), Err(Cause::RoutingLoop));
        // Somebody else's tunnel to the same host.
        loops[from] += 1;
        assert_eq!(a.route(loops), Ok(peer));
        loops[from] -= 1;
    }
    // What else the host of the endpoint is asked for may go through the tunnel.
    datagram[23] += 1;
    over_v6[43] += 1;
    assert_eq!((a.route(&datagram), a.route(&over_v6)), (Ok(PEER), Ok(v6)));
    let mut tcp = packet("192.0.2.1", "192.0.2.2", &[0; 40]);
    (tcp[9], tcp[22], tcp[23]) = (6, 7, 208);
    assert_eq!(a.route(&tcp), Ok(PEER));
    // It goes by where the peer is now.
    datagram[23] -= 1;
    a.set_path(PEER, Some(path("198.51.100.2:2000")), now);
    assert_eq!(a.route(&datagram), Ok(PEER));
    a.set_path(PEER, Some(path(B_OUTSIDE)), now);
    bench.inputs += 8;
}

fn waiting_for_nobody(bench: &mut Bench) {
    const PEERS: u32 = 200;
    let start = bench.pair.now;
    let a = &mut bench.pair.a;
    let silent: Vec<PeerIndex> = (0..PEERS)
        .map(|number| {
            let mut key = [7; 32];
            key[..4].copy_from_slice(&number.to_be_bytes());
            let config = PeerConfig { public_key: PublicKey(key), ..peer(2, &[], Some(STRANGER)) };
            a.add_peer(&config, start)
        })
        .collect();
    let packet = vec![0; 1_400];
    for _ in 0..5_000 {
        for &index in &silent {
            a.stage(index, &packet, start);
            bench.inputs += 1;
        }
        while a.poll_transmit().is_some() {}
    }
    assert!(a.staged_bytes <= ALL_BYTES_MAX && a.staged_bytes > ALL_BYTES_MAX / 2, "{}", a.staged_bytes);
    let kept = 1_000_000 - a.drops().get(Cause::StagedFull);
    assert!(kept <= (PACKETS_MAX as u64) * u64::from(PEERS) && kept * 1_400 <= ALL_BYTES_MAX as u64);
    // 18 attempts in 90 s each, the first of which has left; then silence and no memory.
    let (mut now, mut sent) = (start, 0);
    while let Some(next) = a.poll_timeout().filter(|next| *next < start + 400 * SECOND) {
        now = now.max(next);
        a.handle_timeout(now);
        sent +=
            std::iter::from_fn(|| a.poll_transmit()).filter(|message| message.path == path(STRANGER)).count();
    }
    assert_eq!(sent, 17 * PEERS as usize);
    assert_eq!((a.staged_bytes, a.drops().get(Cause::StagedExpired)), (0, kept));
    assert!(silent.iter().all(|index| !a.peers[*index].noise.has_state()));
    // One more packet calls again.
    a.stage(silent[0], &packet, now);
    assert!(a.poll_transmit().is_some());
    bench.inputs += 1;
    silent.into_iter().for_each(|index| assert!(a.remove_peer(index)));
    bench.pair.now = now;
}

fn configurations(bench: &mut Bench) {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("wg0.conf");
    let [private, public, other] = [3, 4, 5].map(|seed| secret(seed).to_base64().to_string());
    let good = format!("[Interface]\nPrivateKey = {private}\n[Peer]\nPublicKey = {public}\n");
    let load = |text: &str| {
        std::fs::write(&file, text).expect("written");
        Config::load(&file)
    };
    assert!(load(&good).is_ok());
    let wrong = [
        format!("{good}[Peer]\nPublicKey = {public}\n"),
        format!("{good}PublicKey = {other}\n"),
        format!("{good}PresharedKey = {}\n", &other[1..]),
        format!("{good}PresharedKey = {other}=\n"),
        format!("{good}PresharedKey = {}\n", other.replace('=', "\u{fe}")),
        format!("{good}{other} = 1\n"),
        format!("{good}Colour = {other}\n"),
        format!("{good}Endpoint = {other}\n"),
        format!("{good}AllowedIPs = {other}\n"),
        format!("{good}AllowedIPs = 10.0.0.0/33\n"),
        format!("{good}PersistentKeepalive = {other}\n"),
        format!("{good}Endpoint = 224.0.0.1:51820\n"),
        format!("{good}[{other}]\n"),
        good.replace(&private, &private[1..]),
        good.replace(&private, &format!("{private} {other}")),
        good.replace(&public, "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="),
        good.replace("PublicKey", "PrivateKey"),
        good.replace("[Interface]", ""),
        good.replace("[Peer]", "[Interface]"),
        String::new(),
    ];
    for text in wrong {
        let error = load(&text).expect_err(&text).to_string();
        bench.inputs += 1;
        assert!(error.contains("wg0.conf") && error.len() > 30, "{error}");
        for key in [&private, &other] {
            assert!(!error.contains(&key[4..20]), "a key is shown: {error}");
        }
    }
    // 65,536 peers are a configuration as any other.
    let mut text = format!("[Interface]\nPrivateKey = {private}\n");
    for number in 0..65_536_u32 {
        use base64::Engine as _;
        let mut key = [9; 32];
        key[..4].copy_from_slice(&number.to_le_bytes());
        let key = base64::engine::general_purpose::STANDARD.encode(key);
        text.push_str(&format!(
            "[Peer]\nPublicKey={key}\nAllowedIPs=10.1.{}.{}/32\n",
            number >> 8,
            number & 255
        ));
    }
    assert_eq!(load(&text).expect("valid").0.peers.len(), 65_536);
    bench.inputs += 1;
}
