//! `rsttrace report FILE`: a report from a capture or an event stream.

use std::{
    fs::File,
    io::{self, BufRead, BufReader},
};

use anyhow::{Context as _, anyhow};
use rsttrace_report::{self, Selection, Window, html, json, markdown, report};

use super::{Exit, Failure, say, stdout};
use crate::cli::{ReportArgs, ReportFormat};

/// Reports on a capture or an event stream.
///
/// # Errors
/// [`Failure`] when the file is neither, or has damaged lines. Damaged lines are listed on standard error and
/// in the report, which covers the other lines.
pub fn run(args: &ReportArgs) -> Result<Exit, Failure> {
    let name = args.file.display().to_string();
    let input: Box<dyn BufRead> = match name.as_str() {
        "-" => Box::new(io::stdin().lock()),
        _ => {
            let file = File::open(&args.file).with_context(|| format!("cannot open {name}"))?;
            Box::new(BufReader::new(file))
        }
    };
    let file = match (name.as_str(), args.file.file_name()) {
        ("-", _) => "standard input".into(),
        (_, Some(file)) => file.to_string_lossy().into_owned(),
        (name, None) => name.to_owned(),
    };
    let selection = Selection {
        window: Window { since: args.since, until: args.until },
        causes: args.cause.clone(),
    };
    let mut warn = |fault: &str| say(&format!("rsttrace: {name}: {fault}"));
    let report = report(&file, input, selection, &mut warn)
        .with_context(|| format!("cannot read {name}"))?;
    let text = match args.output {
        ReportFormat::Md => markdown::render(&report),
        ReportFormat::Html => html::render(&report),
        ReportFormat::Json => json::render(&report).context("cannot write the report")?,
    };
    stdout::write(&text)?;
    match report.unseen.damaged {
        0 => Ok(Exit::Fine),
        damaged => Err(anyhow!("damaged lines in {name}: {damaged}").into()),
    }
}
