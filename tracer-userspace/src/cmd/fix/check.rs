//! `rsttrace fix --check`: the fixes of the findings of `check`.

use rsttrace_apply::plan::Plan;
use rsttrace_check::{self, CheckFinding, RuleInput};
use rsttrace_core::{causes, fix::Fix};
use rsttrace_host::Host;
use rsttrace_model::host_state::HostState;

use super::{apply_one, plan, print, usage, view};
use crate::{
    cli::{FixArgs, page_width},
    cmd::{Exit, Failure},
    render::fix as out,
};

/// Prints the plans of every finding that has a fix. With `--apply`, applies the first node-level fix.
///
/// # Errors
/// As [`super::run`].
pub fn run(args: &FixArgs) -> Result<Exit, Failure> {
    let host = Host::new().map_err(anyhow::Error::from)?;
    let view = view(args, &host)?;
    let mut findings = rsttrace_check::findings(&RuleInput::new(&view));
    findings.retain(|it| args.netns.is_none_or(|inum| it.place.netns == inum));
    let groups = groups(findings, args.choose.as_deref(), &view, &host);
    if let (Some(id), true) = (&args.choose, groups.is_empty()) {
        return Err(usage(anyhow::anyhow!(
            "no finding on this host has a fix `{}`",
            id.escape_debug()
        )));
    }
    if args.apply {
        let first = groups.iter().find(|(_, plans)| plans.iter().any(Plan::is_node_owned));
        let cause = first.and_then(|(finding, _)| causes::by_id(finding.cause?));
        let plans: Vec<Plan> = groups.into_iter().flat_map(|(_, plans)| plans).collect();
        return apply_one(args, cause, &plans, &host);
    }
    print(
        args,
        || out::findings_text(&groups, args.page.color.on_stdout(), page_width()),
        || out::findings_json(&groups),
    )
}

/// The findings that have a fix. A fix of several findings is listed with the first one only.
fn groups(
    findings: Vec<CheckFinding>,
    choose: Option<&str>,
    view: &HostState,
    host: &Host,
) -> Vec<(CheckFinding, Vec<Plan>)> {
    let mut listed: Vec<Fix> = Vec::new();
    let mut groups = Vec::new();
    for finding in findings {
        let mut plans = Vec::new();
        for fix in &finding.fixes {
            if choose.is_none_or(|id| fix.id == id) && !listed.contains(fix) {
                listed.push(fix.clone());
                let why = format!("for the finding {} of rsttrace check", finding.rule);
                plans.push(plan(fix.clone(), &why, view, host));
            }
        }
        if !plans.is_empty() {
            groups.push((finding, plans));
        }
    }
    groups
}
