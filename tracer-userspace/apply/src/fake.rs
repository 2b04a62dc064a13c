//! A host in memory that can be killed at every point of every effect.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    FileState, Slot,
    journal::Journal,
    run::{Effects, Trouble},
};

/// What survives a kill.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct World {
    pub values: BTreeMap<(u32, &'static str), String>,
    pub files: BTreeMap<String, FileState>,
    pub folders: BTreeSet<String>,
    /// Files that a killed write left beside their place.
    pub leftovers: BTreeSet<String>,
    pub journals: BTreeMap<String, String>,
    /// Of namespaces that have one.
    pub cookies: BTreeMap<u32, u64>,
}

/// A run in it.
pub struct Fake<'a> {
    pub world: &'a mut World,
    /// Points to live through.
    pub lives: usize,
    /// A write to this key fails.
    pub refuses: Option<&'static str>,
    /// The kernel takes this key's value and keeps another one, once.
    pub bends: Option<&'static str>,
    /// Somebody else gives this slot this value as soon as the journal is saved.
    pub meddles: Option<((u32, &'static str), &'static str)>,
    /// This namespace has gone.
    pub gone: Option<u32>,
    dead: bool,
}

impl<'a> Fake<'a> {
    pub fn new(world: &'a mut World, lives: usize) -> Self {
        Self { world, lives, refuses: None, bends: None, meddles: None, gone: None, dead: false }
    }

    pub fn immortal(world: &'a mut World) -> Self {
        Self::new(world, usize::MAX)
    }

    pub fn is_dead(&self) -> bool {
        self.dead
    }

    /// A point at which the process may be killed; from then on nothing has an effect.
    fn point(&mut self) -> Result<(), Trouble> {
        if self.lives == 0 {
            self.dead = true;
        }
        if self.dead {
            return Err(Trouble::Failed("killed".into()));
        }
        self.lives -= 1;
        Ok(())
    }

    fn slot(&self, slot: &Slot) -> Result<(u32, &'static str), Trouble> {
        if self.gone == Some(slot.place.netns) {
            return Err(Trouble::Gone("the network namespace has gone".into()));
        }
        let now = self.world.cookies.get(&slot.place.netns);
        if slot.cookie.is_some_and(|noted| now.is_some_and(|now| *now != noted)) {
            return Err(Trouble::Gone("another one has its number".into()));
        }
        Ok((slot.place.netns, slot.setting.key))
    }
}

fn folder_of(path: &str) -> String {
    path.rsplit_once('/').map_or(String::new(), |(folder, _)| folder.into())
}

impl Effects for Fake<'_> {
    fn cookie(&mut self, slot: &Slot) -> Result<Option<u64>, Trouble> {
        self.point()?;
        Ok(self.world.cookies.get(&slot.place.netns).copied())
    }

    fn value(&mut self, slot: &Slot) -> Result<String, Trouble> {
        self.point()?;
        let slot = self.slot(slot)?;
        self.world.values.get(&slot).cloned().ok_or(Trouble::Gone("no such setting".into()))
    }

    fn set_value(&mut self, slot: &Slot, value: &str) -> Result<(), Trouble> {
        self.point()?;
        let slot = self.slot(slot)?;
        if self.refuses == Some(slot.1) {
            return Err(Trouble::Failed("Invalid argument".into()));
        }
        let kept = match self.bends.take_if(|key| *key == slot.1) {
            Some(_) => format!("{value}0"),
            None => value.to_owned(),
        };
        self.world.values.insert(slot, kept);
        self.point()
    }

    fn file(&mut self, path: &str) -> Result<FileState, Trouble> {
        self.point()?;
        Ok(self.world.files.get(path).cloned().unwrap_or(FileState::Absent))
    }

    fn put_file(&mut self, path: &str, state: &FileState) -> Result<(), Trouble> {
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

    fn missing_folders(&mut self, path: &str) -> Result<Vec<String>, Trouble> {
        self.point()?;
        let folder = folder_of(path);
        let missing = !self.world.folders.contains(&folder);
        Ok(missing.then_some(folder).into_iter().collect())
    }

    fn tidy(&mut self, path: &str, folders: &[String]) -> Result<(), Trouble> {
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

    fn save(&mut self, journal: &Journal) -> Result<(), Trouble> {
        self.point()?;
        self.world.journals.insert(journal.about.id.clone(), journal.to_json());
        if let Some((slot, value)) = self.meddles.take() {
            self.world.values.insert(slot, value.into());
        }
        self.point()
    }

    fn forget(&mut self, journal: &Journal) -> Result<(), Trouble> {
        self.point()?;
        self.world.journals.remove(&journal.about.id);
        self.point()
    }
}
