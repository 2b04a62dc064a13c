//! The network namespaces that were requested. They are held open, so that they can be read again after
//! their name was deleted or their last process has ended.

use std::{
    collections::HashMap,
    fs::{self, File},
    io,
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::Path,
    time::{Duration, Instant},
};

use rsttrace_model::netns::{NetnsReach, NetnsState};

use super::{
    inside::{inside, read_here},
    netns_paths::{self, NetnsPath},
};

/// Minimum interval between two walks over all processes for an unknown namespace.
const RESCAN_AFTER: Duration = Duration::from_millis(250);
/// How long a namespace is held open that no name and no process refers to. An open namespace keeps its
/// interfaces, so it must be closed at some time.
const KEEP_UNREACHABLE: Duration = Duration::from_secs(60);
/// Limit of namespaces that are held open. The least recently requested one is closed first.
const MOST_HELD: usize = 256;

/// Finds, holds and reads namespaces by inode number.
pub(super) struct Namespaces {
    /// Our own namespace, which can be read without entering it.
    own: u32,
    /// Device number of the namespace file system (nsfs).
    nsfs: u64,
    held: HashMap<u32, Held>,
    paths: HashMap<u32, NetnsPath>,
    scanned: Option<Instant>,
}

struct Held {
    /// Keeps the namespace open, so that its inode number is not reused.
    ns: File,
    at: NetnsPath,
    found: Instant,
    requested: Instant,
    state: Option<(Instant, NetnsState)>,
}

impl Namespaces {
    pub(super) fn new() -> io::Result<Namespaces> {
        let own = fs::metadata("/proc/self/ns/net")?;
        Ok(Namespaces {
            own: u32::try_from(own.ino()).map_err(io::Error::other)?,
            nsfs: own.dev(),
            held: HashMap::new(),
            paths: HashMap::new(),
            scanned: None,
        })
    }

    /// Inode number of our own namespace.
    pub(super) fn own(&self) -> u32 {
        self.own
    }

    /// The state of `inum`, read at most `max_age` before `now`.
    pub(super) fn state(
        &mut self,
        inum: u32,
        max_age: Duration,
        now: Instant,
    ) -> Option<NetnsState> {
        let held = self.hold(inum, now)?;
        if let Some((read_at, state)) = &held.state
            && now.duration_since(*read_at) <= max_age
        {
            return Some(state.clone());
        }
        self.refresh(inum, now);
        let held = self.held.get_mut(&inum)?;
        let mut state =
            if inum == self.own { read_here() } else { inside(held.ns.as_fd(), read_here).ok()? };
        state.inum = inum;
        state.reach = held.at.reach.clone();
        held.state = Some((now, state.clone()));
        Some(state)
    }

    /// The namespace `inum` as an open file, to read the namespace on another thread.
    pub(super) fn handle(&mut self, inum: u32, now: Instant) -> Option<File> {
        self.hold(inum, now)?.ns.try_clone().ok()
    }

    fn hold(&mut self, inum: u32, now: Instant) -> Option<&mut Held> {
        if !self.held.contains_key(&inum) {
            let held = self.open(inum, now)?;
            self.make_room();
            self.held.insert(inum, held);
        }
        let held = self.held.get_mut(&inum)?;
        held.requested = now;
        Some(held)
    }

    /// Closes the namespaces that no name and no process has referred to for [`KEEP_UNREACHABLE`].
    pub(super) fn tidy(&mut self, now: Instant) {
        let inums: Vec<u32> = self.held.keys().copied().collect();
        for inum in inums {
            self.refresh(inum, now);
        }
        self.held.retain(|_, held| now.duration_since(held.found) < KEEP_UNREACHABLE);
    }

    fn open(&mut self, inum: u32, now: Instant) -> Option<Held> {
        let at = self.find(inum, now)?;
        let ns = File::open(&at.path).ok()?;
        // The path may refer to another namespace by now.
        let matches =
            ns.metadata().is_ok_and(|m| m.dev() == self.nsfs && m.ino() == u64::from(inum));
        matches.then_some(Held { ns, at, found: now, requested: now, state: None })
    }

    /// Notes whether, and how, the held namespace `inum` can still be found.
    fn refresh(&mut self, inum: u32, now: Instant) {
        let Some(held) = self.held.get(&inum) else {
            return;
        };
        let found = match &held.at.path {
            path if self.refers_to(path, inum) => Some(held.at.clone()),
            _ => self.find(inum, now),
        };
        if let Some(held) = self.held.get_mut(&inum) {
            match found {
                Some(at) => {
                    held.at = at;
                    held.found = now;
                }
                None => held.at.reach = NetnsReach::Unknown,
            }
        }
    }

    /// A path that refers to `inum` at this time. Walks all processes, at most every [`RESCAN_AFTER`].
    fn find(&mut self, inum: u32, now: Instant) -> Option<NetnsPath> {
        let cached = self.paths.get(&inum).filter(|at| self.refers_to(&at.path, inum));
        if let Some(at) = cached {
            return Some(at.clone());
        }
        if self.scanned.is_some_and(|at| now.duration_since(at) < RESCAN_AFTER) {
            return None;
        }
        self.scanned = Some(now);
        self.paths = netns_paths::scan(self.nsfs);
        self.paths.get(&inum).cloned()
    }

    fn refers_to(&self, path: &Path, inum: u32) -> bool {
        netns_paths::inum(path, self.nsfs) == Some(inum)
    }

    fn make_room(&mut self) {
        if self.held.len() < MOST_HELD {
            return;
        }
        let oldest = self.held.iter().min_by_key(|(_, held)| held.requested).map(|(&inum, _)| inum);
        if let Some(inum) = oldest {
            self.held.remove(&inum);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> (Namespaces, u32) {
        let namespaces = Namespaces::new().expect("proc is mounted");
        let own = namespaces.own;
        (namespaces, own)
    }

    #[test]
    fn our_own_namespace_is_read_without_privileges() {
        let (mut namespaces, own) = own();
        let state = namespaces.state(own, Duration::ZERO, Instant::now()).expect("readable");
        assert_eq!(state.inum, own);
        assert_ne!(state.reach, NetnsReach::Unknown);
        assert!(state.tcp.keepalive_time_s.is_some());
    }

    #[test]
    fn an_unknown_number_is_none_and_not_held() {
        let (mut namespaces, _) = own();
        assert_eq!(namespaces.state(1, Duration::ZERO, Instant::now()), None);
        assert!(namespaces.held.is_empty());
    }

    #[test]
    fn unknown_numbers_do_not_cause_a_scan_each() {
        let (mut namespaces, _) = own();
        let start = Instant::now();
        let mut request = |after_ms| {
            namespaces.state(1, Duration::ZERO, start + Duration::from_millis(after_ms));
            namespaces.scanned.expect("scanned").duration_since(start).as_millis()
        };
        assert_eq!([request(0), request(249), request(250), request(300)], [0, 0, 250, 250]);
    }

    #[test]
    fn a_namespace_without_name_and_process_is_closed_after_a_minute() {
        let (mut namespaces, own) = own();
        let start = Instant::now();
        let ns = File::open("/proc/self/ns/net").expect("ours");
        let at = NetnsPath { path: "/nowhere".into(), reach: NetnsReach::Named("/nowhere".into()) };
        let held = Held { ns, at, found: start, requested: start, state: None };
        // No name and no process refers to number 1, whatever file is held open for it.
        namespaces.held.insert(1, held);
        namespaces.state(own, Duration::ZERO, start).expect("readable");
        namespaces.tidy(start + KEEP_UNREACHABLE - Duration::from_secs(1));
        assert_eq!(namespaces.held[&1].at.reach, NetnsReach::Unknown);
        namespaces.tidy(start + KEEP_UNREACHABLE);
        assert!(!namespaces.held.contains_key(&1));
        assert!(namespaces.held.contains_key(&own), "a namespace that can be found stays open");
    }

    #[test]
    fn a_recent_state_is_returned_again() {
        let (mut namespaces, own) = own();
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let read_at =
            |namespaces: &Namespaces| namespaces.held[&own].state.as_ref().map(|(at, _)| *at);
        namespaces.state(own, second, start);
        namespaces.state(own, second, start + second);
        assert_eq!(read_at(&namespaces), Some(start));
        namespaces.state(own, second, start + second + Duration::from_millis(1));
        assert_ne!(read_at(&namespaces), Some(start));
    }
}
