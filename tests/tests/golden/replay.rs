//! The verdicts must stay as they were reviewed.

use std::{env, fs, path::Path};

use anyhow::{Context as _, Result, ensure};
use rsttrace_core::verdict::{Confidence, Family};
use rsttrace_schema::json;

use super::{
    captures,
    difference::{Difference, between},
};

fn replay(capture: &Path) -> Result<String> {
    let incidents = captures::judge(captures::events(capture)?);
    Ok(incidents.iter().map(|incident| json::incident(incident) + "\n").collect())
}

/// Set to have the golden files written instead of compared; read `git diff` before you commit them.
const UPDATE: &str = "RSTTRACE_UPDATE_GOLDENS";

#[test]
fn every_golden_capture_replays_to_the_bytes_that_were_reviewed() -> Result<()> {
    let (mut text, mut verdict) = (Vec::new(), Vec::new());
    let captures = captures::all()?;
    for capture in &captures {
        let golden = capture.with_extension("ndjson");
        let expected =
            fs::read_to_string(&golden).with_context(|| format!("read {}", golden.display()))?;
        let replayed = replay(capture)?;
        match between(&expected, &replayed) {
            Difference::None => continue,
            Difference::Text => text.push(captures::name(capture)),
            Difference::Verdict => verdict.push(captures::name(capture)),
        }
        if env::var_os(UPDATE).is_some() {
            fs::write(&golden, replayed).with_context(|| format!("write {}", golden.display()))?;
        }
    }
    println!(
        "{} captures; {} differ in sentences only, {} in the verdict",
        captures.len(),
        text.len(),
        verdict.len()
    );
    ensure!(
        env::var_os(UPDATE).is_some() || text.is_empty() && verdict.is_empty(),
        "the replays differ from the golden files; in the verdict: {verdict:#?}; in sentences only: \
         {text:#?}; {UPDATE}=1 writes them anew, to be reviewed"
    );
    Ok(())
}

#[test]
fn every_verdict_and_fix_of_the_captures_is_a_documented_one() -> Result<()> {
    for capture in captures::all()? {
        let name = captures::name(&capture);
        for incident in captures::judge(captures::events(&capture)?) {
            let (cause, doc) = (incident.cause, &incident.cause.doc);
            let is_documented = |id: &str| doc.fixes.iter().any(|remedy| remedy.id == id);
            let known = doc
                .detections
                .iter()
                .any(|detection| Some(detection.confidence) == incident.confidence);
            ensure!(
                known || doc.detections.is_empty() && incident.confidence.is_none(),
                "{name}: explain does not document that {cause:?} can be {:?}",
                incident.confidence
            );
            let open = incident.confidence.is_none_or(|it| it == Confidence::Inferred)
                || incident.cause.family == Family::Remote;
            ensure!(!open || incident.prove.is_some(), "{name}: no step to prove {cause:?}");
            let fixes: Vec<_> = incident.fixes.iter().map(|fix| fix.id).collect();
            ensure!(
                fixes.iter().all(|id| is_documented(id)),
                "{name}: explain does not list all of {fixes:?} for {cause:?}",
            );
        }
    }
    Ok(())
}

/// The lowest address of the kernel's half (Documentation/arch/x86/x86_64/mm.rst).
const KERNEL_HALF: u64 = 0xffff_8000_0000_0000;

#[test]
fn no_golden_capture_holds_a_kernel_address() -> Result<()> {
    for capture in captures::all()? {
        let text = fs::read_to_string(&capture)?;
        let numbers = text.split(|c: char| !c.is_ascii_digit()).filter_map(|it| it.parse().ok());
        // The last tick has the largest possible time.
        let found: Vec<u64> =
            numbers.filter(|number| (KERNEL_HALF..u64::MAX).contains(number)).collect();
        ensure!(found.is_empty(), "{}: {found:x?}", captures::name(&capture));
    }
    Ok(())
}
