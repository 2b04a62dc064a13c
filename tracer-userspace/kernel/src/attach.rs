//! Carries out the plan with aya: loads the object with the facts of this kernel and attaches, for each
//! signal, the first way that this kernel takes.

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
    choose::{Choice, Chooser, Hooks, Refused},
    counters::{self, MapCounters},
    manifest::{Manifest, Program, Way as ProgramWay},
    plan::Facts,
    signal,
};

/// The ring of hooks that were attached after the start.
const LATER_RING_BYTES: u32 = 256 << 10;

/// The attached tracer. Everything is detached when it is dropped; nothing is pinned.
pub struct Attached {
    /// Holds programs and links alive.
    pub(super) ebpf: Ebpf,
    pub events: RingBuf<MapData>,
    pub(super) counters: MapCounters,
    pub choices: Vec<Choice>,
    pub refused: Vec<Refused>,
    /// What the programs say; `None` unless asked for.
    pub(super) log: Option<EbpfLogger<StderrLog>>,
}

impl Attached {
    /// What was decided, as events carry it.
    pub fn coverage(&self) -> impl Iterator<Item = SignalCoverage> {
        self.choices.iter().map(|choice| choice.coverage(signal::is_absent))
    }
}

/// Puts the programs' messages on standard error.
pub struct StderrLog;

impl log::Log for StderrLog {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }
    fn log(&self, record: &log::Record<'_>) {
        // Nobody may be reading.
        let _ = writeln!(std::io::stderr(), "rsttrace: kernel: {}", record.args());
    }
    fn flush(&self) {}
}

/// Whether kprobes are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kprobes {
    Use,
    /// The user asked for it.
    SwitchedOff,
    /// This kernel has none.
    Missing,
}

impl Kprobes {
    /// What holds here.
    pub fn here(switched_off: bool) -> Self {
        // Without kprobes through perf every attach would fail.
        if !Path::new("/sys/bus/event_source/devices/kprobe").exists() {
            Self::Missing
        } else if switched_off {
            Self::SwitchedOff
        } else {
            Self::Use
        }
    }

    /// # Errors
    /// Why a kprobe cannot be attached, whatever its function.
    pub(super) fn allowed(self) -> Result<()> {
        match self {
            Self::Use => Ok(()),
            Self::SwitchedOff => anyhow::bail!("kprobes are switched off (--no-kprobes)"),
            Self::Missing => anyhow::bail!("this kernel has no kprobes"),
        }
    }
}

/// What to attach.
#[derive(Clone, Debug)]
pub struct AttachOptions {
    pub kprobes: Kprobes,
    /// Let the programs log what goes wrong in them (aya-log, on error paths only).
    pub verbose: bool,
    /// Remember the process of each connection made, at a price for each.
    pub keep_openers: bool,
    /// Only these signals, because the others are attached already; `None` for all.
    pub only: Option<Vec<&'static str>>,
}

/// Loads `object` and attaches every signal asked for that this kernel can give.
///
/// # Errors
/// When the kernel refuses the object or its maps. A refused program is no error: its signal falls
/// back to the next way, or is reported as not covered.
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
        loader.map_max_entries("EVENTS", LATER_RING_BYTES).map_max_entries("SOCKET_ENDS", 1);
    }
    let rows = nr_cpus().map_err(|(_, error)| error).context("cannot count the processors")?;
    loader.map_max_entries("COUNTERS", counters::entries(rows));
    let mut ebpf = loader.load(object).context("the kernel refused the tracer's maps or BTF")?;
    let events = ebpf.take_map("EVENTS").context("the object has no EVENTS map")?;
    let Some(Map::Array(counters)) = ebpf.take_map("COUNTERS") else {
        anyhow::bail!("the object has no COUNTERS map");
    };
    let log = match options.verbose {
        true => Some(EbpfLogger::init_with_logger(&mut ebpf, StderrLog)?),
        false => None,
    };
    let attacher = Attacher { ebpf, kprobes: options.kprobes, btf: None };
    let mut chooser = Chooser::new(attacher, manifest, facts, options.kprobes == Kprobes::Use);
    let choices = signal::ALL
        .iter()
        .filter(|signal| options.only.as_ref().is_none_or(|only| only.contains(&signal.id)))
        .map(|signal| chooser.signal(signal))
        .collect();
    Ok(Attached {
        events: RingBuf::try_from(events)?,
        // Programs that are loaded name a map by its descriptor, so it was open up to here.
        counters: MapCounters::map(counters.fd().as_fd(), rows)
            .context("cannot map the counters")?,
        choices,
        refused: chooser.refused,
        log,
        ebpf: chooser.hooks.ebpf,
    })
}

/// Before 5.11 maps count against RLIMIT_MEMLOCK; later kernels ignore it.
fn raise_memlock() {
    use rustix::process::{Resource, Rlimit, setrlimit};
    // Not being allowed is fine: the map creation that needs it will say so.
    let _ = setrlimit(Resource::Memlock, Rlimit { current: None, maximum: None });
}

struct Attacher {
    ebpf: Ebpf,
    kprobes: Kprobes,
    /// Only fentry needs it, and parsing it takes a while.
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
            .context("the object does not hold this program")?;
        match program.way {
            ProgramWay::RawTracepoint => {
                let raw: &mut RawTracePoint = loaded.try_into()?;
                raw.load()?;
                raw.attach(&program.target)?;
            }
            ProgramWay::Fentry => {
                let btf = match &self.btf {
                    Some(btf) => btf,
                    None => self.btf.insert(Btf::from_sys_fs()?),
                };
                let fentry: &mut FEntry = loaded.try_into()?;
                fentry.load(&program.target, btf)?;
                fentry.attach()?;
            }
            ProgramWay::KprobePart0 | ProgramWay::Kprobe | ProgramWay::Kretprobe => {
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

/// The kernel's own word, below aya's.
pub fn io_kind(error: &anyhow::Error) -> Option<ErrorKind> {
    error.chain().find_map(|cause| cause.downcast_ref::<std::io::Error>()).map(std::io::Error::kind)
}

/// As the kernel means `ENOENT` for a kprobe.
pub(super) fn no_function(name: &str) -> anyhow::Error {
    anyhow::anyhow!("this kernel has no function {name}")
}

/// Names of the BPF programs that are loaded on this host; none where we may not know.
pub fn loaded_program_names() -> Vec<String> {
    loaded_programs()
        .map_while(Result::ok)
        .filter_map(|program| program.name_as_str().map(str::to_owned))
        .collect()
}
