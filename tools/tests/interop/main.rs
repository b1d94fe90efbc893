//! Towpath against the programs that others wrote: Debian's `wireguard-go`, `coturn`, `iperf3`, in namespaces of their own.
//!
//! Needs, besides user namespaces and an open `/dev/net/tun`:
//! `apt-get install wireguard-go wireguard-tools coturn iperf3 iproute2 iputils-ping nftables procps strace`
//!
//! A test is a function that gets the three hosts, and is listed below by how it shares the machine.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests are tests")]

mod dropin;
mod garbage;
#[path = "../../../dataplane/tests/support/left_out.rs"]
mod left_out;
mod load;
mod managed;
mod marking;
mod offload;
mod oneway;
mod others;
mod path;
mod paths;
mod refused;
mod relay;
mod shutdown;
mod start;
mod tunnel;
mod turns;
mod updown;
mod world;

use std::process::ExitCode;

use turns::{Test, Turn};

/// Tests by their path, which is their name.
macro_rules! tests {
    ($turn:expr; $($module:ident::$name:ident),* $(,)?) => {
        vec![$(Test::new($turn, concat!(stringify!($module), "::", stringify!($name)), $module::$name)),*]
    };
}

fn main() -> ExitCode {
    // Those that take longest come first, so that none of them is the last and waited for.
    let waiting = tests![Turn::Waiting;
        others::boringtun_is_either_end,
        oneway::a_path_that_carries_only_what_the_peer_sends_is_left_for_the_relay,
        path::an_address_that_changes_under_traffic_costs_a_moment,
        path::a_narrow_way_is_told_to_who_sends_on_it,
        paths::two_ends_behind_random_nat_meet_at_the_relay,
        paths::a_relay_is_reached_over_tcp_and_tls_where_udp_does_not_pass,
        paths::a_stream_goes_over_the_relay_while_the_direct_path_is_cut,
        load::the_lab_is_a_peer_of_either_server,
        others::either_end_makes_a_new_handshake_with_wireguard_go,
        path::a_name_that_leads_elsewhere_is_followed,
        paths::two_ends_behind_nat_meet_directly,
        paths::a_relay_whose_name_leads_elsewhere_is_followed_there,
        dropin::lines_that_wg_quick_does_not_pass_on_are_read,
        path::a_process_that_slept_goes_on,
        others::sessions_that_are_renewed_early_lose_nothing,
        path::wireguard_go_that_moves_is_followed,
        relay::coturns_client_loses_nothing,
        managed::an_endpoint_is_set_back_to_where_the_relay_has_it,
        dropin::every_design_opens_and_closes_sockets_while_it_runs,
        paths::the_next_relay_takes_over_from_a_silent_one,
        dropin::wireguard_go_is_the_other_end_and_ports_keys_and_mtu_change_while_it_runs,
        paths::a_relay_that_was_started_again_is_taken_up_again,
        paths::a_relay_that_drains_sends_its_clients_elsewhere,
        load::datagrams_and_connections_go_through_either_tunnel,
        dropin::wg_quick_brings_a_tunnel_up_and_down,
        dropin::it_goes_into_the_background_and_ends_with_interface_or_socket,
        marking::what_a_router_marks_arrives_inside,
        updown::it_does_to_the_host_what_wg_quick_does,
        paths::a_password_that_changes_is_read_again,
        refused::a_relay_that_refuses_the_peers_new_port_is_not_shown_as_its_way,
        managed::wg_sets_a_tunnel_that_has_a_relay,
        path::a_narrow_way_to_wireguard_go_is_told_too,
        dropin::wg_sees_what_it_has_set,
        dropin::an_interface_of_towpath_up_is_seen_and_set_too,
        dropin::an_interface_may_be_moved_to_another_namespace,
        path::an_automatic_mtu_follows_the_routes,
        marking::the_dscp_outside_is_what_was_asked_for,
        dropin::descriptors_may_come_from_whoever_starts_it,
        paths::a_shared_secret_makes_the_name_and_the_password,
        paths::a_relay_with_a_certificate_that_nobody_knows_is_not_used,
        offload::a_device_without_the_header_is_made_where_the_kernel_refuses_it,
    ];
    let busy = tests![Turn::Busy;
        tunnel::wireguard_go_is_either_end_over_ipv4,
        tunnel::wireguard_go_is_either_end_over_ipv6,
        tunnel::every_design_carries_a_tunnel,
        tunnel::the_tunnel_goes_through_our_relay,
        tunnel::the_tunnel_goes_through_coturn,
        tunnel::crypto_threads_open_what_comes_in_channel_data,
        dropin::an_interface_that_is_deleted_under_load_ends_the_program_in_good_order,
        marking::tcp_sees_the_marks_and_no_wrong_checksum,
        offload::every_offload_can_be_left_out,
    ];
    let alone = tests![Turn::Alone;
        dropin::peers_come_and_go_under_load_without_a_loss_to_another,
        dropin::thousands_of_peers_and_idle_clients_hold_no_packet_up,
        garbage::garbage_from_a_peers_address_costs_no_other_peer_its_packets,
        offload::superpackets_that_the_device_refuses_are_given_up,
        offload::a_superpacket_that_the_ring_writes_in_vain_is_written_packet_by_packet,
        offload::a_socket_whose_receive_fails_goes_on_without_gro,
        shutdown::sigterm_under_load_delivers_what_was_accepted,
        shutdown::the_ring_carries_every_packet,
        start::a_tunnel_carries_packets_soon_after_its_start,
    ];
    let asked_for = tests![Turn::AskedFor; others::a_session_is_renewed_in_time_without_a_loss];
    turns::run([waiting, busy, alone, asked_for].concat())
}
