//! `cargo xtask record`: golden captures from real kernels.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result};
use clap::Args;

use crate::{
    build, cmd, kernels, repo,
    vm::{self, Lab, Options},
};

#[derive(Args)]
pub struct Record {
    /// Scenarios, by name or by the start of the name [default: all but `interleaved`, which is large]
    scenarios: Vec<String>,

    /// Kernel series to record on; may be repeated
    #[arg(long = "kernel", value_name = "SERIES", required = true)]
    kernels: Vec<String>,

    #[command(flatten)]
    options: Options,
}

impl Record {
    pub fn run(&self) -> Result<ExitCode> {
        let series = vm::parse_series(&self.kernels)?;
        let programs = vm::guest_programs()?;
        let rsttrace = build::host()?;
        let kernels = kernels::fetch(&series)?;
        let lab = Lab::new(&self.options, &kernels, programs)?;
        let mut complete = true;
        for kernel in &kernels {
            let mut captures = BTreeMap::<String, String>::new();
            let script = format!("exec rsttrace-guest record {}", self.scenarios.join(" "));
            let result = lab.run(kernel, &script, &mut |line| match take(line) {
                Some((scenario, event)) => {
                    let capture = captures.entry(scenario.to_owned()).or_default();
                    capture.push_str(event);
                    capture.push('\n');
                }
                None => eprintln!("{line}"),
            })?;
            if result.exit_code != 0 {
                // The guest has printed the reason above; the other captures are complete.
                eprintln!("a scenario was not recorded on {}", kernel.wanted);
                complete = false;
            }
            let folder = repo::root().join("tests/data").join(kernel.wanted.to_string());
            fs::create_dir_all(&folder)
                .with_context(|| format!("cannot make {}", folder.display()))?;
            for (scenario, capture) in captures {
                write(&folder, &scenario, &capture, &rsttrace)?;
            }
        }
        Ok(if complete { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// `CAPTURE scenario event`
fn take(line: &str) -> Option<(&str, &str)> {
    line.strip_prefix("CAPTURE ")?.split_once(' ')
}

/// Writes a capture and its replay beside it.
pub fn write(folder: &Path, scenario: &str, capture: &str, rsttrace: &Path) -> Result<()> {
    let file = folder.join(format!("{scenario}.cap"));
    fs::write(&file, capture).with_context(|| format!("cannot write {}", file.display()))?;
    let mut replay = Command::new(rsttrace);
    replay.args(["replay", "--all", "-o", "json"]).arg(&file);
    let printed = cmd::output(&mut replay, "the capture does not replay")?;
    // The summary describes the run, not the verdicts.
    let verdicts: String = printed
        .lines()
        .filter(|line| !line.contains("\"dataset\":\"rsttrace.summary\""))
        .map(|line| format!("{line}\n"))
        .collect();
    fs::write(file.with_extension("ndjson"), verdicts)
        .with_context(|| format!("cannot write beside {}", file.display()))?;
    println!("{}", file.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_capture_line_names_its_scenario_and_other_lines_are_not_captures() {
        assert_eq!(take("CAPTURE a {\"ts\":1}"), Some(("a", "{\"ts\":1}")));
        assert_eq!(take("# a: provoked"), None);
    }
}
