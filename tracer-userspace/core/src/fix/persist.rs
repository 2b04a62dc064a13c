//! The files that keep a change over a reboot. Only the initial namespace has any: others are
//! configured by whoever makes them.

use std::fmt::Write as _;

use rsttrace_model::netns::NetnsReach;

use super::change::{Change, Fix, ipvsadm_set};

/// A file that keeps the change over a reboot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Persist {
    pub path: String,
    pub text: String,
}

/// Where Debian, Fedora and openSUSE have it.
pub const IPVSADM: &str = "/sbin/ipvsadm";

const HASHSIZE: &str = "\
# hashsize alone makes nf_conntrack_max eight times as large, until sysctl.d sets that
# (nf_conntrack_init_start, net/netfilter/nf_conntrack_core.c).
";

impl Fix {
    /// The first file, which an incident names.
    pub fn persist(&self) -> Option<Persist> {
        self.files().into_iter().next()
    }

    /// Every file that it takes.
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
            // A key whose module comes later would be skipped.
            let text = modules.iter().map(|module| format!("{module}\n")).collect();
            files.push((format!("/etc/modules-load.d/rsttrace-{name}.conf"), text));
        }
        if !ipvs.is_empty() {
            files.push((format!("/etc/systemd/system/rsttrace-{name}.service"), unit(&ipvs)));
        }
        files.into_iter().map(|(path, text)| Persist { path, text }).collect()
    }
}

/// The module that brings a key.
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
        "[Unit]\nDescription=IPVS timeouts (no sysctl holds them)\n\
         After=network-pre.target systemd-modules-load.service\n\
         [Service]\nType=oneshot\nRemainAfterExit=yes\n",
    );
    for command in commands {
        let arguments = command.strip_prefix("ipvsadm").unwrap_or(command);
        let _ = writeln!(text, "ExecStart={IPVSADM}{arguments}");
    }
    text.push_str("[Install]\nWantedBy=multi-user.target\n");
    text
}

impl Persist {
    /// For a unit: the link that has it started at boot (`systemctl enable`), and where it leads.
    pub fn enabled_by(&self) -> Option<(String, String)> {
        let name = self.path.strip_prefix("/etc/systemd/system/")?;
        Some((format!("/etc/systemd/system/multi-user.target.wants/{name}"), self.path.clone()))
    }
}
