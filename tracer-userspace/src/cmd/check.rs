//! `rsttrace check`: what will break on this host, before a connection breaks.

use anyhow::{Context as _, anyhow};
use rsttrace_check::{self, Audit, RuleInput, path};
use rsttrace_host::{Host, view};
use rsttrace_model::host_state::{HostState, Netns};
use rsttrace_schema::json;

use super::{Exit, Failure, stdout};
use crate::{
    cli::{CheckArgs, FailOnFinding, OutputFormat, page_columns},
    filter::parse_netns,
    render::check,
};

/// Reads the host, checks it and prints the findings.
///
/// # Errors
/// [`Failure`] when the host cannot be read at all, when there is no such namespace, or when standard
/// output cannot be written.
pub fn run(args: &CheckArgs) -> Result<Exit, Failure> {
    let mut view = match &args.root {
        Some(root) => view::read_root(root).map_err(|error| Failure {
            exit: Exit::Usage,
            error: anyhow!(error).context(format!("`{}` is not a copy of a host", root.display())),
        })?,
        None => view::read(&Host::new().context("cannot read /proc")?),
    };
    let of = select(&view, &args.netns, args.root.is_none())?;
    let mut findings = rsttrace_check::findings(&RuleInput::new(&view));
    if let Some(of) = of {
        findings.retain(|finding| of.contains(&finding.place.netns));
        view.namespaces.retain(|netns| of.contains(&netns.place.netns));
    }
    let path = args.path.as_ref().map(|spec| path::follow(&view, spec, &args.assume));
    let path = path
        .transpose()
        .map_err(|message| Failure { exit: Exit::Usage, error: anyhow!(message) })?;
    if let Some(path) = &path {
        findings = path.combined_with(findings);
    }
    let audit = Audit { state: &view, findings: &findings, path: path.as_ref() };
    let text = match args.output {
        OutputFormat::Table | OutputFormat::Wide => {
            let wide = args.output == OutputFormat::Wide;
            check::text(&audit, wide, args.color.on_stdout(), page_columns())
        }
        OutputFormat::Json => check::json(&audit).map(|line| json::line(&line) + "\n").collect(),
        OutputFormat::JsonPretty => {
            check::json(&audit).map(|line| json::pretty(&json::line(&line)) + "\n").collect()
        }
    };
    stdout::write(&text)?;
    let found = |wanted: &FailOnFinding| findings.iter().any(|finding| wanted.matches(finding));
    Ok(match &args.fail_on {
        Some(wanted) if found(wanted) => Exit::Found,
        _ => Exit::Fine,
    })
}

/// The inode numbers of the selected namespaces; `None` for all.
fn select(view: &HostState, wanted: &[String], live: bool) -> Result<Option<Vec<u32>>, Failure> {
    if wanted.is_empty() {
        return Ok(None);
    }
    let find = |name: &String| {
        // On the live host any path of a namespace works; a copy of a host only has names.
        let inum = parse_netns(name).ok().filter(|_| live);
        let is = |it: &&Netns| {
            it.place.is_called(name) || inum.is_some_and(|inum| it.place.netns == inum)
        };
        view.namespaces.iter().find(is).map(|netns| netns.place.netns).ok_or_else(|| Failure {
            exit: Exit::Usage,
            error: anyhow!(
                "network namespace `{}` not found, or not permitted to enter it",
                name.escape_debug()
            ),
        })
    };
    wanted.iter().map(find).collect::<Result<_, _>>().map(Some)
}
