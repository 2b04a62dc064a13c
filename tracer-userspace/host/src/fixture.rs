//! A directory that stands in for a host: copies of the host's files, below the same paths.
//!
//! ```text
//! proc/sys/…  proc/meminfo  proc/net/{netstat,ip_vs,ip_vs_conn,ip_tables_names,stat/nf_conntrack}
//! proc/PID/{comm,cmdline,root/…}   sys/…   etc/…   run/…   usr/lib/…   lib/…
//! ipvs-timeouts             output of `ipvsadm -Ln --timeout`, because no kernel file shows the timeouts
//! nft-ruleset               output of `nft -a list ruleset`
//! run/netns/NAME/…          the same files for each further network namespace
//! ```

use std::{
    fs,
    io::{self, BufReader},
    path::{Path, PathBuf},
};

use rsttrace_model::{
    conntrack::ConntrackState,
    ipvs::IpvsState,
    netns::{NetnsReach, NetnsState},
    settings::Scope,
};

use super::{
    conntrack, counters, firewall, ipvs_conn, ipvs_services, machine,
    scan::{MachineFacts, NetnsContents, NetnsScan, values_in},
};

/// Entries of one IPVS table.
const MOST_ENTRIES: usize = super::survey::MOST_ENTRIES;

/// Reads the facts about the whole host.
///
/// # Errors
/// When the directory contains no `proc` directory, and so is not a copy of a host.
pub fn machine(root: &Path) -> io::Result<MachineFacts> {
    let proc = root.join("proc");
    if !proc.is_dir() {
        let text = format!("`{}` is not a directory", proc.display());
        return Err(io::Error::new(io::ErrorKind::NotFound, text));
    }
    let text = |path: &str| fs::read_to_string(root.join(path)).unwrap_or_default();
    Ok(MachineFacts {
        release: text("proc/sys/kernel/osrelease").trim().to_owned(),
        cpus: machine::cpus_in(&text("sys/devices/system/cpu/online")).unwrap_or(1),
        ram_bytes: machine::mem_total(&text("proc/meminfo")),
    })
}

/// The network namespaces of the host, the initial one first. The others follow in the order of their names.
/// Their numbers count from 1.
pub fn namespaces(root: &Path) -> Vec<NetnsScan> {
    let mut named: Vec<PathBuf> = fs::read_dir(root.join("run/netns"))
        .map(|entries| entries.flatten().map(|it| it.path()).filter(|it| it.is_dir()).collect())
        .unwrap_or_default();
    named.sort_unstable();
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let others = named.into_iter().map(|path| {
        let reach = NetnsReach::Named(format!("/run/netns/{}", name(&path)));
        (path, reach)
    });
    let all = [(root.to_owned(), NetnsReach::Initial)].into_iter().chain(others);
    all.zip(1..)
        .map(|((path, reach), inum)| NetnsScan { inum, reach, contents: Ok(contents(&path)) })
        .collect()
}

fn contents(root: &Path) -> NetnsContents {
    let net = |file: &str| fs::read_to_string(root.join("proc/net").join(file)).ok();
    let ipvs = net("ip_vs").map(|text| IpvsState {
        services: Some(ipvs_services::parse(&text)),
        ..timeouts(root).unwrap_or_default()
    });
    let firewall =
        fs::read_to_string(root.join("nft-ruleset")).ok().map(|text| firewall::parse(&text));
    let legacy_nat =
        net("ip_tables_names").is_some_and(|names| names.lines().any(|name| name == "nat"));
    let state = NetnsState {
        conntrack: net("stat/nf_conntrack").map(|text| ConntrackState {
            stat: conntrack::parse_stat(&text),
            ..ConntrackState::default()
        }),
        counters: net("netstat").map(|text| counters::parse(&text)).unwrap_or_default(),
        translates: Some(legacy_nat || firewall.as_ref().is_some_and(|it| it.translates)),
        ipvs,
        ..NetnsState::default()
    };
    let table = fs::File::open(root.join("proc/net/ip_vs_conn")).ok();
    NetnsContents {
        values: values_in(root, Scope::Netns, state.ipvs.as_ref()),
        machine: crate::settings::read_files(root, Scope::Machine),
        addresses: None,
        connections: None,
        listeners: None,
        ipvs: table.and_then(|file| ipvs_conn::parse(BufReader::new(file), MOST_ENTRIES).ok()),
        firewall,
        legacy_tables: firewall::legacy_in(&root.join("proc/net")),
        state,
    }
}

/// Parses `Timeout (tcp tcpfin udp): 900 120 300`, seconds.
fn timeouts(root: &Path) -> Option<IpvsState> {
    let text = fs::read_to_string(root.join("ipvs-timeouts")).ok()?;
    let mut numbers = text.rsplit(':').next()?.split_whitespace().map(|word| word.parse().ok());
    Some(IpvsState {
        timeout_tcp_s: numbers.next()?,
        timeout_tcpfin_s: numbers.next()?,
        timeout_udp_s: numbers.next()?,
        ..IpvsState::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TempRoot;

    #[test]
    fn a_copied_host_has_its_values_and_each_namespace_its_own() {
        let root = TempRoot::new();
        root.file("proc/sys/net/ipv4/tcp_keepalive_time", "7200\n");
        root.file("proc/sys/kernel/osrelease", "6.1.0\n");
        root.file("proc/net/ip_vs", "TCP  0A640001:0CEA rr\n");
        root.file("ipvs-timeouts", "Timeout (tcp tcpfin udp): 7200 120 300\n");
        root.file(
            "nft-ruleset",
            "table ip t {\nchain c {\ntype nat hook output priority 0;\n}\n}\n",
        );
        root.file("run/netns/web/proc/sys/net/ipv4/tcp_keepalive_time", "600\n");
        assert_eq!(machine(root.path()).expect("a proc").release, "6.1.0");
        let scans = namespaces(root.path());
        let time = |scan: &NetnsScan| {
            let contents = scan.contents.as_ref().expect("a directory");
            contents.values.number("net.ipv4.tcp_keepalive_time")
        };
        assert_eq!(scans.iter().map(time).collect::<Vec<_>>(), [Some(7200), Some(600)]);
        let first = scans[0].contents.as_ref().expect("a directory");
        assert_eq!(first.values.number("ipvs.tcp"), Some(7200));
        assert_eq!(first.state.translates, Some(true));
        assert_eq!(scans[1].reach, NetnsReach::Named("/run/netns/web".into()));
    }

    #[test]
    fn a_directory_without_proc_is_an_error() {
        assert!(machine(TempRoot::new().path()).is_err());
    }
}
