//! The files that keep a change across a reboot. Only changes in the initial namespace have files: what
//! creates another namespace also configures it.

use std::fmt::Write as _;

use rsttrace_model::netns::NetnsReach;

use super::change::{Change, Fix, ipvsadm_set};

/// A file that keeps the change across a reboot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Persist {
    pub path: String,
    pub text: String,
}

/// The path of ipvsadm on Debian, Fedora and openSUSE.
pub const IPVSADM: &str = "/sbin/ipvsadm";

const HASHSIZE: &str = "\
# hashsize alone sets nf_conntrack_max to eight times its value, until sysctl.d sets nf_conntrack_max
# (nf_conntrack_init_start, net/netfilter/nf_conntrack_core.c).
";

impl Fix {
    /// The first file, which an incident lists.
    pub fn persist(&self) -> Option<Persist> {
        self.files().into_iter().next()
    }

    /// All files that the fix needs.
    pub fn files(&self) -> Vec<Persist> {
        let (mut sysctls, mut modules) = (String::new(), Vec::new());
        let (mut hashsize, mut ipvs) = (None, Vec::new());
        for change in &self.changes {
            match change {
                Change::Sysctl { place, key, to, .. } if place.reach == NetnsReach::Initial => {
                    // Writing to a String cannot fail.
                    let _ = writeln!(sysctls, "{key} = {to}");
                    modules.extend(module(key).filter(|module| !modules.contains(module)));
                    if *key == "net.netfilter.nf_conntrack_buckets" {
                        hashsize = Some(to);
                    }
                }
                Change::IpvsTimeout { place, timer, to_s, .. }
                    if place.reach == NetnsReach::Initial =>
                {
                    ipvs.push(ipvsadm_set(*timer, *to_s));
                }
                _ => {}
            }
        }
        let name = self.id.replace('_', "-");
        let mut files = Vec::new();
        if !sysctls.is_empty() {
            files.push((format!("/etc/sysctl.d/99-rsttrace-{name}.conf"), sysctls));
        }
        if let Some(hashsize) = hashsize {
            let text = format!("{HASHSIZE}options nf_conntrack hashsize={hashsize}\n");
            files.push((format!("/etc/modprobe.d/rsttrace-{name}.conf"), text));
        }
        if !modules.is_empty() {
            // systemd-sysctl skips a key whose module is loaded later.
            let text = modules.iter().map(|module| format!("{module}\n")).collect();
            files.push((format!("/etc/modules-load.d/rsttrace-{name}.conf"), text));
        }
        if !ipvs.is_empty() {
            files.push((format!("/etc/systemd/system/rsttrace-{name}.service"), unit(&ipvs)));
        }
        files.into_iter().map(|(path, text)| Persist { path, text }).collect()
    }
}

/// The module that provides a key.
fn module(key: &str) -> Option<&'static str> {
    if key.starts_with("net.netfilter.nf_conntrack") {
        Some("nf_conntrack")
    } else if key.starts_with("net.ipv4.vs.") {
        Some("ip_vs")
    } else {
        None
    }
}

fn unit(commands: &[String]) -> String {
    let mut text = String::from(
        "[Unit]\nDescription=IPVS timeouts (there is no sysctl for them)\nAfter=network-pre.target \
         systemd-modules-load.service\n[Service]\nType=oneshot\nRemainAfterExit=yes\n",
    );
    for command in commands {
        let arguments = command.strip_prefix("ipvsadm").unwrap_or(command);
        let _ = writeln!(text, "ExecStart={IPVSADM}{arguments}");
    }
    text.push_str("[Install]\nWantedBy=multi-user.target\n");
    text
}

impl Persist {
    /// For a unit: the link that starts it at boot (`systemctl enable`), and the link's target.
    pub fn enabled_by(&self) -> Option<(String, String)> {
        let name = self.path.strip_prefix("/etc/systemd/system/")?;
        Some((format!("/etc/systemd/system/multi-user.target.wants/{name}"), self.path.clone()))
    }
}
