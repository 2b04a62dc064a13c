//! The IPVS connection table: how many entries it will hold, and how many buckets that takes.

use rsttrace_core::fix::{Change, Fix, FixOwner, Risk};
use rsttrace_model::netns::{NetnsReach, Place};

use super::{
    Demand, Impossible, Item, Kernel, Rule, Source, Step, Unit,
    conntrack::{BUCKET_BYTES, short_lived},
    demand::IPVS_TIME_WAIT_S,
    mebibytes, seconds_of,
};

/// `CONFIG_IP_VS_TAB_BITS`: the bits of a table without the module option.
const DEFAULT_BITS: u64 = 12;
/// The fewest bits that the module accepts.
const LEAST_BITS: u64 = 8;
/// `IP_VS_CONN_MAX_BITS` of 7.2: the default of `conn_max`.
const DEFAULT_MAX: u64 = 1 << 30;
/// `struct ip_vs_conn` in its slab, 12 to a page on 5.10 to 7.2, bytes.
pub const ENTRY_BYTES: u64 = 342;
/// `conn_max` is a multiple of this, for a round number.
const STEP: u64 = 65_536;

/// The computed size of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    pub peak: u64,
    pub bits: u64,
    steps: Vec<Step>,
}

impl Table {
    /// Kernel memory at the peak, bytes.
    pub fn peak_bytes(&self) -> u64 {
        self.peak.saturating_mul(ENTRY_BYTES).saturating_add((1 << self.bits) * BUCKET_BYTES)
    }
}

/// The largest `conn_tab_bits` that the kernel accepts (`ip_vs_conn_init`): 20 up to 6.1, where a larger
/// value gives the default; later, a limit that depends on the memory, at most 27.
fn most_bits(ram_bytes: u64, kernel: Kernel) -> u64 {
    if !kernel.at_least(6, 12) {
        return 20;
    }
    // Half of the memory, and four entries of up to 512 bytes for each bucket; 7.2 counts only one.
    let spared = if kernel.at_least(7, 2) { 9 } else { 12 };
    let bits = ram_bytes.checked_next_power_of_two().unwrap_or(1 << 63).ilog2();
    u64::from(bits).saturating_sub(spared).clamp(LEAST_BITS, 27)
}

/// Sizes the table.
///
/// # Errors
/// When the entries would need more than the whole memory.
pub fn size(demand: &Demand) -> Result<Table, Impossible> {
    let mut steps = Vec::new();
    let mut step = |what: &str, formula: String, result: u64| {
        steps.push(Step::new(what, formula, result));
    };
    let mut peak = demand.connections;
    if demand.connections > 0 {
        step("long-lived", String::new(), demand.connections);
    }
    if demand.cps > 0 {
        let entries = short_lived(demand.cps, demand.life_ms, IPVS_TIME_WAIT_S);
        let formula = format!(
            "{}/s × ({} + {IPVS_TIME_WAIT_S} s TIME_WAIT)",
            demand.cps,
            seconds_of(demand.life_ms)
        );
        step("TCP, short", formula, entries);
        peak = peak.saturating_add(entries);
    }
    if demand.udp > 0 {
        let stays = demand.now.ipvs_udp_s;
        let entries = demand.udp.saturating_mul(stays);
        step("UDP", format!("{}/s × {stays} s (IPVS's own UDP timeout)", demand.udp), entries);
        peak = peak.saturating_add(entries);
    }
    if let Some(seen) = demand.now.ipvs_peak.filter(|seen| *seen > peak) {
        step("seen on this host", "TCP entries".into(), seen);
        peak = seen;
    }
    step("peak", String::new(), peak);
    // The number of bits that hold the peak: one entry a bucket, or fewer.
    let wanted = u64::from(peak.max(1).next_power_of_two().ilog2());
    let most = most_bits(demand.ram_bytes, demand.kernel);
    let now = demand.now.ipvs_bits.unwrap_or(DEFAULT_BITS);
    let bits = wanted.max(now).clamp(LEAST_BITS, most);
    step("one entry a bucket", format!("2^{wanted} >= {peak}"), wanted);
    if bits != wanted {
        step("within", format!("current {now} and maximum {most}"), bits);
    }
    let table = Table { peak, bits, steps };
    let bytes = table.peak_bytes();
    if bytes > demand.ram_bytes {
        let (needs, ram) = (mebibytes(bytes), mebibytes(demand.ram_bytes));
        return Err(Impossible(format!(
            "{peak} IPVS entries need {needs}, but the machine has {ram}"
        )));
    }
    Ok(table)
}

pub fn items(demand: &Demand, table: &Table) -> Vec<Item> {
    let mut items = vec![bits_item(demand, table)];
    if demand.kernel.at_least(7, 2) {
        items.push(max_item(demand, table));
    }
    items
}

fn bits_item(demand: &Demand, table: &Table) -> Item {
    let (now, bits) = (demand.now.ipvs_bits, table.bits);
    let buckets = 1_u64 << bits;
    let mut steps = table.steps.clone();
    let memory = format!("{} × {ENTRY_BYTES} B + {buckets} × {BUCKET_BYTES} B", table.peak);
    steps.push(Step::new("memory at the peak", memory, mebibytes(table.peak_bytes())));
    let mut changes = Vec::new();
    let mut warnings = Vec::new();
    if now.unwrap_or(DEFAULT_BITS) != bits {
        changes.push(Change::Advice {
            text: format!(
                "put `options ip_vs conn_tab_bits={bits}` in /etc/modprobe.d; the option is read when the \
                 module is loaded: after a reboot, or once no IPVS service is left and the module is reloaded"
            ),
        });
    }
    if demand.kernel.at_least(7, 2) {
        warnings.push(
            "each namespace has a table of its own, which grows with its entries; these bits are its \
             maximum size"
                .into(),
        );
    } else if !demand.kernel.at_least(6, 12) {
        warnings.push("outside 8..20, this kernel uses its default of 12 and logs that".into());
    }
    let reason = "there is no limit on entries, but every packet walks the chain of its bucket";
    Item {
        key: "ip_vs.conn_tab_bits",
        value: bits,
        unit: Unit::Bits,
        fix: Fix {
            id: "ipvs_table",
            owner: FixOwner::Node,
            risk: Risk::Medium,
            summary: format!("give the IPVS table 2^{bits} = {buckets} buckets"),
            reason: reason.into(),
            current: now.map(|bits| bits.to_string()),
            wanted: Some(bits.to_string()),
            changes,
        },
        steps,
        memory_bytes: Some(table.peak_bytes()),
        sources: vec![
            Source::Rule(Rule::TableSize),
            Source::File("net/netfilter/ipvs/ip_vs_conn.c"),
            Source::Measured,
        ],
        warnings,
    }
}

/// From 7.2 on there is a limit; no memory is large enough to reach its default.
fn max_item(demand: &Demand, table: &Table) -> Item {
    let now = demand.now.ipvs_max.unwrap_or(DEFAULT_MAX);
    let wanted = table.peak.saturating_mul(2).div_ceil(STEP).max(1).saturating_mul(STEP);
    let max = now.max(wanted).min(DEFAULT_MAX);
    let steps = vec![
        Step::new("twice the peak", format!("2 × {}, in multiples of {STEP}", table.peak), wanted),
        Step::new("not below", "current value", now),
        Step::new(
            "most in memory",
            format!("{} / {ENTRY_BYTES} B", mebibytes(demand.ram_bytes)),
            demand.ram_bytes / ENTRY_BYTES,
        ),
    ];
    let place = Place { netns: 0, reach: NetnsReach::Initial };
    let changed = demand.now.ipvs_max.is_some_and(|now| now != max);
    let change =
        Change::Sysctl { place, key: "net.ipv4.vs.conn_max", from: demand.now.ipvs_max, to: max };
    Item {
        key: "net.ipv4.vs.conn_max",
        value: max,
        unit: Unit::Entries,
        fix: Fix {
            id: "ipvs_max",
            owner: FixOwner::Node,
            risk: Risk::Low,
            summary: format!("let IPVS have {max} connections in each namespace"),
            reason: "above this limit, new connections are dropped without an answer".into(),
            current: demand.now.ipvs_max.map(|max| max.to_string()),
            wanted: Some(max.to_string()),
            changes: if changed { vec![change] } else { Vec::new() },
        },
        steps,
        memory_bytes: None,
        sources: vec![Source::File("Documentation/networking/ipvs-sysctl.rst")],
        warnings: Vec::new(),
    }
}
