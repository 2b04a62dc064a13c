//! Compares the signals that `explain` and `doctor` list for a verdict with the captures.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use rsttrace_core::event::{Body, Event};

use super::{
    ablation::{Ablation, is_lowered, is_weaker, same_connection, verdict, without_signal},
    captures,
};

/// The events as on a kernel before 6.10 without symbols: functions on the stack have no names, and a reset
/// has no reason.
fn without_symbols(events: &[Event]) -> Ablation {
    let mut rest = events.to_vec();
    for event in &mut rest {
        match &mut event.body {
            Body::ResetSent(it) => {
                it.stack.clear();
                it.reason = None;
            }
            Body::SocketError(it) => it.stack.clear(),
            Body::IpvsEnd(it) => it.stack.clear(),
            Body::ConntrackEnd(it) => it.stack.clear(),
            Body::IpvsServerRemoved(it) => it.stack.clear(),
            Body::NatChainRemoved(it) => it.stack.clear(),
            _ => {}
        }
    }
    Ablation { gone: "kernel_symbols".into(), rest }
}

#[test]
fn no_confidence_is_higher_than_documented_for_a_kernel_without_a_signal() -> Result<()> {
    let mut surer = Vec::new();
    for capture in captures::all()? {
        let events = captures::events(&capture)?;
        let whole = captures::judge(events.clone());
        let ablations = without_signal(&events).into_iter().chain([without_symbols(&events)]);
        for Ablation { gone, rest } in ablations {
            let signal = gone.trim_start_matches("signal ");
            for incident in captures::judge(rest) {
                let doc = &incident.cause.doc;
                let allowed = doc.best_confidence(|need| need.signal() != signal);
                let same = whole
                    .iter()
                    .any(|it| it.cause.id == incident.cause.id && same_connection(it, &incident));
                if same && incident.confidence > allowed {
                    let name = captures::name(&capture);
                    surer.push(format!("{name}: {} without {signal}", verdict(&incident)));
                }
            }
        }
    }
    ensure!(surer.is_empty(), "{surer:#?}");
    Ok(())
}

#[test]
fn every_signal_that_a_verdict_needs_is_documented() -> Result<()> {
    let mut undocumented = BTreeSet::new();
    for capture in captures::all()? {
        let events = captures::events(&capture)?;
        let whole = captures::judge(events.clone());
        let ablations = without_signal(&events).into_iter().chain([without_symbols(&events)]);
        for Ablation { gone, rest } in ablations {
            let signal = gone.trim_start_matches("signal ");
            let found = captures::judge(rest);
            let mut lowered: Vec<_> = whole.iter().filter(|it| is_lowered(it, &found)).collect();
            // A connection without any records has no incident, for any cause.
            lowered.retain(|it| found.iter().any(|found| same_connection(it, found)));
            for incident in lowered {
                let signs = incident.cause.doc.detections.iter();
                let mut needs = signs
                    .filter(|detection| Some(detection.confidence) == incident.confidence)
                    .flat_map(|detection| detection.needs);
                if incident.confidence.is_some() && !needs.any(|need| need.signal() == signal) {
                    undocumented.insert(format!("{} without {signal}", verdict(incident)));
                }
            }
        }
    }
    ensure!(undocumented.is_empty(), "explain does not list these signals: {undocumented:#?}");
    Ok(())
}

#[test]
fn without_kernel_symbols_no_verdict_becomes_another_confident_one() -> Result<()> {
    let mut violations = Vec::new();
    for capture in captures::all()? {
        let events = captures::events(&capture)?;
        let whole = captures::judge(events.clone());
        for incident in captures::judge(without_symbols(&events).rest) {
            let mut of = whole.iter().filter(|whole| same_connection(whole, &incident));
            if !of.clone().any(|whole| is_weaker(&incident, whole)) {
                let whole = of.next().map_or_else(|| "nothing".to_owned(), verdict);
                let name = captures::name(&capture);
                violations.push(format!("{name}: {whole} is {}", verdict(&incident)));
            }
        }
    }
    ensure!(violations.is_empty(), "{violations:#?}");
    Ok(())
}
