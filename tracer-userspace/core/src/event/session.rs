//! What is true for a whole run.

use serde::{Deserialize, Serialize};

/// One signal's coverage, as the notices and `blind_spots` tell it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignalCoverage {
    pub id: String,
    /// The programs that serve it, or the file or system call that does; `None` when it is not seen.
    pub way: Option<String>,
    /// What stays invisible, in a sentence.
    pub blind: Option<String>,
    /// Its module was loaded a moment ago and its hooks are on their way.
    pub attaching: bool,
}

impl SignalCoverage {
    /// The programs that serve it.
    fn programs(&self) -> impl Iterator<Item = &str> {
        self.way.iter().flat_map(|programs| programs.split(", "))
    }
}

/// What is true for the whole run; the first event of every stream.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Session {
    pub boot_id: String,
    pub hostname: String,
    pub kernel: String,
    /// Inode of the initial network namespace.
    pub initial_netns: u32,
    /// The tracer's own process: what it looks up, the kernel may reap in its name. 0 when unknown.
    #[serde(default)]
    pub pid: u32,
    /// CLOCK_REALTIME minus CLOCK_MONOTONIC, nanoseconds.
    pub wall_offset_ns: i64,
    pub coverage: Vec<SignalCoverage>,
}

impl Session {
    /// Whether a signal is known not to be seen.
    pub fn lacks(&self, signal: &str) -> bool {
        self.coverage.iter().any(|s| s.id == signal && s.way.is_none())
    }

    /// What stays invisible; two signals with the same blind spot have one.
    pub fn blind_spots(&self) -> Vec<String> {
        let mut spots: Vec<String> = Vec::new();
        for spot in self.coverage.iter().filter_map(|signal| signal.blind.as_ref()) {
            if !spots.contains(spot) {
                spots.push(spot.clone());
            }
        }
        spots
    }

    /// What a timeout may be due to and this kernel's hooks do not show. Only where there are no kprobes is
    /// every dropped packet looked at.
    pub fn unseen_drops(&self) -> Option<&'static str> {
        let looks_at_all = |signal: &SignalCoverage| {
            signal.programs().any(|it| it == "kfree_skb_netfilter__rawtp")
        };
        (!self.coverage.iter().any(looks_at_all)).then_some(
            "packets that a firewall rule of this host drops without an answer are not seen: a timeout does \
             not name the rule",
        )
    }

    /// Whether a signal's module is there and its hooks are not yet.
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
