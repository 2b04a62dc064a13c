//! Fixes as typed changes. Commands, persistent files, checks and undo lines are rendered from the
//! changes, so they cannot disagree.

use rsttrace_model::{netns::Place, settings::IpvsTimer};

/// Who can make the change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FixOwner {
    Application,
    Pod,
    Node,
    KubeProxy,
    /// The plugin that makes the cluster's network.
    Cni,
    Cloud,
    Firewall,
}

impl FixOwner {
    /// Its id in events.
    pub fn id(self) -> &'static str {
        match self {
            Self::Application => "application",
            Self::Pod => "pod",
            Self::Node => "node",
            Self::KubeProxy => "kube-proxy",
            Self::Cni => "cni",
            Self::Cloud => "cloud",
            Self::Firewall => "firewall",
        }
    }
}

/// The risk of applying a fix.
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
    /// One IPVS timeout in seconds; the other two keep their values.
    IpvsTimeout {
        place: Place,
        timer: IpvsTimer,
        from_s: Option<u32>,
        to_s: u32,
    },
    /// A call that the application makes on its socket, and the command that shows its effect in the
    /// socket's namespace, where that is known.
    SocketOption {
        code: String,
        place: Option<Place>,
        shown_by: &'static str,
    },
    /// A step that an operator has to do by hand.
    Advice {
        text: String,
    },
}

/// The command for one timeout; 0 keeps a value.
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

/// A fix in general terms, without measured values.
#[derive(Clone, Copy, Debug)]
pub struct Remedy {
    pub id: &'static str,
    pub owner: FixOwner,
    pub risk: Risk,
    /// One sentence: what to do.
    pub summary: &'static str,
    /// One sentence: why it ends the resets.
    pub reason: &'static str,
    /// Exactly what to do; an incident without computed values shows it as advice.
    pub how: &'static str,
}

impl Remedy {
    /// The fix of an incident. The caller fills in the values that are known.
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
    /// Lines to run, or to add to the application's code, in order.
    pub fn commands(&self) -> Vec<String> {
        self.changes.iter().filter_map(Change::command).collect()
    }

    /// The steps that an operator has to do by hand.
    pub fn advice(&self) -> Vec<String> {
        self.changes
            .iter()
            .filter_map(|change| match change {
                Change::Advice { text } => Some(text.clone()),
                _ => None,
            })
            .collect()
    }

    /// Commands that show whether the fix took effect.
    pub fn verify(&self) -> Vec<String> {
        let mut lines: Vec<String> = self.changes.iter().filter_map(Change::verify).collect();
        lines.dedup();
        lines
    }

    /// Commands that restore the previous values.
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
    fn socket_options_are_verified_in_the_namespace_of_the_application() {
        let place = |name: &str| Place { netns: 1, reach: NetnsReach::Named(name.into()) };
        let keepalive = |place| Change::SocketOption {
            code: "setsockopt(…)".into(),
            place,
            shown_by: "ss -tno state established",
        };
        let verify = |change: Change| change.verify().expect("a command");
        assert_eq!(verify(keepalive(None)), "ss -tno state established");
        assert_eq!(
            verify(keepalive(Some(place("/run/netns/shop")))),
            "ip netns exec shop ss -tno state established"
        );
        // A backlog belongs to a listener.
        assert_eq!(
            verify(Change::listen(place("/run/netns/shop"), 512)),
            "ip netns exec shop ss -tln"
        );
    }
}
