//! Records captures of scenarios, which golden tests replay.

use std::{cell::OnceCell, fs, path::Path, thread};

use anyhow::{Context, Result, anyhow};

use crate::{
    guest::Guest,
    run::{GRACE, LATE_MODULES, ended_well, one_line, play},
    scenarios::{Scenario, TracerUse},
    tracer::Tracer,
};

/// Runs each scenario under `rsttrace record` and prints the lines of its capture, each after `CAPTURE` and
/// the scenario's name. Returns false if a scenario failed.
pub fn record(chosen: &[&'static Scenario], program: &Path) -> Result<bool> {
    let guest = Guest::probe()?;
    for (module, _) in LATE_MODULES {
        guest.load(module)?;
    }
    let mut all_provoked = true;
    for &scenario in chosen {
        if let Some(fact) = guest.missing(scenario.needs) {
            eprintln!("# {}: skipped, {fact}", scenario.name);
            continue;
        }
        let file = format!("/tmp/{}.cap", scenario.name);
        let arguments = [&["record", &file], scenario.tracer.arguments()].concat();
        let tracer = OnceCell::new();
        let start = || {
            let started = Tracer::start(program, &arguments)?;
            tracer.set(started).map_err(|_| anyhow!("the scenario started a second tracer"))
        };
        if scenario.tracer != TracerUse::Late {
            start()?;
        }
        let played = play(scenario, &start);
        thread::sleep(GRACE);
        let recorder = tracer.into_inner().context("the scenario did not start its tracer")?;
        ended_well(&recorder.stop()?)?;
        if let Err(error) = &played.observed {
            eprintln!("# {}: {}", scenario.name, one_line(error));
            all_provoked = false;
            continue;
        }
        let capture = fs::read_to_string(&file).with_context(|| format!("read {file}"))?;
        capture.lines().for_each(|line| println!("CAPTURE {} {line}", scenario.name));
    }
    Ok(all_provoked)
}
