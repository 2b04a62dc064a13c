//! The live source: ring buffer and host state to events, in time order.
//!
//! Records of several CPUs are put in order within a short window, here and not in the correlator, so
//! that a recorded stream has the order in which it was judged. Host state is read when a record asks
//! for it and follows that record in the stream.

use std::{
    collections::BTreeMap,
    os::fd::AsFd as _,
    task::Poll,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use aya::{
    Ebpf,
    maps::{MapData, RingBuf},
};
use aya_log::EbpfLogger;
use rsttrace_core::{
    correlator::closer,
    decode::decode,
    event::{Body, Event, Session, SignalCoverage, Socket},
};
use rsttrace_host::{Host, OwnedSocket};
use rsttrace_model::{errno::ETIMEDOUT, flow::Nanos, tcp_flag, tcp_state};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::mpsc::UnboundedReceiver,
};
use tracer_common::wire::{COUNTER_LOST, COUNTER_UNREADABLE, KIND_LAST};

use super::{
    attach::{AttachOptions, Attached, StderrLog},
    choose::Refused,
    counters::Counters,
    missed,
    prepare::StartError,
    questions::Questions,
    running::RunningKernel,
    sight, signal,
    start::{Started, start},
    survivors::Survivors,
    watch::{Change, watch},
};

pub use rsttrace_host::clock::{monotonic as now, wall};

/// The eBPF object of this build; empty when it was built without `cargo xtask build`.
pub(super) static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/tracer"));

/// Records of other CPUs are at most this late: a record is stamped, filled and committed in one go.
const MERGE_WINDOW: Nanos = 20_000_000;

/// State of a namespace in which something broke is read anew after this long.
const FRESH: Duration = Duration::from_millis(500);

/// Of a refused connect only the port range matters, and that hardly ever changes.
const STALE: Duration = Duration::from_secs(30);

/// `CONFIG_HZ` of most distributions, where the clock's resolution does not tell.
const DEFAULT_HZ: u32 = 250;

/// How often the kernel is asked what it left out: before a case that missed something is judged.
const MISSED_EVERY: Duration = Duration::from_millis(100);

/// One load of the object: its programs stay attached as long as this lives.
struct Part {
    ring: AsyncFd<RingBuf<MapData>>,
    counters: Counters,
    log: Option<EbpfLogger<StderrLog>>,
    ebpf: Ebpf,
    /// Runs that each program was left out of while the others were being attached.
    before: BTreeMap<String, u64>,
}

impl Part {
    fn new(attached: Attached) -> Result<(Self, Vec<Refused>)> {
        let Attached { ebpf, events, counters, refused, log, .. } = attached;
        // SAFETY: the ring buffer owns its descriptor and keeps it open until it is dropped.
        let ring = unsafe { AsyncFd::register_with_interest(events, Interest::READABLE) }
            .map_err(std::io::Error::from)
            .context("cannot wait for the ring buffer")?;
        let before = left_out(&ebpf).map(|(name, runs)| (name.to_owned(), runs)).collect();
        Ok((Self { ring, counters, log, ebpf, before }, refused))
    }

    /// How often the kernel left out each hook.
    fn missed(&self) -> BTreeMap<String, u64> {
        let before = |name| self.before.get(name).copied().unwrap_or(0);
        missed::by_hook(
            left_out(&self.ebpf).map(|(name, runs)| (name, runs.saturating_sub(before(name)))),
        )
    }
}

/// Runs that each program was left out of since it was loaded.
fn left_out(ebpf: &Ebpf) -> impl Iterator<Item = (&str, u64)> {
    ebpf.programs()
        .filter_map(|(name, it)| Some((name, it.fd().ok().map(|fd| missed::runs(fd.as_fd()))?)))
}

/// The running tracer.
pub struct Live {
    /// What was attached at the start, then what modules brought later.
    parts: Vec<Part>,
    missed: BTreeMap<String, u64>,
    missed_at: Option<Instant>,
    changes: UnboundedReceiver<Change>,
    kernel: RunningKernel,
    questions: Questions,
    survivors: Survivors,
    pending: Vec<Event>,
    /// When the ring was last emptied.
    drained: Nanos,
    undecodable: u64,
    pub session: Session,
    pub refused: Vec<Refused>,
}

impl Live {
    /// Attaches everything this kernel can give.
    ///
    /// # Errors
    /// [`StartError`] when tracing cannot start at all.
    pub fn start(options: AttachOptions) -> Result<Self, StartError> {
        use StartError::Internal;
        let Started { attached, symbols, reasons } = start(OBJECT, &options)?;
        let coverage: Vec<_> = attached.coverage().chain(sight::coverage()).collect();
        let changes = watch(OBJECT, &options, &coverage).map_err(Internal)?;
        let host = Host::new().context("cannot read network namespaces").map_err(Internal)?;
        let session = session(&host, coverage);
        let hz = u64::from(host.hz().unwrap_or(DEFAULT_HZ));
        let (part, refused) = Part::new(attached).map_err(Internal)?;
        give_back_memory();
        Ok(Self {
            parts: vec![part],
            missed: BTreeMap::new(),
            missed_at: None,
            changes,
            kernel: RunningKernel::new(hz, symbols, reasons),
            survivors: Survivors::start(host.clone()).map_err(Internal)?,
            questions: Questions::ask(host, now()).map_err(Internal)?,
            pending: Vec::new(),
            drained: now(),
            undecodable: 0,
            session,
            refused,
        })
    }

    /// The first event of the stream, and again when the coverage has changed.
    pub fn opening(&self) -> Event {
        Event {
            ts: now(),
            netns: self.session.initial_netns,
            body: Body::Session(Box::new(self.session.clone())),
        }
    }

    /// Waits until the ring has records or the host has answered.
    ///
    /// # Errors
    /// When the ring buffer cannot be polled.
    pub async fn readable(&mut self) -> Result<()> {
        let Self { parts, questions, survivors, pending, .. } = self;
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
            events = questions.answered() => pending.extend(events),
            event = survivors.next() => pending.push(event),
        }
        Ok(())
    }

    /// Takes in what modules brought or took away: the signals that changed, or `None` when nothing
    /// did. The list is empty while hooks are on their way.
    ///
    /// # Errors
    /// When a new ring buffer cannot be polled.
    pub fn take_changes(&mut self) -> Result<Option<Vec<SignalCoverage>>> {
        let mut changed = Vec::new();
        let mut coming = false;
        while let Ok(change) = self.changes.try_recv() {
            match change {
                Change::Gone(id) => {
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
                Change::Coming(ids) => {
                    for known in &mut self.session.coverage {
                        known.attaching |= ids.contains(&known.id.as_str());
                    }
                    coming = true;
                }
                Change::Attached(attached) => {
                    changed.extend(attached.coverage());
                    let (part, refused) = Part::new(*attached)?;
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
        Ok((coming || !changed.is_empty()).then_some(changed))
    }

    /// The time up to which cases may be judged: when the ring was last emptied, unless the host still
    /// owes answers.
    pub fn judging_time(&self) -> Nanos {
        // Not the clock: what happened since the ring was last emptied has not been looked at.
        self.questions.answered_until(self.drained)
    }

    /// Takes everything out of the ring and returns, in order, the events older than the merge window.
    pub fn drain(&mut self) -> Vec<Event> {
        let mut fresh = Vec::new();
        self.drained = now();
        // Records are copied out at once: the kernel's space is free again when the item drops.
        for part in &mut self.parts {
            if let Some(log) = &mut part.log {
                log.flush();
            }
            while let Some(item) = part.ring.get_mut().next() {
                fresh.push(item.to_vec());
            }
        }
        self.pending.extend(self.questions.answers());
        if !fresh.is_empty() {
            self.kernel.wait_for_symbols();
            let mut decoded: Vec<_> =
                fresh.iter().map(|bytes| decode(bytes, &self.kernel)).collect();
            if self.kernel.take_new_modules() {
                decoded = fresh.iter().map(|bytes| decode(bytes, &self.kernel)).collect();
            }
            for event in decoded {
                match event {
                    // Of a kind that is known, but of a packet that is not TCP's.
                    Ok(Event { body: Body::Unknown { kind, .. }, .. }) if kind <= KIND_LAST => {}
                    Ok(event) => self.accept(event),
                    Err(_) => self.undecodable += 1,
                }
            }
        }
        self.release(self.drained.saturating_sub(MERGE_WINDOW))
    }

    /// Everything that is left, at the end.
    pub fn rest(&mut self) -> Vec<Event> {
        let mut events = self.drain();
        events.extend(self.release(Nanos::MAX));
        events
    }

    fn release(&mut self, until: Nanos) -> Vec<Event> {
        // Stable: host state has its record's time and stays behind it.
        self.pending.sort_by_key(|event| event.ts);
        let ready = self.pending.partition_point(|event| event.ts <= until);
        self.pending.drain(..ready).collect()
    }

    /// Queues a record's event and the host state that belongs to it.
    fn accept(&mut self, event: Event) {
        let (ts, netns) = (event.ts, event.netns);
        let (socket, max_age) = match &event.body {
            Body::ResetSent(it) => {
                let syn = it.trigger.is_some_and(|trigger| trigger.has(tcp_flag::SYN));
                let closer = closer(it, ts).filter(|_| !syn);
                if let Some((_, task)) = closer {
                    self.questions.process(ts, task.pid);
                }
                // What was closed has left its process already.
                let held = it.trigger.is_none() && closer.is_none();
                (it.socket.as_ref().filter(|_| held), if syn { STALE } else { FRESH })
            }
            // Nobody asks who was refused, and a scan is refused a thousand times a second.
            Body::ResetReceived(it) => (Some(&it.socket).filter(|it| is_asked(it)), FRESH),
            Body::SocketError(it) => (Some(&it.socket).filter(|it| is_asked(it)), FRESH),
            Body::NetfilterDrop(_)
            | Body::IpvsEnd(_)
            | Body::IpvsServerRemoved(_)
            | Body::ConntrackEnd(_) => (None, FRESH),
            _ => (None, STALE),
        };
        match &event.body {
            Body::ResetSent(it) if it.met_no_connection() => {
                if let Some(packet) = it.trigger {
                    self.questions.inquiry(ts, netns, packet.flow);
                }
            }
            Body::SocketError(it) if it.socket.err == ETIMEDOUT => {
                self.questions.ipvs_orphan(ts, it.socket.flow);
                if it.socket.rcv_nxt == 0 {
                    self.questions.ipvs_service(ts, it.socket.flow.dst);
                }
            }
            Body::NetfilterDrop(it) if it.no_destination => {
                self.questions.ipvs_dropped(ts, netns, it.packet.flow);
            }
            Body::IpvsEnd(_) => self.questions.ipvs_in(netns, None),
            Body::IpvsServerRemoved(_) => self.questions.ipvs_in(netns, Some(ts)),
            _ => {}
        }
        if let Body::SocketError(it) = &event.body
            && it.socket.was_never_answered()
        {
            self.questions.accept_queue(ts, netns, it.socket.flow.dst);
        }
        if let Some(socket) = socket.filter(|socket| socket.inode != 0) {
            let Socket { inode, flow, ref opener, .. } = *socket;
            let opener = opener.clone();
            self.questions.owner(ts, OwnedSocket { inode, netns, flow, opener });
        }
        if let Body::ResetReceived(it) = &event.body
            && let Some(last) = it.socket.last_received
        {
            self.survivors.watch(netns, it.socket.flow, ts.saturating_sub(last));
        }
        self.pending.push(event);
        if netns != 0 {
            self.questions.netns(ts, netns, max_age);
        }
    }

    /// Nothing waits for the merge window or the host.
    pub fn is_idle(&self) -> bool {
        self.pending.is_empty() && self.questions.is_idle()
    }

    /// Records lost because the ring was full, all kinds.
    pub fn lost(&self) -> u64 {
        (0..=u32::from(KIND_LAST)).map(|kind| self.counter(COUNTER_LOST + kind)).sum()
    }

    /// How often each hook was left out since the start, when that is more than at the last call.
    pub fn missed_more(&mut self) -> Option<&BTreeMap<String, u64>> {
        if self.missed_at.is_some_and(|at| at.elapsed() < MISSED_EVERY) {
            return None;
        }
        self.missed_at = Some(Instant::now());
        let mut missed = BTreeMap::new();
        for (hook, runs) in self.parts.iter().flat_map(Part::missed) {
            *missed.entry(hook).or_insert(0) += runs;
        }
        if missed == self.missed {
            return None;
        }
        self.missed = missed;
        Some(&self.missed)
    }

    /// Kernel reads that failed, and records that could not be decoded.
    pub fn unreadable(&self) -> u64 {
        self.counter(COUNTER_UNREADABLE) + self.undecodable
    }

    fn counter(&self, slot: u32) -> u64 {
        self.parts.iter().map(|part| part.counters.sum(slot)).sum()
    }
}

/// Whether the owner matters: not of a socket that was still connecting.
fn is_asked(socket: &Socket) -> bool {
    socket.state != tcp_state::SYN_SENT || socket.err == ETIMEDOUT
}

/// The kernel's types took some 15 MB to resolve, scattered over the heap: glibc keeps that unless asked.
fn give_back_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes no pointer, and only frees what is free.
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
    // A container does not show pid 1's: then ours is where a person stands.
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
