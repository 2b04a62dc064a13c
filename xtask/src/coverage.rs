//! The table of causes (rows) and kernels (columns): the best confidence of each cause, or why it is missing.

use std::{collections::BTreeSet, fmt::Write as _};

use crate::{
    results::{Results, Verdict},
    table::aligned,
};

/// The contract's confidences, the strongest first; `unknown` has `none`.
const CONFIDENCES: [&str; 4] = ["observed", "correlated", "inferred", "none"];
const NEAR_MISS: &str = "near_miss";

/// The result for one cause on one kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Cell {
    /// The number of scenarios that gave it, the best confidence, and the facts because of which some gave less.
    Given { scenarios: usize, best: String, notes: Vec<usize> },
    /// This kernel cannot give it.
    Explained { notes: Vec<usize> },
    /// A scenario for it failed, which is counted elsewhere.
    Failed,
    /// This kernel's results are incomplete, which is counted elsewhere.
    NotRun,
    /// No scenario provokes it here, and no fact explains why.
    Missing,
}

impl Cell {
    fn text(&self) -> String {
        let marks = |notes: &[usize]| notes.iter().map(|note| format!(" [{note}]")).collect();
        match self {
            Self::Given { scenarios, best, notes } => {
                let marks: String = marks(notes);
                format!("{scenarios} {best}{marks}")
            }
            Self::Explained { notes } => format!("-{}", marks(notes)),
            Self::Failed => "FAIL".to_owned(),
            Self::NotRun => "-".to_owned(),
            Self::Missing => "NO SCENARIO".to_owned(),
        }
    }
}

/// The table, and the causes that are missing from it.
pub struct Coverage {
    pub table: String,
    /// Causes without a verdict and without a reason on some kernel.
    pub missing: Vec<String>,
}

/// Every cause on every kernel.
pub fn coverage(columns: &[(String, &Results)]) -> Coverage {
    let mut notes = Vec::new();
    let mut rows = Vec::new();
    let mut missing = Vec::new();
    let no_causes = Vec::new();
    let causes = columns.iter().map(|(_, results)| &results.causes).find(|it| !it.is_empty());
    for cause in causes.unwrap_or(&no_causes) {
        let cells: Vec<_> =
            columns.iter().map(|(_, results)| cell(cause, results, &mut notes)).collect();
        if cells.contains(&Cell::Missing) {
            missing.push(cause.clone());
        }
        rows.push((cause.clone(), cells.iter().map(Cell::text).collect()));
    }
    let near = |results: &Results| passed_near_misses(results).to_string();
    rows.push((
        "near misses, not blamed".to_owned(),
        columns.iter().map(|(_, results)| near(results)).collect(),
    ));
    let mut table = aligned("cause", columns.iter().map(|(name, _)| name.clone()), &rows);
    for (index, note) in notes.iter().enumerate() {
        // Writing to a String cannot fail.
        let _ = write!(table, "\n  [{}] {note}", index + 1);
    }
    Coverage { table, missing }
}

fn cell(cause: &str, results: &Results, notes: &mut Vec<String>) -> Cell {
    let mut marks: Vec<usize> = results
        .facts
        .iter()
        .filter(|fact| fact.cause == cause)
        .map(|fact| note(notes, &fact.text))
        .collect();
    marks.sort_unstable();
    marks.dedup();
    let given: Vec<_> = results
        .gave
        .iter()
        .filter(|line| line.cause == cause && !line.scenario.starts_with(NEAR_MISS))
        .collect();
    let best = CONFIDENCES.iter().find(|best| given.iter().any(|line| line.text == **best));
    if let Some(best) = best {
        let scenarios: BTreeSet<_> = given.iter().map(|line| &line.scenario).collect();
        return Cell::Given { scenarios: scenarios.len(), best: (*best).to_owned(), notes: marks };
    }
    let failed = results
        .verdicts
        .iter()
        .any(|(name, verdict)| matches!(verdict, Verdict::Fail(_)) && name.starts_with(cause));
    if failed {
        Cell::Failed
    } else if results.incomplete().is_some() {
        Cell::NotRun
    } else if marks.is_empty() {
        Cell::Missing
    } else {
        Cell::Explained { notes: marks }
    }
}

/// The number of a footnote.
fn note(notes: &mut Vec<String>, text: &str) -> usize {
    let known = notes.iter().position(|note| note == text);
    known.map_or_else(
        || {
            notes.push(text.to_owned());
            notes.len()
        },
        |at| at + 1,
    )
}

fn passed_near_misses(results: &Results) -> usize {
    let passed = |(name, verdict): &&(String, Verdict)| {
        name.starts_with(NEAR_MISS) && matches!(verdict, Verdict::Pass(_))
    };
    results.verdicts.iter().filter(passed).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn results(lines: &str) -> Results {
        let mut results = Results::default();
        lines.lines().for_each(|line| results.line(line));
        results
    }

    const CAUSES: &str = "CAUSES aborted gone lost full unknown\n";

    #[test]
    fn a_cause_is_given_explained_failed_or_missing_and_only_the_last_is_a_complaint() {
        let old = results(&format!(
            "PLAN 5\n{CAUSES}RESULT gone pass gone inferred\nGAVE gone gone inferred\n\
             RESULT gone_v6 pass gone observed\nGAVE gone_v6 gone observed\n\
             GAVE gone_v6 gone observed\n\
             RESULT aborted pass unknown none\nGAVE aborted unknown none\n\
             FACT aborted aborted no ACK bit here\nRESULT lost_late fail nothing came\n\
             RESULT near_miss_full pass full observed\nGAVE near_miss_full full observed\nDONE 5\n"
        ));
        let new = results(&format!("PLAN 2\n{CAUSES}RESULT gone pass gone observed\n"));
        let coverage = coverage(&[("5.10".to_owned(), &old), ("7.2".to_owned(), &new)]);
        let want = "\
cause                    5.10         7.2
aborted                  - [1]        -
gone                     2 observed   -
lost                     FAIL         -
full                     NO SCENARIO  -
unknown                  1 none       -
near misses, not blamed  1            0
  [1] no ACK bit here";
        assert_eq!(coverage.table, want);
        assert_eq!(coverage.missing, ["full"]);
    }

    #[test]
    fn one_fact_has_one_number_however_many_scenarios_name_it() {
        let lines = "PLAN 0\nCAUSES a b\nFACT a a blind\nFACT a2 a blind\nGAVE b b observed\n\
                     FACT b2 b blind\nFACT b2 b deaf\nDONE 0\n";
        let coverage = coverage(&[("6.1".to_owned(), &results(lines))]);
        let want = "\
cause                    6.1
a                        - [1]
b                        1 observed [1] [2]
near misses, not blamed  0
  [1] blind
  [2] deaf";
        assert_eq!(coverage.table, want);
        assert!(coverage.missing.is_empty());
    }
}
