//! The output of `doctor`, as text and as JSON.

use rsttrace_core::causes::doc::RequiredSignal;
use rsttrace_kernel::{attach::Kprobes, signal};
use rsttrace_schema::json::object;
use serde_json::{Value, json};

use super::page::{Page, Style};
use crate::doctor::{Diagnosis, SignalReport, State};

/// Columns of the state and of the name in a line, with the gap after each.
const STATE: usize = 6;
const NAME: usize = 24;

/// Margin of the details below a line.
const MARGIN: &str = "        ";

fn mark(state: State) -> (Style, &'static str) {
    match state {
        State::Full => (Style::Green, "yes"),
        State::Part => (Style::Yellow, "part"),
        State::No => (Style::Red, "no"),
        State::Dormant => (Style::Dim, "off"),
    }
}

/// The text page.
pub fn text(diagnosis: &Diagnosis, color: bool, width: usize) -> String {
    let mut page = Page::new(color, width);
    machine(&mut page, diagnosis);
    if !diagnosis.signals.is_empty() {
        heading(&mut page, "Signals");
        signals(&mut page, &diagnosis.signals);
    }
    if !diagnosis.causes.is_empty() {
        heading(&mut page, "Causes, and the best confidence on this kernel");
        causes(&mut page, diagnosis);
    }
    for plane in &diagnosis.data_planes {
        heading(&mut page, &format!("{} forwards packets on this host", plane.name));
        let text = format!(
            "Found: {}. Packets that its BPF programs forward bypass the kernel's conntrack and IPVS: \
             entries that {} loses are not seen, and its drops look like an unresponsive peer. Its own \
             table: {}.",
            plane.found.join(", "),
            plane.name,
            plane.look_at
        );
        page.paragraph(&[(Style::Plain, "  ")], "  ", &[(Style::Plain, &text)]);
    }
    heading(&mut page, "Not visible on any kernel");
    for blind in signal::NEVER_SEEN {
        item(&mut page, blind);
    }
    if !diagnosis.advice.is_empty() {
        heading(&mut page, "How to trace more");
        diagnosis.advice.iter().for_each(|it| item(&mut page, it));
    }
    page.finish().unwrap_or_default()
}

fn heading(page: &mut Page, text: &str) {
    page.blank();
    page.paragraph(&[(Style::Bold, text)], "", &[]);
}

fn item(page: &mut Page, text: &str) {
    page.paragraph(&[(Style::Plain, "  - ")], "    ", &[(Style::Plain, text)]);
}

fn machine(page: &mut Page, diagnosis: &Diagnosis) {
    let dormant = diagnosis.signals.iter().filter(|it| it.state == State::Dormant).count();
    let unloaded = match dormant {
        0 => String::new(),
        _ => format!(" ({dormant} inactive: module not loaded)"),
    };
    let covered =
        format!("{} of {} signals covered{unloaded}", diagnosis.covered(), diagnosis.signals.len());
    match &diagnosis.refusal {
        None => page.labelled("TRACING", Style::Green, &format!("starts, {covered}")),
        Some(refusal) => {
            let text =
                format!("does not start (exit code {}): {}", refusal.exit.code(), refusal.why);
            page.labelled("TRACING", Style::Red, &text);
            if !diagnosis.causes.is_empty() {
                let text = format!("{covered}, judged without attaching the hooks");
                page.labelled("EXPECTED", Style::Yellow, &text);
            }
        }
    }
    let btf = if diagnosis.btf { "BTF" } else { "no BTF" };
    let kernel =
        format!("{} ({}), {btf}, {}", diagnosis.kernel, diagnosis.architecture, kprobes(diagnosis));
    page.labelled("KERNEL", Style::Bold, &kernel);
}

fn kprobes(diagnosis: &Diagnosis) -> &'static str {
    match diagnosis.kprobes {
        Kprobes::Use => "kprobes",
        Kprobes::Disabled => "kprobes disabled with --no-kprobes",
        Kprobes::Missing => "no kprobes",
    }
}

fn row(page: &mut Page, state: State, name: &str, text: &str) {
    let (style, word) = mark(state);
    let word = format!("{word:STATE$}");
    let name = format!("{name:NAME$}");
    let hang = " ".repeat(2 + STATE + NAME);
    let head = [(Style::Plain, "  "), (style, word.as_str()), (Style::Plain, name.as_str())];
    page.paragraph(&head, &hang, &[(Style::Plain, text)]);
}

fn more(page: &mut Page, label: &str, text: &str) {
    let head = [(Style::Plain, MARGIN), (Style::Dim, label)];
    page.paragraph(&head, &format!("{MARGIN}  "), &[(Style::Plain, text)]);
}

fn signals(page: &mut Page, signals: &[SignalReport]) {
    for it in signals.iter().filter(|it| it.state != State::Dormant) {
        row(page, it.state, it.id, it.title);
        if !it.way.is_empty() {
            more(page, "via ", &it.way.join(", "));
        }
        for (way, why) in &it.instead_of {
            more(page, "not via ", &format!("{way}: {why}"));
        }
        if let Some(invisible) = &it.invisible {
            more(page, "blind spot: ", invisible);
        }
        if let Some(cost) = it.cost {
            more(page, "cost: ", cost);
        }
    }
    let dormant = |module| {
        signals.iter().filter(move |it| it.state == State::Dormant && it.module == Some(module))
    };
    let mut modules: Vec<_> = signals.iter().filter_map(|it| it.module).collect();
    modules.dedup();
    for module in modules.into_iter().filter(|module| dormant(module).next().is_some()) {
        let ids: Vec<_> = dormant(module).map(|it| it.id).collect();
        list(page, State::Dormant, &ids);
        let unseen = signal::ALL.iter().find(|it| it.module == Some(module));
        more(page, "", &unseen.map_or(String::new(), |it| it.unseen(|_| true)));
    }
}

fn list(page: &mut Page, state: State, ids: &[&str]) {
    let (style, word) = mark(state);
    let word = format!("{word:STATE$}");
    let head = [(Style::Plain, "  "), (style, word.as_str())];
    page.paragraph(&head, MARGIN, &[(Style::Plain, &ids.join(", "))]);
}

/// "reset_received partial", "conntrack_end unavailable"
fn missing(need: &RequiredSignal, signals: &[SignalReport]) -> String {
    let is_partial = signals.iter().any(|it| it.id == need.signal() && it.state == State::Part);
    let how = if is_partial { "partial" } else { "unavailable" };
    format!("{} {how}", need.signal())
}

fn causes(page: &mut Page, diagnosis: &Diagnosis) {
    let of = |state| diagnosis.causes.iter().filter(move |it| it.state == state);
    let full: Vec<_> = of(State::Full).map(|it| it.cause.id).collect();
    if !full.is_empty() {
        list(page, State::Full, &full);
    }
    for it in [State::Part, State::No, State::Dormant].into_iter().flat_map(of) {
        let lacks: Vec<_> = it.lacks.iter().map(|need| missing(need, &diagnosis.signals)).collect();
        let lacks = lacks.join(", ");
        let text = match (it.state, it.best) {
            (State::Dormant, _) => {
                format!("cannot happen while {} is not loaded", it.modules.join(" and "))
            }
            (_, Some(best)) => format!("at best `{}`: {lacks}", best.id()),
            (_, None) => format!("reported as `unknown`: {lacks}"),
        };
        row(page, it.state, it.cause.id, &text);
    }
}

/// The diagnosis as one JSON object.
pub fn json(diagnosis: &Diagnosis) -> Value {
    let needs = |needs: &[RequiredSignal]| -> Vec<Value> {
        needs
            .iter()
            .map(|need| json!({"id": need.signal(), "in_full": matches!(need, RequiredSignal::Full(_))}))
            .collect()
    };
    object([
        (
            "kernel",
            Some(json!({
                "release": diagnosis.kernel,
                "architecture": diagnosis.architecture,
                "btf": diagnosis.btf,
                "kprobes": diagnosis.kprobes == Kprobes::Use,
            })),
        ),
        (
            "tracing",
            Some(object([
                ("starts", Some(diagnosis.refusal.is_none().into())),
                ("exit_code", Some(diagnosis.exit().code().into())),
                ("because", diagnosis.refusal.as_ref().map(|it| it.why.clone().into())),
            ])),
        ),
        (
            "signals",
            Some(
                diagnosis
                    .signals
                    .iter()
                    .map(|it| {
                        let not: Vec<_> = it
                            .instead_of
                            .iter()
                            .map(|(way, why)| json!({"way": way, "because": why}))
                            .collect();
                        object([
                            ("id", Some(it.id.into())),
                            ("title", Some(it.title.into())),
                            ("state", Some(it.state.id().into())),
                            ("way", (!it.way.is_empty()).then(|| it.way.clone().into())),
                            ("not", (!not.is_empty()).then(|| not.into())),
                            ("invisible", it.invisible.clone().map(Value::from)),
                            ("cost", it.cost.map(Value::from)),
                            ("module", it.module.map(Value::from)),
                        ])
                    })
                    .collect(),
            ),
        ),
        (
            "causes",
            Some(
                diagnosis
                    .causes
                    .iter()
                    .map(|it| {
                        object([
                            ("cause", Some(it.cause.id.into())),
                            ("state", Some(it.state.id().into())),
                            ("at_best", it.best.map(|best| best.id().into())),
                            ("lacks", (!it.lacks.is_empty()).then(|| needs(&it.lacks).into())),
                        ])
                    })
                    .collect(),
            ),
        ),
        (
            "data_planes",
            Some(
                diagnosis
                    .data_planes
                    .iter()
                    .map(|it| json!({"name": it.name, "found": it.found, "look_at": it.look_at}))
                    .collect(),
            ),
        ),
        ("never_seen", Some(signal::NEVER_SEEN.into())),
        ("advice", Some(diagnosis.advice.clone().into())),
    ])
}
