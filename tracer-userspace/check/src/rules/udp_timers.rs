//! UDP: two tables with a timer each, and how many flows a timeout leaves room for.

use rsttrace_core::fix::{Change, Fix, FixOwner};
use rsttrace_model::{host_state::HostState, netns::Place, settings::Setting};

use super::{Netns, Rule, RuleInput, UDP};
use crate::{
    finding::{CheckFinding, Rank},
    origin,
};

pub const RULE: Rule = Rule {
    id: "udp_timers",
    causes: &[FULL],
    doc: "A table of max entries holds max ÷ timeout UDP flows per second: each DNS query leaves an entry \
          for that long. IPVS has a table and a UDP timeout of its own; the shorter timeout counts.",
    judge,
};

const FULL: &str = "conntrack_table_full";
const MAX: &str = "net.netfilter.nf_conntrack_max";
const TIMEOUT: &str = "net.netfilter.nf_conntrack_udp_timeout";
const STREAM: &str = "net.netfilter.nf_conntrack_udp_timeout_stream";
const IPVS: &str = "ipvs.udp";
/// The default of [`TIMEOUT`].
const DEFAULT_S: u64 = 30;

fn judge(input: &RuleInput<'_>) -> Vec<CheckFinding> {
    let mut findings = Vec::new();
    for netns in input.namespaces() {
        findings.extend(capacity(input.state, netns));
        findings.extend(two_tables(input.state, netns));
    }
    findings
}

/// A raised timeout fills the table at a lower rate of flows.
fn capacity(state: &HostState, netns: &Netns) -> Option<CheckFinding> {
    let max = state.machine.values.number(MAX).filter(|max| *max != 0)?;
    let timeout = netns.number(TIMEOUT).filter(|timeout| *timeout > DEFAULT_S)?;
    let flows = |timeout| (max + timeout / 2) / timeout;
    let (now, before) = (flows(timeout), flows(DEFAULT_S));
    let reason = format!(
        "each UDP flow keeps its conntrack entry for {timeout} s {}: a table of {max} entries is full at \
         {now} new flows (DNS queries) per second, while the default of {DEFAULT_S} s holds {before}",
        netns.place.describe()
    );
    Some(
        CheckFinding::new(RULE.id, Rank::Warn, &netns.place, reason)
            .cause(FULL)
            .formula(format!("max ÷ udp_timeout: {max} ÷ {timeout} = {now} flows/s"))
            .owner(origin::owner(state, netns, TIMEOUT))
            .source(origin::of(state, netns, TIMEOUT))
            .fix(lower(&netns.place, netns)),
    )
}

fn lower(place: &Place, netns: &Netns) -> Option<Fix> {
    let change = |key, to| {
        let key = Setting::find(key)?.key;
        let from = netns.number(key).filter(|now| *now > to)?;
        Some(Change::Sysctl { place: place.clone(), key, from: Some(from), to })
    };
    Some(Fix {
        id: "lower_udp_timeout",
        owner: FixOwner::Node,
        risk: rsttrace_core::fix::Risk::Low,
        summary: format!("set {TIMEOUT} back to {DEFAULT_S} {}", place.describe()),
        reason:
            "an answered query needs its entry only briefly; a flow that continues refreshes its entry"
                .into(),
        current: netns.values.text(TIMEOUT).ok().map(Into::into),
        wanted: Some(DEFAULT_S.to_string()),
        changes: [change(TIMEOUT, DEFAULT_S)?].into_iter().chain(change(STREAM, 120)).collect(),
    })
}

fn two_tables(state: &HostState, netns: &Netns) -> Option<CheckFinding> {
    if !netns.balances(UDP) || netns.values.is_on("net.ipv4.vs.conntrack") != Some(true) {
        return None;
    }
    let (ipvs, conntrack) = (netns.number(IPVS)?, netns.number(STREAM)?);
    let least = ipvs.min(conntrack);
    let reason = format!(
        "a UDP flow through IPVS {} has two timers, {ipvs} s in IPVS and {conntrack} s in conntrack: the \
         flow expires after the shorter one",
        netns.place.describe()
    );
    Some(
        CheckFinding::new(RULE.id, Rank::Info, &netns.place, reason)
            .formula(format!("min(ipvs udp {ipvs}, udp_timeout_stream {conntrack}) = {least} s"))
            .owner(FixOwner::Node)
            .source(format!(
                "{}; {}",
                origin::of(state, netns, IPVS),
                origin::of(state, netns, STREAM)
            )),
    )
}
