//! Files that are there whole or not at all, and are on disk when a call returns.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, ErrorKind, Read as _, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, symlink},
    path::{Path, PathBuf},
};

use rustix::fs::{Gid, OFlags, Uid, fchown};

use super::FileState;

/// Nothing longer stands where a fix would put a settings file.
const LONGEST: u64 = 64 * 1024;

#[cfg(test)]
use super::killed::point;

/// A moment at which a kill leaves something half done: tests kill there.
#[cfg(not(test))]
fn point() {}

const ENDING: &str = ".rsttrace-new";

/// What is at a path.
///
/// # Errors
/// The system's; or that it is no file and no link, or too long to be put back.
pub fn read(path: &Path) -> io::Result<FileState> {
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(FileState::Absent),
        Err(error) => return Err(error),
    };
    if found.is_symlink() {
        let target = fs::read_link(path)?.into_os_string().into_string();
        let target = target.map_err(|_| io::Error::other("links to a name that is no text"))?;
        return Ok(FileState::Link { target });
    }
    if !found.is_file() {
        return Err(io::Error::other("is something else than a settings file"));
    }
    let bytes = read_at_most(path, LONGEST)?;
    let mode = found.permissions().mode() & 0o7777;
    Ok(FileState::File { bytes, mode, uid: found.uid(), gid: found.gid() })
}

fn open_as_it_is(path: &Path) -> io::Result<File> {
    let flags = i32::try_from(OFlags::NOFOLLOW.bits()).unwrap_or_default();
    OpenOptions::new().read(true).custom_flags(flags).open(path)
}

/// The bytes of a file, which is no link.
///
/// # Errors
/// The system's; or that it is longer.
pub fn read_at_most(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open_as_it_is(path)?.take(most + 1).read_to_end(&mut bytes)?;
    match bytes.len() as u64 > most {
        true => Err(io::Error::other("is too long")),
        false => Ok(bytes),
    }
}

/// Folders above a path that are not there, the outermost first.
///
/// # Errors
/// The system's.
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

/// Puts a state at a path: whoever looks sees the old one or the new one, after a power cut too.
///
/// # Errors
/// The system's.
pub fn put(path: &Path, state: &FileState) -> io::Result<()> {
    let folder = path.parent().ok_or(ErrorKind::InvalidInput)?;
    if *state != FileState::Absent {
        make_folders(folder)?;
    }
    let beside = beside(path)?;
    absent(&beside)?;
    match state {
        FileState::Absent => absent(path)?,
        FileState::Link { target } => {
            point();
            symlink(target, &beside)?;
            point();
            fs::rename(&beside, path)?;
        }
        FileState::File { bytes, mode, uid, gid } => {
            point();
            let mut file =
                OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
            point();
            file.write_all(bytes)?;
            point();
            own(&file, *uid, *gid)?;
            // After the owner, whose change takes bits away.
            file.set_permissions(fs::Permissions::from_mode(*mode))?;
            point();
            file.sync_all()?;
            point();
            fs::rename(&beside, path)?;
        }
    }
    sync_folder(folder)
}

fn own(file: &File, uid: u32, gid: u32) -> io::Result<()> {
    let now = file.metadata()?;
    if (now.uid(), now.gid()) != (uid, gid) {
        fchown(file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
    }
    Ok(())
}

/// Makes what is missing of a folder's path.
///
/// # Errors
/// The system's.
pub fn make_folders(folder: &Path) -> io::Result<()> {
    for missing in missing_folders(&folder.join("x"))? {
        point();
        fs::create_dir(&missing)?;
        point();
        fs::set_permissions(&missing, fs::Permissions::from_mode(0o755))?;
        sync_folder(missing.parent().unwrap_or(Path::new("/")))?;
    }
    Ok(())
}

/// Removes what a killed [`put`] left beside a path, and those of the folders that are empty.
///
/// # Errors
/// The system's.
pub fn tidy(path: &Path, folders: &[PathBuf]) -> io::Result<()> {
    absent(&beside(path)?)?;
    for folder in folders.iter().rev() {
        point();
        match fs::remove_dir(folder) {
            Ok(()) => sync_folder(folder.parent().unwrap_or(Path::new("/")))?,
            // Never made, or removed by an undo that was killed then.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            // Somebody else keeps something there by now.
            Err(_) => return Ok(()),
        }
    }
    Ok(())
}

/// The name under which a file is written before it gets its own: always the same one, so that what a
/// killed run left is found. No reader of these folders takes a name with this ending.
fn beside(path: &Path) -> io::Result<PathBuf> {
    let name = path.file_name().ok_or(ErrorKind::InvalidInput)?;
    let mut beside = std::ffi::OsString::from(".");
    beside.push(name);
    beside.push(ENDING);
    Ok(path.with_file_name(beside))
}

/// The name that a file left by a killed [`put`] was to get.
pub fn unfinished(name: &str) -> Option<&str> {
    name.strip_prefix('.')?.strip_suffix(ENDING)
}

fn absent(path: &Path) -> io::Result<()> {
    point();
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Has the folder's entries on disk.
///
/// # Errors
/// The system's.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    point();
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
    fn what_was_put_is_read_again() {
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
    fn what_a_killed_run_left_is_tidied_with_the_folders_it_made() {
        let root = TempRoot::new();
        let path = root.path().join("etc/sysctl.d/x.conf");
        let folders = missing_folders(&path).expect("readable");
        assert_eq!(folders, [root.path().join("etc"), root.path().join("etc/sysctl.d")]);
        make_folders(path.parent().expect("a folder")).expect("writable");
        fs::write(beside(&path).expect("a name"), "half").expect("writable");
        tidy(&path, &folders).expect("writable");
        assert!(!root.path().join("etc").exists());
    }

    #[test]
    fn a_folder_that_somebody_else_uses_stays() {
        let root = TempRoot::new();
        root.file("etc/sysctl.d/other.conf", "");
        let folders = [root.path().join("etc"), root.path().join("etc/sysctl.d")];
        tidy(&root.path().join("etc/sysctl.d/x.conf"), &folders).expect("writable");
        assert!(root.path().join("etc/sysctl.d/other.conf").exists());
    }

    #[test]
    fn what_is_no_file_is_not_taken_for_absent() {
        let root = TempRoot::new();
        root.directory("etc/sysctl.d/x.conf");
        assert!(read(&root.path().join("etc/sysctl.d/x.conf")).is_err());
    }
}
