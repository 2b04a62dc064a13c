//! Journals on disk: a folder that only root can read and write, with one file per apply.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, ErrorKind},
    os::{
        fd::AsFd as _,
        unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{FlockOperation, Mode, OFlags, flock},
    io::Errno,
};

use super::{
    FileState, disk,
    journal::{Journal, is_id},
};

/// An open and locked folder of journals; no other process has the lock.
#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
    /// Holds the lock until the file is closed, also when the process is killed.
    _lock: File,
}

impl Store {
    /// Opens the folder `undo` in the state directory, creates it when missing, and locks it.
    ///
    /// # Errors
    /// An I/O error; when another user owns the folder or may write to it; when another run holds the lock.
    pub fn open(state: &Path) -> io::Result<Self> {
        if let Some(above) = state.parent() {
            disk::make_folders(above)?;
        }
        make_private(state)?;
        refuse_unless_ours(state, 0o022)?;
        let folder = state.join("undo");
        make_private(&folder)?;
        refuse_unless_ours(&folder, 0o077)?;
        let nofollow = i32::try_from(OFlags::NOFOLLOW.bits()).unwrap_or_default();
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(nofollow)
            .open(folder.join("lock"))?;
        let locked = flock(lock.as_fd(), FlockOperation::NonBlockingLockExclusive);
        locked.map_err(|error| match error {
            Errno::WOULDBLOCK => io::Error::new(
                ErrorKind::WouldBlock,
                "another `rsttrace fix` is changing this host now",
            ),
            _ => error.into(),
        })?;
        let store = Self { folder, _lock: lock };
        // Removes temporary files of a run that was killed while saving.
        for name in store.names()?.iter().filter_map(|name| disk::unfinished(name)) {
            disk::tidy(&store.folder.join(name), &[])?;
        }
        Ok(store)
    }

    /// Whether the folder of journals exists. This creates nothing.
    pub fn exists(state: &Path) -> bool {
        state.join("undo").exists()
    }

    /// A new id that sorts after the ids of all journals. `now` is the time as `YYYYMMDD-HHMMSS`.
    ///
    /// # Errors
    /// An I/O error.
    pub fn new_id(&self, now: &str) -> io::Result<String> {
        let newest = self.ids()?.pop().unwrap_or_default();
        if now > newest.as_str() {
            return Ok(now.to_owned());
        }
        // The clock was set back, or it is the same second.
        let (stem, count) = match newest.match_indices('-').nth(1) {
            Some((dash, _)) => (&newest[..dash], newest[dash + 1..].parse().unwrap_or(1)),
            None => (newest.as_str(), 1_u32),
        };
        Ok(format!("{stem}-{:03}", count + 1))
    }

    /// The ids of all journals, the oldest first.
    ///
    /// # Errors
    /// An I/O error.
    pub fn ids(&self) -> io::Result<Vec<String>> {
        let names = self.names()?;
        let ids = names.iter().filter_map(|name| name.strip_suffix(".json"));
        let mut ids: Vec<String> = ids.filter(|id| is_id(id)).map(str::to_owned).collect();
        ids.sort_unstable();
        Ok(ids)
    }

    fn names(&self) -> io::Result<Vec<String>> {
        let entries = fs::read_dir(&self.folder)?.collect::<io::Result<Vec<_>>>()?;
        Ok(entries.into_iter().filter_map(|entry| entry.file_name().into_string().ok()).collect())
    }

    /// Saves the journal; it is on disk when this returns.
    ///
    /// # Errors
    /// An I/O error.
    pub fn save(&self, journal: &Journal) -> io::Result<()> {
        let file = FileState::File {
            bytes: journal.to_json().into_bytes(),
            mode: 0o600,
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
        };
        disk::put(&self.path(&journal.about.id), &file)
    }

    /// Loads a journal.
    ///
    /// # Errors
    /// What is wrong with the journal, or an I/O error, as a clause after "the journal ID". `is not there`
    /// when it does not exist.
    pub fn load(&self, id: &str) -> Result<Journal, String> {
        if !is_id(id) {
            return Err("is not valid (expected an id of digits and dashes)".into());
        }
        match disk::read_at_most(&self.path(id), 1024 * 1024) {
            Ok(bytes) => Journal::from_json(&bytes).and_then(|journal| {
                (journal.about.id == id)
                    .then_some(journal)
                    .ok_or_else(|| "is damaged: it contains another id".into())
            }),
            Err(error) if error.kind() == ErrorKind::NotFound => Err("is not there".into()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Deletes a journal.
    ///
    /// # Errors
    /// An I/O error.
    pub fn forget(&self, id: &str) -> io::Result<()> {
        disk::put(&self.path(id), &FileState::Absent)
    }

    fn path(&self, id: &str) -> PathBuf {
        self.folder.join(format!("{id}.json"))
    }
}

fn make_private(folder: &Path) -> io::Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(folder) {
        Ok(()) => disk::sync_folder(folder.parent().unwrap_or(Path::new("/"))),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

/// Refuses a folder that another user could write to, because that user could then choose what an undo
/// writes.
fn refuse_unless_ours(folder: &Path, forbidden: u32) -> io::Result<()> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
    let open = rustix::fs::open(folder, flags, Mode::empty()).map_err(|error| match error {
        Errno::NOTDIR | Errno::LOOP => io::Error::other(format!(
            "{} is a symbolic link or a file (expected a folder)",
            folder.display()
        )),
        _ => error.into(),
    })?;
    let open = File::from(open);
    let found = open.metadata()?;
    if found.uid() != rustix::process::geteuid().as_raw() {
        let uid = found.uid();
        return Err(io::Error::other(format!("{} belongs to uid {uid}", folder.display())));
    }
    if found.mode() & forbidden != 0 {
        let mode = found.mode() & 0o777;
        return Err(io::Error::other(format!(
            "other users can access {} (mode {mode:o})",
            folder.display()
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;
    use crate::journal::About;
    use rsttrace_host::testing::TempRoot;

    fn journal(id: &str) -> Journal {
        let about = About {
            id: id.into(),
            boot_id: "boot".into(),
            when: "2026-11-21T10:00:00Z".into(),
            cause: Some("ipvs_idle_expired"),
            fix: "raise_ipvs_timeout".into(),
        };
        Journal { about, items: Vec::new() }
    }

    #[test]
    fn a_journal_is_saved_loaded_and_deleted() {
        let root = TempRoot::new();
        let store = Store::open(&root.path().join("var/lib/rsttrace")).expect("opened");
        store.save(&journal("20261121-101502")).expect("saved");
        assert_eq!(store.ids().expect("listed"), ["20261121-101502"]);
        assert_eq!(
            store.load("20261121-101502").expect("there").about,
            journal("20261121-101502").about
        );
        store.forget("20261121-101502").expect("removed");
        assert!(store.load("20261121-101502").is_err());
        assert!(store.ids().expect("listed").is_empty());
    }

    #[test]
    fn ids_grow_even_when_the_clock_is_set_back() {
        let root = TempRoot::new();
        let store = Store::open(&root.path().join("state")).expect("opened");
        let mut ids = Vec::new();
        for now in ["20261121-101502", "20261121-101502", "20261121-101501", "20261121-101503"] {
            let id = store.new_id(now).expect("listed");
            store.save(&journal(&id)).expect("saved");
            ids.push(id);
        }
        let wanted =
            ["20261121-101502", "20261121-101502-002", "20261121-101502-003", "20261121-101503"];
        assert_eq!(ids, wanted);
        assert_eq!(store.ids().expect("listed"), wanted);
    }

    #[test]
    fn a_second_run_is_refused_while_the_first_holds_the_lock() {
        let root = TempRoot::new();
        let state = root.path().join("state");
        let first = Store::open(&state).expect("opened");
        let error = Store::open(&state).expect_err("locked");
        assert!(error.to_string().contains("another"), "{error}");
        drop(first);
        assert!(Store::open(&state).is_ok());
    }

    #[test]
    fn a_folder_that_other_users_can_access_is_refused() {
        let root = TempRoot::new();
        let state = root.path().join("state");
        drop(Store::open(&state).expect("opened"));
        for (folder, mode) in [(state.join("undo"), 0o755), (state.clone(), 0o770)] {
            let before = fs::metadata(&folder).expect("there").permissions();
            fs::set_permissions(&folder, fs::Permissions::from_mode(mode)).expect("ours");
            let error = Store::open(&state).expect_err("refused");
            assert!(error.to_string().contains("other users"), "{error}");
            fs::set_permissions(&folder, before).expect("ours");
        }
    }

    #[test]
    fn a_symbolic_link_in_place_of_the_folder_is_refused() {
        let root = TempRoot::new();
        root.directory("elsewhere");
        symlink(root.path().join("elsewhere"), root.path().join("state")).expect("writable");
        let error = Store::open(&root.path().join("state")).expect_err("refused");
        assert!(error.to_string().contains("link"), "{error}");
    }

    #[test]
    fn an_id_cannot_name_a_path_elsewhere() {
        let root = TempRoot::new();
        let store = Store::open(&root.path().join("state")).expect("opened");
        for id in ["../../etc/passwd", "", "a", "2026/11"] {
            assert!(store.load(id).is_err_and(|error| error.contains("not valid")), "{id}");
        }
    }
}
