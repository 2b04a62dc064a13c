//! Reads and writes one setting in its network namespace.

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

/// Why a network namespace that was recorded in this boot cannot be used, as a clause.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetnsLookupError {
    /// The namespace has ended.
    Gone(String),
    /// Whether the namespace has ended cannot be determined in our namespace.
    Elsewhere(String),
}

impl Host {
    /// The cookie of a network namespace, which is unique in this boot (`SO_NETNS_COOKIE`). `None` before
    /// 5.14, or where the namespace cannot be entered.
    #[must_use]
    pub fn netns_cookie(&self, netns: u32) -> Option<u64> {
        self.enter(netns, cookie::read).flatten()
    }

    /// The inode number of the initial network namespace, or of ours where we may not read the namespace of
    /// pid 1.
    #[must_use]
    pub fn initial_netns(&self) -> u32 {
        let of_init = fs::metadata("/proc/1/ns/net").ok().map(|file| file.ino());
        of_init.and_then(|inum| u32::try_from(inum).ok()).unwrap_or(self.own)
    }

    /// The inode number of a network namespace that was recorded in this boot, with its cookie where the
    /// kernel has cookies.
    ///
    /// # Errors
    /// [`NetnsLookupError`]
    pub fn find_again(&self, place: &Place, cookie: Option<u64>) -> Result<u32, NetnsLookupError> {
        if place.reach == NetnsReach::Initial {
            let now = self.initial_netns();
            // The host's initial namespace never ends. In a container pid 1 has another one.
            return if now == place.netns && self.is_still(now, cookie) {
                Ok(now)
            } else {
                Err(NetnsLookupError::Elsewhere(
                    "pid 1 has a different network namespace here; undo the change on the host or in the \
                     container where it was applied"
                        .into(),
                ))
            };
        }
        // Without a cookie only the name shows whether the kernel reused the inode number.
        if cookie.is_none()
            && let NetnsReach::Named(path) | NetnsReach::Docker(path) = &place.reach
            && let Ok(file) = fs::metadata(path)
            && file.ino() != u64::from(place.netns)
        {
            let why = "the name now refers to a different network namespace";
            return Err(NetnsLookupError::Gone(why.into()));
        }
        // From here on the namespace is held open, so that its inode number is not reused.
        if self.enter(place.netns, || ()).is_none() {
            return Err(NetnsLookupError::Gone("the network namespace no longer exists".into()));
        }
        if !self.is_still(place.netns, cookie) {
            let why = "the network namespace no longer exists, and another one has its number";
            return Err(NetnsLookupError::Gone(why.into()));
        }
        Ok(place.netns)
    }

    /// Whether `netns` is the namespace that had this cookie. `true` where a cookie is unknown.
    fn is_still(&self, netns: u32, cookie: Option<u64>) -> bool {
        cookie.is_none_or(|recorded| self.netns_cookie(netns).is_none_or(|now| now == recorded))
    }

    /// The value of a setting in a namespace, as the kernel prints it.
    ///
    /// # Errors
    /// When the namespace cannot be entered, or the kernel's error.
    pub fn setting(&self, netns: u32, setting: &'static Setting) -> io::Result<String> {
        self.at(netns, setting, move || match setting.stored {
            Stored::IpvsTimeout(timer) => ipvs::timeout(timer).map(|seconds| seconds.to_string()),
            _ => fs::read_to_string(path(setting)?).map(|text| text.trim().to_owned()),
        })
    }

    /// Writes a setting in a namespace, with one `write` or one netlink message.
    ///
    /// # Errors
    /// When the namespace cannot be entered, or the kernel's error.
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

    /// Checks whether a setting can be written, as far as this can be checked without writing.
    ///
    /// # Errors
    /// The error of a write, for example on a read-only mount or a file that is read-only in this namespace.
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
        let unreachable =
            || io::Error::new(ErrorKind::NotFound, "cannot enter the network namespace");
        self.enter(netns, work).ok_or_else(unreachable)?
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
    fn a_namespace_with_a_reused_number_is_recognised_by_its_cookie() {
        let host = Host::new().expect("proc is mounted");
        // There are no cookies before 5.14.
        let Some(cookie) = host.netns_cookie(host.own) else {
            return;
        };
        assert_eq!(host.find_again(&ours(&host), Some(cookie)), Ok(host.own));
        let other = host.find_again(&ours(&host), Some(cookie + 1));
        assert!(
            matches!(other, Err(NetnsLookupError::Gone(why)) if why.contains("another one has its number"))
        );
    }

    #[test]
    fn without_a_cookie_a_namespace_is_found_by_number_and_name() {
        let host = Host::new().expect("proc is mounted");
        assert_eq!(host.find_again(&ours(&host), None), Ok(host.own));
        let renamed = NetnsReach::Named("/proc/self/exe".into());
        let renamed = host.find_again(&Place { reach: renamed, ..ours(&host) }, None);
        assert!(
            matches!(renamed, Err(NetnsLookupError::Gone(why)) if why.contains("the name now refers"))
        );
    }

    #[test]
    fn with_a_cookie_a_namespace_is_found_after_its_name_was_reused() {
        let host = Host::new().expect("proc is mounted");
        let Some(cookie) = host.netns_cookie(host.own) else {
            return;
        };
        let reach = NetnsReach::Named("/proc/self/exe".into());
        let place = Place { reach, ..ours(&host) };
        assert_eq!(host.find_again(&place, Some(cookie)), Ok(host.own));
    }

    #[test]
    fn the_initial_namespace_of_another_host_or_container_is_not_mistaken_for_ours() {
        let host = Host::new().expect("proc is mounted");
        let initial = host.initial_netns();
        let place = |netns| Place { netns, reach: NetnsReach::Initial };
        assert_eq!(host.find_again(&place(initial), None), Ok(initial));
        for (netns, cookie) in [(initial - 1, None), (initial, Some(u64::MAX))] {
            let result = host.find_again(&place(netns), cookie);
            let unreadable = host.netns_cookie(initial).is_none() && cookie.is_some();
            let elsewhere = matches!(result, Err(NetnsLookupError::Elsewhere(_)));
            assert!(unreadable || elsewhere, "{result:?}");
        }
    }
}
