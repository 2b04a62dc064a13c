//! Configuration files in several directories, merged as systemd and kmod do (sysctl.d(5), modprobe.d(5)).

use std::{
    collections::BTreeMap,
    fs,
    io::{ErrorKind, Read as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use rustix::fs::OFlags;

/// Only this much of a file is read, so that a file that is not configuration costs little memory.
const MAX_BYTES: u64 = 256 * 1024;

/// Parent directories, highest priority first: a file masks files of the same name in later directories.
const PARENTS: [&str; 5] = ["etc", "run", "usr/local/lib", "usr/lib", "lib"];

/// A file that was read.
pub struct DropIn {
    /// The absolute path of the file on the host.
    pub name: String,
    pub text: String,
}

/// The files of `/etc/DIRECTORY`, `/run/DIRECTORY`, … whose name has this suffix, in the order in which
/// they are applied.
pub fn read(root: &Path, directory: &str, suffix: &str, unread: &mut Vec<String>) -> Vec<DropIn> {
    let mut files: BTreeMap<String, PathBuf> = BTreeMap::new();
    for parent in PARENTS {
        let below = Path::new(parent).join(directory);
        let Ok(entries) = fs::read_dir(root.join(&below)) else {
            continue;
        };
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.ends_with(suffix) {
                files.entry(name.clone()).or_insert_with(|| below.join(name));
            }
        }
    }
    files.into_values().filter_map(|below| file(root, &below, unread)).collect()
}

/// Reads one file. `None` when the file does not exist, is a link to /dev/null or cannot be read; only the
/// last case is added to `unread`.
pub fn file(root: &Path, below: &Path, unread: &mut Vec<String>) -> Option<DropIn> {
    let name = format!("/{}", below.display());
    let path = resolve(root, below);
    if path.ends_with("dev/null") {
        return None;
    }
    match text(&path) {
        Ok(text) => Some(DropIn { name, text }),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => {
            unread.push(format!("{name}: {error}"));
            None
        }
    }
}

/// Resolves an absolute link below `root`, not below our own `/`.
fn resolve(root: &Path, below: &Path) -> PathBuf {
    let path = root.join(below);
    match fs::read_link(&path) {
        Ok(target) => match target.strip_prefix("/") {
            Ok(target) => root.join(target),
            Err(_) => path,
        },
        Err(_) => path,
    }
}

/// Reads a procfs file, which reports no size.
pub fn text_of_proc(path: &Path) -> std::io::Result<String> {
    bounded(fs::File::open(path)?)
}

/// Bytes that are not UTF-8 are replaced, because a comment may contain them. The file is opened with
/// O_NONBLOCK, because opening a pipe would otherwise block until a process writes to the pipe.
pub fn text(path: &Path) -> std::io::Result<String> {
    let flags = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or_default();
    let file = fs::OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(std::io::Error::new(ErrorKind::InvalidInput, "not a regular file"));
    }
    bounded(file)
}

pub fn bounded(file: fs::File) -> std::io::Result<String> {
    let mut bytes = Vec::new();
    file.take(MAX_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TempRoot;

    #[test]
    fn a_file_masks_files_of_its_name_and_names_decide_the_order() {
        let root = TempRoot::new();
        root.file("usr/lib/sysctl.d/50-a.conf", "vendor");
        root.file("etc/sysctl.d/50-a.conf", "admin");
        root.file("etc/sysctl.d/10-z.conf", "first");
        root.file("run/sysctl.d/90-b.conf", "last");
        root.file("etc/sysctl.d/README", "no");
        std::os::unix::fs::symlink("/dev/null", root.path().join("etc/sysctl.d/90-b.conf"))
            .expect("a link");
        let mut unread = Vec::new();
        let files = read(root.path(), "sysctl.d", ".conf", &mut unread);
        let read: Vec<_> = files.iter().map(|it| (it.name.as_str(), it.text.as_str())).collect();
        assert_eq!(
            read,
            [("/etc/sysctl.d/10-z.conf", "first"), ("/etc/sysctl.d/50-a.conf", "admin")]
        );
    }

    #[test]
    fn a_pipe_does_not_block_and_the_other_files_are_read() {
        let root = TempRoot::new();
        root.file("etc/sysctl.d/20-b.conf", "read");
        let pipe = root.path().join("etc/sysctl.d/10-a.conf");
        let mode = rustix::fs::Mode::RUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0)
            .expect("a pipe");
        let mut unread = Vec::new();
        let files = read(root.path(), "sysctl.d", ".conf", &mut unread);
        assert_eq!(files.iter().map(|it| it.text.as_str()).collect::<Vec<_>>(), ["read"]);
        assert_eq!(unread, ["/etc/sysctl.d/10-a.conf: not a regular file"]);
    }
}
