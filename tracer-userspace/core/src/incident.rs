//! An incident: one broken connection with its verdict, as every output shows it.

use std::net::SocketAddr;

use rsttrace_model::{flow::Nanos, owner::Owner, socket::Keepalive};

use crate::{
    causes::cause::Cause,
    fix::Fix,
    verdict::{Confidence, Finding, RuledOut},
};

/// The end that lost its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Victim {
    Source,
    Destination,
    Both,
    Unknown,
}

impl Victim {
    pub fn id(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Destination => "destination",
            Self::Both => "both",
            Self::Unknown => "unknown",
        }
    }
}

/// An end of a connection: the initiator's or the responder's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Source,
    Destination,
}

impl Side {
    pub fn id(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Destination => "destination",
        }
    }

    pub fn other(self) -> Self {
        match self {
            Self::Source => Self::Destination,
            Self::Destination => Self::Source,
        }
    }
}

/// How the connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Reset,
    Timeout,
    Drop,
    Error,
}

impl Action {
    pub fn id(self) -> &'static str {
        match self {
            Self::Reset => "reset",
            Self::Timeout => "timeout",
            Self::Drop => "drop",
            Self::Error => "error",
        }
    }
}

/// The reset, as recorded on this host.
#[derive(Clone, Debug, PartialEq)]
pub struct Rst {
    /// `received`, `sent` or `none`.
    pub direction: &'static str,
    /// `local_stack`, `local_socket`, `netfilter`, `remote` or `none`. `None` where not every reset that this
    /// host sends is traced, because "remote" would be a guess.
    pub origin: Option<&'static str>,
    /// The kernel's name for the reason.
    pub reason: Option<String>,
}

/// The lost IPVS entry.
#[derive(Clone, Debug, PartialEq)]
pub struct IpvsFacts {
    pub state: Option<&'static str>,
    pub timeout_s: Option<f64>,
}

/// The lost conntrack entry.
#[derive(Clone, Debug, PartialEq)]
pub struct ConntrackFacts {
    pub state: Option<&'static str>,
    /// The sysctl whose limit was reached.
    pub limit: Option<&'static str>,
    pub limit_s: Option<f64>,
    pub deleted_by: Option<String>,
    pub count: Option<u32>,
    pub max: Option<u32>,
}

/// One broken connection and why.
#[derive(Clone, Debug)]
pub struct Incident {
    pub event_id: String,
    pub sequence: u64,
    pub opened: Nanos,
    /// `opened` as nanoseconds since the epoch.
    pub wall_ns: i64,
    pub cause: &'static Cause,
    /// `None` for `unknown` only.
    pub confidence: Option<Confidence>,
    /// The id of the incident at the connection's other end, whose verdict this incident repeats.
    pub follows: Option<String>,
    pub source: SocketAddr,
    pub destination: SocketAddr,
    pub source_nat: Option<SocketAddr>,
    pub destination_nat: Option<SocketAddr>,
    pub victim: Victim,
    pub netns: u32,
    pub action: Action,
    /// The victim's positive errno.
    pub errno: Option<u32>,
    pub rst: Rst,
    pub idle_s: Option<f64>,
    pub keepalive: Option<Keepalive>,
    pub ipvs: Option<IpvsFacts>,
    pub conntrack: Option<ConntrackFacts>,
    /// The process that has to act.
    pub owner: Option<Owner>,
    /// The end at which `owner` is.
    pub owner_side: Option<Side>,
    /// The process at the other end.
    pub peer: Option<Owner>,
    /// Network namespaces of the records, `netns` among them.
    pub namespaces: Vec<u32>,
    pub hostname: String,
    /// Completes "SOURCE -> DESTINATION …": what happened.
    pub what: String,
    /// Why, without the fix.
    pub why: String,
    pub evidence: Vec<Finding>,
    pub ruled_out: Vec<RuledOut>,
    pub fixes: Vec<Fix>,
    /// Fixes that are often tried and do not help here: what, and why not.
    pub not_fixes: Vec<(String, String)>,
    pub blind_spots: Vec<String>,
    pub prove: Option<String>,
    pub lost_events: u64,
}

impl Incident {
    /// One sentence: which connection, what happened, why, the first fix.
    pub fn message(&self) -> String {
        let mut text =
            format!("{} -> {} {}: {}", self.source, self.destination, self.what, self.why);
        if let Some(fix) = self.fixes.first() {
            text.push_str("; ");
            text.push_str(&fix.summary);
        }
        text
    }

    /// `level` of the JSON output.
    pub fn level(&self) -> &'static str {
        use crate::verdict::Family;
        match self.cause.family {
            Family::Benign => "info",
            Family::Application | Family::Remote | Family::Unknown => "warn",
            Family::Capacity => "critical",
            Family::TimeoutMismatch | Family::Keepalive | Family::StateLost | Family::Policy => {
                "error"
            }
        }
    }
}
