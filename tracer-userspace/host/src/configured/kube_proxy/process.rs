//! Which process runs kube-proxy.

use std::{fs, path::Path};

use rsttrace_model::kube_proxy::Packaging;

use super::super::drop_ins;

pub struct Process {
    pub pid: u32,
    pub packaging: Packaging,
    /// With the program's name.
    pub arguments: Vec<String>,
}

/// The process with the lowest pid. One in another network namespace than pid 1 sets the values of that
/// namespace (a node of kind, a container with kube-proxy inside), not this host's.
pub fn find(root: &Path) -> Option<Process> {
    let proc = root.join("proc");
    let mut pids: Vec<u32> = fs::read_dir(&proc)
        .ok()?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    pids.sort_unstable();
    let netns = |pid: u32| fs::read_link(proc.join(format!("{pid}/ns/net"))).ok();
    let initial = netns(1);
    pids.into_iter().find_map(|pid| {
        let directory = proc.join(pid.to_string());
        let comm = fs::read_to_string(directory.join("comm")).unwrap_or_default();
        let line = drop_ins::text_of_proc(&directory.join("cmdline")).unwrap_or_default();
        let mut arguments: Vec<String> =
            line.trim_end_matches('\0').split('\0').map(Into::into).collect();
        let packaging = packaging(comm.trim_end(), &mut arguments)?;
        let is_elsewhere = netns(pid).zip(initial.clone()).is_some_and(|(its, first)| its != first);
        (!is_elsewhere).then_some(Process { pid, packaging, arguments })
    })
}

/// `None` for a process that does not run kube-proxy. `comm` holds 15 bytes of a thread's name, which a
/// process may change; a program may be called by any path.
fn packaging(comm: &str, arguments: &mut Vec<String>) -> Option<Packaging> {
    let program = |argument: &str| argument.rsplit('/').next().unwrap_or_default().to_owned();
    let name = arguments.first().map(|first| program(first)).unwrap_or_default();
    match (comm, name.as_str()) {
        ("k3s-server" | "k3s-agent", _) => Some(Packaging::K3s),
        ("kubelite", _) => Some(Packaging::Microk8s),
        (_, "hyperkube") if matches!(arguments.get(1)?.as_str(), "kube-proxy" | "proxy") => {
            arguments.remove(0);
            Some(Packaging::Own)
        }
        ("kube-proxy", _) | (_, "kube-proxy") => {
            let is_rke2 = arguments.iter().any(|it| it.contains("/rancher/rke2/"));
            Some(if is_rke2 { Packaging::Rke2 } else { Packaging::Own })
        }
        _ => None,
    }
}
