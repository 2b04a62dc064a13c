//! What is kept of a stream while it is read: counts, and of each cause one example. A stream of any
//! length fits.

use std::{
    collections::{BTreeMap, HashSet},
    net::SocketAddr,
};

use rsttrace_core::event::Session;

use super::{
    counters::Namespaces,
    runs::Runs,
    text::Text,
    told::{FixTold, NotFix, RuledOut, SummaryTold, Told},
    window::Window,
};

/// Different names, reasons or fixes that are kept for one cause; more than that and nobody reads them.
const VARIANTS: usize = 64;

/// Services that are told apart.
const SERVICES: usize = 1024;

/// Connections that are listed one by one.
pub const LISTED: usize = 500;

/// Ids that are remembered, so that what is in the file twice counts once.
const IDS: usize = 1 << 20;

/// How often something was said.
pub type Tally = BTreeMap<Text, u64>;

fn count(tally: &mut Tally, key: Text) {
    if tally.len() < VARIANTS || tally.contains_key(&key) {
        *tally.entry(key).or_default() += 1;
    }
}

/// What is reported on.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    pub window: Window,
    /// No cause: all of them.
    pub causes: Vec<String>,
}

/// A fix, and for how many connections it was named.
pub struct Named {
    pub fix: FixTold,
    pub count: u64,
    /// Its best place among the fixes of an incident.
    pub rank: usize,
    /// The longest silence it was computed from.
    idle_s: f64,
}

/// Why it was not a cause, in the words of the last connection.
pub struct Reason {
    pub text: Text,
    pub count: u64,
    /// Other connections had other numbers.
    pub numbers_differ: bool,
}

/// One cause.
pub struct Group {
    pub family: Text,
    pub times: Vec<i64>,
    pub idle_s: Vec<f64>,
    pub confidences: Tally,
    pub clients: Tally,
    pub servers: Tally,
    pub services: BTreeMap<SocketAddr, u64>,
    /// Name and milliseconds to the number of connections that met the limit.
    pub limits: BTreeMap<(Text, u64), u64>,
    /// Connections with SO_KEEPALIVE off, and those of which it is known.
    pub keepalive_off: u64,
    pub keepalive_known: u64,
    /// Cause, then the reason without its numbers.
    pub ruled_out: BTreeMap<Text, BTreeMap<String, Reason>>,
    pub not_fixes: BTreeMap<NotFix, u64>,
    pub proves: Tally,
    /// What a fix is called, whose it is, where it applies and why, to the fix.
    pub fixes: BTreeMap<(Text, Text, Vec<Text>, Text), Named>,
    /// The first of the surest ones.
    pub example: Told,
}

/// One destination.
#[derive(Default)]
pub struct Service {
    pub backends: BTreeMap<SocketAddr, u64>,
    pub clients: Tally,
    pub servers: Tally,
    /// Minutes since the epoch, then causes.
    pub minutes: BTreeMap<i64, Tally>,
}

/// A connection in a line.
pub struct Brief {
    pub wall_ns: i64,
    pub cause: Text,
    pub confidence: Option<Text>,
    pub source: SocketAddr,
    pub destination: SocketAddr,
    pub client: Option<Text>,
    pub idle_s: Option<f64>,
    pub event_id: Text,
}

/// All of it.
#[derive(Default)]
pub struct Gather {
    pub selection: Selection,
    pub hosts: Tally,
    pub kernels: Tally,
    /// The oldest and the newest event of the file.
    pub extent: Option<(i64, i64)>,
    pub groups: BTreeMap<Text, Group>,
    pub services: BTreeMap<SocketAddr, Service>,
    /// Connections to services beyond [`SERVICES`].
    pub elsewhere: u64,
    pub briefs: Vec<Brief>,
    pub runs: Runs,
    pub connections: u64,
    /// Errors at the other end of a connection that is counted.
    pub other_ends: u64,
    pub duplicates: u64,
    pub shortened: u64,
    pub blind_spots: Tally,
    pub namespaces: Namespaces,
    pub session: Option<Session>,
    ids: HashSet<Text>,
}

impl Gather {
    pub fn new(selection: Selection) -> Self {
        Self { selection, ..Self::default() }
    }

    /// Any event's time.
    pub fn saw(&mut self, wall_ns: i64) {
        self.selection.window.resolve(wall_ns);
        let (first, last) = self.extent.unwrap_or((wall_ns, wall_ns));
        self.extent = Some((first.min(wall_ns), last.max(wall_ns)));
    }

    /// What a capture says of its run. It says it again when a module comes or goes: the newest holds.
    pub fn session(&mut self, session: Session) {
        count(&mut self.hosts, Text::new(&session.hostname));
        count(&mut self.kernels, Text::new(&session.kernel));
        self.session = Some(session);
    }

    pub fn summary(&mut self, told: SummaryTold) {
        self.saw(told.wall_ns);
        count(&mut self.hosts, told.host.name.clone());
        let before_window = self.selection.window.is_before(told.wall_ns);
        if !self.selection.window.is_after(told.wall_ns) {
            self.runs.summary(told, before_window);
        }
    }

    fn asks_for(&self, told: &Told) -> bool {
        let causes = &self.selection.causes;
        self.selection.window.contains(told.wall_ns)
            && (causes.is_empty() || causes.iter().any(|id| id == told.verdict.cause.as_str()))
    }

    pub fn incident(&mut self, told: Told) {
        if self.ids.contains(&told.event_id) {
            self.duplicates += 1;
            return;
        }
        self.saw(told.wall_ns);
        count(&mut self.hosts, told.host.name.clone());
        let asked_for = self.asks_for(&told);
        self.runs.incident(&told, asked_for);
        let follows = told.verdict.follows.as_ref();
        let is_known = follows.is_some_and(|first| self.ids.contains(first));
        if self.ids.len() < IDS {
            self.ids.insert(told.event_id.clone());
            self.ids.extend(follows.cloned());
        }
        if !asked_for || told.is_benign() {
            return;
        }
        if is_known {
            self.other_ends += 1;
            return;
        }
        self.shortened += u64::from(told.verdict.truncated);
        self.connections += 1;
        self.namespaces.told(&told);
        for spot in &told.verdict.blind_spots {
            count(&mut self.blind_spots, spot.clone());
        }
        self.add_to_service(&told);
        if self.briefs.len() < LISTED {
            self.briefs.push(Brief::of(&told));
        }
        let room = self.groups.len() < VARIANTS;
        match self.groups.get_mut(&told.verdict.cause) {
            Some(group) => group.add(told),
            None if room => {
                self.groups.insert(told.verdict.cause.clone(), Group::new(told));
            }
            None => {}
        }
    }

    fn add_to_service(&mut self, told: &Told) {
        let address = told.destination.address();
        if self.services.len() >= SERVICES && !self.services.contains_key(&address) {
            self.elsewhere += 1;
            return;
        }
        let service = self.services.entry(address).or_default();
        if let Some(backend) = told.destination.behind_nat()
            && (service.backends.len() < VARIANTS || service.backends.contains_key(&backend))
        {
            *service.backends.entry(backend).or_default() += 1;
        }
        if let Some(client) = told.client() {
            count(&mut service.clients, client);
        }
        if let Some(server) = told.server() {
            count(&mut service.servers, server);
        }
        let minute = told.wall_ns.div_euclid(60_000_000_000);
        count(service.minutes.entry(minute).or_default(), told.verdict.cause.clone());
    }
}

impl Brief {
    fn of(told: &Told) -> Self {
        Self {
            wall_ns: told.wall_ns,
            cause: told.verdict.cause.clone(),
            confidence: told.verdict.confidence.clone(),
            source: told.source.address(),
            destination: told.destination.address(),
            client: told.client(),
            idle_s: told.verdict.idle_s,
            event_id: told.event_id.clone(),
        }
    }
}

/// How sure a verdict is; an unknown word is below the others.
fn sureness(told: &Told) -> u8 {
    match told.verdict.confidence.as_ref().map(Text::as_str) {
        Some("observed") => 3,
        Some("correlated") => 2,
        Some("inferred") => 1,
        _ => 0,
    }
}

impl Group {
    fn new(told: Told) -> Self {
        let mut group = Self {
            family: told.verdict.family.clone(),
            times: Vec::new(),
            idle_s: Vec::new(),
            confidences: Tally::new(),
            clients: Tally::new(),
            servers: Tally::new(),
            services: BTreeMap::new(),
            limits: BTreeMap::new(),
            keepalive_off: 0,
            keepalive_known: 0,
            ruled_out: BTreeMap::new(),
            not_fixes: BTreeMap::new(),
            proves: Tally::new(),
            fixes: BTreeMap::new(),
            example: told.clone(),
        };
        group.add(told);
        group
    }

    fn add(&mut self, told: Told) {
        let verdict = &told.verdict;
        self.times.push(told.wall_ns);
        self.idle_s.extend(verdict.idle_s.filter(|idle| *idle >= 0.0));
        let unsure = || Text::from("no verdict");
        count(&mut self.confidences, verdict.confidence.clone().unwrap_or_else(unsure));
        if let Some(client) = told.client() {
            count(&mut self.clients, client);
        }
        if let Some(server) = told.server() {
            count(&mut self.servers, server);
        }
        let service = told.destination.address();
        if self.services.len() < SERVICES || self.services.contains_key(&service) {
            *self.services.entry(service).or_default() += 1;
        }
        for (name, seconds) in told.limits() {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "saturates"
            )]
            let millis = (seconds * 1000.0).round() as u64;
            if self.limits.len() < VARIANTS && millis > 0 {
                *self.limits.entry((name, millis)).or_default() += 1;
            }
        }
        if let Some(keepalive) = verdict.keepalive {
            self.keepalive_known += 1;
            self.keepalive_off += u64::from(!keepalive.enabled);
        }
        for it in &verdict.ruled_out {
            self.add_ruled_out(it);
        }
        for it in &verdict.not_fixes {
            if self.not_fixes.len() < VARIANTS || self.not_fixes.contains_key(it) {
                *self.not_fixes.entry(it.clone()).or_default() += 1;
            }
        }
        if let Some(test) = &verdict.prove {
            count(&mut self.proves, test.clone());
        }
        self.add_fixes(&told);
        let better = sureness(&told) > sureness(&self.example);
        let earlier = told.wall_ns < self.example.wall_ns;
        if better || (earlier && sureness(&told) == sureness(&self.example)) {
            self.example = told;
        }
    }

    fn add_ruled_out(&mut self, it: &RuledOut) {
        if self.ruled_out.len() >= VARIANTS && !self.ruled_out.contains_key(&it.cause) {
            return;
        }
        let reasons = self.ruled_out.entry(it.cause.clone()).or_default();
        let words = it.because.as_str().replace(|c: char| c.is_ascii_digit(), "");
        let room = reasons.len() < VARIANTS;
        match reasons.get_mut(&words) {
            Some(reason) => {
                reason.count += 1;
                reason.numbers_differ |= reason.text != it.because;
                reason.text = it.because.clone();
            }
            None if room => {
                let text = it.because.clone();
                reasons.insert(words, Reason { text, count: 1, numbers_differ: false });
            }
            None => {}
        }
    }

    /// The same fix at the same place may come with several values, because each was computed from one
    /// connection's silence: the one of the longest covers the others.
    fn add_fixes(&mut self, told: &Told) {
        let idle_s = told.verdict.idle_s.unwrap_or_default();
        for (rank, fix) in told.verdict.fixes.iter().enumerate() {
            let key = (fix.id.clone(), fix.owner.clone(), fix.verify.clone(), fix.reason.clone());
            let room = self.fixes.len() < VARIANTS;
            match self.fixes.get_mut(&key) {
                Some(named) => {
                    named.count += 1;
                    named.rank = named.rank.min(rank);
                    if idle_s > named.idle_s {
                        (named.idle_s, named.fix) = (idle_s, fix.clone());
                    }
                }
                None if room => {
                    self.fixes.insert(key, Named { fix: fix.clone(), count: 1, rank, idle_s });
                }
                None => {}
            }
        }
    }
}
