//! What `explain` and `doctor` say of the signals that a verdict needs, held against the captures.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use rsttrace_core::event::{Body, Event};

use super::{
    ablation::{Ablation, is_lowered, is_weaker, same_connection, told, without_signal},
    captures,
};

/// As on a kernel before 6.10 that shows no symbols: functions on the stack have no names, and a reset says
/// nothing of its reason.
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
            _ => {}
        }
    }
    Ablation { gone: "kernel_symbols".into(), rest }
}

#[test]
fn no_verdict_is_surer_than_documented_for_a_kernel_that_lacks_a_signal() -> Result<()> {
    let mut surer = Vec::new();
    for capture in captures::all()? {
        let events = captures::events(&capture)?;
        let whole = captures::judge(events.clone());
        let ablations = without_signal(&events).into_iter().chain([without_symbols(&events)]);
        for Ablation { gone, rest } in ablations {
            let signal = gone.trim_start_matches("signal ");
            for incident in captures::judge(rest) {
                let doc = &incident.cause.doc;
                let allowed = doc.best(|need| need.signal() != signal);
                let same = whole
                    .iter()
                    .any(|it| it.cause.id == incident.cause.id && same_connection(it, &incident));
                if same && incident.confidence > allowed {
                    let name = captures::name(&capture);
                    surer.push(format!("{name}: {} without {signal}", told(&incident)));
                }
            }
        }
    }
    ensure!(surer.is_empty(), "{surer:#?}");
    Ok(())
}

#[test]
fn every_signal_that_a_verdict_cannot_do_without_is_documented() -> Result<()> {
    let mut silent = BTreeSet::new();
    for capture in captures::all()? {
        let events = captures::events(&capture)?;
        let whole = captures::judge(events.clone());
        let ablations = without_signal(&events).into_iter().chain([without_symbols(&events)]);
        for Ablation { gone, rest } in ablations {
            let signal = gone.trim_start_matches("signal ");
            let found = captures::judge(rest);
            let mut lowered: Vec<_> = whole.iter().filter(|it| is_lowered(it, &found)).collect();
            // Without any of its records a connection has no incident, whatever its cause.
            lowered.retain(|it| found.iter().any(|found| same_connection(it, found)));
            for incident in lowered {
                let signs = incident.cause.doc.signs.iter();
                let mut needs = signs
                    .filter(|sign| Some(sign.confidence) == incident.confidence)
                    .flat_map(|sign| sign.needs);
                if incident.confidence.is_some() && !needs.any(|need| need.signal() == signal) {
                    silent.insert(format!("{} without {signal}", told(incident)));
                }
            }
        }
    }
    ensure!(silent.is_empty(), "explain does not tell that these are less sure: {silent:#?}");
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
                let whole = of.next().map_or_else(|| "nothing".to_owned(), told);
                let name = captures::name(&capture);
                violations.push(format!("{name}: {whole} is {}", told(&incident)));
            }
        }
    }
    ensure!(violations.is_empty(), "{violations:#?}");
    Ok(())
}
