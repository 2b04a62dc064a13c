//! Parses the output of `rsttrace-guest run` and `cargo test`, and makes a table of it.

use std::{collections::BTreeMap, fmt};

use crate::table::aligned;

/// How one scenario ended on one kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The verdict of rsttrace, such as `ipvs_idle_expired observed`.
    Pass(String),
    Fail(String),
    Skip(String),
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pass(found) => f.pad(&found.replace(' ', "/")),
            Self::Fail(_) => f.pad("FAIL"),
            Self::Skip(_) => f.pad("skip"),
        }
    }
}

/// A `GAVE` or `FACT` line: what a scenario printed about a cause.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CauseLine {
    pub scenario: String,
    pub cause: String,
    /// The confidence of the verdict (`GAVE`), or the kernel fact that prevents a better one (`FACT`).
    pub text: String,
}

/// The result of one fix test on one kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FixTest {
    pub name: String,
    pub cause: String,
    /// The fix's id.
    pub fix: String,
    /// `applied` by rsttrace, or `followed` by the owner of the setting.
    pub how: String,
    /// `PBFU`; a step that did not succeed is a dot or a mark.
    pub steps: String,
    pub verdict: Verdict,
}

impl FixTest {
    /// `<name> <cause> <fix> applied|followed pass|fail|skip <steps> [<text…>]`
    fn parse(rest: &str) -> Option<Self> {
        let mut words = rest.trim().splitn(7, ' ').map(str::to_owned);
        let (name, cause, fix) = (words.next()?, words.next()?, words.next()?);
        let how = words.next()?;
        let (word, steps) = (words.next()?, words.next()?);
        let text = words.next().unwrap_or_default();
        let verdict = match word.as_str() {
            "pass" => Verdict::Pass(text),
            "fail" => Verdict::Fail(text),
            "skip" => Verdict::Skip(text),
            _ => return None,
        };
        (steps.len() == 4).then_some(Self { name, cause, fix, how, steps, verdict })
    }
}

/// The results of one guest, in the order in which they came.
#[derive(Debug, Default)]
pub struct Results {
    planned: Option<usize>,
    done: Option<usize>,
    pub verdicts: Vec<(String, Verdict)>,
    /// All causes of the contract.
    pub causes: Vec<String>,
    /// The verdicts of the scenarios that passed.
    pub gave: Vec<CauseLine>,
    /// Why this kernel gives a weaker verdict, or none.
    pub facts: Vec<CauseLine>,
    pub fix_tests: Vec<FixTest>,
    /// Causes without a fix test, and why.
    pub no_fix_test: Vec<(String, String)>,
    malformed: Option<String>,
}

impl Results {
    /// Takes one line of the guest's output; ignores lines that are not part of the protocol.
    pub fn line(&mut self, line: &str) {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        let understood = match word {
            "PLAN" => {
                self.planned = rest.trim().parse().ok();
                self.planned.is_some()
            }
            "DONE" => {
                self.done = rest.trim().parse().ok();
                self.done.is_some()
            }
            "RESULT" => match parse_result(rest) {
                Some(result) => {
                    self.verdicts.push(result);
                    true
                }
                None => false,
            },
            "FIX" => FixTest::parse(rest).map(|it| self.fix_tests.push(it)).is_some(),
            "NO_FIX_TEST" => {
                let reason =
                    rest.split_once(' ').map(|(cause, why)| (cause.to_owned(), why.to_owned()));
                reason.map(|reason| self.no_fix_test.push(reason)).is_some()
            }
            "CAUSES" => {
                self.causes = rest.split_whitespace().map(str::to_owned).collect();
                true
            }
            "GAVE" => parse_cause_line(rest).map(|it| self.gave.push(it)).is_some(),
            "FACT" => parse_cause_line(rest).map(|it| self.facts.push(it)).is_some(),
            _ => true,
        };
        if !understood {
            self.malformed.get_or_insert_with(|| line.to_owned());
        }
    }

    /// The verdicts of all scenarios and all fix tests.
    pub fn all_verdicts(&self) -> impl Iterator<Item = &Verdict> {
        let scenarios = self.verdicts.iter().map(|(_, verdict)| verdict);
        scenarios.chain(self.fix_tests.iter().map(|test| &test.verdict))
    }

    /// Whether a line is only input for the tables.
    pub fn is_bookkeeping(line: &str) -> bool {
        ["CAUSES ", "GAVE ", "NO_FIX_TEST "].iter().any(|word| line.starts_with(word))
    }

    /// Why these results may be incomplete.
    pub fn incomplete(&self) -> Option<String> {
        let count = self.verdicts.len() + self.fix_tests.len();
        if let Some(line) = &self.malformed {
            return Some(format!("cannot parse the line `{line}`"));
        }
        match (self.planned, self.done) {
            (None, _) => Some("the guest printed no PLAN".to_owned()),
            (Some(planned), None) => Some(format!(
                "the guest planned {planned} scenarios and ended after {count}, before DONE"
            )),
            (Some(planned), Some(done)) if planned != count || done != count => Some(format!(
                "the guest planned {planned} scenarios, reported {done} as done and gave {count} results"
            )),
            _ => None,
        }
    }
}

/// `<scenario> pass <cause> <confidence>` or `<scenario> fail|skip <reason…>`
fn parse_result(rest: &str) -> Option<(String, Verdict)> {
    let (scenario, rest) = rest.trim().split_once(' ')?;
    let (word, rest) = rest.split_once(' ').unwrap_or((rest, ""));
    let text = rest.trim().to_owned();
    let verdict = match word {
        "pass" => Verdict::Pass(text),
        "fail" => Verdict::Fail(text),
        "skip" => Verdict::Skip(text),
        _ => return None,
    };
    Some((scenario.to_owned(), verdict))
}

/// `<scenario> <cause> <text…>`
fn parse_cause_line(rest: &str) -> Option<CauseLine> {
    let mut words = rest.trim().splitn(3, ' ').map(str::to_owned);
    Some(CauseLine { scenario: words.next()?, cause: words.next()?, text: words.next()? })
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub passed: usize,
    pub failed: usize,
    pub skipped: usize,
}

impl Tally {
    pub fn count(&mut self, verdict: &Verdict) {
        match verdict {
            Verdict::Pass(_) => self.passed += 1,
            Verdict::Fail(_) => self.failed += 1,
            Verdict::Skip(_) => self.skipped += 1,
        }
    }

    /// Adds the counts of a `test result:` line of cargo test; ignores other lines.
    pub fn cargo_line(&mut self, line: &str) {
        let Some(summary) = line.strip_prefix("test result: ") else {
            return;
        };
        // "ok. 12 passed; 0 failed; 1 ignored; 0 measured; …"
        for part in summary.split([';', '.']) {
            let (number, what) = part.trim().split_once(' ').unwrap_or_default();
            let number: usize = number.parse().unwrap_or(0);
            match what {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.skipped += number,
                _ => {}
            }
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { passed, failed, skipped } = self;
        write!(f, "{passed} passed, {failed} failed")?;
        if *skipped > 0 {
            write!(f, ", {skipped} skipped")?;
        }
        Ok(())
    }
}

/// The table of scenarios (rows) and kernels (columns), and below it the reasons for failures and skips.
pub fn matrix(columns: &[(String, &Results)]) -> String {
    let mut scenarios: Vec<&str> = Vec::new();
    let mut cells: BTreeMap<(&str, usize), &Verdict> = BTreeMap::new();
    for (column, (_, results)) in columns.iter().enumerate() {
        for (scenario, verdict) in &results.verdicts {
            if !scenarios.contains(&scenario.as_str()) {
                scenarios.push(scenario);
            }
            cells.insert((scenario, column), verdict);
        }
    }
    let cell = |scenario: &str, column: usize| match cells.get(&(scenario, column)) {
        Some(verdict) => verdict.to_string(),
        None => "-".to_owned(),
    };
    let row = |scenario: &&str| {
        let cells = (0..columns.len()).map(|column| cell(scenario, column));
        ((*scenario).to_owned(), cells.collect())
    };
    let rows: Vec<_> = scenarios.iter().map(row).collect();
    let mut table = aligned("scenario", columns.iter().map(|(name, _)| name.clone()), &rows);
    for line in scenarios.iter().flat_map(|scenario| reasons(scenario, columns, &cells)) {
        table.push('\n');
        table.push_str(&line);
    }
    table
}

/// One line for each reason, naming the kernels that gave it.
fn reasons(
    scenario: &str,
    columns: &[(String, &Results)],
    cells: &BTreeMap<(&str, usize), &Verdict>,
) -> Vec<String> {
    let mut by_reason: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for (column, (name, _)) in columns.iter().enumerate() {
        let reason = match cells.get(&(scenario, column)) {
            Some(Verdict::Fail(reason)) => format!("FAIL: {reason}"),
            Some(Verdict::Skip(reason)) => format!("skipped: {reason}"),
            _ => continue,
        };
        by_reason.entry(reason).or_default().push(name);
    }
    let line = |(reason, names): (String, Vec<&str>)| {
        format!("  {scenario} on {}: {reason}", names.join(", "))
    };
    by_reason.into_iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn results(lines: &str) -> Results {
        let mut results = Results::default();
        lines.lines().for_each(|line| results.line(line));
        results
    }

    #[test]
    fn reads_results() {
        let results = results(
            "# chatter\nPLAN 3\nRESULT a pass ipvs_idle_expired observed\nother PLAN 9\n\
             RESULT b fail got unknown, wanted a\nRESULT c skip no module x\nDONE 3\n",
        );
        assert_eq!(results.incomplete(), None);
        let want = [
            ("a", Verdict::Pass("ipvs_idle_expired observed".to_owned())),
            ("b", Verdict::Fail("got unknown, wanted a".to_owned())),
            ("c", Verdict::Skip("no module x".to_owned())),
        ];
        assert_eq!(results.verdicts, want.map(|(n, v)| (n.to_owned(), v)));
    }

    #[test]
    fn missing_and_malformed_results_are_reported() {
        let complaint = |lines| results(lines).incomplete().unwrap_or_default();
        assert!(complaint("").contains("no PLAN"));
        assert!(complaint("PLAN 1\n").contains("before DONE"));
        assert!(complaint("PLAN 1\nDONE 1\n").contains("gave 0 results"));
        assert!(complaint("PLAN 1\nRESULT a pass x y\nDONE 2\n").contains("reported 2"));
        assert!(complaint("PLAN 2\nRESULT a pass x y\nDONE 1\n").contains("planned 2"));
        assert!(complaint("PLAN 1\nRESULT a perhaps\nDONE 1\n").contains("`RESULT a perhaps`"));
        assert!(complaint("PLAN many\n").contains("`PLAN many`"));
        assert_eq!(complaint("PLAN 0\nDONE 0\n"), "");
    }

    #[test]
    fn a_truncated_line_is_not_a_result() {
        assert_eq!(FixTest::parse("fix_a a raise_a applied pass"), None);
        assert_eq!(FixTest::parse("fix_a a raise_a applied passed PBFU"), None);
        assert_eq!(
            results("FIX fix_a a\n").incomplete().as_deref(),
            Some("cannot parse the line `FIX fix_a a`")
        );
    }

    #[test]
    fn counts_cargo_tests() {
        let mut tally = Tally::default();
        tally.cargo_line("test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 7 filtered out; finished in 0.00s");
        tally.cargo_line("test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.50s");
        tally.cargo_line("test cause::tests::names ... ok");
        assert_eq!(tally.to_string(), "15 passed, 2 failed, 1 skipped");
        assert_eq!(Tally::default().to_string(), "0 passed, 0 failed");
    }

    #[test]
    fn draws_the_matrix() {
        let old =
            results("RESULT idle pass ipvs_idle_expired observed\nRESULT full skip no table\n");
        let new = results(
            "RESULT idle fail none came\nRESULT full skip no table\nRESULT late pass x y\n",
        );
        let table = matrix(&[("5.10".to_owned(), &old), ("7.2".to_owned(), &new)]);
        let want = "\
scenario  5.10                        7.2
idle      ipvs_idle_expired/observed  FAIL
full      skip                        skip
late      -                           x/y
  idle on 7.2: FAIL: none came
  full on 5.10, 7.2: skipped: no table";
        assert_eq!(table, want);
    }
}
