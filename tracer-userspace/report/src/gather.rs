//! Counts the events while they are read, and keeps one example of each cause instead of every event, so
//! that a stream of any length fits in memory.

use std::{
    collections::{BTreeMap, HashSet},
    net::SocketAddr,
};

use rsttrace_core::event::Session;

use super::{
    counters::Namespaces,
    parsed::{NotFix, ParsedFix, ParsedIncident, ParsedSummary, RuledOut},
    runs::Runs,
    text::Text,
    window::Window,
};

/// Different names, reasons or fixes that are kept for one cause; a longer list would not be read.
const VARIANTS: usize = 64;

/// Services that are counted separately.
const SERVICES: usize = 1024;

/// Connections that are listed individually.
pub const LISTED: usize = 500;

/// Event ids that are kept, so that an event that appears twice in the file counts once.
const IDS: usize = 1 << 20;

/// How often each text occurred.
pub type Tally = BTreeMap<Text, u64>;

fn count(tally: &mut Tally, key: Text) {
    if tally.len() < VARIANTS || tally.contains_key(&key) {
        *tally.entry(key).or_default() += 1;
    }
}

/// Which part of the file the report covers.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    pub window: Window,
    /// Ids of the selected causes; empty for all.
    pub causes: Vec<String>,
}

/// A fix, and the number of connections whose incident lists the fix.
pub struct FixCount {
    pub fix: ParsedFix,
    pub count: u64,
    /// Its best position in the list of fixes of any incident; 0 is first.
    pub rank: usize,
    /// The longest idle time that a value of the fix was computed from, in seconds.
    idle_s: f64,
}

/// Why a cause was ruled out. The text is that of the last connection.
pub struct Reason {
    pub text: Text,
    pub count: u64,
    /// Whether other connections had other numbers in the text.
    pub numbers_differ: bool,
}

/// The counts of one cause.
pub struct Group {
    pub family: Text,
    pub times: Vec<i64>,
    pub idle_s: Vec<f64>,
    pub confidences: Tally,
    pub clients: Tally,
    pub servers: Tally,
    pub services: BTreeMap<SocketAddr, u64>,
    /// From the name of a limit and its milliseconds to the number of connections that reached it.
    pub limits: BTreeMap<(Text, u64), u64>,
    /// Connections with SO_KEEPALIVE off, and connections whose setting is known.
    pub keepalive_off: u64,
    pub keepalive_known: u64,
    /// By cause, then by the reason without its digits.
    pub ruled_out: BTreeMap<Text, BTreeMap<String, Reason>>,
    pub not_fixes: BTreeMap<NotFix, u64>,
    pub proves: Tally,
    /// By the id, the owner, the verify commands (which differ by namespace) and the reason of a fix.
    pub fixes: BTreeMap<(Text, Text, Vec<Text>, Text), FixCount>,
    /// The earliest incident with the highest confidence.
    pub example: ParsedIncident,
}

/// The counts of one destination.
#[derive(Default)]
pub struct Service {
    pub backends: BTreeMap<SocketAddr, u64>,
    pub clients: Tally,
    pub servers: Tally,
    /// By minutes since the epoch, then by cause.
    pub minutes: BTreeMap<i64, Tally>,
}

/// One row in the list of broken connections.
pub struct ConnectionLine {
    pub wall_ns: i64,
    pub cause: Text,
    pub confidence: Option<Text>,
    pub source: SocketAddr,
    pub destination: SocketAddr,
    pub client: Option<Text>,
    pub idle_s: Option<f64>,
    pub event_id: Text,
}

/// Everything that is counted.
#[derive(Default)]
pub struct Gather {
    pub selection: Selection,
    pub hosts: Tally,
    pub kernels: Tally,
    /// Times of the oldest and the newest event of the file, in nanoseconds since the epoch.
    pub extent: Option<(i64, i64)>,
    pub groups: BTreeMap<Text, Group>,
    pub services: BTreeMap<SocketAddr, Service>,
    /// Connections to services beyond [`SERVICES`].
    pub other_services: u64,
    pub briefs: Vec<ConnectionLine>,
    pub runs: Runs,
    pub connections: u64,
    /// Errors at the other end of a connection that is already counted.
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

    /// Extends the time range of the file by an event's time.
    pub fn event_at(&mut self, wall_ns: i64) {
        self.selection.window.resolve(wall_ns);
        let (first, last) = self.extent.unwrap_or((wall_ns, wall_ns));
        self.extent = Some((first.min(wall_ns), last.max(wall_ns)));
    }

    /// Keeps the session record of a capture. The record is repeated when a module is loaded or unloaded;
    /// the newest one counts.
    pub fn session(&mut self, session: Session) {
        count(&mut self.hosts, Text::new(&session.hostname));
        count(&mut self.kernels, Text::new(&session.kernel));
        self.session = Some(session);
    }

    pub fn summary(&mut self, summary: ParsedSummary) {
        self.event_at(summary.wall_ns);
        count(&mut self.hosts, summary.host.clone());
        let before_window = self.selection.window.is_before(summary.wall_ns);
        if !self.selection.window.is_after(summary.wall_ns) {
            self.runs.summary(summary, before_window);
        }
    }

    fn selects(&self, incident: &ParsedIncident) -> bool {
        let causes = &self.selection.causes;
        self.selection.window.contains(incident.wall_ns)
            && (causes.is_empty() || causes.iter().any(|id| id == incident.cause.as_str()))
    }

    pub fn incident(&mut self, incident: ParsedIncident) {
        if self.ids.contains(&incident.event_id) {
            self.duplicates += 1;
            return;
        }
        self.event_at(incident.wall_ns);
        count(&mut self.hosts, incident.host.clone());
        let selected = self.selects(&incident);
        self.runs.incident(&incident, selected);
        let follows = incident.follows.as_ref();
        let is_known = follows.is_some_and(|first| self.ids.contains(first));
        if self.ids.len() < IDS {
            self.ids.insert(incident.event_id.clone());
            self.ids.extend(follows.cloned());
        }
        if !selected || incident.is_benign() {
            return;
        }
        if is_known {
            self.other_ends += 1;
            return;
        }
        self.shortened += u64::from(incident.truncated);
        self.connections += 1;
        self.namespaces.incident(&incident);
        for spot in &incident.blind_spots {
            count(&mut self.blind_spots, spot.clone());
        }
        self.add_to_service(&incident);
        if self.briefs.len() < LISTED {
            self.briefs.push(ConnectionLine::of(&incident));
        }
        let room = self.groups.len() < VARIANTS;
        match self.groups.get_mut(&incident.cause) {
            Some(group) => group.add(incident),
            None if room => {
                self.groups.insert(incident.cause.clone(), Group::new(incident));
            }
            None => {}
        }
    }

    fn add_to_service(&mut self, incident: &ParsedIncident) {
        let address = incident.destination;
        if self.services.len() >= SERVICES && !self.services.contains_key(&address) {
            self.other_services += 1;
            return;
        }
        let service = self.services.entry(address).or_default();
        if let Some(backend) = incident.backend
            && (service.backends.len() < VARIANTS || service.backends.contains_key(&backend))
        {
            *service.backends.entry(backend).or_default() += 1;
        }
        if let Some(client) = incident.client.clone() {
            count(&mut service.clients, client);
        }
        if let Some(server) = incident.server.clone() {
            count(&mut service.servers, server);
        }
        let minute = incident.wall_ns.div_euclid(60_000_000_000);
        count(service.minutes.entry(minute).or_default(), incident.cause.clone());
    }
}

impl ConnectionLine {
    fn of(incident: &ParsedIncident) -> Self {
        Self {
            wall_ns: incident.wall_ns,
            cause: incident.cause.clone(),
            confidence: incident.confidence.clone(),
            source: incident.source,
            destination: incident.destination,
            client: incident.client.clone(),
            idle_s: incident.idle_s,
            event_id: incident.event_id.clone(),
        }
    }
}

/// Ranks the confidence of a verdict; an unknown or missing one is lowest.
fn confidence_rank(incident: &ParsedIncident) -> u8 {
    match incident.confidence.as_ref().map(Text::as_str) {
        Some("observed") => 3,
        Some("correlated") => 2,
        Some("inferred") => 1,
        _ => 0,
    }
}

impl Group {
    fn new(incident: ParsedIncident) -> Self {
        let mut group = Self {
            family: incident.family.clone(),
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
            example: incident.clone(),
        };
        group.add(incident);
        group
    }

    fn add(&mut self, incident: ParsedIncident) {
        self.times.push(incident.wall_ns);
        self.idle_s.extend(incident.idle_s.filter(|idle| *idle >= 0.0));
        let missing = || Text::from("no verdict");
        count(&mut self.confidences, incident.confidence.clone().unwrap_or_else(missing));
        if let Some(client) = incident.client.clone() {
            count(&mut self.clients, client);
        }
        if let Some(server) = incident.server.clone() {
            count(&mut self.servers, server);
        }
        let service = incident.destination;
        if self.services.len() < SERVICES || self.services.contains_key(&service) {
            *self.services.entry(service).or_default() += 1;
        }
        for (name, seconds) in incident.limits.clone() {
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
        if let Some(keepalive) = incident.keepalive {
            self.keepalive_known += 1;
            self.keepalive_off += u64::from(!keepalive);
        }
        for it in &incident.ruled_out {
            self.add_ruled_out(it);
        }
        for it in &incident.not_fixes {
            if self.not_fixes.len() < VARIANTS || self.not_fixes.contains_key(it) {
                *self.not_fixes.entry(it.clone()).or_default() += 1;
            }
        }
        if let Some(test) = &incident.prove {
            count(&mut self.proves, test.clone());
        }
        self.add_fixes(&incident);
        let better = confidence_rank(&incident) > confidence_rank(&self.example);
        let earlier = incident.wall_ns < self.example.wall_ns;
        if better || (earlier && confidence_rank(&incident) == confidence_rank(&self.example)) {
            self.example = incident;
        }
    }

    fn add_ruled_out(&mut self, it: &RuledOut) {
        if self.ruled_out.len() >= VARIANTS && !self.ruled_out.contains_key(&it.cause) {
            return;
        }
        let reasons = self.ruled_out.entry(it.cause.clone()).or_default();
        let without_digits = it.because.as_str().replace(|c: char| c.is_ascii_digit(), "");
        let room = reasons.len() < VARIANTS;
        match reasons.get_mut(&without_digits) {
            Some(reason) => {
                reason.count += 1;
                reason.numbers_differ |= reason.text != it.because;
                reason.text = it.because.clone();
            }
            None if room => {
                let text = it.because.clone();
                reasons.insert(without_digits, Reason { text, count: 1, numbers_differ: false });
            }
            None => {}
        }
    }

    /// Each value of a fix was computed from the idle time of one connection, so the same fix in the same
    /// namespace may come with several values. The value for the longest idle time covers the others.
    fn add_fixes(&mut self, incident: &ParsedIncident) {
        let idle_s = incident.idle_s.unwrap_or_default();
        for (rank, fix) in incident.fixes.iter().enumerate() {
            let key = (fix.id.clone(), fix.owner.clone(), fix.verify.clone(), fix.reason.clone());
            let room = self.fixes.len() < VARIANTS;
            match self.fixes.get_mut(&key) {
                Some(known) => {
                    known.count += 1;
                    known.rank = known.rank.min(rank);
                    if idle_s > known.idle_s {
                        (known.idle_s, known.fix) = (idle_s, fix.clone());
                    }
                }
                None if room => {
                    let fix = fix.clone();
                    self.fixes.insert(key, FixCount { fix, count: 1, rank, idle_s });
                }
                None => {}
            }
        }
    }
}
