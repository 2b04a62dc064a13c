//! What kube-proxy writes into the kernel's settings when it starts, by its mode and configuration.

mod table;

use std::collections::{BTreeMap, BTreeSet};

pub use table::{FIELDS, Field, FieldKind, WRITES, Write, Writes};

/// kube-proxy's mode on Linux.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The default, of an empty `mode` too (`platformApplyDefaults`, cmd/kube-proxy/app/server_linux.go).
    Iptables,
    Ipvs,
    Nftables,
}

impl Mode {
    pub const ALL: [Self; 3] = [Self::Iptables, Self::Ipvs, Self::Nftables];

    /// Its name in the configuration.
    pub fn id(self) -> &'static str {
        match self {
            Self::Iptables => "iptables",
            Self::Ipvs => "ipvs",
            Self::Nftables => "nftables",
        }
    }
}

/// The value of a field of KubeProxyConfiguration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldValue {
    Count(u64),
    Switch(bool),
    /// Nanoseconds, as Go keeps a duration.
    Duration(u64),
}

/// What kube-proxy writes into one setting at its next start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    Nothing,
    Value(u64),
    /// It may write the setting, but what its configuration says could not be read.
    Unknown,
}

/// The program that runs kube-proxy, which decides where its configuration is changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Packaging {
    /// A process of its own, of the DaemonSet of kubeadm, kind and others or of a unit of the node.
    #[default]
    Own,
    /// Inside `k3s server` or `k3s agent`.
    K3s,
    /// A static pod of RKE2.
    Rke2,
    /// Inside MicroK8s' kubelite.
    Microk8s,
}

/// The name that stands in [`KubeProxy::unread`] for the mode.
pub const MODE: &str = "mode";

/// kube-proxy on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KubeProxy {
    /// `None` where only its file is there.
    pub pid: Option<u32>,
    pub packaging: Packaging,
    /// Path of its configuration, on the node or in its container.
    pub file: Option<String>,
    /// As configured: `ipvs`, `iptables`, `nftables`; `None` where it is not set.
    pub mode: Option<String>,
    /// The fields that are set in its configuration, as `ipvs.tcpTimeout`.
    pub fields: BTreeMap<&'static str, FieldValue>,
    /// The fields that may be set but could not be read, and [`MODE`]. Nothing is known of their values, not
    /// even that they are the defaults.
    pub unread: BTreeSet<&'static str>,
}

impl KubeProxy {
    /// Nothing of its configuration could be read.
    pub fn forget_all(&mut self) {
        self.mode = None;
        self.fields.clear();
        self.unread = FIELDS.iter().map(|field| field.path).chain([MODE]).collect();
    }

    /// The mode that it runs in; `None` if that is not known.
    pub fn runs_as(&self) -> Option<Mode> {
        if self.unread.contains(MODE) {
            return None;
        }
        match self.mode.as_deref() {
            None | Some("") => Some(Mode::Iptables),
            Some(name) => Mode::ALL.into_iter().find(|mode| mode.id() == name),
        }
    }

    /// What it writes into a setting when it starts.
    pub fn written(&self, setting: &str, cpus: u32) -> Written {
        let Some(row) = WRITES.iter().find(|row| row.key == setting) else {
            return Written::Nothing;
        };
        match self.runs_as() {
            Some(mode) if !row.modes.contains(&mode) => return Written::Nothing,
            None if row.modes.len() < Mode::ALL.len() => return Written::Unknown,
            _ => {}
        }
        if row.fields().iter().any(|field| self.unread.contains(field)) {
            return Written::Unknown;
        }
        let value = match row.writes {
            Writes::Always(value) => Some(value),
            Writes::If { field, by_default, value } => {
                self.switch(field, by_default).then_some(value)
            }
            // Whole seconds, cut off (`Duration / time.Second`): 500ms is more than zero and writes 0.
            Writes::Seconds { field, default_s } => {
                let nanoseconds = self.nanoseconds(field, default_s);
                (nanoseconds != 0).then_some(nanoseconds / NANOSECONDS)
            }
            // The kernel keeps a timeout that is set to 0 (ip_vs_set_timeout).
            Writes::IpvsSeconds { field } => {
                Some(self.nanoseconds(field, 0) / NANOSECONDS).filter(|it| *it != 0)
            }
            Writes::ConntrackMax => self.conntrack_max(cpus),
        };
        value.map_or(Written::Nothing, Written::Value)
    }

    /// The value that it writes into a setting when it starts; `None` if it writes none, or if the value is not
    /// known.
    pub fn writes(&self, setting: &str, cpus: u32) -> Option<u64> {
        match self.written(setting, cpus) {
            Written::Value(value) => Some(value),
            Written::Nothing | Written::Unknown => None,
        }
    }

    /// What its next start does to a setting that has this value now, as a clause: "kube-proxy (pid 12) writes 600
    /// when it starts (ipvs.tcpTimeout)". `None` if the value stays.
    pub fn at_next_start(&self, setting: &str, value: u64, cpus: u32) -> Option<String> {
        let row = Write::of(setting)?;
        let who = self.describe();
        match self.written(setting, cpus) {
            Written::Nothing => None,
            Written::Value(writes) if writes == value => None,
            Written::Value(writes) => {
                let by_version = row.by_version.filter(|_| value > writes);
                let by_version = by_version.map_or(String::new(), |it| format!("; {it}"));
                Some(format!("{who} writes {writes} when it starts ({}{by_version})", self.by(row)))
            }
            Written::Unknown => Some(format!(
                "{who} may write it when it starts ({}), but its configuration could not be read",
                self.by(row)
            )),
        }
    }

    /// The field that decides, or the mode in which the value is always written.
    pub fn by(&self, row: &Write) -> String {
        match row.fields() {
            [] => {
                let modes: Vec<_> = row.modes.iter().map(|mode| mode.id()).collect();
                format!("always in {} mode", modes.join(" and "))
            }
            fields => fields.join(", "),
        }
    }

    /// The fields and their values with which it would write `to` into a setting. Empty if no field does that.
    pub fn fields_for(&self, setting: &str, to: u64, cpus: u32) -> Vec<(&'static Field, String)> {
        let field = |path: &str, value: String| {
            FIELDS.iter().find(|it| it.path == path).map(|field| (field, value))
        };
        let list = match Write::of(setting).map(|row| row.writes) {
            Some(Writes::ConntrackMax) => {
                // Zero for each CPU turns both fields off, and a larger product hides `min`.
                let fits = self.conntrack_max(cpus).is_some_and(|now| now <= to);
                let is_read = !self.unread.contains("conntrack.maxPerCore");
                let per_core = (to / u64::from(cpus.max(1))).max(1).to_string();
                let per_core = field("conntrack.maxPerCore", per_core);
                [per_core.filter(|_| !(fits && is_read)), field("conntrack.min", to.to_string())]
            }
            Some(Writes::Seconds { field: path, .. } | Writes::IpvsSeconds { field: path }) => {
                [field(path, format!("{to}s")), None]
            }
            Some(Writes::If { field: path, value, .. }) if to == value || to == 0 => {
                [field(path, (to == value).to_string()), None]
            }
            Some(Writes::If { .. } | Writes::Always(_)) | None => [None, None],
        };
        list.into_iter().flatten().collect()
    }

    fn switch(&self, field: &str, by_default: bool) -> bool {
        match self.fields.get(field) {
            Some(FieldValue::Switch(on)) => *on,
            _ => by_default,
        }
    }

    fn nanoseconds(&self, field: &str, default_s: u64) -> u64 {
        match self.fields.get(field) {
            Some(FieldValue::Duration(nanoseconds)) => *nanoseconds,
            _ => default_s * NANOSECONDS,
        }
    }

    /// `getConntrackMax`, cmd/kube-proxy/app/server_linux.go.
    fn conntrack_max(&self, cpus: u32) -> Option<u64> {
        let count = |field, default| match self.fields.get(field) {
            Some(FieldValue::Count(count)) => *count,
            _ => default,
        };
        let per_core = count("conntrack.maxPerCore", table::DEFAULT_MAX_PER_CORE);
        let min = count("conntrack.min", table::DEFAULT_MIN);
        (per_core != 0).then(|| per_core.saturating_mul(cpus.into()).max(min))
    }

    /// "kube-proxy (pid 12, /var/lib/kube-proxy/config.conf)"
    pub fn describe(&self) -> String {
        let name = match self.packaging {
            Packaging::Own | Packaging::Rke2 => "kube-proxy",
            Packaging::K3s => "kube-proxy in k3s",
            Packaging::Microk8s => "kube-proxy in MicroK8s",
        };
        let pid = self.pid.map(|pid| format!("pid {pid}"));
        let parts: Vec<String> = pid.into_iter().chain(self.file.clone()).collect();
        match parts.is_empty() {
            true => name.into(),
            false => format!("{name} ({})", parts.join(", ")),
        }
    }
}

/// Nanoseconds of a second.
pub const NANOSECONDS: u64 = 1_000_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    const ESTABLISHED: &str = "net.netfilter.nf_conntrack_tcp_timeout_established";

    fn proxy(mode: &str, fields: &[(&'static str, FieldValue)]) -> KubeProxy {
        let fields = fields.iter().copied().collect();
        KubeProxy { mode: Some(mode.into()), fields, ..KubeProxy::default() }
    }

    #[test]
    fn each_mode_writes_its_own_settings_and_all_write_those_of_conntrack() {
        let writes = |mode, key| proxy(mode, &[]).writes(key, 2);
        assert_eq!(writes("ipvs", "net.ipv4.vs.conntrack"), Some(1));
        assert_eq!(writes("ipvs", "net.ipv4.vs.expire_nodest_conn"), Some(1));
        assert_eq!(writes("nftables", "net.ipv4.vs.conntrack"), None);
        assert_eq!(writes("iptables", "net.ipv4.conf.all.route_localnet"), Some(1));
        assert_eq!(writes("", "net.ipv4.conf.all.route_localnet"), Some(1));
        assert_eq!(writes("ipvs", "net.ipv4.conf.all.route_localnet"), None);
        assert_eq!(writes("ipvs", "net.ipv4.conf.all.arp_ignore"), None);
        assert_eq!(writes("ipvs", "net.ipv4.vs.conn_reuse_mode"), None);
        for mode in ["", "iptables", "ipvs", "nftables"] {
            assert_eq!(writes(mode, ESTABLISHED), Some(86_400), "{mode}");
            assert_eq!(writes(mode, "net.netfilter.nf_conntrack_max"), Some(131_072), "{mode}");
            assert_eq!(writes(mode, "net.netfilter.nf_conntrack_tcp_be_liberal"), None, "{mode}");
        }
    }

    #[test]
    fn switches_turn_writes_on_and_off() {
        let arp = proxy("ipvs", &[("ipvs.strictARP", FieldValue::Switch(true))]);
        assert_eq!(arp.writes("net.ipv4.conf.all.arp_announce", 2), Some(2));
        let no = proxy("", &[("iptables.localhostNodePorts", FieldValue::Switch(false))]);
        assert_eq!(no.writes("net.ipv4.conf.all.route_localnet", 2), None);
        let liberal = proxy("", &[("conntrack.tcpBeLiberal", FieldValue::Switch(true))]);
        assert_eq!(liberal.writes("net.netfilter.nf_conntrack_tcp_be_liberal", 2), Some(1));
    }

    #[test]
    fn seconds_are_cut_off_and_a_half_second_writes_zero_but_zero_writes_nothing() {
        let of = |nanoseconds| {
            let value = FieldValue::Duration(nanoseconds);
            let fields = [("conntrack.tcpEstablishedTimeout", value), ("ipvs.tcpTimeout", value)];
            let proxy = proxy("ipvs", &fields);
            (proxy.writes(ESTABLISHED, 2), proxy.writes("ipvs.tcp", 2))
        };
        assert_eq!(of(120_500_000_000), (Some(120), Some(120)));
        assert_eq!(of(500_000_000), (Some(0), None));
        assert_eq!(of(0), (None, None));
    }

    #[test]
    fn the_larger_of_both_conntrack_limits_is_written_and_none_without_a_limit_per_core() {
        let max =
            |fields: &[_], cpus| proxy("", fields).writes("net.netfilter.nf_conntrack_max", cpus);
        assert_eq!(max(&[], 16), Some(524_288));
        assert_eq!(max(&[("conntrack.min", FieldValue::Count(1_000_000))], 16), Some(1_000_000));
        assert_eq!(max(&[("conntrack.maxPerCore", FieldValue::Count(0))], 16), None);
    }

    #[test]
    fn what_could_not_be_read_is_unknown_and_no_default() {
        let mut proxy = KubeProxy::default();
        proxy.unread.insert("conntrack.min");
        assert_eq!(proxy.written("net.netfilter.nf_conntrack_max", 2), Written::Unknown);
        assert_eq!(proxy.written(ESTABLISHED, 2), Written::Value(86_400));
        proxy.forget_all();
        assert_eq!(proxy.runs_as(), None);
        for key in [ESTABLISHED, "net.ipv4.vs.conntrack", "ipvs.tcp"] {
            assert_eq!(proxy.written(key, 2), Written::Unknown, "{key}");
        }
        assert_eq!(proxy.written("net.core.somaxconn", 2), Written::Nothing);
    }

    #[test]
    fn what_the_next_start_does_is_said_with_the_field_and_where_versions_differ() {
        let proxy = KubeProxy { pid: Some(12), ..proxy("ipvs", &[]) };
        let says = |key, value| proxy.at_next_start(key, value, 2);
        assert_eq!(
            says(ESTABLISHED, 7200).as_deref(),
            Some(
                "kube-proxy (pid 12) writes 86400 when it starts (conntrack.tcpEstablishedTimeout)"
            )
        );
        assert_eq!(says(ESTABLISHED, 86_400), None);
        assert_eq!(says("ipvs.tcp", 7200), None);
        let max = "net.netfilter.nf_conntrack_max";
        let lowers = says(max, 262_144).expect("it may be lowered");
        assert!(
            lowers.contains("; versions from 1.37 on raise it but never lower it)"),
            "{lowers}"
        );
        assert!(!says(max, 65_536).expect("it is raised").contains("versions"));
        let always = says("net.ipv4.vs.conntrack", 0).expect("it is written");
        assert!(always.ends_with("writes 1 when it starts (always in ipvs mode)"), "{always}");
    }

    #[test]
    fn the_fields_for_a_value_are_those_with_which_it_is_written() {
        let key = "net.netfilter.nf_conntrack_max";
        for (per_core, to) in [(32_768, 262_144), (32_768, 65_536), (0, 262_144), (131_072, 3)] {
            let mut proxy = proxy("", &[("conntrack.maxPerCore", FieldValue::Count(per_core))]);
            for (field, value) in proxy.fields_for(key, to, 4) {
                let value = FieldValue::Count(value.parse().expect("a count"));
                proxy.fields.insert(field.path, value);
            }
            assert_eq!(proxy.writes(key, 4).filter(|_| to > 4).unwrap_or(to), to);
        }
        let of = |key, to| -> Vec<_> {
            let fields = KubeProxy::default().fields_for(key, to, 4);
            fields.into_iter().map(|(field, value)| format!("{}={value}", field.path)).collect()
        };
        assert_eq!(of("ipvs.tcp", 7200), ["ipvs.tcpTimeout=7200s"]);
        let liberal = "net.netfilter.nf_conntrack_tcp_be_liberal";
        assert_eq!(of(liberal, 1), ["conntrack.tcpBeLiberal=true"]);
        assert_eq!(of("net.ipv4.vs.expire_nodest_conn", 0), [""; 0]);
    }

    #[test]
    fn the_table_names_only_fields_that_are_read_and_each_setting_once() {
        for (at, row) in WRITES.iter().enumerate() {
            assert!(WRITES[..at].iter().all(|other| other.key != row.key), "{}", row.key);
            assert!(!row.modes.is_empty() && !row.source.is_empty(), "{}", row.key);
            for field in row.fields() {
                assert!(FIELDS.iter().any(|it| it.path == *field), "{field}");
            }
        }
    }
}
