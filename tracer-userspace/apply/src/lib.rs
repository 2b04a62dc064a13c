//! Changes a host so that every change can be undone.
//!
//! A fix becomes [`Step`]s. [`run`] applies and undoes them through [`run::Effects`], so that tests can kill a
//! run at every effect. [`journal`] holds the old state of everything that a run changes, [`store`] keeps the
//! journal on disk, and [`live`] implements the effects on this machine.
//!
//! The basic rule: nothing is written before its old state is on disk. An undo restores a state only where
//! the host still has the state that the apply wrote, unless the undo is forced. So an apply or an undo may
//! be killed at any point, and the next undo finishes the work.

pub mod article;
pub mod disk;
pub mod journal;
pub mod live;
pub mod plan;
pub mod run;
pub mod store;

#[cfg(test)]
mod fake;
#[cfg(test)]
mod killed;
#[cfg(test)]
mod tests;

use rsttrace_model::{netns::Place, settings::Setting};

/// The location of a value: a setting in a network namespace.
#[derive(Clone, Debug)]
pub struct Slot {
    pub place: Place,
    pub setting: &'static Setting,
    /// The cookie of the namespace when the journal was written, because inode numbers are reused.
    pub cookie: Option<u64>,
}

impl Slot {
    /// A slot without a cookie.
    pub fn new(place: Place, setting: &'static Setting) -> Self {
        Self { place, setting, cookie: None }
    }

    /// For a sentence: "net.core.somaxconn in netns web".
    pub fn describe(&self) -> String {
        format!("{} {}", self.setting.key, self.place.describe())
    }
}

/// The wanted state of a value or a file.
#[derive(Clone, Debug)]
pub enum Step {
    Value { slot: Slot, to: u64 },
    File { path: String, to: FileState },
}

/// The content of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileState {
    Absent,
    File { bytes: Vec<u8>, mode: u32, uid: u32, gid: u32 },
    Link { target: String },
}

impl FileState {
    /// Whether two states are equal apart from comments, which hold dates.
    fn same_apart_from_comments(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::File { bytes, mode, .. }, Self::File { bytes: others, mode: its, .. }) => {
                mode == its && lines(bytes).eq(lines(others))
            }
            _ => self == other,
        }
    }
}

fn lines(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    bytes.split(|b| *b == b'\n').filter(|line| !line.starts_with(b"#"))
}

/// Folders where a fix persists its settings across reboots, with the prefix and the suffix of file names.
const FOLDERS: [(&str, &str); 5] = [
    // A name late in the order, because the last file wins.
    ("/etc/sysctl.d/99-rsttrace-", ".conf"),
    ("/etc/modprobe.d/rsttrace-", ".conf"),
    ("/etc/modules-load.d/rsttrace-", ".conf"),
    ("/etc/systemd/system/rsttrace-", ".service"),
    ("/etc/systemd/system/multi-user.target.wants/rsttrace-", ".service"),
];

/// Whether a fix of rsttrace may write this path. A journal cannot make rsttrace touch any other path.
pub fn is_ours(path: &str) -> bool {
    let is_name = |name: &str| {
        (1..=64).contains(&name.len())
            && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    };
    FOLDERS.iter().any(|(before, after)| {
        path.strip_prefix(before).and_then(|rest| rest.strip_suffix(after)).is_some_and(is_name)
    })
}
