//! Facts that hold for a whole run.

use serde::{Deserialize, Serialize};

/// The coverage of one signal, as the notices and `blind_spots` show it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignalCoverage {
    pub id: String,
    /// The BPF programs, file or system call that provide the signal; `None` when the signal is not traced.
    pub way: Option<String>,
    /// What this kernel does not show, in a sentence.
    pub blind: Option<String>,
    /// The kernel module of the signal was just loaded, and its hooks are being attached.
    pub attaching: bool,
}

impl SignalCoverage {
    /// The BPF programs that provide the signal.
    fn programs(&self) -> impl Iterator<Item = &str> {
        self.way.iter().flat_map(|programs| programs.split(", "))
    }
}

/// Facts that hold for the whole run; the first event of every stream.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Session {
    pub boot_id: String,
    pub hostname: String,
    pub kernel: String,
    /// Inode of the initial network namespace.
    pub initial_netns: u32,
    /// The pid of the tracer. The kernel may reap an entry on behalf of the tracer when it reads a table. 0
    /// when unknown.
    #[serde(default)]
    pub pid: u32,
    /// CLOCK_REALTIME minus CLOCK_MONOTONIC, nanoseconds.
    pub wall_offset_ns: i64,
    pub coverage: Vec<SignalCoverage>,
}

impl Session {
    /// Whether a signal is known not to be traced.
    pub fn lacks(&self, signal: &str) -> bool {
        self.coverage.iter().any(|s| s.id == signal && s.way.is_none())
    }

    /// What this kernel does not show, without duplicates.
    pub fn blind_spots(&self) -> Vec<String> {
        let mut spots: Vec<String> = Vec::new();
        for spot in self.coverage.iter().filter_map(|signal| signal.blind.as_ref()) {
            if !spots.contains(spot) {
                spots.push(spot.clone());
            }
        }
        spots
    }

    /// A possible cause of a timeout that this kernel's hooks do not show.
    pub fn unseen_drops(&self) -> Option<&'static str> {
        let checks_all_drops = |signal: &SignalCoverage| {
            signal
                .programs()
                .any(|it| it == "kfree_skb_netfilter__rawtp" || it == "kfree_skb_rule__rawtp")
        };
        (!self.coverage.iter().any(checks_all_drops)).then_some(
            "packets that a firewall rule of this host drops without an answer are not traced, so a timeout \
             does not name the rule",
        )
    }

    /// The hooks that provide a signal: `ip_vs_conn_expire` of `ip_vs_conn_expire__kprobe`.
    pub fn hooks<'a>(&'a self, signal: &'a str) -> impl Iterator<Item = &'a str> {
        let signals = self.coverage.iter().filter(move |known| known.id == signal);
        let programs = signals.flat_map(SignalCoverage::programs);
        programs.map(|program| program.rsplit_once("__").map_or(program, |(hook, _)| hook))
    }

    /// Whether the module of a signal is loaded and its hooks are not attached yet.
    pub fn is_attaching(&self, signal: &str) -> bool {
        self.coverage.iter().any(|s| s.id == signal && s.way.is_none() && s.attaching)
    }

    /// Whether a signal is covered without a gap.
    pub fn shows_all(&self, signal: &str) -> bool {
        self.coverage.iter().any(|s| s.id == signal && s.way.is_some() && s.blind.is_none())
    }

    /// Whether a signal is covered at all.
    pub fn covers(&self, signal: &str) -> bool {
        self.coverage.iter().any(|s| s.id == signal && s.way.is_some())
    }
}
