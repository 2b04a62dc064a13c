//! The verdict of a reported incident, which the connection's other end repeats.

use crate::{
    causes::cause::Cause,
    fix::Fix,
    incident::{ConntrackFacts, Incident, IpvsFacts},
    verdict::{Confidence, Finding, NotFix},
};

/// Kinds of findings that are records, not conclusions.
const RECORD_KINDS: [&str; 3] = ["reset_sent", "reset_received", "socket_error"];

/// The part of a verdict that the connection's other end repeats.
#[derive(Clone)]
pub struct StoredVerdict {
    pub cause: &'static Cause,
    pub confidence: Option<Confidence>,
    pub why: String,
    pub prove: Option<String>,
    /// The first finding of the original verdict.
    pub root: Option<Finding>,
    pub fixes: Vec<Fix>,
    pub not_fixes: Vec<NotFix>,
    pub ipvs: Option<IpvsFacts>,
    pub conntrack: Option<ConntrackFacts>,
}

impl StoredVerdict {
    pub fn of(incident: &Incident) -> Self {
        Self {
            cause: incident.cause,
            confidence: incident.confidence,
            why: incident.why.clone(),
            prove: incident.prove.clone(),
            root: incident.evidence.first().cloned(),
            fixes: incident.fixes.clone(),
            not_fixes: incident.not_fixes.clone(),
            ipvs: incident.ipvs.clone(),
            conntrack: incident.conntrack.clone(),
        }
    }
}

impl Incident {
    /// Makes this incident the other end of a reported incident, with the verdict of that incident.
    pub fn repeat(&mut self, event_id: String, verdict: StoredVerdict) {
        self.follows = Some(event_id);
        self.cause = verdict.cause;
        self.confidence = verdict.confidence;
        self.why = verdict.why;
        self.prove = verdict.prove;
        // The records of this end come after the first finding of the original verdict.
        self.evidence.retain(|finding| RECORD_KINDS.contains(&finding.kind));
        self.evidence.splice(0..0, verdict.root.filter(|root| !RECORD_KINDS.contains(&root.kind)));
        self.fixes = verdict.fixes;
        self.not_fixes = verdict.not_fixes;
        self.ipvs = verdict.ipvs;
        self.conntrack = verdict.conntrack;
        self.ruled_out.clear();
    }
}
