//! The settings of the article that many come from ("Resolving DB Connection Error (ECONNRESET)
//! Issues", somaz.blog), literally, each with what it does on a host as it is.

use rsttrace_core::causes::scene::Scene;
use rsttrace_model::settings::{Scope, Setting};

/// What we think of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Do it, under the condition that is told.
    RightWhen,
    /// It sets what is set.
    NoOp,
    /// It does not do what it is for.
    Wrong,
    /// Something is missing.
    Incomplete,
}

impl Verdict {
    pub fn id(self) -> &'static str {
        match self {
            Self::RightWhen => "right when",
            Self::NoOp => "no-op",
            Self::Wrong => "wrong",
            Self::Incomplete => "incomplete",
        }
    }
}

/// A line of the article.
#[derive(Debug)]
pub struct Line {
    /// As it is printed there.
    pub text: &'static str,
    /// The settings and values that it sets.
    sets: &'static [(&'static str, u64)],
    pub verdict: Verdict,
    pub because: &'static str,
    /// What we would do instead.
    pub instead: &'static str,
}

/// Sources: the critique of the article in the project's incident facts, kube-proxy's defaults, and the
/// kernel's (`settings/table.rs`).
pub const LINES: &[Line] = &[
    Line {
        text: "sysctl -w net.netfilter.nf_conntrack_max=131072",
        sets: &[("net.netfilter.nf_conntrack_max", 131_072)],
        verdict: Verdict::Wrong,
        because: "no fixed number fits: it is kube-proxy's floor, and half of the kernel's default on \
                  more than 4 GiB. A full table drops new connections; it does not reset idle ones",
        instead: "twice the peak, rounded up to a multiple of 65536, and never less than now; in \
                  kube-proxy's conntrack.min where it runs (rsttrace plan --from-host, rsttrace fix \
                  conntrack_table_full)",
    },
    Line {
        text: "sysctl -w net.netfilter.nf_conntrack_buckets=32768",
        sets: &[("net.netfilter.nf_conntrack_buckets", 32_768)],
        verdict: Verdict::Wrong,
        because: "a quarter of the maximum was the default before 5.15: a full table then has chains of \
                  8; today's default is one bucket for each entry, and chains of 2",
        instead: "as many buckets as entries, and never fewer than now",
    },
    Line {
        text: "ipvsadm --set 7200 120 300",
        sets: &[("ipvs.tcp", 7200), ("ipvs.tcpfin", 120), ("ipvs.udp", 300)],
        verdict: Verdict::RightWhen,
        because: "the clients cannot send keepalives and are never silent for more than two hours: 7200 \
                  is the one number of the article that helps. 120 and 300 are the defaults. A reboot \
                  forgets it, entries already idle keep their old timer, and it reaches one network \
                  namespace",
        instead: "keepalives below a third of the timeout; else `rsttrace fix ipvs_idle_expired --idle \
                  2h`, or ipvs.tcpTimeout: 2h in kube-proxy's configuration",
    },
    Line {
        text: "sysctl -w net.ipv4.tcp_keepalive_time=7200",
        sets: &[("net.ipv4.tcp_keepalive_time", 7200)],
        verdict: Verdict::NoOp,
        because: "it is the kernel's default; and equal to the other two timeouts it loses the race, \
                  because timers fire up to 1/8 late. It reaches sockets with SO_KEEPALIVE in this \
                  namespace only, and no pod",
        instead: "a third of the shortest limit on the path, in the application (rsttrace fix \
                  ipvs_idle_expired --for …) or in the pod's securityContext.sysctls",
    },
    Line {
        text: "sysctl -w net.ipv4.tcp_keepalive_intvl=75",
        sets: &[("net.ipv4.tcp_keepalive_intvl", 75)],
        verdict: Verdict::NoOp,
        because: "it is the kernel's default",
        instead: "15 to 30 s, if a dead peer is to be detected soon",
    },
    Line {
        text: "sysctl -w net.ipv4.tcp_keepalive_probes=5",
        sets: &[("net.ipv4.tcp_keepalive_probes", 5)],
        verdict: Verdict::RightWhen,
        because: "a dead peer is to be detected after 7575 s instead of 7875 s; it has nothing to do with \
                  resets",
        instead: "3 to 5, with a short time",
    },
    Line {
        text: "sysctl -w net.netfilter.nf_conntrack_tcp_timeout_established=7200",
        sets: &[("net.netfilter.nf_conntrack_tcp_timeout_established", 7200)],
        verdict: Verdict::RightWhen,
        because: "dead connections fill the table and all others send keepalives: it makes a limit \
                  shorter, 7200 s instead of 432000 s. kube-proxy writes its own 86400 at its next start",
        instead: "leave it longer than every other limit of the path by 15 %; under kube-proxy \
                  conntrack.tcpEstablishedTimeout",
    },
    Line {
        text: "sysctl -w net.netfilter.nf_conntrack_tcp_timeout_time_wait=120",
        sets: &[("net.netfilter.nf_conntrack_tcp_timeout_time_wait", 120)],
        verdict: Verdict::NoOp,
        because: "it is the kernel's default",
        instead: "30 to 60, only where short connections fill the table",
    },
    Line {
        text: "sysctl -w net.netfilter.nf_conntrack_udp_timeout=300",
        sets: &[("net.netfilter.nf_conntrack_udp_timeout", 300)],
        verdict: Verdict::Wrong,
        because: "ten times the default: DNS fills the table ten times as much (131072 entries hold 437 \
                  new UDP flows/s instead of 4369), and stale entries live longer. No TCP connection \
                  is touched",
        instead: "leave the default of 30",
    },
    Line {
        text: "sysctl -w net.netfilter.nf_conntrack_udp_timeout_stream=300",
        sets: &[("net.netfilter.nf_conntrack_udp_timeout_stream", 300)],
        verdict: Verdict::Wrong,
        because: "the same, for flows that answered; the default is 120",
        instead: "leave the default",
    },
    Line {
        text: "/etc/sysctl.d/99-custom.conf with all of these",
        sets: &[],
        verdict: Verdict::Incomplete,
        because: "it cannot hold the IPVS timeouts, which no sysctl has: after a reboot IPVS has 900 s \
                  again while keepalive still has 7200, and the resets are back. nf_conntrack may be \
                  loaded after the file is applied, and kube-proxy overwrites what it owns",
        instead: "modules-load.d for nf_conntrack; a systemd unit or kube-proxy's configuration for IPVS \
                  (both are part of every plan here)",
    },
    Line {
        text: "cat /proc/sys/net/netfilter/nf_conntrack_count",
        sets: &[],
        verdict: Verdict::Incomplete,
        because: "a moment's count hides bursts, and says nothing of idle connections",
        instead: "drop, early_drop and insert_failed of conntrack -S over time; rsttrace check",
    },
    Line {
        text: "ipvsadm -Ln --timeout",
        sets: &[],
        verdict: Verdict::RightWhen,
        because: "it is run in the network namespace that owns the table",
        instead: "ipvsadm -Lnc as well, which shows what each entry has left",
    },
];

/// What a line would change here: "900 -> 7200". Empty where there is nothing of the kind.
pub fn effects(line: &Line, scene: &Scene<'_>) -> Vec<String> {
    let places =
        scene.places(|netns| Some(netns.place.netns) == scene.host().map(|h| h.place.netns));
    let Some(netns) = places.first() else {
        return Vec::new();
    };
    let effect = |(key, to): &(&'static str, u64)| match scene.value(netns, key) {
        None => format!("{key}: not there {}", netns.place.describe()),
        Some(now) if now == *to => format!("{key}: {now} already"),
        Some(now) => {
            let less = lowers_capacity(key) && *to < now;
            format!("{key}: {now} -> {to}{}", if less { ", which is less than now" } else { "" })
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
    fn what_is_called_a_no_op_is_the_kernels_default() {
        for line in LINES.iter().filter(|line| line.verdict == Verdict::NoOp) {
            for (key, to) in line.sets {
                let default = Setting::find(key).and_then(|setting| setting.default);
                assert_eq!(default, Some(*to), "{key}");
            }
        }
    }
}
