//! Applies and undoes steps through [`Effects`].

use super::{
    FileState, Slot, Step,
    journal::{About, Item, Journal},
};

/// Why something could not be read or written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ApplyError {
    /// The namespace or the setting no longer exists; the reason as a clause.
    Gone(String),
    /// The system call failed or the state is unexpected; the reason as a clause.
    Failed(String),
}

impl ApplyError {
    fn reason(self) -> String {
        match self {
            Self::Gone(reason) | Self::Failed(reason) => reason,
        }
    }
}

/// The effects of a run on the host. Each may fail, and the process may be killed before, during or after
/// each.
pub trait Effects {
    /// Identifies the namespace of a setting, unlike its inode number, which a later namespace may get.
    fn cookie(&mut self, slot: &Slot) -> Result<Option<u64>, ApplyError>;
    /// Reads the value. Fails when the namespace is not the one in the journal.
    fn value(&mut self, slot: &Slot) -> Result<String, ApplyError>;
    fn set_value(&mut self, slot: &Slot, value: &str) -> Result<(), ApplyError>;
    fn file(&mut self, path: &str) -> Result<FileState, ApplyError>;
    /// Replaces the state at a path atomically: a reader sees either the old or the new state.
    fn put_file(&mut self, path: &str, state: &FileState) -> Result<(), ApplyError>;
    /// Missing folders above a path, the outermost first.
    fn missing_folders(&mut self, path: &str) -> Result<Vec<String>, ApplyError>;
    /// Removes the temporary file of a killed [`Effects::put_file`], and those of `folders` that are empty.
    fn tidy(&mut self, path: &str, folders: &[String]) -> Result<(), ApplyError>;
    /// Saves the journal; it is on disk when this returns.
    fn save(&mut self, journal: &Journal) -> Result<(), ApplyError>;
    /// Deletes the journal.
    fn forget(&mut self, journal: &Journal) -> Result<(), ApplyError>;
}

/// The result of an apply.
#[derive(Debug)]
pub enum Applied {
    /// Everything already had its wanted state; nothing was written.
    AlreadySo,
    Done(Journal),
}

/// An apply that failed.
#[derive(Debug)]
pub struct Failure {
    /// Why, as a clause.
    pub reason: String,
    /// What could not be restored; empty when everything was restored.
    pub left: Vec<String>,
}

/// The result of an undo, by item.
#[derive(Debug, Default)]
pub struct UndoReport {
    pub restored: Vec<String>,
    /// Already had the old state: never written, or restored by an earlier undo.
    pub already: Vec<String>,
    /// Changed by another process since the apply, so left alone.
    pub foreign: Vec<String>,
    /// No longer exists, so there is nothing to restore.
    pub gone: Vec<String>,
    pub failed: Vec<String>,
}

impl UndoReport {
    /// Whether nothing is left to undo.
    pub fn is_complete(&self) -> bool {
        self.foreign.is_empty() && self.failed.is_empty()
    }
}

/// The current state of an item.
#[derive(PartialEq, Eq)]
enum ItemState {
    Old,
    New,
    /// Neither the old nor the new state; the current one as a clause: "reads 3600".
    Other(String),
}

/// Applies the steps. At the end either all of them are in effect or none is.
///
/// # Errors
/// [`Failure`], after everything that had been written was restored. Its `left` lists what could not be.
pub fn apply(effects: &mut dyn Effects, steps: &[Step], about: About) -> Result<Applied, Failure> {
    let untouched = |error: ApplyError| Failure { reason: error.reason(), left: Vec::new() };
    let items = pending(effects, steps).map_err(untouched)?;
    if items.is_empty() {
        return Ok(Applied::AlreadySo);
    }
    let journal = Journal { about, items };
    effects.save(&journal).map_err(|error| Failure {
        reason: format!("cannot save the old values: {}", error.reason()),
        left: Vec::new(),
    })?;
    for (index, item) in journal.items.iter().enumerate() {
        let written = match unchanged(effects, item) {
            // Nothing was written to this item, so it is not restored.
            Err(reason) => Err((reason, index)),
            Ok(()) => write_and_verify(effects, item).map_err(|reason| (reason, index + 1)),
        };
        if let Err((reason, count)) = written {
            let left = restore_first(effects, &journal, count);
            return Err(Failure { reason, left });
        }
    }
    Ok(Applied::Done(journal))
}

/// The items that the steps would change, with their current state.
fn pending(effects: &mut dyn Effects, steps: &[Step]) -> Result<Vec<Item>, ApplyError> {
    let mut items = Vec::new();
    for step in steps {
        match step {
            Step::Value { slot, to } => {
                let slot = Slot { cookie: effects.cookie(slot)?, ..slot.clone() };
                let (old, new) = (effects.value(&slot)?, to.to_string());
                if old != new {
                    items.push(Item::Value { slot, old, new });
                }
            }
            Step::File { path, to } => {
                let old = effects.file(path)?;
                if !old.same_apart_from_comments(to) {
                    let folders = effects.missing_folders(path)?;
                    items.push(Item::File { path: path.clone(), old, new: to.clone(), folders });
                }
            }
        }
    }
    Ok(items)
}

/// Checks that an item still has the old state of the journal. Otherwise an undo would restore a wrong value.
fn unchanged(effects: &mut dyn Effects, item: &Item) -> Result<(), String> {
    let what = item.describe();
    match state_of(effects, item).map_err(|error| format!("{what}: {}", error.reason()))? {
        ItemState::Old => Ok(()),
        _ => Err(format!("{what} was changed by another process at the same time")),
    }
}

fn write_and_verify(effects: &mut dyn Effects, item: &Item) -> Result<(), String> {
    let what = item.describe();
    write(effects, item, true).map_err(|error| format!("{what}: {}", error.reason()))?;
    match state_of(effects, item).map_err(|error| format!("{what}: {}", error.reason()))? {
        ItemState::New => Ok(()),
        ItemState::Old => Err(format!("{what} was written but still has its old value")),
        ItemState::Other(now) => Err(format!("{what} was written but {now}")),
    }
}

/// Restores the first `count` items, which were written, whatever their current state is.
fn restore_first(effects: &mut dyn Effects, journal: &Journal, count: usize) -> Vec<String> {
    let mut left = Vec::new();
    for item in journal.items.iter().take(count).rev() {
        match restore(effects, item, true) {
            Ok(_) | Err(ApplyError::Gone(_)) => {}
            Err(ApplyError::Failed(reason)) => left.push(format!("{}: {reason}", item.describe())),
        }
    }
    if left.is_empty()
        && let Err(error) = effects.forget(journal)
    {
        left.push(format!("the journal: {}", error.reason()));
    }
    left
}

/// What [`restore`] did.
enum Outcome {
    Restored,
    Already,
    /// Left alone; the current state as a clause.
    Foreign(String),
}

/// Restores every item that still has the state that the apply wrote; with `force` every item. Deletes the
/// journal when nothing is left to undo.
pub fn undo(effects: &mut dyn Effects, journal: &Journal, force: bool) -> UndoReport {
    let mut undone = UndoReport::default();
    for item in journal.items.iter().rev() {
        let what = item.describe();
        match restore(effects, item, force) {
            Ok(Outcome::Restored) => undone.restored.push(what),
            Ok(Outcome::Already) => undone.already.push(what),
            Ok(Outcome::Foreign(now)) => undone.foreign.push(format!("{what} {now}")),
            Err(ApplyError::Gone(reason)) => undone.gone.push(format!("{what}: {reason}")),
            Err(ApplyError::Failed(reason)) => undone.failed.push(format!("{what}: {reason}")),
        }
    }
    if undone.is_complete()
        && let Err(error) = effects.forget(journal)
    {
        undone.failed.push(format!("the journal: {}", error.reason()));
    }
    undone
}

fn restore(effects: &mut dyn Effects, item: &Item, force: bool) -> Result<Outcome, ApplyError> {
    let outcome = match state_of(effects, item)? {
        ItemState::Old => Outcome::Already,
        ItemState::Other(now) if !force => return Ok(Outcome::Foreign(now)),
        ItemState::New | ItemState::Other(_) => {
            write(effects, item, false)?;
            match state_of(effects, item)? {
                ItemState::Old => Outcome::Restored,
                _ => return Err(ApplyError::Failed("was restored but has another value".into())),
            }
        }
    };
    if let Item::File { path, folders, .. } = item {
        effects.tidy(path, folders)?;
    }
    Ok(outcome)
}

fn state_of(effects: &mut dyn Effects, item: &Item) -> Result<ItemState, ApplyError> {
    Ok(match item {
        Item::Value { slot, old, new } => match effects.value(slot)? {
            now if now == *old => ItemState::Old,
            now if now == *new => ItemState::New,
            now => ItemState::Other(format!("reads {now}")),
        },
        Item::File { path, old, new, .. } => match effects.file(path)? {
            now if now == *old => ItemState::Old,
            now if now == *new => ItemState::New,
            FileState::Absent => ItemState::Other("is absent".into()),
            _ => ItemState::Other("has other content".into()),
        },
    })
}

fn write(effects: &mut dyn Effects, item: &Item, new_one: bool) -> Result<(), ApplyError> {
    match item {
        Item::Value { slot, old, new } => effects.set_value(slot, if new_one { new } else { old }),
        Item::File { path, old, new, .. } => {
            effects.put_file(path, if new_one { new } else { old })
        }
    }
}
