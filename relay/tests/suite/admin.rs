//! What a relay shows of itself: figures that follow the traffic, probes, the table in a terminal.

#![allow(clippy::unwrap_used, reason = "a test panics when it cannot go on and says where")]

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::process::Stdio;
use std::time::Duration;

use crate::harness::http::{exchange, get, settled, status};
use crate::harness::stream::{StreamClient, channel_message, connect};
use crate::harness::{Client, PASSWORD, REALM, RelayProcess, USER, code, peer, program, receive, socket};
use dataplane::stun::channel_data;
use dataplane::stun::{ChannelNumber, Class, Key, Method, TransactionId, Writer};
use rustix::process::Signal;
use serde_json::{Value, json};

const SHOWN: [&str; 2] = ["--admin", "127.0.0.1:0"];

fn shown(flags: &[&str]) -> RelayProcess {
    RelayProcess::on_loopback(&[&SHOWN, flags].concat())
}

fn message(number: ChannelNumber, payload: &[u8]) -> Vec<u8> {
    [&channel_data::header(number, payload.len()).unwrap()[..], payload].concat()
}

fn indication(peer: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let mut buffer = [0; 500];
    let mut writer =
        Writer::new(&mut buffer, Class::Indication, Method::Send, TransactionId([2; 12])).unwrap();
    writer.xor_peer_address(peer).data(payload);
    let len = writer.finish(None, false).unwrap();
    buffer[..len].to_vec()
}

/// An Allocate with this password and a nonce of the relay's: the answer's error code.
fn allocate_as(relay: SocketAddr, password: &str) -> Option<u16> {
    let client = socket();
    client.connect(relay).unwrap();
    let mut nonce = Vec::new();
    let mut answer = None;
    for transaction in 1..=2 {
        let mut buffer = [0; 500];
        let id = TransactionId([transaction; 12]);
        let mut writer = Writer::new(&mut buffer, Class::Request, Method::Allocate, id).unwrap();
        writer.requested_transport(17);
        let key = (!nonce.is_empty()).then(|| {
            writer.username(USER.as_bytes()).realm(REALM.as_bytes()).nonce(&nonce);
            Key::long_term(USER.as_bytes(), REALM.as_bytes(), password.as_bytes())
        });
        let len = writer.finish(key.as_ref(), false).unwrap();
        client.send(&buffer[..len]).unwrap();
        let (reply, _) = receive(&client);
        answer = code(&reply);
        if let Some(challenge) = dataplane::stun::Message::parse(&reply).unwrap().nonce() {
            nonce = challenge.to_vec();
        }
    }
    answer
}

/// Traffic of known size on one design, and the same sizes in the figures.
fn figures_follow(flags: &[&str], io: &str, ingress: &str) {
    let relay = shown(flags);
    let mut client = Client::new(relay.listen[0]);
    let relayed = client.allocate();
    let peer = socket();
    let peer_address = peer.local_addr().unwrap();
    let number = ChannelNumber::MIN;
    let permit = |writer: &mut Writer<'_>| {
        writer.xor_peer_address(peer_address);
    };
    // Before the first permission: it is neither delivered nor kept until there is one.
    peer.send_to(&[9; 90], relayed).unwrap();
    assert_eq!(code(&client.ask(Method::CreatePermission, permit)), None);
    client.socket.send(&indication(peer_address, &[1; 30])).unwrap();
    receive(&peer);
    peer.send_to(&[2; 70], relayed).unwrap();
    receive(&client.socket);
    let bind = |writer: &mut Writer<'_>| {
        writer.channel_number(number).xor_peer_address(peer_address);
    };
    assert_eq!(code(&client.ask(Method::ChannelBind, bind)), None);
    for len in [100, 200, 300] {
        client.socket.send(&message(number, &vec![3; len])).unwrap();
        receive(&peer);
    }
    for len in [11, 22] {
        peer.send_to(&vec![4; len], relayed).unwrap();
        receive(&client.socket);
    }
    // Lost, with a cause: nobody permitted this peer's neighbour.
    client.socket.send(&indication("127.0.0.77:4009".parse().unwrap(), b"x")).unwrap();

    let figures = settled(relay.admin(), |status| status["drops"]["no_permission"] == 2);
    assert_eq!(
        figures["relayed"],
        json!({
            "to_peer": { "channel": { "packets": 3, "bytes": 600 }, "indication": { "packets": 1, "bytes": 30 } },
            "to_client": { "channel": { "packets": 2, "bytes": 33 }, "indication": { "packets": 1, "bytes": 70 } },
        })
    );
    assert_eq!(figures["users_in_all"], 1);
    assert_eq!(
        figures["users"],
        json!([{
            "name": USER,
            "credentials": "static",
            "allocations": 1,
            "to_peer": { "packets": 4, "bytes": 630 },
            "to_client": { "packets": 3, "bytes": 103 },
            "shaped_packets": 0,
        }])
    );
    assert_eq!((&figures["io"], &figures["ingress_design"]), (&json!(io), &json!(ingress)));
    assert_eq!((&figures["permissions"]["live"], &figures["channels"]["live"]), (&json!(1), &json!(1)));
    assert_eq!(
        (&figures["allocations"]["live"], &figures["allocations"]["limit"]),
        (&json!(1), &json!(10_000))
    );
    assert_eq!((&figures["requests"]["allocate"], &figures["refusals"]["438"]), (&json!(2), &json!(1)));
    // The client of these tests begins with an empty nonce.
    assert_eq!(
        figures["authentication_failures"],
        json!({ "credentials": 0, "nonce": 1, "incomplete": 0, "weaker_offer": 0 })
    );
    // What was relayed and what was answered went through the egress: 7 packets, 4 answers.
    assert_eq!(figures["egress"]["offered"], json!(7 + 4), "{figures}");

    let delete = |writer: &mut Writer<'_>| {
        writer.lifetime(0);
    };
    assert_eq!(code(&client.ask(Method::Refresh, delete)), None);
    let figures = settled(relay.admin(), |status| status["allocations"]["live"] == 0);
    // What a user has relayed is still known.
    assert_eq!(
        (&figures["users"][0]["allocations"], &figures["users"][0]["to_peer"]["bytes"]),
        (&json!(0), &json!(630))
    );
    assert_eq!((&figures["permissions"]["live"], &figures["allocations"]["made"]), (&json!(0), &json!(1)));
    let (end, log) = relay.stop();
    assert!(end.success(), "{log}");
}

#[test]
fn figures_follow_channel_data_of_a_connection_as_well() {
    let relay = shown(&["--listen-tcp", "127.0.0.1:0"]);
    let mut client = StreamClient::new(connect(relay.tcp[0]));
    let relayed = client.allocate();
    let peer = peer();
    let number = ChannelNumber::MIN;
    let to = peer.local_addr().unwrap();
    let bind = |writer: &mut Writer<'_>| {
        writer.channel_number(number).xor_peer_address(to);
    };
    assert_eq!(code(&client.ask(Method::ChannelBind, bind)), None);
    for len in [100, 200, 300] {
        client.send(&channel_message(number, &vec![3; len]));
        assert_eq!(receive(&peer).0.len(), len);
    }
    for len in [11, 22] {
        peer.send_to(&vec![4; len], relayed).unwrap();
        client.receive().unwrap();
    }
    let figures = settled(relay.admin(), |status| status["relayed"]["to_client"]["channel"]["packets"] == 2);
    let channel = |direction: &str| figures["relayed"][direction]["channel"].clone();
    assert_eq!(channel("to_peer"), json!({ "packets": 3, "bytes": 600 }), "{figures}");
    assert_eq!(channel("to_client"), json!({ "packets": 2, "bytes": 33 }), "{figures}");
    assert_eq!(figures["users"][0]["to_peer"], json!({ "packets": 3, "bytes": 600 }), "{figures}");
}

#[test]
fn figures_follow_the_traffic_on_every_design() {
    figures_follow(&["--io", "uring", "--ingress", "epoll"], "uring", "epoll");
    figures_follow(&["--io", "uring", "--ingress", "uring"], "uring", "uring");
    figures_follow(&["--io", "suspend"], "suspend", "epoll");
    figures_follow(&["--io", "drop"], "drop", "epoll");
    figures_follow(&["--io", "threaded"], "threaded", "epoll");
    figures_follow(&["--io", "runtime"], "runtime", "epoll");
}

#[test]
fn wrong_passwords_are_authentication_failures_and_first_requests_are_not() {
    let relay = shown(&[]);
    assert_eq!(allocate_as(relay.listen[0], "wrong"), Some(401));
    assert_eq!(allocate_as(relay.listen[0], PASSWORD), None);
    let figures = settled(relay.admin(), |status| status["requests"]["allocate"] == 4);
    assert_eq!(
        figures["authentication_failures"],
        json!({ "credentials": 1, "nonce": 0, "incomplete": 0, "weaker_offer": 0 })
    );
    assert_eq!(figures["refusals"]["401"], 3);
}

#[test]
fn probes_and_metrics_answer_and_head_has_no_body() {
    let relay = shown(&[]);
    let admin = relay.admin();
    for (target, body) in [("/healthz", "ok\n"), ("/readyz", "ready\n")] {
        let answer = get(admin, target);
        assert_eq!((answer.status, answer.body.as_str()), (200, body));
    }
    let metrics = get(admin, "/metrics");
    assert_eq!(metrics.status, 200);
    assert!(metrics.head.contains("text/plain; version=0.0.4"), "{}", metrics.head);
    assert!(metrics.body.contains("\ntowpath_relay_ready 1\n"), "{}", metrics.body);
    let page = get(admin, "/");
    assert!(page.head.contains("Content-Security-Policy: default-src 'none'; "), "{}", page.head);
    let head = exchange(admin, b"HEAD /metrics HTTP/1.0\r\n\r\n");
    assert_eq!((head.status, head.body.as_str()), (200, ""));
    // A stop signal takes the admin thread with it at once.
    let (end, log) = relay.stop();
    assert!(end.success() && log.contains(" unexplained=0 "), "{log}");
}

#[test]
fn a_relay_that_nobody_asks_sleeps() {
    let relay = shown(&["--io", "suspend"]);
    status(relay.admin());
    std::thread::sleep(Duration::from_millis(500));
    // Times the threads went to sleep, which is after waking.
    let sleeps = || -> u64 {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", relay.id())).unwrap();
        let of_task = |path: std::path::PathBuf| {
            let status = std::fs::read_to_string(path.join("status")).unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).unwrap();
            line.trim().parse::<u64>().unwrap()
        };
        tasks.map(|task| of_task(task.unwrap().path())).sum()
    };
    let before = sleeps();
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(sleeps() - before, 0, "somebody woke");
    status(relay.admin());
    assert!(sleeps() > before, "a question wakes the loop: this test can see it");
}

#[test]
fn the_admin_port_is_never_a_peer() {
    let relay = shown(&[]);
    let mut client = Client::new(relay.listen[0]);
    client.allocate();
    let admin = relay.admin();
    let permit = |writer: &mut Writer<'_>| {
        writer.xor_peer_address(admin);
    };
    assert_eq!(code(&client.ask(Method::CreatePermission, permit)), Some(403));
    let bind = |writer: &mut Writer<'_>| {
        writer.channel_number(ChannelNumber::MIN).xor_peer_address(admin);
    };
    assert_eq!(code(&client.ask(Method::ChannelBind, bind)), Some(403));
}

#[test]
fn a_taken_default_is_a_warning_and_a_taken_address_an_error() {
    // Whether this takes it or somebody has it, it is taken.
    let _taken = TcpListener::bind("127.0.0.1:9641");
    let relay = RelayProcess::start_as_it_is(&["--listen", "127.0.0.1:0"]);
    let warnings = relay.before_ready().matches("no metrics and no status page").count();
    assert_eq!(warnings, 1, "{}", relay.before_ready());
    Client::new(relay.listen[0]).allocate();

    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let flags = ["--listen", "127.0.0.1:0", "--admin", &address];
    let run = program(env!("CARGO_BIN_EXE_towpath-relay")).args(flags).output().unwrap();
    assert_eq!(run.status.code(), Some(1));
    let text = String::from_utf8(run.stderr).unwrap();
    assert!(text.contains("another program has it") && text.contains(&address), "{text}");
}

#[test]
fn an_address_that_others_reach_is_warned_about() {
    let relay = RelayProcess::on_loopback(&["--admin", "0.0.0.0:0"]);
    let port = relay.admin().port();
    assert_eq!(get(([127, 0, 0, 1], port).into(), "/healthz").status, 200);
    assert!(
        relay.before_ready().contains("everyone who reaches the admin address"),
        "{}",
        relay.before_ready()
    );
    let quiet = shown(&[]);
    assert!(!quiet.before_ready().contains("everyone who reaches"), "{}", quiet.before_ready());
}

#[test]
fn the_table_shows_the_relay_and_says_when_there_is_none() {
    let relay = shown(&[]);
    Client::new(relay.listen[0]).allocate();
    let admin = relay.admin().to_string();
    let status = |flags: &[&str]| {
        let mut command = program(env!("CARGO_BIN_EXE_towpath-relay"));
        command.args(["status", "--admin", &admin]).args(flags);
        command
    };
    let table = status(&[]).output().unwrap();
    let text = String::from_utf8(table.stdout).unwrap();
    assert!(table.status.success() && table.stderr.is_empty(), "{text}");
    for word in ["allocations", "to peers", "Lost, by cause", USER, "serving", "438"] {
        assert!(text.contains(word), "{word}: {text}");
    }
    let json = status(&["--json"]).output().unwrap();
    let json: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!((&json["allocations"]["live"], &json["users"][0]["name"]), (&json!(1), &json!(USER)));

    let mut watch = status(&["--json", "--watch"]).stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(watch.stdout.take().unwrap()).lines().take(3);
    let ages: Vec<f64> = lines
        .map(|line| serde_json::from_str::<Value>(&line.unwrap()).unwrap()["uptime_s"].as_f64().unwrap())
        .collect();
    watch.kill().unwrap();
    watch.wait().unwrap();
    assert!(ages[1] - ages[0] > 0.9 && ages[2] - ages[1] > 0.9, "{ages:?}");

    drop(relay);
    let nobody = status(&[]).output().unwrap();
    let text = String::from_utf8(nobody.stderr).unwrap();
    assert_eq!(nobody.status.code(), Some(1));
    assert!(text.contains(&admin) && text.contains("is a relay running there?"), "{text}");
}

/// The figures of a relay that hangs, which its admin thread serves on: here they are those of a real one, made older.
#[test]
fn status_says_that_a_relay_hangs_and_fails() {
    let relay = shown(&[]);
    let mut figures = status(relay.admin());
    figures["age_s"] = json!(4.5);
    let body = figures.to_string();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            // To its end, or closing would reset the connection.
            let request = BufReader::new(stream.try_clone().unwrap());
            request.lines().map_while(Result::ok).take_while(|line| !line.is_empty()).for_each(drop);
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
            // Whoever watches is ended while it reads.
            let _ = stream.write_all(format!("{head}{body}").as_bytes());
        }
    });
    let asked = |flags: &[&str]| {
        let mut command = program(env!("CARGO_BIN_EXE_towpath-relay"));
        command.args(["status", "--admin", &address]).args(flags);
        command
    };
    for flags in [&[][..], &["--json"]] {
        let run = asked(flags).output().unwrap();
        let text = String::from_utf8(run.stderr).unwrap();
        assert_eq!((run.status.code(), run.stdout.len()), (Some(1), 0), "{text}");
        assert!(text.contains("the relay hangs: its figures are"), "{text}");
    }
    let mut watch = asked(&["--watch"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.any(|line| line.contains("the relay hangs: these figures are")));
    watch.kill().unwrap();
    watch.wait().unwrap();
}

#[test]
fn nothing_is_unexplained_while_it_relays_and_loses_packets_for_good_reasons() {
    for io in ["uring", "suspend", "threaded"] {
        let relay = shown(&["--io", io, "--workers", "2"]);
        let mut client = Client::new(relay.listen[0]);
        let relayed = client.allocate();
        let peer = peer();
        let permit = |writer: &mut Writer<'_>| {
            writer.xor_peer_address(peer.local_addr().unwrap());
        };
        assert_eq!(code(&client.ask(Method::CreatePermission, permit)), None);
        for number in 0..200_u16 {
            peer.send_to(&number.to_be_bytes(), relayed).unwrap();
            // Nobody permitted it.
            client.socket.send(&indication("127.0.0.3:9".parse().unwrap(), b"lost")).unwrap();
            receive(&client.socket);
            let egress = &status(relay.admin())["egress"];
            assert_eq!(egress["unexplained"], 0, "{io}: {egress}");
        }
        let at_rest = |status: &Value| {
            let egress = &status["egress"];
            let slots = egress["slots"].as_u64().unwrap();
            egress["pending"] == 0 && egress["slots_free_min"].as_u64() == Some(slots / 2)
        };
        let status = settled(relay.admin(), at_rest);
        assert_eq!(status["egress"]["unexplained"], 0, "{io}: {status}");
        assert_eq!(status["egress"]["slots"].as_u64() > Some(0), io == "uring", "{io}: {status}");
    }
}

#[test]
fn a_relay_that_was_held_up_says_how_late_its_timers_were() {
    let relay = shown(&[]);
    let lag_s = |status: &Value| status["timer_lag_s"].as_f64().unwrap();
    assert!(lag_s(&status(relay.admin())) < 1.0);
    // It reads the time of day every ten seconds, so that it misses one of these.
    relay.signal(Signal::STOP);
    std::thread::sleep(Duration::from_secs(12));
    relay.signal(Signal::CONT);
    let status = settled(relay.admin(), |status| lag_s(status) >= 1.0);
    assert!(lag_s(&status) < 13.0, "{status}");
    let metrics = get(relay.admin(), "/metrics").body;
    assert!(metrics.contains("\ntowpath_relay_timer_lag_seconds "), "{metrics}");
}
