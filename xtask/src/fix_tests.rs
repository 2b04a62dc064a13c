//! The table of fix tests and kernels: whether `check` predicted each cause, the connection broke, the fix ended that,
//! and the undo brought it back.

use std::collections::BTreeMap;

use crate::{
    results::{FixTest, Results, Verdict},
    table::aligned,
};

const LEGEND: &str = "  P predicted by check, B broke, F fixed, U undone: as before, and broke again; \
                      - does not apply, . not reached, ! failed";

/// The name of a row.
fn title(test: &FixTest) -> String {
    format!("{}: {} {}", test.cause, test.fix, test.how)
}

/// Why a cell is not a complete pass.
fn note(test: &FixTest) -> Option<String> {
    match &test.verdict {
        Verdict::Pass(text) if text.is_empty() => None,
        Verdict::Pass(text) => Some(format!("not predicted: {text}")),
        Verdict::Fail(text) => Some(format!("FAIL: {text}")),
        Verdict::Skip(text) => Some(format!("skipped: {text}")),
    }
}

/// The table, and below it the reasons for incomplete cells. `None` if there were no fix tests.
pub fn table(columns: &[(String, &Results)]) -> Option<String> {
    let mut titles: Vec<String> = Vec::new();
    let mut cells: BTreeMap<(String, usize), &FixTest> = BTreeMap::new();
    for (column, (_, results)) in columns.iter().enumerate() {
        for test in &results.fix_tests {
            let title = title(test);
            if !titles.contains(&title) {
                titles.push(title.clone());
            }
            cells.insert((title, column), test);
        }
    }
    if titles.is_empty() {
        return None;
    }
    let cell = |title: &String, column| match cells.get(&(title.clone(), column)) {
        Some(FixTest { verdict: Verdict::Skip(_), .. }) => "skip".to_owned(),
        Some(test) => test.steps.clone(),
        None => "none".to_owned(),
    };
    let row = |title: &String| {
        (title.clone(), (0..columns.len()).map(|column| cell(title, column)).collect())
    };
    let rows: Vec<_> = titles.iter().map(row).collect();
    let mut table = aligned("fix test", columns.iter().map(|(name, _)| name.clone()), &rows);
    table.push('\n');
    table.push_str(LEGEND);
    for title in &titles {
        for (reason, names) in reasons(title, columns, &cells) {
            table.push_str(&format!("\n  {title} on {}: {reason}", names.join(", ")));
        }
    }
    for (why, causes) in without_fix_test(columns) {
        table.push_str(&format!("\n  no fix test for {}: {why}", causes.join(", ")));
    }
    Some(table)
}

/// Each reason once, with the causes that have no fix test because of it.
fn without_fix_test<'a>(columns: &[(String, &'a Results)]) -> BTreeMap<&'a str, Vec<&'a str>> {
    let mut by_reason: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (cause, why) in columns.iter().flat_map(|(_, results)| &results.no_fix_test) {
        let causes = by_reason.entry(why).or_default();
        if !causes.contains(&cause.as_str()) {
            causes.push(cause);
        }
    }
    by_reason
}

/// Each reason once, with the kernels that gave it.
fn reasons<'a>(
    title: &str,
    columns: &'a [(String, &Results)],
    cells: &BTreeMap<(String, usize), &FixTest>,
) -> BTreeMap<String, Vec<&'a str>> {
    let mut by_reason: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for (column, (name, _)) in columns.iter().enumerate() {
        let note = cells.get(&(title.to_owned(), column)).and_then(|test| note(test));
        if let Some(reason) = note {
            by_reason.entry(reason).or_default().push(name);
        }
    }
    by_reason
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
    fn the_table_shows_steps_and_explains_why_some_are_missing() {
        let old = results(
            "PLAN 3\nNO_FIX_TEST d it is gone\nNO_FIX_TEST e it is gone\nFIX fix_a a raise_a applied pass PBFU\nFIX fix_b b be_good followed pass -BFU not visible\n\
             FIX fix_c c raise_c applied skip .... kernel 5.10 has no c\nDONE 3\n",
        );
        let new = results(
            "PLAN 3\nFIX fix_a a raise_a applied fail PB!. after the fix: it broke\n\
             FIX fix_b b be_good followed pass -BFU not visible\nDONE 2\n",
        );
        assert_eq!(old.incomplete(), None);
        assert!(new.incomplete().is_some_and(|why| why.contains("gave 2 results")));
        let want = "\
fix test             5.10  7.2
a: raise_a applied   PBFU  PB!.
b: be_good followed  -BFU  -BFU
c: raise_c applied   skip  none
  P predicted by check, B broke, F fixed, U undone: as before, and broke again; \
- does not apply, . not reached, ! failed
  a: raise_a applied on 7.2: FAIL: after the fix: it broke
  b: be_good followed on 5.10, 7.2: not predicted: not visible
  c: raise_c applied on 5.10: skipped: kernel 5.10 has no c
  no fix test for d, e: it is gone";
        let columns = [("5.10".to_owned(), &old), ("7.2".to_owned(), &new)];
        assert_eq!(table(&columns).as_deref(), Some(want));
    }

    #[test]
    fn without_fix_tests_there_is_no_table() {
        assert_eq!(table(&[("6.1".to_owned(), &results("PLAN 0\nDONE 0\n"))]), None);
    }
}
