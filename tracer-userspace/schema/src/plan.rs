//! The object that `rsttrace plan -o json` prints.

use schemars::JsonSchema;
use serde::Serialize;

use crate::fix::Fix;

/// A capacity plan.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[schemars(title = "rsttrace plan")]
pub struct Plan {
    pub load: Load,
    /// How the load was measured on this host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub measured: Option<Measured>,
    pub machine: Machine,
    /// Kernel memory of table entries on this kernel.
    pub memory: Memory,
    /// The settings for this load.
    pub settings: Vec<Setting>,
    /// What overflows, the first limit first.
    pub limits: Vec<Limit>,
    pub notes: Vec<String>,
}

#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Load {
    /// Connections that stay open, at the peak.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections: Option<u64>,
    /// New TCP connections a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp_per_s: Option<u64>,
    /// How long one of these is used, milliseconds.
    pub life_ms: u64,
    /// New UDP flows a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub udp_per_s: Option<u64>,
    /// The longest idle time that a connection must survive, seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quiet_s: Option<u64>,
    /// Most conntrack entries that were seen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub conntrack_peak_seen: Option<u64>,
}

#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Measured {
    /// Between the first reading and the last, milliseconds.
    pub ms: u64,
    pub readings: usize,
    /// Namespaces whose counters were read twice.
    pub namespaces: usize,
    pub figures: Vec<Figure>,
}

/// One measured quantity.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Figure {
    pub what: &'static str,
    /// Absent where it was not measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<u64>,
    /// How the figure relates to the true value.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = ["is", "at_most", "at_least"]))]
    pub bound: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unit: Option<&'static str>,
    /// How it was measured, or why not.
    pub how: String,
    /// The option that sets this value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub option: Option<&'static str>,
}

#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Machine {
    pub ram_bytes: u64,
    pub cpus: u64,
    /// Major and minor version.
    pub kernel: String,
    /// IPVS is on the path.
    pub ipvs: bool,
    pub kube_proxy: bool,
}

#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Memory {
    pub conntrack_entry_bytes: u64,
    pub conntrack_entry_bytes_least: u64,
    pub conntrack_bucket_bytes: u64,
    pub ipvs_entry_bytes: u64,
}

/// A setting with its derivation.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Setting {
    /// The sysctl, module parameter, socket option or pool setting.
    pub key: &'static str,
    pub value: u64,
    pub unit: &'static str,
    /// Kernel memory that the setting may use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    pub arithmetic: Vec<Step>,
    pub sources: Vec<Source>,
    pub warnings: Vec<String>,
    pub fix: Fix,
}

/// One line of arithmetic.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Step {
    pub what: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub formula: Option<String>,
    pub result: String,
}

/// What a value rests on.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum Source {
    Rule {
        rule: &'static str,
        formula: &'static str,
    },
    /// A file of the kernel or of kube-proxy.
    File {
        file: &'static str,
    },
    /// The kernels on which it was measured.
    Measured {
        measured: &'static str,
    },
}

/// A table or range that overflows at some load.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Limit {
    pub what: String,
    /// The limit counts only under this condition, which is not known here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub only_if: Option<&'static str>,
    pub load: u64,
    pub capacity: u64,
    /// The unit of `load` and `capacity`.
    pub unit: &'static str,
    pub over: bool,
    /// When it overflows.
    pub when: String,
    /// What users see then.
    pub effect: &'static str,
}
