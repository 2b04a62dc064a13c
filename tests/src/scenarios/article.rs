//! A host configured exactly as in the article that started this project: `rsttrace check` reports the problems of that
//! configuration, each with the source of the value.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::{Observed, Scenario, Stage, TracerUse};
use crate::{expect::Expect, guest::Need, tools};

/// No connection breaks, so no tracer is started.
pub const SCENARIOS: &[Scenario] =
    &[Scenario::direct("check_article", |_| Expect::nothing(), check_article)
        .needs(&[Need::Ipvs, Need::Conntrack])
        .tracer(TracerUse::Late)];

/// The article's section 5, verbatim.
const FILE: &str = "\
net.netfilter.nf_conntrack_max=131072
net.netfilter.nf_conntrack_buckets=32768
net.ipv4.tcp_keepalive_time=7200
net.ipv4.tcp_keepalive_intvl=75
net.ipv4.tcp_keepalive_probes=5
net.netfilter.nf_conntrack_tcp_timeout_established=7200
net.netfilter.nf_conntrack_tcp_timeout_time_wait=120
net.netfilter.nf_conntrack_udp_timeout=300
net.netfilter.nf_conntrack_udp_timeout_stream=300
";
const PATH: &str = "/etc/sysctl.d/99-custom.conf";
const SERVICE: &str = "198.51.100.1:3306";

/// The expected findings: the rule, and parts of its reason and its source.
const EXPECTED: [(&str, [&str; 2], [&str; 2]); 4] = [
    (
        "equal_timers",
        ["are all 7200 s", "a race that the keepalive loses"],
        [
            "set in /etc/sysctl.d/99-custom.conf:3",
            "ipvs.tcp (ipvsadm -Ln --timeout) = 7200 s: set by hand",
        ],
    ),
    (
        "configured",
        ["the next reboot resets the IPVS timeouts", "ipvs.tcp is 900 s again"],
        ["ipvs.tcp (ipvsadm -Ln --timeout) = 7200 s", "not by a known configuration file"],
    ),
    (
        "configured",
        ["nf_conntrack_tcp_timeout_established to 7200", "will write 86400"],
        ["set in /etc/sysctl.d/99-custom.conf:6", "conntrack.tcpEstablishedTimeout"],
    ),
    (
        "udp_timers",
        ["full at 437 new flows", "30 s holds 4369"],
        ["nf_conntrack_udp_timeout = 300 s", "set in /etc/sysctl.d/99-custom.conf:8"],
    ),
];

fn check_article(_: &Stage<'_>) -> Result<Observed> {
    let before = findings()?;
    if let Some((rule, reason, _)) = EXPECTED.iter().find(|it| found(&before, it).is_some()) {
        bail!("{rule} ({}) was reported before anything was configured", reason[0]);
    }
    let article = Article::follow()?;
    let after = findings();
    drop(article);
    let after = after?;
    for it in &EXPECTED {
        let (rule, reason, source) = it;
        let finding = found(&after, it)
            .with_context(|| format!("no finding of {rule} with {:?}: {after:?}", reason[0]))?;
        let actual = finding["source"].as_str().unwrap_or_default();
        for part in source {
            ensure!(actual.contains(part), "the source of {rule} is {actual:?}, without {part:?}");
        }
        ensure!(finding["rank"] != "info", "{rule} has only the rank info");
    }
    let restored = findings()?;
    ensure!(
        EXPECTED.iter().all(|it| found(&restored, it).is_none()),
        "still reported after everything was restored: {restored:?}"
    );
    Ok(Observed::default())
}

fn found<'a>(findings: &'a [Value], wanted: &(&str, [&str; 2], [&str; 2])) -> Option<&'a Value> {
    let (rule, reason, _) = wanted;
    findings.iter().find(|it| {
        let actual = it["reason"].as_str().unwrap_or_default();
        it["rule"] == *rule && reason.iter().all(|part| actual.contains(part))
    })
}

fn findings() -> Result<Vec<Value>> {
    let printed = tools::run(None, "rsttrace check -o json", "")?;
    printed
        .lines()
        .map(|line| serde_json::from_str(line).with_context(|| format!("check printed {line:?}")))
        .collect()
}

/// The article's settings on this guest, a service behind IPVS, and a kube-proxy; reverted on drop.
struct Article {
    /// Paths below `/proc/sys`, and the values before.
    sysctls: Vec<(String, String)>,
    timeouts: String,
    kube_proxy: Option<Child>,
}

/// The path of a script that stands for kube-proxy: the kernel names a script's process after the script.
const KUBE_PROXY: &str = "/tmp/kube-proxy";

impl Article {
    fn follow() -> Result<Self> {
        let mut article = Self { sysctls: Vec::new(), timeouts: timeouts()?, kube_proxy: None };
        fs::create_dir_all("/etc/sysctl.d").context("make /etc/sysctl.d")?;
        fs::write(PATH, FILE).with_context(|| format!("write {PATH}"))?;
        for line in FILE.lines() {
            let (key, value) = line.split_once('=').context("no assignment")?;
            let path = format!("/proc/sys/{}", key.replace('.', "/"));
            let old = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
            fs::write(&path, value).with_context(|| format!("write {value} to {path}"))?;
            article.sysctls.push((path, old));
        }
        tools::run(None, "ipvsadm --set 7200 120 300", "")?;
        tools::run(None, &format!("ipvsadm -A -t {SERVICE} -s rr"), "")?;
        tools::run(None, &format!("ipvsadm -a -t {SERVICE} -r 198.51.100.2:3306 -m"), "")?;
        fs::write(KUBE_PROXY, "#!/bin/sh\nread end\n").context("write a kube-proxy")?;
        fs::set_permissions(KUBE_PROXY, fs::Permissions::from_mode(0o755)).context("chmod")?;
        let child = Command::new(KUBE_PROXY)
            .arg("--proxy-mode=ipvs")
            .stdin(Stdio::piped())
            .spawn()
            .context("start a kube-proxy")?;
        article.kube_proxy = Some(child);
        Ok(article)
    }
}

impl Drop for Article {
    fn drop(&mut self) {
        for (path, old) in &self.sysctls {
            let _ = fs::write(path, old);
        }
        let _ = tools::run(None, &format!("ipvsadm --set {}", self.timeouts), "");
        let _ = tools::run(None, &format!("ipvsadm -D -t {SERVICE}"), "");
        if let Some(child) = &mut self.kube_proxy {
            let _ = child.kill();
            let _ = child.wait();
        }
        for path in [PATH, KUBE_PROXY] {
            if Path::new(path).exists() {
                let _ = fs::remove_file(path);
            }
        }
    }
}

/// The IPVS timeouts, such as `900 120 300`.
fn timeouts() -> Result<String> {
    let printed = tools::run(None, "ipvsadm -Ln --timeout", "")?;
    let numbers = printed.rsplit(':').next().context("no timeouts")?;
    Ok(numbers.trim().to_owned())
}
