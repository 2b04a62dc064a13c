//! Healings down, kernels across: whether `check` foresaw each cause, it broke, the fix ended it, and the undo brought
//! it back.

use std::collections::BTreeMap;

use crate::{
    results::{Results, Verdict},
    table::aligned,
};

const LEGEND: &str = "  P predicted by check, B broke, F fixed, U undone: as before, and broke again; \
                      - does not apply, . not reached, ! failed";

/// One healing on one kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Healing {
    pub name: String,
    pub cause: String,
    /// The fix's id.
    pub fix: String,
    /// `applied` by rsttrace or `followed` by whoever owns it.
    pub how: String,
    /// `PBFU`; a step that was not shown is a dot or a mark.
    pub steps: String,
    pub verdict: Verdict,
}

impl Healing {
    /// `<name> <cause> <fix> applied|followed pass|fail|skip <steps> [<text…>]`
    pub fn parse(rest: &str) -> Option<Self> {
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

    fn title(&self) -> String {
        format!("{}: {} {}", self.cause, self.fix, self.how)
    }

    /// Why a cell is not what one would wish.
    fn note(&self) -> Option<String> {
        match &self.verdict {
            Verdict::Pass(text) if text.is_empty() => None,
            Verdict::Pass(text) => Some(format!("not predicted: {text}")),
            Verdict::Fail(text) => Some(format!("FAIL: {text}")),
            Verdict::Skip(text) => Some(format!("skipped: {text}")),
        }
    }
}

/// The table; below it, why not all is shown. `None` if nothing was to be healed.
pub fn table(columns: &[(String, &Results)]) -> Option<String> {
    let mut titles: Vec<String> = Vec::new();
    let mut cells: BTreeMap<(String, usize), &Healing> = BTreeMap::new();
    for (column, (_, results)) in columns.iter().enumerate() {
        for healing in &results.healings {
            let title = healing.title();
            if !titles.contains(&title) {
                titles.push(title.clone());
            }
            cells.insert((title, column), healing);
        }
    }
    if titles.is_empty() {
        return None;
    }
    let cell = |title: &String, column| match cells.get(&(title.clone(), column)) {
        Some(Healing { verdict: Verdict::Skip(_), .. }) => "skip".to_owned(),
        Some(healing) => healing.steps.clone(),
        None => "none".to_owned(),
    };
    let row = |title: &String| {
        (title.clone(), (0..columns.len()).map(|column| cell(title, column)).collect())
    };
    let rows: Vec<_> = titles.iter().map(row).collect();
    let mut table = aligned("healing", columns.iter().map(|(name, _)| name.clone()), &rows);
    table.push('\n');
    table.push_str(LEGEND);
    for title in &titles {
        for (reason, names) in reasons(title, columns, &cells) {
            table.push_str(&format!("\n  {title} on {}: {reason}", names.join(", ")));
        }
    }
    for (why, causes) in unhealed(columns) {
        table.push_str(&format!("\n  no healing of {}: {why}", causes.join(", ")));
    }
    Some(table)
}

/// Each reason once, with the causes that nothing heals for it.
fn unhealed<'a>(columns: &[(String, &'a Results)]) -> BTreeMap<&'a str, Vec<&'a str>> {
    let mut by_reason: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (cause, why) in columns.iter().flat_map(|(_, results)| &results.unhealed) {
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
    cells: &BTreeMap<(String, usize), &Healing>,
) -> BTreeMap<String, Vec<&'a str>> {
    let mut by_reason: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for (column, (name, _)) in columns.iter().enumerate() {
        let note = cells.get(&(title.to_owned(), column)).and_then(|healing| healing.note());
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
    fn the_table_shows_steps_and_tells_why_some_are_missing() {
        let old = results(
            "PLAN 3\nUNHEALED d it is gone\nUNHEALED e it is gone\nHEAL heal_a a raise_a applied pass PBFU\nHEAL heal_b b be_good followed pass -BFU nobody knows\n\
             HEAL heal_c c raise_c applied skip .... kernel 5.10 has no c\nDONE 3\n",
        );
        let new = results(
            "PLAN 3\nHEAL heal_a a raise_a applied fail PB!. after the fix: it broke\n\
             HEAL heal_b b be_good followed pass -BFU nobody knows\nDONE 2\n",
        );
        assert_eq!(old.incomplete(), None);
        assert!(new.incomplete().is_some_and(|why| why.contains("gave 2 results")));
        let want = "\
healing              5.10  7.2
a: raise_a applied   PBFU  PB!.
b: be_good followed  -BFU  -BFU
c: raise_c applied   skip  none
  P predicted by check, B broke, F fixed, U undone: as before, and broke again; \
- does not apply, . not reached, ! failed
  a: raise_a applied on 7.2: FAIL: after the fix: it broke
  b: be_good followed on 5.10, 7.2: not predicted: nobody knows
  c: raise_c applied on 5.10: skipped: kernel 5.10 has no c
  no healing of d, e: it is gone";
        let columns = [("5.10".to_owned(), &old), ("7.2".to_owned(), &new)];
        assert_eq!(table(&columns).as_deref(), Some(want));
    }

    #[test]
    fn a_line_that_is_cut_off_is_no_result() {
        assert_eq!(Healing::parse("heal_a a raise_a applied pass"), None);
        assert_eq!(Healing::parse("heal_a a raise_a applied passed PBFU"), None);
        assert_eq!(
            results("HEAL heal_a a\n").incomplete().as_deref(),
            Some("cannot understand the line `HEAL heal_a a`")
        );
    }

    #[test]
    fn nothing_to_heal_is_no_table() {
        assert_eq!(table(&[("6.1".to_owned(), &results("PLAN 0\nDONE 0\n"))]), None);
    }
}
