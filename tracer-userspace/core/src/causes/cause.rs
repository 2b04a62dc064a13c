//! What a cause is.

use super::{doc::Doc, fix_context::FixContext, reject_rule, unanswered};
use crate::{
    evidence::{Evidence, ResettingEnd},
    fix::Fix,
    verdict::{Confidence, Family, Finding, NotFix, Verdict},
};

/// A root cause. Most fields have a usual value in [`Cause::BASE`].
pub struct Cause {
    /// Stable id of the contract.
    pub id: &'static str,
    pub family: Family,
    /// One line.
    pub title: &'static str,
    pub doc: Doc,
    /// Decides whether the evidence shows this cause.
    pub judge: fn(&Evidence<'_>) -> Option<Verdict>,
    /// Why it is *not* this cause; `None` where the evidence does not show that. Called only after
    /// `judge` of another cause returned a verdict.
    pub rule_out: fn(&Evidence<'_>) -> Option<String>,
    /// What to change, best first.
    pub fixes: fn(&Evidence<'_>) -> Vec<Fix>,
    pub not_fixes: fn(&Evidence<'_>) -> Vec<NotFix>,
    /// Fixes computed from the host's current state, best first; `None` when there is nothing to compute
    /// and only the documented remedies apply.
    pub on_host: Option<fn(&FixContext<'_>) -> Vec<Fix>>,
    /// The highest confidence that a verdict may have (the contract's ceilings).
    pub ceiling: Confidence,
    /// A dropped packet is reported at once, as this: its sender may learn of it minutes later, and on
    /// another host.
    pub opens_on_drop: Option<DropReport>,
    /// What an event shows of the table entry that was lost.
    pub facts: Facts,
    /// What sends the reset of this cause where no hook saw it leave (`rst.origin` of the contract).
    pub unseen_origin: Option<&'static str>,
}

/// How a dropped packet is reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DropReport {
    /// Completes "SOURCE -> DESTINATION …".
    pub what: &'static str,
    /// A connection whose retries have run out is reported as a timeout instead.
    pub unless_timed_out: bool,
}

/// What an event shows of a lost entry.
#[derive(Clone, Copy)]
pub enum Facts {
    None,
    Ipvs,
    /// With the limit that ran out, if one did: its sysctl and seconds.
    Conntrack {
        limit: fn(&Evidence<'_>) -> Option<(&'static str, u32)>,
    },
}

impl Facts {
    /// Of a conntrack entry that did not run out.
    pub const CONNTRACK: Self = Self::Conntrack { limit: |_| None };
}

/// How to decide between a lost entry and a close by the server, where its FIN came before.
const SERVER_SHUT: &str = "check whether the server had closed its socket or only shut it for writing; if it had closed the \
                           socket, the packet would have been reset with the entry alive as well, and the client has to \
                           read the end of file";

impl Cause {
    /// What most causes have: nothing to rule out, no fix, nothing computed, no special report.
    pub const BASE: Self = Self {
        id: "",
        family: Family::Unknown,
        title: "",
        doc: Doc { about: "", detections: &[], mistaken_for: &[], fixes: &[], not_fixes: &[] },
        judge: |_| None,
        rule_out: |_| None,
        fixes: |_| Vec::new(),
        not_fixes: |_| Vec::new(),
        on_host: None,
        ceiling: Confidence::Observed,
        opens_on_drop: None,
        facts: Facts::None,
        unseen_origin: None,
    };

    /// The verdict on a case, with a confidence of at most [`Self::ceiling`]. A connection of this host that was in use
    /// and broke is never benign, whatever its other end looks like.
    pub fn verdict(&self, evidence: &Evidence<'_>) -> Option<Verdict> {
        if self.family == Family::Benign && evidence.broke_a_used_connection() {
            return None;
        }
        let mut verdict = (self.judge)(evidence)?;
        if evidence.has_loss() && evidence.resetting_end() == ResettingEnd::ServerShut {
            verdict.prove.get_or_insert_with(|| SERVER_SHUT.into());
        }
        if matches!(self.facts, Facts::Conntrack { .. }) {
            verdict.findings.extend(why_the_entry_mattered(evidence));
        }
        let confidence = verdict.confidence.map(|confidence| confidence.min(self.ceiling));
        Some(Verdict { confidence, ..verdict })
    }

    /// The fixes for the host's current state, best first.
    pub fn fixes_on(&self, context: &FixContext<'_>) -> Vec<Fix> {
        let mut fixes = self.on_host.map(|on_host| on_host(context)).unwrap_or_default();
        // A remedy without computed values is listed in general terms.
        for remedy in self.doc.fixes {
            if !fixes.iter().any(|fix| fix.id == remedy.id) {
                fixes.push(remedy.fix());
            }
        }
        fixes
    }
}

/// Of a lost entry that translated nothing: the rule that depended on it.
fn why_the_entry_mattered(evidence: &Evidence<'_>) -> Option<Finding> {
    let (loss, _) = evidence.plain_loss()?;
    let place = evidence.place(loss.netns).describe();
    if let Some(at) = evidence.rejected() {
        let rule = reject_rule::tool(&at.value.stack);
        let flow = at.value.trigger?.flow;
        return Some(Finding {
            kind: "rule_without_entry",
            ts: at.ts,
            summary: format!(
                "{rule} {place} reset {flow}, for which conntrack had no entry any more; the rules there test the \
                 conntrack state"
            ),
        });
    }
    unanswered::dropped_without_answer(evidence).or_else(|| unanswered::dropped(evidence))
}

impl std::fmt::Debug for Cause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.id)
    }
}
