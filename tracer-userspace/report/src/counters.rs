//! Kernel counters and conntrack fill over the capture, which holds the state of its namespaces at several
//! times.

use std::collections::BTreeMap;

use rsttrace_model::netns::{NetnsState, Place};

use super::{
    model::{Counter, Fill, NamespaceCounters, Reading, Time},
    parsed::ParsedIncident,
    text::Text,
    window::Window,
};

/// Network namespaces that are kept.
const NAMESPACES: usize = 256;

/// Fill readings that are kept per namespace.
const READINGS: usize = 2000;

/// One network namespace: its state before and after, each with its time in nanoseconds since the epoch.
struct Namespace {
    place: Text,
    before: (i64, NetnsState),
    after: (i64, NetnsState),
    readings: Vec<Reading>,
}

/// All network namespaces.
#[derive(Default)]
pub struct Namespaces {
    from_states: BTreeMap<u32, Namespace>,
    /// Fill readings from incidents, by namespace. A stream has no others.
    from_incidents: BTreeMap<u32, Vec<Reading>>,
}

fn reading(wall_ns: i64, entries: Option<u32>, max: Option<u32>) -> Option<Reading> {
    Some(Reading { at: Time(wall_ns), entries: entries?, max: max.filter(|max| *max > 0)? })
}

impl Namespaces {
    /// Adds a state from a capture. The last state before the window counts as the state before.
    pub fn state(&mut self, wall_ns: i64, state: NetnsState, window: &Window) {
        if window.is_after(wall_ns) {
            return;
        }
        let table = state.conntrack.as_ref();
        let fill = table.and_then(|table| reading(wall_ns, table.count, table.max));
        if self.from_states.len() >= NAMESPACES && !self.from_states.contains_key(&state.inum) {
            return;
        }
        let namespace = self.from_states.entry(state.inum).or_insert_with(|| {
            let place = Place { netns: state.inum, reach: state.reach.clone() }.describe().into();
            let (before, after) = ((wall_ns, state.clone()), (wall_ns, state.clone()));
            Namespace { place, before, after, readings: Vec::new() }
        });
        if window.is_before(wall_ns) || wall_ns < namespace.before.0 {
            namespace.before = (wall_ns, state.clone());
        }
        if wall_ns >= namespace.after.0 {
            namespace.after = (wall_ns, state);
        }
        let wanted = fill.filter(|_| window.contains(wall_ns));
        if namespace.readings.len() < READINGS {
            namespace.readings.extend(wanted);
        }
    }

    /// Adds the conntrack fill that an incident reports.
    pub fn incident(&mut self, incident: &ParsedIncident) {
        let fill = incident.fill;
        let fill = fill.and_then(|(count, max)| reading(incident.wall_ns, Some(count), Some(max)));
        let netns = incident.netns;
        if self.from_incidents.len() < NAMESPACES || self.from_incidents.contains_key(&netns) {
            let readings = self.from_incidents.entry(netns).or_default();
            if readings.len() < READINGS {
                readings.extend(fill);
            }
        }
    }

    /// Whether no state was added.
    pub fn is_empty(&self) -> bool {
        self.from_states.is_empty()
    }

    /// The counters of namespaces that were read at least twice.
    pub fn counters(&self) -> Vec<NamespaceCounters> {
        let twice = self.from_states.iter().filter(|(_, it)| it.before.0 < it.after.0);
        twice
            .map(|(netns, it)| NamespaceCounters {
                netns: *netns,
                place: it.place.clone(),
                before: Time(it.before.0),
                after: Time(it.after.0),
                changed: changed(&it.before.1, &it.after.1),
            })
            .collect()
    }

    /// The fill of tables that had at least one entry, the fullest first.
    pub fn fill(&self) -> Vec<Fill> {
        let states = self.from_states.values().map(|it| (it.place.clone(), it.readings.clone()));
        let incidents = self
            .from_incidents
            .iter()
            .map(|(netns, readings)| (Text::from(format!("in netns {netns}")), readings.clone()));
        let all: Vec<_> =
            if self.from_states.is_empty() { incidents.collect() } else { states.collect() };
        let mut fills: Vec<Fill> = all
            .into_iter()
            .filter(|(_, readings)| readings.iter().any(|reading| reading.entries > 0))
            .map(|(place, mut readings)| {
                readings.sort_by_key(|reading| reading.at);
                Fill { place, readings }
            })
            .collect();
        let peak = |fill: &Fill| fill.peak().map_or(0.0, Reading::share);
        fills.sort_by(|a, b| peak(b).total_cmp(&peak(a)));
        fills
    }
}

fn changed(before: &NetnsState, after: &NetnsState) -> Vec<Counter> {
    let (a, b) = (&before.counters, &after.counters);
    let stat = |state: &NetnsState| state.conntrack.as_ref().map(|table| table.stat.clone());
    let (c, d) = (stat(before).unwrap_or_default(), stat(after).unwrap_or_default());
    let entries =
        |state: &NetnsState| state.conntrack.as_ref().and_then(|table| table.count).map(u64::from);
    let max =
        |state: &NetnsState| state.conntrack.as_ref().and_then(|table| table.max).map(u64::from);
    [
        ("TcpExt ListenOverflows", a.listen_overflows, b.listen_overflows),
        ("TcpExt ListenDrops", a.listen_drops, b.listen_drops),
        ("TcpExt TCPAbortOnClose", a.abort_on_close, b.abort_on_close),
        ("TcpExt TCPAbortOnData", a.abort_on_data, b.abort_on_data),
        ("TcpExt TCPAbortOnLinger", a.abort_on_linger, b.abort_on_linger),
        ("TcpExt TCPAbortOnMemory", a.abort_on_memory, b.abort_on_memory),
        ("TcpExt TCPAbortOnTimeout", a.abort_on_timeout, b.abort_on_timeout),
        ("TcpExt SyncookiesFailed", a.syncookies_failed, b.syncookies_failed),
        ("TcpExt EmbryonicRsts", a.embryonic_rsts, b.embryonic_rsts),
        ("nf_conntrack drop", c.drop, d.drop),
        ("nf_conntrack early_drop", c.early_drop, d.early_drop),
        ("nf_conntrack insert_failed", c.insert_failed, d.insert_failed),
        ("nf_conntrack invalid", c.invalid, d.invalid),
        ("nf_conntrack chainlength", c.chain_too_long, d.chain_too_long),
        ("nf_conntrack_count", entries(before), entries(after)),
        ("nf_conntrack_max", max(before), max(after)),
    ]
    .into_iter()
    .filter_map(|(name, before, after)| Some(Counter { name, before: before?, after: after? }))
    .filter(|counter| counter.before != counter.after)
    .collect()
}
