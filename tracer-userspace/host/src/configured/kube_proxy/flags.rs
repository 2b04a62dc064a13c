//! The flags of kube-proxy's command line, as pflag reads them (`cmd/kube-proxy/app/options.go`).

use std::collections::BTreeMap;

use rsttrace_model::kube_proxy::{FIELDS, FieldKind, FieldValue, KubeProxy, MODE, Mode};

use super::duration;

/// Flags without a value on the next argument: their `NoOptDefVal` is true.
const SWITCHES: [&str; 13] = [
    "alsologtostderr",
    "bind-address-hard-fail",
    "cleanup",
    "conntrack-tcp-be-liberal",
    "help",
    "init-only",
    "ipvs-strict-arp",
    "iptables-localhost-nodeports",
    "logtostderr",
    "masquerade-all",
    "profiling",
    "skip-headers",
    "version",
];

/// The value of each flag. Of a flag that is given twice, the last one.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Flags(BTreeMap<String, String>);

impl Flags {
    /// Reads the arguments behind the program's name.
    pub fn of<'a>(arguments: impl Iterator<Item = &'a str>) -> Self {
        let mut flags = Self::default();
        let mut arguments = arguments;
        while let Some(argument) = arguments.next() {
            if argument == "--" {
                break;
            }
            let Some(flag) = argument.strip_prefix("--") else {
                // The only flag with one dash is `-v`, whose value may be the next argument.
                if argument == "-v" {
                    arguments.next();
                }
                continue;
            };
            match flag.split_once('=') {
                Some((name, value)) => flags.set(name, value),
                None if SWITCHES.contains(&normal(flag).as_str()) => flags.set(flag, "true"),
                // pflag takes the next argument, whatever it looks like.
                None => flags.set(flag, arguments.next().unwrap_or_default()),
            }
        }
        flags
    }

    /// Reads `NAME=VALUE` or `NAME`, with or without dashes before, as k3s's `--kube-proxy-arg` has it.
    pub fn set_argument(&mut self, argument: &str) {
        let argument = argument.strip_prefix("--").unwrap_or(argument);
        let (name, value) = argument.split_once('=').unwrap_or((argument, "true"));
        self.set(name, value);
    }

    fn set(&mut self, name: &str, value: &str) {
        self.0.insert(normal(name), value.to_owned());
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// Sets the mode and the fields of the flags. `from` names where the flags come from. What cannot be parsed
    /// is reported, and its field is not known.
    pub fn apply(&self, from: &str, proxy: &mut KubeProxy, unread: &mut Vec<String>) {
        let mut invalid = |flag: &str, value: &str, expected: &str| {
            unread
                .push(format!("{from}: invalid value {value:?} of --{flag} (expected {expected})"));
        };
        if let Some(mode) = self.get("proxy-mode") {
            if mode.is_empty() || Mode::ALL.iter().any(|it| it.id() == mode) {
                proxy.mode = Some(mode.to_owned()).filter(|mode| !mode.is_empty());
            } else {
                invalid("proxy-mode", mode, super::EXPECTED_MODE);
                proxy.unread.insert(MODE);
            }
        }
        for field in FIELDS {
            let Some(text) = self.get(field.flag) else {
                continue;
            };
            match value(field.kind, text) {
                Some(value) => drop(proxy.fields.insert(field.path, value)),
                None => {
                    invalid(field.flag, text, super::expected(field.kind));
                    proxy.unread.insert(field.path);
                }
            }
        }
    }
}

/// Names are compared with dashes only (`WordSepNormalizeFunc`).
fn normal(name: &str) -> String {
    name.replace('_', "-")
}

/// `strconv.ParseInt(text, 0, 32)`, `strconv.ParseBool` and `time.ParseDuration`.
fn value(kind: FieldKind, text: &str) -> Option<FieldValue> {
    match kind {
        FieldKind::Duration => duration::parse(text).map(FieldValue::Duration),
        FieldKind::Count => {
            let number = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
                Some(hex) => u64::from_str_radix(hex, 16).ok(),
                None => text.parse().ok(),
            };
            number.filter(|it| *it <= super::MOST_COUNT).map(FieldValue::Count)
        }
        FieldKind::Switch => match text {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(FieldValue::Switch(true)),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(FieldValue::Switch(false)),
            _ => None,
        },
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn applied(line: &str) -> (KubeProxy, Vec<String>) {
        let (mut proxy, mut unread) = (KubeProxy::default(), Vec::new());
        Flags::of(line.split(' ')).apply("kube-proxy", &mut proxy, &mut unread);
        (proxy, unread)
    }

    #[test]
    fn of_a_flag_that_is_given_twice_the_last_one_counts() {
        let (proxy, _) = applied("--ipvs-tcp-timeout=1h --proxy-mode=ipvs --ipvs-tcp-timeout 1.5h");
        assert_eq!(proxy.writes("ipvs.tcp", 2), Some(5400));
    }

    #[test]
    fn values_follow_an_equals_sign_or_are_the_next_argument_and_switches_have_none() {
        let (proxy, unread) = applied(
            "-v 5 --masquerade-all --conntrack-tcp-be-liberal --proxy_mode ipvs --conntrack-min=0x10000 \
             --conntrack-max-per-core=1 --ipvs-strict-arp=f -- --proxy-mode=nftables",
        );
        assert_eq!(unread, [""; 0]);
        assert_eq!(proxy.mode.as_deref(), Some("ipvs"));
        assert_eq!(proxy.writes("net.netfilter.nf_conntrack_tcp_be_liberal", 2), Some(1));
        assert_eq!(proxy.writes("net.netfilter.nf_conntrack_max", 2), Some(65_536));
        assert_eq!(proxy.writes("net.ipv4.conf.all.arp_ignore", 2), None);
    }

    #[test]
    fn an_invalid_flag_is_reported_and_the_others_are_used() {
        let (proxy, unread) =
            applied("--ipvs-tcp-timeout=900 --proxy-mode=ipvs --conntrack-udp-timeout=2m0.5s");
        let expected = "kube-proxy: invalid value \"900\" of --ipvs-tcp-timeout (expected a duration such as \
                        15m or 1.5h)";
        assert_eq!(unread, [expected]);
        assert!(proxy.unread.contains("ipvs.tcpTimeout"));
        assert_eq!(proxy.writes("net.netfilter.nf_conntrack_udp_timeout", 2), Some(120));
    }

    proptest! {
        #[test]
        fn any_arguments_are_read_without_a_panic(line in "(-{0,3}[a-z_=-]{0,12} ?\\PC{0,6} ?){0,6}") {
            applied(&line);
            let mut flags = Flags::default();
            flags.set_argument(&line);
        }
    }
}
