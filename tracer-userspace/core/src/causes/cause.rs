//! What a cause is.

use super::{doc::Doc, scene::Scene};
use crate::{
    evidence::Evidence,
    fix::Fix,
    verdict::{Family, NotFix, Verdict},
};

/// A root cause.
pub struct Cause {
    /// Stable id of the contract.
    pub id: &'static str,
    pub family: Family,
    /// One line.
    pub title: &'static str,
    pub doc: Doc,
    /// Decides whether the evidence shows this cause.
    pub judge: fn(&Evidence<'_>) -> Option<Verdict>,
    /// Why it is *not* this cause, when that can be said honestly. Called only after `judge` of
    /// another cause won.
    pub rule_out: fn(&Evidence<'_>) -> Option<String>,
    /// What to change, best first.
    pub fixes: fn(&Evidence<'_>) -> Vec<Fix>,
    pub not_fixes: fn(&Evidence<'_>) -> Vec<NotFix>,
    /// What to change on a host as it is, best first; `None` when there is nothing to compute and the
    /// documented remedies are all that can be said.
    pub on_host: Option<fn(&Scene<'_>) -> Vec<Fix>>,
}

impl Cause {
    /// The fixes for a host as it is, best first.
    pub fn fixes_on(&self, scene: &Scene<'_>) -> Vec<Fix> {
        let mut fixes = self.on_host.map(|on_host| on_host(scene)).unwrap_or_default();
        // What could not be computed here is told in general terms.
        for remedy in self.doc.fixes {
            if !fixes.iter().any(|fix| fix.id == remedy.id) {
                fixes.push(remedy.fix());
            }
        }
        fixes
    }

    /// What is told may be a dropped packet, at once: its sender may hear of it minutes later, and elsewhere.
    pub fn is_a_drop(&self) -> bool {
        matches!(
            self.id,
            "conntrack_table_full"
                | "nat_port_exhausted"
                | "no_backend"
                | "ipvs_server_removed"
                | "ipvs_entry_dropped"
        )
    }
}

impl std::fmt::Debug for Cause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.id)
    }
}

/// For causes that have nothing to say.
pub fn nothing_ruled_out(_: &Evidence<'_>) -> Option<String> {
    None
}

/// For causes that need no fix.
pub fn no_fixes(_: &Evidence<'_>) -> Vec<Fix> {
    Vec::new()
}

/// For causes nobody fixes wrongly.
pub fn no_not_fixes(_: &Evidence<'_>) -> Vec<NotFix> {
    Vec::new()
}
