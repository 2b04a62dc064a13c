//! The steps of one fix test: predicted, broke, fixed, undone and broke again.

use std::{fmt, path::Path};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::{
    By, FixTest, IDLE, Outcome, Prediction, Round, StartRound,
    operator::{Fixer, Rsttrace},
    snapshot::Snapshot,
};
use crate::{
    actor::errno_name,
    expect::{self, Expect, Facts},
    guest::Guest,
    lab::{Lab, Net, Role},
    run::{GRACE, QUIET},
    scenarios::Observed,
    tracer::{Record, Tracer},
};

/// The result of one step of a fix test.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Step {
    #[default]
    NotReached,
    Shown,
    /// The step does not apply to this fix test.
    None,
    Failed,
}

/// The results of all steps, in order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Steps {
    pub predicted: Step,
    pub broke: Step,
    pub fixed: Step,
    pub undone: Step,
}

impl fmt::Display for Steps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = [self.predicted, self.broke, self.fixed, self.undone];
        for (step, letter) in all.into_iter().zip(['P', 'B', 'F', 'U']) {
            let mark = match step {
                Step::Shown => letter,
                Step::NotReached => '.',
                Step::None => '-',
                Step::Failed => '!',
            };
            write!(f, "{mark}")?;
        }
        Ok(())
    }
}

/// One fix test and its lab.
pub struct Case<'a, 's, 'f> {
    pub fix_test: &'static FixTest,
    pub net: Net,
    pub lab: &'a Lab,
    pub start_round: &'a StartRound<'s>,
    pub rsttrace: &'a Rsttrace<'a>,
    pub tracer: &'a Tracer,
    pub guest: &'a Guest,
    /// The directory for the incident and the journal.
    pub directory: &'a Path,
    /// Waits until the other tests have applied their fixes; returns the findings of `check` then, at every call the same.
    pub check_again: &'a dyn Fn() -> Option<&'f Result<Vec<Value>>>,
}

impl Case<'_, '_, '_> {
    /// `findings` are those of the whole host before anything broke.
    pub fn run(&self, findings: &Result<Vec<Value>>, steps: &mut Steps) -> Result<()> {
        let prediction = self.check_prediction(findings);
        steps.predicted = match (&prediction, self.fix_test.prediction) {
            (Err(_), _) => Step::Failed,
            (Ok(()), Prediction::Not(_)) => Step::None,
            (Ok(()), _) => Step::Shown,
        };
        // A missing prediction fails the test, but only after the other steps.
        self.break_and_fix(steps)?;
        prediction
    }

    fn check_prediction(&self, findings: &Result<Vec<Value>>) -> Result<()> {
        let Some(at) = self.predicted_netns()? else { return Ok(()) };
        let of_cause = self.of_cause(findings)?;
        if of_cause.iter().any(|it| it["netns"] == at && it["rank"] != "info") {
            return Ok(());
        }
        bail!(
            "check does not predict {} in {at}; its findings are {:?}",
            self.fix_test.cause(),
            summaries(&of_cause)
        )
    }

    /// After the fix, `check` must not warn of the cause again, except for idle times longer than those of the fix.
    fn check_no_warning(&self, findings: &Result<Vec<Value>>) -> Result<()> {
        let Some(at) = self.predicted_netns()? else { return Ok(()) };
        let mut warnings = self.of_cause(findings)?;
        let outlives = |it: &Value| it["after_s"].as_u64().is_some_and(|s| s > IDLE.as_secs());
        warnings.retain(|it| it["netns"] == at && it["rank"] != "info" && !outlives(it));
        ensure!(warnings.is_empty(), "check still warns of the cause: {:?}", summaries(&warnings));
        Ok(())
    }

    /// The namespace for which `check` must have a finding.
    fn predicted_netns(&self) -> Result<Option<u64>> {
        Ok(match self.fix_test.prediction {
            Prediction::Not(_) => None,
            Prediction::OnHost => Some(self.guest.initial_netns()?),
            Prediction::In(role) => Some(self.inode(role)?),
        })
    }

    fn of_cause<'f>(&self, findings: &'f Result<Vec<Value>>) -> Result<Vec<&'f Value>> {
        let cause = self.fix_test.cause();
        match findings {
            Ok(findings) => Ok(findings.iter().filter(|it| it["cause"] == cause).collect()),
            Err(error) => bail!("{error:#}"),
        }
    }

    fn inode(&self, role: Role) -> Result<u64> {
        let found =
            self.lab.inodes().into_iter().find_map(|(it, inode)| (it == role).then_some(inode));
        found.with_context(|| format!("the lab has no {role:?}"))
    }

    fn break_and_fix(&self, steps: &mut Steps) -> Result<()> {
        let before = self.snapshot()?;
        let incident = self.breaks(Round::new(0)).context("before the fix").inspect_err(|_| {
            steps.broke = Step::Failed;
        })?;
        steps.broke = Step::Shown;
        match self.fix_test.by {
            By::Advice(id) => self.follow(id, &incident, &before, steps),
            By::Fix(_) => self.apply(&[], None, &incident, &before, steps),
            By::FixOnlyNew(_, word) => self.apply(&[], Some(word), &incident, &before, steps),
            By::Chosen(id, word) => {
                self.apply(&["--choose", id], Some(word), &incident, &before, steps)
            }
        }
    }

    fn follow(
        &self,
        id: &str,
        incident: &Value,
        before: &Snapshot,
        steps: &mut Steps,
    ) -> Result<()> {
        steps.fixed = Step::Failed;
        let fixes = incident["rsttrace"]["fixes"].as_array().context("no fixes")?;
        let advice = fixes.iter().find(|fix| fix["id"] == id);
        let advice = advice.with_context(|| format!("the incident does not advise {id}"))?;
        let round = Round::new(1).following(advice.clone());
        self.works(&round).with_context(|| format!("following {id}"))?;
        // The connection that followed the advice has ended, so `check` cannot see it.
        (self.check_again)();
        same(before, &self.snapshot()?).context("following advice changed the host")?;
        steps.fixed = Step::Shown;
        steps.undone = Step::Failed;
        self.breaks(Round::new(2)).context("no longer following the advice")?;
        steps.undone = Step::Shown;
        Ok(())
    }

    fn apply(
        &self,
        options: &[&str],
        only_new: Option<&str>,
        incident: &Value,
        before: &Snapshot,
        steps: &mut Steps,
    ) -> Result<()> {
        steps.fixed = Step::Failed;
        let fixer = Fixer::new(self.rsttrace, self.directory, incident, options)?;
        let begun_before = only_new.map(|_| (self.start_round)(&Round::new(1))).transpose()?;
        let plan = fixer.plan()?;
        let id = self.fix_test.by.id();
        ensure!(plan.contains(id), "the plan does not name {id}: {plan}");
        same(before, &self.snapshot()?).context("printing the plan changed the host")?;
        let applied = fixer.apply()?;
        let fixed = self.snapshot()?;
        ensure!(!before.differences(&fixed).is_empty(), "nothing was changed: {applied}");
        fixer.apply().context("applied again")?;
        same(&fixed, &self.snapshot()?).context("the second apply changed something")?;
        if let (Some(word), Some(begun)) = (only_new, begun_before) {
            ensure!(plan.contains(word), "the plan does not contain {word:?}: {plan}");
            self.ends_in_incident(&Round::new(1), begun()?)
                .context("older than the fix, which does not help it according to the plan")?;
        }
        self.works(&Round::new(2)).with_context(|| format!("after {applied}"))?;
        if let Some(findings) = (self.check_again)() {
            self.check_no_warning(findings).with_context(|| format!("after {applied}"))?;
        }
        steps.fixed = Step::Shown;
        steps.undone = Step::Failed;
        fixer.undo()?;
        same(before, &self.snapshot()?).context("the undo")?;
        self.breaks(Round::new(3)).context("after the undo")?;
        steps.undone = Step::Shown;
        Ok(())
    }

    fn snapshot(&self) -> Result<Snapshot> {
        Snapshot::take(self.guest, self.lab)
    }

    fn breaks(&self, round: Round) -> Result<Value> {
        let ended = (self.start_round)(&round)?()?;
        self.ends_in_incident(&round, ended)
    }

    fn works(&self, round: &Round) -> Result<()> {
        let ended = (self.start_round)(round)?()?;
        if let Some(errno) = ended.errno {
            self.tracer.wait_for(QUIET, |records| !self.of(round, records).is_empty());
            let of_round = self.of(round, &self.tracer.records());
            let causes: Vec<_> = of_round.iter().map(|it| &it.value["message"]).collect();
            bail!("the connection broke ({}): {causes:?}", errno_name(errno));
        }
        std::thread::sleep(GRACE);
        self.judge(&Expect::nothing(), round, Outcome::default()).map(drop)
    }

    fn ends_in_incident(&self, round: &Round, ended: Outcome) -> Result<Value> {
        let errno = ended.errno.context("the connection did not break")?;
        self.tracer.wait_for(QUIET, |records| !self.of(round, records).is_empty());
        let expect = Expect::one((self.fix_test.expect)(self.net, round));
        let judged = self.judge(&expect, round, ended);
        let first = judged.with_context(|| format!("ended in {}", errno_name(errno)))?;
        first.context("no incident")
    }

    /// The first incident of a round whose incidents are as expected.
    fn judge(&self, expect: &Expect, round: &Round, ended: Outcome) -> Result<Option<Value>> {
        let records = self.of(round, &self.tracer.records());
        let observed = Observed {
            errno: ended.errno,
            source: ended.port.map(|port| self.net.client(port)),
            ..Observed::default()
        };
        let namespaces = self.lab.inodes();
        let facts =
            Facts { series: self.guest.series(), observed: &observed, namespaces: &namespaces };
        expect::judge(expect, &records, &facts)?;
        Ok(records.into_iter().map(|record| record.value).next())
    }

    /// The incidents of a round.
    fn of(&self, round: &Round, records: &[Record]) -> Vec<Record> {
        let is_of_round = |record: &&Record| {
            let port = record.value.pointer("/source/port").and_then(Value::as_u64);
            expect::belongs(record, &self.net)
                && port.and_then(|port| port.try_into().ok()).is_some_and(|port| round.owns(port))
        };
        records.iter().filter(is_of_round).cloned().collect()
    }
}

fn summaries(findings: &[&Value]) -> Vec<String> {
    let one = |it: &&Value| format!("{} in {}: {}", it["rank"], it["netns"], it["reason"]);
    findings.iter().map(one).collect()
}

fn same(before: &Snapshot, after: &Snapshot) -> Result<()> {
    let differences = before.differences(after);
    ensure!(differences.is_empty(), "not as before: {}", differences.join("; "));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_letters() {
        let steps = Steps { predicted: Step::None, broke: Step::Shown, ..Steps::default() };
        assert_eq!(steps.to_string(), "-B..");
        let all = Steps {
            predicted: Step::Shown,
            broke: Step::Shown,
            fixed: Step::Shown,
            undone: Step::Failed,
        };
        assert_eq!(all.to_string(), "PBF!");
    }
}
