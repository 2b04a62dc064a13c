//! Sizes of tables and lengths of timers, computed from a load: arithmetic only.
//!
//! A [`Plan`] is a list of [`Item`]s. Each contains a [`Fix`], so that it is shown and applied like the fix
//! of an incident, with its arithmetic, its memory cost and the source of its rule.

mod conntrack;
mod demand;
mod figure;
mod http;
mod idle;
mod idle_limit;
mod ipvs;
mod measured;
mod overflow;
mod pool;
mod rule;

pub use demand::{Demand, InForce, Kernel, PathLimit};
pub use figure::{Bound, Figure, Survey};
pub use measured::{IpvsRates, Measured, balancer};
pub use overflow::{Limit, first_to_overflow};
pub use rule::{Rule, Source};

use std::fmt;

use rsttrace_core::fix::{Change, Fix, FixOwner, Risk};

/// One line of arithmetic: what it is, how it is computed, what comes out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    pub what: String,
    pub formula: String,
    pub result: String,
}

/// One setting with its derivation.
#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    /// The name of the sysctl, module parameter, socket option or pool setting.
    pub key: &'static str,
    pub value: u64,
    pub unit: Unit,
    pub fix: Fix,
    pub steps: Vec<Step>,
    /// Kernel memory that the setting may use, bytes.
    pub memory_bytes: Option<u64>,
    pub sources: Vec<Source>,
    /// What to know before it is applied.
    pub warnings: Vec<String>,
}

/// The unit of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    Entries,
    Bits,
    Seconds,
    Probes,
    Milliseconds,
}

impl Unit {
    /// The word in the output.
    pub fn id(self) -> &'static str {
        match self {
            Self::Entries => "entries",
            Self::Bits => "bits",
            Self::Seconds => "s",
            Self::Probes => "probes",
            Self::Milliseconds => "ms",
        }
    }
}

/// Settings for a load, and what overflows first as the load grows.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    pub demand: Demand,
    pub items: Vec<Item>,
    /// The limit that is closest to overflowing first.
    pub limits: Vec<Limit>,
    pub notes: Vec<String>,
}

/// Kernel memory of one table entry, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Costs {
    pub conntrack_entry: u64,
    /// The same if nothing needs an extension block: no NAT, accounting, labels or listener for events.
    pub conntrack_entry_least: u64,
    pub bucket: u64,
    pub ipvs_entry: u64,
}

/// Why no plan is possible for a load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Impossible(pub String);

impl fmt::Display for Impossible {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Plan {
    /// # Errors
    /// When the tables would need more than the kernel's range, or more memory than there is.
    pub fn new(demand: Demand) -> Result<Self, Impossible> {
        let table = conntrack::size(&demand)?;
        let balanced = demand.ipvs.then(|| ipvs::size(&demand)).transpose()?;
        let mut items = conntrack::items(&demand, &table);
        items.extend(balanced.iter().flat_map(|size| ipvs::items(&demand, size)));
        items.extend(idle::items(&demand)?);
        items.extend(pool::items(&demand));
        items.extend(http::items(&demand));
        let limits = first_to_overflow(&demand, &table, balanced.as_ref());
        let mut notes = conntrack::notes(&demand, &table);
        notes.extend(idle::notes(&demand));
        notes.extend(http::notes(&demand));
        Ok(Self { demand, items, limits, notes })
    }

    pub fn costs(&self) -> Costs {
        let kernel = self.demand.kernel;
        Costs {
            conntrack_entry: conntrack::entry_bytes(kernel),
            conntrack_entry_least: conntrack::least_entry_bytes(kernel),
            bucket: conntrack::BUCKET_BYTES,
            ipvs_entry: ipvs::ENTRY_BYTES,
        }
    }

    /// The item of a setting.
    pub fn item(&self, key: &str) -> Option<&Item> {
        self.items.iter().find(|item| item.key == key)
    }
}

impl Step {
    fn new(what: &str, formula: impl Into<String>, result: impl ToString) -> Self {
        Self { what: what.into(), formula: formula.into(), result: result.to_string() }
    }
}

/// A fix that the application's owner makes: a socket option, a sysctl of its own network namespace or a
/// setting of its pool.
fn application_fix(id: &'static str, summary: String, reason: &str, advice: String) -> Fix {
    Fix {
        id,
        owner: FixOwner::Application,
        risk: Risk::Low,
        summary,
        reason: reason.into(),
        current: None,
        wanted: None,
        changes: vec![Change::Advice { text: advice }],
    }
}

/// `300 s`
fn seconds(value: u64) -> String {
    format!("{value} s")
}

/// `1 s`, `0.25 s`
fn seconds_of(ms: u64) -> String {
    match (ms / 1000, ms % 1000) {
        (whole, 0) => format!("{whole} s"),
        (whole, rest) => {
            let decimals = format!("{rest:03}");
            format!("{whole}.{} s", decimals.trim_end_matches('0'))
        }
    }
}

/// `98 MiB`
pub fn mebibytes(bytes: u64) -> String {
    const MIB: u64 = 1 << 20;
    match bytes.div_ceil(MIB) {
        small @ ..10240 => format!("{small} MiB"),
        large => format!("{} GiB", large.div_ceil(1024)),
    }
}

/// A percentage, with one decimal below ten.
pub fn percent(part: u64, whole: u64) -> String {
    let thousandths = u128::from(part) * 1000 / u128::from(whole.max(1));
    if thousandths < 100 {
        format!("{}.{} %", thousandths / 10, thousandths % 10)
    } else {
        format!("{} %", thousandths / 10)
    }
}

#[cfg(test)]
mod tests;
