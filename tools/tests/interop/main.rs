//! Towpath against the programs that others wrote: Debian's `wireguard-go`, `coturn`, `iperf3`, in namespaces of their own.
//!
//! Needs, besides user namespaces and an open `/dev/net/tun`:
//! `apt-get install wireguard-go wireguard-tools coturn iperf3 iproute2 iputils-ping nftables procps strace`
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests are tests")]

mod dropin;
mod garbage;
#[path = "../../../dataplane/tests/support/left_out.rs"]
mod left_out;
mod load;
mod managed;
mod marking;
mod offload;
mod others;
mod path;
mod paths;
mod refused;
mod relay;
mod shutdown;
mod start;
mod tunnel;
mod updown;
mod world;
