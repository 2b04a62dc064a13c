//! The counts of a run.

use std::collections::BTreeMap;

use crate::{correlator::RunCounters, incident::Incident, verdict::Family};

/// The counts of a run, for the summary events and the last line on standard error.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    pub hostname: String,
    pub boot_id: String,
    /// Incidents by cause id, without benign ones. Repeats at a connection's other end do not count.
    pub incidents: BTreeMap<&'static str, u64>,
    pub benign: BTreeMap<&'static str, u64>,
    pub counters: RunCounters,
    /// Kernel reads that failed, records that could not be decoded or are of a kind this build does not
    /// know, and damaged lines of a capture.
    pub unreadable: u64,
}

impl Summary {
    pub fn count(&mut self, incident: &Incident) {
        if incident.follows.is_some() {
            return;
        }
        let list = match incident.cause.family {
            Family::Benign => &mut self.benign,
            _ => &mut self.incidents,
        };
        *list.entry(incident.cause.id).or_default() += 1;
    }

    pub fn update(&mut self, counters: &RunCounters, unreadable: u64) {
        self.counters = *counters;
        self.unreadable = unreadable + counters.unknown_records;
    }
}

/// The last line on standard error.
pub fn summary_text(summary: &Summary) -> String {
    let total: u64 = summary.incidents.values().sum();
    let benign: u64 = summary.benign.values().sum();
    let list = |counts: &BTreeMap<&str, u64>| {
        counts.iter().map(|(cause, n)| format!("{cause} {n}")).collect::<Vec<_>>().join(", ")
    };
    let details = |counts: &BTreeMap<&str, u64>| match counts.is_empty() {
        true => String::new(),
        false => format!(" ({})", list(counts)),
    };
    format!(
        "rsttrace: {total} incident{}{}, {benign} benign{}; {} events lost, {} undecodable, {} evicted",
        if total == 1 { "" } else { "s" },
        details(&summary.incidents),
        details(&summary.benign),
        summary.counters.lost,
        summary.unreadable,
        summary.counters.evicted,
    )
}
