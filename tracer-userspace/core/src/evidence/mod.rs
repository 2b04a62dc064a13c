//! The input of the causes: the records of a case, the losses that could explain it, and the state of the
//! namespaces. Every search in the history is in this module.

mod absence;
mod balanced;
mod closed;
mod coverage;
mod facts;
mod filtered;
mod look_back;
mod reconstructed;
mod reset;
mod translated;
mod views;

pub use absence::Watched;
pub use closed::ResettingEnd;
pub use coverage::TraceCoverage;
pub use facts::{Evidence, Hosts, seconds};
pub use reconstructed::{Balanced, Translated};

use crate::{
    case::Case,
    history::{baseline::Baseline, ipvs_servers::IpvsServers, memory::Memory},
};

/// Collects the evidence for a case.
pub fn gather<'a>(
    case: &'a Case,
    memory: &'a Memory,
    ipvs_servers: &'a IpvsServers,
    hosts: &'a Hosts,
    baseline: &'a Baseline,
    coverage: &'a TraceCoverage,
) -> Evidence<'a> {
    let mut evidence = Evidence {
        case,
        session: &coverage.session,
        coverage,
        memory,
        hosts,
        ipvs_servers,
        baseline,
        balanced: None,
        translated: None,
        ipvs: None,
        conntrack: None,
        zone_is_ambiguous: false,
        drops: Vec::new(),
        invalid: None,
        idle_periods: None,
    };
    evidence.look_back();
    evidence.invalid = evidence.find_invalid();
    evidence.balanced = evidence.find_balanced();
    evidence.translated = evidence.find_translated();
    evidence
}
