//! The documentation of a cause, as data: `explain`, `doctor`, the help and tests derive from it.

use std::fmt;

use crate::{fix::Remedy, verdict::Confidence};

/// The documentation of a cause.
pub struct Doc {
    /// What happens, in the kernel's terms; numbers name their source.
    pub about: &'static str,
    /// How it is detected, highest confidence first; empty for `unknown` only. A verdict's confidence is
    /// one of these.
    pub detections: &'static [Detection],
    /// What is mistaken for it or refutes it, and how to distinguish the two.
    pub mistaken_for: &'static [(&'static str, &'static str)],
    /// What fixes it, best first. A fix of an incident is one of these, with values.
    pub fixes: &'static [Remedy],
    /// What people try that does not help, and why not.
    pub not_fixes: &'static [(&'static str, &'static str)],
}

/// One way to detect a cause.
pub struct Detection {
    /// The confidence of a verdict based on it.
    pub confidence: Confidence,
    /// The evidence that has to be recorded.
    pub evidence: &'static str,
    /// The signals (kernel/signal.rs) that record it; all are required.
    pub needs: &'static [RequiredSignal],
}

/// A signal that evidence comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequiredSignal {
    /// However the signal is attached.
    Any(&'static str),
    /// Attached in a way that has no blind spots.
    Full(&'static str),
}

impl RequiredSignal {
    pub const fn signal(self) -> &'static str {
        match self {
            Self::Any(signal) | Self::Full(signal) => signal,
        }
    }
}

/// "reset_sent in full"
impl fmt::Display for RequiredSignal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any(signal) => f.write_str(signal),
            Self::Full(signal) => write!(f, "{signal} in full"),
        }
    }
}

impl Detection {
    /// For a verdict based on the causing event itself.
    pub const fn observed(evidence: &'static str, needs: &'static [RequiredSignal]) -> Self {
        Self { confidence: Confidence::Observed, evidence, needs }
    }

    /// For a verdict that joins indirect signals by tuple and time.
    pub const fn correlated(evidence: &'static str, needs: &'static [RequiredSignal]) -> Self {
        Self { confidence: Confidence::Correlated, evidence, needs }
    }

    /// For a verdict based on arithmetic, or on missing events.
    pub const fn inferred(evidence: &'static str, needs: &'static [RequiredSignal]) -> Self {
        Self { confidence: Confidence::Inferred, evidence, needs }
    }
}

impl Doc {
    /// The best confidence that a verdict can have with the signals for which `has` is true; `None` when
    /// the cause cannot be detected with them (`unknown` never can).
    pub fn best_confidence(&self, has: impl Fn(RequiredSignal) -> bool) -> Option<Confidence> {
        let met = |detection: &&Detection| detection.needs.iter().all(|need| has(*need));
        self.detections.iter().filter(met).map(|detection| detection.confidence).max()
    }
}
