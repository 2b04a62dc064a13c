//! Reading and writing one setting where it belongs.

use std::{
    fs::{self, OpenOptions},
    io::{self, ErrorKind, Write as _},
    os::unix::fs::MetadataExt as _,
    path::PathBuf,
};

use rsttrace_model::{
    netns::{NetnsReach, Place},
    settings::{Scope, Setting, Stored},
};
use rustix::fs::{Access, access};

use super::{Host, cookie, ipvs};

/// Why a place that was written down in this boot is not to be written to, in a clause.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lost {
    /// It has ended.
    Gone(String),
    /// It cannot be told from here whether it has.
    Elsewhere(String),
}

impl Host {
    /// What tells the namespace with this inode number from every other one of this boot. `None` before
    /// 5.14, or where it cannot be entered.
    #[must_use]
    pub fn netns_cookie(&self, netns: u32) -> Option<u64> {
        self.enter(netns, cookie::read).flatten()
    }

    /// The inode number of the initial network namespace, or of ours where pid 1 may not be looked
    /// into.
    #[must_use]
    pub fn initial_netns(&self) -> u32 {
        let of_init = fs::metadata("/proc/1/ns/net").ok().map(|file| file.ino());
        of_init.and_then(|inum| u32::try_from(inum).ok()).unwrap_or(self.own)
    }

    /// The inode number of a place that was written down in this boot, with its cookie where the kernel
    /// has them.
    ///
    /// # Errors
    /// [`Lost`]
    pub fn find_again(&self, place: &Place, cookie: Option<u64>) -> Result<u32, Lost> {
        if place.reach == NetnsReach::Initial {
            let now = self.initial_netns();
            // The machine's own never ends. A container has another one in its place.
            return if now == place.netns && self.is_still(now, cookie) {
                Ok(now)
            } else {
                Err(Lost::Elsewhere(
                    "it was applied where another network namespace is pid 1's: take it back there"
                        .into(),
                ))
            };
        }
        // Without a cookie the name has to tell whether the number was given away again.
        if cookie.is_none()
            && let NetnsReach::Named(path) | NetnsReach::Docker(path) = &place.reach
            && let Ok(file) = fs::metadata(path)
            && file.ino() != u64::from(place.netns)
        {
            let why = "the network namespace of this name is another one now";
            return Err(Lost::Gone(why.into()));
        }
        // From here on it is held open, and with it the meaning of its number.
        if self.enter(place.netns, || ()).is_none() {
            return Err(Lost::Gone("the network namespace has gone".into()));
        }
        if !self.is_still(place.netns, cookie) {
            let why = "the network namespace has gone, and another one has its number";
            return Err(Lost::Gone(why.into()));
        }
        Ok(place.netns)
    }

    /// Whether this is the namespace that had this cookie, as far as it had one.
    fn is_still(&self, netns: u32, cookie: Option<u64>) -> bool {
        cookie.is_none_or(|noted| self.netns_cookie(netns).is_none_or(|now| now == noted))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn ours(host: &Host) -> Place {
        Place { netns: host.own, reach: NetnsReach::Process(std::process::id()) }
    }

    #[test]
    fn a_namespace_that_has_anothers_number_is_told_by_its_cookie() {
        let host = Host::new().expect("proc is mounted");
        // Before 5.14 there is nothing to tell it by.
        let Some(cookie) = host.netns_cookie(host.own) else {
            return;
        };
        assert_eq!(host.find_again(&ours(&host), Some(cookie)), Ok(host.own));
        let other = host.find_again(&ours(&host), Some(cookie + 1));
        assert!(
            matches!(other, Err(Lost::Gone(why)) if why.contains("another one has its number"))
        );
    }

    #[test]
    fn a_journal_without_cookies_goes_by_number_and_name() {
        let host = Host::new().expect("proc is mounted");
        assert_eq!(host.find_again(&ours(&host), None), Ok(host.own));
        let renamed = NetnsReach::Named("/proc/self/exe".into());
        let renamed = host.find_again(&Place { reach: renamed, ..ours(&host) }, None);
        assert!(matches!(renamed, Err(Lost::Gone(why)) if why.contains("of this name")));
    }

    #[test]
    fn a_name_that_was_moved_does_not_hide_the_namespace_itself() {
        let host = Host::new().expect("proc is mounted");
        let Some(cookie) = host.netns_cookie(host.own) else {
            return;
        };
        let reach = NetnsReach::Named("/proc/self/exe".into());
        let place = Place { reach, ..ours(&host) };
        assert_eq!(host.find_again(&place, Some(cookie)), Ok(host.own));
    }

    #[test]
    fn another_machines_or_containers_initial_namespace_is_not_taken_for_this_ones() {
        let host = Host::new().expect("proc is mounted");
        let initial = host.initial_netns();
        let place = |netns| Place { netns, reach: NetnsReach::Initial };
        assert_eq!(host.find_again(&place(initial), None), Ok(initial));
        for (netns, cookie) in [(initial - 1, None), (initial, Some(u64::MAX))] {
            let lost = host.find_again(&place(netns), cookie);
            let unreadable = host.netns_cookie(initial).is_none() && cookie.is_some();
            assert!(unreadable || matches!(lost, Err(Lost::Elsewhere(_))), "{lost:?}");
        }
    }
}
