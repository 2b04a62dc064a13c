//! Finds words and phrases that the wording guide bans, in identifiers, comments, strings and documents.
//!
//! `banned-words.txt` has one word or phrase per line, then a tab and a better word. A third column lists
//! longer phrases in which it is fine, separated by commas. `allowed-words.txt` has the exceptions, one per
//! line: path, exact fragment of a line and reason, separated by tabs.

use std::{collections::BTreeSet, fmt, fs, process::Command};

use anyhow::{Context as _, Result, ensure};

use crate::{cmd, repo};

const BANNED: &str = include_str!("banned-words.txt");
const ALLOWED: &str = include_str!("allowed-words.txt");

/// Text that is not ours to word: captures of real kernels, and licences.
const SKIPPED: [&str; 2] = ["tests/data/", "LICENSE"];

/// Checks every tracked `.rs` and `.md` file.
pub fn check() -> Result<()> {
    let (banned, exceptions) = (parse_banned(BANNED)?, parse_exceptions(ALLOWED)?);
    let mut git = Command::new("git");
    git.arg("-C").arg(repo::root()).args(["ls-files", "-z", "--", "*.rs", "*.md"]);
    let paths = cmd::output(&mut git, "listing the tracked files")?;
    let mut used = BTreeSet::new();
    let mut problems = Vec::new();
    for path in paths.split('\0').filter(|path| !path.is_empty()) {
        if SKIPPED.iter().any(|prefix| path.starts_with(prefix)) {
            continue;
        }
        let file = repo::root().join(path);
        // A file that was deleted stays in the index until the next commit.
        if !file.exists() {
            continue;
        }
        let text =
            fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let text = without_exceptions(path, &text, &exceptions, &mut used);
        problems.extend(find(&text, &banned).iter().map(|found| format!("{path}:{found}")));
    }
    let unused = exceptions.iter().enumerate().filter(|(index, _)| !used.contains(index));
    problems.extend(unused.map(|(_, it)| {
        format!("xtask/src/check/allowed-words.txt: no line of {} has `{}`", it.path, it.fragment)
    }));
    ensure!(
        problems.is_empty(),
        "{}\n{} problems (see banned-words.txt and allowed-words.txt in xtask/src/check)",
        problems.join("\n"),
        problems.len()
    );
    Ok(())
}

/// A banned word or phrase.
struct Banned {
    words: Vec<String>,
    better: String,
    /// Longer phrases in which it is fine.
    fine_in: Vec<Vec<String>>,
}

fn parse_banned(list: &str) -> Result<Vec<Banned>> {
    let parse = |line: &str| {
        let mut columns = line.split('\t');
        let phrase = |text: &str| -> Vec<String> {
            text.split_whitespace().map(str::to_lowercase).collect()
        };
        let words = phrase(columns.next()?);
        let better = columns.next()?.to_owned();
        let longer = columns.next().into_iter().flat_map(|it| it.split(',')).map(phrase);
        let fine_in = longer.filter(|it| !it.is_empty()).collect();
        (!words.is_empty()).then_some(Banned { words, better, fine_in })
    };
    let lines = list.lines().filter(|line| !line.trim().is_empty());
    lines
        .map(|line| {
            parse(line).with_context(|| {
                format!("invalid line `{line}` (expected a banned word, a tab and a better word)")
            })
        })
        .collect()
}

/// An occurrence of a banned word that stays.
struct Exception {
    path: String,
    fragment: String,
}

fn parse_exceptions(list: &str) -> Result<Vec<Exception>> {
    let parse = |line: &str| {
        let mut columns = line.split('\t').map(str::to_owned);
        let (path, fragment, reason) = (columns.next()?, columns.next()?, columns.next()?);
        let complete = !fragment.trim().is_empty() && !reason.trim().is_empty();
        complete.then_some(Exception { path, fragment })
    };
    let lines = list.lines().filter(|line| !line.trim().is_empty());
    lines
        .map(|line| {
            parse(line).with_context(|| {
                format!("invalid exception `{line}` (expected path, fragment and reason with tabs)")
            })
        })
        .collect()
}

/// The text with the fragments of its exceptions removed; adds the indices of those that it has to `used`.
fn without_exceptions(
    path: &str,
    text: &str,
    exceptions: &[Exception],
    used: &mut BTreeSet<usize>,
) -> String {
    let mut text = text.to_owned();
    for (index, exception) in exceptions.iter().enumerate().filter(|(_, it)| it.path == path) {
        if text.contains(&exception.fragment) {
            used.insert(index);
            // Not a blank: the words around it must not become a phrase.
            text = text.replace(&exception.fragment, ";");
        }
    }
    text
}

/// A banned word in a file.
#[derive(Debug, PartialEq, Eq)]
struct Found {
    /// Counted from 1.
    line: usize,
    phrase: String,
    better: String,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} -> {}", self.line, self.phrase, self.better)
    }
}

fn find(text: &str, banned: &[Banned]) -> Vec<Found> {
    let words = words(text);
    let mut found = Vec::new();
    for (at, first) in words.iter().enumerate() {
        for banned in banned.iter().filter(|it| is_at(&words, at, &it.words)) {
            let is_fine = banned.fine_in.iter().any(|longer| {
                (at.saturating_sub(longer.len())..=at).any(|start| {
                    is_at(&words, start, longer) && start + longer.len() >= at + banned.words.len()
                })
            });
            if !is_fine {
                found.push(Found {
                    line: first.line,
                    phrase: banned.words.join(" "),
                    better: banned.better.clone(),
                });
            }
        }
    }
    found
}

/// Whether these words follow each other from an index on.
fn is_at(words: &[Word], at: usize, phrase: &[String]) -> bool {
    let here = words.get(at..at + phrase.len());
    here.is_some_and(|here| {
        here.iter().zip(phrase).all(|(word, wanted)| word.text == *wanted)
            && here.iter().skip(1).all(|word| word.continues)
    })
}

struct Word {
    /// In lower case.
    text: String,
    line: usize,
    /// Only a blank, a line break or an underscore separates it from the word before.
    continues: bool,
}

/// Splits prose at blanks, and identifiers at `_` and before capital letters.
fn words(text: &str) -> Vec<Word> {
    let mut words: Vec<Word> = Vec::new();
    let mut continues = false;
    let mut was_comment = None;
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        let comment = ["///", "//!", "//"].iter().find_map(|mark| line.strip_prefix(mark));
        let content = comment.unwrap_or(line).trim_end_matches('\\');
        // A sentence goes on in the next line, but not from a comment into code.
        let is_comment = Some(comment.is_some());
        if was_comment != is_comment || content.trim().is_empty() {
            continues = false;
        }
        was_comment = is_comment;
        let mut before = None;
        let mut rest = content.chars().peekable();
        while let Some(c) = rest.next() {
            if c.is_alphabetic() {
                if before.is_none_or(|last| is_boundary(last, c, rest.peek().copied())) {
                    words.push(Word { text: String::new(), line: index + 1, continues });
                    continues = true;
                }
                if let Some(word) = words.last_mut() {
                    word.text.extend(c.to_lowercase());
                }
                before = Some(c);
            } else {
                continues &= c == '_' || c.is_whitespace();
                before = None;
            }
        }
    }
    words
}

/// Whether a word starts at `c` inside an identifier: `fooBar`, `HTTPServer`.
fn is_boundary(before: char, c: char, after: Option<char>) -> bool {
    c.is_uppercase() && (before.is_lowercase() || after.is_some_and(char::is_lowercase))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Invented words, so that this file passes its own check.
    const LIST: &str = "blick\tplain\n\
                        for dax of\twithout\n\
                        wug no\twug not a\tzup wug no, wug no longer\n";

    fn found(text: &str) -> Vec<String> {
        find(text, &parse_banned(LIST).expect("a list")).iter().map(Found::to_string).collect()
    }

    #[test]
    fn a_banned_word_is_found_in_prose_and_in_identifiers() {
        for text in ["the blick.", "Blick", "BLICK_ALL", "fn a_blick_b()", "OldBlick", "blickFoo"] {
            assert_eq!(found(text), ["1: blick -> plain"], "{text}");
        }
        for text in ["blicks", "ablick", "preblickA", "BLICKS"] {
            assert_eq!(found(text), [""; 0], "{text}");
        }
        assert_eq!(found("// fine\nTCPBlick(2)\n"), ["2: blick -> plain"]);
    }

    #[test]
    fn a_phrase_is_found_over_line_breaks_but_not_over_punctuation() {
        let phrase = |line| vec![format!("{line}: for dax of -> without")];
        assert_eq!(found("x for dax of y"), phrase(1));
        assert_eq!(found("fn for_dax_of()"), phrase(1));
        assert_eq!(found("/// all for\n    /// dax of it"), phrase(1));
        assert_eq!(found("//! a\n//! for dax\n//! of it"), phrase(2));
        assert_eq!(found("\"for \\\n   dax of\""), phrase(1));
        for text in ["for. Dax of", "for `dax` of", "// for\nlet dax = of;", "for\n\ndax of"] {
            assert_eq!(found(text), [""; 0], "{text}");
        }
    }

    #[test]
    fn a_phrase_is_fine_inside_the_longer_phrases_of_its_third_column() {
        assert_eq!(found("that wug no capture"), ["1: wug no -> wug not a"]);
        assert_eq!(found("a_line_wug_no_result"), ["1: wug no -> wug not a"]);
        for text in ["zup wug no capture", "it wug no longer", "Zup\nwug no", "it_wug_no_longer"] {
            assert_eq!(found(text), [""; 0], "{text}");
        }
        assert_eq!(found("zup. Wug no"), ["1: wug no -> wug not a"]);
        assert_eq!(found("wug no longest"), ["1: wug no -> wug not a"]);
    }

    #[test]
    fn an_exception_covers_only_its_fragment_in_its_file() {
        let exceptions = parse_exceptions("a.rs\t\"old_blick\"\tgolden file\n").expect("a list");
        let check = |path: &str, text: &str| {
            let mut used = BTreeSet::new();
            let rest = without_exceptions(path, text, &exceptions, &mut used);
            (found(&rest), used.len())
        };
        assert_eq!(check("a.rs", "\"old_blick\""), (vec![], 1));
        let both = "\"old_blick\" and blick";
        assert_eq!(check("a.rs", both), (vec!["1: blick -> plain".to_owned()], 1));
        assert_eq!(check("b.rs", "\"old_blick\""), (vec!["1: blick -> plain".to_owned()], 0));
    }

    #[test]
    fn lines_without_a_better_word_or_without_a_reason_are_invalid() {
        assert!(parse_banned("blick").is_err());
        assert!(parse_exceptions("a.rs\tblick\n").is_err());
        assert!(parse_exceptions("a.rs\tblick\t\n").is_err());
    }

    #[test]
    fn the_lists_of_this_repository_are_valid() {
        assert!(parse_banned(BANNED).is_ok_and(|list| list.len() > 40));
        parse_exceptions(ALLOWED).expect("a list");
    }
}
