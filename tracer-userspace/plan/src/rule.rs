//! Where a number comes from.

/// Rules of thumb with their formulas; the numbers are those of the project's list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// A keepalive must fit several times into the shortest idle limit of the path.
    KeepalivePeriod,
    /// How long a dead peer stays unnoticed on an idle connection.
    Detection,
    /// With data in flight, keepalive stands still.
    DataInFlight,
    /// Connection tracking must not end before IPVS does.
    ConntrackBehindIpvs,
    /// A longer IPVS timeout, where clients cannot be changed.
    RaisedIpvsTimeout,
    /// Pools must let go before the path does.
    Pools,
    /// Whoever reuses a connection gives it up before its peer does.
    HttpLadder,
    /// The sum of what comes in, times how long it stays.
    TableSize,
    /// Who owns the value.
    Owner,
}

impl Rule {
    /// Its number.
    pub fn id(self) -> &'static str {
        match self {
            Self::KeepalivePeriod => "R1",
            Self::Detection => "R2",
            Self::DataInFlight => "R3",
            Self::ConntrackBehindIpvs => "R4",
            Self::RaisedIpvsTimeout => "R5",
            Self::Pools => "R6",
            Self::HttpLadder => "R7",
            Self::TableSize => "R8",
            Self::Owner => "R9",
        }
    }

    /// Its formula, in a line.
    pub fn formula(self) -> &'static str {
        match self {
            Self::KeepalivePeriod => {
                "time + lost probes × intvl + 13 % of time < shortest idle limit; simply: a third of it"
            }
            Self::Detection => "a dead peer is noticed after time + intvl × probes",
            Self::DataInFlight => {
                "keepalive rests while data is unacknowledged: TCP_USER_TIMEOUT just below R2's sum"
            }
            Self::ConntrackBehindIpvs => "conntrack established >= IPVS tcp × 1.15",
            Self::RaisedIpvsTimeout => "IPVS tcp > longest quiet time × 1.15",
            Self::Pools => {
                "ping <= limit / 3, or idle eviction < limit; lifetime < the server's own limit - 30 s"
            }
            Self::HttpLadder => {
                "client idle < proxy idle < server keepAliveTimeout, 10 to 15 s between them"
            }
            Self::TableSize => "entries = sum of rate × timeout + long-lived; peak < 60 % of max",
            Self::Owner => {
                "a value is changed where its owner keeps it, or the owner changes it back"
            }
        }
    }
}

/// What a value rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    Rule(Rule),
    /// A file of the kernel's source, or of another project's, by its name.
    File(&'static str),
    /// `cargo xtask test plan_memory` fills the tables of every kernel and weighs them.
    Measured,
}
