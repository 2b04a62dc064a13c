//! UDP: two tables with a timer each, and how many flows a timeout leaves room for.

use rsttrace_core::fix::{Change, Fix, FixOwner};
use rsttrace_model::{host_state::View, netns::Place, settings::Setting};

use super::{Netns, Question, Rule, UDP};
use crate::{
    finding::{Finding, Rank},
    origin,
};

pub const RULE: Rule = Rule {
    id: "udp_timers",
    causes: &[FULL],
    doc: "A table of max entries holds max ÷ timeout UDP flows a second: each DNS query leaves an entry for \
          that long. The IPVS UDP timeout is another table's; the shorter one of the two counts.",
    judge,
};

const FULL: &str = "conntrack_table_full";
const MAX: &str = "net.netfilter.nf_conntrack_max";
const TIMEOUT: &str = "net.netfilter.nf_conntrack_udp_timeout";
const STREAM: &str = "net.netfilter.nf_conntrack_udp_timeout_stream";
const IPVS: &str = "ipvs.udp";
/// The default of [`TIMEOUT`].
const DEFAULT_S: u64 = 30;

fn judge(question: &Question<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for netns in question.namespaces() {
        findings.extend(capacity(question.view, netns));
        findings.extend(two_tables(question.view, netns));
    }
    findings
}

/// A timeout that was raised for no reason fills the table.
fn capacity(view: &View, netns: &Netns) -> Option<Finding> {
    let max = view.machine.values.number(MAX).filter(|max| *max != 0)?;
    let timeout = netns.number(TIMEOUT).filter(|timeout| *timeout > DEFAULT_S)?;
    let flows = |timeout| (max + timeout / 2) / timeout;
    let (now, before) = (flows(timeout), flows(DEFAULT_S));
    let reason = format!(
        "each UDP flow keeps its conntrack entry for {timeout} s {}: a table of {max} entries is full at \
         {now} new flows (DNS queries) a second, where the default of {DEFAULT_S} s holds {before}",
        netns.place.describe()
    );
    Some(
        Finding::new(RULE.id, Rank::Warn, &netns.place, reason)
            .cause(FULL)
            .formula(format!("max ÷ udp_timeout: {max} ÷ {timeout} = {now} flows/s"))
            .owner(FixOwner::Node)
            .source(origin::of(view, netns, TIMEOUT))
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
            "an answered query needs its entry for a moment only; a flow that goes on refreshes it"
                .into(),
        current: netns.values.text(TIMEOUT).ok().map(Into::into),
        wanted: Some(DEFAULT_S.to_string()),
        changes: [change(TIMEOUT, DEFAULT_S)?].into_iter().chain(change(STREAM, 120)).collect(),
    })
}

fn two_tables(view: &View, netns: &Netns) -> Option<Finding> {
    if !netns.balances(UDP) || netns.values.is_on("net.ipv4.vs.conntrack") != Some(true) {
        return None;
    }
    let (ipvs, conntrack) = (netns.number(IPVS)?, netns.number(STREAM)?);
    let least = ipvs.min(conntrack);
    let reason = format!(
        "a UDP flow through IPVS {} has two timers, {ipvs} s in IPVS and {conntrack} s in conntrack: the \
         shorter one ends it",
        netns.place.describe()
    );
    Some(
        Finding::new(RULE.id, Rank::Info, &netns.place, reason)
            .formula(format!("min(ipvs udp {ipvs}, udp_timeout_stream {conntrack}) = {least} s"))
            .owner(FixOwner::Node)
            .source(format!(
                "{}; {}",
                origin::of(view, netns, IPVS),
                origin::of(view, netns, STREAM)
            )),
    )
}
