//! Carries out the plan with aya: loads the object with the facts of this kernel and attaches, for each
//! signal, the first way that this kernel takes.

use std::{collections::BTreeMap, fmt::Write as _};

use anyhow::{Context as _, Result};
use aya::{
    Btf, Ebpf, EbpfLoader,
    maps::{MapData, PerCpuArray, RingBuf},
    programs::{FEntry, KProbe, RawTracePoint},
};
use aya_log::EbpfLogger;

use super::{
    manifest::{Manifest, Program, Way as ProgramWay},
    plan::Facts,
    signal::{self, Signal, Way},
};
use crate::event::SignalCoverage;

/// The ring of hooks that were attached after the start.
const LATER_RING_BYTES: u32 = 256 << 10;

/// A hook that could not be attached by one of its programs.
#[derive(Clone, Debug)]
pub struct Refused {
    pub program: String,
    pub why: String,
}

/// The attached tracer. Everything is detached when it is dropped; nothing is pinned.
pub struct Attached {
    /// Holds programs and links alive.
    pub(super) ebpf: Ebpf,
    pub events: RingBuf<MapData>,
    pub counters: PerCpuArray<MapData, u64>,
    pub coverage: Vec<SignalCoverage>,
    pub refused: Vec<Refused>,
    /// What the programs say; `None` unless asked for.
    pub(super) log: Option<EbpfLogger<StderrLog>>,
}

/// Puts the programs' messages on standard error.
pub struct StderrLog;

impl log::Log for StderrLog {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }
    fn log(&self, record: &log::Record<'_>) {
        eprintln!("rsttrace: kernel: {}", record.args());
    }
    fn flush(&self) {}
}

/// What to attach.
#[derive(Clone, Debug, Default)]
pub struct AttachOptions {
    /// Do without kprobes, as the user asked or because the kernel has none.
    pub no_kprobes: bool,
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
    let mut ebpf = loader.load(object).context("the kernel refused the tracer's maps or BTF")?;
    let events = ebpf.take_map("EVENTS").context("the object has no EVENTS map")?;
    let counters = ebpf.take_map("COUNTERS").context("the object has no COUNTERS map")?;
    let log = match options.verbose {
        true => Some(EbpfLogger::init_with_logger(&mut ebpf, StderrLog)?),
        false => None,
    };
    let mut attacher = Attacher {
        ebpf,
        manifest,
        facts,
        options,
        attached: BTreeMap::new(),
        refused: Vec::new(),
        btf: None,
    };
    let coverage = signal::ALL
        .iter()
        .filter(|signal| options.only.as_ref().is_none_or(|only| only.contains(&signal.id)))
        .map(|signal| attacher.signal(signal))
        .collect();
    Ok(Attached {
        events: RingBuf::try_from(events)?,
        counters: PerCpuArray::try_from(counters)?,
        coverage,
        refused: attacher.refused,
        log,
        ebpf: attacher.ebpf,
    })
}

/// Before 5.11 maps count against RLIMIT_MEMLOCK; later kernels ignore it.
fn raise_memlock() {
    use rustix::process::{Resource, Rlimit, setrlimit};
    // Not being allowed is fine: the map creation that needs it will say so.
    let _ = setrlimit(Resource::Memlock, Rlimit { current: None, maximum: None });
}

struct Attacher<'a> {
    ebpf: Ebpf,
    manifest: &'a Manifest,
    facts: &'a Facts,
    options: &'a AttachOptions,
    /// Hook to the program that serves it, or `None` when none could.
    attached: BTreeMap<&'static str, Option<String>>,
    refused: Vec<Refused>,
    /// Only fentry needs it, and parsing it takes a while.
    btf: Option<Btf>,
}

impl Attacher<'_> {
    fn signal(&mut self, signal: &Signal) -> SignalCoverage {
        let found = signal.ways.iter().find_map(|way| Some((way, self.way(way)?)));
        match found {
            Some((way, programs)) => SignalCoverage {
                id: signal.id.into(),
                way: Some(programs),
                blind: way.blind.map(str::to_owned),
                attaching: false,
            },
            None => SignalCoverage {
                id: signal.id.into(),
                way: None,
                blind: Some(signal.blind.into()),
                attaching: false,
            },
        }
    }

    /// Attaches every hook of a way; `None` when one of them cannot be.
    fn way(&mut self, way: &Way) -> Option<String> {
        if let Some(fact) = way.needs
            && self.facts.get(fact).is_none()
        {
            return None;
        }
        if way.without_kprobes && !self.options.no_kprobes {
            return None;
        }
        let mut programs = String::new();
        for hook in way.hooks {
            let program = self.hook(hook)?;
            let separator = if programs.is_empty() { "" } else { ", " };
            // Writing to a String cannot fail.
            let _ = write!(programs, "{separator}{program}");
        }
        Some(programs)
    }

    fn hook(&mut self, hook: &'static str) -> Option<String> {
        if let Some(known) = self.attached.get(hook) {
            return known.clone();
        }
        let mut candidates: Vec<&Program> =
            self.manifest.programs.iter().filter(|program| program.hook == hook).collect();
        candidates.sort_by_key(|program| program.way);
        let mut served = None;
        for program in candidates {
            match self.program(program) {
                Ok(()) => {
                    served = Some(program.name.clone());
                    break;
                }
                Err(error) => self
                    .refused
                    .push(Refused { program: program.name.clone(), why: format!("{error:#}") }),
            }
        }
        self.attached.insert(hook, served.clone());
        served
    }

    fn program(&mut self, program: &Program) -> Result<()> {
        let is_kprobe = matches!(
            program.way,
            ProgramWay::Kprobe | ProgramWay::KprobePart0 | ProgramWay::Kretprobe
        );
        anyhow::ensure!(!(is_kprobe && self.options.no_kprobes), "kprobes are switched off");
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
                kprobe.attach(&program.target, 0)?;
            }
        }
        Ok(())
    }
}
