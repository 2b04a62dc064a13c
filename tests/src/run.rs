//! Runs scenarios and fix tests under a tracer and prints one line for each.
//!
//! Scenarios that do not affect others run at the same time under one tracer; the addresses of an incident identify
//! its scenario. The other scenarios run one by one, each under a new tracer.

use std::{
    cell::OnceCell,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail, ensure};

use crate::{
    Chosen,
    actor::errno_name,
    expect::{self, Expect, Facts, Verdict},
    fix_e2e::{self, FixRunner, FixTest},
    guest::Guest,
    lab::{Lab, Net, Role},
    latency::Delays,
    scenarios::{self, Kept, Observed, Scenario, Stage, TracerUse},
    tracer::{ExitReport, Record, Tracer},
};

pub struct Settings {
    pub tracer: PathBuf,
    pub serial: bool,
    pub provoke_only: bool,
    pub verbose: bool,
}

/// The wait for expected incidents ends when nothing has been printed for this long.
pub const QUIET: Duration = Duration::from_secs(10);
/// Time for an unexpected incident, such as a second one for the same connection.
pub const GRACE: Duration = Duration::from_millis(1_500);
/// Modules that are loaded after the start of the tracer, and the signal that each enables.
pub const LATE_MODULES: [(&str, &str); 2] =
    [("nf_reject_ipv4", "firewall_reset"), ("nf_reject_ipv6", "firewall_reset6")];
/// 1 s, plus the time that an emulated guest needs to load BPF programs.
const HOOKED_WITHIN: Duration = Duration::from_secs(10);
/// The first scenario number; the number selects the subnets.
const FIRST_NUMBER: usize = 11;
/// The result of the tracer itself: it started, exited without an error and printed only JSON.
const SESSION: &str = "tracer_session";

/// Runs the tests; returns whether all passed.
pub fn run(all: &Chosen, settings: Settings) -> Result<bool> {
    let Chosen { scenarios: chosen, fix_tests, fault_tests } = all;
    let mut runner = Runner {
        guest: Guest::probe()?,
        settings,
        failed: 0,
        delays: Delays::default(),
        session_problems: Vec::new(),
    };
    let session = usize::from(!runner.settings.provoke_only);
    let results = chosen.len() + fix_tests.len() + fault_tests.len() + session;
    println!("PLAN {results}");
    println!("CAUSES {}", expect::causes().collect::<Vec<_>>().join(" "));
    if fix_tests.len() == fix_e2e::all().len() {
        fix_e2e::NO_FIX_TEST.iter().for_each(|(cause, why)| println!("NO_FIX_TEST {cause} {why}"));
    }

    let mut playable = Vec::new();
    for &scenario in chosen {
        match runner.guest.missing(scenario.needs) {
            Some(fact) => skip(scenario, &fact),
            None => playable.push(scenario),
        }
    }
    let (shared, alone): (Vec<_>, Vec<_>) =
        playable.into_iter().partition(|scenario| scenario.tracer == TracerUse::Shared);
    runner.play_shared(&shared);
    for scenario in alone {
        runner.play_alone(scenario);
    }
    runner.run_fix_tests(fix_tests);
    for (fault_test, number) in fault_tests.iter().zip(FIRST_NUMBER..) {
        let number = u8::try_from(number).unwrap_or(u8::MAX);
        let passed = fault_test.run(&runner.guest, &runner.settings.tracer, number);
        runner.failed += usize::from(!passed);
    }
    if !runner.settings.provoke_only {
        runner.session_problems.extend(runner.delays.complaint());
        match runner.session_problems.as_slice() {
            [] => println!("RESULT {SESSION} pass none none"),
            [first, ..] => runner.fail(SESSION, &first.clone()),
        }
    }
    println!("DONE {results}");
    Ok(runner.failed == 0)
}

struct Runner {
    guest: Guest,
    settings: Settings,
    failed: usize,
    delays: Delays,
    session_problems: Vec<String>,
}

/// A scenario that has run and waits for its verdict.
pub struct Play {
    scenario: &'static Scenario,
    net: Net,
    expect: Expect,
    pub observed: Result<Observed>,
    namespaces: Vec<(Role, u64)>,
    took: Duration,
    /// Closed only after the tracer has ended: sockets first, then their namespaces.
    _kept: Vec<Kept>,
    _lab: Option<Lab>,
}

impl Runner {
    fn play_shared(&mut self, scenarios: &[&'static Scenario]) {
        if scenarios.is_empty() {
            return;
        }
        let tracer = match self.start_tracer(&[]) {
            Ok(tracer) => tracer,
            Err(error) => {
                self.session_problems.push(one_line(&error));
                scenarios
                    .iter()
                    .for_each(|scenario| self.fail(scenario.name, "the tracer did not start"));
                return;
            }
        };
        if let Some(tracer) = &tracer {
            self.load_late(tracer);
        }
        let batch = if self.settings.serial { 1 } else { scenarios.len() };
        let mut played = Vec::new();
        for batch in scenarios.chunks(batch) {
            let plays = play_together(batch);
            self.judge(&plays, tracer.as_ref());
            played.extend(plays);
        }
        if let Some(tracer) = tracer {
            self.end_session(tracer);
        }
    }

    /// The kernel loads the reject modules with the first rule that needs them, long after the start of the tracer,
    /// which must then attach their hooks. Loaded here, so that the scenarios do not race with that.
    fn load_late(&mut self, tracer: &Tracer) {
        for (module, signal) in LATE_MODULES {
            match self.guest.load(module) {
                Ok(false) => {}
                Ok(true) => {
                    let covered = format!("rsttrace: {signal} is covered now");
                    if !tracer.prints(&covered, HOOKED_WITHIN) {
                        self.session_problems.push(format!(
                            "{module} was loaded, but the tracer did not print `{covered}` within \
                             {HOOKED_WITHIN:?}"
                        ));
                    }
                }
                Err(error) => self.session_problems.push(one_line(&error)),
            }
        }
    }

    fn play_alone(&mut self, scenario: &'static Scenario) {
        // If no shared scenario has loaded them, the first reject would race with the tracer's hooks.
        for (module, _) in LATE_MODULES {
            if let Err(error) = self.guest.load(module) {
                return self.fail(scenario.name, &one_line(&error));
            }
        }
        let tracer = OnceCell::new();
        let start = || {
            let started = self.start_tracer(scenario.tracer.arguments())?;
            tracer.set(started).map_err(|_| anyhow!("the scenario started a second tracer"))
        };
        if scenario.tracer != TracerUse::Late
            && let Err(error) = start()
        {
            return self.fail(scenario.name, &one_line(&error));
        }
        let play = play(scenario, &start);
        let tracer = tracer.into_inner().flatten();
        self.judge(&[play], tracer.as_ref());
        if let Some(tracer) = tracer {
            self.end_session(tracer);
        }
    }

    fn run_fix_tests(&mut self, fix_tests: &[&'static FixTest]) {
        if fix_tests.is_empty() {
            return;
        }
        let tracer = match self.start_tracer(&[]) {
            Ok(tracer) => tracer,
            Err(error) => {
                self.session_problems.push(one_line(&error));
                None
            }
        };
        let runner = FixRunner {
            guest: &self.guest,
            program: &self.settings.tracer,
            tracer: tracer.as_ref(),
            verbose: self.settings.verbose,
        };
        let numbered: Vec<_> =
            fix_tests.iter().map(|&fix_test| (fix_test, number_of_fix_test(fix_test))).collect();
        let failed = fix_e2e::run(&runner, &numbered);
        if let Some(tracer) = &tracer
            && (failed > 0 || self.settings.verbose)
        {
            tracer.stderr().iter().for_each(|line| eprintln!("# stderr: {line}"));
        }
        self.failed += failed;
        if let Some(tracer) = tracer {
            self.end_session(tracer);
        }
    }

    fn start_tracer(&self, more: &[&str]) -> Result<Option<Tracer>> {
        if self.settings.provoke_only {
            return Ok(None);
        }
        let arguments = [&["live", "-o", "json", "--all"], more].concat();
        let tracer = Tracer::start(&self.settings.tracer, &arguments)?;
        if self.settings.verbose {
            eprintln!("# the tracer was ready after {:.2?}", tracer.ready_after);
        }
        Ok(Some(tracer))
    }

    fn judge(&mut self, plays: &[Play], tracer: Option<&Tracer>) {
        let mut records = Vec::new();
        if let Some(tracer) = tracer {
            tracer.wait_for(QUIET, |records| plays.iter().all(|play| play.is_complete(records)));
            thread::sleep(GRACE);
            records = tracer.records();
        }
        let mut failed = false;
        for play in plays {
            let name = play.scenario.name;
            let of_play: Vec<Record> = records
                .iter()
                .filter(|record| expect::belongs(record, &play.net))
                .cloned()
                .collect();
            self.delays.add(&of_play);
            let verdict = play.verdict(&of_play, self.guest.series(), tracer.is_some());
            match &verdict {
                Ok(verdict) => pass(name, verdict),
                Err(error) => self.fail(name, &one_line(error)),
            }
            if verdict.is_err() || self.settings.verbose {
                eprintln!("# {name}: provoked in {:.1?}", play.took);
                of_play.iter().for_each(|record| eprintln!("#   {}", record.line));
            }
            failed |= verdict.is_err();
        }
        if let Some(tracer) = tracer.filter(|_| failed || self.settings.verbose) {
            tracer.stderr().iter().for_each(|line| eprintln!("# stderr: {line}"));
        }
    }

    fn end_session(&mut self, tracer: Tracer) {
        if let Err(error) = check_exit(tracer) {
            self.session_problems.push(one_line(&error));
        }
    }

    fn fail(&mut self, name: &str, reason: &str) {
        println!("RESULT {name} fail {reason}");
        self.failed += 1;
    }
}

fn skip(scenario: &Scenario, fact: &str) {
    println!("RESULT {} skip {fact}", scenario.name);
    for incident in (scenario.expect)(Net::new(number_of(scenario))).incidents {
        println!("FACT {} {} {fact}", scenario.name, incident.causes[0]);
    }
}

fn pass(name: &str, verdict: &Verdict) {
    let (cause, confidence) = verdict.first();
    println!("RESULT {name} pass {cause} {confidence}");
    for (cause, confidence) in &verdict.given {
        println!("GAVE {name} {cause} {confidence}");
    }
    for (cause, fact) in &verdict.facts {
        println!("FACT {name} {cause} {fact}");
    }
}

impl Play {
    /// Whether as many incidents as expected have been printed.
    fn is_complete(&self, records: &[Record]) -> bool {
        let firsts = records
            .iter()
            .filter(|record| expect::belongs(record, &self.net))
            .filter(|record| record.value.pointer("/rsttrace/follows").is_none());
        self.observed.is_err() || firsts.count() >= self.expect.incidents.len()
    }

    fn verdict(&self, records: &[Record], series: &str, traced: bool) -> Result<Verdict> {
        let observed =
            self.observed.as_ref().map_err(|error| anyhow!("not provoked: {error:#}"))?;
        let allowed = &self.expect.actor_errnos;
        match observed.errno.map(errno_name) {
            Some(errno) if !allowed.contains(&errno.as_str()) => {
                bail!("not provoked: the socket's error is {errno}, not {}", allowed.join(" or "))
            }
            None if !allowed.is_empty() && !self.expect.incidents.is_empty() => {
                ensure!(observed.errno.is_some(), "not provoked: no socket had an error");
            }
            _ => {}
        }
        if !traced {
            let errno = observed.errno.map_or_else(|| "none".to_owned(), errno_name);
            return Ok(Verdict { given: vec![("provoked".to_owned(), errno)], facts: Vec::new() });
        }
        let facts = Facts { series, observed, namespaces: &self.namespaces };
        expect::judge(&self.expect, records, &facts)
    }
}

fn play_together(scenarios: &[&'static Scenario]) -> Vec<Play> {
    let nothing_to_start = || bail!("a shared scenario does not start the tracer");
    thread::scope(|scope| {
        let threads: Vec<_> = scenarios
            .iter()
            .map(|scenario| scope.spawn(move || play(scenario, &nothing_to_start)))
            .collect();
        // A panic of a scenario is caught in `play`.
        threads.into_iter().filter_map(|thread| thread.join().ok()).collect()
    })
}

pub fn play(scenario: &'static Scenario, start_tracer: &dyn Fn() -> Result<()>) -> Play {
    let started = Instant::now();
    let net = Net::new(number_of(scenario));
    let mut play = Play {
        scenario,
        net,
        expect: (scenario.expect)(net),
        observed: Err(anyhow!("not run")),
        namespaces: Vec::new(),
        took: Duration::ZERO,
        _kept: Vec::new(),
        _lab: None,
    };
    match build_lab(net, scenario) {
        Err(error) => play.observed = Err(error),
        Ok(lab) => {
            play.namespaces = lab.inodes();
            let stage = Stage::new(net, &lab, start_tracer);
            // A panic fails only this scenario.
            let provoked = catch_unwind(AssertUnwindSafe(|| (scenario.provoke)(&stage)));
            play.observed = provoked.unwrap_or_else(|_| Err(anyhow!("the scenario panicked")));
            play._kept = stage.into_kept();
            play._lab = Some(lab);
        }
    }
    play.took = started.elapsed();
    play
}

/// One at a time: the kernel makes namespaces under a single lock, and the guest has only two processors.
fn build_lab(net: Net, scenario: &Scenario) -> Result<Lab> {
    static BUILDING: Mutex<()> = Mutex::new(());
    let _building = BUILDING.lock().unwrap_or_else(PoisonError::into_inner);
    Lab::build(net, scenario.topology)
}

fn number_of(scenario: &Scenario) -> u8 {
    let index = scenarios::all().iter().position(|it| it.name == scenario.name).unwrap_or(0);
    u8::try_from(FIRST_NUMBER + index).unwrap_or(u8::MAX)
}

/// The numbers of fix tests come after those of scenarios.
fn number_of_fix_test(fix_test: &FixTest) -> u8 {
    let index = fix_e2e::all().iter().position(|it| it.name == fix_test.name).unwrap_or(0);
    u8::try_from(FIRST_NUMBER + scenarios::all().len() + index).unwrap_or(u8::MAX)
}

fn check_exit(tracer: Tracer) -> Result<()> {
    let exit = tracer.stop()?;
    ended_well(&exit)?;
    if let Some(line) = exit.garbage.first() {
        bail!("stdout is not NDJSON: {line:?}");
    }
    let summaries = exit.records.iter().filter(|record| record.is("rsttrace.summary"));
    ensure!(summaries.count() > 0, "no rsttrace.summary at the end");
    Ok(())
}

/// Checks that SIGINT ended the tracer with exit code 0.
pub fn ended_well(exit: &ExitReport) -> Result<()> {
    let code = exit.status.code().context("the tracer was killed by a signal")?;
    ensure!(code == 0, "SIGINT ended the tracer with exit code {code}: {}", exit.stderr.join("; "));
    Ok(())
}

pub fn one_line(error: &anyhow::Error) -> String {
    format!("{error:#}").split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_scenario_has_a_unique_name_and_unique_subnets() {
        let all = scenarios::all();
        assert_eq!(all.iter().map(|it| it.name).collect::<BTreeSet<_>>().len(), all.len());
        let fix_tests = fix_e2e::all();
        let numbers = all.iter().map(|it| number_of(it));
        let numbers = numbers.chain(fix_tests.iter().map(|it| number_of_fix_test(it)));
        assert_eq!(numbers.collect::<BTreeSet<_>>().len(), all.len() + fix_tests.len());
    }

    #[test]
    fn every_expected_cause_is_one_of_the_contract() {
        for scenario in scenarios::all() {
            for incident in (scenario.expect)(Net::new(number_of(scenario))).incidents {
                for cause in incident.causes {
                    assert!(expect::family_of(cause).is_some(), "{}: {cause}", scenario.name);
                }
            }
        }
    }

    #[test]
    fn every_cause_of_the_contract_has_a_scenario_that_provokes_it() {
        let provoked: BTreeSet<_> = scenarios::all()
            .iter()
            .filter(|scenario| !scenario.name.starts_with("near_miss"))
            .flat_map(|scenario| (scenario.expect)(Net::new(number_of(scenario))).incidents)
            .filter_map(|incident| incident.causes.first().copied())
            .collect();
        let missing: Vec<_> = expect::causes().filter(|cause| !provoked.contains(cause)).collect();
        assert!(missing.is_empty(), "{missing:?}");
    }

    #[test]
    fn reasons_are_single_lines() {
        assert_eq!(one_line(&anyhow!("a\n  b").context("c")), "c: a b");
    }
}
