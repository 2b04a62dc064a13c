//! The connection tracking table: entries, `nf_conntrack_max`, buckets, memory.

use rsttrace_core::fix::{Change, Fix, FixOwner, Risk};
use rsttrace_model::{
    configured::KubeProxy,
    netns::{NetnsReach, Place},
};

use super::{
    Demand, Impossible, Item, Kernel, Rule, Source, Step, Unit, demand::InForce, mebibytes,
    percent, seconds_of,
};

/// `max` grows in steps of this.
const STEP: u64 = 65_536;
/// `nf_conntrack_max` is an `unsigned int` behind a signed sysctl.
const MOST: u64 = 2_147_483_647;
/// A bucket is a list head (`struct hlist_nulls_head`), bytes.
pub const BUCKET_BYTES: u64 = 8;
/// Hash sizes are rounded up to whole pages of list heads (`nf_ct_alloc_hashtable`).
const BUCKETS_ROUND: u64 = 512;
/// Share of the memory that the table should not exceed, percent.
const SHARE_WANTED: u64 = 5;
/// Share of the memory from which on a warning is given, percent.
const SHARE_WARNED: u64 = 10;

const SYSCTL_MAX: &str = "net.netfilter.nf_conntrack_max";
const SYSCTL_BUCKETS: &str = "net.netfilter.nf_conntrack_buckets";

/// The computed size of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Entries at the peak.
    pub peak: u64,
    pub max: u64,
    pub buckets: u64,
    steps: Vec<Step>,
}

impl Table {
    /// Kernel memory with every entry in use, bytes.
    pub fn full_bytes(&self, kernel: Kernel) -> u64 {
        self.max * entry_bytes(kernel) + self.buckets * BUCKET_BYTES
    }

    /// Kernel memory at the peak, bytes.
    pub fn peak_bytes(&self, kernel: Kernel) -> u64 {
        self.peak * entry_bytes(kernel) + self.buckets * BUCKET_BYTES
    }
}

/// Memory of one entry, bytes: `struct nf_conn` in its slab, 256 (6.1 and later) or 12 to a page (before),
/// and an extension block of 128, which NAT, accounting, labels or a listener for events adds.
pub fn entry_bytes(kernel: Kernel) -> u64 {
    if kernel.at_least(6, 1) { 384 } else { 470 }
}

/// Memory of one entry without the extension block, bytes. Before 5.18 every entry has one, for events.
pub fn least_entry_bytes(kernel: Kernel) -> u64 {
    if kernel.at_least(6, 1) { 256 } else { entry_bytes(kernel) }
}

/// `max` and `buckets` that the kernel chooses by itself when the module is loaded
/// (`nf_conntrack_init_start`).
pub fn kernel_default(ram_bytes: u64, kernel: Kernel) -> (u64, u64) {
    const GIB: u64 = 1 << 30;
    // The one-to-one table came with 5.15.
    let (factor, least, mid, large) =
        if kernel.at_least(5, 15) { (1, 1024, 65_536, 262_144) } else { (4, 32, 16_384, 65_536) };
    let buckets = match ram_bytes {
        more if more > 4 * GIB => large,
        more if more > GIB => mid,
        little => (little / 16_384 / BUCKET_BYTES).max(least),
    };
    (buckets * factor, buckets)
}

/// Flows per second that a table of `max` entries holds when each entry stays for `stays_s` seconds.
pub fn flows_per_s(max: u64, stays_s: u64) -> u64 {
    // Rounded to the nearest: an estimate, not a bound.
    (max + stays_s / 2) / stays_s.max(1)
}

/// Entries of connections that come at a rate, when each entry stays for `stays_s` seconds after the
/// connection's life.
pub fn short_lived(per_s: u64, life_ms: u64, stays_s: u64) -> u64 {
    let ms = u128::from(per_s).saturating_mul(u128::from(life_ms) + u128::from(stays_s) * 1000);
    u64::try_from(ms.div_ceil(1000)).unwrap_or(u64::MAX)
}

/// The entries at the peak, line by line.
fn peak(demand: &Demand) -> (u64, Vec<Step>) {
    let now = &demand.now;
    let mut steps = Vec::new();
    let mut sum = demand.connections;
    if demand.connections > 0 {
        steps.push(Step::new("long-lived", "", demand.connections));
    }
    if demand.cps > 0 {
        let entries = short_lived(demand.cps, demand.life_ms, now.time_wait_s);
        let formula = format!(
            "{}/s × ({} + {} s time_wait)",
            demand.cps,
            seconds_of(demand.life_ms),
            now.time_wait_s
        );
        steps.push(Step::new("TCP, short", formula, entries));
        sum = sum.saturating_add(entries);
    }
    if demand.udp > 0 {
        let entries = demand.udp.saturating_mul(now.udp_s);
        let formula = format!("{}/s × {} s udp_timeout", demand.udp, now.udp_s);
        steps.push(Step::new("UDP", formula, entries));
        sum = sum.saturating_add(entries);
    }
    match now.peak {
        Some(seen) if seen > sum => {
            steps.push(Step::new("seen on this host", "most in one namespace", seen));
            (seen, steps)
        }
        _ => (sum, steps),
    }
}

/// Sizes the table.
///
/// # Errors
/// When the table would exceed the sysctl's range or the whole memory.
pub fn size(demand: &Demand) -> Result<Table, Impossible> {
    let (peak, mut steps) = peak(demand);
    steps.push(Step::new("peak", "", peak));
    let each = entry_bytes(demand.kernel) + BUCKET_BYTES;
    let (default_max, default_buckets) = kernel_default(demand.ram_bytes, demand.kernel);
    let max = match demand.max {
        Some(max) => {
            steps.push(Step::new("given", "--max", max));
            max
        }
        None => {
            let twice = peak.saturating_mul(2);
            let wanted = twice.div_ceil(STEP).max(1).saturating_mul(STEP);
            steps.push(Step::new("twice the peak", format!("2 × {peak}"), twice));
            steps.push(Step::new("rounded up", format!("to a multiple of {STEP}"), wanted));
            let (floor, is) = match demand.now.max {
                Some(now) => (now, "current value"),
                None => (default_max, "the kernel's default for this memory"),
            };
            let max = wanted.max(floor);
            steps.push(Step::new("not below", is, floor));
            within_share(demand, peak, floor, max, each, &mut steps)
        }
    };
    if max > MOST {
        let text =
            format!("{max} conntrack entries are too many: the kernel accepts at most {MOST}");
        return Err(Impossible(text));
    }
    let buckets = buckets(max, demand.now.buckets.unwrap_or(default_buckets), demand.max.is_some());
    let table = Table { peak, max, buckets, steps };
    let bytes = table.full_bytes(demand.kernel);
    if bytes > demand.ram_bytes {
        let (needs, ram) = (mebibytes(bytes), mebibytes(demand.ram_bytes));
        let text = format!("{max} conntrack entries need {needs}, but the machine has {ram}");
        return Err(Impossible(text));
    }
    Ok(table)
}

/// Less than twice the peak if that would take too much memory, but at least what R8's 60 % require.
fn within_share(
    demand: &Demand,
    peak: u64,
    floor: u64,
    max: u64,
    each: u64,
    steps: &mut Vec<Step>,
) -> u64 {
    let most = demand.ram_bytes / 100 * SHARE_WANTED / each;
    let formula = format!("of {} at {each} B each", mebibytes(demand.ram_bytes));
    steps.push(Step::new(&format!("{SHARE_WANTED} % of memory"), formula, most));
    if max <= most || max == floor {
        return max;
    }
    let enough = (peak.saturating_mul(5) / 3 + 1).div_ceil(STEP).saturating_mul(STEP).max(floor);
    let fits = (most / STEP * STEP).max(enough).min(max);
    steps.push(Step::new("to spare memory", "no less than peak / 60 %", fits));
    fits
}

/// One bucket per entry; a larger current table is kept.
fn buckets(max: u64, now: u64, is_given: bool) -> u64 {
    let wanted = max.div_ceil(BUCKETS_ROUND) * BUCKETS_ROUND;
    if is_given { wanted } else { wanted.max(now) }
}

pub fn items(demand: &Demand, table: &Table) -> Vec<Item> {
    vec![max_item(demand, table), buckets_item(demand, table)]
}

fn on_the_node(key: &'static str, from: Option<u64>, to: u64) -> Vec<Change> {
    if from == Some(to) {
        return Vec::new();
    }
    let place = Place { netns: 0, reach: NetnsReach::Initial };
    vec![Change::Sysctl { place, key, from, to }]
}

fn max_item(demand: &Demand, table: &Table) -> Item {
    let (kernel, now) = (demand.kernel, demand.now.max);
    let mut steps = table.steps.clone();
    let used = percent(table.peak, table.max);
    steps.push(Step::new("in use at the peak", format!("{} of {}", table.peak, table.max), used));
    for (what, bytes, entries) in [
        ("memory when full", table.full_bytes(kernel), table.max),
        ("memory at the peak", table.peak_bytes(kernel), table.peak),
    ] {
        let each = entry_bytes(kernel);
        let formula = format!("{entries} × {each} B + {} × {BUCKET_BYTES} B", table.buckets);
        steps.push(Step::new(what, formula, mebibytes(bytes)));
    }
    let share = table.full_bytes(kernel) * 100 / demand.ram_bytes.max(1);
    let mut warnings = Vec::new();
    if share >= SHARE_WARNED {
        warnings.push(format!(
            "a full table takes {share} % of the memory: shorten timeouts before buying memory"
        ));
    }
    if table.peak > table.max {
        warnings.push(format!("{} entries do not fit into {}", table.peak, table.max));
    } else if table.peak * 10 > table.max * 6 {
        warnings.push("the peak is above 60 % of the limit: averages do not include bursts".into());
    }
    let is_given = demand.max.is_some();
    let by_proxy =
        demand.kube_proxy.as_ref().and_then(|proxy| kube_proxy(proxy, demand, table.max));
    let (owner, changes) = match by_proxy {
        _ if is_given => (FixOwner::Node, Vec::new()),
        Some(change) => (FixOwner::KubeProxy, vec![change]),
        None => (FixOwner::Node, on_the_node(SYSCTL_MAX, now, table.max)),
    };
    Item {
        key: SYSCTL_MAX,
        value: table.max,
        unit: Unit::Entries,
        fix: Fix {
            id: "conntrack_max",
            owner,
            risk: Risk::Low,
            summary: format!(
                "let the conntrack table of each namespace have {} entries",
                table.max
            ),
            reason:
                "one limit for the machine, applied to each namespace separately; above it, new \
                     connections are dropped"
                    .into(),
            current: now.map(|value| value.to_string()),
            wanted: (!is_given).then(|| table.max.to_string()),
            changes,
        },
        steps,
        memory_bytes: Some(table.full_bytes(kernel)),
        sources: vec![
            Source::Rule(Rule::TableSize),
            Source::File("net/netfilter/nf_conntrack_core.c"),
            Source::Measured,
        ],
        warnings,
    }
}

/// The change to kube-proxy's configuration for this value. `None` if kube-proxy does not write the value.
fn kube_proxy(proxy: &KubeProxy, demand: &Demand, max: u64) -> Option<Change> {
    let cpus = u32::try_from(demand.cpus).unwrap_or(u32::MAX);
    let own = proxy.writes(SYSCTL_MAX, cpus)?;
    let writes = format!(
        "{} writes {own} when it starts, the larger of conntrack.maxPerCore × {cpus} and conntrack.min",
        proxy.describe()
    );
    let text = if own >= max {
        format!("nothing to do: {writes}")
    } else {
        format!("in KubeProxyConfiguration: conntrack.min: {max}; now {writes}")
    };
    Some(Change::Advice { text })
}

fn buckets_item(demand: &Demand, table: &Table) -> Item {
    let Table { max, buckets, .. } = *table;
    let now = demand.now.buckets;
    let chain = |buckets: u64| format!("{:.1}", 2.0 * max as f64 / buckets as f64);
    let mut steps = vec![
        Step::new("as many as entries", format!("in multiples of {BUCKETS_ROUND}"), buckets),
        Step::new("mean chain when full", format!("2 × {max} / {buckets}"), chain(buckets)),
    ];
    let quarter = max.div_ceil(4);
    steps.push(Step::new("with max / 4", format!("2 × {max} / {quarter}"), chain(quarter)));
    let bytes = buckets * BUCKET_BYTES;
    steps.push(Step::new("memory", format!("{buckets} × {BUCKET_BYTES} B"), mebibytes(bytes)));
    let mut changes = match demand.max {
        Some(_) => Vec::new(),
        None => on_the_node(SYSCTL_BUCKETS, now, buckets),
    };
    if !changes.is_empty() {
        changes.push(Change::Advice {
            text: format!(
                "to persist this, put `options nf_conntrack hashsize={buckets}` in /etc/modprobe.d; that option \
                 alone sets nf_conntrack_max to {} until sysctl.d is applied",
                buckets.saturating_mul(8)
            ),
        });
    }
    let resize = (!changes.is_empty()).then(|| {
        "resizing rehashes every entry under all locks: do not resize at peak load".to_owned()
    });
    Item {
        key: SYSCTL_BUCKETS,
        value: buckets,
        unit: Unit::Entries,
        fix: Fix {
            id: "conntrack_buckets",
            owner: FixOwner::Node,
            risk: Risk::Medium,
            summary: format!("give the table {buckets} buckets"),
            reason: "every entry is hashed twice; one bucket per entry is the kernel's default since 5.15"
                .into(),
            current: now.map(|value| value.to_string()),
            wanted: demand.max.is_none().then(|| buckets.to_string()),
            changes,
        },
        steps,
        memory_bytes: Some(bytes),
        sources: vec![Source::File("net/netfilter/nf_conntrack_core.c")],
        warnings: resize.into_iter().collect(),
    }
}

/// Further notes about the table.
pub fn notes(demand: &Demand, table: &Table) -> Vec<String> {
    let InForce { udp_s, entries, peak, .. } = demand.now;
    let holds = |stays| format!("{} UDP flows/s at {stays} s", flows_per_s(table.max, stays));
    let mut notes = vec![format!(
        "{} entries hold {}, and {} (the udp_timeout that articles recommend)",
        table.max,
        holds(udp_s),
        holds(300)
    )];
    if let (Some(all), Some(most)) = (entries, peak)
        && all > most
    {
        notes.push(format!(
            "the limit applies to each namespace, but all namespaces share the memory: {all} entries in total"
        ));
    }
    if demand.kube_proxy.is_none() {
        notes.push(
            "where kube-proxy runs, it owns nf_conntrack_max (conntrack.maxPerCore, conntrack.min) and \
             the IPVS timeouts, and writes its own values at every start: pass --kube-proxy"
                .into(),
        );
    }
    notes
}
