//! What a rule finds.

use std::fmt::Display;

use rsttrace_core::fix::{Fix, FixOwner};
use rsttrace_model::{ipvs::IpvsService, netns::Place};

/// Severity of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rank {
    /// Worth knowing.
    Info,
    /// A connection breaks under the condition that the finding names.
    Warn,
    /// A connection will break: one that is open, or any that is opened.
    Break,
}

impl Rank {
    pub const ALL: [Self; 3] = [Self::Break, Self::Warn, Self::Info];

    /// The word in the output.
    pub fn id(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Break => "break",
        }
    }
}

/// A problem that exists or will occur.
#[derive(Clone, Debug, PartialEq)]
pub struct CheckFinding {
    /// Id of the rule.
    pub rule: &'static str,
    pub rank: Rank,
    /// Id of the cause that an incident would report; `None` if this breaks no connection by itself.
    pub cause: Option<&'static str>,
    /// The network namespace of the setting, table or socket.
    pub place: Place,
    /// One sentence.
    pub reason: String,
    /// The rule with its numbers filled in.
    pub formula: String,
    /// Who can change it.
    pub owner: FixOwner,
    /// Where the value comes from.
    pub source: String,
    /// Idle time after which a connection breaks, seconds.
    pub after_s: Option<u64>,
    /// The first few affected connections, as text.
    pub connections: Vec<String>,
    /// The preferred fix first.
    pub fixes: Vec<Fix>,
}

/// Most connections that a finding lists.
const MOST_LISTED: usize = 5;

impl CheckFinding {
    pub fn new(rule: &'static str, rank: Rank, place: &Place, reason: impl Into<String>) -> Self {
        Self {
            rule,
            rank,
            cause: None,
            place: place.clone(),
            reason: reason.into(),
            formula: String::new(),
            owner: FixOwner::Node,
            source: String::new(),
            after_s: None,
            connections: Vec::new(),
            fixes: Vec::new(),
        }
    }

    pub fn cause(mut self, cause: &'static str) -> Self {
        self.cause = Some(cause);
        self
    }

    pub fn formula(mut self, formula: impl Into<String>) -> Self {
        self.formula = formula.into();
        self
    }

    pub fn owner(mut self, owner: FixOwner) -> Self {
        self.owner = owner;
        self
    }

    pub fn source(mut self, source: impl Into<String>) -> Self {
        self.source = source.into();
        self
    }

    pub fn after(mut self, seconds: u64) -> Self {
        self.after_s = Some(seconds);
        self
    }

    pub fn connections(mut self, connections: impl IntoIterator<Item = String>) -> Self {
        self.connections.extend(connections.into_iter().take(MOST_LISTED));
        self
    }

    pub fn fix(mut self, fix: impl IntoIterator<Item = Fix>) -> Self {
        self.fixes.extend(fix);
        self
    }
}

/// "10.96.12.8:3306", "mark 5".
pub fn service_name(service: &IpvsService) -> String {
    match service.fwmark {
        0 => std::net::SocketAddr::new(service.ip, service.port).to_string(),
        mark => format!("mark {mark}"),
    }
}

/// The first three names and the number of the others: "a, b, c and 3 more".
pub fn some_of(names: &[String]) -> String {
    let shown = names.len().min(3);
    let list = names[..shown].join(", ");
    match names.len() - shown {
        0 => list,
        more => format!("{list} and {more} more"),
    }
}

/// "1 connection", "3 connections".
pub fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// How many of all do something: "1 of 3 connections sends". The verb is given in the singular and in the
/// plural.
pub fn some_do<V: Display>(some: usize, all: usize, what: &str, [does, do_]: [V; 2]) -> String {
    match (some, all) {
        (1, 1) => format!("the only {what} {does}"),
        (1, _) => format!("1 of {all} {what}s {does}"),
        _ if some == all => format!("all {all} {what}s {do_}"),
        _ => format!("{some} of {all} {what}s {do_}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_does_and_several_do() {
        let sentence = |some, all| some_do(some, all, "connection", ["sends", "send"]);
        assert_eq!(sentence(1, 1), "the only connection sends");
        assert_eq!(sentence(1, 3), "1 of 3 connections sends");
        assert_eq!(sentence(2, 3), "2 of 3 connections send");
        assert_eq!(sentence(3, 3), "all 3 connections send");
    }
}
