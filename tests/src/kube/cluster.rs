//! A node with pods. The node is the guest's first network namespace, where kube-proxy and its rules are.
//!
//! ```text
//!   client pod 10.244.1.2 ─── 10.244.1.1 node 10.244.2.1 ─┬─ pod 10.244.2.11
//!                                172.31.0.2 │      (bridge) └─ pod 10.244.2.12
//!                           outside 172.31.0.1, the default route: drops what it gets
//! ```

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::{netns::Namespace, tools};

pub const NODE_NAME: &str = "node";
pub const PODS: usize = 2;

/// Where a connection starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    Pod,
    Node,
    Outside,
}

impl From {
    pub fn address(self, port: u16) -> SocketAddr {
        let ip = match self {
            Self::Pod => [10, 244, 1, 2],
            Self::Node => [172, 31, 0, 2],
            Self::Outside => [172, 31, 0, 1],
        };
        SocketAddr::new(IpAddr::V4(Ipv4Addr::from(ip)), port)
    }
}

pub fn pod_address(index: usize, port: u16) -> SocketAddr {
    let host = u8::try_from(11 + index).unwrap_or(u8::MAX);
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 244, 2, host)), port)
}

pub struct Cluster {
    node: Namespace,
    client: Namespace,
    outside: Namespace,
    pods: Vec<Namespace>,
}

impl Cluster {
    pub fn build() -> Result<Self> {
        let mut batch = String::new();
        if !Path::new("/run/netns/kube-node").exists() {
            batch += "netns attach kube-node 1\n";
        }
        batch += "netns add kube-client\n\
             netns add kube-outside\n\
             link add client type veth peer name eth0 netns kube-client\n\
             link add uplink type veth peer name eth0 netns kube-outside\n\
             link add cni0 type bridge\n\
             addr add 10.244.1.1/24 dev client\n\
             addr add 10.244.2.1/24 dev cni0\n\
             addr add 172.31.0.2/24 dev uplink\n\
             link set client up\n\
             link set cni0 up\n\
             link set uplink up\n\
             route add default via 172.31.0.1\n";
        tools::run(None, "ip -batch -", &batch).context("make the node")?;
        let (client, outside) = (Namespace::open("kube-client")?, Namespace::open("kube-outside")?);
        client.ip("link set lo up\nlink set eth0 up\naddr add 10.244.1.2/24 dev eth0\n\
                   route add default via 10.244.1.1\n")?;
        outside.ip("link set lo up\nlink set eth0 up\naddr add 172.31.0.1/24 dev eth0\n\
                    route add 10.0.0.0/8 via 172.31.0.2\n")?;
        let node = Namespace::open("kube-node")?;
        node.sysctl("net/ipv4/ip_forward", 1)?;
        for namespace in [&node, &client, &outside] {
            // Some seconds instead of many minutes until unanswered data or SYNs are given up.
            namespace.sysctl("net/ipv4/tcp_retries2", 3)?;
            namespace.sysctl("net/ipv4/tcp_syn_retries", 2)?;
        }
        let mut cluster = Self { node, client, outside, pods: Vec::new() };
        for index in 0..PODS {
            cluster.pods.push(start_pod(index)?);
        }
        Ok(cluster)
    }

    pub fn at(&self, from: From) -> &Namespace {
        match from {
            From::Pod => &self.client,
            From::Node => &self.node,
            From::Outside => &self.outside,
        }
    }

    pub fn pod(&self, index: usize) -> Result<&Namespace> {
        self.pods.get(index).context("no such pod")
    }

    /// The namespace of a pod ends, and with it the pod's link. Its sockets must be closed.
    pub fn kill_pod(index: usize) -> Result<()> {
        tools::run(
            None,
            "ip -batch -",
            &format!("link del pod{index}\nnetns del kube-pod{index}\n"),
        )
        .map(drop)
    }

    /// Starts the pods that were killed.
    pub fn restart_pods(&mut self) -> Result<()> {
        for (index, pod) in self.pods.iter_mut().enumerate() {
            if !Path::new(&format!("/run/netns/kube-pod{index}")).exists() {
                *pod = start_pod(index)?;
            }
        }
        Ok(())
    }
}

fn start_pod(index: usize) -> Result<Namespace> {
    let name = format!("kube-pod{index}");
    let link = format!("pod{index}");
    tools::run(
        None,
        "ip -batch -",
        &format!(
            "netns add {name}\nlink add {link} type veth peer name eth0 netns {name}\n\
             link set {link} master cni0\nlink set {link} up\n"
        ),
    )
    .context("start a pod")?;
    let pod = Namespace::open(&name)?;
    pod.ip(&format!(
        "link set lo up\nlink set eth0 up\naddr add {}/24 dev eth0\nroute add default via 10.244.2.1\n",
        pod_address(index, 0).ip()
    ))?;
    Ok(pod)
}

pub fn node_object() -> Value {
    json!({
        "kind": "Node", "apiVersion": "v1",
        "metadata": {"name": NODE_NAME, "uid": "node-1"},
        "spec": {"podCIDR": "10.244.0.0/16", "podCIDRs": ["10.244.0.0/16"]},
        "status": {"addresses": [
            {"type": "InternalIP", "address": From::Node.address(0).ip()},
            {"type": "Hostname", "address": NODE_NAME},
        ]},
    })
}

/// A service on one port, with the same port at its pods.
#[derive(Clone, Copy, Debug)]
pub struct Service {
    pub name: &'static str,
    /// Which differs between rows: it selects the address and the ports.
    pub number: u8,
}

impl Service {
    pub fn port(self) -> u16 {
        3_000 + u16::from(self.number)
    }

    pub fn address(self) -> SocketAddr {
        SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 96, 0, self.number)), self.port())
    }

    /// A port that it does not serve.
    pub fn other_port(self) -> u16 {
        5_000 + u16::from(self.number)
    }

    pub fn node_port(self) -> u16 {
        30_000 + u16::from(self.number)
    }

    pub fn object(self) -> Value {
        let ip = self.address().ip();
        json!({
            "kind": "Service", "apiVersion": "v1",
            "metadata": {"name": self.name, "namespace": "default", "uid": self.name},
            "spec": {
                "type": "ClusterIP", "clusterIP": ip, "clusterIPs": [ip],
                "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
                "internalTrafficPolicy": "Cluster", "sessionAffinity": "None",
                "ports": [{"protocol": "TCP", "port": self.port(), "targetPort": self.port()}],
            },
        })
    }

    /// The service also on the node's own port, for local endpoints only.
    pub fn local_node_port(self) -> Value {
        let mut object = self.object();
        object["spec"]["type"] = json!("NodePort");
        object["spec"]["externalTrafficPolicy"] = json!("Local");
        object["spec"]["ports"][0]["nodePort"] = json!(self.node_port());
        object
    }

    /// The slice with these pods; `ready` holds whether each is ready, and `node` is where they run.
    pub fn slice(self, pods: &[(usize, bool)], node: &str) -> Value {
        let endpoint = |&(index, ready): &(usize, bool)| {
            json!({
                "addresses": [pod_address(index, 0).ip()], "nodeName": node,
                "conditions": {"ready": ready, "serving": ready, "terminating": false},
            })
        };
        json!({
            "kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1", "addressType": "IPv4",
            "metadata": {
                "name": self.name, "namespace": "default", "uid": format!("{}-slice", self.name),
                "labels": {"kubernetes.io/service-name": self.name},
            },
            "endpoints": pods.iter().map(endpoint).collect::<Vec<_>>(),
            "ports": [{"name": "", "protocol": "TCP", "port": self.port()}],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_that_is_not_ready_stays_in_the_slice() {
        let service = Service { name: "db", number: 12 };
        let slice = service.slice(&[(0, true), (1, false)], NODE_NAME);
        assert_eq!(slice["endpoints"][1]["addresses"][0], "10.244.2.12");
        assert_eq!(slice["endpoints"][1]["conditions"]["ready"], false);
        assert_eq!(service.local_node_port()["spec"]["ports"][0]["nodePort"], 30_012);
    }
}
