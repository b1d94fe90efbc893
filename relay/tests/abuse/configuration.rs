//! How the relay under attack is configured: the same whether it is a process or only its state machine.

use super::harness::{PASSWORD, USER};

/// The user of the witnesses, and those whom attackers have besides the usual one.
pub const WITNESS: (&str, &str) = ("wanda", "watchful");
pub const BOB: (&str, &str) = ("bob", "hidden");
pub const CAROL: (&str, &str) = ("carol", "sealed");
/// The usual one.
pub const ALICE: (&str, &str) = (USER, PASSWORD);
/// The secret of time-limited names.
pub const SECRET: &str = "north";
/// The relay's limits: of a user, of a source, in all.
pub const OF_USER: usize = 40;
pub const OF_SOURCE: usize = 60;
pub const IN_ALL: usize = 100;
/// How many witnesses there are.
pub const WITNESSES: usize = 2;

/// How many different datagrams attackers send at least: copies, and what differs by transaction and nonce alone, count once.
pub const DISTINCT_MIN: u64 = 10_000;

/// Everything but realm, the usual user, and the file that holds [`SECRET`].
pub fn flags() -> Vec<String> {
    let users = [WITNESS, BOB, CAROL].map(|(name, password)| format!("{name}:{password}"));
    let limits = [OF_USER, OF_SOURCE, IN_ALL].map(|limit| limit.to_string());
    let flags = [
        // Peers are on addresses of their own: loopback is refused as it would be elsewhere.
        "--listen",
        "127.0.0.1:0",
        "--listen-tcp",
        "127.0.0.1:0",
        "--admin",
        "127.0.0.1:0",
        "--allow-peer",
        "127.0.0.2/32",
        "127.1.0.0/16",
        "--deny-peer",
        "127.1.255.0/24",
        "--relay-address",
        "127.0.0.1",
        "::1",
        "--workers",
        "2",
        "--channel-numbers",
        "rfc8656",
        "--user",
        &users[0],
        &users[1],
        &users[2],
        // What strangers are answered and how many peers are new are rows of their own.
        "--unpaid-replies",
        "100000",
        "--new-peers-per-user",
        "0",
        "--allocations-per-user-max",
        &limits[0],
        "--allocations-per-source-max",
        &limits[1],
        "--allocations-max",
        &limits[2],
    ];
    flags.map(str::to_owned).to_vec()
}
