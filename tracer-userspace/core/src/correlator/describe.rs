//! Makes the incident that the outputs show from a verdict and its evidence.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use rsttrace_model::{
    conntrack,
    errno::{ETIMEDOUT, errno_text},
    flow::Flow,
    ipvs,
    netns::{NetnsReach, Place},
    tcp_state,
};

use super::{
    event_id::event_id,
    owners::{Ends, Owners, ends},
};
use crate::{
    causes::{
        self,
        cause::{Cause, Facts},
    },
    event::{ResetSent, Via},
    evidence::Evidence,
    incident::{Action, ConntrackFacts, Incident, IpvsFacts, Rst, Side, Victim},
    verdict::{Family, Finding, RuledOut, Verdict},
};

/// The address where none is known.
const NOWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

pub fn incident(
    evidence: &Evidence<'_>,
    cause: &'static Cause,
    verdict: Verdict,
    owners: &Owners,
) -> Incident {
    let case = evidence.case;
    let nowhere = Flow { src: NOWHERE, dst: NOWHERE };
    let client = evidence.client_view().unwrap_or(nowhere);
    let server = evidence.server_view().unwrap_or(client);
    let wall_ns = i64::try_from(case.opened)
        .unwrap_or(i64::MAX)
        .saturating_add(evidence.session.wall_offset_ns);
    let victim = evidence.victim();
    let idle_s = evidence.idle_s();
    let action = action(evidence, cause);
    let mut findings = verdict.findings;
    findings.extend(record_findings(evidence));
    findings.truncate(MAX_FINDINGS);
    let side = |address| side_of(address, client, server);
    let Ends { owner, peer } = ends(evidence, cause.family, owners, side);
    let (owner_side, owner) = owner.unzip();
    let mut namespaces = evidence.namespaces();
    namespaces.sort_unstable();
    namespaces.dedup();
    Incident {
        event_id: event_id(&evidence.session.boot_id, case.netns, client, case.opened, wall_ns),
        sequence: 0,
        opened: case.opened,
        wall_ns,
        cause,
        confidence: verdict.confidence,
        follows: None,
        source: client.src,
        destination: client.dst,
        source_nat: (server.src != client.src).then_some(server.src),
        destination_nat: (server.dst != client.dst).then_some(server.dst),
        victim: victim_side(evidence, client, server),
        netns: victim.map_or(case.netns, |(netns, _, _)| netns),
        action,
        errno: evidence.errno(),
        rst: rst(evidence, cause),
        idle_s,
        keepalive: victim
            .map(|(_, _, socket)| socket)
            .filter(|socket| socket.is_connection())
            .map(|socket| socket.keepalive),
        ipvs: ipvs(evidence, cause),
        conntrack: conntrack(evidence, cause),
        owner,
        owner_side,
        peer,
        namespaces,
        hostname: evidence.session.hostname.clone(),
        what: what(action, cause, idle_s),
        why: verdict.why,
        evidence: findings,
        ruled_out: causes::ALL
            .iter()
            .filter(|other| other.id != cause.id && cause.family != Family::Benign)
            .filter_map(|other| {
                let because = (other.rule_out)(evidence)?;
                Some(RuledOut { cause: other.id, because })
            })
            .collect(),
        fixes: (cause.fixes)(evidence),
        not_fixes: (cause.not_fixes)(evidence),
        blind_spots: blind_spots(evidence, cause),
        prove: verdict.prove,
        lost_events: 0,
    }
}

/// Findings of an incident. More findings add nothing for a reader, and a line must stay below 12 KiB.
const MAX_FINDINGS: usize = 12;

fn blind_spots(evidence: &Evidence<'_>, cause: &Cause) -> Vec<String> {
    let mut spots = evidence.session.blind_spots();
    if cause.family == Family::Keepalive && evidence.drops().is_empty() {
        spots.extend(evidence.session.unseen_drops().map(str::to_owned));
    }
    spots
}

fn what(action: Action, cause: &Cause, idle_s: Option<f64>) -> String {
    let idle_matters = !matches!(cause.family, Family::Benign | Family::Application);
    let idle = match idle_s {
        Some(s) if s >= 1.0 && idle_matters => format!(" after {s:.0} s idle"),
        _ => String::new(),
    };
    match action {
        Action::Reset => format!("reset{idle}"),
        Action::Timeout => "timed out".into(),
        Action::Drop => cause.opens_on_drop.map_or("lost a packet", |report| report.what).into(),
        Action::Error => "failed".into(),
    }
}

fn action(evidence: &Evidence<'_>, cause: &Cause) -> Action {
    let case = evidence.case;
    let timed_out = evidence.timed_out().is_some();
    if let Some(report) = cause.opens_on_drop
        && case.sent.is_empty()
        && case.received.is_empty()
    {
        let waited = timed_out && report.unless_timed_out;
        return if case.drops.is_empty() || waited { Action::Timeout } else { Action::Drop };
    }
    if timed_out {
        return Action::Timeout;
    }
    if !case.sent.is_empty() || !case.received.is_empty() {
        return Action::Reset;
    }
    match evidence.error().map(|at| at.value.socket.err) {
        Some(ETIMEDOUT) => Action::Timeout,
        _ => Action::Error,
    }
}

fn rst(evidence: &Evidence<'_>, cause: &Cause) -> Rst {
    // After a timeout only the reset that the timer itself sent counts. Resets that answer the peer
    // later are effects.
    let (sent, received) = match evidence.timed_out() {
        Some(_) => (evidence.active(), None),
        None => (evidence.sent(), evidence.received()),
    };
    let origin = match sent {
        Some(at) if at.value.via == Via::Netfilter => Some("netfilter"),
        Some(at) if at.value.trigger.is_none() => Some("local_socket"),
        Some(at) => match &at.value.socket {
            Some(socket) if socket.state != tcp_state::LISTEN => Some("local_socket"),
            _ => Some("local_stack"),
        },
        None if received.is_none() => Some("none"),
        None => cause.unseen_origin.or_else(|| evidence.sees_every_reset().then_some("remote")),
    };
    let direction = match (received, sent) {
        (Some(_), _) => "received",
        (None, Some(_)) => "sent",
        (None, None) => "none",
    };
    let reason = sent.and_then(|at| at.value.reason.as_deref()).map(str::to_owned);
    Rst { direction, origin, reason }
}

/// The end to which an address belongs, on either side of NAT.
fn side_of(address: SocketAddr, client: Flow, server: Flow) -> Option<Side> {
    if address == client.src || address == server.src {
        Some(Side::Source)
    } else if address == client.dst || address == server.dst {
        Some(Side::Destination)
    } else {
        None
    }
}

fn victim_side(evidence: &Evidence<'_>, client: Flow, server: Flow) -> Victim {
    // No process holds an orphan.
    let mut victims: Vec<Side> = evidence
        .victims()
        .filter(|(_, _, socket)| !socket.dead)
        .filter_map(|(_, _, socket)| side_of(socket.flow.src, client, server))
        .collect();
    if victims.is_empty() {
        // Without a victim on this host it is the end that the reset was sent to or whose packet
        // was dropped.
        let target = evidence
            .sent()
            .and_then(|at| at.value.flow())
            .map(|flow| flow.dst)
            .or_else(|| evidence.case.drops.first().map(|at| at.value.packet.flow.src));
        victims.extend(target.and_then(|address| side_of(address, client, server)));
    }
    match (victims.contains(&Side::Source), victims.contains(&Side::Destination)) {
        (true, true) => Victim::Both,
        (true, false) => Victim::Source,
        (false, true) => Victim::Destination,
        (false, false) => Victim::Unknown,
    }
}

fn ipvs(evidence: &Evidence<'_>, cause: &Cause) -> Option<IpvsFacts> {
    if !matches!(cause.facts, Facts::Ipvs) {
        return None;
    }
    if let Some((_, end)) = evidence.ipvs() {
        return Some(IpvsFacts {
            state: Some(ipvs::state_name(end.state)),
            timeout_s: Some(end.timeout_s),
        });
    }
    let netns = evidence.balanced()?.netns;
    let timeout_s = evidence.host(netns)?.ipvs.as_ref()?.timeout_tcp_s.map(f64::from);
    Some(IpvsFacts { state: None, timeout_s })
}

fn conntrack(evidence: &Evidence<'_>, cause: &Cause) -> Option<ConntrackFacts> {
    let Facts::Conntrack { limit } = cause.facts else {
        return None;
    };
    let lost = evidence.conntrack();
    let netns = lost
        .map(|(loss, _)| loss.netns)
        .or_else(|| evidence.translated().and_then(|translated| translated.netns))
        .or_else(|| evidence.drops().first().map(|(loss, _)| loss.netns))?;
    let table = evidence.host(netns).and_then(|host| host.conntrack.as_ref());
    let limit = limit(evidence);
    Some(ConntrackFacts {
        state: lost.map(|(_, end)| conntrack::state_name(end.state)),
        limit: limit.map(|(name, _)| name),
        limit_s: limit.map(|(_, value)| f64::from(value)),
        deleted_by: lost.filter(|(_, end)| end.portid != 0).map(|(_, end)| end.task.comm.clone()),
        count: table.and_then(|table| table.count),
        max: table.and_then(|table| table.max),
    })
}

/// The sentence for a reset that was sent in a namespace.
fn sent_summary(sent: &ResetSent, place: &Place) -> String {
    let flow = sent.flow().map_or(String::new(), |flow| format!(" {flow}"));
    let reason = sent.reason.as_deref().map_or(String::new(), |reason| format!(" ({reason})"));
    let rst = format!("RST{flow}{reason}");
    let answered = sent.trigger.map(|trigger| segment(trigger.payload));
    let answering = answered.as_ref().map_or(String::new(), |it| format!(", in answer to {it}"));
    let stack = match place.reach {
        NetnsReach::Process(_) => format!("the TCP stack {}", place.describe()),
        _ => format!("{}'s TCP stack", place.name()),
    };
    match (&sent.socket, answered) {
        _ if sent.via == Via::Netfilter => {
            format!("a firewall rule {} sent a {rst}{answering}", place.describe())
        }
        (None, Some(segment)) => format!("{stack} sent a {rst}: no matching socket for {segment}"),
        (None, None) => format!("{stack} sent a {rst}: no matching socket"),
        (Some(socket), Some(_)) => {
            let state = tcp_state::name(socket.state);
            format!("{stack} sent a {rst} for a socket in state {state}{answering}")
        }
        (Some(_), None) => format!("the socket {} sent a {rst}", place.describe()),
    }
}

/// "a 10-byte segment".
fn segment(payload: u32) -> String {
    match payload {
        0 => "a segment without payload".into(),
        // Eight, eleven, eighteen and eighty take "an".
        8
        | 11
        | 18
        | 80..=89
        | 800..=899
        | 8000..=8999
        | 11_000..=11_999
        | 18_000..=18_999
        | 80_000..=89_999 => {
            format!("an {payload}-byte segment")
        }
        _ => format!("a {payload}-byte segment"),
    }
}

/// The records as findings, oldest first.
fn record_findings(evidence: &Evidence<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for at in &evidence.case.sent {
        let summary = sent_summary(&at.value, &evidence.place(at.netns));
        findings.push(Finding { kind: "reset_sent", ts: at.ts, summary });
    }
    for at in &evidence.case.received {
        let socket = &at.value.socket;
        findings.push(Finding {
            kind: "reset_received",
            ts: at.ts,
            summary: format!(
                "socket {} {} received a RST in state {}",
                socket.flow.src,
                evidence.place(at.netns).describe(),
                tcp_state::name(socket.state)
            ),
        });
    }
    for at in &evidence.case.errors {
        let socket = &at.value.socket;
        let name = errno_text(socket.err);
        findings.push(Finding {
            kind: "socket_error",
            ts: at.ts,
            summary: format!(
                "socket {} {} failed with {name}",
                socket.flow.src,
                evidence.place(at.netns).describe()
            ),
        });
    }
    findings.sort_by_key(|finding| finding.ts);
    findings
}
