//! A fix with everything that an apply needs on this host.

use std::path::Path;

use rsttrace_core::fix::{Change, Fix, FixOwner, IPVSADM, Persist, in_kube_proxy};
use rsttrace_host::Host;
use rsttrace_model::{
    host_state::{HostState, at_next_start},
    settings::Scope,
};

use super::{FileState, Slot, Step};

/// A fix, with the values and files that `--apply` would write.
#[derive(Clone, Debug)]
pub struct Plan {
    pub fix: Fix,
    pub files: Vec<Persist>,
    /// Why `--apply` does not write the files, and how to write them, as a clause.
    pub unwritten: Option<String>,
    pub steps: Vec<Step>,
    /// Why the fix cannot be applied, as clauses.
    pub problems: Vec<String>,
    /// What the fix does not do, as clauses.
    pub caveats: Vec<String>,
    /// What undoes the values at kube-proxy's next start, as clauses; empty if they stay.
    pub undone: Vec<String>,
    /// The change of kube-proxy's configuration with which they stay.
    pub in_kube_proxy: Option<Fix>,
}

impl Plan {
    /// `header` holds the comment lines of the files: what wrote them, when and why.
    pub fn new(fix: Fix, header: &[String], view: &HostState, host: &Host) -> Self {
        let mut caveats: Vec<String> = fix.caveats().into_iter().map(Into::into).collect();
        caveats.extend(overruled(&fix, view));
        let undone = undone(&fix, view);
        let in_kube_proxy = in_kube_proxy(view, &fix.changes);
        let elsewhere = host.files_elsewhere();
        // A container does not show what the host has, so ipvsadm is assumed there.
        let has_ipvsadm = elsewhere.is_some()
            || Path::new(IPVSADM).exists() && Path::new("/etc/systemd/system").exists();
        let (files, unusable): (Vec<_>, Vec<_>) = fix
            .files()
            .into_iter()
            .map(|file| with_header(file, header))
            .partition(|file| has_ipvsadm || file.enabled_by().is_none());
        if !unusable.is_empty() {
            caveats.push(format!(
                "not persisted across reboots: no sysctl holds the value, and this host has no systemd or \
                 no {IPVSADM} that a unit could run"
            ));
        }
        if files.is_empty()
            && unusable.is_empty()
            && fix.changes.iter().any(|it| it.setting().is_some())
        {
            caveats.push(
                "not persisted: the program that creates the network namespace must set the value there"
                    .into(),
            );
        }
        let unwritten = elsewhere.filter(|_| !files.is_empty()).map(not_written);
        caveats.extend(unwritten.clone());
        let steps = steps(&fix, if unwritten.is_some() { &[] } else { &files });
        let problems = match fix.owner {
            FixOwner::Node => problems(&steps, host),
            _ => Vec::new(),
        };
        Self { fix, files, unwritten, steps, problems, caveats, undone, in_kube_proxy }
    }

    /// Whether the fix belongs to the node and has a value to set.
    pub fn is_node_owned(&self) -> bool {
        let sets = |step: &Step| matches!(step, Step::Value { .. });
        self.fix.owner == FixOwner::Node && self.steps.iter().any(sets)
    }
}

fn not_written(why: &str) -> String {
    format!(
        "--apply sets the values but writes no files: {why}, and files written here do not survive a \
         reboot; to persist the values, run it on the host or copy the files there. --undo needs this \
         container's --state-dir"
    )
}

/// The values that kube-proxy's next start would not keep.
fn undone(fix: &Fix, view: &HostState) -> Vec<String> {
    let of_change = |change: &Change| {
        let ((setting, to), place) = (change.setting()?, change.place()?);
        let by = at_next_start(view, view.netns(place.netns)?, setting, to)?;
        Some(format!("{}: {by}", setting.key))
    };
    fix.changes.iter().filter_map(of_change).collect()
}

/// Another file that overwrites our value at boot.
fn overruled(fix: &Fix, view: &HostState) -> Vec<String> {
    let mut list = Vec::new();
    for change in &fix.changes {
        let Some((setting, _)) = change.setting() else {
            continue;
        };
        let ours = fix.files().into_iter().find(|file| file.text.contains(setting.key));
        let winner = view.configured.sysctl(setting.key);
        if let (Some(ours), Some(winner)) = (ours, winner)
            && !winner.by_hand_only
            && is_later(&winner.at.file, &ours.path)
        {
            list.push(format!(
                "{} also sets {} and takes precedence at boot",
                winner.at, setting.key
            ));
        }
    }
    list
}

/// Whether `file` is applied after `than`: sysctl.d files are applied in the order of their names, whatever
/// their folder.
fn is_later(file: &str, than: &str) -> bool {
    let name = |path: &str| path.rsplit('/').next().unwrap_or(path).to_owned();
    name(file) > name(than)
}

fn with_header(file: Persist, header: &[String]) -> Persist {
    let comment: String = header.iter().map(|line| format!("# {line}\n")).collect();
    Persist { text: comment + &file.text, ..file }
}

/// Values come before files, so that no file persists a value that the kernel refuses.
fn steps(fix: &Fix, files: &[Persist]) -> Vec<Step> {
    let value = |change: &Change| {
        let ((setting, to), place) = (change.setting()?, change.place()?.clone());
        Some(Step::Value { slot: Slot::new(place, setting), to })
    };
    let mut steps: Vec<Step> = fix.changes.iter().filter_map(value).collect();
    for file in files {
        let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
        let to = FileState::File {
            bytes: file.text.clone().into_bytes(),
            mode: 0o644,
            uid: uid.as_raw(),
            gid: gid.as_raw(),
        };
        steps.push(Step::File { path: file.path.clone(), to });
        if let Some((path, target)) = file.enabled_by() {
            steps.push(Step::File { path, to: FileState::Link { target } });
        }
    }
    steps
}

/// What would make the apply fail, as far as that can be checked without writing.
fn problems(steps: &[Step], host: &Host) -> Vec<String> {
    if !rustix::process::geteuid().is_root() {
        return vec!["only root may change this host".into()];
    }
    let mut problems = Vec::new();
    for step in steps {
        match step {
            Step::Value { slot, to } => {
                let Slot { place, setting, .. } = slot;
                let (least, most) = setting.range;
                if !setting.writable {
                    problems.push(format!("rsttrace does not write {}", setting.key));
                } else if *to < least || *to > most {
                    problems.push(format!(
                        "{} = {to} is out of range (the kernel accepts {least} to {most})",
                        setting.key
                    ));
                }
                let netns = match setting.scope {
                    Scope::Machine => host.initial_netns(),
                    Scope::Netns => place.netns,
                };
                if let Err(error) = host.may_set(netns, setting) {
                    problems.push(format!("{} cannot be written: {error}", slot.describe()));
                }
            }
            Step::File { path, .. } => {
                let folder = Path::new(path).ancestors().skip(1).find(|folder| folder.exists());
                let writable = |folder| rustix::fs::access(folder, rustix::fs::Access::WRITE_OK);
                if let Some(Err(error)) = folder.map(writable) {
                    problems.push(format!("{path} cannot be written: {error}"));
                }
            }
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;
    use rsttrace_core::fix::Risk;
    use rsttrace_host::testing::TempRoot;
    use rsttrace_model::{
        configured::{Assignment, KubeProxy, Line},
        netns::{NetnsReach, Place},
    };

    const KEY: &str = "net.core.somaxconn";

    fn fix() -> Fix {
        let place = Place { netns: 1, reach: NetnsReach::Initial };
        Fix {
            id: "raise_somaxconn",
            owner: FixOwner::Node,
            risk: Risk::Low,
            summary: String::new(),
            reason: String::new(),
            current: None,
            wanted: None,
            changes: vec![Change::Sysctl { place, key: KEY, from: Some(128), to: 4096 }],
        }
    }

    #[test]
    fn a_file_that_is_applied_after_ours_is_reported() {
        for (file, reported) in [
            ("/etc/sysctl.d/99-zz.conf", true),
            ("/usr/lib/sysctl.d/99-sysctl.conf", true),
            ("/etc/sysctl.d/99-custom.conf", false),
            ("/etc/sysctl.d/99-rsttrace-raise-somaxconn.conf", false),
        ] {
            let at = Line { file: file.into(), number: 3 };
            let (key, value) = (KEY.into(), "128".into());
            let mut view = HostState::default();
            view.configured.sysctls = vec![Assignment { key, value, at, by_hand_only: false }];
            let list = overruled(&fix(), &view);
            assert_eq!(list.len(), usize::from(reported), "{file}: {list:?}");
        }
    }

    #[test]
    fn what_kube_proxy_undoes_is_said_and_its_field_comes_first() {
        let root = TempRoot::new();
        root.directory("proc");
        let mut view = rsttrace_host::view::read_root(root.path()).expect("a copy of a host");
        let place = Place { netns: 1, reach: NetnsReach::Initial };
        let key = "net.netfilter.nf_conntrack_max";
        let set = |to| Fix {
            changes: vec![Change::Sysctl { place: place.clone(), key, from: None, to }],
            ..fix()
        };
        assert_eq!(undone(&set(262_144), &view), [""; 0], "no kube-proxy");
        view.configured.kube_proxy = Some(KubeProxy::default());
        let list = undone(&set(262_144), &view);
        assert!(list[0].starts_with(&format!("{key}: kube-proxy writes 131072")), "{list:?}");
        let first = in_kube_proxy(&view, &set(262_144).changes).expect("a field");
        assert_eq!(first.wanted.as_deref(), Some("conntrack.min: 262144"));
        assert_eq!(undone(&set(131_072), &view), [""; 0], "it writes the same");
        let mut unknown = KubeProxy::default();
        unknown.forget_all();
        view.configured.kube_proxy = Some(unknown);
        assert!(undone(&set(131_072), &view)[0].contains("may write it"));
        let somaxconn = fix();
        assert_eq!(undone(&somaxconn, &view), [""; 0], "kube-proxy does not write it");
    }
}
