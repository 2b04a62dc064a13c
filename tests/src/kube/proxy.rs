//! The real kube-proxy as a child process in the node's namespace.

use std::{
    fmt,
    fs::{self, File},
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::cluster::NODE_NAME;
use crate::{actor::wait_until, tools};

/// Emulated, on two busy processors.
const STARTED_WITHIN: Duration = Duration::from_secs(120);
const HEALTH: &str = "127.0.0.1:10256";
const DIR: &str = "/run/kube";
const LOG: &str = "/run/kube/kube-proxy.log";

/// How kube-proxy programs the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    Ipvs,
    Nftables,
    Iptables,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ipvs => "ipvs",
            Self::Nftables => "nftables",
            Self::Iptables => "iptables",
        })
    }
}

impl Mode {
    /// What the kernel holds of the services, their addresses included.
    pub fn dump(self) -> Result<String> {
        let lines: &[&str] = match self {
            Self::Ipvs => &[
                "ipvsadm -Ln",
                "ip -4 addr show dev kube-ipvs0",
                "ipset list KUBE-IPVS-IPS",
                "ipset list KUBE-CLUSTER-IP",
            ],
            Self::Nftables => &["nft list table ip kube-proxy"],
            Self::Iptables => &["iptables-save"],
        };
        lines.iter().map(|line| tools::run(None, line, "")).collect()
    }

    /// Whether a dump has all of a service at this address.
    pub fn serves(self, dump: &str, address: IpAddr) -> bool {
        let address = address.to_string();
        match self {
            // The filter's sets come last, in any order: `10.96.0.10` and `10.96.0.10,tcp:3306`.
            Self::Ipvs => {
                let served = format!("{address},");
                dump.lines().any(|line| line == address)
                    && dump.lines().any(|line| line.starts_with(&served))
            }
            Self::Nftables | Self::Iptables => dump.contains(&address),
        }
    }

    /// Whether a dump sends new connections to this address of a pod.
    pub fn sends_to(self, dump: &str, pod: SocketAddr) -> bool {
        let (ip, port) = (pod.ip(), pod.port());
        dump.lines().any(|line| match self {
            // `  -> 10.244.2.11:3306  Masq  1  0  0`; a weight of 0 gets no new connections.
            Self::Ipvs => {
                let mut words = line.split_whitespace();
                words.next() == Some("->")
                    && words.next() == Some(&pod.to_string())
                    && words.nth(1).is_some_and(|weight| weight != "0")
            }
            // Chains of removed endpoints stay for a while, without a way to them.
            Self::Nftables => {
                let chain = format!("__{ip}/{port}");
                let rest = line.split_once("goto").and_then(|(_, to)| to.split_once(&chain));
                rest.is_some_and(|(_, rest)| !rest.starts_with(|it: char| it.is_ascii_digit()))
            }
            Self::Iptables => line.contains("KUBE-SVC") && line.contains(&format!("-> {pod}\"")),
        })
    }
}

/// Settings of kube-proxy that events change. In seconds; 0 would leave what ran before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    pub ipvs_tcp: u64,
    pub conntrack_established: u64,
}

pub struct KubeProxy {
    child: Child,
}

impl KubeProxy {
    /// Starts kube-proxy and waits until it has programmed the node for the first time.
    pub fn start(api: SocketAddr, mode: Mode, timeouts: Timeouts) -> Result<Self> {
        write_config(api, mode, timeouts)?;
        let log = File::options().create(true).append(true).open(LOG).context(LOG)?;
        let child = Command::new("kube-proxy")
            .args(["--config", &format!("{DIR}/config.json"), "-v", "2"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("start kube-proxy")?;
        let mut proxy = Self { child };
        wait_until(STARTED_WITHIN, "kube-proxy programmed the node", || {
            if let Some(status) = proxy.child.try_wait().context("kube-proxy's status")? {
                bail!("kube-proxy ended with {status}: {}", log_tail());
            }
            Ok(is_healthy())
        })
        .with_context(log_tail)?;
        Ok(proxy)
    }

    /// Ends kube-proxy as a kubelet does: SIGTERM. What it wrote stays.
    pub fn stop(mut self) -> Result<()> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        kill_process(pid.context("kube-proxy's pid")?, Signal::TERM).context("end kube-proxy")?;
        self.child.wait().context("wait for kube-proxy")?;
        Ok(())
    }
}

impl Drop for KubeProxy {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs `kube-proxy --cleanup`, which removes what every mode wrote.
///
/// In IPVS mode the first run ends with an error: it deletes chains that others still use, and these only then.
pub fn clean_up() -> Result<()> {
    let arguments = format!("kube-proxy --cleanup --config {DIR}/config.json");
    tools::run(None, &arguments, "").or_else(|_| tools::run(None, &arguments, "")).map(drop)
}

fn write_config(api: SocketAddr, mode: Mode, timeouts: Timeouts) -> Result<()> {
    fs::create_dir_all(DIR).context(DIR)?;
    let kubeconfig = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "tests",
        "clusters": [{"name": "tests", "cluster": {"server": format!("http://{api}")}}],
        "users": [{"name": "tests", "user": {}}],
        "contexts": [{"name": "tests", "context": {"cluster": "tests", "user": "tests"}}],
    });
    write(&format!("{DIR}/kubeconfig"), &kubeconfig)?;
    write(&format!("{DIR}/config.json"), &configuration(mode, timeouts))
}

fn configuration(mode: Mode, timeouts: Timeouts) -> Value {
    let sync = json!({"minSyncPeriod": "100ms", "syncPeriod": "5s"});
    let seconds = |number: u64| format!("{number}s");
    let mut ipvs = sync.clone();
    ipvs["tcpTimeout"] = json!(seconds(timeouts.ipvs_tcp));
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
        "clientConnection": {
            "kubeconfig": format!("{DIR}/kubeconfig"),
            "contentType": "application/json", "acceptContentTypes": "application/json",
        },
        "mode": mode.to_string(),
        "hostnameOverride": NODE_NAME,
        "clusterCIDR": "10.244.0.0/16",
        "healthzBindAddress": HEALTH,
        "metricsBindAddress": "127.0.0.1:10249",
        "conntrack": {"tcpEstablishedTimeout": seconds(timeouts.conntrack_established)},
        "iptables": sync, "nftables": sync, "ipvs": ipvs,
    })
}

fn write(path: &str, document: &Value) -> Result<()> {
    fs::write(Path::new(path), document.to_string()).with_context(|| format!("write {path}"))
}

/// `/healthz` answers 200 once the node has been programmed.
fn is_healthy() -> bool {
    let ask = || -> Result<bool> {
        let mut stream = TcpStream::connect(HEALTH)?;
        stream.write_all(b"GET /healthz HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer.split_whitespace().nth(1) == Some("200"))
    };
    ask().unwrap_or(false)
}

/// The last lines of kube-proxy's log, for an error message.
pub fn log_tail() -> String {
    let log = fs::read_to_string(LOG).unwrap_or_default();
    let lines: Vec<_> = log.lines().collect();
    lines[lines.len().saturating_sub(12)..].join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipvs_serves_an_address_only_once_both_sets_have_it() {
        let address = IpAddr::from([10, 96, 0, 10]);
        let table = "TCP  10.96.0.10:3306 rr\n";
        let rejects = format!("{table}Members:\n10.96.0.10\nMembers:\n");
        assert!(!Mode::Ipvs.serves(table, address) && !Mode::Ipvs.serves(&rejects, address));
        assert!(Mode::Ipvs.serves(&format!("{rejects}10.96.0.10,tcp:3306\n"), address));
    }

    #[test]
    fn only_a_pod_that_gets_new_connections_is_sent_to() {
        let [one, other] =
            ["10.244.2.11:3306", "10.244.2.12:3306"].map(|it| it.parse().expect("an address"));
        let ipvs = "TCP  10.96.0.10:3306 rr\n  -> 10.244.2.11:3306  Masq    1      0          0\n  \
                    -> 10.244.2.12:3306  Masq    0      1          0\n";
        assert!(Mode::Ipvs.sends_to(ipvs, one));
        assert!(!Mode::Ipvs.sends_to(ipvs, other));
        let nft = "chain endpoint-A-default/db/tcp/__10.244.2.12/3306 {\n\
                   numgen random mod 1 vmap { 0 : goto endpoint-B-default/db/tcp/__10.244.2.11/3306, 1 : drop }";
        assert!(Mode::Nftables.sends_to(nft, one));
        assert!(!Mode::Nftables.sends_to(nft, other));
        let iptables =
            "-A KUBE-SVC-X -m comment --comment \"default/db -> 10.244.2.11:3306\" -j KUBE-SEP-Y\n";
        assert!(Mode::Iptables.sends_to(iptables, one));
        assert!(!Mode::Iptables.sends_to(iptables, other));
    }
}
