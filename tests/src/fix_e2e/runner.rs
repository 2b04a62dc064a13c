//! Runs fix tests under one tracer and prints one `FIX` line for each. Tests that do not affect others run in parallel.

use std::{
    cell::OnceCell,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{Barrier, OnceLock},
    thread,
    time::Instant,
};

use anyhow::{Context, Result, anyhow};
use serde_json::Value;

use super::{
    FixTest, Prediction, Round, StartRound,
    operator::Rsttrace,
    steps::{Case, Step, Steps},
};
use crate::{
    guest::Guest,
    lab::{Lab, Net},
    run::one_line,
    scenarios::Stage,
    tracer::Tracer,
};

pub struct FixRunner<'a> {
    pub guest: &'a Guest,
    pub program: &'a Path,
    pub tracer: Option<&'a Tracer>,
    pub verbose: bool,
}

/// Runs the `chosen` tests, each with the number of its subnet; returns the number of failures.
pub fn run(runner: &FixRunner<'_>, chosen: &[(&'static FixTest, u8)]) -> usize {
    let mut runnable = Vec::new();
    for &(fix_test, number) in chosen {
        match runner.guest.missing(fix_test.needs) {
            Some(fact) => report(fix_test, "skip", Steps::default(), &fact),
            None => runnable.push((fix_test, number)),
        }
    }
    let (alone, parallel): (Vec<_>, Vec<_>) = runnable.into_iter().partition(|(it, _)| it.alone);
    let mut failed = runner.run_batch(&parallel);
    for one in alone {
        failed += runner.run_batch(&[one]);
    }
    failed
}

/// A run of `check` that all tests share: one before any connection breaks, and one after all fixes are applied.
struct CheckRun {
    ready: Barrier,
    done: Barrier,
    findings: OnceLock<Result<Vec<Value>>>,
}

impl FixRunner<'_> {
    /// Runs tests in parallel; returns the number of failures.
    fn run_batch(&self, fix_tests: &[(&'static FixTest, u8)]) -> usize {
        if fix_tests.is_empty() {
            return 0;
        }
        let rsttrace = Rsttrace { program: self.program };
        let threads = fix_tests.len() + 1;
        let check_runs = [CheckRun::new(threads), CheckRun::new(threads)];
        let labs: Vec<_> = fix_tests
            .iter()
            .map(|(fix_test, number)| Lab::build(Net::new(*number), fix_test.topology))
            .collect();
        thread::scope(|scope| {
            let (check_runs, rsttrace) = (&check_runs, &rsttrace);
            let threads: Vec<_> = fix_tests
                .iter()
                .zip(&labs)
                .map(|(&(fix_test, number), lab)| {
                    scope.spawn(move || {
                        self.run_test(
                            fix_test,
                            Net::new(number),
                            lab.as_ref(),
                            check_runs,
                            rsttrace,
                        )
                    })
                })
                .collect();
            for check_run in check_runs {
                check_run.ready.wait();
                if self.tracer.is_some() {
                    let started = Instant::now();
                    let findings = check_run.findings.get_or_init(|| rsttrace.check());
                    if self.verbose {
                        eprintln!("# check took {:.1?}", started.elapsed());
                        findings.iter().flatten().for_each(|it| eprintln!("#   {it}"));
                    }
                }
                check_run.done.wait();
            }
            threads.into_iter().map(|it| it.join().map_or(1, usize::from)).sum()
        })
    }

    /// Runs one test; returns whether it failed.
    fn run_test(
        &self,
        fix_test: &'static FixTest,
        net: Net,
        lab: Result<&Lab, &anyhow::Error>,
        [before, after]: &[CheckRun; 2],
        rsttrace: &Rsttrace<'_>,
    ) -> bool {
        let started = Instant::now();
        let mut steps = Steps::default();
        let directory = PathBuf::from("/tmp").join(fix_test.name);
        let findings_after = OnceCell::new();
        let check_again = || *findings_after.get_or_init(|| after.wait());
        let result = match lab {
            Err(error) => {
                before.wait();
                Err(anyhow!("{error:#}"))
            }
            Ok(lab) => {
                let stage = Stage::new(net, lab, &|| Ok(()));
                let set_up = caught(|| (fix_test.set_up)(&stage)).context("not set up");
                let findings = before.wait();
                set_up.and_then(|start_round| {
                    caught(|| match (self.tracer, findings) {
                        (Some(tracer), Some(findings)) => {
                            let (guest, directory) = (self.guest, &directory);
                            let case = Case {
                                fix_test,
                                net,
                                lab,
                                start_round: &start_round,
                                rsttrace,
                                tracer,
                                guest,
                                directory,
                                check_again: &check_again,
                            };
                            case.run(findings, &mut steps)
                        }
                        _ => provoke(&start_round, &mut steps),
                    })
                })
            }
        };
        // A test that failed earlier must not block the others.
        check_again();
        if self.verbose || result.is_err() {
            eprintln!("# {}: {:.1?}", fix_test.name, started.elapsed());
        }
        match &result {
            Ok(()) => report(fix_test, "pass", steps, why_not_predicted(fix_test)),
            Err(error) => report(fix_test, "fail", steps, &one_line(error)),
        }
        result.is_err()
    }
}

/// Without a tracer: checks only that the connection breaks.
fn provoke(start_round: &StartRound<'_>, steps: &mut Steps) -> Result<()> {
    let ended = start_round(&Round::new(0))?()?;
    ended.errno.context("the connection did not break")?;
    steps.broke = Step::Shown;
    Ok(())
}

impl CheckRun {
    /// Shared by this number of threads.
    fn new(threads: usize) -> Self {
        let [ready, done] = [threads, threads].map(Barrier::new);
        Self { ready, done, findings: OnceLock::new() }
    }

    /// Waits until all threads are ready and `check` has run. Returns `None` if it did not run.
    fn wait(&self) -> Option<&Result<Vec<Value>>> {
        self.ready.wait();
        self.done.wait();
        self.findings.get()
    }
}

/// Turns a panic into an error, so that it fails one test only.
fn caught<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err(anyhow!("the test panicked")))
}

fn why_not_predicted(fix_test: &FixTest) -> &'static str {
    match fix_test.prediction {
        Prediction::Not(why) => why,
        Prediction::In(_) | Prediction::OnHost => "",
    }
}

fn report(fix_test: &FixTest, verdict: &str, steps: Steps, text: &str) {
    let FixTest { name, by, .. } = fix_test;
    let (cause, id, how) = (fix_test.cause(), by.id(), by.how());
    let line = format!("FIX {name} {cause} {id} {how} {verdict} {steps} {text}");
    println!("{}", line.trim_end());
}
