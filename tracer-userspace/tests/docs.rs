//! The pages that derive from the code: `docs/causes/`, one page for each cause, and in README.md the
//! screen and the table of causes.

use std::{
    env,
    fmt::Write as _,
    fs::{self, File},
    io::BufReader,
    path::{Path, PathBuf},
};

use rsttrace::render::table::{Table, TableOptions};
use rsttrace_core::{
    capture::Reader,
    causes::{self, Cause, Doc},
    correlator::Correlator,
    verdict::Family,
};

/// Set to have the pages written instead of compared.
const UPDATE: &str = "RSTTRACE_UPDATE_DOCS";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Every page, below the root of the repository.
fn pages() -> Vec<(String, String)> {
    let each = causes::ALL.iter().map(|it| (format!("docs/causes/{}.md", it.id), page(it)));
    let index = ("docs/causes/README.md".into(), index());
    let readme = fs::read_to_string(root().join("README.md")).expect("README.md");
    let readme = ("README.md".into(), with_screen(&with_table(&readme)));
    each.chain([index, readme]).collect()
}

/// Wraps text at 110 columns; the first line begins with `first`, the others with `rest`.
fn wrapped(first: &str, rest: &str, text: &str) -> String {
    const WIDTH: usize = 110;
    let (mut lines, mut line, mut is_empty) = (String::new(), first.to_owned(), true);
    for word in text.split_whitespace() {
        if !is_empty && line.chars().count() + 1 + word.chars().count() > WIDTH {
            let _ = writeln!(lines, "{line}");
            (line, is_empty) = (rest.to_owned(), true);
        }
        if !is_empty {
            line.push(' ');
        }
        line.push_str(&escaped(word));
        is_empty = false;
    }
    let _ = writeln!(lines, "{line}");
    lines
}

/// What Markdown would take for markup.
fn escaped(word: &str) -> String {
    let mut text = String::new();
    let letters: Vec<char> = word.chars().collect();
    for (at, &c) in letters.iter().enumerate() {
        let inside = |at: usize| letters.get(at).is_some_and(|it| it.is_alphanumeric());
        let is_markup = match c {
            // Within a word it is an underscore.
            '_' => !(at > 0 && inside(at - 1) && inside(at + 1)),
            '*' | '<' | '>' | '`' | '|' | '[' | ']' => true,
            _ => false,
        };
        if is_markup {
            text.push('\\');
        }
        text.push(c);
    }
    text
}

/// With a capital letter, as a sentence begins.
fn sentence(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().into_iter().flat_map(char::to_uppercase).chain(letters).collect()
}

fn page(cause: &Cause) -> String {
    let Doc { about, detections, mistaken_for, fixes, not_fixes } = &cause.doc;
    let mut text = format!("# `{}`\n\n", cause.id);
    text += &wrapped("", "", &format!("{}.", sentence(cause.title)));
    let _ = writeln!(text, "\nFamily: {}.\n", cause.family.id());
    text += &wrapped("", "", about);
    if !detections.is_empty() {
        text += "\n## How it is detected\n\n";
        for it in *detections {
            let needs: Vec<_> = it.needs.iter().map(ToString::to_string).collect();
            let signals = match needs.len() {
                0 => String::new(),
                _ => format!(" (signals: {})", needs.join(", ")),
            };
            let line = format!("{}{signals}", it.evidence);
            text += &wrapped(&format!("- **{}**: ", it.confidence.id()), "  ", &line);
        }
    }
    if !mistaken_for.is_empty() {
        text += "\n## What it is mistaken for\n\n";
        for (what, how) in *mistaken_for {
            text += &wrapped("- ", "  ", &format!("{what}: {how}"));
        }
    }
    if !fixes.is_empty() {
        text += "\n## What fixes it\n\n";
        for (number, fix) in fixes.iter().enumerate() {
            let first = format!("{}. ", number + 1);
            let head = format!("[{}, risk {}] {}", fix.owner.id(), fix.risk.id(), fix.summary);
            text += &wrapped(&first, "   ", &head);
            text += &wrapped("   - why: ", "     ", fix.reason);
            text += &wrapped("   - how: ", "     ", fix.how);
            let _ = writeln!(text, "   - id: `{}`", fix.id);
        }
    }
    if !not_fixes.is_empty() {
        text += "\n## What does not help\n\n";
        for (what, because) in *not_fixes {
            text += &wrapped("- ", "  ", &format!("{what}: {because}"));
        }
    }
    text += "\n`rsttrace explain` prints this page.\n";
    text
}

fn of(family: Family) -> impl Iterator<Item = &'static Cause> {
    causes::ALL.iter().filter(move |cause| cause.family == family)
}

fn index() -> String {
    let mut text = String::from(
        "# Causes\n\nOne page for each cause that `rsttrace` names, by family. The order within a family is the\n\
         precedence: a root cause comes before its symptoms.\n",
    );
    for family in Family::ALL {
        let _ = writeln!(text, "\n## {}\n", family.id());
        for cause in of(family) {
            text += &wrapped(&format!("- [`{0}`]({0}.md): ", cause.id), "  ", cause.title);
        }
    }
    text
}

/// README.md with its table as the code has it.
fn with_table(readme: &str) -> String {
    let head = "| family | causes |\n|---|---|\n";
    let start = readme.find(head).expect("README.md has the table of causes") + head.len();
    let end = start + readme[start..].find("\n\n").expect("a blank line behind the table") + 1;
    let mut table = String::new();
    for family in Family::ALL {
        let of_family: Vec<_> = of(family).map(|cause| format!("`{}`", cause.id)).collect();
        let _ = writeln!(table, "| {} | {} |", family.id(), of_family.join(" "));
    }
    format!("{}{table}{}", &readme[..start], &readme[end..])
}

/// README.md with its screen as `rsttrace replay` prints it on a terminal of 110 columns.
fn with_screen(readme: &str) -> String {
    let start = readme.find("```text\n── ").expect("README.md has a screen") + "```text\n".len();
    let end = start + readme[start..].find("```").expect("the end of the screen");
    format!("{}{}{}", &readme[..start], screen(), &readme[end..])
}

fn screen() -> String {
    let capture = root().join("tests/data/5.10/ipvs_idle_expired.cap");
    let file = File::open(root().join(capture)).expect("the golden capture");
    let mut correlator = Correlator::new();
    let mut table = Table::new(TableOptions { color: false, width: 110, wide: false });
    let mut incidents = Vec::new();
    for event in Reader::new(BufReader::new(file)).expect("a capture") {
        incidents.extend(correlator.feed(event.expect("an event")));
    }
    incidents.extend(correlator.finish());
    let printed = incidents.iter().filter_map(|incident| table.incident(incident, incident.opened));
    printed.collect::<String>().trim_end().to_owned() + "\n"
}

#[test]
fn the_pages_of_causes_and_what_the_readme_shows_are_as_the_code_has_them() {
    let mut differing = Vec::new();
    for (path, expected) in pages() {
        let file = root().join(&path);
        if fs::read_to_string(&file).is_ok_and(|found| found == expected) {
            continue;
        }
        if env::var_os(UPDATE).is_some() {
            fs::write(&file, expected).expect("writable");
        } else {
            differing.push(path);
        }
    }
    assert!(differing.is_empty(), "{UPDATE}=1 writes these anew: {differing:#?}");
}

#[test]
fn no_page_is_left_of_a_cause_that_is_gone() {
    let pages: Vec<_> = pages().into_iter().map(|(path, _)| root().join(path)).collect();
    let folder = fs::read_dir(root().join("docs/causes")).expect("the folder");
    let files = folder.map(|file| file.expect("a file").path());
    let left: Vec<_> = files.filter(|file| !pages.contains(file)).collect();
    assert!(left.is_empty(), "{left:?}");
}
