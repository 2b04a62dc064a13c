//! Golden captures of real kernels, replayed without root: the verdicts must stay what they were when
//! somebody read them (`cargo xtask record`).

use std::{
    fs::{self, File},
    io::BufReader,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use rsttrace::{capture::Reader, correlator::Correlator, incident::Incident, out::json};

fn captures() -> Result<Vec<PathBuf>> {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("data");
    let mut found = Vec::new();
    for kernel in fs::read_dir(&data).with_context(|| format!("read {}", data.display()))? {
        for file in fs::read_dir(kernel?.path())? {
            let path = file?.path();
            if path.extension().is_some_and(|extension| extension == "cap") {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

fn replay(capture: &Path) -> Result<Vec<Incident>> {
    let mut correlator = Correlator::new();
    let mut incidents = Vec::new();
    for event in Reader::new(BufReader::new(File::open(capture)?))? {
        incidents.extend(correlator.feed(event?));
    }
    incidents.extend(correlator.finish());
    Ok(incidents)
}

fn lines(incidents: &[Incident]) -> String {
    incidents.iter().map(|incident| json::incident(incident) + "\n").collect()
}

#[test]
fn every_golden_capture_replays_to_the_bytes_that_were_reviewed() -> Result<()> {
    let captures = captures()?;
    ensure!(!captures.is_empty(), "there are no captures");
    let mut differing = Vec::new();
    for capture in &captures {
        let golden = capture.with_extension("ndjson");
        let expected =
            fs::read_to_string(&golden).with_context(|| format!("read {}", golden.display()))?;
        if lines(&replay(capture)?) != expected {
            differing.push(capture.display().to_string());
        }
    }
    ensure!(differing.is_empty(), "other verdicts than the golden ones: {differing:#?}");
    println!("{} captures", captures.len());
    Ok(())
}

#[test]
fn every_verdict_and_fix_of_the_captures_is_a_documented_one() -> Result<()> {
    for capture in captures()? {
        for incident in replay(&capture)? {
            let (cause, doc) = (incident.cause, &incident.cause.doc);
            let told = |id: &str| doc.fixes.iter().any(|remedy| remedy.id == id);
            let known = doc.signs.iter().any(|sign| Some(sign.confidence) == incident.confidence);
            ensure!(
                known || doc.signs.is_empty() && incident.confidence.is_none(),
                "{}: explain does not know that {cause:?} can be {:?}",
                capture.display(),
                incident.confidence
            );
            let fixes: Vec<_> = incident.fixes.iter().map(|fix| fix.id).collect();
            ensure!(
                fixes.iter().all(|id| told(id)),
                "{}: explain does not tell all of {fixes:?} for {cause:?}",
                capture.display(),
            );
        }
    }
    Ok(())
}
