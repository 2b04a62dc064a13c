//! A fix with everything that it takes on this host.

use std::path::Path;

use super::{FileState, Slot, Step};
use crate::{
    fix::{Fix, FixOwner, IPVSADM, Persist},
    host::Host,
    settings::Scope,
};

/// A fix, and what `--apply` would write for it.
#[derive(Clone, Debug)]
pub struct Plan {
    pub fix: Fix,
    pub files: Vec<Persist>,
    pub steps: Vec<Step>,
    /// Why it cannot be applied, in clauses.
    pub problems: Vec<String>,
    /// What it does not do, in clauses.
    pub caveats: Vec<String>,
}

impl Plan {
    /// `header` are the comment lines of the files: who wrote them, when and why.
    pub fn new(fix: Fix, header: &[String], host: &Host) -> Self {
        let mut caveats: Vec<String> = fix.caveats().into_iter().map(Into::into).collect();
        let has_ipvsadm = Path::new(IPVSADM).exists() && Path::new("/etc/systemd/system").exists();
        let (files, useless): (Vec<_>, Vec<_>) = fix
            .files()
            .into_iter()
            .map(|file| with_header(file, header))
            .partition(|file| has_ipvsadm || file.enabled_by().is_none());
        if !useless.is_empty() {
            caveats.push(format!(
                "nothing keeps it over a reboot: no sysctl holds it, and there is no systemd or no \
                 {IPVSADM} here that a unit could run"
            ));
        }
        if files.is_empty()
            && useless.is_empty()
            && fix.changes.iter().any(|it| it.setting().is_some())
        {
            caveats.push(
                "no file keeps it: whoever makes the network namespace has to set it there".into(),
            );
        }
        let steps = steps(&fix, &files);
        let problems = match fix.owner {
            FixOwner::Node => problems(&steps, host),
            _ => Vec::new(),
        };
        Self { fix, files, steps, problems, caveats }
    }

    /// Whether it is the node's to change, and there is something to change.
    pub fn is_node_owned(&self) -> bool {
        let sets = |step: &Step| matches!(step, Step::Value { .. });
        self.fix.owner == FixOwner::Node && self.steps.iter().any(sets)
    }
}

fn with_header(file: Persist, header: &[String]) -> Persist {
    let comment: String = header.iter().map(|line| format!("# {line}\n")).collect();
    Persist { text: comment + &file.text, ..file }
}

/// Values first: a file whose value the kernel refuses would be a trap for the next boot.
fn steps(fix: &Fix, files: &[Persist]) -> Vec<Step> {
    let value = |change: &crate::fix::Change| {
        let ((setting, to), place) = (change.setting()?, change.place()?.clone());
        Some(Step::Value { slot: Slot { place, setting }, to })
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

/// What would stop it, as far as that can be told without writing.
fn problems(steps: &[Step], host: &Host) -> Vec<String> {
    if !rustix::process::geteuid().is_root() {
        return vec!["only root may change this host".into()];
    }
    let mut problems = Vec::new();
    for step in steps {
        match step {
            Step::Value { slot, to } => {
                let Slot { place, setting } = slot;
                let (least, most) = setting.range;
                if !setting.writable {
                    problems.push(format!("{} is not to be written", setting.key));
                } else if *to < least || *to > most {
                    problems.push(format!(
                        "{} = {to}: the kernel takes {least} to {most} only",
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
