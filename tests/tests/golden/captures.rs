//! Finds the captures and judges them.

use std::{
    fs::{self, File},
    io::BufReader,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use rsttrace_core::{capture::Reader, correlator::Correlator, event::Event, incident::Incident};

/// Every capture of every kernel.
pub fn all() -> Result<Vec<PathBuf>> {
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
    ensure!(!found.is_empty(), "there are no captures");
    Ok(found)
}

/// `6.1/ipvs_idle_expired`.
pub fn name(capture: &Path) -> String {
    let kernel = capture.parent().and_then(Path::file_name).unwrap_or_default();
    let scenario = capture.file_stem().unwrap_or_default();
    format!("{}/{}", kernel.display(), scenario.display())
}

pub fn events(capture: &Path) -> Result<Vec<Event>> {
    let file = File::open(capture).with_context(|| format!("open {}", capture.display()))?;
    let events = Reader::new(BufReader::new(file))?.collect::<Result<_, _>>();
    events.with_context(|| format!("read {}", capture.display()))
}

/// The incidents of a stream of events.
pub fn judge(events: impl IntoIterator<Item = Event>) -> Vec<Incident> {
    judge_with(Correlator::new(), events)
}

/// The incidents of a stream of events, judged by this correlator.
pub fn judge_with(
    mut correlator: Correlator,
    events: impl IntoIterator<Item = Event>,
) -> Vec<Incident> {
    let mut incidents = Vec::new();
    for event in events {
        incidents.extend(correlator.feed(event));
    }
    incidents.extend(correlator.finish());
    incidents
}
