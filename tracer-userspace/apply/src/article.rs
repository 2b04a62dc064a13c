//! The settings of a widely used article ("Resolving DB Connection Error (ECONNRESET) Issues", somaz.blog),
//! verbatim, each with its effect on a host.

use rsttrace_core::causes::fix_context::FixContext;
use rsttrace_model::settings::{Scope, Setting};

/// The rating of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rating {
    /// It helps under the stated condition.
    HelpsIf,
    /// It sets the value that the kernel already has by default.
    NoEffect,
    /// It does not have the intended effect, or has a harmful one.
    Harmful,
    /// Something is missing.
    Incomplete,
}

impl Rating {
    /// The value in JSON.
    pub fn id(self) -> &'static str {
        match self {
            Self::HelpsIf => "right when",
            Self::NoEffect => "no-op",
            Self::Harmful => "wrong",
            Self::Incomplete => "incomplete",
        }
    }

    /// The label on the page.
    pub fn label(self) -> &'static str {
        match self {
            Self::HelpsIf => "helps if",
            Self::NoEffect => "no effect",
            Self::Harmful => "harmful",
            Self::Incomplete => "incomplete",
        }
    }
}

/// A line of the article.
#[derive(Debug)]
pub struct Line {
    /// Verbatim from the article.
    pub text: &'static str,
    /// The settings that the line sets, and their values.
    sets: &'static [(&'static str, u64)],
    pub rating: Rating,
    pub because: &'static str,
    /// What to do instead.
    pub instead: &'static str,
}

/// Sources: the critique of the article in the project's incident facts, kube-proxy's defaults, and the
/// kernel's (`settings/table.rs`).
pub const LINES: &[Line] = &[
    Line {
        text: "sysctl -w net.netfilter.nf_conntrack_max=131072",
        sets: &[("net.netfilter.nf_conntrack_max", 131_072)],
        rating: Rating::Harmful,
        because: "no fixed number fits every node. 131072 is kube-proxy's minimum, and half of the kernel's \
                  default on more than 4 GiB. A full table drops new connections; it does not reset \
                  idle ones",
        instead: "twice the peak, rounded up to a multiple of 65536, and never less than now; in \
                  kube-proxy's conntrack.min where it runs (rsttrace plan --from-host, rsttrace fix \
                  conntrack_table_full)",
    },
    Line {
        text: "sysctl -w net.netfilter.nf_conntrack_buckets=32768",
        sets: &[("net.netfilter.nf_conntrack_buckets", 32_768)],
        rating: Rating::Harmful,
        because: "a quarter of the maximum was the default before 5.15, and a full table then has chains \
                  of 8. Today's default is one bucket for each entry, with chains of 2",
        instead: "as many buckets as entries, and never fewer than now",
    },
    Line {
        text: "ipvsadm --set 7200 120 300",
        sets: &[("ipvs.tcp", 7200), ("ipvs.tcpfin", 120), ("ipvs.udp", 300)],
        rating: Rating::HelpsIf,
        because: "the clients cannot send keepalives and are never idle for more than two hours. 7200 is \
                  the one number of the article that helps. 120 and 300 are the defaults. The values \
                  are lost at a reboot, entries already idle keep their old timer, and the command \
                  changes one network namespace only",
        instead: "keepalives below a third of the timeout; otherwise `rsttrace fix ipvs_idle_expired --idle \
                  2h`, or ipvs.tcpTimeout: 2h in kube-proxy's configuration",
    },
    Line {
        text: "sysctl -w net.ipv4.tcp_keepalive_time=7200",
        sets: &[("net.ipv4.tcp_keepalive_time", 7200)],
        rating: Rating::NoEffect,
        because: "7200 is the kernel's default. A keepalive time equal to the other two timeouts comes too \
                  late, because timers fire up to 1/8 late. The sysctl affects only sockets with \
                  SO_KEEPALIVE in this namespace, and no pod",
        instead: "a third of the shortest limit on the path, in the application (rsttrace fix \
                  ipvs_idle_expired --for …) or in the pod's securityContext.sysctls",
    },
    Line {
        text: "sysctl -w net.ipv4.tcp_keepalive_intvl=75",
        sets: &[("net.ipv4.tcp_keepalive_intvl", 75)],
        rating: Rating::NoEffect,
        because: "75 is the kernel's default",
        instead: "15 to 30 s, if a dead peer is to be detected soon",
    },
    Line {
        text: "sysctl -w net.ipv4.tcp_keepalive_probes=5",
        sets: &[("net.ipv4.tcp_keepalive_probes", 5)],
        rating: Rating::HelpsIf,
        because: "a dead peer should be detected after 7575 s instead of 7875 s. The setting does not \
                  affect resets",
        instead: "3 to 5, with a short time",
    },
    Line {
        text: "sysctl -w net.netfilter.nf_conntrack_tcp_timeout_established=7200",
        sets: &[("net.netfilter.nf_conntrack_tcp_timeout_established", 7200)],
        rating: Rating::HelpsIf,
        because: "dead connections fill the table and all others send keepalives. The value shortens a \
                  limit, from 432000 s to 7200 s. kube-proxy writes its own 86400 at its next start",
        instead: "keep it 15 % longer than every other limit on the path; under kube-proxy set \
                  conntrack.tcpEstablishedTimeout",
    },
    Line {
        text: "sysctl -w net.netfilter.nf_conntrack_tcp_timeout_time_wait=120",
        sets: &[("net.netfilter.nf_conntrack_tcp_timeout_time_wait", 120)],
        rating: Rating::NoEffect,
        because: "120 is the kernel's default",
        instead: "30 to 60, only where short connections fill the table",
    },
    Line {
        text: "sysctl -w net.netfilter.nf_conntrack_udp_timeout=300",
        sets: &[("net.netfilter.nf_conntrack_udp_timeout", 300)],
        rating: Rating::Harmful,
        because: "it is ten times the default, so DNS fills the table ten times as much (131072 entries \
                  hold 437 new UDP flows/s instead of 4369), and stale entries stay longer. It does \
                  not affect TCP",
        instead: "leave the default of 30",
    },
    Line {
        text: "sysctl -w net.netfilter.nf_conntrack_udp_timeout_stream=300",
        sets: &[("net.netfilter.nf_conntrack_udp_timeout_stream", 300)],
        rating: Rating::Harmful,
        because: "the same for UDP flows with an answer; the default is 120",
        instead: "leave the default",
    },
    Line {
        text: "/etc/sysctl.d/99-custom.conf with all of these",
        sets: &[],
        rating: Rating::Incomplete,
        because: "it cannot hold the IPVS timeouts, which no sysctl has. After a reboot IPVS has 900 s \
                  again while keepalive still has 7200, and the resets return. nf_conntrack may be \
                  loaded after the file is applied, and kube-proxy overwrites the settings that it owns",
        instead: "modules-load.d for nf_conntrack; a systemd unit or kube-proxy's configuration for IPVS \
                  (both are part of every plan here)",
    },
    Line {
        text: "cat /proc/sys/net/netfilter/nf_conntrack_count",
        sets: &[],
        rating: Rating::Incomplete,
        because: "one reading hides bursts, and shows nothing about idle connections",
        instead: "drop, early_drop and insert_failed of conntrack -S over time; rsttrace check",
    },
    Line {
        text: "ipvsadm -Ln --timeout",
        sets: &[],
        rating: Rating::HelpsIf,
        because: "you run it in the network namespace that owns the table",
        instead: "ipvsadm -Lnc as well, which shows the time that each entry has left",
    },
];

/// What a line would change on this host: "900 -> 7200". Empty when the host's namespace was not read.
pub fn effects(line: &Line, context: &FixContext<'_>) -> Vec<String> {
    let places =
        context.places(|netns| Some(netns.place.netns) == context.host().map(|h| h.place.netns));
    let Some(netns) = places.first() else {
        return Vec::new();
    };
    let effect = |(key, to): &(&'static str, u64)| match context.value(netns, key) {
        None => format!("{key}: not present {}", netns.place.describe()),
        Some(now) if now == *to => format!("{key}: already set to {now}"),
        Some(now) => {
            let less = lowers_capacity(key) && *to < now;
            format!("{key}: {now} -> {to}{}", if less { " (lower than now)" } else { "" })
        }
    };
    line.sets.iter().map(effect).collect()
}

fn lowers_capacity(key: &str) -> bool {
    Setting::find(key).is_some_and(|setting| setting.scope == Scope::Machine)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_of_the_article_is_in_the_allow_list() {
        for (key, to) in LINES.iter().flat_map(|line| line.sets) {
            let setting = Setting::find(key).expect(key);
            assert!(setting.writable && setting.range.0 <= *to && *to <= setting.range.1, "{key}");
        }
    }

    #[test]
    fn a_line_rated_no_effect_sets_the_kernels_default() {
        for line in LINES.iter().filter(|line| line.rating == Rating::NoEffect) {
            for (key, to) in line.sets {
                let default = Setting::find(key).and_then(|setting| setting.default);
                assert_eq!(default, Some(*to), "{key}");
            }
        }
    }
}
