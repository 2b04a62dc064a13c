//! `rsttrace fix`: the plan for a cause or an incident, applied or undone on request.

mod check;
mod incident;
mod prompt;
mod undo;

use std::io::{self, IsTerminal as _, stdin};

use anyhow::anyhow;
use incident::Selected;
use jiff::Timestamp;
use rsttrace_apply::{
    journal::{About, Item, Journal},
    live::Live,
    plan::Plan,
    run::{Applied, apply},
    store::Store,
};
use rsttrace_core::{
    causes::{self, cause::Cause, fix_context::FixContext},
    fix::Fix,
};
use rsttrace_host::{Host, view};
use rsttrace_model::host_state::HostState;
use rsttrace_schema::json;
use undo::is_still_set;

use super::{Exit, Failure, say, stdout};
use crate::{
    cli::{FixArgs, PageFormat, page_width},
    render::{fix as out, fix::Advised, profile},
};

/// Prints the plan. With `--apply`, applies one fix.
///
/// # Errors
/// [`Failure`] when the input cannot be read, the host cannot be changed, or standard output cannot be
/// written.
pub fn run(args: &FixArgs) -> Result<Exit, Failure> {
    if args.list {
        return undo::list(args);
    }
    if args.undo.is_some() {
        return undo::undo(args);
    }
    if args.profile.is_some() {
        return profile(args);
    }
    if args.check {
        return check::run(args);
    }
    let selected = match &args.from {
        Some(file) => incident::select(file, args.event.as_deref())?,
        None => Selected::default(),
    };
    let named = args.cause.as_deref().and_then(causes::by_id);
    let cause = selected.cause.or(named).ok_or_else(|| anyhow!("no cause given"))?;
    let host = Host::new().map_err(anyhow::Error::from)?;
    if let Some(other) = selected.host.as_deref().filter(|name| *name != host.hostname()) {
        say(&format!(
            "rsttrace: the incident is from host {other:?}, but this host is {:?}; the values below are \
             computed from this host",
            host.hostname()
        ));
    }
    let view = view(args, &host)?;
    let context = FixContext {
        netns: args.netns,
        idle_s: args.idle.map(|idle| idle.as_secs_f64()),
        failed: selected.connection,
        ..FixContext::of(&view)
    };
    let plans = plans(args, cause, &context, &host)?;
    if args.apply {
        return apply_one(args, Some(cause), &plans, &host);
    }
    let snippet = args.client.map(|client| Advised::new(client.0, context.shortest_limit_s()));
    print(
        args,
        || out::text(cause, &plans, snippet.as_ref(), args.page.color.on_stdout(), page_width()),
        || out::json(cause, &plans, snippet.as_ref()),
    )
}

/// Reviews the settings of the article, line by line.
fn profile(args: &FixArgs) -> Result<Exit, Failure> {
    let host = Host::new().map_err(anyhow::Error::from)?;
    let view = view(args, &host)?;
    let context = FixContext { netns: args.netns, ..FixContext::of(&view) };
    print(
        args,
        || profile::text(&context, args.page.color.on_stdout(), page_width()),
        || profile::json(&context),
    )
}

fn view(args: &FixArgs, host: &Host) -> Result<HostState, Failure> {
    let view = view::read(host);
    match args.netns.filter(|inum| view.netns(*inum).is_none()) {
        Some(inum) => {
            Err(anyhow!("network namespace {inum} not found, or not permitted to enter it").into())
        }
        None => Ok(view),
    }
}

/// Prints a page in the requested format.
fn print(
    args: &FixArgs,
    text: impl FnOnce() -> String,
    json: impl FnOnce() -> serde_json::Value,
) -> Result<Exit, Failure> {
    let page = match args.page.output {
        PageFormat::Text => text(),
        PageFormat::Json => json().to_string() + "\n",
        PageFormat::JsonPretty => json::pretty(&json().to_string()) + "\n",
    };
    stdout::write(&page)?;
    Ok(Exit::Fine)
}

fn usage(error: anyhow::Error) -> Failure {
    Failure { exit: Exit::Usage, error }
}

fn plans(
    args: &FixArgs,
    cause: &'static Cause,
    context: &FixContext<'_>,
    host: &Host,
) -> Result<Vec<Plan>, Failure> {
    let chosen = |plan: &Plan| args.choose.as_deref().is_none_or(|id| plan.fix.id == id);
    let plan = |fix: Fix| plan(fix, &format!("to fix {}", cause.id), context.view, host);
    let all: Vec<Plan> = cause.fixes_on(context).into_iter().map(plan).collect();
    let ids: Vec<_> = all.iter().map(|plan| plan.fix.id).collect();
    let plans: Vec<Plan> = all.into_iter().filter(chosen).collect();
    match (&args.choose, plans.is_empty()) {
        (Some(id), true) => Err(usage(anyhow!(
            "no fix `{}` for {} on this host (expected one of {})",
            id.escape_debug(),
            cause.id,
            ids.join(", ")
        ))),
        _ => Ok(plans),
    }
}

/// A plan whose files have a header with the program, the time and the reason.
fn plan(fix: Fix, why: &str, view: &HostState, host: &Host) -> Plan {
    let header = [
        format!("Written by rsttrace {} at {:.0}", env!("CARGO_PKG_VERSION"), Timestamp::now()),
        format!("{why}: {}.", fix.summary),
        "To undo: rsttrace fix --undo".to_owned(),
    ];
    Plan::new(fix, &header, view, host)
}

/// Applies the first node-level fix of the plans.
fn apply_one(
    args: &FixArgs,
    cause: Option<&'static Cause>,
    plans: &[Plan],
    host: &Host,
) -> Result<Exit, Failure> {
    if !rustix::process::geteuid().is_root() {
        let error = anyhow!("--apply needs root (CAP_NET_ADMIN, CAP_SYS_ADMIN)");
        return Err(Failure { exit: Exit::NotPermitted, error });
    }
    let cannot_save = |error: io::Error| {
        let folder = args.state_dir.display();
        match error.kind() {
            io::ErrorKind::WouldBlock => anyhow!("nothing was changed: {error}"),
            _ => anyhow!("nothing was changed: cannot save old values in {folder}: {error}"),
        }
    };
    let store = Store::open(&args.state_dir).map_err(cannot_save)?;
    if args.idle.is_none()
        && !args.force
        && !args.check
        && let Some(journal) = already_applied(args, cause, &store, host)
    {
        say(&format!(
            "rsttrace: {} is already applied ({}); --force recomputes it from the current values",
            journal.about.fix, journal.about.id
        ));
        let fix = &journal.about.fix;
        let plan = plans.iter().find(|plan| plan.fix.id == fix);
        let undone = plan.map(|plan| plan.undone.as_slice()).unwrap_or_default();
        return print(args, || out::already_text(fix, undone), || out::already_json(fix, undone));
    }
    let mut ours = plans.iter().filter(|plan| plan.is_node_owned());
    let Some(plan) = ours.next() else {
        return Err(usage(anyhow!(
            "no node-level fix to apply; without --apply, the plan shows the owner of each fix"
        )));
    };
    if let Some(other) = ours.find(|other| other.fix.id == plan.fix.id) {
        return Err(usage(anyhow!(
            "several network namespaces need this fix (choose one with --netns): {}; {}",
            plan.fix.summary,
            other.fix.summary
        )));
    }
    if !plan.problems.is_empty() {
        return Err(anyhow!("nothing was changed: {}", plan.problems.join("; ")).into());
    }
    if !args.yes {
        if !stdin().is_terminal() {
            return Err(usage(anyhow!(
                "stdin is not a terminal: pass --yes to apply without a prompt"
            )));
        }
        stdout::write(&out::plan_text(plan, args.page.color.on_stdout(), page_width()))?;
        if !prompt::confirm(&format!("Apply {} to this host?", plan.fix.id)) {
            say("rsttrace: nothing was changed");
            return Ok(Exit::Fine);
        }
    }
    if let Some(unwritten) = &plan.unwritten {
        say(&format!("rsttrace: {unwritten}"));
    }
    let now = Timestamp::now();
    let about = About {
        id: store.new_id(&now.strftime("%Y%m%d-%H%M%S").to_string()).map_err(cannot_save)?,
        boot_id: host.boot_id().unwrap_or_default(),
        when: format!("{now:.0}"),
        cause: cause.map(|cause| cause.id),
        fix: plan.fix.id.into(),
    };
    let mut live = Live::new(host, &store, "/".as_ref(), None);
    match apply(&mut live, &plan.steps, about) {
        Ok(Applied::AlreadySo) => {
            let (id, undone) = (plan.fix.id, plan.undone.as_slice());
            print(args, || out::already_text(id, undone), || out::already_json(id, undone))
        }
        Ok(Applied::Done(journal)) => {
            let undone = plan.undone.as_slice();
            print(
                args,
                || out::applied_text(&journal, undone),
                || out::applied_json(&journal, undone),
            )
        }
        Err(failure) if failure.left.is_empty() => {
            Err(anyhow!("{}; everything was restored", failure.reason).into())
        }
        Err(failure) => Err(anyhow!(
            "{}; could not restore {}; retry with `rsttrace fix --undo`",
            failure.reason,
            failure.left.join("; ")
        )
        .into()),
    }
}

/// An earlier apply for the same cause whose values are still set. Without this check, a fix that is computed
/// from the current value would raise that value again at each run.
fn already_applied(
    args: &FixArgs,
    cause: Option<&Cause>,
    store: &Store,
    host: &Host,
) -> Option<Journal> {
    let journals = store.ids().ok()?.into_iter().rev().filter_map(|id| store.load(&id).ok());
    let is_same = |journal: &Journal| {
        let about = &journal.about;
        let mut places = journal.items.iter().filter_map(Item::place);
        about.cause == cause.map(|cause| cause.id)
            && args.choose.as_deref().is_none_or(|id| about.fix == id)
            && places.all(|at| args.netns.is_none_or(|netns| at.netns == netns))
    };
    journals.filter(is_same).find(|journal| {
        let mut live = Live::new(host, store, "/".as_ref(), Some(&journal.about.boot_id));
        is_still_set(journal, &mut live)
    })
}
