//! The netlink handle against the kernel, in a user and network namespace of its own: no privilege needed, nothing of the
//! machine touched. Where user namespaces are forbidden each test says that it is left out.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

#[path = "support/user_namespace.rs"]
mod user_namespace;

use std::net::UdpSocket;
use std::os::fd::AsFd;

use dataplane::netlink::{AddressWatch, Handle, LinkState, LinkWatch, RouteWatch};
use rustix::thread::UnshareFlags;

/// Runs the calling test again inside new namespaces and answers `None`; inside, answers a handle.
fn inside_namespace(test: &str) -> Option<Handle> {
    user_namespace::inside(test).then(|| Handle::open().unwrap())
}

#[test]
fn links_addresses_and_routes_work_at_once() {
    let Some(mut handle) = inside_namespace("links_addresses_and_routes_work_at_once") else { return };
    let loopback = handle.link_index("lo").unwrap();
    handle.set_up(loopback).unwrap();

    let (left, right) = handle.add_veth("left", "right").unwrap();
    assert_eq!(handle.link_index("right").unwrap(), right);
    handle.set_mtu(left, 1280).unwrap();
    handle.set_txqueuelen(left, 77).unwrap();
    let v4 = "10.9.0.1/24".parse().unwrap();
    let v6 = "fd00:9::1/64".parse().unwrap();
    handle.add_address(left, v4).unwrap();
    handle.add_address(left, v6).unwrap();
    handle.set_up(left).unwrap();
    handle.set_up(right).unwrap();
    let addresses: Vec<_> = handle.addresses().unwrap().into_iter().filter(|a| a.index == left).collect();
    assert!(addresses.iter().any(|address| address.net == v4), "{addresses:?}");
    assert!(addresses.iter().any(|address| address.net == v6), "{addresses:?}");
    assert_eq!(std::fs::read_to_string("/proc/self/net/dev").unwrap().matches("left").count(), 1);

    // No duplicate address detection: an IPv6 address can be bound in the next instruction.
    UdpSocket::bind("[fd00:9::1]:0").unwrap();

    handle.add_route(left, "192.0.2.0/24".parse().unwrap()).unwrap();
    handle.add_route(left, "2001:db8::/32".parse().unwrap()).unwrap();
    // The kernel made this one with the address.
    handle.add_route(left, "10.9.0.0/24".parse().unwrap()).unwrap();
    handle.add_route_via("198.51.100.0/24".parse().unwrap(), "10.9.0.2".parse().unwrap()).unwrap();
    let routes = std::fs::read_to_string("/proc/self/net/route").unwrap();
    assert!(routes.contains("000200C0"), "192.0.2.0 is missing: {routes}");
    assert!(routes.contains("006433C6\t0200090A"), "198.51.100.0 via 10.9.0.2 is missing: {routes}");

    handle.delete_link(left).unwrap();
    assert!(handle.link_index("right").is_err(), "a veth goes with its peer");
}

#[test]
fn refusals_name_the_remedy() {
    let Some(mut handle) = inside_namespace("refusals_name_the_remedy") else { return };
    let (left, right) = handle.add_veth("left", "right").unwrap();
    for index in [left, right] {
        handle.set_up(index).unwrap();
    }
    handle.add_address(left, "10.9.0.1/24".parse().unwrap()).unwrap();

    let error = handle.add_route(right, "10.9.0.0/24".parse().unwrap()).unwrap_err().to_string();
    assert!(error.contains("another interface"), "{error}");
    let error = handle.link_index("nowhere").unwrap_err().to_string();
    assert!(error.contains("nowhere") && error.contains("does not exist"), "{error}");
    let error = handle
        .add_route_via("203.0.113.0/24".parse().unwrap(), "172.16.0.1".parse().unwrap())
        .unwrap_err()
        .to_string();
    assert!(error.contains("gateway"), "{error}");
    // The handle is in step with the kernel after refusals.
    assert_eq!(handle.link_index("left").unwrap(), left);
}

#[test]
fn without_the_capability_the_error_names_it() {
    // Not in a namespace of its own: an index that no machine has, so that even root changes nothing.
    let error = Handle::open().unwrap().set_up(u32::MAX >> 1).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("CAP_NET_ADMIN") || text.contains("does not exist"), "{text}");
}

#[test]
fn a_veth_moves_and_a_token_bucket_shapes_and_drops() {
    let Some(mut near) = inside_namespace("a_veth_moves_and_a_token_bucket_shapes_and_drops") else { return };
    let (left, right) = near.add_veth("left", "right").unwrap();
    near.set_up(left).unwrap();
    near.add_address(left, "10.9.0.1/24".parse().unwrap()).unwrap();

    // A thread may have a network namespace of its own; its descriptor is what the interface moves to.
    let (sender, receiver) = std::sync::mpsc::channel();
    let (go, wait) = std::sync::mpsc::channel();
    let far = std::thread::spawn(move || {
        #[expect(deprecated, reason = "unsound only with CLONE_FILES, which is not used here")]
        rustix::thread::unshare(UnshareFlags::NEWNET).unwrap();
        sender.send(std::fs::File::open("/proc/thread-self/ns/net").unwrap()).unwrap();
        wait.recv().unwrap();
        let mut handle = Handle::open().unwrap();
        let right = handle.link_index("right").unwrap();
        handle.set_up(right).unwrap();
        handle.add_address(right, "10.9.0.2/24".parse().unwrap()).unwrap();
        UdpSocket::bind("10.9.0.2:7000").unwrap()
    });
    let namespace = receiver.recv().unwrap();
    near.move_to_namespace(right, namespace.as_fd()).unwrap();
    assert!(near.link_index("right").is_err());
    go.send(()).unwrap();
    let far = far.join().unwrap();
    far.set_read_timeout(Some(std::time::Duration::from_secs(1))).unwrap();

    // 40 datagrams of 1,000 bytes at once: 2 fit the burst, 10 the queue, the rest is lost without a word to the sender.
    near.add_tbf(left, 100_000, 2_200, 10_500).unwrap();
    let socket = UdpSocket::bind("10.9.0.1:0").unwrap();
    socket.connect("10.9.0.2:7000").unwrap();
    // The first datagram waits for the neighbour to be resolved and so is sent alone.
    socket.send(&[0; 10]).unwrap();
    let mut buffer = [0; 2_000];
    far.recv(&mut buffer).unwrap();
    for _ in 0..40 {
        socket.send(&[0; 1_000]).unwrap();
    }
    let mut received = 0;
    while far.recv(&mut buffer).is_ok() {
        received += 1;
    }
    let qdisc = near.qdisc_stats(left).unwrap();
    assert!(qdisc.drops > 0 && received > 0, "{received} received, {qdisc:?}");
    // The qdisc also sees what the kernel sends of its own accord (neighbour solicitations), which it may drop.
    assert!((40..44).contains(&(received + qdisc.drops)), "{received} received, {qdisc:?}");
    assert!(near.link_stats(left).unwrap().tx_packets >= u64::from(received));

    near.delete_qdisc(left).unwrap();
    for _ in 0..40 {
        socket.send(&[0; 1_000]).unwrap();
    }
    let unlimited = (0..40).take_while(|_| far.recv(&mut buffer).is_ok()).count();
    assert_eq!(unlimited, 40);
}

#[test]
fn addresses_that_come_and_go_are_told() {
    let Some(mut handle) = inside_namespace("addresses_that_come_and_go_are_told") else { return };
    let (left, right) = handle.add_veth("left", "right").unwrap();
    handle.set_up(left).unwrap();
    handle.set_up(right).unwrap();
    handle.add_address(left, "10.8.0.1/24".parse().unwrap()).unwrap();
    // Link-local addresses come by themselves, when the kernel has made sure that nobody has them.
    std::thread::sleep(std::time::Duration::from_secs(3));
    let mut watch = AddressWatch::open().unwrap();
    assert!(!watch.take(), "nothing has happened");
    // IPv6 addresses are told when they can be used, which the kernel sees to a moment later.
    let is_told = |watch: &mut AddressWatch| {
        (0..200).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(5));
            watch.take()
        })
    };
    for net in ["10.9.0.1/24", "fd00:9::1/64"] {
        handle.add_address(left, net.parse().unwrap()).unwrap();
        assert!(is_told(&mut watch), "{net} came");
        assert!(!watch.take(), "and was told once");
    }
    handle.set_mtu(left, 1400).unwrap();
    assert!(!watch.take(), "this is not about addresses");
    handle.delete_link(left).unwrap();
    assert!(is_told(&mut watch), "they went with their interface");
    // More news than the socket's buffer holds: some are lost, the fact is not.
    let loopback = handle.link_index("lo").unwrap();
    for number in 0..2_000_u32 {
        let address = std::net::Ipv4Addr::from_bits(0x0a00_0001 + number);
        handle.add_address(loopback, dataplane::netlink::IpNet::new(address.into(), 32).unwrap()).unwrap();
    }
    assert!(watch.take() && !watch.take());
}

#[test]
fn changes_of_routes_and_interfaces_are_told_together() {
    let test = "changes_of_routes_and_interfaces_are_told_together";
    let Some(mut handle) = inside_namespace(test) else { return };
    let (left, right) = handle.add_veth("left", "right").unwrap();
    handle.set_up(left).unwrap();
    handle.set_up(right).unwrap();
    handle.add_address(left, "10.8.0.1/24".parse().unwrap()).unwrap();
    let mut watch = RouteWatch::open().unwrap();
    while watch.take() {}
    handle.add_route(left, "10.77.0.0/16".parse().unwrap()).unwrap();
    assert!(watch.take(), "a route");
    handle.set_mtu(left, 1_300).unwrap();
    assert!(watch.take(), "an interface");
}

#[test]
fn changes_of_an_interface_are_told_and_how_it_stands_can_be_asked() {
    let test = "changes_of_an_interface_are_told_and_how_it_stands_can_be_asked";
    let Some(mut handle) = inside_namespace(test) else { return };
    let (left, _) = handle.add_veth("left", "right").unwrap();
    let mut watch = LinkWatch::open().unwrap();
    assert_eq!(handle.link_state(left).unwrap(), LinkState { up: false, mtu: 1_500 });
    assert!(!watch.take(), "asking is no change");
    handle.set_up(left).unwrap();
    assert!(watch.take());
    assert_eq!(handle.link_state(left).unwrap(), LinkState { up: true, mtu: 1_500 });
    while watch.take() {}
    handle.set_mtu(left, 1_300).unwrap();
    assert!(watch.take());
    assert_eq!(handle.link_state(left).unwrap().mtu, 1_300);
    handle.delete_link(left).unwrap();
    assert!(watch.take());
    assert_eq!(handle.link_state(left).unwrap_err().errno(), Some(libc::ENODEV));
}
