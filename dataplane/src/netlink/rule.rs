//! Policy rules (ip-rule(8)): which routing table is asked for a packet.

use std::collections::BTreeSet;
use std::fmt;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use serde::{Deserialize, Serialize};

use super::{Error, Handle};

/// A rule that looks a packet up in a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// Of IPv6, not of IPv4.
    pub ipv6: bool,
    /// Its place among the rules; lower ones are asked first.
    pub priority: u32,
    /// The table that is looked up.
    pub table: u32,
    /// It is for packets without this mark only.
    pub unless_mark: Option<u32>,
    /// Routes of prefixes this short or shorter do not count.
    pub suppressed_prefix_len: Option<u32>,
}

impl fmt::Display for Rule {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { ipv6, priority, table, unless_mark, suppressed_prefix_len } = self;
        write!(formatter, "IPv{} rule {priority}: ", if *ipv6 { 6 } else { 4 })?;
        if let Some(mark) = unless_mark {
            write!(formatter, "not fwmark {mark:#x} ")?;
        }
        write!(formatter, "lookup {table}")?;
        if let Some(len) = suppressed_prefix_len {
            write!(formatter, " suppress_prefixlength {len}")?;
        }
        Ok(())
    }
}

impl Handle {
    /// Adds a rule.
    ///
    /// # Errors
    /// EEXIST when it is there already, EPERM without CAP_NET_ADMIN, EOPNOTSUPP or EAFNOSUPPORT when the kernel has no rules
    /// of this family.
    pub fn add_rule(&mut self, rule: &Rule) -> Result<(), Error> {
        self.change(
            &format!("add {rule}"),
            RouteNetlinkMessage::NewRule(message(rule)),
            NLM_F_CREATE | NLM_F_EXCL,
        )
    }

    /// Removes a rule.
    ///
    /// # Errors
    /// ENOENT when there is none like it.
    pub fn delete_rule(&mut self, rule: &Rule) -> Result<(), Error> {
        self.change(&format!("remove {rule}"), RouteNetlinkMessage::DelRule(message(rule)), 0)
    }

    /// The priorities of all rules of a family, lowest first.
    ///
    /// # Errors
    /// When the kernel's answer cannot be read.
    pub fn rule_priorities(&mut self, ipv6: bool) -> Result<BTreeSet<u32>, Error> {
        let mut message = RuleMessage::default();
        message.header.family = family(ipv6);
        let answers = self.query("list rules", RouteNetlinkMessage::GetRule(message), NLM_F_DUMP)?;
        let priority = |message: &RuleMessage| {
            let given = message.attributes.iter().find_map(|attribute| match attribute {
                RuleAttribute::Priority(priority) => Some(*priority),
                _ => None,
            });
            // The kernel leaves out the priority of the first one, which is 0.
            given.unwrap_or(0)
        };
        Ok(answers
            .iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewRule(message) => Some(priority(message)),
                _ => None,
            })
            .collect())
    }
}

fn family(ipv6: bool) -> AddressFamily {
    if ipv6 { AddressFamily::Inet6 } else { AddressFamily::Inet }
}

fn message(rule: &Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = family(rule.ipv6);
    message.header.action = RuleAction::ToTable;
    message.attributes.push(RuleAttribute::Priority(rule.priority));
    // The header has eight bits for it only; the attribute wins.
    message.attributes.push(RuleAttribute::Table(rule.table));
    if let Some(mark) = rule.unless_mark {
        message.header.flags |= RuleFlags::Invert;
        message.attributes.push(RuleAttribute::FwMark(mark));
    }
    if let Some(len) = rule.suppressed_prefix_len {
        message.attributes.push(RuleAttribute::SuppressPrefixLen(len));
    }
    message
}
