//! How long it takes until a connection to a peer that is gone is given up.

use rsttrace_core::fix::FixOwner;
use rsttrace_model::tcp_state;

use super::{Netns, Question, Rule};
use crate::{
    connections::{End, Probing},
    finding::{Finding, Rank, counted, some_do},
    origin, remedies,
};

pub const RULE: Rule = Rule {
    id: "dead_peer",
    causes: &["keepalive_exhausted", "retransmission_timeout", "user_timeout"],
    doc: "A silent connection notices after time + intvl × probes, and never without SO_KEEPALIVE; one with \
          data on the way after tcp_retries2 retransmissions, about 924 s for 15, because keepalive waits \
          for it. TCP_USER_TIMEOUT overrules both.",
    judge,
};

const RETRIES: &str = "net.ipv4.tcp_retries2";
/// RFC 1122, 4.2.3.5: at least 100 s, which are 8 retransmissions.
const FEWEST_RETRIES: u64 = 8;

fn judge(question: &Question<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for netns in question.namespaces() {
        findings.extend(never(question, netns));
        findings.extend(impatient(question, netns));
    }
    findings
}

/// Established connections to other machines that would not notice.
fn never(question: &Question<'_>, netns: &Netns) -> Option<Finding> {
    let ends: Vec<End<'_>> = netns
        .connections
        .iter()
        .flat_map(|list| &list.sockets)
        .filter(|it| it.state == tcp_state::ESTABLISHED && !it.flow.dst.ip().is_loopback())
        .map(|socket| End { netns, socket, held: question.view.held.get(&socket.inode) })
        .collect();
    let off = ends.iter().filter(|end| end.probing() == Probing::Off).count();
    // The rule of the user timeout tells of these.
    let overruled = |end: &&End<'_>| {
        let options = end.held.and_then(|held| held.options);
        options.is_some_and(|options| options.user_timeout_ms > 0)
    };
    let slowest = ends
        .iter()
        .filter(|end| !overruled(end))
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
            "{are} SO_KEEPALIVE off {place}: while idle, a peer that is gone is never noticed"
        ));
    }
    let mut formula = "time + intvl × probes".to_owned();
    if let Some((time, intvl, probes)) = slowest {
        let total = time + intvl * probes;
        parts.push(format!("the slowest keepalive {place} needs {total} s"));
        formula = format!("time + intvl × probes = {time} + {intvl} × {probes} = {total} s");
    }
    Some(
        Finding::new(RULE.id, Rank::Info, &netns.place, parts.join("; "))
            .cause("keepalive_exhausted")
            .formula(formula)
            .owner(FixOwner::Application)
            .source("the sockets' own options, or their timers")
            .connections(ends.iter().filter(|end| end.probing() == Probing::Off).map(|end| {
                format!("{} → {}: {}", end.socket.flow.src, end.socket.flow.dst, end.keepalive())
            })),
    )
}

/// So few retransmissions that a short outage breaks connections.
fn impatient(question: &Question<'_>, netns: &Netns) -> Option<Finding> {
    let retries = netns.number(RETRIES).filter(|retries| *retries < FEWEST_RETRIES)?;
    let reason = format!(
        "a connection {} is given up after {} of data, which an outage of seconds outlives",
        netns.place.describe(),
        counted(usize::try_from(retries).unwrap_or(0), "retransmission"),
    );
    Some(
        Finding::new(RULE.id, Rank::Warn, &netns.place, reason)
            .cause("retransmission_timeout")
            .formula(format!("tcp_retries2 ≥ {FEWEST_RETRIES} (RFC 1122: 100 s); it is {retries}"))
            .owner(FixOwner::Node)
            .source(origin::of(question.view, netns, RETRIES))
            .fix(remedies::by_setting(
                "retransmission_timeout",
                "restore_the_path",
                netns,
                RETRIES,
                15,
            )),
    )
}
