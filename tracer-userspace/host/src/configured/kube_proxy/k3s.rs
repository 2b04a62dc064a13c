//! kube-proxy inside k3s: the flags that k3s gives it (`kubeProxyArgs`, pkg/daemons/agent/agent_linux.go), and
//! those of `--kube-proxy-arg`, which its configuration files also set.

use std::path::Path;

use saphyr::{LoadableYamlNode as _, MarkedYaml};

use super::{Flags, Root};

const FILE: &str = "/etc/rancher/k3s/config.yaml";
const DIRECTORY: &str = "/etc/rancher/k3s/config.yaml.d";
const UNITS: [&str; 2] =
    ["/etc/systemd/system/k3s.service", "/etc/systemd/system/k3s-agent.service"];

/// What k3s sets before the administrator's flags.
const OWN: [&str; 4] = [
    "proxy-mode=iptables",
    "conntrack-max-per-core=0",
    "conntrack-tcp-timeout-established=0s",
    "conntrack-tcp-timeout-close-wait=0s",
];

/// What the files and the command line set.
#[derive(Default)]
struct Options {
    arguments: Vec<String>,
    disabled: bool,
}

/// The flags; `Some(None)` where they cannot be known, `None` where k3s runs without kube-proxy.
#[expect(clippy::option_option, reason = "two questions: does it run, and are its flags known")]
pub fn flags(
    root: &Path,
    who: &str,
    arguments: &[String],
    unread: &mut Vec<String>,
) -> Option<Option<Flags>> {
    let Ok(host) = Root::open(root) else {
        return Some(None);
    };
    let mut options = Options::default();
    let names = host.names(DIRECTORY).into_iter().filter(|name| name.ends_with(".yaml"));
    let files = [FILE.to_owned()].into_iter().chain(names.map(|it| format!("{DIRECTORY}/{it}")));
    let mut is_known = true;
    for name in files {
        match host.text(&name) {
            Ok(text) => is_known &= of_file(&name, &text, &mut options, unread),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                unread.push(format!("{name}: {error}"));
                is_known = false;
            }
        }
    }
    // k3s hides its command line, which may hold passwords; then the unit that started it has the flags.
    let is_visible = arguments.iter().any(|it| it.starts_with("--"));
    let unit = || UNITS.into_iter().find_map(|unit| Some(words(&host.text(unit).ok()?)));
    match if is_visible { Some(arguments.to_vec()) } else { unit() } {
        Some(line) => of_line(&line, &mut options),
        None => {
            unread.push(format!(
                "the flags of {who}: k3s hides its command line, and no unit of systemd has them"
            ));
            is_known = false;
        }
    }
    if options.disabled {
        return None;
    }
    let mut flags = Flags::default();
    for argument in OWN.into_iter().chain(options.arguments.iter().map(String::as_str)) {
        flags.set_argument(argument);
    }
    Some(is_known.then_some(flags))
}

/// Whether the file could be parsed. A later file replaces the list, or appends to it with `kube-proxy-arg+`.
fn of_file(name: &str, text: &str, options: &mut Options, unread: &mut Vec<String>) -> bool {
    let documents = match MarkedYaml::load_from_str(text) {
        Ok(documents) => documents,
        Err(error) => {
            let at = error.marker();
            unread.push(format!("{name}:{}:{}: {}", at.line(), at.col() + 1, error.info()));
            return false;
        }
    };
    let Some(document) = documents.first() else {
        return true;
    };
    if let Some(disabled) = document.data.as_mapping_get("disable-kube-proxy") {
        options.disabled = disabled.data.as_bool().unwrap_or_default();
    }
    for key in ["kube-proxy-arg", "kube-proxy-arg+"] {
        let Some(node) = document.data.as_mapping_get(key) else {
            continue;
        };
        if !key.ends_with('+') {
            options.arguments.clear();
        }
        let many = node.data.as_sequence().into_iter().flatten();
        let texts = many.chain([node]).filter_map(|it| it.data.as_str());
        options.arguments.extend(texts.map(ToOwned::to_owned));
    }
    true
}

/// The flags of the command line replace the list of the files.
fn of_line(line: &[String], options: &mut Options) {
    let mut given = Vec::new();
    let mut words = line.iter();
    while let Some(word) = words.next() {
        let (name, value) = match word.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (word.as_str(), None),
        };
        match name {
            "--kube-proxy-arg" => given.extend(value.or_else(|| words.next().cloned())),
            "--disable-kube-proxy" => options.disabled = value.is_none_or(|it| it == "true"),
            _ => {}
        }
    }
    if !given.is_empty() {
        options.arguments = given;
    }
}

/// The words of `ExecStart=` of a unit, with lines that a backslash continues, and without quotes.
fn words(unit: &str) -> Vec<String> {
    let joined = unit.replace("\\\n", " ");
    let mut starts = joined.lines().filter_map(|line| line.trim().strip_prefix("ExecStart="));
    let mut words = vec![String::new()];
    let mut quote = None;
    for c in starts.next_back().unwrap_or_default().chars() {
        match (quote, c) {
            (None, '"' | '\'') => quote = Some(c),
            (Some(open), c) if c == open => quote = None,
            (None, c) if c.is_whitespace() => words.push(String::new()),
            (_, c) => words.last_mut().into_iter().for_each(|word| word.push(c)),
        }
    }
    words.retain(|word| !word.is_empty());
    words
}
