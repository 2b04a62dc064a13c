//! What a cause says of a case.

use rsttrace_model::flow::Nanos;

/// How sure a verdict is; a surer one is greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Confidence {
    /// Arithmetic on idle time and limits only.
    Inferred,
    /// Joined by tuple and time from indirect signals.
    Correlated,
    /// The causing event itself was seen.
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
    /// A closed set of words, for machines.
    pub kind: &'static str,
    /// When it happened.
    pub ts: Nanos,
    /// One line for people.
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
    /// The contract's word for it.
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

    /// What its causes have in common.
    pub fn title(self) -> &'static str {
        match self {
            Self::TimeoutMismatch => "a timer on the way is shorter than the connection's silence",
            Self::Capacity => "a table or a queue was full",
            Self::Keepalive => "nobody answered until a timer gave up",
            Self::StateLost => "an entry or a socket was gone, and not by idleness",
            Self::Policy => "somebody wanted it to end",
            Self::Application => "what an application on this host did",
            Self::Remote => "it was made elsewhere",
            Self::Benign => "no connection broke; told with --all only",
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
    /// Why, in a clause: "its IPVS entry had expired (limit 900 s)".
    pub why: String,
    /// What convinced it, most convincing first.
    pub findings: Vec<Finding>,
    /// The cheapest test that would settle it. Required below `observed` where it can be had.
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

/// Something people try that does not help here: what, and why not.
pub type NotFix = (String, String);
