//! The live source: events from the ring buffer and from host state, in time order.
//!
//! Records of several CPUs are sorted within a short window, here and not in the correlator, so that a
//! recorded stream has the order that the correlator received. The host state that the correlator wants
//! because of a record (`rsttrace_core::query`) follows that record in the stream.

use std::{
    collections::BTreeMap,
    os::fd::AsFd as _,
    task::Poll,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use aya::{
    Ebpf,
    maps::{Map, MapData, RingBuf},
};
use aya_log::EbpfLogger;
use rsttrace_core::{
    decode::decode,
    event::{Body, Event, Session, SignalCoverage},
    query::{Query, wanted},
};
use rsttrace_host::Host;
use rsttrace_model::flow::{Flow, Nanos};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::mpsc::UnboundedReceiver,
};
use tracer_common::wire::{COUNTER_LOST, COUNTER_UNREADABLE, KIND_LAST};

use super::{
    attach::{AttachOptions, Attached, StderrLog},
    choose::Refused,
    counters::MapCounters,
    filtered::{PlainEnds, RuleDrops, filtered},
    idle_sampler::IdleSampler,
    prepare::StartError,
    queries::Queries,
    running::RunningKernel,
    signal, skipped_runs,
    socket_ends::SocketEnds,
    start::{Started, start},
    watch::{Change, watch},
};
use crate::host_access;

pub use rsttrace_host::clock::{monotonic as now, wall};

/// The eBPF object of this build; empty when it was built without `cargo xtask build`.
pub(super) static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/tracer"));

/// Records of other CPUs are at most this late, because a program stamps, fills and submits a record in one
/// run.
const MERGE_WINDOW: Nanos = 20_000_000;

/// `CONFIG_HZ` of most distributions, used if the host's tick rate cannot be read from the clock's
/// resolution.
const DEFAULT_HZ: u32 = 250;

/// How often the numbers of skipped runs are read: soon enough to know of a skipped run before a case that
/// may lack its record is judged.
const READ_SKIPPED_RUNS_EVERY: Duration = Duration::from_millis(100);

/// One load of the object. Its programs stay attached until this value is dropped.
struct Part {
    ring: AsyncFd<RingBuf<MapData>>,
    counters: MapCounters,
    log: Option<EbpfLogger<StderrLog>>,
    ebpf: Ebpf,
    /// Runs of each program that the kernel skipped while the others were being attached.
    before: BTreeMap<String, u64>,
    drops: RuleDrops,
    /// With the time since which they are traced.
    plain_ends: Option<(Nanos, PlainEnds)>,
}

impl Part {
    fn new(attached: Attached) -> Result<(Self, Map, Vec<Refused>)> {
        let traces_ends =
            attached.coverage().any(|signal| signal.id == "conntrack_end" && signal.way.is_some());
        let Attached { ebpf, events, ends, counters, plain_ends, drops, refused, log, .. } =
            attached;
        // SAFETY: the ring buffer owns its descriptor and keeps it open until it is dropped.
        let ring = unsafe { AsyncFd::register_with_interest(events, Interest::READABLE) }
            .map_err(std::io::Error::from)
            .context("cannot wait for the ring buffer")?;
        let before =
            skipped_by_program(&ebpf).map(|(name, runs)| (name.to_owned(), runs)).collect();
        let plain_ends = traces_ends.then(|| (now(), plain_ends));
        Ok((Self { ring, counters, log, ebpf, before, drops, plain_ends }, ends, refused))
    }

    /// How often the kernel skipped each hook.
    fn skipped_runs(&self) -> BTreeMap<String, u64> {
        let before = |name| self.before.get(name).copied().unwrap_or(0);
        skipped_runs::by_hook(
            skipped_by_program(&self.ebpf)
                .map(|(name, runs)| (name, runs.saturating_sub(before(name)))),
        )
    }
}

/// Runs of each program that the kernel skipped since it was loaded.
fn skipped_by_program(ebpf: &Ebpf) -> impl Iterator<Item = (&str, u64)> {
    ebpf.programs().filter_map(|(name, it)| {
        Some((name, it.fd().ok().map(|fd| skipped_runs::runs(fd.as_fd()))?))
    })
}

/// The running tracer.
pub struct Live {
    /// The programs attached at the start, then those attached when modules were loaded.
    parts: Vec<Part>,
    skipped_runs: BTreeMap<String, u64>,
    skipped_runs_read: Option<Instant>,
    changes: UnboundedReceiver<Change>,
    kernel: RunningKernel,
    queries: Queries,
    idle_sampler: IdleSampler,
    pending: Vec<Event>,
    /// When the ring was last emptied.
    drained: Nanos,
    undecodable: u64,
    pub session: Session,
    pub refused: Vec<Refused>,
}

impl Live {
    /// Attaches every signal that this kernel supports.
    ///
    /// # Errors
    /// [`StartError`] when tracing cannot start at all.
    pub fn start(options: AttachOptions) -> Result<Self, StartError> {
        use StartError::Internal;
        let Started { attached, symbols, reasons } = start(OBJECT, &options)?;
        let coverage: Vec<_> = attached.coverage().chain(host_access::coverage()).collect();
        let changes = watch(OBJECT, &options, &coverage).map_err(Internal)?;
        let host = Host::new().context("cannot read network namespaces").map_err(Internal)?;
        let session = session(&host, coverage);
        let hz = u64::from(host.hz().unwrap_or(DEFAULT_HZ));
        let (part, ends, refused) = Part::new(attached).map_err(Internal)?;
        let ends = SocketEnds::new(ends, hz).map_err(Internal)?;
        give_back_memory();
        Ok(Self {
            parts: vec![part],
            skipped_runs: BTreeMap::new(),
            skipped_runs_read: None,
            changes,
            kernel: RunningKernel::new(hz, symbols, reasons),
            idle_sampler: IdleSampler::start(host.clone()).map_err(Internal)?,
            queries: Queries::start(host, Some(ends), now()).map_err(Internal)?,
            pending: Vec::new(),
            drained: now(),
            undecodable: 0,
            session,
            refused,
        })
    }

    /// The first event of the stream. It is sent again when the coverage has changed.
    pub fn session_event(&self) -> Event {
        Event {
            ts: now(),
            netns: self.session.initial_netns,
            body: Body::Session(Box::new(self.session.clone())),
        }
    }

    /// Waits until the ring has records or a query has been answered.
    ///
    /// # Errors
    /// When the ring buffer cannot be polled.
    pub async fn readable(&mut self) -> Result<()> {
        let Self { parts, queries, idle_sampler, pending, .. } = self;
        let records = std::future::poll_fn(|context| {
            for part in parts.iter() {
                if let Poll::Ready(guard) = part.ring.poll_read_ready(context) {
                    guard?.clear_ready();
                    return Poll::Ready(std::io::Result::Ok(()));
                }
            }
            Poll::Pending
        });
        tokio::select! {
            result = records => result?,
            events = queries.answered() => pending.extend(events),
            event = idle_sampler.next() => pending.push(event),
        }
        Ok(())
    }

    /// Applies changes caused by modules that were loaded or unloaded. Returns the signals whose coverage
    /// changed, or `None` without any change. The list is empty while hooks are still being attached.
    ///
    /// # Errors
    /// When a new ring buffer cannot be polled.
    pub fn take_changes(&mut self) -> Result<Option<Vec<SignalCoverage>>> {
        let mut changed = Vec::new();
        let mut attaching = false;
        while let Ok(change) = self.changes.try_recv() {
            match change {
                Change::Lost(id) => {
                    let blind = signal::ALL
                        .iter()
                        .find(|signal| signal.id == id)
                        .map(|signal| signal.unseen(signal::is_absent));
                    changed.push(SignalCoverage {
                        id: id.into(),
                        way: None,
                        blind,
                        attaching: false,
                    });
                }
                Change::Attaching(ids) => {
                    for known in &mut self.session.coverage {
                        known.attaching |= ids.contains(&known.id.as_str());
                    }
                    attaching = true;
                }
                Change::Attached(attached) => {
                    changed.extend(attached.coverage());
                    // Only the first part records the ends of sockets.
                    let (part, _, refused) = Part::new(*attached)?;
                    self.parts.push(part);
                    self.refused.extend(refused);
                }
            }
        }
        for new in &changed {
            for known in self.session.coverage.iter_mut().filter(|known| known.id == new.id) {
                known.clone_from(new);
            }
        }
        Ok((attaching || !changed.is_empty()).then_some(changed))
    }

    /// The time up to which cases may be judged: when the ring was last emptied, or earlier while queries are
    /// unanswered.
    pub fn settle_deadline(&self) -> Nanos {
        // Not the current time: records since the ring was last emptied have not been read.
        self.queries.answered_until(self.drained)
    }

    /// Empties the ring and returns, in order, the events older than the merge window.
    pub fn drain(&mut self) -> Vec<Event> {
        let mut fresh = Vec::new();
        self.drained = now();
        // Records are copied at once, because dropping the item frees its space in the ring.
        for part in &mut self.parts {
            if let Some(log) = &mut part.log {
                log.flush();
            }
            while let Some(item) = part.ring.get_mut().next() {
                fresh.push(item.to_vec());
            }
        }
        self.pending.extend(self.queries.answers());
        if !fresh.is_empty() {
            self.kernel.wait_for_symbols();
            let mut decoded: Vec<_> =
                fresh.iter().map(|bytes| decode(bytes, &self.kernel)).collect();
            if self.kernel.take_new_modules() {
                decoded = fresh.iter().map(|bytes| decode(bytes, &self.kernel)).collect();
            }
            for event in decoded {
                match event {
                    Ok(Some(event)) => self.accept(event),
                    // A record of a packet that is not TCP.
                    Ok(None) => {}
                    Err(_) => self.undecodable += 1,
                }
            }
        }
        self.release(self.drained.saturating_sub(MERGE_WINDOW))
    }

    /// Returns all remaining events, at the end.
    pub fn drain_remaining(&mut self) -> Vec<Event> {
        let mut events = self.drain();
        events.extend(self.release(Nanos::MAX));
        events
    }

    fn release(&mut self, until: Nanos) -> Vec<Event> {
        // A stable sort: host state has the time of its record and stays after it.
        self.pending.sort_by_key(|event| event.ts);
        let ready = self.pending.partition_point(|event| event.ts <= until);
        self.pending.drain(..ready).collect()
    }

    /// Queues a record's event and sends the queries that the correlator wants answered because of it.
    fn accept(&mut self, event: Event) {
        self.queries.note(&event);
        let mut answers = Vec::new();
        for query in wanted(&event) {
            match query {
                Query::IdlePeriods { netns, flow, idle } => {
                    self.idle_sampler.watch(netns, flow, idle);
                }
                Query::Filtered { flow } => answers.extend(self.filtered(event.ts, flow)),
                query => self.queries.send(event.ts, query),
            }
        }
        self.pending.push(event);
        self.pending.extend(answers);
    }

    /// What the kernel keeps of a flow that a rule may have stopped, if it keeps anything.
    fn filtered(&mut self, ts: Nanos, flow: Flow) -> Option<Event> {
        if !self.queries.may_search(ts, flow) {
            return None;
        }
        let ends = self.parts.iter().filter_map(|part| part.plain_ends.as_ref());
        let ends = ends.map(|(since, ends)| (*since, ends.of(flow, &self.kernel)));
        let drops = self.parts.iter().flat_map(|part| part.drops.of(flow)).collect();
        let found = filtered(flow, ends, drops);
        for drop in &found.drops {
            self.queries.send(ts, Query::FilterRules { netns: drop.netns });
        }
        let body = Body::FilteredFlow(Box::new(found));
        Some(Event { ts, netns: self.session.initial_netns, body })
    }

    /// Whether no event waits for the merge window and no query is open.
    pub fn is_idle(&self) -> bool {
        self.pending.is_empty() && self.queries.is_idle()
    }

    /// Records of all kinds that were lost because the ring or a map was full.
    pub fn lost(&self) -> u64 {
        (0..=u32::from(KIND_LAST)).map(|kind| self.counter(COUNTER_LOST + kind)).sum()
    }

    /// How often the kernel skipped each hook since the start, if that has changed since the last call.
    pub fn newly_skipped_runs(&mut self) -> Option<&BTreeMap<String, u64>> {
        if self.skipped_runs_read.is_some_and(|at| at.elapsed() < READ_SKIPPED_RUNS_EVERY) {
            return None;
        }
        self.skipped_runs_read = Some(Instant::now());
        let mut skipped = BTreeMap::new();
        for (hook, runs) in self.parts.iter().flat_map(Part::skipped_runs) {
            *skipped.entry(hook).or_insert(0) += runs;
        }
        if skipped == self.skipped_runs {
            return None;
        }
        self.skipped_runs = skipped;
        Some(&self.skipped_runs)
    }

    /// Number of kernel reads that failed, and of records that could not be decoded.
    pub fn unreadable(&self) -> u64 {
        self.counter(COUNTER_UNREADABLE) + self.undecodable
    }

    fn counter(&self, slot: u32) -> u64 {
        self.parts.iter().map(|part| part.counters.sum(slot)).sum()
    }
}

/// Resolving the kernel's types took some 15 MB in many allocations, which glibc does not return by itself.
fn give_back_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the call takes no pointer, and only returns memory that is already free.
    unsafe {
        libc::malloc_trim(0);
    }
}

fn session(host: &Host, coverage: Vec<SignalCoverage>) -> Session {
    use std::os::linux::fs::MetadataExt as _;
    let inode_of = |path| {
        let meta = std::fs::metadata(path).ok()?;
        u32::try_from(meta.st_ino()).ok()
    };
    // Without access to the namespace of pid 1, our own is used.
    let initial_netns =
        inode_of("/proc/1/ns/net").or_else(|| inode_of("/proc/self/ns/net")).unwrap_or(0);
    Session {
        boot_id: host.boot_id().unwrap_or_default(),
        hostname: host.hostname(),
        kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
        initial_netns,
        pid: std::process::id(),
        wall_offset_ns: wall().saturating_sub(i64::try_from(now()).unwrap_or(0)),
        coverage,
    }
}
