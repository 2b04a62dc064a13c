//! The steps of one healing: foreseen, broke, healed, undone and broke again.

use std::{fmt, path::Path};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::{
    By, Ended, Foreseen, Healing, IDLE, Round, Scene,
    operator::{Fixer, Rsttrace},
    snapshot::Snapshot,
};
use crate::{
    actor::errno_name,
    expect::{self, Expect, Facts},
    guest::Guest,
    lab::{Lab, Net, Role},
    run::{GRACE, QUIET},
    scenarios::Witness,
    tracer::{Record, Tracer},
};

/// How far a healing got.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Step {
    #[default]
    NotReached,
    Shown,
    /// It does not apply to this healing.
    None,
    Failed,
}

/// In their order.
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

/// One healing and its lab.
pub struct Case<'a, 's, 'f> {
    pub healing: &'static Healing,
    pub net: Net,
    pub lab: &'a Lab,
    pub scene: &'a Scene<'s>,
    pub rsttrace: &'a Rsttrace<'a>,
    pub tracer: &'a Tracer,
    pub guest: &'a Guest,
    /// For the incident and the journal.
    pub directory: &'a Path,
    /// Waits until the others are healed too; what `check` finds then, the same at every call.
    pub check_again: &'a dyn Fn() -> Option<&'f Result<Vec<Value>>>,
}

impl Case<'_, '_, '_> {
    /// `findings` are those of the whole host before anything broke.
    pub fn play(&self, findings: &Result<Vec<Value>>, steps: &mut Steps) -> Result<()> {
        let foreseen = self.foresee(findings);
        steps.predicted = match (&foreseen, self.healing.foreseen) {
            (Err(_), _) => Step::Failed,
            (Ok(()), Foreseen::Not(_)) => Step::None,
            (Ok(()), _) => Step::Shown,
        };
        // What `check` missed is told, but not at the expense of the rest.
        self.heal(steps)?;
        foreseen
    }

    fn foresee(&self, findings: &Result<Vec<Value>>) -> Result<()> {
        let Some(at) = self.foreseen_at()? else { return Ok(()) };
        let of_cause = self.of_cause(findings)?;
        if of_cause.iter().any(|it| it["netns"] == at && it["rank"] != "info") {
            return Ok(());
        }
        bail!(
            "check does not foresee {} in {at}; it says {:?}",
            self.healing.cause(),
            said(&of_cause)
        )
    }

    /// A host that was healed is not warned of it again, unless of a longer silence than that which it was healed for.
    fn no_longer_foreseen(&self, findings: &Result<Vec<Value>>) -> Result<()> {
        let Some(at) = self.foreseen_at()? else { return Ok(()) };
        let mut warnings = self.of_cause(findings)?;
        let outlives = |it: &Value| it["after_s"].as_u64().is_some_and(|s| s > IDLE.as_secs());
        warnings.retain(|it| it["netns"] == at && it["rank"] != "info" && !outlives(it));
        ensure!(warnings.is_empty(), "check still warns of it: {:?}", said(&warnings));
        Ok(())
    }

    /// The namespace that `check` must name.
    fn foreseen_at(&self) -> Result<Option<u64>> {
        Ok(match self.healing.foreseen {
            Foreseen::Not(_) => None,
            Foreseen::OnHost => Some(self.guest.initial_netns()?),
            Foreseen::In(role) => Some(self.inode(role)?),
        })
    }

    fn of_cause<'f>(&self, findings: &'f Result<Vec<Value>>) -> Result<Vec<&'f Value>> {
        let cause = self.healing.cause();
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

    fn heal(&self, steps: &mut Steps) -> Result<()> {
        let before = self.snapshot()?;
        let incident = self.breaks(Round::new(0)).context("as found").inspect_err(|_| {
            steps.broke = Step::Failed;
        })?;
        steps.broke = Step::Shown;
        match self.healing.by {
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
        // The advice is followed by a connection that has ended: `check` cannot see it.
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
        asked: &[&str],
        only_new: Option<&str>,
        incident: &Value,
        before: &Snapshot,
        steps: &mut Steps,
    ) -> Result<()> {
        steps.fixed = Step::Failed;
        let fixer = Fixer::new(self.rsttrace, self.directory, incident, asked)?;
        let begun_before = only_new.map(|_| (self.scene)(&Round::new(1))).transpose()?;
        let plan = fixer.plan()?;
        let id = self.healing.by.id();
        ensure!(plan.contains(id), "the plan does not name {id}: {plan}");
        same(before, &self.snapshot()?).context("printing the plan changed the host")?;
        let applied = fixer.apply()?;
        let fixed = self.snapshot()?;
        ensure!(!before.differences(&fixed).is_empty(), "nothing was changed: {applied}");
        fixer.apply().context("once more")?;
        same(&fixed, &self.snapshot()?).context("applying twice changed something")?;
        if let (Some(word), Some(begun)) = (only_new, begun_before) {
            ensure!(plan.contains(word), "the plan does not say {word:?}: {plan}");
            self.ends_in_incident(&Round::new(1), begun()?)
                .context("begun before the fix, which the plan says is not rescued")?;
        }
        self.works(&Round::new(2)).with_context(|| format!("after {applied}"))?;
        if let Some(findings) = (self.check_again)() {
            self.no_longer_foreseen(findings).with_context(|| format!("after {applied}"))?;
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
        let ended = (self.scene)(&round)?()?;
        self.ends_in_incident(&round, ended)
    }

    fn works(&self, round: &Round) -> Result<()> {
        let ended = (self.scene)(round)?()?;
        if let Some(errno) = ended.errno {
            self.tracer.wait_for(QUIET, |records| !self.of(round, records).is_empty());
            let of_round = self.of(round, &self.tracer.records());
            let causes: Vec<_> = of_round.iter().map(|it| &it.value["message"]).collect();
            bail!("the connection broke ({}): {causes:?}", errno_name(errno));
        }
        std::thread::sleep(GRACE);
        self.judge(&Expect::nothing(), round, Ended::default()).map(drop)
    }

    fn ends_in_incident(&self, round: &Round, ended: Ended) -> Result<Value> {
        let errno = ended.errno.context("the connection did not break")?;
        self.tracer.wait_for(QUIET, |records| !self.of(round, records).is_empty());
        let expect = Expect::one((self.healing.expect)(self.net, round));
        let judged = self.judge(&expect, round, ended);
        let first = judged.with_context(|| format!("ended in {}", errno_name(errno)))?;
        first.context("no incident")
    }

    /// The first incident of a round that was told of what it should.
    fn judge(&self, expect: &Expect, round: &Round, ended: Ended) -> Result<Option<Value>> {
        let records = self.of(round, &self.tracer.records());
        let witness = Witness {
            errno: ended.errno,
            source: ended.port.map(|port| self.net.client(port)),
            ..Witness::default()
        };
        let namespaces = self.lab.inodes();
        let facts =
            Facts { series: self.guest.series(), witness: &witness, namespaces: &namespaces };
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

fn said(findings: &[&Value]) -> Vec<String> {
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
