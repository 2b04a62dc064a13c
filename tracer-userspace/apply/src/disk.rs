//! Atomic changes of files, which are on disk when a call returns.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, ErrorKind, Read as _, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, symlink},
    path::{Path, PathBuf},
};

use rustix::fs::{Gid, OFlags, Uid, fchown};

use super::FileState;

/// Longest file that is read, in bytes; no settings file is longer.
const LONGEST: u64 = 64 * 1024;

#[cfg(test)]
use super::killed::kill_point;

/// A point where a kill leaves a change unfinished; tests kill here.
#[cfg(not(test))]
fn kill_point() {}

const SUFFIX: &str = ".rsttrace-new";

/// Reads the state of a path.
///
/// # Errors
/// An I/O error; when the path is neither a file nor a symbolic link; when the file is longer than 64 KiB, too
/// long for a journal.
pub fn read(path: &Path) -> io::Result<FileState> {
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(FileState::Absent),
        Err(error) => return Err(error),
    };
    if found.is_symlink() {
        let target = fs::read_link(path)?.into_os_string().into_string();
        let target = target.map_err(|_| io::Error::other("links to a name that is not UTF-8"))?;
        return Ok(FileState::Link { target });
    }
    if !found.is_file() {
        return Err(io::Error::other("is not a regular file or a symbolic link"));
    }
    let bytes = read_at_most(path, LONGEST)?;
    let mode = found.permissions().mode() & 0o7777;
    Ok(FileState::File { bytes, mode, uid: found.uid(), gid: found.gid() })
}

fn open_without_following(path: &Path) -> io::Result<File> {
    let flags = i32::try_from(OFlags::NOFOLLOW.bits()).unwrap_or_default();
    OpenOptions::new().read(true).custom_flags(flags).open(path)
}

/// Reads a file of at most `most` bytes. Does not follow a symbolic link.
///
/// # Errors
/// An I/O error; when the file is longer.
pub fn read_at_most(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open_without_following(path)?.take(most + 1).read_to_end(&mut bytes)?;
    match bytes.len() as u64 > most {
        true => Err(io::Error::other("is too long")),
        false => Ok(bytes),
    }
}

/// Missing folders above a path, the outermost first.
///
/// # Errors
/// An I/O error.
pub fn missing_folders(path: &Path) -> io::Result<Vec<PathBuf>> {
    let mut missing = Vec::new();
    for folder in path.ancestors().skip(1) {
        if folder.try_exists()? {
            break;
        }
        missing.insert(0, folder.to_owned());
    }
    Ok(missing)
}

/// Replaces the state at a path atomically: a reader sees either the old or the new state, also after a power
/// cut.
///
/// # Errors
/// An I/O error.
pub fn put(path: &Path, state: &FileState) -> io::Result<()> {
    let folder = path.parent().ok_or(ErrorKind::InvalidInput)?;
    if *state != FileState::Absent {
        make_folders(folder)?;
    }
    let temporary = temporary(path)?;
    remove(&temporary)?;
    match state {
        FileState::Absent => remove(path)?,
        FileState::Link { target } => {
            kill_point();
            symlink(target, &temporary)?;
            kill_point();
            fs::rename(&temporary, path)?;
        }
        FileState::File { bytes, mode, uid, gid } => {
            kill_point();
            let mut file =
                OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
            kill_point();
            file.write_all(bytes)?;
            kill_point();
            set_owner(&file, *uid, *gid)?;
            // After the owner, because a change of the owner clears mode bits.
            file.set_permissions(fs::Permissions::from_mode(*mode))?;
            kill_point();
            file.sync_all()?;
            kill_point();
            fs::rename(&temporary, path)?;
        }
    }
    sync_folder(folder)
}

fn set_owner(file: &File, uid: u32, gid: u32) -> io::Result<()> {
    let now = file.metadata()?;
    if (now.uid(), now.gid()) != (uid, gid) {
        fchown(file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
    }
    Ok(())
}

/// Creates a folder and all missing folders above it.
///
/// # Errors
/// An I/O error.
pub fn make_folders(folder: &Path) -> io::Result<()> {
    for missing in missing_folders(&folder.join("x"))? {
        kill_point();
        fs::create_dir(&missing)?;
        kill_point();
        fs::set_permissions(&missing, fs::Permissions::from_mode(0o755))?;
        sync_folder(missing.parent().unwrap_or(Path::new("/")))?;
    }
    Ok(())
}

/// Removes the temporary file of a killed [`put`], and those of `folders` that are empty.
///
/// # Errors
/// An I/O error.
pub fn tidy(path: &Path, folders: &[PathBuf]) -> io::Result<()> {
    remove(&temporary(path)?)?;
    for folder in folders.iter().rev() {
        kill_point();
        match fs::remove_dir(folder) {
            Ok(()) => sync_folder(folder.parent().unwrap_or(Path::new("/")))?,
            // Never created, or removed by an undo that was killed afterwards.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            // The folder now holds other files.
            Err(_) => return Ok(()),
        }
    }
    Ok(())
}

/// The temporary path under which a file is written before it is renamed. It is always the same for a path, so
/// that the file of a killed run is found. No reader of these folders accepts a name with this suffix.
fn temporary(path: &Path) -> io::Result<PathBuf> {
    let name = path.file_name().ok_or(ErrorKind::InvalidInput)?;
    let mut temporary = std::ffi::OsString::from(".");
    temporary.push(name);
    temporary.push(SUFFIX);
    Ok(path.with_file_name(temporary))
}

/// The final name of a temporary file that a killed [`put`] left; `None` for other names.
pub fn unfinished(name: &str) -> Option<&str> {
    name.strip_prefix('.')?.strip_suffix(SUFFIX)
}

fn remove(path: &Path) -> io::Result<()> {
    kill_point();
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Syncs the entries of a folder to disk.
///
/// # Errors
/// An I/O error.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    kill_point();
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rsttrace_host::testing::TempRoot;

    fn file(text: &str) -> FileState {
        let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        FileState::File { bytes: text.into(), mode: 0o644, uid, gid }
    }

    #[test]
    fn a_state_that_was_put_is_read_back() {
        let root = TempRoot::new();
        let path = root.path().join("etc/sysctl.d/x.conf");
        for state in [
            file("a = 1\n"),
            FileState::Link { target: "../y".into() },
            file("b"),
            FileState::Absent,
        ] {
            put(&path, &state).expect("writable");
            assert_eq!(read(&path).expect("readable"), state);
        }
    }

    #[test]
    fn the_leftovers_of_a_killed_run_and_the_folders_it_created_are_removed() {
        let root = TempRoot::new();
        let path = root.path().join("etc/sysctl.d/x.conf");
        let folders = missing_folders(&path).expect("readable");
        assert_eq!(folders, [root.path().join("etc"), root.path().join("etc/sysctl.d")]);
        make_folders(path.parent().expect("a folder")).expect("writable");
        fs::write(temporary(&path).expect("a name"), "half").expect("writable");
        tidy(&path, &folders).expect("writable");
        assert!(!root.path().join("etc").exists());
    }

    #[test]
    fn a_folder_with_other_files_is_kept() {
        let root = TempRoot::new();
        root.file("etc/sysctl.d/other.conf", "");
        let folders = [root.path().join("etc"), root.path().join("etc/sysctl.d")];
        tidy(&root.path().join("etc/sysctl.d/x.conf"), &folders).expect("writable");
        assert!(root.path().join("etc/sysctl.d/other.conf").exists());
    }

    #[test]
    fn a_folder_at_the_path_is_an_error_and_not_absent() {
        let root = TempRoot::new();
        root.directory("etc/sysctl.d/x.conf");
        assert!(read(&root.path().join("etc/sysctl.d/x.conf")).is_err());
    }
}
