//! How long a connection takes to detect a dead peer.

use rsttrace_core::fix::FixOwner;
use rsttrace_model::tcp_state;

use super::{Netns, Rule, RuleInput};
use crate::{
    connections::{End, Probing},
    finding::{CheckFinding, Rank, counted, some_do},
    origin, remedies,
};

pub const RULE: Rule = Rule {
    id: "dead_peer",
    causes: &["keepalive_exhausted", "retransmission_timeout", "user_timeout"],
    doc: "An idle connection detects a dead peer after time + intvl × probes, and never without \
          SO_KEEPALIVE. A connection with data in flight detects it after tcp_retries2 retransmissions, about \
          924 s for 15, because keepalive pauses meanwhile. TCP_USER_TIMEOUT overrides both.",
    judge,
};

const RETRIES: &str = "net.ipv4.tcp_retries2";
/// RFC 1122, 4.2.3.5: at least 100 s, which are 8 retransmissions.
const FEWEST_RETRIES: u64 = 8;

fn judge(input: &RuleInput<'_>) -> Vec<CheckFinding> {
    let mut findings = Vec::new();
    for netns in input.namespaces() {
        findings.extend(slow_or_never(input, netns));
        findings.extend(too_few_retries(input, netns));
    }
    findings
}

/// Established connections to other addresses than loopback that detect a dead peer late or never.
fn slow_or_never(input: &RuleInput<'_>, netns: &Netns) -> Option<CheckFinding> {
    let ends: Vec<End<'_>> = netns
        .connections
        .iter()
        .flat_map(|list| &list.sockets)
        .filter(|it| it.state == tcp_state::ESTABLISHED && !it.flow.dst.ip().is_loopback())
        .map(|socket| End { netns, socket, held: input.state.held.get(&socket.inode) })
        .collect();
    let off = ends.iter().filter(|end| end.probing() == Probing::Off).count();
    // The rule `user_timeout` reports these.
    let has_user_timeout = |end: &&End<'_>| {
        let options = end.held.and_then(|held| held.options);
        options.is_some_and(|options| options.user_timeout_ms > 0)
    };
    let slowest = ends
        .iter()
        .filter(|end| !has_user_timeout(end))
        .filter_map(|end| match end.probing() {
            Probing::Every { time_s, intvl_s, probes } => {
                Some((time_s, intvl_s, u64::from(probes)))
            }
            _ => None,
        })
        .max_by_key(|(time, intvl, probes)| time + intvl * probes);
    if off == 0 && slowest.is_none_or(|(time, intvl, probes)| time + intvl * probes <= 3600) {
        return None;
    }
    let place = netns.place.describe();
    let mut parts = Vec::new();
    if off > 0 {
        let are = some_do(off, ends.len(), "established connection", ["has", "have"]);
        parts.push(format!(
            "{are} SO_KEEPALIVE off {place}: while idle, a dead peer is never detected"
        ));
    }
    let mut formula = "time + intvl × probes".to_owned();
    if let Some((time, intvl, probes)) = slowest {
        let total = time + intvl * probes;
        parts.push(format!("the slowest keepalive {place} detects a dead peer after {total} s"));
        formula = format!("time + intvl × probes = {time} + {intvl} × {probes} = {total} s");
    }
    Some(
        CheckFinding::new(RULE.id, Rank::Info, &netns.place, parts.join("; "))
            .cause("keepalive_exhausted")
            .formula(formula)
            .owner(FixOwner::Application)
            .source("the options of the sockets, or their timers")
            .connections(ends.iter().filter(|end| end.probing() == Probing::Off).map(|end| {
                format!("{} → {}: {}", end.socket.flow.src, end.socket.flow.dst, end.keepalive())
            })),
    )
}

/// So few retransmissions that a short outage breaks connections.
fn too_few_retries(input: &RuleInput<'_>, netns: &Netns) -> Option<CheckFinding> {
    let retries = netns.number(RETRIES).filter(|retries| *retries < FEWEST_RETRIES)?;
    let reason = format!(
        "a connection {} times out after {} of data: an outage of seconds can break it",
        netns.place.describe(),
        counted(usize::try_from(retries).unwrap_or(0), "retransmission"),
    );
    Some(
        CheckFinding::new(RULE.id, Rank::Warn, &netns.place, reason)
            .cause("retransmission_timeout")
            .formula(format!("tcp_retries2 ≥ {FEWEST_RETRIES} (RFC 1122: 100 s); now {retries}"))
            .owner(FixOwner::Node)
            .source(origin::of(input.state, netns, RETRIES))
            .fix(remedies::by_setting(
                "retransmission_timeout",
                "retry_longer",
                netns,
                RETRIES,
                15,
            )),
    )
}
