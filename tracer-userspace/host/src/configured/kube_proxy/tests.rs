//! Hosts on which kube-proxy runs in one way or another.

use std::os::unix::fs::symlink;

use proptest::prelude::*;
use rsttrace_model::kube_proxy::Written;

use super::*;
use crate::testing::TempRoot;

const ESTABLISHED: &str = "net.netfilter.nf_conntrack_tcp_timeout_established";
const FILE: &str =
    "kind: KubeProxyConfiguration\nmode: ipvs\nconntrack:\n  tcpEstablishedTimeout: 2h\n";

fn process(root: &TempRoot, pid: u32, comm: &str, arguments: &[&str]) {
    root.file(&format!("proc/{pid}/comm"), &format!("{comm}\n"));
    root.file(&format!("proc/{pid}/cmdline"), &(arguments.join("\0") + "\0"));
}

fn configured(root: &TempRoot) -> Configured {
    let mut configured = Configured::default();
    read(root.path(), &mut configured);
    configured
}

fn found(root: &TempRoot) -> KubeProxy {
    configured(root).kube_proxy.expect("it runs")
}

#[test]
fn the_process_names_its_file_which_is_in_its_container_behind_the_links_of_a_configmap() {
    let root = TempRoot::new();
    let arguments = ["/usr/local/bin/kube-proxy", "--config=/var/x/config.conf", "--v=2"];
    process(&root, 12, "kube-proxy", &arguments);
    process(&root, 7, "other", &["other"]);
    root.file("proc/12/root/var/x/..2026/config.conf", FILE);
    // The host has another file of this name, which an absolute link must not reach.
    root.file("var/x/..2026/config.conf", "kind: KubeProxyConfiguration\nmode: iptables\n");
    let inside = root.path().join("proc/12/root/var/x");
    symlink("/var/x/..2026", inside.join("..data")).expect("a link");
    symlink("..data/config.conf", inside.join("config.conf")).expect("a link");
    let found = found(&root);
    assert_eq!((found.pid, found.mode.as_deref()), (Some(12), Some("ipvs")));
    assert_eq!(found.writes(ESTABLISHED, 2), Some(7200));
    assert_eq!(found.describe(), "kube-proxy (pid 12, /var/x/config.conf)");
}

#[test]
fn the_file_replaces_the_flags_and_the_last_config_flag_counts() {
    let root = TempRoot::new();
    let flags = ["kube-proxy", "--config=/a", "--proxy-mode=nftables", "--config", "/b"];
    process(&root, 12, "kube-proxy", &flags);
    root.file("a", "kind: KubeProxyConfiguration\n");
    root.file("b", FILE);
    assert_eq!(found(&root).mode.as_deref(), Some("ipvs"));
}

#[test]
fn without_a_file_the_flags_are_used() {
    let root = TempRoot::new();
    let flags = ["kube-proxy", "--config=", "--proxy-mode", "ipvs", "--ipvs-tcp-timeout=2h"];
    process(&root, 12, "kube-proxy", &flags);
    let found = found(&root);
    assert_eq!((found.mode.as_deref(), found.writes("ipvs.tcp", 2)), (Some("ipvs"), Some(7200)));
}

#[test]
fn a_file_that_cannot_be_read_is_reported_and_no_default_is_claimed() {
    let root = TempRoot::new();
    process(&root, 12, "kube-proxy", &["kube-proxy", "--config=/gone", "--proxy-mode=ipvs"]);
    // The file of the host is not the container's.
    root.file("gone", FILE);
    root.directory("proc/12/root");
    let configured = configured(&root);
    assert!(configured.unread[0].starts_with("/gone of kube-proxy (pid 12): No such file"));
    let proxy = configured.kube_proxy.expect("it runs");
    assert_eq!(proxy.written(ESTABLISHED, 2), Written::Unknown);
    process(&root, 12, "kube-proxy", &["kube-proxy", "--config=relative.conf"]);
    assert_eq!(found(&root).written(ESTABLISHED, 2), Written::Unknown);
}

#[test]
fn kube_proxy_is_found_by_its_program_and_as_a_part_of_hyperkube() {
    let root = TempRoot::new();
    process(&root, 12, "exe", &["/usr/local/bin/kube-proxy", "--proxy-mode=ipvs"]);
    assert_eq!(found(&root).mode.as_deref(), Some("ipvs"));
    process(&root, 11, "hyperkube", &["/hyperkube", "kubelet"]);
    assert_eq!(found(&root).pid, Some(12));
    process(&root, 11, "hyperkube", &["/hyperkube", "proxy", "--proxy-mode=nftables"]);
    assert_eq!(found(&root).mode.as_deref(), Some("nftables"));
}

#[test]
fn a_kube_proxy_of_another_network_namespace_does_not_set_the_values_of_this_host() {
    let root = TempRoot::new();
    process(&root, 12, "kube-proxy", &["kube-proxy"]);
    for (pid, netns) in [(1, "net:[1]"), (12, "net:[2]")] {
        root.directory(&format!("proc/{pid}/ns"));
        symlink(netns, root.path().join(format!("proc/{pid}/ns/net"))).expect("a link");
    }
    assert_eq!(configured(&root).kube_proxy, None);
}

#[test]
fn k3s_has_its_own_defaults_and_its_files_and_unit_add_flags() {
    let root = TempRoot::new();
    process(&root, 9, "k3s-server", &["/usr/local/bin/k3s server"]);
    let unit = "[Service]\nExecStart=/usr/local/bin/k3s \\\n    server \\\n\t'--disable' \\\n\t'traefik' \\\n";
    root.file("etc/systemd/system/k3s.service", unit);
    let proxy = found(&root);
    assert_eq!(proxy.describe(), "kube-proxy in k3s (pid 9)");
    assert_eq!(proxy.written(ESTABLISHED, 2), Written::Nothing);
    assert_eq!(proxy.written("net.netfilter.nf_conntrack_max", 2), Written::Nothing);
    root.file(
        "etc/rancher/k3s/config.yaml",
        "kube-proxy-arg:\n  - proxy-mode=ipvs\n  - \"--ipvs-tcp-timeout=1h\"\n",
    );
    root.file("etc/rancher/k3s/config.yaml.d/10.yaml", "kube-proxy-arg+: ipvs-udp-timeout=9m\n");
    let proxy = found(&root);
    assert_eq!(proxy.writes("ipvs.tcp", 2), Some(3600));
    assert_eq!(proxy.writes("ipvs.udp", 2), Some(540));
    root.file(
        "etc/systemd/system/k3s.service",
        &(unit.to_owned() + "\t'--kube-proxy-arg=proxy-mode=nftables' \\\n"),
    );
    assert_eq!(found(&root).mode.as_deref(), Some("nftables"));
    root.file("etc/rancher/k3s/config.yaml", "disable-kube-proxy: true\n");
    assert_eq!(configured(&root).kube_proxy, None);
}

#[test]
fn flags_that_k3s_hides_are_unknown() {
    let root = TempRoot::new();
    process(&root, 9, "k3s-agent", &["/usr/local/bin/k3s agent"]);
    let configured = configured(&root);
    assert!(configured.unread[0].contains("k3s hides its command line"));
    let proxy = configured.kube_proxy.expect("it runs");
    assert_eq!(proxy.written(ESTABLISHED, 2), Written::Unknown);
}

#[test]
fn the_flags_of_microk8s_are_in_its_arguments_file() {
    let root = TempRoot::new();
    process(&root, 9, "kubelite", &["/snap/microk8s/1/kubelite"]);
    assert_eq!(found(&root).written(ESTABLISHED, 2), Written::Unknown);
    root.file(
        "var/snap/microk8s/8595/args/kube-proxy",
        "# --proxy-mode=nftables\n--proxy-mode=ipvs\n--ipvs-tcp-timeout=1h\n--conntrack-min=0\n",
    );
    symlink("8595", root.path().join("var/snap/microk8s/current")).expect("a link");
    let proxy = found(&root);
    assert_eq!((proxy.mode.as_deref(), proxy.writes("ipvs.tcp", 2)), (Some("ipvs"), Some(3600)));
}

#[test]
fn without_a_process_a_usual_file_is_read() {
    let root = TempRoot::new();
    root.file("var/lib/kube-proxy/config.conf", "kind: [\n");
    let configured = configured(&root);
    assert!(configured.unread[0].starts_with("/var/lib/kube-proxy/config.conf:2:1: "));
    assert_eq!(configured.kube_proxy.expect("a file").pid, None);
}

proptest! {
    #[test]
    fn any_command_line_and_file_of_k3s_is_read_without_a_panic(line in "\\PC{0,30}", file in "\\PC{0,30}") {
        let root = TempRoot::new();
        process(&root, 9, "k3s-server", &["k3s", "--x", &line]);
        root.file("etc/rancher/k3s/config.yaml", &file);
        root.file("etc/systemd/system/k3s.service", &format!("ExecStart={line}\\\n{file}"));
        configured(&root);
    }
}
