//! Renders plans, applies and undos for `rsttrace fix`.

use rsttrace_apply::{
    FileState,
    journal::{Item, Journal},
    plan::Plan,
    run::UndoReport,
};
use rsttrace_check::{CheckFinding, Rank};
use rsttrace_core::{
    causes::cause::Cause,
    fix::{Client, Pace, Snippet},
};
use rsttrace_model::escape::terminal;
use rsttrace_schema::json::{fix as fix_json, object};
use serde_json::{Value, json};

use super::page::{HANG, Page, Style};

/// The configuration snippet for one client, and the limit that its keepalives stay below.
#[derive(Debug)]
pub struct Advised {
    client: Client,
    /// "below the 900 s of this host"
    limit: String,
    snippet: Snippet,
}

impl Advised {
    /// `limit_s` is the shortest idle limit on this host, if it has one.
    pub fn new(client: Client, limit_s: Option<u64>) -> Self {
        /// IPVS's, the shortest of the usual ones on a node (net/netfilter/ipvs/ip_vs_proto_tcp.c).
        const USUAL_S: u64 = 900;
        let limit = match limit_s {
            Some(limit_s) => format!("below the shortest limit of this host, {limit_s} s"),
            None => {
                format!(
                    "below {USUAL_S} s (this host has no limit for idle connections of its own)"
                )
            }
        };
        let limit_s = limit_s.unwrap_or(USUAL_S);
        // With a third of the limit, one lost probe and a late timer do not matter.
        let time_s = (limit_s / 3).max(1);
        let pace = Pace { time_s, intvl_s: (time_s / 10).clamp(1, 75), probes: 3, limit_s };
        Self { client, limit, snippet: client.snippet(pace) }
    }
}

/// Renders every fix for a cause, best first, and what does not help.
pub fn text(
    cause: &Cause,
    plans: &[Plan],
    advised: Option<&Advised>,
    color: bool,
    width: usize,
) -> String {
    let mut page = Page::new(color, width);
    let family = format!("({})", cause.family.id());
    page.paragraph(&[], "", &[(Style::Bold, cause.id), (Style::Dim, &family)]);
    page.paragraph(&[(Style::Plain, "  ")], "  ", &[(Style::Plain, cause.title)]);
    let first = plans.iter().position(Plan::is_node_owned);
    for (index, plan) in plans.iter().enumerate() {
        page.blank();
        one(&mut page, index + 1, plan, first == Some(index));
    }
    if plans.is_empty() {
        page.blank();
        page.labelled("NO FIX", Style::Dim, "rsttrace has no fix for this cause");
    }
    if let Some(Advised { client, limit, snippet }) = advised {
        page.blank();
        page.labelled("FOR", Style::Green, &format!("{}, {limit}", client.id()));
        block(&mut page, &snippet.text);
        page.labelled("  caveat", Style::Yellow, snippet.note);
    }
    if !cause.doc.not_fixes.is_empty() {
        page.blank();
    }
    for (what, because) in cause.doc.not_fixes {
        page.labelled("NOT A FIX", Style::Dim, &format!("{what}: {because}"));
    }
    page.finish().unwrap_or_default()
}

/// Renders one plan.
pub fn plan_text(plan: &Plan, color: bool, width: usize) -> String {
    let mut page = Page::new(color, width);
    one(&mut page, 1, plan, true);
    page.finish().unwrap_or_default()
}

/// Renders findings of check, each with its fixes.
pub fn findings_text(groups: &[(CheckFinding, Vec<Plan>)], color: bool, width: usize) -> String {
    let mut page = Page::new(color, width);
    let mut number = 0;
    let mut is_apply_open = true;
    for (finding, plans) in groups {
        let style = if finding.rank == Rank::Break { Style::Red } else { Style::Yellow };
        page.labelled(&finding.rank.id().to_uppercase(), style, &finding.reason);
        for plan in plans {
            number += 1;
            let is_applied = is_apply_open && plan.is_node_owned();
            is_apply_open &= !is_applied;
            one(&mut page, number, plan, is_applied);
        }
        page.blank();
    }
    if groups.is_empty() {
        page.labelled("NO FIX", Style::Dim, "check found nothing on this host that has a fix");
    }
    page.finish().unwrap_or_default()
}

/// The same as [`findings_text`], as one JSON object.
pub fn findings_json(groups: &[(CheckFinding, Vec<Plan>)]) -> Value {
    let group = |(finding, plans): &(CheckFinding, Vec<Plan>)| {
        object([
            ("rule", Some(finding.rule.into())),
            ("rank", Some(finding.rank.id().into())),
            ("cause", finding.cause.map(Value::from)),
            ("netns", Some(finding.place.netns.into())),
            ("reason", Some(terminal(&finding.reason).into())),
            ("fixes", Some(plans.iter().map(plan_json).collect())),
        ])
    };
    json!({"findings": groups.iter().map(group).collect::<Vec<_>>()})
}

fn one(page: &mut Page, number: usize, plan: &Plan, applies: bool) {
    let fix = &plan.fix;
    let head = format!("[{}] {} ({})", fix.owner.id(), fix.summary, fix.id);
    page.labelled(&format!("FIX {number}"), Style::Green, &head);
    match (&fix.current, &fix.wanted) {
        (Some(current), Some(wanted)) if current == wanted => {
            page.labelled("  now", Style::Dim, &format!("{current}, already set"));
        }
        (Some(current), Some(wanted)) => {
            page.labelled("  now", Style::Dim, &format!("{current}; set: {wanted}"));
        }
        (None, Some(wanted)) => page.labelled("  set", Style::Dim, wanted),
        _ => {}
    }
    page.labelled("  why", Style::Dim, &fix.reason);
    if let Some(first) = &plan.in_kube_proxy {
        page.labelled("  first", Style::Yellow, &format!("[kube-proxy] {}", first.summary));
        for advice in first.advice() {
            page.labelled("  how", Style::Dim, &advice);
        }
    }
    for advice in fix.advice() {
        page.labelled("  how", Style::Dim, &advice);
    }
    lines(page, if plan.in_kube_proxy.is_some() { "  then" } else { "  run" }, &fix.commands());
    for file in &plan.files {
        page.labelled("  keep", Style::Dim, &file.path);
        block(page, &file.text);
        if let Some((link, _)) = file.enabled_by() {
            page.labelled("", Style::Dim, &format!("enabled by {link}"));
        }
    }
    if let Some(text) = fix.kube_proxy().filter(|_| plan.in_kube_proxy.is_none()) {
        let sentence = "where kube-proxy runs and its configuration sets these fields, change them, because \
                        it writes its own values at its next start";
        page.labelled("  or", Style::Dim, sentence);
        block(page, &text);
    }
    if let Some(text) = fix.pod() {
        page.labelled("  or", Style::Dim, "for a pod, in the specification of the pod");
        block(page, &text);
    }
    page.labelled("  risk", Style::Dim, fix.risk.id());
    for caveat in &plan.caveats {
        page.labelled("  caveat", Style::Yellow, caveat);
    }
    for undone in &plan.undone {
        page.labelled("  undone", Style::Yellow, undone);
    }
    for problem in &plan.problems {
        page.labelled("  cannot", Style::Red, problem);
    }
    lines(page, "  verify", &fix.verify());
    lines(page, "  undo", &fix.undo());
    if applies && plan.problems.is_empty() {
        page.labelled("  apply", Style::Bold, "`--apply` runs this one");
    }
}

/// Lines to copy, the first one behind a label.
fn lines(page: &mut Page, label: &str, lines: &[String]) {
    let mut lines = lines.iter();
    if let Some(first) = lines.next() {
        page.labelled_verbatim(label, Style::Dim, first);
    }
    for line in lines {
        page.verbatim(HANG, line);
    }
}

fn block(page: &mut Page, text: &str) {
    for line in text.lines() {
        page.verbatim(&format!("{HANG}| "), line);
    }
}

/// The same as [`text`], as one JSON object.
pub fn json(cause: &Cause, plans: &[Plan], advised: Option<&Advised>) -> Value {
    let plans: Vec<Value> = plans.iter().map(plan_json).collect();
    let not_fixes: Vec<Value> = (cause.doc.not_fixes.iter())
        .map(|(what, because)| json!({"what": what, "because": because}))
        .collect();
    let advised = advised.map(|Advised { client, limit, snippet }| {
        json!({"client": client.id(), "limit": limit, "text": snippet.text, "note": snippet.note})
    });
    object([
        ("cause", Some(cause.id.into())),
        ("family", Some(cause.family.id().into())),
        ("fixes", Some(plans.into())),
        ("for", advised),
        ("not_fixes", Some(not_fixes.into())),
    ])
}

fn plan_json(plan: &Plan) -> Value {
    let mut value = fix_json(&plan.fix);
    let strings = |list: &[String]| (!list.is_empty()).then(|| json!(list));
    let files: Vec<Value> =
        plan.files.iter().map(|file| json!({"path": file.path, "text": file.text})).collect();
    let more = object([
        ("node_owned", Some(plan.is_node_owned().into())),
        ("files", (!files.is_empty()).then(|| files.into())),
        ("kube_proxy", plan.fix.kube_proxy().map(Value::from)),
        ("pod", plan.fix.pod().map(Value::from)),
        ("in_kube_proxy", plan.in_kube_proxy.as_ref().map(fix_json)),
        ("undone", strings(&plan.undone)),
        ("caveats", strings(&plan.caveats)),
        ("problems", strings(&plan.problems)),
    ]);
    if let (Value::Object(value), Value::Object(more)) = (&mut value, more) {
        value.extend(more);
    }
    value
}

/// Renders an apply that found nothing to change. `undone` says what undoes the values later.
pub fn already_text(fix: &str, undone: &[String]) -> String {
    format!("{fix}: already applied, nothing was changed\n{}", until_a_start(undone))
}

pub fn already_json(fix: &str, undone: &[String]) -> Value {
    let mut value = json!({"fix": fix, "applied": false, "already_so": true});
    add_undone(&mut value, undone);
    value
}

/// Renders an apply. `undone` says what undoes the values later.
pub fn applied_text(journal: &Journal, undone: &[String]) -> String {
    let about = &journal.about;
    let verified = match undone.is_empty() {
        true => "was applied and verified",
        false => "was applied and verified, but only until kube-proxy's next start",
    };
    let mut text = format!("{} {verified}, as {}\n", about.fix, about.id);
    for item in &journal.items {
        text.push_str(&format!("  {}\n", change(item)));
    }
    text.push_str(&until_a_start(undone));
    text.push_str(&format!("undo: rsttrace fix --undo {}\n", about.id));
    text
}

/// Lines that say what kube-proxy's next start undoes.
fn until_a_start(undone: &[String]) -> String {
    if undone.is_empty() {
        return String::new();
    }
    let lines = undone.iter().map(|line| format!("  {}\n", terminal(line)));
    let then = "  to keep it: change kube-proxy's configuration first, as the plan shows\n";
    lines.chain([then.to_owned()]).collect()
}

fn add_undone(value: &mut Value, undone: &[String]) {
    if let Value::Object(fields) = value
        && !undone.is_empty()
    {
        fields.insert("undone".into(), json!(undone));
    }
}

fn change(item: &Item) -> String {
    match item {
        Item::Value { old, new, .. } => {
            format!("{}: {old} -> {new}", terminal(&item.describe()))
        }
        Item::File { path, old, new, .. } => {
            let (old, new) = (kind(old), kind(new));
            format!("{path}: {old} -> {new}")
        }
    }
}

fn kind(state: &FileState) -> String {
    match state {
        FileState::Absent => "absent".into(),
        FileState::File { bytes, .. } => format!("{} bytes", bytes.len()),
        FileState::Link { target } => format!("link to {}", terminal(target)),
    }
}

pub fn applied_json(journal: &Journal, undone: &[String]) -> Value {
    let mut value = journal_json(journal);
    if let Value::Object(fields) = &mut value {
        fields.insert("applied".into(), true.into());
    }
    add_undone(&mut value, undone);
    value
}

fn journal_json(journal: &Journal) -> Value {
    let item = |item: &Item| match item {
        Item::Value { slot, old, new } => json!({
            "key": slot.setting.key,
            "netns": slot.place.netns,
            "old": old,
            "new": new,
        }),
        Item::File { path, old, new, .. } => {
            json!({"path": path, "old": kind(old), "new": kind(new)})
        }
    };
    let about = &journal.about;
    json!({
        "id": about.id,
        "when": about.when,
        "cause": about.cause,
        "fix": about.fix,
        "changes": journal.items.iter().map(item).collect::<Vec<_>>(),
    })
}

/// Renders an undo.
pub fn undone_text(journal: &Journal, undone: &UndoReport) -> String {
    let about = &journal.about;
    let mut text = format!("{} ({}):\n", about.id, about.fix);
    for (outcome, list) in parts(undone) {
        for item in list {
            let outcome = match outcome {
                "restored" if was_absent(journal, item) => "removed",
                outcome => outcome,
            };
            text.push_str(&format!("  {outcome}: {}\n", terminal(item)));
        }
    }
    text
}

/// Whether an item is a file that did not exist before the apply.
fn was_absent(journal: &Journal, description: &str) -> bool {
    journal.items.iter().any(|item| match item {
        Item::File { path, old, .. } => path == description && *old == FileState::Absent,
        Item::Value { .. } => false,
    })
}

fn parts(undone: &UndoReport) -> [(&'static str, &[String]); 5] {
    [
        ("restored", &undone.restored),
        ("already had the old state", &undone.already),
        ("changed since the apply and left alone (--force restores it)", &undone.foreign),
        ("no longer exists", &undone.gone),
        ("not restored", &undone.failed),
    ]
}

pub fn undone_json(journal: &Journal, undone: &UndoReport) -> Value {
    json!({
        "id": journal.about.id,
        "fix": journal.about.fix,
        "complete": undone.is_complete(),
        "restored": undone.restored,
        "already": undone.already,
        "foreign": undone.foreign,
        "gone": undone.gone,
        "failed": undone.failed,
    })
}

/// Renders what can be undone, the oldest apply first.
pub fn list_text(journals: &[Journal]) -> String {
    let mut text = String::new();
    for journal in journals {
        let about = &journal.about;
        let cause = about.cause.unwrap_or("-");
        text.push_str(&format!("{}  {}  ({cause})\n", about.id, about.fix));
        for item in &journal.items {
            text.push_str(&format!("    {}\n", change(item)));
        }
    }
    text
}

pub fn list_json(journals: &[Journal]) -> Value {
    journals.iter().map(journal_json).collect()
}

#[cfg(test)]
mod tests;
