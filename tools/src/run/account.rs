//! Where every datagram of the schedule is: received, or under a cause. What no counter names is a cause of its own.
//!
//! ```text
//!  intended = received + refused + unsent + late + corrupt + peer-refused + own-rx + SERVER:CAUSE… + path | unexplained
//! ```

use serde::{Deserialize, Serialize};

use super::ledger::Ledger;
use super::server::ServerDrops;

/// Ends the names of causes that the kernel counts in skbs.
const SKBS: &str = "_skbs";

/// A cause, and what it lost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loss {
    /// Its name.
    pub cause: String,
    /// Datagrams.
    pub datagrams: u64,
    /// What the kernel counted, where it counts in skbs: as many datagrams, or superpackets. `datagrams` is then what no other cause
    /// has lost, as far as these skbs can have held it: none more than the largest superpacket of the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skbs: Option<u64>,
}

/// What became of every datagram of the schedule, there and back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// In the schedule.
    pub intended: u64,
    /// Arrived in time.
    pub received: u64,
    /// What lost the others. Causes of a server that lost nothing are left out.
    pub causes: Vec<Loss>,
    /// Whether a server was asked; if not, what was lost on the way is under `path`.
    pub asked: bool,
    /// Datagrams that are under no cause; negative when servers lost more than the load did, because they had other traffic.
    pub unexplained: i64,
}

/// What the generator lost by itself, and knows of superpackets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Own {
    /// Superpackets that its sockets dropped on receipt.
    pub receive_skbs: u64,
    /// Datagrams that the in-process peer could not send back.
    pub peer_refused: u64,
    /// Datagrams of the largest superpacket of the run: no skb is believed to have held more, or more than one where this is below 2.
    pub segments_max: u64,
}

impl Account {
    /// Divides what `ledger` has lost among the causes. `asked` says whether servers were asked, and not only devices.
    #[must_use]
    pub fn new(ledger: &Ledger, own: Own, servers: &[ServerDrops], asked: bool) -> Self {
        let mut left = ledger.lost;
        let mut take = |datagrams: u64| {
            let taken = datagrams.min(left);
            left -= taken;
            taken
        };
        let mut causes = vec![
            counted("refused", ledger.refused),
            counted("unsent", ledger.unsent),
            counted("late", ledger.late),
            // One whose other copy arrived whole is harmed and not lost; how many are such cannot be told.
            counted("corrupt", take(ledger.corrupt)),
            counted("peer-refused", take(own.peer_refused)),
        ];
        let of_servers = || {
            let of = |server: &ServerDrops| {
                let named = |(cause, &count): (&String, &u64)| (format!("{}:{cause}", server.name), count);
                server.causes.iter().map(named).collect::<Vec<_>>()
            };
            servers.iter().flat_map(of)
        };
        // Packets first: what is counted in superpackets is known less well.
        let mut excess = 0_u64;
        for (cause, count) in of_servers().filter(|(cause, _)| !cause.ends_with(SKBS)) {
            excess = excess.saturating_add(count - take(count));
            causes.push(counted(&cause, count));
        }
        let mut in_skbs = vec![("own-rx".to_owned(), own.receive_skbs)];
        in_skbs.extend(of_servers().filter(|(cause, _)| cause.ends_with(SKBS)));
        for (cause, skbs) in in_skbs {
            let datagrams = take(skbs.saturating_mul(own.segments_max.max(1)));
            causes.push(Loss { cause, datagrams, skbs: (skbs > 0).then_some(skbs) });
        }
        if !asked {
            causes.push(counted("path", left));
            left = 0;
        }
        let unexplained = left.cast_signed() - excess.cast_signed();
        Self { intended: ledger.intended, received: ledger.received, causes, asked, unexplained }
    }

    /// Whether the sum holds.
    #[must_use]
    pub fn balances(&self) -> bool {
        let lost: u64 = self.causes.iter().map(|loss| loss.datagrams).sum();
        self.intended.cast_signed() == (self.received + lost).cast_signed() + self.unexplained
    }

    /// What a cause lost.
    #[must_use]
    pub fn lost_by(&self, cause: &str) -> u64 {
        self.causes.iter().filter(|loss| loss.cause == cause).map(|loss| loss.datagrams).sum()
    }

    /// The sum in one line.
    #[must_use]
    pub fn line(&self) -> String {
        let mut line = format!("account: intended {} = received {}", self.intended, self.received);
        for Loss { cause, datagrams, skbs } in &self.causes {
            line.push_str(&format!(" + {cause} {datagrams}"));
            if let Some(skbs) = skbs {
                line.push_str(&format!(" ({})", crate::units::count(*skbs, "skb")));
            }
        }
        if self.asked {
            let sign = if self.unexplained < 0 { '-' } else { '+' };
            line.push_str(&format!(" {sign} unexplained {}", self.unexplained.unsigned_abs()));
        }
        line
    }

    /// What to make of datagrams without a cause.
    #[must_use]
    pub fn remark(&self) -> Option<String> {
        match self.unexplained {
            0 => None,
            lost @ 1.. => Some(format!(
                "{lost} lost datagrams have no cause: look at what lies between, `ip -s link` and `tc -s qdisc` count what devices drop"
            )),
            more => Some(format!(
                "the servers lost {} packets more than the load did: they had other traffic",
                more.unsigned_abs()
            )),
        }
    }
}

fn counted(cause: &str, datagrams: u64) -> Loss {
    Loss { cause: cause.to_owned(), datagrams, skbs: None }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ledger(lost: u64) -> Ledger {
        Ledger {
            intended: 1_000,
            sent: 990,
            refused: 4,
            unsent: 6,
            late: 5,
            lost,
            received: 985 - lost,
            ..Ledger::default()
        }
    }

    fn server(name: &str, causes: &[(&str, u64)]) -> ServerDrops {
        let causes = causes.iter().map(|&(cause, count)| (cause.to_owned(), count)).collect();
        ServerDrops { name: name.to_owned(), causes, ..ServerDrops::default() }
    }

    #[test]
    fn every_cause_is_named_and_the_rest_is_not_hidden() {
        let ledger = Ledger { corrupt: 2, ..ledger(20) };
        let own = Own { peer_refused: 1, ..Own::default() };
        let relay = server("relay", &[("policy_rate", 10), ("busy", 3)]);
        let account = Account::new(&ledger, own, std::slice::from_ref(&relay), true);
        assert_eq!(
            account.line(),
            "account: intended 1000 = received 965 + refused 4 + unsent 6 + late 5 + corrupt 2 + peer-refused 1 \
             + relay:busy 3 + relay:policy_rate 10 + own-rx 0 + unexplained 4"
        );
        assert!(account.balances() && account.remark().unwrap().contains("4 lost datagrams have no cause"));
        let alone = Account::new(&ledger, own, &[], false);
        assert!(alone.balances() && alone.line().ends_with("own-rx 0 + path 17"), "{}", alone.line());
        assert_eq!((alone.unexplained, alone.remark()), (0, None));
    }

    #[test]
    fn superpackets_take_what_they_can_have_held_and_no_more() {
        let tunnel = server("tunnel", &[("kernel_rcvbuf_skbs", 2), ("busy", 10)]);
        let of_64 = Own { segments_max: 64, ..Own::default() };
        let account = Account::new(&ledger(100), of_64, std::slice::from_ref(&tunnel), true);
        assert_eq!((account.lost_by("tunnel:kernel_rcvbuf_skbs"), account.unexplained), (90, 0));
        assert!(account.line().contains("tunnel:kernel_rcvbuf_skbs 90 (2 skbs)"));
        let account = Account::new(&ledger(300), Own { receive_skbs: 1, ..of_64 }, &[tunnel], true);
        assert_eq!((account.lost_by("own-rx"), account.lost_by("tunnel:kernel_rcvbuf_skbs")), (64, 128));
        assert_eq!(account.unexplained, 300 - 10 - 64 - 128);
    }

    #[test]
    fn an_skb_excuses_no_more_than_this_run_has_sent_in_one() {
        let device = server("a", &[("a-b_queue_skbs", 3)]);
        // Segments of the largest superpacket, and what three dropped skbs explain of 100 that are lost.
        for (segments_max, explained) in [(0, 3), (1, 3), (8, 24), (64, 100)] {
            let own = Own { segments_max, ..Own::default() };
            let account = Account::new(&ledger(100), own, std::slice::from_ref(&device), true);
            assert_eq!(account.lost_by("a:a-b_queue_skbs"), explained, "{segments_max}");
            assert_eq!(account.unexplained, 100 - explained.cast_signed(), "{segments_max}");
        }
    }

    #[test]
    fn a_server_with_other_traffic_is_found_out() {
        let account = Account::new(&ledger(5), Own::default(), &[server("relay", &[("busy", 12)])], true);
        assert!(account.balances() && account.unexplained == -7);
        assert!(
            account.line().ends_with("- unexplained 7")
                && account.remark().unwrap().contains("7 packets more")
        );
    }

    proptest! {
        #[test]
        fn any_account_balances(
            lost in 0..900_u64, corrupt in 0..1_000_u64, receive_skbs in 0..20_u64, peer_refused in 0..1_000_u64,
            segments_max in 0..=64_u64, busy in 0..1_000_u64, skbs in 0..20_u64, asked in any::<bool>(),
        ) {
            let servers = [server("a", &[("busy", busy), ("kernel_rcvbuf_skbs", skbs)]), server("b", &[("mtu", busy / 2)])];
            let ledger = Ledger { corrupt, ..ledger(lost) };
            // Without servers, the devices of a lab may still be among them.
            let account = Account::new(&ledger, Own { receive_skbs, peer_refused, segments_max }, &servers, asked);
            prop_assert!(account.balances(), "{account:?}");
            prop_assert!(asked || account.unexplained <= 0);
        }
    }
}
