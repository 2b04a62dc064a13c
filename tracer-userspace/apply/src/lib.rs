//! Making a change so that it can be taken back.
//!
//! A fix becomes [`Step`]s; [`run`] carries them out and takes them back, through [`run::Effects`], so
//! that tests can kill it at every effect; [`journal`] is what is known of the host before the first
//! write, [`store`] keeps it on disk; [`live`] is the effects on this machine.
//!
//! The rule that everything rests on: nothing is written before its old state is on disk, and a state
//! is taken back only where it is still ours, or where it never changed. So a run may die anywhere, an
//! undo too, and the next undo ends what it began.

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

/// Where a value is kept.
#[derive(Clone, Debug)]
pub struct Slot {
    pub place: Place,
    pub setting: &'static Setting,
    /// Of the namespace, when it was noted down; inode numbers are given away again.
    pub cookie: Option<u64>,
}

impl Slot {
    /// Nothing is noted down of it yet.
    pub fn new(place: Place, setting: &'static Setting) -> Self {
        Self { place, setting, cookie: None }
    }

    /// For a sentence: "net.core.somaxconn in netns web".
    pub fn describe(&self) -> String {
        format!("{} {}", self.setting.key, self.place.describe())
    }
}

/// A value or a file, as it should be.
#[derive(Clone, Debug)]
pub enum Step {
    Value { slot: Slot, to: u64 },
    File { path: String, to: FileState },
}

/// What is at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileState {
    Absent,
    File { bytes: Vec<u8>, mode: u32, uid: u32, gid: u32 },
    Link { target: String },
}

impl FileState {
    /// The same but for comments, which hold dates.
    fn says_the_same(&self, other: &Self) -> bool {
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

/// Folders in which a fix keeps its settings over a reboot, with what stands before and after its name.
const FOLDERS: [(&str, &str); 5] = [
    // Late in the order, in which the last one wins.
    ("/etc/sysctl.d/99-rsttrace-", ".conf"),
    ("/etc/modprobe.d/rsttrace-", ".conf"),
    ("/etc/modules-load.d/rsttrace-", ".conf"),
    ("/etc/systemd/system/rsttrace-", ".service"),
    ("/etc/systemd/system/multi-user.target.wants/rsttrace-", ".service"),
];

/// Whether this is a path that a fix of ours writes: no journal makes us touch another one.
pub fn is_ours(path: &str) -> bool {
    let is_name = |name: &str| {
        (1..=64).contains(&name.len())
            && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    };
    FOLDERS.iter().any(|(before, after)| {
        path.strip_prefix(before).and_then(|rest| rest.strip_suffix(after)).is_some_and(is_name)
    })
}
