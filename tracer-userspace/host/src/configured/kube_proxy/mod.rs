//! kube-proxy: the configuration that decides what it writes when it starts, read as kube-proxy reads it
//! (`cmd/kube-proxy/app/options.go`): a file given by `--config` replaces every flag that matters here.

mod duration;
mod file;
mod flags;
mod k3s;
mod process;
mod root;

use std::{io::ErrorKind, path::Path};

use flags::Flags;
use process::Process;
use root::Root;
use rsttrace_model::{
    configured::{Configured, KubeProxy},
    kube_proxy::{FieldKind, Packaging},
};

/// Paths of the configuration file when no kube-proxy process names one.
const FILES: [&str; 3] = [
    "/var/lib/kube-proxy/config.conf",
    "/var/lib/kube-proxy/kube-proxy-config.yaml",
    "/etc/kubernetes/kube-proxy-config.yaml",
];

/// The flags of MicroK8s' kube-proxy, which runs in its kubelite.
const MICROK8S: &str = "/var/snap/microk8s/current/args/kube-proxy";

/// Counts are `int32`.
const MOST_COUNT: u64 = 0x7fff_ffff;

const EXPECTED_MODE: &str = "iptables, ipvs or nftables";

fn expected(kind: FieldKind) -> &'static str {
    match kind {
        FieldKind::Count => "a whole number",
        FieldKind::Switch => "true or false",
        FieldKind::Duration => "a duration such as 15m or 1.5h",
    }
}

pub fn read(root: &Path, configured: &mut Configured) {
    let unread = &mut configured.unread;
    configured.kube_proxy = match process::find(root) {
        Some(process) => running(root, process, unread),
        None => of_file(root, unread),
    };
}

/// The kube-proxy that would start with one of the usual files.
fn of_file(root: &Path, unread: &mut Vec<String>) -> Option<KubeProxy> {
    let host = Root::open(root).ok()?;
    FILES.into_iter().find_map(|name| {
        let text = host.text(name).ok()?;
        let mut proxy = KubeProxy { file: Some(name.into()), ..KubeProxy::default() };
        file::read(name, &text, &mut proxy, unread);
        Some(proxy)
    })
}

/// `None` where the process runs without kube-proxy.
fn running(root: &Path, process: Process, unread: &mut Vec<String>) -> Option<KubeProxy> {
    let Process { pid, packaging, arguments } = process;
    let mut proxy = KubeProxy { pid: Some(pid), packaging, ..KubeProxy::default() };
    let who = proxy.describe();
    let flags = match packaging {
        Packaging::K3s => k3s::flags(root, &who, &arguments, unread)?,
        Packaging::Microk8s => match Root::open(root).and_then(|host| host.text(MICROK8S)) {
            Ok(text) => {
                let lines = text.lines().map(str::trim).filter(|line| !line.starts_with('#'));
                let words: Vec<&str> = lines.flat_map(str::split_whitespace).collect();
                Some(Flags::of(words.into_iter()))
            }
            Err(error) => {
                unread.push(format!("{MICROK8S}: {error}"));
                None
            }
        },
        Packaging::Own | Packaging::Rke2 => {
            Some(Flags::of(arguments.iter().skip(1).map(String::as_str)))
        }
    };
    let Some(flags) = flags else {
        proxy.forget_all();
        return Some(proxy);
    };
    match flags.get("config").filter(|name| !name.is_empty()) {
        Some(name) => {
            proxy.file = Some(name.to_owned());
            match text_of_process(root, pid, name) {
                Ok(text) => file::read(name, &text, &mut proxy, unread),
                Err(error) => {
                    unread.push(format!("{name} of {who}: {error}"));
                    proxy.forget_all();
                }
            }
        }
        None => flags.apply(&who, &mut proxy, unread),
    }
    Some(proxy)
}

/// A file as the process sees it: its container has another root directory.
fn text_of_process(root: &Path, pid: u32, name: &str) -> std::io::Result<String> {
    if !name.starts_with('/') {
        let text = "a relative path, whose directory is not known";
        return Err(std::io::Error::new(ErrorKind::InvalidInput, text));
    }
    let host = Root::open(root)?;
    match host.of_process(pid) {
        Ok(its) => its.text(name),
        // A copy of a host has no such directory.
        Err(error) if error.kind() == ErrorKind::NotFound => host.text(name),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests;
