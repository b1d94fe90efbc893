//! Whether what is listened on goes together.

use std::net::SocketAddr;

/// Something that is listened on: the name of its setting, and the address.
type Listener = (&'static str, SocketAddr);

/// What is wrong with listeners of one protocol: an address that is there twice, or that another one of the same port
/// includes. The answer is the setting to change and what to do, behind its name.
pub(super) fn conflict(listeners: &[Listener]) -> Option<(&'static str, String)> {
    listeners.iter().enumerate().find_map(|(index, &(name, address))| {
        let &(other, before) = listeners[..index].iter().find(|(_, before)| meet(*before, address))?;
        Some((name, match (other == name, before == address) {
            (true, true) => format!("has {address} twice: take one out"),
            (true, false) => {
                let (all, one) =
                    if before.ip().is_unspecified() { (before, address) } else { (address, before) };
                format!("has {all}, which is every address of its family, and {one} beside it: take one of them out")
            }
            (false, _) => format!("has {address}, where {other} has {before}: take another port for one of them"),
        }))
    })
}

/// Whether a system would refuse the second of them.
fn meet(first: SocketAddr, second: SocketAddr) -> bool {
    let any = first.ip().is_unspecified() || second.ip().is_unspecified();
    first.port() == second.port()
        && first.port() != 0
        && first.is_ipv4() == second.is_ipv4()
        && (any || first.ip() == second.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conflict_of(listeners: &[(&'static str, &str)]) -> Option<String> {
        let parsed: Vec<_> =
            listeners.iter().map(|&(name, address)| (name, address.parse().unwrap())).collect();
        conflict(&parsed).map(|(name, text)| format!("{name} {text}"))
    }

    #[test]
    fn what_goes_together_is_left_alone() {
        for listeners in [
            &[("listen", "0.0.0.0:3478"), ("listen", "[::]:3478")][..],
            &[("listen", "127.0.0.1:0"), ("listen", "127.0.0.1:0"), ("listen", "0.0.0.0:0")],
            &[("listen-tcp", "192.0.2.1:3478"), ("listen-tls", "192.0.2.1:5349")],
            &[("listen", "192.0.2.1:3478"), ("listen", "192.0.2.2:3478")],
        ] {
            assert_eq!(conflict_of(listeners), None, "{listeners:?}");
        }
    }

    #[test]
    fn what_does_not_is_named_with_what_to_do() {
        for (listeners, expected) in [
            (
                &[("listen", "[::]:1"), ("listen", "192.0.2.1:1"), ("listen", "192.0.2.1:1")][..],
                "listen has 192.0.2.1:1 twice: take one out",
            ),
            (
                &[("listen-tcp", "192.0.2.1:1"), ("listen-tls", "192.0.2.1:1")],
                "listen-tls has 192.0.2.1:1, where listen-tcp has 192.0.2.1:1: take another port for one of them",
            ),
            (
                &[("listen", "192.0.2.1:1"), ("listen", "0.0.0.0:1")],
                "listen has 0.0.0.0:1, which is every address of its family, and 192.0.2.1:1 beside it: take one of them out",
            ),
            (
                &[("listen-tcp", "0.0.0.0:1"), ("admin", "127.0.0.1:1")],
                "admin has 127.0.0.1:1, where listen-tcp has 0.0.0.0:1: take another port for one of them",
            ),
        ] {
            assert_eq!(conflict_of(listeners).as_deref(), Some(expected), "{listeners:?}");
        }
    }
}
