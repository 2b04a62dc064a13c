//! `sysctl.d`, as systemd-sysctl applies it at boot (sysctl.d(5), src/sysctl/sysctl.c).

use std::path::Path;

use rsttrace_model::{
    configured::{Assignment, Configured, Line},
    settings,
};

use super::drop_ins;

pub fn read(root: &Path, configured: &mut Configured) {
    let files = drop_ins::read(root, "sysctl.d", ".conf", &mut configured.unread);
    // Debian links /etc/sysctl.conf into sysctl.d; without the link only `sysctl --system` reads that file.
    let has_link = files.iter().any(|file| file.name.ends_with("/99-sysctl.conf"));
    let legacy = match has_link {
        true => None,
        false => drop_ins::file(root, Path::new("etc/sysctl.conf"), &mut configured.unread),
    };
    let by_hand = legacy.iter().flat_map(|file| parse(&file.name, &file.text, true));
    let at_boot = files.iter().flat_map(|file| parse(&file.name, &file.text, false));
    // Lines that are not read at boot never override lines that are.
    let lines: Vec<Entry> = by_hand.chain(at_boot).collect();
    let is_explicit = |key: &str| lines.iter().any(|it| !it.is_pattern() && it.key == key);
    for line in &lines {
        let Some(value) = &line.value else {
            continue;
        };
        let assign = |key: &str| Assignment {
            key: key.to_owned(),
            value: value.clone(),
            at: line.at.clone(),
            by_hand_only: line.by_hand_only,
        };
        if line.is_pattern() {
            // A pattern does not set a key that any line names explicitly.
            let matching = settings::ALL.iter().filter(|it| matches(&line.key, it.key));
            let keys = matching.map(|it| it.key).filter(|key| !is_explicit(key));
            configured.sysctls.extend(keys.map(assign));
        } else {
            configured.sysctls.push(assign(&line.key));
        }
    }
}

/// A line that sets a key, or exempts one from the patterns.
struct Entry {
    /// With dots as separators; may be a pattern.
    key: String,
    /// `None` for `-key`, which exempts a key from the patterns.
    value: Option<String>,
    at: Line,
    by_hand_only: bool,
}

impl Entry {
    fn is_pattern(&self) -> bool {
        self.key.contains(['*', '?'])
    }
}

fn parse(file: &str, text: &str, by_hand_only: bool) -> Vec<Entry> {
    let line = |(index, line): (usize, &str)| {
        let line = line.trim();
        if line.is_empty() || line.starts_with(['#', ';']) {
            return None;
        }
        let (key, value) = match line.split_once('=') {
            Some((key, value)) => (key.trim(), Some(value.trim().to_owned())),
            None => (line, None),
        };
        let bare = key.strip_prefix('-').map(str::trim);
        // The line is neither an assignment nor an exemption.
        if value.is_none() && bare.is_none() {
            return None;
        }
        let key = dotted(bare.unwrap_or(key));
        let at = Line { file: file.to_owned(), number: index + 1 };
        (!key.is_empty()).then_some(Entry { key, value, at, by_hand_only })
    };
    text.lines().enumerate().filter_map(line).collect()
}

/// The key with dots as separators. The first `.` or `/` in the key decides which of the two is the
/// separator; with `/`, a dot is part of a name and becomes `/`.
fn dotted(key: &str) -> String {
    match key.find(['.', '/']).map(|at| &key[at..=at]) {
        Some("/") => key
            .chars()
            .map(|c| {
                if c == '/' {
                    '.'
                } else if c == '.' {
                    '/'
                } else {
                    c
                }
            })
            .collect(),
        _ => key.to_owned(),
    }
}

/// A shell pattern, in which `*` and `?` do not match a dot.
fn matches(pattern: &str, key: &str) -> bool {
    match (pattern.split_at_checked(1), key.chars().next()) {
        (None, None) => true,
        (Some(("*", rest)), next) => {
            let longer =
                next.filter(|c| *c != '.').is_some_and(|c| matches(pattern, &key[c.len_utf8()..]));
            matches(rest, key) || longer
        }
        (Some(("?", rest)), Some(c)) if c != '.' => matches(rest, &key[c.len_utf8()..]),
        (Some((one, rest)), Some(_)) => key.strip_prefix(one).is_some_and(|key| matches(rest, key)),
        // Also for a pattern that starts with a non-ASCII character, because all our keys are ASCII.
        (None, Some(_)) | (Some(_), None) => false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::TempRoot;

    fn configured(files: &[(&str, &str)]) -> Configured {
        let root = TempRoot::new();
        for (path, text) in files {
            root.file(path, text);
        }
        let mut configured = Configured::default();
        read(root.path(), &mut configured);
        configured
    }

    fn winner(files: &[(&str, &str)], key: &str) -> Option<(String, String)> {
        let configured = configured(files);
        configured.sysctl(key).map(|it| (it.value.clone(), it.at.to_string()))
    }

    const TIME: &str = "net.ipv4.tcp_keepalive_time";

    #[test]
    fn the_last_file_by_name_wins_in_any_directory() {
        let files = [
            ("etc/sysctl.d/10-a.conf", "net.ipv4.tcp_keepalive_time = 300\n"),
            ("usr/lib/sysctl.d/50-b.conf", "# one\nnet/ipv4/tcp_keepalive_time=600\n"),
        ];
        assert_eq!(
            winner(&files, TIME),
            Some(("600".into(), "/usr/lib/sysctl.d/50-b.conf:2".into()))
        );
    }

    #[test]
    fn sysctl_conf_is_read_at_boot_only_where_it_is_linked() {
        let legacy = ("etc/sysctl.conf", "net.ipv4.tcp_keepalive_time=120\n");
        let found = configured(&[legacy]);
        assert!(found.sysctl(TIME).is_some_and(|it| it.by_hand_only));
        let linked = [legacy, ("etc/sysctl.d/99-sysctl.conf", "net.ipv4.tcp_keepalive_time=120\n")];
        assert!(configured(&linked).sysctl(TIME).is_some_and(|it| !it.by_hand_only));
        let overridden = [legacy, ("etc/sysctl.d/10-a.conf", "net.ipv4.tcp_keepalive_time=60\n")];
        assert_eq!(winner(&overridden, TIME).expect("set").0, "60");
    }

    #[test]
    fn a_pattern_sets_only_keys_that_no_line_names() {
        let files = [
            (
                "etc/sysctl.d/10-a.conf",
                "net.ipv4.tcp_keepalive_time=300\n-net.ipv4.tcp_keepalive_probes\n",
            ),
            ("etc/sysctl.d/90-b.conf", "-net.ipv4.tcp_keepalive_* = 60\n"),
        ];
        assert_eq!(winner(&files, TIME).expect("set").0, "300");
        assert_eq!(winner(&files, "net.ipv4.tcp_keepalive_intvl").expect("set").0, "60");
        assert_eq!(winner(&files, "net.ipv4.tcp_keepalive_probes"), None);
    }

    #[test]
    fn comments_and_invalid_lines_set_nothing() {
        let text =
            "; net.ipv4.tcp_keepalive_time=1\n#net.ipv4.tcp_keepalive_time=1\nnonsense\n= 5\n\n";
        assert_eq!(configured(&[("etc/sysctl.d/a.conf", text)]).sysctls, []);
    }

    #[test]
    fn a_pattern_does_not_cross_a_dot() {
        assert!(matches("net.ipv4.tcp_*", TIME) && matches("net.*.tcp_keepalive_tim?", TIME));
        assert!(!matches("net.*", TIME) && !matches("net.ipv4.tcp_", TIME) && !matches("", TIME));
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_a_panic(text in "\\PC*(\n\\PC*){0,4}", pattern in "[a-z*?.é-]{0,12}") {
            for line in parse("f", &text, false) {
                prop_assert!(!line.key.is_empty());
            }
            let _ = matches(&pattern, TIME);
        }
    }
}
