//! Carrying out and taking back, whatever the effects are.

use super::{
    FileState, Slot, Step,
    journal::{About, Item, Journal},
};

/// Why something could not be read or written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The place, or the setting in it, is no longer there.
    Gone(String),
    /// In a clause.
    Failed(String),
}

impl Trouble {
    fn why(self) -> String {
        match self {
            Self::Gone(why) | Self::Failed(why) => why,
        }
    }
}

/// What this does to the world; each may fail, and the process may die before, in or after each.
pub trait Effects {
    /// What tells the namespace of a setting from every later one with its number.
    fn cookie(&mut self, slot: &Slot) -> Result<Option<u64>, Trouble>;
    /// Fails where the namespace is not the one that was noted down.
    fn value(&mut self, slot: &Slot) -> Result<String, Trouble>;
    fn set_value(&mut self, slot: &Slot, value: &str) -> Result<(), Trouble>;
    fn file(&mut self, path: &str) -> Result<FileState, Trouble>;
    /// Puts a state at a path in one step: before it, the old state is seen, after it the new one.
    fn put_file(&mut self, path: &str, state: &FileState) -> Result<(), Trouble>;
    /// Folders above a path that are not there, the outermost first.
    fn missing_folders(&mut self, path: &str) -> Result<Vec<String>, Trouble>;
    /// Removes what a killed [`Effects::put_file`] left beside the path, and those of the folders that
    /// are empty.
    fn tidy(&mut self, path: &str, folders: &[String]) -> Result<(), Trouble>;
    /// Has the journal on disk when it returns.
    fn save(&mut self, journal: &Journal) -> Result<(), Trouble>;
    fn forget(&mut self, journal: &Journal) -> Result<(), Trouble>;
}

/// What became of an apply.
#[derive(Debug)]
pub enum Applied {
    /// Everything was as wanted before; nothing was written.
    AlreadySo,
    Done(Journal),
}

/// An apply that did not come to its end.
#[derive(Debug)]
pub struct Failure {
    /// In a clause.
    pub reason: String,
    /// What could not be restored; empty when everything is as before.
    pub left: Vec<String>,
}

/// What became of each item of an undo.
#[derive(Debug, Default)]
pub struct Undone {
    pub restored: Vec<String>,
    /// Was as before already: never written, or taken back in an earlier attempt.
    pub already: Vec<String>,
    /// Somebody else has changed it since: left alone.
    pub foreign: Vec<String>,
    /// Not there any more, and so nothing to restore.
    pub gone: Vec<String>,
    pub failed: Vec<String>,
}

impl Undone {
    /// Nothing is left to be taken back.
    pub fn is_complete(&self) -> bool {
        self.foreign.is_empty() && self.failed.is_empty()
    }
}

/// How an item stands.
#[derive(PartialEq, Eq)]
enum Standing {
    Old,
    New,
    /// Neither; what it is.
    Other(String),
}

/// Carries out the steps. Either all of them are in force at the end, or none.
///
/// # Errors
/// [`Failure`], after everything that had been written was restored, or with what was not.
pub fn apply(effects: &mut dyn Effects, steps: &[Step], about: About) -> Result<Applied, Failure> {
    let untouched = |trouble: Trouble| Failure { reason: trouble.why(), left: Vec::new() };
    let items = pending(effects, steps).map_err(untouched)?;
    if items.is_empty() {
        return Ok(Applied::AlreadySo);
    }
    let journal = Journal { about, items };
    effects.save(&journal).map_err(|trouble| Failure {
        reason: format!("the old values cannot be kept: {}", trouble.why()),
        left: Vec::new(),
    })?;
    for (index, item) in journal.items.iter().enumerate() {
        let carried_out = match unchanged(effects, item) {
            // Not ours to restore: nothing was written to it.
            Err(reason) => Err((reason, index)),
            Ok(()) => carry_out(effects, item).map_err(|reason| (reason, index + 1)),
        };
        if let Err((reason, written)) = carried_out {
            let left = back_out(effects, &journal, written);
            return Err(Failure { reason, left });
        }
    }
    Ok(Applied::Done(journal))
}

/// What the steps would change, with what is there now.
fn pending(effects: &mut dyn Effects, steps: &[Step]) -> Result<Vec<Item>, Trouble> {
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
                if !old.says_the_same(to) {
                    let folders = effects.missing_folders(path)?;
                    items.push(Item::File { path: path.clone(), old, new: to.clone(), folders });
                }
            }
        }
    }
    Ok(items)
}

/// It may have changed since it was noted down: then the journal would restore the wrong value.
fn unchanged(effects: &mut dyn Effects, item: &Item) -> Result<(), String> {
    let what = item.describe();
    match standing(effects, item).map_err(|trouble| format!("{what}: {}", trouble.why()))? {
        Standing::Old => Ok(()),
        _ => Err(format!("{what} was changed by someone else at this moment")),
    }
}

fn carry_out(effects: &mut dyn Effects, item: &Item) -> Result<(), String> {
    let what = item.describe();
    write(effects, item, true).map_err(|trouble| format!("{what}: {}", trouble.why()))?;
    match standing(effects, item).map_err(|trouble| format!("{what}: {}", trouble.why()))? {
        Standing::New => Ok(()),
        Standing::Old => Err(format!("{what} was written, and reads as before")),
        Standing::Other(now) => Err(format!("{what} was written, and reads {now}")),
    }
}

/// Restores the first so many items, which were written, whatever they read now.
fn back_out(effects: &mut dyn Effects, journal: &Journal, written: usize) -> Vec<String> {
    let mut left = Vec::new();
    for item in journal.items.iter().take(written).rev() {
        match take_back(effects, item, true) {
            Ok(_) | Err(Trouble::Gone(_)) => {}
            Err(Trouble::Failed(why)) => left.push(format!("{}: {why}", item.describe())),
        }
    }
    if left.is_empty()
        && let Err(trouble) = effects.forget(journal)
    {
        left.push(format!("the journal: {}", trouble.why()));
    }
    left
}

/// What [`take_back`] did.
enum TakenBack {
    Restored,
    Already,
    /// What it reads now.
    Foreign(String),
}

/// Takes everything back that is still ours; with `force` whatever it is now. The journal is forgotten
/// when nothing is left.
pub fn undo(effects: &mut dyn Effects, journal: &Journal, force: bool) -> Undone {
    let mut undone = Undone::default();
    for item in journal.items.iter().rev() {
        let what = item.describe();
        match take_back(effects, item, force) {
            Ok(TakenBack::Restored) => undone.restored.push(what),
            Ok(TakenBack::Already) => undone.already.push(what),
            Ok(TakenBack::Foreign(now)) => undone.foreign.push(format!("{what} reads {now}")),
            Err(Trouble::Gone(why)) => undone.gone.push(format!("{what}: {why}")),
            Err(Trouble::Failed(why)) => undone.failed.push(format!("{what}: {why}")),
        }
    }
    if undone.is_complete()
        && let Err(trouble) = effects.forget(journal)
    {
        undone.failed.push(format!("the journal: {}", trouble.why()));
    }
    undone
}

fn take_back(effects: &mut dyn Effects, item: &Item, force: bool) -> Result<TakenBack, Trouble> {
    let done = match standing(effects, item)? {
        Standing::Old => TakenBack::Already,
        Standing::Other(now) if !force => return Ok(TakenBack::Foreign(now)),
        Standing::New | Standing::Other(_) => {
            write(effects, item, false)?;
            match standing(effects, item)? {
                Standing::Old => TakenBack::Restored,
                _ => return Err(Trouble::Failed("was restored, and reads otherwise".into())),
            }
        }
    };
    if let Item::File { path, folders, .. } = item {
        effects.tidy(path, folders)?;
    }
    Ok(done)
}

fn standing(effects: &mut dyn Effects, item: &Item) -> Result<Standing, Trouble> {
    Ok(match item {
        Item::Value { slot, old, new } => match effects.value(slot)? {
            now if now == *old => Standing::Old,
            now if now == *new => Standing::New,
            now => Standing::Other(now),
        },
        Item::File { path, old, new, .. } => match effects.file(path)? {
            now if now == *old => Standing::Old,
            now if now == *new => Standing::New,
            FileState::Absent => Standing::Other("absent".into()),
            _ => Standing::Other("differently".into()),
        },
    })
}

fn write(effects: &mut dyn Effects, item: &Item, new_one: bool) -> Result<(), Trouble> {
    match item {
        Item::Value { slot, old, new } => effects.set_value(slot, if new_one { new } else { old }),
        Item::File { path, old, new, .. } => {
            effects.put_file(path, if new_one { new } else { old })
        }
    }
}
