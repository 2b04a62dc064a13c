//! The verdict of a cause on a case.

use rsttrace_model::flow::Nanos;

/// Confidence in a verdict, in ascending order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Confidence {
    /// Arithmetic on idle time and limits only.
    Inferred,
    /// Joined by tuple and time from indirect signals.
    Correlated,
    /// The event that caused the break was traced.
    Observed,
}

impl Confidence {
    pub fn id(self) -> &'static str {
        match self {
            Self::Observed => "observed",
            Self::Correlated => "correlated",
            Self::Inferred => "inferred",
        }
    }
}

/// One piece of evidence.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// Machine-readable kind, from a closed set.
    pub kind: &'static str,
    /// When it happened.
    pub ts: Nanos,
    /// One human-readable line.
    pub summary: String,
}

/// A cause that was considered and does not fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuledOut {
    pub cause: &'static str,
    pub because: String,
}

/// What dashboards group by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    TimeoutMismatch,
    Capacity,
    Keepalive,
    StateLost,
    Policy,
    Application,
    Remote,
    Benign,
    Unknown,
}

impl Family {
    /// Its id in events and on the command line.
    pub fn id(self) -> &'static str {
        match self {
            Self::TimeoutMismatch => "timeout_mismatch",
            Self::Capacity => "capacity",
            Self::Keepalive => "keepalive",
            Self::StateLost => "state_lost",
            Self::Policy => "policy",
            Self::Application => "application",
            Self::Remote => "remote",
            Self::Benign => "benign",
            Self::Unknown => "unknown",
        }
    }

    /// What the causes of the family have in common.
    pub fn title(self) -> &'static str {
        match self {
            Self::TimeoutMismatch => {
                "an idle timeout on the path is shorter than the connection's \
                                      idle time"
            }
            Self::Capacity => "a table or a queue was full",
            Self::Keepalive => "the peer did not answer before retries or a timeout ran out",
            Self::StateLost => "an entry or a socket was lost, but not to an idle timeout",
            Self::Policy => "ended by an administrator or policy",
            Self::Application => "caused by an application on this host",
            Self::Remote => "caused by a remote host",
            Self::Benign => "no connection broke; shown only with --all",
            Self::Unknown => "no verdict",
        }
    }

    /// Every family, for help and for checking `--family`.
    pub const ALL: [Self; 9] = [
        Self::TimeoutMismatch,
        Self::Capacity,
        Self::Keepalive,
        Self::StateLost,
        Self::Policy,
        Self::Application,
        Self::Remote,
        Self::Benign,
        Self::Unknown,
    ];
}

/// A verdict of one cause on one case.
#[derive(Debug)]
pub struct Verdict {
    /// `None` for `unknown` only.
    pub confidence: Option<Confidence>,
    /// Why, as a clause: "its IPVS entry had expired (limit 900 s)".
    pub why: String,
    /// The evidence for it, strongest first.
    pub findings: Vec<Finding>,
    /// The cheapest test that would confirm it. Required below `observed` where such a test exists.
    pub prove: Option<String>,
}

impl Verdict {
    pub fn new(confidence: Confidence, why: impl Into<String>) -> Self {
        Self { confidence: Some(confidence), why: why.into(), findings: Vec::new(), prove: None }
    }

    pub fn finding(mut self, finding: Finding) -> Self {
        self.findings.push(finding);
        self
    }

    pub fn prove(mut self, test: impl Into<String>) -> Self {
        self.prove = Some(test.into());
        self
    }
}

/// Something people try that does not help here, and why not.
pub type NotFix = (String, String);
