//! [`Effects`] on this machine.

use std::{
    io,
    path::{Path, PathBuf},
};

use rsttrace_host::{Host, NetnsLookupError};
use rsttrace_model::netns::NetnsReach;

use super::{
    FileState, Slot, disk,
    journal::Journal,
    run::{ApplyError, Effects},
    store::Store,
};

/// This machine.
#[derive(Debug)]
pub struct Live<'a> {
    host: &'a Host,
    store: &'a Store,
    /// `/`, or a directory in its place for tests.
    root: PathBuf,
    /// Whether the journal was written since the last boot.
    same_boot: bool,
}

impl<'a> Live<'a> {
    /// `boot_id` is the boot id of the journal; `None` for an apply.
    pub fn new(host: &'a Host, store: &'a Store, root: &Path, boot_id: Option<&str>) -> Self {
        let same_boot = boot_id.is_none_or(|id| host.boot_id().as_deref() == Some(id));
        Self { host, store, root: root.to_owned(), same_boot }
    }

    fn netns(&self, slot: &Slot) -> Result<u32, ApplyError> {
        match slot.place.reach {
            _ if self.same_boot => {}
            NetnsReach::Initial => return Ok(self.host.initial_netns()),
            _ => {
                return Err(ApplyError::Gone(
                    "the network namespace no longer exists, because the host was rebooted".into(),
                ));
            }
        }
        self.host.find_again(&slot.place, slot.cookie).map_err(|lost| match lost {
            NetnsLookupError::Gone(reason) => ApplyError::Gone(reason),
            NetnsLookupError::Elsewhere(reason) => ApplyError::Failed(reason),
        })
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }
}

fn failed(error: io::Error) -> ApplyError {
    ApplyError::Failed(error.to_string())
}

/// A missing setting means that its module was unloaded, so it counts as gone.
fn of_setting(error: io::Error) -> ApplyError {
    match error.kind() {
        io::ErrorKind::NotFound => {
            ApplyError::Gone("the kernel does not have this setting now".into())
        }
        _ => failed(error),
    }
}

impl Effects for Live<'_> {
    fn cookie(&mut self, slot: &Slot) -> Result<Option<u64>, ApplyError> {
        Ok(self.host.netns_cookie(self.netns(slot)?))
    }

    fn value(&mut self, slot: &Slot) -> Result<String, ApplyError> {
        let netns = self.netns(slot)?;
        self.host.setting(netns, slot.setting).map_err(of_setting)
    }

    fn set_value(&mut self, slot: &Slot, value: &str) -> Result<(), ApplyError> {
        let netns = self.netns(slot)?;
        let value = value.parse().map_err(|_| ApplyError::Failed("is not a number".into()))?;
        self.host.set(netns, slot.setting, value).map_err(of_setting)
    }

    fn file(&mut self, path: &str) -> Result<FileState, ApplyError> {
        disk::read(&self.path(path)).map_err(failed)
    }

    fn put_file(&mut self, path: &str, state: &FileState) -> Result<(), ApplyError> {
        disk::put(&self.path(path), state).map_err(failed)
    }

    fn missing_folders(&mut self, path: &str) -> Result<Vec<String>, ApplyError> {
        let folders = disk::missing_folders(&self.path(path)).map_err(failed)?;
        let below_root = |folder: PathBuf| {
            let folder = folder.strip_prefix(&self.root).ok()?.to_str()?.to_owned();
            Some(format!("/{folder}"))
        };
        Ok(folders.into_iter().filter_map(below_root).collect())
    }

    fn tidy(&mut self, path: &str, folders: &[String]) -> Result<(), ApplyError> {
        let folders: Vec<PathBuf> = folders.iter().map(|folder| self.path(folder)).collect();
        disk::tidy(&self.path(path), &folders).map_err(failed)
    }

    fn save(&mut self, journal: &Journal) -> Result<(), ApplyError> {
        self.store.save(journal).map_err(failed)
    }

    fn forget(&mut self, journal: &Journal) -> Result<(), ApplyError> {
        self.store.forget(&journal.about.id).map_err(failed)
    }
}
