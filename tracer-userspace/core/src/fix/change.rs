//! Fixes as typed changes. Commands, persistent files, checks and undo lines are rendered from them,
//! so they cannot disagree.

use rsttrace_model::{netns::Place, settings::IpvsTimer};

/// Who can make the change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FixOwner {
    Application,
    Pod,
    Node,
    KubeProxy,
    Cloud,
    Firewall,
}

impl FixOwner {
    /// The contract's word for it.
    pub fn id(self) -> &'static str {
        match self {
            Self::Application => "application",
            Self::Pod => "pod",
            Self::Node => "node",
            Self::KubeProxy => "kube-proxy",
            Self::Cloud => "cloud",
            Self::Firewall => "firewall",
        }
    }
}

/// What may go wrong when it is applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Risk {
    Low,
    Medium,
}

impl Risk {
    pub fn id(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Medium => "medium",
        }
    }
}

/// One change.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    Sysctl {
        place: Place,
        key: &'static str,
        from: Option<u64>,
        to: u64,
    },
    /// One IPVS timeout in seconds; the other two stay.
    IpvsTimeout {
        place: Place,
        timer: IpvsTimer,
        from_s: Option<u32>,
        to_s: u32,
    },
    /// What the application does with its socket, and the command that shows it in the namespace of the
    /// socket, where that is known.
    SocketOption {
        code: String,
        place: Option<Place>,
        shown_by: &'static str,
    },
    /// Something only a person can do.
    Advice {
        text: String,
    },
}

/// The command for one timeout: 0 keeps a value.
pub(super) fn ipvsadm_set(timer: IpvsTimer, seconds: u32) -> String {
    match timer {
        IpvsTimer::Tcp => format!("ipvsadm --set {seconds} 0 0"),
        IpvsTimer::TcpFin => format!("ipvsadm --set 0 {seconds} 0"),
        IpvsTimer::Udp => format!("ipvsadm --set 0 0 {seconds}"),
    }
}

/// A set of changes that belong together.
#[derive(Clone, Debug, PartialEq)]
pub struct Fix {
    pub id: &'static str,
    pub owner: FixOwner,
    pub risk: Risk,
    /// One sentence: what to do.
    pub summary: String,
    /// One sentence: why it ends the resets.
    pub reason: String,
    pub current: Option<String>,
    pub wanted: Option<String>,
    pub changes: Vec<Change>,
}

/// A fix in general terms: what can be said of it before anything is measured.
#[derive(Clone, Copy, Debug)]
pub struct Remedy {
    pub id: &'static str,
    pub owner: FixOwner,
    pub risk: Risk,
    /// One sentence: what to do.
    pub summary: &'static str,
    /// One sentence: why it ends the resets.
    pub reason: &'static str,
    /// What exactly to do; the advice of an incident that has no values to compute.
    pub how: &'static str,
}

impl Remedy {
    /// The fix of an incident. Where values are known, the caller puts them in.
    pub fn fix(&self) -> Fix {
        Fix {
            id: self.id,
            owner: self.owner,
            risk: self.risk,
            summary: self.summary.into(),
            reason: self.reason.into(),
            current: None,
            wanted: None,
            changes: vec![Change::Advice { text: self.how.into() }],
        }
    }
}

impl Fix {
    /// Lines to run or to write into the application, in order.
    pub fn commands(&self) -> Vec<String> {
        self.changes.iter().filter_map(Change::command).collect()
    }

    /// What only a person can do, in sentences.
    pub fn advice(&self) -> Vec<String> {
        self.changes
            .iter()
            .filter_map(|change| match change {
                Change::Advice { text } => Some(text.clone()),
                _ => None,
            })
            .collect()
    }

    /// Lines that show whether it is in force.
    pub fn verify(&self) -> Vec<String> {
        let mut lines: Vec<String> = self.changes.iter().filter_map(Change::verify).collect();
        lines.dedup();
        lines
    }

    /// Lines that bring back the value found.
    pub fn undo(&self) -> Vec<String> {
        self.changes.iter().filter_map(Change::undo).collect()
    }
}

impl Change {
    /// A longer accept queue, which `ss` shows as the listener's Send-Q.
    pub fn listen(place: Place, backlog: u64) -> Self {
        let code = format!("listen(fd, {backlog})");
        Self::SocketOption { code, place: Some(place), shown_by: "ss -tln" }
    }

    fn command(&self) -> Option<String> {
        match self {
            Self::Sysctl { place, key, to, .. } => {
                Some(format!("{}sysctl -w {key}={to}", place.prefix()?))
            }
            Self::IpvsTimeout { place, timer, to_s, .. } => {
                Some(format!("{}{}", place.prefix()?, ipvsadm_set(*timer, *to_s)))
            }
            Self::SocketOption { code, .. } => Some(code.clone()),
            Self::Advice { .. } => None,
        }
    }

    fn verify(&self) -> Option<String> {
        match self {
            Self::Sysctl { place, key, .. } => Some(format!("{}sysctl {key}", place.prefix()?)),
            Self::IpvsTimeout { place, .. } => {
                Some(format!("{}ipvsadm -Ln --timeout", place.prefix()?))
            }
            Self::SocketOption { place, shown_by, .. } => {
                let prefix = place.as_ref().map_or(Some(String::new()), Place::prefix)?;
                Some(format!("{prefix}{shown_by}"))
            }
            Self::Advice { .. } => None,
        }
    }

    fn undo(&self) -> Option<String> {
        match self {
            Self::Sysctl { place, key, from: Some(from), .. } => {
                Some(format!("{}sysctl -w {key}={from}", place.prefix()?))
            }
            Self::IpvsTimeout { place, timer, from_s: Some(from), .. } => {
                Some(format!("{}{}", place.prefix()?, ipvsadm_set(*timer, *from)))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rsttrace_model::netns::NetnsReach;

    #[test]
    fn what_an_application_sets_is_looked_for_in_its_own_namespace() {
        let place = |name: &str| Place { netns: 1, reach: NetnsReach::Named(name.into()) };
        let keepalive = |place| Change::SocketOption {
            code: "setsockopt(…)".into(),
            place,
            shown_by: "ss -tno state established",
        };
        let told = |change: Change| change.verify().expect("a command");
        assert_eq!(told(keepalive(None)), "ss -tno state established");
        assert_eq!(
            told(keepalive(Some(place("/run/netns/shop")))),
            "ip netns exec shop ss -tno state established"
        );
        // A backlog is a listener's.
        assert_eq!(
            told(Change::listen(place("/run/netns/shop"), 512)),
            "ip netns exec shop ss -tln"
        );
    }
}
