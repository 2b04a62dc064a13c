//! Removes evidence: without a piece of its evidence, a verdict stays the same, has a lower confidence, or becomes
//! `unknown`. It never becomes another confident cause.
//!
//! A piece is one event, all events of one kind, or a whole signal, as on a kernel without that signal.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use rsttrace_core::{
    correlator::Correlator,
    event::{Body, ConntrackInvalid, DropReason, Event, Packet, Via},
    history::memory::Memory,
    incident::Incident,
    verdict::{Confidence, Family},
};
use rsttrace_model::flow::Flow;

use super::captures;

/// Causes that may replace another one with confidence: they claim less, and all that they claim was observed.
const LESSER: [(&str, Option<&str>); 7] = [
    // Without the record of a drop or deletion, only the error of the socket is left. That its retries were exhausted is
    // observed; why there was no answer is no longer on record.
    ("retransmission_timeout", None),
    ("user_timeout", None),
    ("keepalive_exhausted", None),
    // The state of the socket shows that it was closed, but not how long it had been idle then.
    ("data_after_close", Some("idle_close_race")),
    // A later segment found no socket, and its close is on record, but not that it left data unread.
    ("socket_gone", Some("close_unread_data")),
    // A later segment found no socket; the error of this socket is on record.
    ("socket_gone", Some("user_timeout")),
    // It is on record that the entry ended because its server was missing, but not that all other entries ended too.
    ("ipvs_server_removed", Some("ipvs_entry_dropped")),
];

/// The stream without a piece of its evidence.
pub struct Ablation {
    pub gone: String,
    pub rest: Vec<Event>,
}

impl Ablation {
    fn new(gone: String, events: &[Event], keep: impl Fn(usize, &Event) -> bool) -> Self {
        let kept = events.iter().enumerate().filter(|(index, event)| keep(*index, event));
        Self { gone, rest: kept.map(|(_, event)| event.clone()).collect() }
    }
}

/// The kind of an event; `None` for events that only frame the stream and are not evidence.
fn kind(event: &Event) -> Option<String> {
    match event.body {
        Body::Session(_)
        | Body::Tick
        | Body::Lost(_)
        | Body::SkippedRuns(_)
        | Body::Unknown { .. } => None,
        ref body => {
            let text = format!("{body:?}");
            Some(text.chars().take_while(|c| c.is_alphanumeric()).collect())
        }
    }
}

fn without_one(events: &[Event]) -> Vec<Ablation> {
    let named = events.iter().enumerate().filter_map(|(at, event)| Some((at, kind(event)?)));
    named
        .map(|(at, kind)| {
            let gone = format!("event {at}, {kind} in netns {}", events[at].netns);
            Ablation::new(gone, events, |index, _| index != at)
        })
        .collect()
}

fn kinds(events: &[Event]) -> Vec<String> {
    let mut kinds: Vec<_> = events.iter().filter_map(kind).collect();
    kinds.sort();
    kinds.dedup();
    kinds
}

fn without_kind(events: &[Event]) -> Vec<Ablation> {
    let without = |gone: String| {
        Ablation::new(format!("every {gone}"), events, |_, it| kind(it).as_ref() != Some(&gone))
    };
    kinds(events).into_iter().map(without).collect()
}

fn without_two_kinds(events: &[Event]) -> Vec<Ablation> {
    let more = without_kind(events).into_iter().flat_map(|one| {
        without_kind(&one.rest).into_iter().map(move |two| Ablation {
            gone: format!("{} and {}", one.gone, two.gone),
            rest: two.rest,
        })
    });
    more.collect()
}

/// Whether an event comes from the hooks of a signal.
fn comes_by(signal: &str, body: &Body) -> bool {
    match body {
        Body::ResetSent(sent) if sent.via == Via::Netfilter => signal.starts_with("firewall_reset"),
        Body::ResetSent(_) => signal == "reset_sent",
        Body::ResetReceived(_) => signal == "reset_received",
        Body::SocketError(_) => signal == "socket_error",
        Body::IpvsEnd(_) => signal == "ipvs_end",
        Body::ConntrackEnd(_) => signal == "conntrack_end",
        Body::ConntrackInvalid(_) => signal == "conntrack_invalid",
        Body::NatChainRemoved(_) => signal == "nat_chain_removed",
        Body::IpvsServerRemoved(_) => signal == "ipvs_server_removed",
        Body::PacketDrop(drop) => match drop.why {
            DropReason::Rejected { .. } => signal.starts_with("firewall_reset"),
            DropReason::Clash { .. } => signal == "conntrack_clash",
            DropReason::NoServer => signal == "ipvs_no_server",
            DropReason::NoDestination => signal == "ipvs_server_removed",
            DropReason::TableFull | DropReason::Netfilter { .. } => signal == "conntrack_full",
        },
        // The ends of entries in it; its drops come by `rule_drop`, and only add to a verdict.
        Body::FilteredFlow(_) => signal == "conntrack_end",
        Body::Session(_)
        | Body::FilterRules(_)
        | Body::RejectingRules(_)
        | Body::IpvsOrphan(_)
        | Body::Netns(_)
        | Body::Owner { .. }
        | Body::Process { .. }
        | Body::Survived { .. }
        | Body::InitialState(_)
        | Body::StateLookup(_)
        | Body::EndedSockets(_)
        | Body::PeerSocket(_)
        | Body::AcceptQueue(_)
        | Body::Lost(_)
        | Body::SkippedRuns(_)
        | Body::Tick
        | Body::Unknown { .. } => false,
    }
}

/// The signals of the session.
fn signals(events: &[Event]) -> Vec<String> {
    let signals = events.iter().find_map(|event| match &event.body {
        Body::Session(session) => {
            // `kernel_symbols` has no events of its own, but adds names to all of them: see `documented`.
            let ids = session.coverage.iter().map(|signal| signal.id.clone());
            Some(ids.filter(|id| id != "kernel_symbols").collect())
        }
        _ => None,
    });
    signals.unwrap_or_default()
}

/// The events as on a kernel without a signal, which is recorded in the session.
pub fn without_signal(events: &[Event]) -> Vec<Ablation> {
    let blinded = |id: String| {
        let mut ablation =
            Ablation::new(format!("signal {id}"), events, |_, it| !comes_by(&id, &it.body));
        for event in &mut ablation.rest {
            match &mut event.body {
                Body::Session(session) => {
                    for signal in session.coverage.iter_mut().filter(|signal| signal.id == id) {
                        signal.way = None;
                        signal.blind = Some("taken away".into());
                    }
                }
                Body::ResetSent(sent) if id == "socket_end" => sent.end = None,
                _ => {}
            }
        }
        ablation
    };
    signals(events).into_iter().map(blinded).collect()
}

/// Every address of an incident's connection.
fn ends(incident: &Incident) -> Vec<SocketAddr> {
    let nat = incident.source_nat.into_iter().chain(incident.destination_nat);
    [incident.source, incident.destination].into_iter().chain(nat).collect()
}

/// Whether two incidents are about one connection, seen from any side of NAT.
pub fn same_connection(one: &Incident, other: &Incident) -> bool {
    let known = ends(one);
    [other.source, other.destination].iter().all(|end| known.contains(end))
}

/// Cause and confidence, such as `linger_zero (observed)`.
pub fn verdict(incident: &Incident) -> String {
    match incident.confidence {
        Some(confidence) => format!("{} ({})", incident.cause.id, confidence.id()),
        None => incident.cause.id.to_owned(),
    }
}

/// Whether `incident` claims no more than `whole` does.
pub fn is_weaker(incident: &Incident, whole: &Incident) -> bool {
    let confident = incident.confidence > Some(Confidence::Inferred);
    let same = incident.cause.id == whole.cause.id && incident.confidence <= whole.confidence;
    let lesser = |&(less, of): &(&str, Option<&str>)| {
        less == incident.cause.id && of.is_none_or(|of| of == whole.cause.id)
    };
    same || !confident || LESSER.iter().any(lesser)
}

/// Whether the verdict on this connection is gone or has a lower confidence.
pub fn is_lowered(whole: &Incident, found: &[Incident]) -> bool {
    !found.iter().any(|incident| {
        same_connection(whole, incident)
            && incident.cause.id == whole.cause.id
            && incident.confidence >= whole.confidence
    })
}

#[test]
fn without_a_piece_of_its_evidence_no_verdict_becomes_another_confident_one() -> Result<()> {
    let mut violations = Vec::new();
    for capture in captures::all()? {
        let events = captures::events(&capture)?;
        let whole = captures::judge(events.clone());
        let pieces =
            [without_one(&events), without_kind(&events), without_signal(&events)].into_iter();
        for Ablation { gone, rest } in pieces.flatten() {
            for incident in captures::judge(rest) {
                let mut of = whole.iter().filter(|whole| same_connection(whole, &incident));
                // One report stands for all unmatched segments of a source; without it, another one does.
                let is_unmatched = incident.confidence.is_none();
                if !is_unmatched && !of.clone().any(|whole| is_weaker(&incident, whole)) {
                    violations.push(format!(
                        "{}: {} without {gone} is {}",
                        captures::name(&capture),
                        of.next().map_or_else(|| "nothing".to_owned(), verdict),
                        verdict(&incident)
                    ));
                }
            }
        }
    }
    ensure!(violations.is_empty(), "{violations:#?}");
    Ok(())
}

/// What a stream without some of its records must not bring: another confident cause, a benign verdict on a connection
/// that broke, or a new statement that something did not happen.
fn unfounded(whole: &[Incident], found: &Incident) -> Option<String> {
    let mut of = whole.iter().filter(|whole| same_connection(whole, found));
    let Some(first) = of.clone().next() else {
        return Some(format!("{} of another connection", verdict(found)));
    };
    if !of.clone().any(|whole| is_weaker(found, whole)) {
        return Some(format!("{} is {}", verdict(first), verdict(found)));
    }
    if found.cause.family == Family::Benign && of.all(|whole| whole.cause.family != Family::Benign)
    {
        return Some(format!("{} is benign", verdict(first)));
    }
    let known = |cause: &str| {
        let same = whole.iter().filter(|whole| same_connection(whole, found));
        same.flat_map(|whole| &whole.ruled_out).any(|it| it.cause == cause)
    };
    let new = found.ruled_out.iter().find(|it| !known(it.cause));
    new.map(|it| format!("{} rules out {}: {}", verdict(found), it.cause, it.because))
}

/// Another loss of the same kind, of a connection that has nothing to do with any other.
fn unrelated(event: &Event) -> Option<Event> {
    let nowhere: SocketAddr = ([192, 0, 2, 1], 1).into();
    let flow = Flow { src: nowhere, dst: nowhere };
    let mut event = event.clone();
    match &mut event.body {
        Body::IpvsEnd(end) => (end.virtual_flow, end.real_flow) = (flow, flow),
        Body::ConntrackEnd(end) => (end.original, end.reply) = (flow, flow),
        Body::ConntrackInvalid(it) => {
            (it.packet.flow, it.original, it.reply) = (flow, flow, flow);
        }
        Body::PacketDrop(drop) => {
            let packet = Packet { flow, ..drop.packet };
            let it = ConntrackInvalid { packet, original: flow, reply: flow, state: 3 };
            event.body = Body::ConntrackInvalid(Box::new(it));
        }
        _ => return None,
    }
    Some(event)
}

/// With a memory of one loss of each kind, each loss is followed by another that displaces it.
#[test]
fn a_forgotten_loss_leaves_no_other_verdict_and_no_statement_that_there_was_none() -> Result<()> {
    let mut violations = Vec::new();
    for capture in captures::all()? {
        let events = captures::events(&capture)?;
        let whole = captures::judge(events.clone());
        let crowded = events.into_iter().flat_map(|event| {
            let other = unrelated(&event);
            [Some(event), other].into_iter().flatten()
        });
        let memory = Memory::with_capacity(1);
        let found = captures::judge_with(Correlator::with_memory(memory), crowded);
        let found = found.iter().filter_map(|it| unfounded(&whole, it));
        violations.extend(found.map(|it| format!("{}: {it}", captures::name(&capture))));
    }
    ensure!(violations.is_empty(), "{violations:#?}");
    Ok(())
}

/// The records of one signal are lost, which is reported within a second.
#[test]
fn lost_records_leave_no_other_verdict_and_no_statement_that_there_were_none() -> Result<()> {
    let mut violations = Vec::new();
    for capture in captures::all()? {
        let events = captures::events(&capture)?;
        let whole = captures::judge(events.clone());
        for signal in signals(&events) {
            let mut rest = Vec::new();
            let mut lost = 0;
            for event in &events {
                let Event { ts, netns, .. } = *event;
                if comes_by(&signal, &event.body) {
                    lost += 1;
                    rest.push(Event { ts, netns, body: Body::Lost(lost) });
                } else {
                    rest.push(event.clone());
                }
            }
            if lost == 0 {
                continue;
            }
            let found = captures::judge(rest);
            let found = found.iter().filter_map(|it| unfounded(&whole, it));
            violations.extend(
                found.map(|it| format!("{} without {signal}: {it}", captures::name(&capture))),
            );
        }
    }
    ensure!(violations.is_empty(), "{violations:#?}");
    Ok(())
}

/// A verdict that no ablation lowers does not depend on its evidence. Some verdicts have two independent pieces: the
/// reset of a destroyed socket and its error both name `tcp_abort`.
#[test]
fn every_verdict_needs_some_piece_of_its_evidence() -> Result<()> {
    let mut needless = Vec::new();
    for capture in captures::all()? {
        let events = captures::events(&capture)?;
        let mut unshaken = captures::judge(events.clone());
        unshaken.retain(|incident| incident.confidence.is_some());
        for pieces in [without_one, without_kind, without_two_kinds] {
            for Ablation { rest, .. } in if unshaken.is_empty() { vec![] } else { pieces(&events) }
            {
                let found = captures::judge(rest);
                unshaken.retain(|whole| !is_lowered(whole, &found));
            }
        }
        needless.extend(
            unshaken.iter().map(|it| format!("{}: {}", captures::name(&capture), verdict(it))),
        );
    }
    ensure!(needless.is_empty(), "no removed piece of evidence lowers these: {needless:#?}");
    Ok(())
}
