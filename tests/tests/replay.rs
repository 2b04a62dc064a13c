//! Golden captures of real kernels, replayed without root: the verdicts must stay what they were when
//! somebody read them (`cargo xtask record`).

use std::{
    fs::{self, File},
    io::BufReader,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use rsttrace::{capture::Reader, correlator::Correlator, out::json};

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

fn replay(capture: &Path) -> Result<String> {
    let mut correlator = Correlator::new();
    let mut lines = String::new();
    let mut print = |incidents: Vec<rsttrace::incident::Incident>| {
        for incident in &incidents {
            lines.push_str(&json::incident(incident));
            lines.push('\n');
        }
    };
    for event in Reader::new(BufReader::new(File::open(capture)?))? {
        print(correlator.feed(event?));
    }
    print(correlator.finish());
    Ok(lines)
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
        if replay(capture)? != expected {
            differing.push(capture.display().to_string());
        }
    }
    ensure!(differing.is_empty(), "other verdicts than the golden ones: {differing:#?}");
    println!("{} captures", captures.len());
    Ok(())
}
