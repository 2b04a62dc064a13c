//! Plays healings under one tracer and reports, one `HEAL` line each. Those that disturb nobody run side by side.

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
    Foreseen, Healing, Round, Scene,
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

pub struct Ward<'a> {
    pub guest: &'a Guest,
    pub program: &'a Path,
    pub tracer: Option<&'a Tracer>,
    pub verbose: bool,
}

/// `chosen` with the numbers of their subnets; how many failed.
pub fn run(ward: &Ward<'_>, chosen: &[(&'static Healing, u8)]) -> usize {
    let mut playable = Vec::new();
    for &(healing, number) in chosen {
        match ward.guest.lack(healing.needs) {
            Some(fact) => report(healing, "skip", Steps::default(), &fact),
            None => playable.push((healing, number)),
        }
    }
    let (alone, beside): (Vec<_>, Vec<_>) = playable.into_iter().partition(|(it, _)| it.alone);
    let mut failed = ward.treat(&beside);
    for one in alone {
        failed += ward.treat(&[one]);
    }
    failed
}

/// `check` is run once for all: when everything is laid out and nothing has broken, and when everything is healed.
struct Survey {
    ready: Barrier,
    done: Barrier,
    found: OnceLock<Result<Vec<Value>>>,
}

impl Ward<'_> {
    /// How many failed.
    fn treat(&self, healings: &[(&'static Healing, u8)]) -> usize {
        if healings.is_empty() {
            return 0;
        }
        let rsttrace = Rsttrace { program: self.program };
        let everybody = healings.len() + 1;
        let surveys = [Survey::of(everybody), Survey::of(everybody)];
        let labs: Vec<_> = healings
            .iter()
            .map(|(healing, number)| Lab::build(Net::new(*number), healing.topology))
            .collect();
        thread::scope(|scope| {
            let (surveys, rsttrace) = (&surveys, &rsttrace);
            let threads: Vec<_> = healings
                .iter()
                .zip(&labs)
                .map(|(&(healing, number), lab)| {
                    scope.spawn(move || {
                        self.play(healing, Net::new(number), lab.as_ref(), surveys, rsttrace)
                    })
                })
                .collect();
            for survey in surveys {
                survey.ready.wait();
                if self.tracer.is_some() {
                    let started = Instant::now();
                    let found = survey.found.get_or_init(|| rsttrace.check());
                    if self.verbose {
                        eprintln!("# check took {:.1?}", started.elapsed());
                        found.iter().flatten().for_each(|it| eprintln!("#   {it}"));
                    }
                }
                survey.done.wait();
            }
            threads.into_iter().map(|it| it.join().map_or(1, usize::from)).sum()
        })
    }

    /// Whether it failed.
    fn play(
        &self,
        healing: &'static Healing,
        net: Net,
        lab: Result<&Lab, &anyhow::Error>,
        [before, healed]: &[Survey; 2],
        rsttrace: &Rsttrace<'_>,
    ) -> bool {
        let started = Instant::now();
        let mut steps = Steps::default();
        let directory = PathBuf::from("/tmp").join(healing.name);
        let is_healed = OnceCell::new();
        let check_again = || *is_healed.get_or_init(|| healed.pass());
        let result = match lab {
            Err(error) => {
                before.pass();
                Err(anyhow!("{error:#}"))
            }
            Ok(lab) => {
                let stage = Stage::new(net, lab, &|| Ok(()));
                let laid_out = caught(|| (healing.lay_out)(&stage)).context("not laid out");
                let findings = before.pass();
                laid_out.and_then(|scene| {
                    caught(|| match (self.tracer, findings) {
                        (Some(tracer), Some(findings)) => {
                            let (guest, directory) = (self.guest, &directory);
                            let case = Case {
                                healing,
                                net,
                                lab,
                                scene: &scene,
                                rsttrace,
                                tracer,
                                guest,
                                directory,
                                check_again: &check_again,
                            };
                            case.play(findings, &mut steps)
                        }
                        _ => provoke(&scene, &mut steps),
                    })
                })
            }
        };
        // Whoever did not get there must not keep the others waiting.
        check_again();
        if self.verbose || result.is_err() {
            eprintln!("# {}: {:.1?}", healing.name, started.elapsed());
        }
        match &result {
            Ok(()) => report(healing, "pass", steps, why_not_foreseen(healing)),
            Err(error) => report(healing, "fail", steps, &one_line(error)),
        }
        result.is_err()
    }
}

/// Without a tracer: whether it breaks at all.
fn provoke(scene: &Scene<'_>, steps: &mut Steps) -> Result<()> {
    let ended = scene(&Round::new(0))?()?;
    ended.errno.context("the connection did not break")?;
    steps.broke = Step::Shown;
    Ok(())
}

impl Survey {
    fn of(everybody: usize) -> Self {
        let [ready, done] = [everybody, everybody].map(Barrier::new);
        Self { ready, done, found: OnceLock::new() }
    }

    /// Waits until everybody is ready, and until `check` has looked. `None` where it did not.
    fn pass(&self) -> Option<&Result<Vec<Value>>> {
        self.ready.wait();
        self.done.wait();
        self.found.get()
    }
}

/// One that panics has failed; the others have not.
fn caught<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err(anyhow!("it panicked")))
}

fn why_not_foreseen(healing: &Healing) -> &'static str {
    match healing.foreseen {
        Foreseen::Not(why) => why,
        Foreseen::In(_) | Foreseen::OnHost => "",
    }
}

fn report(healing: &Healing, verdict: &str, steps: Steps, text: &str) {
    let Healing { name, by, .. } = healing;
    let (cause, id, how) = (healing.cause(), by.id(), by.how());
    let line = format!("HEAL {name} {cause} {id} {how} {verdict} {steps} {text}");
    println!("{}", line.trim_end());
}
