//! What the hooks and modules of this machine mean: which causes can be identified here, with which
//! confidence, and what to install or enable.

use std::collections::BTreeSet;

use rsttrace_core::{
    causes::{self, cause::Cause, doc::RequiredSignal},
    verdict::Confidence,
};
use rsttrace_kernel::{
    attach::Kprobes,
    choose::{Choice, WhyNot},
    data_plane::DataPlane,
    examine::Examination,
    host_access,
    manifest::{AttachKind, Program},
    prepare::StartError,
    signal::AttachOption,
};

use crate::cmd::Exit;

/// The output of `doctor`.
pub struct Diagnosis {
    pub kernel: String,
    pub architecture: String,
    pub btf: bool,
    pub kprobes: Kprobes,
    /// Why tracing cannot start; `None` if it can.
    pub refusal: Option<Refusal>,
    pub signals: Vec<SignalReport>,
    pub causes: Vec<CauseReport>,
    pub data_planes: Vec<DataPlane>,
    /// What to install or enable.
    pub advice: Vec<String>,
}

/// Why tracing cannot start, and the exit code of `live`.
pub struct Refusal {
    pub exit: Exit,
    pub why: String,
}

/// How much of a signal or cause is covered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Full,
    Part,
    No,
    /// The kernel module is not loaded, so there is nothing to trace.
    Dormant,
}

impl State {
    pub fn id(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Part => "part",
            Self::No => "no",
            Self::Dormant => "dormant",
        }
    }
}

/// A signal on this machine.
pub struct SignalReport {
    pub id: &'static str,
    pub title: &'static str,
    pub state: State,
    /// "tcp_reset (kprobe)"
    pub way: Vec<String>,
    /// Better ways, and why each is not used: "ip_vs_conn_expire", "this kernel has no kprobes".
    pub instead_of: Vec<(String, String)>,
    /// Whether a kprobe of a better way was refused.
    pub wants_kprobe: bool,
    pub invisible: Option<String>,
    pub cost: Option<&'static str>,
    pub module: Option<&'static str>,
}

/// A cause on this machine.
pub struct CauseReport {
    pub cause: &'static Cause,
    pub state: State,
    /// The best confidence that is possible here; `None` if the cause stays `unknown`.
    pub best: Option<Confidence>,
    /// Signals that are missing for the best documented confidence.
    pub lacks: Vec<RequiredSignal>,
    /// Modules that are not loaded, without which the cause cannot happen.
    pub modules: Vec<&'static str>,
}

impl Diagnosis {
    /// Evaluates what was found on this machine.
    pub fn new(found: Examination, data_planes: Vec<DataPlane>) -> Self {
        let mut signals: Vec<SignalReport> =
            found.choices.iter().map(|choice| signal(choice, &found.absent_modules)).collect();
        signals.extend(found.look_ups.iter().zip(host_access::ALL).map(|(coverage, look_up)| {
            let state = if coverage.way.is_some() { State::Full } else { State::No };
            SignalReport {
                id: look_up.id,
                title: look_up.title,
                state,
                way: coverage.way.iter().cloned().collect(),
                instead_of: Vec::new(),
                wants_kprobe: false,
                invisible: coverage.blind.clone(),
                cost: None,
                module: None,
            }
        }));
        // Without choices the kernel could not be examined, so nothing is known about the causes.
        let causes = if found.choices.is_empty() { Vec::new() } else { causes(&signals) };
        let refusal = found.started.as_ref().err().map(Refusal::new);
        let advice = advice(&found, &signals);
        Self {
            kernel: found.kernel,
            architecture: found.architecture,
            btf: found.btf,
            kprobes: found.kprobes,
            refusal,
            signals,
            causes,
            data_planes,
            advice,
        }
    }

    /// Number of signals that are covered in full or in part.
    pub fn covered(&self) -> usize {
        let covered = |it: &&SignalReport| matches!(it.state, State::Full | State::Part);
        self.signals.iter().filter(covered).count()
    }

    /// The exit code that `live` would end with.
    pub fn exit(&self) -> Exit {
        self.refusal.as_ref().map_or(Exit::Fine, |refusal| refusal.exit)
    }
}

impl Refusal {
    fn new(error: &StartError) -> Self {
        let (exit, error) = match error {
            StartError::NotPermitted(error) => (Exit::NotPermitted, error),
            StartError::Unsupported(error) => (Exit::Unsupported, error),
            StartError::Internal(error) => (Exit::Internal, error),
        };
        Self { exit, why: format!("{error:#}") }
    }
}

fn signal(choice: &Choice, absent_modules: &BTreeSet<&str>) -> SignalReport {
    let signal = choice.signal;
    let absent = signal.module.is_some_and(|module| absent_modules.contains(module));
    let (state, way, invisible, cost) = match &choice.taken {
        Some((way, programs)) => {
            let state = if way.blind.is_some() { State::Part } else { State::Full };
            (state, names(programs), way.blind, way.cost)
        }
        None => (State::No, Vec::new(), Some(signal.blind), None),
    };
    let state = if absent && state != State::Full { State::Dormant } else { state };
    let is_active = state != State::Dormant;
    SignalReport {
        id: signal.id,
        title: signal.title,
        state,
        way,
        instead_of: choice
            .passed
            .iter()
            .filter(|_| is_active)
            .map(|(way, why)| (way_name(way, choice), describe(why)))
            .collect(),
        wants_kprobe: is_active && choice.passed.iter().any(|(_, why)| wants_kprobe(why)),
        invisible: invisible.filter(|_| is_active).map(str::to_owned),
        cost,
        module: signal.module,
    }
}

/// The programs of a way. A backup program has the same target as the program that the kernel may skip, and
/// is not listed.
fn names(programs: &[Program]) -> Vec<String> {
    let mut names: Vec<String> = programs.iter().map(program).collect();
    names.dedup();
    names
}

/// "tcp_send_reset (raw tracepoint)"
fn program(program: &Program) -> String {
    let kind = match program.way {
        AttachKind::RawTracepoint => "raw tracepoint",
        AttachKind::Fentry => "fentry",
        AttachKind::KprobePart0 | AttachKind::Kprobe => "kprobe",
        AttachKind::Kretprobe => "kretprobe",
    };
    format!("{} ({kind})", program.target)
}

/// "early_drop + kfree_skb"; "tcp_send_reset alone" where more than that was attached.
fn way_name(way: &AttachOption, choice: &Choice) -> String {
    let taken = choice.taken.as_ref().map_or(&[][..], |(taken, _)| taken.hooks);
    let part = way.hooks.len() < taken.len() && way.hooks.iter().all(|hook| taken.contains(hook));
    let is_backup =
        |hook: &&str| hook.strip_suffix("_backup").is_some_and(|it| way.hooks.contains(&it));
    let hooks: Vec<&str> = way.hooks.iter().copied().filter(|hook| !is_backup(hook)).collect();
    hooks.join(" + ") + if part { " alone" } else { "" }
}

fn wants_kprobe(why: &WhyNot) -> bool {
    matches!(why, WhyNot::Hook(_, refused) if refused.iter().any(|it| it.is_kprobe))
}

fn describe(why: &WhyNot) -> String {
    match why {
        WhyNot::Fact(fact) => describe_fact(fact),
        WhyNot::KprobesExist => "used on kernels without kprobes only, because of its cost".into(),
        // Programs are tried in order; the last one is the simplest.
        WhyNot::Hook(hook, refused) => match refused.last() {
            Some(refused) => short(&refused.why),
            None => format!("this build has no program for {hook}"),
        },
    }
}

/// The first line of an error, and the line of the verifier log that names the fault: the last one before
/// the `processed` line. A verifier log can be pages long.
fn short(why: &str) -> String {
    let mut lines = why.lines().map(str::trim).filter(|line| !line.is_empty());
    let first = lines.next().unwrap_or_default().to_owned();
    match lines.rfind(|line| !line.starts_with("processed ")) {
        Some(last) => format!("{first} … {last}"),
        None => first,
    }
}

/// A missing fact (see `kernel/manifest.rs`), described in terms of this kernel.
fn describe_fact(symbol: &str) -> String {
    let name = |rest: &str| rest.replace("btf_trace_", "").replace("_DOT_", ".");
    let pair = |rest: &str| match rest.split_once("_DOT_") {
        Some((owner, part)) => (name(owner), name(part)),
        None => (name(rest), String::new()),
    };
    if let Some(rest) = symbol.strip_prefix("ARG_OF_") {
        let (function, part) = pair(rest);
        format!("{function} has no {part} parameter in this kernel")
    } else if let Some(rest) = symbol.strip_prefix("VALUE_OF_") {
        let (enumeration, variant) = pair(rest);
        format!("this kernel's {enumeration} has no {variant}")
    } else if let Some(rest) = symbol.strip_prefix("ADDRESS_OF_") {
        format!("the address of {} is not in /proc/kallsyms", name(rest))
    } else {
        let rest = symbol.split_once("_OF_").map_or(symbol, |(_, rest)| rest);
        format!("{} is missing from BTF", name(rest))
    }
}

fn causes(signals: &[SignalReport]) -> Vec<CauseReport> {
    let state = |need: RequiredSignal| {
        signals.iter().find(|it| it.id == need.signal()).map_or(State::No, |it| it.state)
    };
    let is_met = |need: RequiredSignal| match (need, state(need)) {
        (_, State::Full) | (RequiredSignal::Any(_), State::Part) => true,
        (_, State::Part | State::No | State::Dormant) => false,
    };
    let is_met_or_dormant = |need: RequiredSignal| is_met(need) || state(need) == State::Dormant;
    causes::ALL
        .iter()
        .filter_map(|cause| {
            let doc = &cause.doc;
            let documented = doc.best_confidence(|_| true)?;
            let best = doc.best_confidence(is_met);
            let state = match best {
                Some(best) if best == documented => State::Full,
                _ if doc.best_confidence(is_met_or_dormant) > best => State::Dormant,
                Some(_) => State::Part,
                None => State::No,
            };
            let strongest =
                doc.detections.iter().filter(|detection| detection.confidence == documented);
            let lacks: Vec<RequiredSignal> = strongest
                .map(|detection| {
                    detection.needs.iter().copied().filter(|need| !is_met(*need)).collect()
                })
                .min_by_key(Vec::len)
                .unwrap_or_default();
            let dormant = signals.iter().filter(|it| it.state == State::Dormant);
            let mut modules: Vec<_> = dormant
                .filter(|it| lacks.iter().any(|need| need.signal() == it.id))
                .filter_map(|it| it.module)
                .collect();
            modules.dedup();
            Some(CauseReport { cause, state, best, lacks, modules })
        })
        .collect()
}

fn advice(found: &Examination, signals: &[SignalReport]) -> Vec<String> {
    let mut advice = Vec::new();
    if !found.btf {
        advice.push(
            "boot a kernel built with CONFIG_DEBUG_INFO_BTF=y: the layout of kernel structs is read from \
             /sys/kernel/btf/vmlinux"
                .into(),
        );
    }
    let wants_kprobes: Vec<&str> = signals
        .iter()
        .filter(|it| it.wants_kprobe && it.state != State::Full)
        .map(|it| it.id)
        .collect();
    if found.kprobes == Kprobes::Missing && !wants_kprobes.is_empty() {
        advice.push(format!(
            "boot a kernel built with CONFIG_KPROBES=y, CONFIG_KPROBE_EVENTS=y and \
             CONFIG_PERF_EVENTS=y, to trace more of {}",
            wants_kprobes.join(", ")
        ));
    }
    let is = |id: &str, state| signals.iter().any(|it| it.id == id && it.state == state);
    if is("kernel_symbols", State::No) {
        advice.push(
            "make kernel symbols readable: set kernel.kptr_restrict to 1 or 0, and grant CAP_SYSLOG".into(),
        );
    }
    if is("namespaces", State::No) || is("owners", State::No) {
        advice.push(
            "grant CAP_SYS_ADMIN and CAP_SYS_PTRACE, and in a container share the PID namespace of the \
             host (hostPID: true, docker run --pid=host)"
                .into(),
        );
    }
    advice
}

#[cfg(test)]
mod tests {
    use super::*;
    use rsttrace_core::event::SignalCoverage;
    use rsttrace_kernel::{choose::Refused, signal};

    /// A kernel on which each signal of `ways` is traced by the way with this index, and no other signal is.
    fn found(ways: &[(&str, usize)], absent_modules: &[&'static str]) -> Examination {
        let choices = signal::ALL.iter().map(|signal| {
            let way = ways.iter().find(|(id, _)| *id == signal.id).map(|(_, number)| *number);
            let better = way.unwrap_or(signal.ways.len());
            let refused = |hook: &str| Refused {
                program: hook.into(),
                is_kprobe: true,
                why: "no kprobes".into(),
            };
            Choice {
                signal,
                taken: way.map(|number| (&signal.ways[number], Vec::new())),
                passed: signal.ways[..better]
                    .iter()
                    .map(|way| (way, WhyNot::Hook(way.hooks[0], vec![refused(way.hooks[0])])))
                    .collect(),
            }
        });
        let look_ups = host_access::ALL.iter().map(|look_up| SignalCoverage {
            id: look_up.id.into(),
            way: Some(look_up.from.into()),
            blind: None,
            attaching: false,
        });
        Examination {
            kernel: "6.1.0".into(),
            architecture: "x86_64".into(),
            btf: true,
            kprobes: Kprobes::Missing,
            started: Ok(()),
            choices: choices.collect(),
            look_ups: look_ups.collect(),
            absent_modules: absent_modules.iter().copied().collect(),
        }
    }

    fn everything() -> Vec<(&'static str, usize)> {
        signal::ALL.iter().map(|signal| (signal.id, 0)).collect()
    }

    fn cause<'a>(diagnosis: &'a Diagnosis, id: &str) -> &'a CauseReport {
        diagnosis.causes.iter().find(|it| it.cause.id == id).expect("the cause")
    }

    #[test]
    fn with_every_signal_every_cause_has_its_documented_confidence() {
        let diagnosis = Diagnosis::new(found(&everything(), &[]), Vec::new());
        for it in &diagnosis.causes {
            assert_eq!(
                (it.state, it.best),
                (State::Full, it.cause.doc.best_confidence(|_| true)),
                "{:?}",
                it.cause
            );
            assert!(it.lacks.is_empty());
        }
        assert!(diagnosis.advice.is_empty());
    }

    #[test]
    fn a_hook_with_a_backup_program_is_named_once() {
        let mut found = found(&everything(), &[]);
        let choice = found.choices.iter_mut().find(|it| it.signal.id == "reset_sent");
        let choice = choice.expect("a signal");
        let way = &choice.signal.ways[0];
        assert_eq!(way.hooks, ["tcp_send_reset", "tcp_send_reset_backup"]);
        let program = |hook: &&str| Program {
            name: format!("{hook}__rawtp"),
            hook: (*hook).to_owned(),
            way: AttachKind::RawTracepoint,
            target: "tcp_send_reset".into(),
        };
        choice.taken = Some((way, way.hooks.iter().map(program).collect()));
        assert_eq!(way_name(way, choice), "tcp_send_reset");
        let diagnosis = Diagnosis::new(found, Vec::new());
        let signal = diagnosis.signals.iter().find(|it| it.id == "reset_sent").expect("a signal");
        assert_eq!(signal.way, ["tcp_send_reset (raw tracepoint)"]);
    }

    #[test]
    fn without_the_end_of_entries_an_ipvs_expiry_is_at_best_inferred() {
        let mut ways = everything();
        ways.retain(|(id, _)| *id != "ipvs_end");
        let diagnosis = Diagnosis::new(found(&ways, &[]), Vec::new());
        let it = cause(&diagnosis, "ipvs_idle_expired");
        assert_eq!((it.state, it.best), (State::Part, Some(Confidence::Inferred)));
        assert_eq!(it.lacks, [RequiredSignal::Any("ipvs_end")]);
    }

    #[test]
    fn a_module_that_is_not_loaded_is_dormant_and_gives_no_advice() {
        let mut ways = everything();
        ways.retain(|(id, _)| !id.starts_with("ipvs"));
        let diagnosis = Diagnosis::new(found(&ways, &["ip_vs"]), Vec::new());
        let it = cause(&diagnosis, "ipvs_idle_expired");
        assert_eq!((it.state, it.modules.as_slice()), (State::Dormant, ["ip_vs"].as_slice()));
        assert!(diagnosis.advice.is_empty(), "no advice to load it: {:?}", diagnosis.advice);
    }

    #[test]
    fn a_reset_without_its_header_leaves_the_remote_causes_unknown() {
        let mut ways = everything();
        ways.retain(|(id, _)| *id != "reset_received");
        ways.push(("reset_received", 1));
        let diagnosis = Diagnosis::new(found(&ways, &[]), Vec::new());
        for id in ["peer_aborted", "peer_state_lost"] {
            let it = cause(&diagnosis, id);
            assert_eq!((it.state, it.best), (State::No, None), "{id}");
            assert_eq!(it.lacks, [RequiredSignal::Full("reset_received")], "{id}");
        }
        assert!(diagnosis.advice[0].contains("CONFIG_KPROBES=y"));
    }

    #[test]
    fn the_exit_code_is_that_of_live() {
        let refused = StartError::NotPermitted(anyhow::anyhow!("CAP_BPF is missing"));
        let found = Examination { started: Err(refused), ..found(&everything(), &[]) };
        let diagnosis = Diagnosis::new(found, Vec::new());
        assert_eq!(diagnosis.exit(), Exit::NotPermitted);
        assert!(!diagnosis.signals.is_empty(), "the signals are listed all the same");
    }

    #[test]
    fn missing_facts_are_described() {
        for (fact, sentence) in [
            (
                "ARG_OF_btf_trace_tcp_send_reset_DOT_sk_rst_reason",
                "tcp_send_reset has no sk_rst_reason parameter in this kernel",
            ),
            ("OFFSET_OF_ip_vs_conn_DOT_timer", "ip_vs_conn.timer is missing from BTF"),
            (
                "ADDRESS_OF_ip_vs_conn_expire",
                "the address of ip_vs_conn_expire is not in /proc/kallsyms",
            ),
        ] {
            assert_eq!(describe_fact(fact), sentence);
        }
    }

    #[test]
    fn a_verifier_log_is_shortened_to_one_line() {
        let log = "cannot load\n0: (b7) r0 = 0\nR1 invalid mem access\nprocessed 3 insns\n";
        assert_eq!(short(log), "cannot load … R1 invalid mem access");
        assert_eq!(short("one line"), "one line");
    }
}
