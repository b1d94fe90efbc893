//! With a default route: nobody outside may send to the tunnel's addresses, and answers to marked packets are marked, so that
//! strict reverse-path filtering lets them in. wg-quick has the same rules.

use std::fmt::Write as _;
use std::io;
use std::net::IpAddr;

use super::program;
use crate::sys::signal::StopSignals;

/// The name of an interface's table. What nft(8) does not take in a name is written by its number, behind what is in no name
/// of an interface.
pub(super) fn table_of(interface: &str) -> String {
    let mut name = "towpath-".to_owned();
    for letter in interface.chars() {
        if letter.is_ascii_alphanumeric() || "-_.".contains(letter) {
            name.push(letter);
        } else {
            // Writing to a string does not fail.
            let _ = write!(name, "/{:02x}", u32::from(letter));
        }
    }
    name
}

/// The program, if it is there.
pub(super) fn is_there() -> bool {
    program::find("nft").is_some()
}

/// Makes the table of one family for an interface with these addresses, whose tunnel sends with this mark.
pub(super) fn add(
    ipv6: bool,
    interface: &str,
    addresses: &[IpAddr],
    mark: u32,
    signals: &StopSignals,
) -> io::Result<()> {
    nft(&rules(ipv6, interface, addresses, mark), signals)
}

/// Removes a table, if it is there.
pub(super) fn remove(ipv6: bool, table: &str, signals: &StopSignals) -> io::Result<()> {
    nft(&removal(ipv6, table), signals)
}

fn family(ipv6: bool) -> &'static str {
    if ipv6 { "ip6" } else { "ip" }
}

/// Made first, because what is not there cannot be removed.
fn removal(ipv6: bool, table: &str) -> String {
    let family = family(ipv6);
    format!("add table {family} {table}\ndelete table {family} {table}\n")
}

fn rules(ipv6: bool, interface: &str, addresses: &[IpAddr], mark: u32) -> String {
    let (family, table) = (family(ipv6), table_of(interface));
    let mut text = removal(ipv6, &table);
    // Writing to a string does not fail.
    let _ = writeln!(text, "table {family} {table} {{");
    let _ = writeln!(text, " chain outside {{\n  type filter hook prerouting priority -300;");
    for address in addresses.iter().filter(|address| address.is_ipv6() == ipv6) {
        let _ = writeln!(
            text,
            "  iifname != \"{interface}\" {family} daddr {address} fib saddr type != local drop"
        );
    }
    let _ = writeln!(
        text,
        " }}\n chain received {{\n  type filter hook prerouting priority -150;\n  \
         meta l4proto udp meta mark set ct mark\n }}\n chain sent {{\n  \
         type filter hook postrouting priority -150;\n  \
         meta l4proto udp meta mark {mark:#x} ct mark set meta mark\n }}\n}}"
    );
    text
}

fn nft(script: &str, signals: &StopSignals) -> io::Result<()> {
    let path = program::find("nft").ok_or_else(|| {
        io::Error::new(io::ErrorKind::NotFound, "nft is not there: apt-get install nftables")
    })?;
    program::run(&path, &["-f", "-"], script, signals)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_a_name_that_nft_takes() {
        assert_eq!(table_of("wg-0_a.b"), "towpath-wg-0_a.b");
        assert_eq!(table_of("a=b+c"), "towpath-a/3db/2bc");
    }

    #[test]
    fn each_address_is_closed_to_the_outside_in_the_table_of_its_family() {
        let addresses = ["10.9.0.1", "fd09::1", "10.9.0.9"].map(|text| text.parse().expect("an address"));
        let text = rules(false, "wg0", &addresses, 0xca6c);
        assert_eq!(text.matches("drop").count(), 2, "{text}");
        assert!(
            text.contains("iifname != \"wg0\" ip daddr 10.9.0.1 fib saddr type != local drop\n"),
            "{text}"
        );
        assert!(text.contains("meta mark 0xca6c ct mark set meta mark\n"), "{text}");
        let text = rules(true, "wg0", &addresses, 1);
        assert!(text.contains("ip6 daddr fd09::1 ") && text.matches("drop").count() == 1, "{text}");
        assert!(text.starts_with("add table ip6 towpath-wg0\ndelete table ip6 towpath-wg0\n"), "{text}");
    }
}
