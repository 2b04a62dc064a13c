//! Reading and writing one setting where it belongs.

use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use rustix::fs::{Access, access};

use super::{Host, NetnsReach, ipvs};
use crate::fix::Place;
use crate::settings::{Scope, Setting, Stored};

impl Host {
    /// The inode number of the initial network namespace, or of ours where pid 1 may not be looked
    /// into.
    #[must_use]
    pub fn initial_netns(&self) -> u32 {
        let of_init = fs::metadata("/proc/1/ns/net").ok().map(|file| file.ino());
        of_init.and_then(|inum| u32::try_from(inum).ok()).unwrap_or(self.own)
    }

    /// Whether a place is still what it was when somebody wrote it down; its inode number now.
    ///
    /// # Errors
    /// Why it is not: it has gone, or its name leads elsewhere.
    pub fn find_again(&self, place: &Place) -> Result<u32, String> {
        if place.reach == NetnsReach::Initial {
            return Ok(self.initial_netns());
        }
        if let NetnsReach::Named(path) | NetnsReach::Docker(path) = &place.reach
            && let Ok(file) = fs::metadata(path)
            && file.ino() != u64::from(place.netns)
        {
            return Err("the network namespace of this name is another one now".into());
        }
        self.enter(place.netns, || ())
            .map(|()| place.netns)
            .ok_or_else(|| "the network namespace has gone".into())
    }

    /// The value of a setting in a namespace, as the kernel prints it.
    ///
    /// # Errors
    /// When the namespace cannot be entered, or the kernel's.
    pub fn setting(&self, netns: u32, setting: &'static Setting) -> io::Result<String> {
        self.at(netns, setting, move || match setting.stored {
            Stored::IpvsTimeout(timer) => ipvs::timeout(timer).map(|seconds| seconds.to_string()),
            _ => fs::read_to_string(path(setting)?).map(|text| text.trim().to_owned()),
        })
    }

    /// Writes it: one `write`, or one netlink message.
    ///
    /// # Errors
    /// When the namespace cannot be entered, or the kernel's.
    pub fn set(&self, netns: u32, setting: &'static Setting, value: u64) -> io::Result<()> {
        self.at(netns, setting, move || match setting.stored {
            Stored::IpvsTimeout(timer) => {
                let seconds = u32::try_from(value).map_err(|_| ErrorKind::InvalidInput)?;
                ipvs::set_timeout(timer, seconds)
            }
            _ => {
                let mut file = OpenOptions::new().write(true).open(path(setting)?)?;
                file.write_all(value.to_string().as_bytes())
            }
        })
    }

    /// Whether we could write it, as far as that can be told without writing.
    ///
    /// # Errors
    /// What a write would fail with: a read-only mount, a file that this namespace may only read.
    pub fn may_set(&self, netns: u32, setting: &'static Setting) -> io::Result<()> {
        self.at(netns, setting, move || match setting.stored {
            Stored::IpvsTimeout(timer) => ipvs::timeout(timer).map(|_| ()),
            _ => Ok(access(path(setting)?, Access::WRITE_OK)?),
        })
    }

    fn at<T: Send>(
        &self,
        netns: u32,
        setting: &Setting,
        work: impl FnOnce() -> io::Result<T> + Send,
    ) -> io::Result<T> {
        let netns = match setting.scope {
            Scope::Machine => self.initial_netns(),
            Scope::Netns => netns,
        };
        let lost =
            || io::Error::new(ErrorKind::NotFound, "the network namespace cannot be entered");
        self.enter(netns, work).ok_or_else(lost)?
    }
}

fn path(setting: &Setting) -> io::Result<PathBuf> {
    let below_root = setting.path().ok_or(ErrorKind::Unsupported)?;
    Ok(PathBuf::from("/").join(below_root))
}
