//! `rsttrace report FILE`: what happened, told to somebody who was not there.

use std::{
    fs::File,
    io::{self, BufRead, BufReader},
};

use anyhow::{Context as _, anyhow};
use rsttrace_report::{self, Selection, Window, html, json, markdown, report};

use super::{Exit, Failure, say, stdout};
use crate::cli::{ReportArgs, ReportFormat};

/// Reports on a capture or a stream of events.
///
/// # Errors
/// [`Failure`] when the file is neither, or when lines of it were damaged: those are named on standard
/// error and in the report, which tells of the others all the same.
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
    let mut tell = |fault: &str| say(&format!("rsttrace: {name}: {fault}"));
    let report = report(&file, input, selection, &mut tell)
        .with_context(|| format!("cannot read {name}"))?;
    let text = match args.output {
        ReportFormat::Md => markdown::render(&report),
        ReportFormat::Html => html::render(&report),
        ReportFormat::Json => json::render(&report).context("cannot write the report")?,
    };
    stdout::write(&text)?;
    match report.unseen.damaged {
        0 => Ok(Exit::Fine),
        damaged => Err(anyhow!("lines of {name} that cannot be read: {damaged}").into()),
    }
}
