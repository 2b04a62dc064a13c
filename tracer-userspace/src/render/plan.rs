//! The text and the JSON of `rsttrace plan`.

use rsttrace_core::fix::Fix;
use rsttrace_plan::{
    Bound, Demand, Figure, Item, Limit, Plan, Rule, Source, Step, Survey, mebibytes,
};
use rsttrace_schema::plan as schema;

use super::page::{Page, Style};

/// Margin of the arithmetic.
const INDENT: &str = "    ";

/// The whole plan.
pub fn text(plan: &Plan, color: bool, width: usize) -> String {
    let mut page = Page::new(color, width);
    page.labelled("LOAD", Style::Bold, &load(&plan.demand));
    page.labelled("MACHINE", Style::Bold, &machine(&plan.demand));
    if let Some(survey) = &plan.demand.measured {
        measured(&mut page, survey);
    }
    let mut before = None;
    for it in &plan.items {
        page.blank();
        item(&mut page, it, before);
        before = Some(&it.fix);
    }
    page.blank();
    page.paragraph(&[(Style::Bold, "WHAT OVERFLOWS FIRST")], "", &[]);
    for (index, it) in plan.limits.iter().enumerate() {
        limit(&mut page, index + 1, it);
    }
    if !plan.notes.is_empty() {
        page.blank();
    }
    for note in &plan.notes {
        page.labelled("NOTE", Style::Dim, note);
    }
    for rule in rules(plan) {
        page.labelled(rule.id(), Style::Dim, rule.formula());
    }
    page.finish().unwrap_or_default()
}

fn load(demand: &Demand) -> String {
    let mut parts = Vec::new();
    if demand.connections > 0 {
        parts.push(format!("{} long-lived connections", demand.connections));
    }
    if demand.cps > 0 {
        parts.push(format!("{} new TCP connections/s", demand.cps));
    }
    if demand.udp > 0 {
        parts.push(format!("{} new UDP flows/s", demand.udp));
    }
    if let Some(peak) = demand.now.peak {
        parts.push(format!("{peak} conntrack entries seen in one namespace"));
    }
    if let Some(quiet) = demand.quiet_s {
        parts.push(format!("idle for up to {quiet} s"));
    }
    if parts.is_empty() { "none".into() } else { parts.join(", ") }
}

fn measured(page: &mut Page, survey: &Survey) {
    let Survey { ms, readings, namespaces, figures } = survey;
    let over = format!(
        "for {}.{} s in {namespaces} network namespace{}: counters at the start and the end, entries \
         and sockets {readings} times",
        ms / 1000,
        ms % 1000 / 100,
        if *namespaces == 1 { "" } else { "s" },
    );
    page.labelled("MEASURED", Style::Bold, &over);
    for figure in figures {
        let Figure { what, unit, bound, how, option, .. } = figure;
        let value = match figure.value {
            Some(value) => format!("{}{value}{unit};", bound.words()),
            None => "not measured;".into(),
        };
        let option = option.map(|option| format!("; set with {option}")).unwrap_or_default();
        let text = format!("{how}{option}");
        let what = format!("{what}:");
        let body = [(Style::Plain, what.as_str()), (Style::Bold, &value), (Style::Plain, &text)];
        page.paragraph(&[(Style::Plain, INDENT)], &INDENT.repeat(2), &body);
    }
}

fn machine(demand: &Demand) -> String {
    let Demand { kernel, cpus, .. } = demand;
    let mut text = format!(
        "{} of memory, {cpus} CPU{}, kernel {}.{}",
        mebibytes(demand.ram_bytes),
        if *cpus == 1 { "" } else { "s" },
        kernel.major,
        kernel.minor
    );
    if demand.ipvs {
        text += ", IPVS on the path";
    }
    if demand.kube_proxy.is_some() {
        text += ", kube-proxy";
    }
    text
}

/// The rules that the plan uses, once each.
fn rules(plan: &Plan) -> Vec<Rule> {
    let mut rules = Vec::new();
    for source in plan.items.iter().flat_map(|item| &item.sources) {
        if let Source::Rule(rule) = source
            && !rules.contains(rule)
        {
            rules.push(*rule);
        }
    }
    rules.sort_unstable_by_key(|rule| rule.id());
    rules
}

/// One setting. Advice and reasons that the setting before has as well are not repeated.
fn item(page: &mut Page, item: &Item, before: Option<&Fix>) {
    let fix = &item.fix;
    let value = format!("= {} {}", item.value, item.unit.id());
    let owner = format!("[{}]", fix.owner.id());
    let now = fix.current.as_ref().map(|now| format!("(now {now})"));
    let mut heading = vec![(Style::Bold, item.key), (Style::Green, &value), (Style::Plain, &owner)];
    heading.extend(now.as_deref().map(|now| (Style::Dim, now)));
    page.paragraph(&[], INDENT, &heading);
    arithmetic(page, &item.steps);
    for warning in &item.warnings {
        page.labelled("NOTE", Style::Yellow, warning);
    }
    if fix.changes.is_empty() && fix.wanted.is_some() {
        page.labelled("KEEP", Style::Green, "nothing to change");
    }
    for command in fix.commands() {
        page.labelled_verbatim("SET", Style::Green, &command);
    }
    let is_repeated =
        |advice: &String| before.is_some_and(|before| before.advice().contains(advice));
    for advice in fix.advice().into_iter().filter(|advice| !is_repeated(advice)) {
        page.labelled("SET", Style::Green, &advice);
    }
    if before.is_none_or(|before| before.reason != fix.reason) {
        page.labelled("WHY", Style::Dim, &fix.reason);
    }
    page.labelled("SOURCE", Style::Dim, &sources(&item.sources));
}

/// The steps of the arithmetic, in columns.
fn arithmetic(page: &mut Page, steps: &[Step]) {
    let widest = |of: fn(&Step) -> &str| {
        steps.iter().map(|step| of(step).chars().count()).max().unwrap_or(0)
    };
    let (what, formula) = (widest(|step| &step.what), widest(|step| &step.formula));
    for step in steps {
        let line =
            format!("{INDENT}{:what$}  {:formula$}  {}", step.what, step.formula, step.result);
        page.paragraph(&[], INDENT, &[(Style::Plain, line.trim_end())]);
    }
}

fn sources(sources: &[Source]) -> String {
    let name = |source: &Source| match source {
        Source::Rule(rule) => format!("rule {}", rule.id()),
        Source::File(file) => (*file).to_owned(),
        Source::Measured => "measured on kernels 5.10 to 7.2".to_owned(),
    };
    sources.iter().map(name).collect::<Vec<_>>().join("; ")
}

fn limit(page: &mut Page, number: usize, limit: &Limit) {
    let style = if limit.is_over() { Style::Red } else { Style::Plain };
    let head = format!("{number:3} ");
    let numbers = format!(
        "{} of {} {}, {}: {}.",
        limit.load,
        limit.capacity,
        limit.unit,
        limit.used(),
        limit.when
    );
    let what = match limit.only_if {
        Some(condition) => format!("{}, if {condition}:", limit.what),
        None => format!("{}:", limit.what),
    };
    let effect = format!("Then {}.", limit.effect);
    let body = [(Style::Bold, what.as_str()), (style, &numbers), (Style::Plain, &effect)];
    page.paragraph(&[(Style::Plain, &head)], INDENT, &body);
}

/// The whole plan as one JSON object.
pub fn json(plan: &Plan) -> schema::Plan {
    let demand = &plan.demand;
    let nonzero = |value: u64| (value > 0).then_some(value);
    let costs = plan.costs();
    schema::Plan {
        load: schema::Load {
            connections: nonzero(demand.connections),
            tcp_per_s: nonzero(demand.cps),
            life_ms: demand.life_ms,
            udp_per_s: nonzero(demand.udp),
            quiet_s: demand.quiet_s,
            conntrack_peak_seen: demand.now.peak,
        },
        measured: demand.measured.as_ref().map(survey),
        machine: schema::Machine {
            ram_bytes: demand.ram_bytes,
            cpus: demand.cpus,
            kernel: format!("{}.{}", demand.kernel.major, demand.kernel.minor),
            ipvs: demand.ipvs,
            kube_proxy: demand.kube_proxy.is_some(),
        },
        memory: schema::Memory {
            conntrack_entry_bytes: costs.conntrack_entry,
            conntrack_entry_bytes_least: costs.conntrack_entry_least,
            conntrack_bucket_bytes: costs.bucket,
            ipvs_entry_bytes: costs.ipvs_entry,
        },
        settings: plan.items.iter().map(setting).collect(),
        limits: plan.limits.iter().map(limit_json).collect(),
        notes: plan.notes.clone(),
    }
}

fn survey(survey: &Survey) -> schema::Measured {
    let figure = |figure: &Figure| {
        let bound = match figure.bound {
            Bound::Is => "is",
            Bound::AtMost => "at_most",
            Bound::AtLeast => "at_least",
        };
        schema::Figure {
            what: figure.what,
            value: figure.value,
            bound: figure.value.map(|_| bound),
            unit: (!figure.unit.is_empty()).then(|| figure.unit.trim()),
            how: figure.how.clone(),
            option: figure.option,
        }
    };
    schema::Measured {
        ms: survey.ms,
        readings: survey.readings,
        namespaces: survey.namespaces,
        figures: survey.figures.iter().map(figure).collect(),
    }
}

fn setting(item: &Item) -> schema::Setting {
    let step = |step: &Step| schema::Step {
        what: step.what.clone(),
        formula: (!step.formula.is_empty()).then(|| step.formula.clone()),
        result: step.result.clone(),
    };
    let source = |source: &Source| match source {
        Source::Rule(rule) => schema::Source::Rule { rule: rule.id(), formula: rule.formula() },
        Source::File(file) => schema::Source::File { file },
        Source::Measured => schema::Source::Measured { measured: "5.10 to 7.2" },
    };
    schema::Setting {
        key: item.key,
        value: item.value,
        unit: item.unit.id(),
        memory_bytes: item.memory_bytes,
        arithmetic: item.steps.iter().map(step).collect(),
        sources: item.sources.iter().map(source).collect(),
        warnings: item.warnings.clone(),
        fix: (&item.fix).into(),
    }
}

fn limit_json(limit: &Limit) -> schema::Limit {
    schema::Limit {
        what: limit.what.clone(),
        only_if: limit.only_if,
        load: limit.load,
        capacity: limit.capacity,
        unit: limit.unit,
        over: limit.is_over(),
        when: limit.when.clone(),
        effect: limit.effect,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rsttrace_plan::{InForce, Kernel, PathLimit};

    fn plan(kernel: Kernel) -> Plan {
        let demand = Demand {
            connections: 20_000_000,
            cps: 100_000,
            life_ms: 1500,
            udp: 100_000,
            quiet_s: Some(28_800),
            ram_bytes: 1 << 40,
            cpus: 64,
            kernel,
            ipvs: true,
            kube_proxy: None,
            path: ["lb", "server"]
                .map(|name| PathLimit { name: name.into(), seconds: 28_800 })
                .into(),
            http_proxy_s: Some(60),
            measured: None,
            now: InForce::default(),
            max: None,
        };
        Plan::new(demand).expect("possible")
    }

    #[test]
    fn only_commands_are_wider_than_the_page() {
        for (kernel, width) in [((5, 10), 80), ((7, 2), 120)] {
            let plan = plan(Kernel { major: kernel.0, minor: kernel.1 });
            let commands: Vec<_> = plan.items.iter().flat_map(|it| it.fix.commands()).collect();
            let text = text(&plan, false, width);
            let is_command = |line: &str| commands.iter().any(|command| line.ends_with(command));
            let wide = text.lines().find(|it| it.chars().count() > width && !is_command(it));
            assert_eq!(wide, None, "at {width} columns");
        }
    }

    #[test]
    fn the_text_and_the_json_contain_every_setting_step_and_limit() {
        let plan = plan(Kernel { major: 7, minor: 2 });
        let text = text(&plan, false, 2000);
        let json = rsttrace_schema::json::line(&json(&plan));
        let steps = plan.items.iter().flat_map(|item| &item.steps);
        let parts = steps
            .flat_map(|step| [step.what.as_str(), &step.formula, &step.result])
            .chain(plan.items.iter().map(|item| item.key))
            .chain(plan.limits.iter().map(|limit| limit.what.as_str()));
        for part in parts {
            assert!(text.contains(part), "{part}");
            assert!(json.contains(part), "{part}");
        }
    }
}
