//! What a person should know of a cause, as data: `explain`, `doctor`, the help and tests derive from it.

use std::fmt;

use crate::{fix::Remedy, verdict::Confidence};

/// The documentation of a cause.
pub struct Doc {
    /// What happens, in the kernel's terms; numbers name their source.
    pub about: &'static str,
    /// How it is recognised, the surest way first; empty for `unknown` only. A verdict's confidence is
    /// one of these.
    pub signs: &'static [Sign],
    /// What is taken for it, or refutes it: what, and how to tell.
    pub mistaken_for: &'static [(&'static str, &'static str)],
    /// What ends it, best first. A fix of an incident is one of these, with values.
    pub fixes: &'static [Remedy],
    /// What people try that does not help: what, and why not.
    pub not_fixes: &'static [(&'static str, &'static str)],
}

/// One way to recognise a cause.
pub struct Sign {
    /// How sure a verdict is that rests on it.
    pub confidence: Confidence,
    /// What has to be on record.
    pub evidence: &'static str,
    /// The signals (kernel/signal.rs) that put it there; all of them.
    pub needs: &'static [Need],
}

/// A signal that evidence comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// By whichever way it is attached.
    Any(&'static str),
    /// By a way without blind spots.
    Full(&'static str),
}

impl Need {
    pub const fn signal(self) -> &'static str {
        match self {
            Self::Any(signal) | Self::Full(signal) => signal,
        }
    }
}

/// "reset_sent in full"
impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any(signal) => f.write_str(signal),
            Self::Full(signal) => write!(f, "{signal} in full"),
        }
    }
}

impl Sign {
    /// A verdict that rests on the causing event itself.
    pub const fn observed(evidence: &'static str, needs: &'static [Need]) -> Self {
        Self { confidence: Confidence::Observed, evidence, needs }
    }

    /// A verdict that joins indirect signals by tuple and time.
    pub const fn correlated(evidence: &'static str, needs: &'static [Need]) -> Self {
        Self { confidence: Confidence::Correlated, evidence, needs }
    }

    /// A verdict by arithmetic, or by what is missing.
    pub const fn inferred(evidence: &'static str, needs: &'static [Need]) -> Self {
        Self { confidence: Confidence::Inferred, evidence, needs }
    }
}

impl Doc {
    /// The best confidence a verdict can have where `has` says which needs are met; `None` when the
    /// cause cannot be told there (`unknown` never can).
    pub fn best(&self, has: impl Fn(Need) -> bool) -> Option<Confidence> {
        let met = |sign: &&Sign| sign.needs.iter().all(|need| has(*need));
        self.signs.iter().filter(met).map(|sign| sign.confidence).max()
    }
}
