//! A host in memory that can be killed at every point of every effect.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    FileState, Slot,
    journal::Journal,
    run::{ApplyError, Effects},
};

/// The state of the host, which survives a kill.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct World {
    pub values: BTreeMap<(u32, &'static str), String>,
    pub files: BTreeMap<String, FileState>,
    pub folders: BTreeSet<String>,
    /// Paths whose temporary file a killed write left.
    pub leftovers: BTreeSet<String>,
    pub journals: BTreeMap<String, String>,
    /// Cookies, by namespace.
    pub cookies: BTreeMap<u32, u64>,
}

/// A run on this host.
pub struct Fake<'a> {
    pub world: &'a mut World,
    /// Points before the run is killed.
    pub points_left: usize,
    /// A write to this key fails.
    pub rejects_writes_to: Option<&'static str>,
    /// The kernel accepts a write to this key but stores another value, once.
    pub alters_write_to: Option<&'static str>,
    /// Another process writes this value to this slot as soon as the journal is saved.
    pub concurrent_write: Option<((u32, &'static str), &'static str)>,
    /// This namespace no longer exists.
    pub gone: Option<u32>,
    killed: bool,
}

impl<'a> Fake<'a> {
    pub fn new(world: &'a mut World, points_left: usize) -> Self {
        Self {
            world,
            points_left,
            rejects_writes_to: None,
            alters_write_to: None,
            concurrent_write: None,
            gone: None,
            killed: false,
        }
    }

    pub fn unkillable(world: &'a mut World) -> Self {
        Self::new(world, usize::MAX)
    }

    pub fn was_killed(&self) -> bool {
        self.killed
    }

    /// A point at which the run may be killed. After a kill nothing has an effect.
    fn point(&mut self) -> Result<(), ApplyError> {
        if self.points_left == 0 {
            self.killed = true;
        }
        if self.killed {
            return Err(ApplyError::Failed("killed".into()));
        }
        self.points_left -= 1;
        Ok(())
    }

    fn slot(&self, slot: &Slot) -> Result<(u32, &'static str), ApplyError> {
        if self.gone == Some(slot.place.netns) {
            return Err(ApplyError::Gone("the network namespace has gone".into()));
        }
        let now = self.world.cookies.get(&slot.place.netns);
        if slot.cookie.is_some_and(|noted| now.is_some_and(|now| *now != noted)) {
            return Err(ApplyError::Gone("another one has its number".into()));
        }
        Ok((slot.place.netns, slot.setting.key))
    }
}

fn folder_of(path: &str) -> String {
    path.rsplit_once('/').map_or(String::new(), |(folder, _)| folder.into())
}

impl Effects for Fake<'_> {
    fn cookie(&mut self, slot: &Slot) -> Result<Option<u64>, ApplyError> {
        self.point()?;
        Ok(self.world.cookies.get(&slot.place.netns).copied())
    }

    fn value(&mut self, slot: &Slot) -> Result<String, ApplyError> {
        self.point()?;
        let slot = self.slot(slot)?;
        self.world.values.get(&slot).cloned().ok_or(ApplyError::Gone("no such setting".into()))
    }

    fn set_value(&mut self, slot: &Slot, value: &str) -> Result<(), ApplyError> {
        self.point()?;
        let slot = self.slot(slot)?;
        if self.rejects_writes_to == Some(slot.1) {
            return Err(ApplyError::Failed("Invalid argument".into()));
        }
        let kept = match self.alters_write_to.take_if(|key| *key == slot.1) {
            Some(_) => format!("{value}0"),
            None => value.to_owned(),
        };
        self.world.values.insert(slot, kept);
        self.point()
    }

    fn file(&mut self, path: &str) -> Result<FileState, ApplyError> {
        self.point()?;
        Ok(self.world.files.get(path).cloned().unwrap_or(FileState::Absent))
    }

    fn put_file(&mut self, path: &str, state: &FileState) -> Result<(), ApplyError> {
        self.point()?;
        if *state != FileState::Absent {
            self.world.folders.insert(folder_of(path));
            self.point()?;
            self.world.leftovers.insert(path.into());
            self.point()?;
        }
        self.world.leftovers.remove(path);
        match state {
            FileState::Absent => self.world.files.remove(path),
            _ => self.world.files.insert(path.into(), state.clone()),
        };
        self.point()
    }

    fn missing_folders(&mut self, path: &str) -> Result<Vec<String>, ApplyError> {
        self.point()?;
        let folder = folder_of(path);
        let missing = !self.world.folders.contains(&folder);
        Ok(missing.then_some(folder).into_iter().collect())
    }

    fn tidy(&mut self, path: &str, folders: &[String]) -> Result<(), ApplyError> {
        self.point()?;
        self.world.leftovers.remove(path);
        for folder in folders {
            self.point()?;
            if !self.world.files.keys().any(|path| folder_of(path) == *folder) {
                self.world.folders.remove(folder);
            }
        }
        Ok(())
    }

    fn save(&mut self, journal: &Journal) -> Result<(), ApplyError> {
        self.point()?;
        self.world.journals.insert(journal.about.id.clone(), journal.to_json());
        if let Some((slot, value)) = self.concurrent_write.take() {
            self.world.values.insert(slot, value.into());
        }
        self.point()
    }

    fn forget(&mut self, journal: &Journal) -> Result<(), ApplyError> {
        self.point()?;
        self.world.journals.remove(&journal.about.id);
        self.point()
    }
}
