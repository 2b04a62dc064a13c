//! kube-proxy: the settings that kube-proxy writes when it starts (`cmd/kube-proxy/app/options.go`,
//! `pkg/proxy/apis/config/v1alpha1/defaults.go`).

use std::{
    fs,
    path::{Path, PathBuf},
};

use rsttrace_model::configured::{Configured, KubeProxy};
use saphyr::{LoadableYamlNode as _, Yaml};

use super::drop_ins;

/// Paths of the configuration file when no kube-proxy process names one.
const FILES: [&str; 3] = [
    "var/lib/kube-proxy/config.conf",
    "var/lib/kube-proxy/kube-proxy-config.yaml",
    "etc/kubernetes/kube-proxy-config.yaml",
];

/// A configuration field, and the flag that sets the field when there is no file.
const FIELDS: [(&str, &str); 9] = [
    ("ipvs.tcpTimeout", "ipvs-tcp-timeout"),
    ("ipvs.tcpFinTimeout", "ipvs-tcpfin-timeout"),
    ("ipvs.udpTimeout", "ipvs-udp-timeout"),
    ("conntrack.maxPerCore", "conntrack-max-per-core"),
    ("conntrack.min", "conntrack-min"),
    ("conntrack.tcpEstablishedTimeout", "conntrack-tcp-timeout-established"),
    ("conntrack.tcpCloseWaitTimeout", "conntrack-tcp-timeout-close-wait"),
    ("conntrack.udpTimeout", "conntrack-udp-timeout"),
    ("conntrack.udpStreamTimeout", "conntrack-udp-timeout-stream"),
];

pub fn read(root: &Path, configured: &mut Configured) {
    let found = process(&root.join("proc")).or_else(|| {
        let file = FILES.iter().find(|file| root.join(file).is_file())?;
        Some((KubeProxy { file: Some(format!("/{file}")), ..KubeProxy::default() }, Vec::new()))
    });
    let Some((mut proxy, arguments)) = found else {
        return;
    };
    if let Some(name) = proxy.file.clone() {
        // kube-proxy's container has a different root directory.
        let below = name.trim_start_matches('/');
        let inside = proxy.pid.map(|pid| root.join(format!("proc/{pid}/root")).join(below));
        let paths: Vec<PathBuf> = inside.into_iter().chain([root.join(below)]).collect();
        match paths.iter().find_map(|path| drop_ins::text(path).ok()) {
            Some(text) => {
                if let Err(error) = read_file(&text, &mut proxy) {
                    configured.unread.push(format!("{name}: {error}"));
                }
            }
            None => configured.unread.push(format!("{name}: cannot be read")),
        }
    } else {
        // With --config every other flag is ignored.
        read_flags(&arguments, &mut proxy);
    }
    configured.kube_proxy = Some(proxy);
}

/// The kube-proxy process with the lowest pid, and its flags.
fn process(proc: &Path) -> Option<(KubeProxy, Vec<(String, String)>)> {
    let mut pids: Vec<u32> = fs::read_dir(proc)
        .ok()?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    pids.sort_unstable();
    pids.into_iter().find_map(|pid| {
        let directory = proc.join(pid.to_string());
        let name = fs::read_to_string(directory.join("comm")).ok()?;
        if name.trim_end() != "kube-proxy" {
            return None;
        }
        let line = drop_ins::text_of_proc(&directory.join("cmdline")).unwrap_or_default();
        let flags = flags(line.split('\0'));
        let file = flags.iter().find(|(name, _)| name == "config").map(|(_, value)| value.clone());
        Some((KubeProxy { pid: Some(pid), file, ..KubeProxy::default() }, flags))
    })
}

/// `--name=value` and `--name value`.
fn flags<'a>(arguments: impl Iterator<Item = &'a str>) -> Vec<(String, String)> {
    let mut flags = Vec::new();
    let mut arguments = arguments.peekable();
    while let Some(argument) = arguments.next() {
        let Some(flag) = argument.strip_prefix("--") else {
            continue;
        };
        match flag.split_once('=') {
            Some((name, value)) => flags.push((name.to_owned(), value.to_owned())),
            None => {
                let value = arguments.next_if(|next| !next.starts_with("--")).unwrap_or_default();
                flags.push((flag.to_owned(), value.to_owned()));
            }
        }
    }
    flags
}

fn read_flags(flags: &[(String, String)], proxy: &mut KubeProxy) {
    let value =
        |wanted: &str| flags.iter().find(|(name, _)| name == wanted).map(|(_, value)| value);
    proxy.mode = value("proxy-mode").cloned();
    for (field, flag) in FIELDS {
        if let Some(number) = value(flag).and_then(|text| number(text)) {
            proxy.fields.insert(field, number);
        }
    }
}

/// Reads a KubeProxyConfiguration.
fn read_file(text: &str, proxy: &mut KubeProxy) -> Result<(), String> {
    let documents = Yaml::load_from_str(text).map_err(|error| error.to_string())?;
    let is_kube_proxy = |it: &&Yaml<'_>| {
        it.as_mapping_get("kind").and_then(|kind| kind.as_str()) == Some("KubeProxyConfiguration")
    };
    let document =
        documents.iter().find(is_kube_proxy).ok_or("no KubeProxyConfiguration in the file")?;
    proxy.mode = document
        .as_mapping_get("mode")
        .and_then(|mode| mode.as_str())
        .filter(|mode| !mode.is_empty())
        .map(ToOwned::to_owned);
    for (field, _) in FIELDS {
        let Some((section, name)) = field.split_once('.') else {
            continue;
        };
        let Some(value) = document.as_mapping_get(section).and_then(|it| it.as_mapping_get(name))
        else {
            continue;
        };
        let read = match value.as_integer() {
            Some(number) => u64::try_from(number).ok(),
            None => value.as_str().and_then(number),
        };
        match read {
            Some(number) => {
                proxy.fields.insert(field, number);
            }
            // kube-proxy uses its own default.
            None if value.is_null() => {}
            None => {
                return Err(format!(
                    "invalid value of `{field}` (expected a number or a duration)"
                ));
            }
        }
    }
    Ok(())
}

/// A count, or a duration as Go prints it, in seconds: `131072`, `24h0m0s`, `15m`, `900s`.
fn number(text: &str) -> Option<u64> {
    if let Ok(number) = text.parse() {
        return Some(number);
    }
    let mut rest = text;
    let mut total: u64 = 0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).filter(|at| *at > 0)?;
        let (count, after) = rest.split_at(digits);
        let (unit, after) = match after.strip_prefix("ms") {
            Some(after) => (0, after),
            None => match after.split_at_checked(1)? {
                ("h", after) => (3600, after),
                ("m", after) => (60, after),
                ("s", after) => (1, after),
                _ => return None,
            },
        };
        total = total.checked_add(count.parse::<u64>().ok()?.checked_mul(unit)?)?;
        rest = after;
    }
    (!text.is_empty()).then_some(total)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::TempRoot;

    const FILE: &str = "\
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: ipvs
conntrack:
  maxPerCore: null
  min: 262144
  tcpEstablishedTimeout: 2h0m0s
ipvs:
  tcpTimeout: 0s
";

    fn proxy(text: &str) -> Result<KubeProxy, String> {
        let mut proxy = KubeProxy::default();
        read_file(text, &mut proxy).map(|()| proxy)
    }

    #[test]
    fn kube_proxy_writes_its_fields_and_zero_writes_nothing() {
        let proxy = proxy(FILE).expect("valid");
        assert_eq!(proxy.mode.as_deref(), Some("ipvs"));
        let established = "net.netfilter.nf_conntrack_tcp_timeout_established";
        assert_eq!(proxy.writes(established, 2), Some(7200));
        assert_eq!(proxy.writes("ipvs.tcp", 2), None);
        assert_eq!(proxy.writes("net.netfilter.nf_conntrack_max", 2), Some(262_144));
        assert_eq!(proxy.writes("net.netfilter.nf_conntrack_max", 16), Some(524_288));
        assert_eq!(KubeProxy::default().writes(established, 2), Some(86_400));
        assert_eq!(KubeProxy::default().writes("net.netfilter.nf_conntrack_max", 2), Some(131_072));
    }

    #[test]
    fn the_process_names_its_file_which_may_be_in_a_container() {
        let root = TempRoot::new();
        root.file("proc/12/comm", "kube-proxy\n");
        root.file("proc/12/cmdline", "/usr/local/bin/kube-proxy\0--config=/var/x.conf\0--v=2\0");
        root.file("proc/12/root/var/x.conf", FILE);
        root.file("proc/7/comm", "other\n");
        let mut configured = Configured::default();
        read(root.path(), &mut configured);
        let found = configured.kube_proxy.expect("it runs");
        assert_eq!((found.pid, found.mode.as_deref()), (Some(12), Some("ipvs")));
        assert_eq!(found.describe(), "kube-proxy (pid 12, /var/x.conf)");
    }

    #[test]
    fn without_a_file_the_flags_are_used() {
        let root = TempRoot::new();
        root.file("proc/12/comm", "kube-proxy\n");
        root.file("proc/12/cmdline", "kube-proxy\0--proxy-mode\0ipvs\0--ipvs-tcp-timeout=2h\0");
        let mut configured = Configured::default();
        read(root.path(), &mut configured);
        let found = configured.kube_proxy.expect("it runs");
        assert_eq!(
            (found.mode.as_deref(), found.writes("ipvs.tcp", 2)),
            (Some("ipvs"), Some(7200))
        );
    }

    #[test]
    fn an_invalid_file_and_another_configuration_are_errors() {
        for text in
            ["kind: [", "kind: Pod\n", "", "kind: KubeProxyConfiguration\nipvs: {udpTimeout: x}\n"]
        {
            assert!(proxy(text).is_err(), "{text:?}");
        }
        let root = TempRoot::new();
        root.file("var/lib/kube-proxy/config.conf", "kind: [");
        let mut configured = Configured::default();
        read(root.path(), &mut configured);
        assert!(configured.unread[0].starts_with("/var/lib/kube-proxy/config.conf: "));
    }

    #[test]
    fn durations_have_the_syntax_of_go() {
        for (text, wanted) in [
            ("900", Some(900)),
            ("24h0m0s", Some(86_400)),
            ("1h30m", Some(5400)),
            ("500ms", Some(0)),
            ("", None),
            ("h", None),
            ("5d", None),
            ("99999999999999999999h", None),
        ] {
            assert_eq!(number(text), wanted, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_a_panic(text in "\\PC{0,40}(\n[ a-zA-Z:{}\\[\\]&*'\"|>-]{0,30}){0,6}") {
            let _ = proxy(&text);
            let _ = number(&text);
            flags(text.split('\n'));
        }
    }
}
