//! The network namespaces somebody asked about, held open so that they can be read again after
//! their name or last process has gone.

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
    places::{self, Place},
};

/// Walking all processes for an unknown namespace is not repeated sooner.
const RESCAN_AFTER: Duration = Duration::from_millis(250);
/// How long a namespace that nothing leads to is kept open. An open namespace is a living one: its
/// interfaces stay, so this has to end.
const KEEP_LOST: Duration = Duration::from_secs(60);
/// Most namespaces held open; the one asked about least recently goes first.
const MOST_HELD: usize = 256;

/// Finds, holds and reads namespaces by inode number.
pub(super) struct Namespaces {
    /// Our own namespace, which can be read without entering it.
    own: u32,
    /// Device number of the namespace file system.
    nsfs: u64,
    held: HashMap<u32, Held>,
    places: HashMap<u32, Place>,
    scanned: Option<Instant>,
}

struct Held {
    /// Keeps the namespace, and with it the meaning of its inode number.
    ns: File,
    place: Place,
    found: Instant,
    asked: Instant,
    state: Option<(Instant, NetnsState)>,
}

impl Namespaces {
    pub(super) fn new() -> io::Result<Namespaces> {
        let own = fs::metadata("/proc/self/ns/net")?;
        Ok(Namespaces {
            own: u32::try_from(own.ino()).map_err(io::Error::other)?,
            nsfs: own.dev(),
            held: HashMap::new(),
            places: HashMap::new(),
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
        state.reach = held.place.reach.clone();
        held.state = Some((now, state.clone()));
        Some(state)
    }

    /// The namespace `inum` as an open file, for reading it elsewhere.
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
        held.asked = now;
        Some(held)
    }

    /// Lets go of the namespaces that nothing has led to for a while.
    pub(super) fn tidy(&mut self, now: Instant) {
        let inums: Vec<u32> = self.held.keys().copied().collect();
        for inum in inums {
            self.refresh(inum, now);
        }
        self.held.retain(|_, held| now.duration_since(held.found) < KEEP_LOST);
    }

    fn open(&mut self, inum: u32, now: Instant) -> Option<Held> {
        let place = self.find(inum, now)?;
        let ns = File::open(&place.path).ok()?;
        // The path may have come to lead elsewhere since.
        let is_it = ns.metadata().is_ok_and(|m| m.dev() == self.nsfs && m.ino() == u64::from(inum));
        is_it.then_some(Held { ns, place, found: now, asked: now, state: None })
    }

    /// Notes whether, and how, the held namespace `inum` can still be found.
    fn refresh(&mut self, inum: u32, now: Instant) {
        let Some(held) = self.held.get(&inum) else {
            return;
        };
        let found = match &held.place.path {
            path if self.leads_to(path, inum) => Some(held.place.clone()),
            _ => self.find(inum, now),
        };
        if let Some(held) = self.held.get_mut(&inum) {
            match found {
                Some(place) => {
                    held.place = place;
                    held.found = now;
                }
                None => held.place.reach = NetnsReach::Unknown,
            }
        }
    }

    /// A place that leads to `inum` at this moment. Walks all processes unless it just did.
    fn find(&mut self, inum: u32, now: Instant) -> Option<Place> {
        let remembered = self.places.get(&inum).filter(|place| self.leads_to(&place.path, inum));
        if let Some(place) = remembered {
            return Some(place.clone());
        }
        if self.scanned.is_some_and(|at| now.duration_since(at) < RESCAN_AFTER) {
            return None;
        }
        self.scanned = Some(now);
        self.places = places::scan(self.nsfs);
        self.places.get(&inum).cloned()
    }

    fn leads_to(&self, path: &Path, inum: u32) -> bool {
        places::inum(path, self.nsfs) == Some(inum)
    }

    fn make_room(&mut self) {
        if self.held.len() < MOST_HELD {
            return;
        }
        let oldest = self.held.iter().min_by_key(|(_, held)| held.asked).map(|(&inum, _)| inum);
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
    fn our_own_namespace_is_read_without_privilege() {
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
        let mut ask = |after_ms| {
            namespaces.state(1, Duration::ZERO, start + Duration::from_millis(after_ms));
            namespaces.scanned.expect("scanned").duration_since(start).as_millis()
        };
        assert_eq!([ask(0), ask(249), ask(250), ask(300)], [0, 0, 250, 250]);
    }

    #[test]
    fn a_lost_namespace_is_let_go_after_a_while() {
        let (mut namespaces, own) = own();
        let start = Instant::now();
        let ns = File::open("/proc/self/ns/net").expect("ours");
        let place = Place { path: "/nowhere".into(), reach: NetnsReach::Named("/nowhere".into()) };
        let held = Held { ns, place, found: start, asked: start, state: None };
        // No process leads to number 1, whatever file we hold for it.
        namespaces.held.insert(1, held);
        namespaces.state(own, Duration::ZERO, start).expect("readable");
        namespaces.tidy(start + KEEP_LOST - Duration::from_secs(1));
        assert_eq!(namespaces.held[&1].place.reach, NetnsReach::Unknown);
        namespaces.tidy(start + KEEP_LOST);
        assert!(!namespaces.held.contains_key(&1));
        assert!(namespaces.held.contains_key(&own), "a living one stays");
    }

    #[test]
    fn a_young_answer_is_given_again() {
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
