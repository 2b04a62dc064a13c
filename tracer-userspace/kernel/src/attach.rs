//! Loads the eBPF object with aya and the facts of this kernel, and attaches for each signal the first way
//! that this kernel accepts.

use std::{
    io::{ErrorKind, Write as _},
    os::fd::AsFd as _,
    path::Path,
};

use anyhow::{Context as _, Result};
use aya::{
    Btf, Ebpf, EbpfLoader,
    maps::{Map, MapData, RingBuf},
    programs::{FEntry, KProbe, RawTracePoint, loaded_programs},
    util::nr_cpus,
};
use aya_log::EbpfLogger;
use rsttrace_core::event::SignalCoverage;

use super::{
    choose::{AttachPlanner, Choice, Hooks, Refused},
    counters::{self, MapCounters},
    facts::Facts,
    filtered::{self, PlainEnds, RuleDrops},
    manifest::{AttachKind, Manifest, Program},
    signal,
};

/// Size of the ring buffer of hooks that are attached after the start.
const LATER_RING_BYTES: u32 = 256 << 10;

/// The attached tracer. Everything is detached when it is dropped; nothing is pinned.
pub struct Attached {
    /// Keeps the programs and links alive.
    pub(super) ebpf: Ebpf,
    pub events: RingBuf<MapData>,
    /// The map of ended sockets.
    pub(super) ends: Map,
    pub(super) counters: MapCounters,
    pub(super) plain_ends: PlainEnds,
    pub(super) drops: RuleDrops,
    pub choices: Vec<Choice>,
    pub refused: Vec<Refused>,
    /// Log messages of the programs; `None` unless [`AttachOptions::verbose`].
    pub(super) log: Option<EbpfLogger<StderrLog>>,
}

impl Attached {
    /// What was decided, as events carry it.
    pub fn coverage(&self) -> impl Iterator<Item = SignalCoverage> {
        self.choices.iter().map(|choice| choice.coverage(signal::is_absent))
    }
}

/// Prints the programs' log messages on standard error.
pub struct StderrLog;

impl log::Log for StderrLog {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }
    fn log(&self, record: &log::Record<'_>) {
        // Standard error may be closed.
        let _ = writeln!(std::io::stderr(), "rsttrace: kernel: {}", record.args());
    }
    fn flush(&self) {}
}

/// Whether kprobes are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kprobes {
    Use,
    /// Disabled with `--no-kprobes`.
    Disabled,
    /// This kernel has none.
    Missing,
}

impl Kprobes {
    /// Whether kprobes are used on this kernel; `disabled` is `--no-kprobes`.
    pub fn here(disabled: bool) -> Self {
        // aya attaches kprobes through perf, so without this directory every attempt would fail.
        if !Path::new("/sys/bus/event_source/devices/kprobe").exists() {
            Self::Missing
        } else if disabled {
            Self::Disabled
        } else {
            Self::Use
        }
    }

    /// # Errors
    /// Why a kprobe cannot be attached, whatever its function.
    pub(super) fn allowed(self) -> Result<()> {
        match self {
            Self::Use => Ok(()),
            Self::Disabled => anyhow::bail!("kprobes are disabled (--no-kprobes)"),
            Self::Missing => anyhow::bail!("this kernel has no kprobes"),
        }
    }
}

/// What to attach.
#[derive(Clone, Debug)]
pub struct AttachOptions {
    pub kprobes: Kprobes,
    /// Whether the programs log their errors (aya-log, on error paths only).
    pub verbose: bool,
    /// Whether to keep the process that opened each connection, at the cost of one map update and one
    /// removal each.
    pub keep_openers: bool,
    /// Attach only these signals, because the others are attached already; `None` for all.
    pub only: Option<Vec<&'static str>>,
}

/// Loads `object` and attaches every requested signal that this kernel supports.
///
/// # Errors
/// When the kernel refuses the object or its maps. A refused program is not an error: its signal falls back
/// to the next way, or is reported as not covered.
pub fn attach(
    object: &[u8],
    manifest: &Manifest,
    facts: &Facts,
    options: &AttachOptions,
) -> Result<Attached> {
    raise_memlock();
    let values: Vec<(&str, Vec<u8>)> =
        facts.iter().map(|(symbol, value)| (symbol, value.to_bytes())).collect();
    let mut loader = EbpfLoader::new();
    for (symbol, bytes) in &values {
        loader.override_global(symbol, bytes.as_slice(), true);
    }
    // A level of 0 is a frozen constant: the verifier prunes every log call.
    let log_level = if options.verbose { u8::MAX } else { 0 };
    loader.override_global(aya_log::LEVEL, &log_level, true);
    let keep_openers = u32::from(options.keep_openers && options.only.is_none());
    loader.override_global("KEEP_OPENERS", &keep_openers, true);
    if keep_openers == 0 {
        loader.map_max_entries("OPENERS", 1);
    }
    if options.only.is_some() {
        // A later part sees few records and no connection ends of its own.
        loader
            .map_max_entries("EVENTS", LATER_RING_BYTES)
            .map_max_entries("SOCKET_ENDS", 1)
            .map_max_entries("RULE_DROPS", 1);
    }
    let rows = nr_cpus().map_err(|(_, error)| error).context("cannot count the CPUs")?;
    loader.map_max_entries("COUNTERS", counters::entries(rows));
    let keeps_ends = options.only.as_ref().is_none_or(|only| only.contains(&"conntrack_end"));
    let per_cpu = if keeps_ends { filtered::slots_per_cpu(rows) } else { 1 };
    loader.override_global("PLAIN_ENDS_PER_CPU", &per_cpu, true);
    let slots = u32::try_from(rows).unwrap_or(u32::MAX).saturating_mul(per_cpu);
    loader.map_max_entries("PLAIN_ENDS", slots);
    let mut ebpf = loader.load(object).context("the kernel refused the tracer's maps or BTF")?;
    let events = ebpf.take_map("EVENTS").context("the eBPF object has no EVENTS map")?;
    let Some(Map::Array(counters)) = ebpf.take_map("COUNTERS") else {
        anyhow::bail!("the eBPF object has no COUNTERS map");
    };
    let ends = ebpf.take_map("SOCKET_ENDS").context("the eBPF object has no SOCKET_ENDS map")?;
    let Some(Map::Array(plain_ends)) = ebpf.take_map("PLAIN_ENDS") else {
        anyhow::bail!("the eBPF object has no PLAIN_ENDS map");
    };
    let drops = ebpf.take_map("RULE_DROPS").context("the eBPF object has no RULE_DROPS map")?;
    let log = match options.verbose {
        true => Some(EbpfLogger::init_with_logger(&mut ebpf, StderrLog)?),
        false => None,
    };
    let attacher = Attacher { ebpf, kprobes: options.kprobes, btf: None };
    let mut planner = AttachPlanner::new(
        attacher,
        manifest,
        facts,
        options.kprobes == Kprobes::Use,
        signal::is_absent,
    );
    let choices = signal::ALL
        .iter()
        .filter(|signal| options.only.as_ref().is_none_or(|only| only.contains(&signal.id)))
        .map(|signal| planner.signal(signal))
        .collect();
    Ok(Attached {
        events: RingBuf::try_from(events)?,
        ends,
        // Loading a program needs the map's file descriptor, so it is closed only after this.
        counters: MapCounters::map(counters.fd().as_fd(), rows)
            .context("cannot map the COUNTERS map into memory")?,
        plain_ends: PlainEnds::map(plain_ends.fd().as_fd(), rows, per_cpu)
            .context("cannot map the PLAIN_ENDS map into memory")?,
        drops: RuleDrops::new(drops)?,
        choices,
        refused: planner.refused,
        log,
        ebpf: planner.hooks.ebpf,
    })
}

/// Before 5.11 maps count against RLIMIT_MEMLOCK; later kernels ignore it.
fn raise_memlock() {
    use rustix::process::{Resource, Rlimit, setrlimit};
    // A failure is harmless: a map that does not fit the limit then fails with an error of its own.
    let _ = setrlimit(Resource::Memlock, Rlimit { current: None, maximum: None });
}

struct Attacher {
    ebpf: Ebpf,
    kprobes: Kprobes,
    /// Parsed when the first fentry program needs it, because parsing takes a while.
    btf: Option<Btf>,
}

impl Hooks for Attacher {
    fn attach(&mut self, program: &Program) -> Result<()> {
        if program.way.is_kprobe() {
            self.kprobes.allowed()?;
        }
        let loaded = self
            .ebpf
            .program_mut(&program.name)
            .context("the eBPF object does not contain this program")?;
        match program.way {
            AttachKind::RawTracepoint => {
                let raw: &mut RawTracePoint = loaded.try_into()?;
                raw.load()?;
                raw.attach(&program.target)?;
            }
            AttachKind::Fentry => {
                let btf = match &self.btf {
                    Some(btf) => btf,
                    None => self.btf.insert(Btf::from_sys_fs()?),
                };
                let fentry: &mut FEntry = loaded.try_into()?;
                fentry.load(&program.target, btf)?;
                fentry.attach()?;
            }
            AttachKind::KprobePart0 | AttachKind::Kprobe | AttachKind::Kretprobe => {
                let kprobe: &mut KProbe = loaded.try_into()?;
                kprobe.load()?;
                kprobe.attach(&program.target, 0).map_err(|error| {
                    let error = anyhow::Error::new(error);
                    match io_kind(&error) {
                        Some(ErrorKind::NotFound) => no_function(&program.target),
                        _ => error,
                    }
                })?;
            }
        }
        Ok(())
    }
}

/// The kind of the kernel's error below aya's errors, if there is one.
pub fn io_kind(error: &anyhow::Error) -> Option<ErrorKind> {
    error.chain().find_map(|cause| cause.downcast_ref::<std::io::Error>()).map(std::io::Error::kind)
}

/// What `ENOENT` means for a kprobe.
pub(super) fn no_function(name: &str) -> anyhow::Error {
    anyhow::anyhow!("this kernel has no function {name}")
}

/// Names of the BPF programs that are loaded on this host; empty without permission to list them.
pub fn loaded_program_names() -> Vec<String> {
    loaded_programs()
        .map_while(Result::ok)
        .filter_map(|program| program.name_as_str().map(str::to_owned))
        .collect()
}
