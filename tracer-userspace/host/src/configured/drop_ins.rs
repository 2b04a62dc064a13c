//! Configuration in several directories, as systemd and kmod merge them (sysctl.d(5), modprobe.d(5)).

use std::{
    collections::BTreeMap,
    fs,
    io::{ErrorKind, Read as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use rustix::fs::OFlags;

/// A file that somebody filled with something else is not read to its end.
const MOST_BYTES: u64 = 256 * 1024;

/// Where files can be, the strongest first: a file masks those of the same name further down.
const PARENTS: [&str; 5] = ["etc", "run", "usr/local/lib", "usr/lib", "lib"];

/// A file that was read.
pub struct DropIn {
    /// As it is called on the machine.
    pub name: String,
    pub text: String,
}

/// The files of `/etc/NAME`, `/run/NAME`, … whose name has this end, in the order in which they
/// are applied.
pub fn read(root: &Path, directory: &str, end: &str, unread: &mut Vec<String>) -> Vec<DropIn> {
    let mut files: BTreeMap<String, PathBuf> = BTreeMap::new();
    for parent in PARENTS {
        let below = Path::new(parent).join(directory);
        let Ok(entries) = fs::read_dir(root.join(&below)) else {
            continue;
        };
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.ends_with(end) {
                files.entry(name.clone()).or_insert_with(|| below.join(name));
            }
        }
    }
    files.into_values().filter_map(|below| file(root, &below, unread)).collect()
}

/// One file, if there is one.
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

/// An absolute link means a place below the root, not one of ours.
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

/// A file of procfs, whose size nobody knows beforehand.
pub fn text_of_proc(path: &Path) -> std::io::Result<String> {
    bounded(fs::File::open(path)?)
}

/// Bytes that are no UTF-8 are replaced: a comment may hold anything. Nothing is waited for: a pipe in the
/// place of the file would have us stand there until somebody writes to it.
pub fn text(path: &Path) -> std::io::Result<String> {
    let flags = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or_default();
    let file = fs::OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(std::io::Error::new(ErrorKind::InvalidInput, "is no ordinary file"));
    }
    bounded(file)
}

fn bounded(file: fs::File) -> std::io::Result<String> {
    let mut bytes = Vec::new();
    file.take(MOST_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TempRoot;

    #[test]
    fn a_file_masks_those_of_its_name_and_names_decide_the_order() {
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
        let told: Vec<_> = files.iter().map(|it| (it.name.as_str(), it.text.as_str())).collect();
        assert_eq!(
            told,
            [("/etc/sysctl.d/10-z.conf", "first"), ("/etc/sysctl.d/50-a.conf", "admin")]
        );
    }

    #[test]
    fn a_pipe_is_not_waited_for_and_the_rest_is_read() {
        let root = TempRoot::new();
        root.file("etc/sysctl.d/20-b.conf", "read");
        let pipe = root.path().join("etc/sysctl.d/10-a.conf");
        let mode = rustix::fs::Mode::RUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0)
            .expect("a pipe");
        let mut unread = Vec::new();
        let files = read(root.path(), "sysctl.d", ".conf", &mut unread);
        assert_eq!(files.iter().map(|it| it.text.as_str()).collect::<Vec<_>>(), ["read"]);
        assert_eq!(unread, ["/etc/sysctl.d/10-a.conf: is no ordinary file"]);
    }
}
