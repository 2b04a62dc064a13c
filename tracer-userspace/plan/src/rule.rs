//! The rules and other sources of the numbers.

/// Rules of thumb with their formulas. The ids `R1` to `R9` are those of the project's list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// A keepalive must fit several times into the shortest idle limit of the path.
    KeepalivePeriod,
    /// The time until a dead peer is detected on an idle connection.
    Detection,
    /// Keepalive pauses while data is in flight.
    DataInFlight,
    /// A conntrack entry must not expire before the IPVS entry.
    ConntrackBehindIpvs,
    /// A longer IPVS timeout, where clients cannot be changed.
    RaisedIpvsTimeout,
    /// Pools must close connections before the path drops them.
    Pools,
    /// The side that reuses a connection closes it before its peer does.
    HttpTimeouts,
    /// Entries are the sum of each rate times the time its entries stay.
    TableSize,
    /// A value is changed at its owner.
    Owner,
}

impl Rule {
    /// The number of the rule.
    pub fn id(self) -> &'static str {
        match self {
            Self::KeepalivePeriod => "R1",
            Self::Detection => "R2",
            Self::DataInFlight => "R3",
            Self::ConntrackBehindIpvs => "R4",
            Self::RaisedIpvsTimeout => "R5",
            Self::Pools => "R6",
            Self::HttpTimeouts => "R7",
            Self::TableSize => "R8",
            Self::Owner => "R9",
        }
    }

    /// The formula of the rule, in one line.
    pub fn formula(self) -> &'static str {
        match self {
            Self::KeepalivePeriod => {
                "time + lost probes × intvl + 13 % of time < shortest idle limit; simpler: time = a third of that limit"
            }
            Self::Detection => "a dead peer is detected after time + intvl × probes",
            Self::DataInFlight => {
                "keepalive pauses while data is unacknowledged: TCP_USER_TIMEOUT just below R2's sum"
            }
            Self::ConntrackBehindIpvs => "conntrack established >= IPVS tcp × 1.15",
            Self::RaisedIpvsTimeout => "IPVS tcp > longest idle time × 1.15",
            Self::Pools => {
                "ping <= limit / 3, or idle eviction < limit; lifetime < the server's own limit - 30 s"
            }
            Self::HttpTimeouts => {
                "client idle < proxy idle < server keepAliveTimeout, 10 to 15 s between them"
            }
            Self::TableSize => "entries = sum of rate × timeout + long-lived; peak < 60 % of max",
            Self::Owner => {
                "change a value where its owner configures it, or the owner overwrites it"
            }
        }
    }
}

/// The source of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    Rule(Rule),
    /// The name of a source file of the kernel or of another project.
    File(&'static str),
    /// `cargo xtask test plan_memory` fills the tables on every kernel and measures their memory.
    Measured,
}
