//! A verdict that the connection's other end repeats.

use crate::{
    causes::cause::Cause,
    fix::Fix,
    incident::{ConntrackFacts, Incident, IpvsFacts},
    verdict::{Confidence, Finding, NotFix},
};

/// Findings that are records, not conclusions.
const RECORD_KINDS: [&str; 3] = ["reset_sent", "reset_received", "socket_error"];

/// The part of a verdict that the connection's other end repeats.
#[derive(Clone)]
pub struct StoredVerdict {
    pub cause: &'static Cause,
    pub confidence: Option<Confidence>,
    pub why: String,
    pub prove: Option<String>,
    /// What convinced the first time.
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
    /// Makes this the other end of an incident already told: its verdict stands.
    pub fn repeat(&mut self, event_id: String, told: StoredVerdict) {
        self.follows = Some(event_id);
        self.cause = told.cause;
        self.confidence = told.confidence;
        self.why = told.why;
        self.prove = told.prove;
        // What this end showed follows what convinced the first time.
        self.evidence.retain(|finding| RECORD_KINDS.contains(&finding.kind));
        self.evidence.splice(0..0, told.root.filter(|root| !RECORD_KINDS.contains(&root.kind)));
        self.fixes = told.fixes;
        self.not_fixes = told.not_fixes;
        self.ipvs = told.ipvs;
        self.conntrack = told.conntrack;
        self.ruled_out.clear();
    }
}
