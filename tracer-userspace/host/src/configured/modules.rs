//! Kernel modules that are loaded at boot, their options, and the units that set the IPVS timeouts.

use std::{fs, path::Path};

use rsttrace_model::configured::{Assignment, Configured, Line};

use super::drop_ins;

pub fn read(root: &Path, release: &str, configured: &mut Configured) {
    for file in drop_ins::read(root, "modprobe.d", ".conf", &mut configured.unread) {
        configured.options.extend(options(&file.name, &file.text));
    }
    let mut lists = drop_ins::read(root, "modules-load.d", ".conf", &mut configured.unread);
    lists.extend(drop_ins::file(root, Path::new("etc/modules"), &mut configured.unread));
    for file in lists {
        configured.modules.extend(words(&file.text));
    }
    let built_in = format!("lib/modules/{release}/modules.builtin");
    if let Ok(text) = drop_ins::text(&root.join(built_in)) {
        configured.modules.extend(text.lines().filter_map(built_in_name));
    }
    configured.ipvs_timeouts = timeouts(root);
}

/// Lines such as `options nf_conntrack hashsize=32768`, which may set several options.
fn options(file: &str, text: &str) -> Vec<Assignment> {
    let mut list = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let mut words = line.split_whitespace();
        if words.next() != Some("options") {
            continue;
        }
        let Some(module) = words.next() else {
            continue;
        };
        let pairs = words.filter_map(|word| word.split_once('='));
        list.extend(pairs.map(|(name, value)| Assignment {
            key: format!("{}.{name}", underscored(module)),
            value: value.to_owned(),
            at: Line { file: file.to_owned(), number: index + 1 },
            by_hand_only: false,
        }));
    }
    list
}

fn words(text: &str) -> impl Iterator<Item = String> {
    let lines = text.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';']));
    lines.filter_map(|line| line.split_whitespace().next()).map(underscored)
}

/// `kernel/net/netfilter/nf_conntrack.ko`
fn built_in_name(line: &str) -> Option<String> {
    line.rsplit('/').next()?.trim().strip_suffix(".ko").map(underscored)
}

/// The kernel treats `-` and `_` in module names as equal.
fn underscored(module: &str) -> String {
    module.replace('-', "_")
}

/// Lines of systemd units that run `ipvsadm --set`, and keepalived's `lvs_timeouts`.
fn timeouts(root: &Path) -> Vec<Line> {
    let mut units: Vec<_> = ["etc/systemd/system", "usr/lib/systemd/system"]
        .iter()
        .filter_map(|below| fs::read_dir(root.join(below)).ok())
        .flat_map(|entries| entries.flatten())
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|it| it == "service"))
        .collect();
    units.sort_unstable();
    units.push(root.join("etc/keepalived/keepalived.conf"));
    let mut lines = Vec::new();
    for path in units {
        let Ok(text) = drop_ins::text(&path) else {
            continue;
        };
        let below = path.strip_prefix(root).unwrap_or(&path);
        lines.extend(
            text.lines().enumerate().filter(|(_, line)| sets_timeouts(line)).map(|(index, _)| {
                Line { file: format!("/{}", below.display()), number: index + 1 }
            }),
        );
    }
    lines
}

fn sets_timeouts(line: &str) -> bool {
    let line = line.trim_start();
    (line.starts_with("Exec") && line.contains("ipvsadm") && line.contains("--set"))
        || line.starts_with("lvs_timeouts")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::TempRoot;

    #[test]
    fn options_modules_and_units_are_found() {
        let root = TempRoot::new();
        root.file("etc/modprobe.d/ct.conf", "# x\noptions nf-conntrack hashsize=32768 acct=1\n");
        root.file("etc/modules-load.d/k8s.conf", "# k\nip_vs\nip-vs-rr\n");
        root.file("etc/modules", "loop\n");
        root.file("lib/modules/6.1/modules.builtin", "kernel/net/netfilter/nf_conntrack.ko\n");
        root.file(
            "etc/systemd/system/a.service",
            "[Service]\nExecStart=/sbin/ipvsadm --set 1 0 0\n",
        );
        root.file("etc/systemd/system/b.service", "[Service]\nExecStart=/bin/true\n");
        let mut configured = Configured::default();
        read(root.path(), "6.1", &mut configured);
        assert_eq!(
            configured.option("nf_conntrack.hashsize").and_then(Assignment::number),
            Some(32768)
        );
        for module in ["ip_vs", "ip_vs_rr", "loop", "nf_conntrack"] {
            assert!(configured.loads(module), "{module}");
        }
        assert!(!configured.loads("k"));
        let units: Vec<_> = configured.ipvs_timeouts.iter().map(Line::to_string).collect();
        assert_eq!(units, ["/etc/systemd/system/a.service:2"]);
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_a_panic(text in "\\PC*(\n(options )?\\PC*){0,4}") {
            options("f", &text);
            words(&text).count();
            text.lines().filter_map(built_in_name).count();
        }
    }
}
