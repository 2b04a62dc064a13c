//! The conntrack timeout against the keepalives of the connections that NAT translates.

use rsttrace_core::{
    causes::remedy::limit_above,
    fix::{Fix, FixOwner},
};

use super::{Netns, Rule, RuleInput};
use crate::{
    connections::{Fate, Probing, latest_probe},
    finding::{CheckFinding, Rank, some_do},
    origin, remedies,
};

pub const RULE: Rule = Rule {
    id: "conntrack_idle",
    causes: &[CAUSE],
    doc: "keepalive_time × 1.125 < nf_conntrack_tcp_timeout_established where there is NAT: once the entry \
          has expired, a packet of the server is not translated back and is reset.",
    judge,
};

const CAUSE: &str = "conntrack_idle_expired";
const KEY: &str = "net.netfilter.nf_conntrack_tcp_timeout_established";
/// The kernel's default keepalive time, seconds: that of a socket that only has SO_KEEPALIVE on.
const KEEPALIVE_TIME: u64 = 7200;

fn judge(input: &RuleInput<'_>) -> Vec<CheckFinding> {
    let translators = input.namespaces().filter(|netns| netns.translates == Some(true));
    translators.filter_map(|netns| of_netns(input, netns)).collect()
}

fn of_netns(input: &RuleInput<'_>, netns: &Netns) -> Option<CheckFinding> {
    let limit_s = netns.number(KEY)?;
    let connections = input.ends.translated(input.state, netns);
    let lost: Vec<_> = connections.iter().filter(|it| it.fate(limit_s) == Fate::Lost).collect();
    let place = netns.place.describe();
    // Connections are rarely idle for longer than this: a longer limit is only an Info finding.
    let is_short = limit_s <= latest_probe(KEEPALIVE_TIME);
    let (rank, reason) = match (lost.len(), is_short) {
        (0, false) => return None,
        (0, true) => (
            Rank::Warn,
            format!(
                "a translated connection that is idle for {limit_s} s loses its NAT entry {place}; keepalive \
                 at the {KEEPALIVE_TIME} s default does not prevent it"
            ),
        ),
        (count, is_short) => (
            if is_short { Rank::Break } else { Rank::Info },
            format!(
                "{} no keepalive in time: after {limit_s} s idle the entry expires, and the server's next \
                 packet is reset",
                some_do(
                    count,
                    connections.len(),
                    "connection",
                    ["sends", "send"].map(|send| format!("that NAT translates {place} {send}"))
                )
            ),
        ),
    };
    let mut finding = CheckFinding::new(RULE.id, rank, &netns.place, reason)
        .cause(CAUSE)
        .formula(format!(
            "keepalive_time × 1.125 < established = {limit_s} (at most {}); recommended: {}",
            limit_s * 8 / 9,
            limit_s / 3
        ))
        .owner(FixOwner::Application)
        .source(origin::of(input.state, netns, KEY))
        .after(limit_s)
        .connections(lost.iter().map(|it| it.describe()));
    let mut places: Vec<&Netns> = Vec::new();
    for end in lost.iter().flat_map(|it| &it.ends) {
        let on = matches!(end.probing(), Probing::Every { .. } | Probing::NotBefore(_));
        if on && places.iter().all(|place| place.place != end.netns.place) {
            places.push(end.netns);
        }
    }
    finding = finding
        .fix(Some(remedies::keepalive_below(limit_s, "the conntrack timer")))
        .fix(remedies::keepalive_sysctls(CAUSE, limit_s, &places));
    if is_short {
        finding = finding.fix(raise(netns, limit_s));
    }
    Some(finding)
}

fn raise(netns: &Netns, limit_s: u64) -> Option<Fix> {
    #[expect(clippy::cast_precision_loss, reason = "seconds")]
    let to = limit_above(limit_s as f64 * 2.0).max(limit_above(KEEPALIVE_TIME as f64 * 1.125));
    remedies::by_setting(CAUSE, "raise_conntrack_timeout", netns, KEY, to)
}
