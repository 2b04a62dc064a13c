//! `rsttrace fix`: the plan for a cause or an incident, applied and taken back on request.

mod asked;
mod check;
mod incident;
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
    causes::{self, cause::Cause, scene::Scene},
    fix::Fix,
};
use rsttrace_host::{Host, view};
use rsttrace_model::host_state::HostState;
use rsttrace_schema::json;
use undo::stands;

use super::{Exit, Failure, say, stdout};
use crate::{
    cli::{FixArgs, PageFormat, page_width},
    render::{fix as out, fix::Advised, profile},
};

/// Prints the plan; with `--apply` carries one fix out.
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
    let cause = selected.cause.or(named).ok_or_else(|| anyhow!("there is no cause"))?;
    let host = Host::new().map_err(anyhow::Error::from)?;
    if let Some(other) = selected.host.as_deref().filter(|name| *name != host.hostname()) {
        say(&format!(
            "rsttrace: the incident is of host {other:?}, and this is {:?}: the values below are of \
             this host",
            host.hostname()
        ));
    }
    let view = view(args, &host)?;
    let scene = Scene {
        netns: args.netns,
        idle_s: args.idle.map(|idle| idle.as_secs_f64()),
        broken: selected.broken,
        ..Scene::of(&view)
    };
    let plans = plans(args, cause, &scene, &host)?;
    if args.apply {
        return carry_out(args, Some(cause), &plans, &host);
    }
    let snippet = args.client.map(|client| Advised::new(client.0, scene.shortest_limit_s()));
    print(
        args,
        || out::text(cause, &plans, snippet.as_ref(), args.page.color.on_stdout(), page_width()),
        || out::json(cause, &plans, snippet.as_ref()),
    )
}

/// The article's own settings, line by line.
fn profile(args: &FixArgs) -> Result<Exit, Failure> {
    let host = Host::new().map_err(anyhow::Error::from)?;
    let view = view(args, &host)?;
    let scene = Scene { netns: args.netns, ..Scene::of(&view) };
    print(
        args,
        || profile::text(&scene, args.page.color.on_stdout(), page_width()),
        || profile::json(&scene),
    )
}

fn view(args: &FixArgs, host: &Host) -> Result<HostState, Failure> {
    let view = view::read(host);
    match args.netns.filter(|inum| view.netns(*inum).is_none()) {
        Some(inum) => Err(anyhow!("network namespace {inum} cannot be looked into").into()),
        None => Ok(view),
    }
}

/// Prints a page in the format that was asked for.
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
    scene: &Scene<'_>,
    host: &Host,
) -> Result<Vec<Plan>, Failure> {
    let chosen = |plan: &Plan| args.choose.as_deref().is_none_or(|id| plan.fix.id == id);
    let plan = |fix: Fix| plan(fix, &format!("to end {}", cause.id), scene.view, host);
    let all: Vec<Plan> = cause.fixes_on(scene).into_iter().map(plan).collect();
    let ids: Vec<_> = all.iter().map(|plan| plan.fix.id).collect();
    let plans: Vec<Plan> = all.into_iter().filter(chosen).collect();
    match (&args.choose, plans.is_empty()) {
        (Some(id), true) => Err(usage(anyhow!(
            "there is no fix {id:?} for {} on this host; there is: {}",
            cause.id,
            ids.join(", ")
        ))),
        _ => Ok(plans),
    }
}

/// A plan whose files say who wrote them, when and why.
fn plan(fix: Fix, why: &str, view: &HostState, host: &Host) -> Plan {
    let header = [
        format!("Written by rsttrace {} at {:.0}", env!("CARGO_PKG_VERSION"), Timestamp::now()),
        format!("{why}: {}.", fix.summary),
        "To take it back: rsttrace fix --undo".to_owned(),
    ];
    Plan::new(fix, &header, view, host)
}

fn carry_out(
    args: &FixArgs,
    cause: Option<&'static Cause>,
    plans: &[Plan],
    host: &Host,
) -> Result<Exit, Failure> {
    if !rustix::process::geteuid().is_root() {
        let error = anyhow!("only root may change this host (CAP_NET_ADMIN, CAP_SYS_ADMIN)");
        return Err(Failure { exit: Exit::NotPermitted, error });
    }
    let cannot_keep = |error: io::Error| {
        let folder = args.state_dir.display();
        match error.kind() {
            io::ErrorKind::WouldBlock => anyhow!("nothing was changed: {error}"),
            _ => anyhow!("nothing was changed: old values cannot be kept in {folder}: {error}"),
        }
    };
    let store = Store::open(&args.state_dir).map_err(cannot_keep)?;
    if args.idle.is_none()
        && !args.force
        && !args.check
        && let Some(journal) = in_force(args, cause, &store, host)
    {
        say(&format!(
            "rsttrace: {} is in force already, applied as {}; --force goes by the values of now",
            journal.about.fix, journal.about.id
        ));
        let fix = &journal.about.fix;
        return print(args, || out::already_text(fix), || out::already_json(fix));
    }
    let mut ours = plans.iter().filter(|plan| plan.is_node_owned());
    let Some(plan) = ours.next() else {
        return Err(usage(anyhow!(
            "nothing here is the node's to change; the same without --apply tells who can do what"
        )));
    };
    if let Some(other) = ours.find(|other| other.fix.id == plan.fix.id) {
        return Err(usage(anyhow!(
            "this applies to several network namespaces, choose one with --netns: {}; {}",
            plan.fix.summary,
            other.fix.summary
        )));
    }
    if !plan.problems.is_empty() {
        return Err(anyhow!("nothing was changed: {}", plan.problems.join("; ")).into());
    }
    if !args.yes {
        if !stdin().is_terminal() {
            return Err(usage(anyhow!("nobody can be asked here: --yes applies without asking")));
        }
        stdout::write(&out::plan_text(plan, args.page.color.on_stdout(), page_width()))?;
        if !asked::agrees(&format!("Apply {} to this host?", plan.fix.id)) {
            say("rsttrace: nothing was changed");
            return Ok(Exit::Fine);
        }
    }
    if let Some(unwritten) = &plan.unwritten {
        say(&format!("rsttrace: {unwritten}"));
    }
    let now = Timestamp::now();
    let about = About {
        id: store.new_id(&now.strftime("%Y%m%d-%H%M%S").to_string()).map_err(cannot_keep)?,
        boot_id: host.boot_id().unwrap_or_default(),
        when: format!("{now:.0}"),
        cause: cause.map(|cause| cause.id),
        fix: plan.fix.id.into(),
    };
    let mut live = Live::new(host, &store, "/".as_ref(), None);
    match apply(&mut live, &plan.steps, about) {
        Ok(Applied::AlreadySo) => {
            print(args, || out::already_text(plan.fix.id), || out::already_json(plan.fix.id))
        }
        Ok(Applied::Done(journal)) => {
            print(args, || out::applied_text(&journal), || out::applied_json(&journal))
        }
        Err(failure) if failure.left.is_empty() => {
            Err(anyhow!("{}; everything was restored", failure.reason).into())
        }
        Err(failure) => Err(anyhow!(
            "{}; and this could not be restored: {}; `rsttrace fix --undo` tries again",
            failure.reason,
            failure.left.join("; ")
        )
        .into()),
    }
}

/// An earlier apply for the same cause, whose values still stand. Fixes that go by the value of now
/// would go further each time.
fn in_force(args: &FixArgs, cause: Option<&Cause>, store: &Store, host: &Host) -> Option<Journal> {
    let journals = store.ids().ok()?.into_iter().rev().filter_map(|id| store.load(&id).ok());
    let is_asked_for = |journal: &Journal| {
        let about = &journal.about;
        let mut places = journal.items.iter().filter_map(Item::place);
        about.cause == cause.map(|cause| cause.id)
            && args.choose.as_deref().is_none_or(|id| about.fix == id)
            && places.all(|at| args.netns.is_none_or(|asked| at.netns == asked))
    };
    journals.filter(is_asked_for).find(|journal| {
        let mut live = Live::new(host, store, "/".as_ref(), Some(&journal.about.boot_id));
        stands(journal, &mut live)
    })
}
