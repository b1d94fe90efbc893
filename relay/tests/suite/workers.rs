//! Several workers in one relay, over real sockets: each client is served by one of them, what is common is common to all, and
//! clients of different workers reach each other.

#![allow(clippy::unwrap_used, reason = "a test panics when it cannot go on")]

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};

use crate::harness::load::Load;
use crate::harness::stream::{StreamClient, bare, connect, send_indication};
use crate::harness::{Client, RelayProcess, code, free_ports, http, receive, socket_on};
use dataplane::stun::channel_data::{self, ChannelData, ChannelNumber};
use dataplane::stun::{AttributeType, Class, Message, Method, Writer};
use rustix::process::Signal;

const NUMBER: ChannelNumber = ChannelNumber::MIN;
const CLIENTS: usize = 200;

/// As many as there are cores here, and more; on the ring and on plain calls.
const WAYS: [&[&str]; 3] =
    [&["--workers", "2"], &["--workers", "4", "--io", "suspend"], &["--workers", "4", "--ingress", "uring"]];

/// A relay that makes no exceptions: loopback is refused, but for the allocations on it.
fn strict(flags: &[&str]) -> RelayProcess {
    // Everybody is one user here, and from one address.
    let many = ["--new-peers-per-user", "0", "--allocations-per-source-max", "1000"];
    let own = [&["--listen", "127.0.0.1:0", "--listen-tcp", "127.0.0.1:0"][..], &many].concat();
    RelayProcess::start(&[&own, flags].concat())
}

/// A client, on a socket that takes what is on its way to it.
fn client(relay: &RelayProcess) -> Client {
    Client::new(relay.listen[0])
}

fn bind(client: &mut Client, peer: SocketAddr) {
    let bind = |writer: &mut Writer<'_>| {
        writer.channel_number(NUMBER).xor_peer_address(peer);
    };
    assert_eq!(code(&client.ask(Method::ChannelBind, bind)), None);
}

fn permit(client: &mut Client, peer: SocketAddr) {
    let permit = |writer: &mut Writer<'_>| {
        writer.xor_peer_address(peer);
    };
    assert_eq!(code(&client.ask(Method::CreatePermission, permit)), None);
}

fn channel_message(payload: &[u8]) -> Vec<u8> {
    [&channel_data::header(NUMBER, payload.len()).unwrap()[..], payload].concat()
}

fn receive_indication(bytes: &[u8]) -> (SocketAddr, Vec<u8>) {
    let message = Message::parse(bytes).unwrap();
    assert_eq!((message.class(), message.method()), (Class::Indication, Method::Data));
    (message.xor_peer_address().unwrap().unwrap(), message.data().unwrap().to_vec())
}

fn receive_channel_data(socket: &UdpSocket) -> Vec<u8> {
    let (datagram, _) = receive(socket);
    let data = ChannelData::parse(&datagram).unwrap();
    assert_eq!(data.number, NUMBER);
    data.payload.to_vec()
}

/// Packets of a line that the relay ends with.
fn packets(log: &str, line: &str) -> Option<u64> {
    let (_, rest) = log.split_once(&format!("{line} packets="))?;
    rest.split(' ').next()?.parse().ok()
}

#[test]
fn two_hundred_clients_lose_nothing_and_the_figures_are_those_of_all() {
    for way in WAYS {
        let admin = ["--admin", "127.0.0.1:0", "--new-peers-per-user", "0"];
        let relay = RelayProcess::on_loopback(&[way, &admin].concat());
        let peer = socket_on(Ipv4Addr::new(127, 0, 0, 2).into());
        let mut clients: Vec<Client> = (0..CLIENTS).map(|_| client(&relay)).collect();
        let relayed: Vec<SocketAddr> = clients.iter_mut().map(Client::allocate).collect();
        assert_eq!(relayed.iter().collect::<BTreeSet<_>>().len(), CLIENTS, "each has a port of its own");
        for client in &mut clients {
            bind(client, peer.local_addr().unwrap());
        }
        const ROUNDS: u64 = 10;
        for round in 0..ROUNDS {
            for (index, client) in clients.iter().enumerate() {
                client.socket.send(&channel_message(&[round as u8, index as u8])).unwrap();
                let (datagram, from) = receive(&peer);
                assert_eq!((datagram, from), (vec![round as u8, index as u8], relayed[index]));
            }
            for (index, client) in clients.iter().enumerate() {
                peer.send_to(&[index as u8], relayed[index]).unwrap();
                assert_eq!(receive_channel_data(&client.socket), [index as u8]);
            }
        }
        let passed = ROUNDS * CLIENTS as u64;
        let status = http::settled(relay.admin(), |status| {
            status["relayed"]["to_client"]["channel"]["packets"] == passed
        });
        let workers: u64 = way[1].parse().unwrap();
        assert_eq!(status["workers"], workers);
        assert_eq!(status["allocations"]["live"], CLIENTS);
        assert_eq!(status["relayed"]["to_peer"]["channel"]["packets"], passed);
        assert_eq!(
            (&status["channels"]["live"], &status["permissions"]["live"]),
            (&CLIENTS.into(), &CLIENTS.into())
        );
        assert_eq!(status["requests"]["channel_bind"], CLIENTS);
        assert_eq!(
            (&status["users_in_all"], &status["users"][0]["allocations"]),
            (&1.into(), &CLIENTS.into())
        );
        assert_eq!(status["users"][0]["to_peer"]["packets"], passed);
        let metrics = http::get(relay.admin(), "/metrics").body;
        assert!(metrics.contains(&format!("\ntowpath_relay_workers {workers}\n")), "{metrics}");
        assert!(metrics.contains(&format!("\ntowpath_relay_allocations {CLIENTS}\n")), "{metrics}");
        let (status, log) = relay.stop();
        assert!(status.success() && log.contains(" unexplained=0 "), "{log}");
        assert!(
            log.contains(&format!(" workers={workers}")) && !log.contains(" application_drops."),
            "{log}"
        );
    }
}

#[test]
fn clients_of_different_workers_reach_each_other() {
    for way in WAYS {
        let relay = strict(&[way, &["--admin", "127.0.0.1:0"]].concat());
        let mut clients: Vec<Client> = (0..CLIENTS).map(|_| client(&relay)).collect();
        let relayed: Vec<SocketAddr> = clients.iter_mut().map(Client::allocate).collect();
        // In a ring: each sends to the next. By indication first, and then by channel.
        let next = |index: usize| (index + 1) % CLIENTS;
        let before = |index: usize| (index + CLIENTS - 1) % CLIENTS;
        for (index, client) in clients.iter_mut().enumerate() {
            permit(client, relayed[next(index)]);
            permit(client, relayed[before(index)]);
        }
        let (mut count, mut bytes) = (0_u64, 0_u64);
        for index in 0..CLIENTS {
            let payload = vec![index as u8; 1 + index * 20];
            clients[index].socket.send(&send_indication(relayed[next(index)], &payload)).unwrap();
            let (datagram, _) = receive(&clients[next(index)].socket);
            assert_eq!(receive_indication(&datagram), (relayed[index], payload));
            count += 1;
            bytes += 1 + index as u64 * 20;
        }
        for (index, client) in clients.iter_mut().enumerate() {
            bind(client, relayed[next(index)]);
        }
        for index in 0..CLIENTS {
            // What comes from the one before has no channel, and what goes to the next has one.
            for len in [0, 1, 1200, 3000] {
                let payload = vec![index as u8; len];
                clients[index].socket.send(&channel_message(&payload)).unwrap();
                let (datagram, _) = receive(&clients[next(index)].socket);
                assert_eq!(receive_indication(&datagram), (relayed[index], payload.clone()));
                let back = send_indication(relayed[index], &payload);
                clients[next(index)].socket.send(&back).unwrap();
                assert_eq!(receive_channel_data(&clients[index].socket), payload);
                count += 2;
                bytes += 2 * len as u64;
            }
        }
        let is_counted = |status: &serde_json::Value| {
            let user = &status["users"][0];
            user["to_client"]["packets"] == count && user["to_peer"]["packets"] == count
        };
        let status = http::settled(relay.admin(), is_counted);
        assert_eq!(status["hairpinned"]["packets"], count, "{status}");
        let to_client = &status["relayed"]["to_client"];
        let sum = |field: &str| {
            to_client["channel"][field].as_u64().unwrap() + to_client["indication"][field].as_u64().unwrap()
        };
        assert_eq!((sum("packets"), sum("bytes")), (count, bytes), "{status}");
        assert_eq!(status["users"][0]["to_client"]["bytes"], bytes, "{status}");
        for client in &mut clients[..CLIENTS / 2] {
            let gone = client.ask(Method::Refresh, |writer| {
                writer.lifetime(0);
            });
            assert_eq!(code(&gone), None);
        }
        let half = CLIENTS as u64 / 2;
        let status = http::settled(relay.admin(), |status| status["allocations"]["live"] == half);
        assert_eq!(status["users"][0]["to_client"]["bytes"], bytes, "those who have gone count: {status}");
        let (status, log) = relay.stop();
        assert!(status.success() && log.contains(" unexplained=0 "), "{log}");
        assert!(!log.contains(" application_drops."), "{log}");
        assert_eq!(packets(&log, "hairpin"), Some(count), "{log}");
        let posted = packets(&log, "hairpin between workers").unwrap();
        assert!(posted > count / 4 && posted < count, "{posted} of {count}");
    }
}

#[test]
fn a_permission_that_is_missing_on_either_side_stops_data_between_workers() {
    let relay = strict(&["--workers", "4", "--admin", "127.0.0.1:0"]);
    let mut clients: Vec<Client> = (0..20).map(|_| client(&relay)).collect();
    let relayed: Vec<SocketAddr> = clients.iter_mut().map(Client::allocate).collect();
    for (index, one) in clients.iter().enumerate() {
        one.socket.send(&send_indication(relayed[(index + 1) % 20], b"nobody permits")).unwrap();
    }
    http::settled(relay.admin(), |status| status["drops"]["no_permission"] == 20);
    // A permission is for an address, which all of them have, so that half of them never permit anything.
    for pair in clients.chunks_exact_mut(2).zip(relayed.chunks_exact(2)) {
        let ([sender, _], &[_, receiver_at]) = pair else { unreachable!() };
        permit(sender, receiver_at);
        sender.socket.send(&send_indication(receiver_at, b"only the sender permits")).unwrap();
    }
    let status = http::settled(relay.admin(), |status| status["drops"]["no_permission"] == 30);
    assert_eq!(status["drops"]["no_allocation"], 0, "{status}");
    // A port where nobody is any more leads nowhere, whoever had it.
    for client in &mut clients[10..] {
        assert_eq!(
            code(&client.ask(Method::Refresh, |writer| {
                writer.lifetime(0);
            })),
            None
        );
    }
    for (index, client) in clients[..9].iter_mut().enumerate() {
        let gone = relayed[10 + index];
        let refused = client.ask(Method::CreatePermission, |writer| {
            writer.xor_peer_address(gone);
        });
        assert_eq!(code(&refused), Some(403));
    }
}

/// Sends by indication from each to the other.
fn meet<S: Read + Write>(udp: &mut Client, tcp: &mut StreamClient<S>) {
    let udp_at = udp.allocate();
    let reply = tcp.ask(Method::Allocate, |writer| {
        writer.requested_transport(17);
    });
    let tcp_at = Message::parse(&reply).unwrap().xor_relayed_address().unwrap().unwrap();
    permit(udp, tcp_at);
    let permitted = tcp.ask(Method::CreatePermission, |writer| {
        writer.xor_peer_address(udp_at);
    });
    assert_eq!(code(&permitted), None);
    for len in [0, 5, 1200, 9000] {
        let payload = vec![len as u8; len];
        udp.socket.send(&send_indication(tcp_at, &payload)).unwrap();
        assert_eq!(receive_indication(&tcp.receive().unwrap()), (udp_at, payload.clone()));
        tcp.send(&send_indication(udp_at, &payload));
        assert_eq!(receive_indication(&receive(&udp.socket).0), (tcp_at, payload));
    }
}

#[test]
fn clients_over_tcp_and_udp_of_different_workers_reach_each_other() {
    for way in WAYS {
        let relay = strict(way);
        // Kept, so that no later one gets an address that has an allocation.
        let mut clients: Vec<_> =
            (0..40).map(|_| (client(&relay), StreamClient::new(connect(relay.tcp[0])))).collect();
        clients.iter_mut().for_each(|(udp, tcp)| meet(udp, tcp));
        let (status, log) = relay.stop();
        assert!(status.success() && !log.contains(" application_drops."), "{log}");
        assert_eq!(packets(&log, "hairpin"), Some(40 * 8), "{log}");
        assert!(packets(&log, "hairpin between workers").unwrap() > 40, "{log}");
        let (_, connections) = log.split_once("clients over TCP and TLS connections=").unwrap();
        assert!(connections.starts_with("40 "), "{log}");
    }
}

/// So many that succeed, and then so many that get this code.
fn codes(served: usize, code: u16, refused: usize) -> Vec<Option<u16>> {
    [vec![None; served], vec![Some(code); refused]].concat()
}

#[test]
fn quotas_are_those_of_all_workers_together() {
    let flags =
        ["--workers", "4", "--allocations-per-user-max", "30", "--allocations-max", "50", "--user", "bob:b"];
    let relay = strict(&flags);
    let ask = |client: &mut Client| {
        code(&client.ask(Method::Allocate, |writer| {
            writer.requested_transport(17);
        }))
    };
    let mut of_alice: Vec<Client> = (0..60).map(|_| client(&relay)).collect();
    let answers: Vec<Option<u16>> = of_alice.iter_mut().map(ask).collect();
    assert_eq!(answers, codes(30, 486, 30));
    let mut of_bob: Vec<Client> = (0..30).map(|_| client(&relay).with_user("bob", "b")).collect();
    let answers: Vec<Option<u16>> = of_bob.iter_mut().map(ask).collect();
    assert_eq!(answers, codes(20, 508, 10));
    // What one worker's client gives back another's gets.
    for client in &mut of_alice[..10] {
        let gone = client.ask(Method::Refresh, |writer| {
            writer.lifetime(0);
        });
        assert_eq!(code(&gone), None);
    }
    let mut late: Vec<Client> = (0..20).map(|_| client(&relay)).collect();
    let answers: Vec<Option<u16>> = late.iter_mut().map(ask).collect();
    assert_eq!(answers, codes(10, 486, 10));
}

#[test]
fn a_source_and_a_user_have_their_limits_on_all_workers_together() {
    let flags = ["--workers", "4", "--allocations-per-source-max", "15", "--new-peers-per-user", "1"];
    let relay = RelayProcess::on_loopback(&flags);
    let mut clients: Vec<Client> = (0..40).map(|_| client(&relay)).collect();
    let ask = |client: &mut Client| {
        code(&client.ask(Method::Allocate, |writer| {
            writer.requested_transport(17);
        }))
    };
    let answers: Vec<Option<u16>> = clients.iter_mut().map(ask).collect();
    assert_eq!(answers, codes(15, 486, 25));
    let permit = |client: &mut Client| {
        code(&client.ask(Method::CreatePermission, |writer| {
            writer.xor_peer_address("127.0.0.9:9".parse().unwrap());
        }))
    };
    let permitted = clients[..15].iter_mut().map(permit).filter(Option::is_none).count();
    // Five at once, and one more each second.
    assert!((5..=7).contains(&permitted), "{permitted}");
}

#[test]
fn a_connection_limit_is_one_for_all_workers() {
    let relay = strict(&["--workers", "4", "--tcp-connections-max", "20"]);
    let mut served = Vec::new();
    for _ in 0..40 {
        let mut stream = StreamClient::new(connect(relay.tcp[0]));
        // One that is refused may be gone before it can be written to.
        let sent = stream.stream.write_all(&bare(Method::Binding));
        let answered = sent.is_ok() && stream.receive().is_ok();
        served.extend(answered.then_some(stream));
    }
    assert_eq!(served.len(), 20);
}

#[test]
fn a_reservation_is_good_on_any_worker() {
    // Ports that the kernel gives to nobody by itself: who else had a reserved one would make its token worthless.
    let relay = strict(&["--workers", "4", "--relay-ports", "30000-31999", "--port-sharing", "off"]);
    // Kept, so that no later one gets an address that has an allocation.
    let mut clients: Vec<[Client; 3]> = (0..30).map(|_| [(); 3].map(|()| client(&relay))).collect();
    for [first, second, third] in &mut clients {
        let reply = first.ask(Method::Allocate, |writer| {
            writer.requested_transport(17).even_port(true);
        });
        let message = Message::parse(&reply).unwrap();
        assert_eq!(code(&reply), None);
        let relayed = message.xor_relayed_address().unwrap().unwrap();
        let token: [u8; 8] = message.first(AttributeType::RESERVATION_TOKEN).unwrap().try_into().unwrap();
        let take = |client: &mut Client| {
            client.ask(Method::Allocate, |writer| {
                writer.requested_transport(17).reservation_token(token);
            })
        };
        let reply = take(second);
        assert_eq!(code(&reply), None);
        let second = Message::parse(&reply).unwrap().xor_relayed_address().unwrap().unwrap();
        assert_eq!((relayed.port() % 2, second), (0, SocketAddr::new(relayed.ip(), relayed.port() + 1)));
        assert_eq!(code(&take(third)), Some(508), "a token is good once");
    }
}

#[test]
fn all_ports_are_had_by_some_worker_and_none_by_two() {
    let (low, high) = free_ports(10);
    let ports = format!("{low}-{high}");
    let relay = strict(&["--workers", "4", "--relay-ports", &ports, "--port-sharing", "off"]);
    let mut clients: Vec<Client> = (0..10).map(|_| client(&relay)).collect();
    let had: BTreeSet<u16> = clients.iter_mut().map(|client| client.allocate().port()).collect();
    assert_eq!(had, (low..=high).collect());
    let refused = client(&relay).ask(Method::Allocate, |writer| {
        writer.requested_transport(17);
    });
    assert_eq!(code(&refused), Some(508));
}

#[test]
fn where_few_ports_are_shared_there_is_one_worker_and_the_log_says_so() {
    let (low, high) = free_ports(2);
    let relay = strict(&["--workers", "4", "--relay-ports", &format!("{low}-{high}")]);
    assert!(relay.before_ready().contains("fewer workers, because allocations may share ports"));
    assert!(relay.before_ready().contains("workers=1"));
    let mut clients: Vec<Client> = (0..6).map(|_| client(&relay)).collect();
    clients.iter_mut().for_each(|client| assert!(client.allocate().port() > 0));
}

#[test]
fn a_drain_ends_when_no_worker_has_allocations() {
    for workers in ["2", "4"] {
        let relay = strict(&["--workers", workers, "--drain-timeout", "60"]);
        let mut clients: Vec<Client> = (0..20).map(|_| client(&relay)).collect();
        clients.iter_mut().for_each(|client| assert!(client.allocate().port() > 0));
        relay.signal(Signal::TERM);
        let line = relay.wait_for("draining");
        assert!(line.contains("allocations=20"), "{line}");
        // Nobody new is let in by any of them, once they know.
        std::thread::sleep(std::time::Duration::from_millis(100));
        let mut others: Vec<Client> = (0..20).map(|_| client(&relay)).collect();
        for other in &mut others {
            let refused = other.ask(Method::Allocate, |writer| {
                writer.requested_transport(17);
            });
            assert_eq!(code(&refused), Some(508));
        }
        for client in &mut clients {
            let gone = client.ask(Method::Refresh, |writer| {
                writer.lifetime(0);
            });
            assert_eq!(code(&gone), None);
        }
        relay.wait_for("drained");
        assert!(relay.wait().0.success());
    }
}

#[test]
fn load_on_every_worker_loses_nothing_until_the_end() {
    let relay = RelayProcess::on_loopback(&["--workers", "4", "--drain-timeout", "60"]);
    let loads: Vec<Load> = (0..12).map(|_| Load::start(client(&relay))).collect();
    std::thread::sleep(std::time::Duration::from_millis(300));
    relay.signal(Signal::TERM);
    relay.wait_for("draining");
    std::thread::sleep(std::time::Duration::from_millis(300));
    for load in loads {
        let (mut client, count) = load.finish();
        assert!(count > 0);
        let gone = client.ask(Method::Refresh, |writer| {
            writer.lifetime(0);
        });
        assert_eq!(code(&gone), None);
    }
    let (status, log) = relay.wait();
    assert!(status.success() && log.contains(" unexplained=0 "), "{log}");
    assert!(!log.contains(" application_drops."), "{log}");
}
