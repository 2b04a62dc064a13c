//! The effects on this machine.

use std::{
    io,
    path::{Path, PathBuf},
};

use rsttrace_host::{Host, NetnsLookupError};
use rsttrace_model::netns::NetnsReach;

use super::{
    FileState, Slot, disk,
    journal::Journal,
    run::{Effects, Trouble},
    store::Store,
};

/// This machine.
#[derive(Debug)]
pub struct Live<'a> {
    host: &'a Host,
    store: &'a Store,
    /// `/`, or a directory in its place for tests.
    root: PathBuf,
    /// The places were noted down in this very boot.
    same_boot: bool,
}

impl<'a> Live<'a> {
    /// `boot_id` is that of the journal; `None` for an apply.
    pub fn new(host: &'a Host, store: &'a Store, root: &Path, boot_id: Option<&str>) -> Self {
        let same_boot = boot_id.is_none_or(|id| host.boot_id().as_deref() == Some(id));
        Self { host, store, root: root.to_owned(), same_boot }
    }

    fn netns(&self, slot: &Slot) -> Result<u32, Trouble> {
        match slot.place.reach {
            _ if self.same_boot => {}
            NetnsReach::Initial => return Ok(self.host.initial_netns()),
            _ => return Err(Trouble::Gone("the network namespace ended with that boot".into())),
        }
        self.host.find_again(&slot.place, slot.cookie).map_err(|error| match error {
            NetnsLookupError::Gone(why) => Trouble::Gone(why),
            NetnsLookupError::Elsewhere(why) => Trouble::Failed(why),
        })
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }
}

fn failed(error: io::Error) -> Trouble {
    Trouble::Failed(error.to_string())
}

/// A setting that is not there went with its module.
fn of_setting(error: io::Error) -> Trouble {
    match error.kind() {
        io::ErrorKind::NotFound => Trouble::Gone("this kernel has no such setting now".into()),
        _ => failed(error),
    }
}

impl Effects for Live<'_> {
    fn cookie(&mut self, slot: &Slot) -> Result<Option<u64>, Trouble> {
        Ok(self.host.netns_cookie(self.netns(slot)?))
    }

    fn value(&mut self, slot: &Slot) -> Result<String, Trouble> {
        let netns = self.netns(slot)?;
        self.host.setting(netns, slot.setting).map_err(of_setting)
    }

    fn set_value(&mut self, slot: &Slot, value: &str) -> Result<(), Trouble> {
        let netns = self.netns(slot)?;
        let value = value.parse().map_err(|_| Trouble::Failed("is no number".into()))?;
        self.host.set(netns, slot.setting, value).map_err(of_setting)
    }

    fn file(&mut self, path: &str) -> Result<FileState, Trouble> {
        disk::read(&self.path(path)).map_err(failed)
    }

    fn put_file(&mut self, path: &str, state: &FileState) -> Result<(), Trouble> {
        disk::put(&self.path(path), state).map_err(failed)
    }

    fn missing_folders(&mut self, path: &str) -> Result<Vec<String>, Trouble> {
        let folders = disk::missing_folders(&self.path(path)).map_err(failed)?;
        let below_root = |folder: PathBuf| {
            let folder = folder.strip_prefix(&self.root).ok()?.to_str()?.to_owned();
            Some(format!("/{folder}"))
        };
        Ok(folders.into_iter().filter_map(below_root).collect())
    }

    fn tidy(&mut self, path: &str, folders: &[String]) -> Result<(), Trouble> {
        let folders: Vec<PathBuf> = folders.iter().map(|folder| self.path(folder)).collect();
        disk::tidy(&self.path(path), &folders).map_err(failed)
    }

    fn save(&mut self, journal: &Journal) -> Result<(), Trouble> {
        self.store.save(journal).map_err(failed)
    }

    fn forget(&mut self, journal: &Journal) -> Result<(), Trouble> {
        self.store.forget(&journal.about.id).map_err(failed)
    }
}
