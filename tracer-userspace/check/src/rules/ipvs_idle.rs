//! The IPVS TCP timeout against the keepalives of the connections through IPVS.

use rsttrace_core::fix::{Fix, FixOwner};
use rsttrace_model::{host_state::is_left_behind, ipvs::IpvsService};

use super::{Netns, Rule, RuleInput, TCP};
use crate::{
    connections::{Fate, Probing, TableConnection, latest_probe},
    finding::{CheckFinding, Rank, counted, service_name, some_do, some_of},
    origin, remedies,
};

pub const RULE: Rule = Rule {
    id: "ipvs_idle",
    causes: &[CAUSE],
    doc: "keepalive_time × 1.125 < the IPVS TCP timeout, better a third of it. A timer of the kernel's \
          wheel fires up to 1/8 late (kernel/time/timer.c). Without SO_KEEPALIVE, nothing re-arms the timer \
          of an idle connection.",
    judge,
};

const CAUSE: &str = "ipvs_idle_expired";
const KEY: &str = "ipvs.tcp";
/// The kernel's default keepalive time, seconds: that of a socket that only has SO_KEEPALIVE on.
const KEEPALIVE_TIME: u64 = 7200;

fn judge(input: &RuleInput<'_>) -> Vec<CheckFinding> {
    input.namespaces().filter_map(|netns| of_netns(input, netns)).collect()
}

fn of_netns(input: &RuleInput<'_>, netns: &Netns) -> Option<CheckFinding> {
    let limit_s = netns.number(KEY)?;
    let connections = input.ends.balanced(netns);
    // New connections do not go through services that kube-proxy's former mode left behind.
    let is_in_use = |it: &&IpvsService| {
        (it.fwmark != 0 || it.protocol == TCP) && !is_left_behind(input.state, netns, it)
    };
    let in_use: Vec<_> = netns.services.iter().flatten().filter(is_in_use).collect();
    if connections.is_empty() && in_use.is_empty() {
        return None;
    }
    let fates: Vec<Fate> = connections.iter().map(|it| it.fate(limit_s)).collect();
    let count = |fate| fates.iter().filter(|it| **it == fate).count();
    let (lost, unknown) = (count(Fate::Lost), count(Fate::Unknown));
    let place = netns.place.describe();
    let services: Vec<_> = in_use.into_iter().map(service_name).collect();
    let to = match services.is_empty() {
        true => String::new(),
        false => format!(" to {}", some_of(&services)),
    };
    // Connections are rarely idle for longer than this, and `fix --idle 2h` sets a longer limit: then the
    // finding is only an Info.
    let is_short = limit_s <= latest_probe(KEEPALIVE_TIME);
    let (rank, reason) = if lost > 0 {
        let send = ["sends", "send"].map(|send| format!("through IPVS {place} {send}"));
        (
            if is_short { Rank::Break } else { Rank::Info },
            format!(
                "{} no keepalive in time: after {limit_s} s idle the entry expires, and the next packet is \
                 reset",
                some_do(lost, connections.len(), "connection", send)
            ),
        )
    } else if connections.is_empty() && is_short {
        (
            Rank::Break,
            format!(
                "every connection{to} through IPVS {place} that is idle for {limit_s} s will be reset when it \
                 next sends; keepalive at the {KEEPALIVE_TIME} s default does not prevent it"
            ),
        )
    } else if connections.is_empty() || unknown > 0 {
        let which = match connections.len() {
            0 => format!("a connection{to}"),
            _ => format!("{} with unknown keepalive", counted(unknown, "connection")),
        };
        (
            if is_short { Rank::Warn } else { Rank::Info },
            format!(
                "{which} through IPVS {place}: after {limit_s} s idle the entry expires, unless an end sends \
                 keepalives before"
            ),
        )
    } else {
        let all = connections.len();
        let send = ["sends", "send"].map(|send| format!("through IPVS {place} {send}"));
        (
            Rank::Info,
            format!(
                "{} keepalives before the entry expires ({limit_s} s)",
                some_do(all, all, "connection", send)
            ),
        )
    };
    let at_risk: Vec<_> = connections
        .iter()
        .zip(&fates)
        .filter(|(_, fate)| **fate == Fate::Lost)
        .map(|(it, _)| it)
        .collect();
    let mut finding = CheckFinding::new(RULE.id, rank, &netns.place, reason)
        .cause(CAUSE)
        .formula(formula(&at_risk, limit_s))
        .owner(FixOwner::Application)
        .source(origin::of(input.state, netns, KEY))
        .connections(at_risk.iter().map(|it| it.describe()));
    if rank > Rank::Info {
        finding = finding.after(limit_s).fix(fixes(netns, limit_s, &at_risk));
    }
    Some(finding)
}

fn formula(at_risk: &[&TableConnection<'_>], limit_s: u64) -> String {
    let times = at_risk.iter().flat_map(|it| &it.ends).filter_map(|end| match end.probing() {
        Probing::Every { time_s, .. } | Probing::NotBefore(time_s) => Some(time_s),
        Probing::Off | Probing::Unknown => None,
    });
    let third = limit_s / 3;
    match times.min() {
        Some(time_s) => format!(
            "keepalive_time × 1.125 < ipvs tcp, but {time_s} × 1.125 = {} ≥ {limit_s}; recommended: {third}",
            latest_probe(time_s)
        ),
        None if at_risk.is_empty() => format!(
            "keepalive_time × 1.125 < ipvs tcp = {limit_s} (at most {}); recommended: {third}",
            limit_s * 8 / 9
        ),
        None => format!(
            "keepalive_time × 1.125 < ipvs tcp = {limit_s}, but there is no keepalive; recommended: {third}"
        ),
    }
}

fn fixes(netns: &Netns, limit_s: u64, at_risk: &[&TableConnection<'_>]) -> Vec<Fix> {
    let mut fixes = Vec::new();
    fixes.push(remedies::keepalive_below(limit_s, "the IPVS timer"));
    // The keepalive sysctls of a namespace change its sockets that have SO_KEEPALIVE on.
    let mut places: Vec<&Netns> = Vec::new();
    for end in at_risk.iter().flat_map(|it| &it.ends) {
        let on = matches!(end.probing(), Probing::Every { .. } | Probing::NotBefore(_));
        if on && places.iter().all(|place| place.place != end.netns.place) {
            places.push(end.netns);
        }
    }
    fixes.extend(remedies::keepalive_sysctls(CAUSE, limit_s, &places));
    fixes.push(remedies::ipvs_timeout(netns, limit_s));
    fixes.extend(remedies::documented(CAUSE, "pool_idle_below_limit"));
    fixes
}
