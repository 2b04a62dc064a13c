//! Files below a root directory that is not ours: of a container, or of a copy of a host. Links, absolute ones
//! too, are followed below that root, as the container's own processes follow them.

use std::{
    fs::File,
    io::{self, ErrorKind},
    os::fd::OwnedFd,
    path::Path,
};

use rustix::{
    fs::{Mode, OFlags, ResolveFlags, openat2},
    io::Errno,
};

use super::super::drop_ins;

/// A directory, as the root of what is read.
pub struct Root(OwnedFd);

impl Root {
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self(rustix::fs::open(path, flags, Mode::empty())?))
    }

    /// The root directory of a process.
    pub fn of_process(&self, pid: u32) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let path = format!("proc/{pid}/root");
        match openat2(&self.0, path.as_str(), flags, Mode::empty(), ResolveFlags::IN_ROOT) {
            Ok(root) => Ok(Self(root)),
            // The link of a living process leads out of every path, which IN_ROOT refuses.
            Err(Errno::LOOP | Errno::XDEV) => {
                Ok(Self(rustix::fs::openat(&self.0, path.as_str(), flags, Mode::empty())?))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The text of a file, with the limits of [`drop_ins::text`].
    pub fn text(&self, path: &str) -> io::Result<String> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = openat2(&self.0, path, flags, Mode::empty(), ResolveFlags::IN_ROOT)?;
        let file = File::from(file);
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(ErrorKind::InvalidInput, "not a regular file"));
        }
        drop_ins::bounded(file)
    }

    /// The names in a directory, sorted; empty where it cannot be read.
    pub fn names(&self, path: &str) -> Vec<String> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = openat2(&self.0, path, flags, Mode::empty(), ResolveFlags::IN_ROOT);
        let Some(entries) = directory.ok().and_then(|it| rustix::fs::Dir::new(it).ok()) else {
            return Vec::new();
        };
        let entries =
            entries.flatten().filter_map(|it| it.file_name().to_str().ok().map(Into::into));
        let mut names: Vec<String> = entries.collect();
        names.sort_unstable();
        names
    }
}
