//! Firewall rules that decide about INVALID packets and masquerading, and who writes them.

use std::{collections::BTreeSet, fmt, net::SocketAddr};

use serde::{Deserialize, Serialize};

mod owner;

pub use owner::RuleOwner;

/// The rules of a namespace that decide about INVALID packets and masquerading.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Firewall {
    /// There are base chains of type `nat`.
    pub translates: bool,
    /// In the order of their places.
    pub invalid: Vec<InvalidRule>,
    pub masquerades: Vec<Masquerade>,
    /// The base chains of type `filter` whose policy drops what no rule accepts.
    pub drop_policies: Vec<Policy>,
}

/// The policy of a base chain.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Policy {
    pub chain: Chain,
    pub hook: Hook,
}

/// What the filter rules of a namespace depend on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilterRules {
    /// A rule lets a packet of an established connection pass, or stops one, because of its conntrack state. `None`
    /// where the rules could not be read.
    pub stateful: Option<bool>,
}

/// Where a rule is. The names come from the ruleset.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct RulePlace {
    pub chain: Chain,
    /// The handle that `nft delete rule` takes, or the number that `iptables -D` takes; 0 if not known.
    pub handle: u64,
}

impl RulePlace {
    /// "ip filter KUBE-FORWARD handle 4 (kube-proxy)"
    pub fn with_owner(&self) -> String {
        match self.chain.owner() {
            Some(owner) => format!("{self} ({})", owner.name()),
            None => self.to_string(),
        }
    }
}

impl fmt::Display for RulePlace {
    /// "ip filter KUBE-FORWARD handle 4"
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.chain)?;
        match self.handle {
            0 => Ok(()),
            number if self.chain.is_legacy() => write!(f, " rule {number}"),
            handle => write!(f, " handle {handle}"),
        }
    }
}

/// A chain of nftables or of iptables-legacy.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Chain {
    /// `ip`, `ip6` or `inet` of nftables; `iptables` or `ip6tables` for a table of iptables-legacy
    pub family: &'static str,
    pub table: String,
    pub name: String,
}

impl Chain {
    pub fn is_legacy(&self) -> bool {
        matches!(self.family, "iptables" | "ip6tables")
    }

    /// Whether IPv4 packets reach it.
    pub fn sees_ipv4(&self) -> bool {
        !matches!(self.family, "ip6" | "ip6tables")
    }

    /// The program that writes its rules, where the names show that.
    pub fn owner(&self) -> Option<RuleOwner> {
        RuleOwner::of(&self.table, &self.name)
    }
}

impl fmt::Display for Chain {
    /// "ip filter KUBE-FORWARD"
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { family, table, name } = self;
        write!(f, "{family} {table} {name}")
    }
}

/// A rule that stops INVALID packets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidRule {
    pub at: RulePlace,
    pub answer: Answer,
    /// The rule has further conditions.
    pub narrowed: bool,
    /// The hooks whose packets reach the rule; empty if no known jump leads to its chain.
    pub hooks: BTreeSet<Hook>,
}

/// A rule that can answer a packet with a reset or an ICMP error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejecting {
    pub at: RulePlace,
    pub answer: Answer,
    /// The rule's comment, or that of the map element that leads to it: "default/api:http has no endpoints".
    pub comment: Option<String>,
    /// Neither the rule nor a jump to it has a condition that is not known to hold.
    pub is_certain: bool,
}

/// The rules of a namespace that can reject a packet to an address, read when a rule had rejected one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RejectingRules {
    pub dst: SocketAddr,
    /// In the order of their hooks.
    pub rules: Vec<RejectingRule>,
}

/// See [`Rejecting`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RejectingRule {
    /// "ip kube-proxy reject-chain handle 4". The names come from the ruleset.
    pub at: String,
    pub owner: Option<RuleOwner>,
    pub comment: Option<String>,
}

impl From<Rejecting> for RejectingRule {
    fn from(rule: Rejecting) -> Self {
        let owner = rule.at.chain.owner();
        Self { at: rule.at.to_string(), owner, comment: rule.comment }
    }
}

/// A rule of NAT to the address of the interface that a packet leaves through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Masquerade {
    pub at: RulePlace,
    pub out: Outgoing,
}

/// `NF_INET_*`, in the order of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hook {
    Prerouting,
    Input,
    Forward,
    Output,
    Postrouting,
}

impl Hook {
    pub const ALL: [Self; 5] =
        [Self::Prerouting, Self::Input, Self::Forward, Self::Output, Self::Postrouting];

    pub fn id(self) -> &'static str {
        match self {
            Self::Prerouting => "prerouting",
            Self::Input => "input",
            Self::Forward => "forward",
            Self::Output => "output",
            Self::Postrouting => "postrouting",
        }
    }
}

/// What a rule does with a packet that it stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    Drop,
    /// The rule resets the connection.
    Reset,
    /// The rule answers with an ICMP error.
    Icmp,
}

/// The interfaces that a rule applies to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outgoing {
    All,
    Only(Interface),
    Except(Interface),
    /// The interfaces of a set, which is not read.
    Some,
}

/// `eth0`, `ppp*`, or an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Interface {
    Name(String),
    /// Names that begin with this text.
    Prefix(String),
    Index(u32),
}
