//! Plain data: what a connection, a socket, a namespace, a table entry and a host are. Nothing here
//! reads or judges; every other crate builds on these types.

pub mod address;
pub mod configured;
pub mod connection;
pub mod conntrack;
pub mod errno;
pub mod escape;
pub mod firewall;
pub mod flow;
pub mod host_state;
pub mod ipvs;
pub mod kube_proxy;
pub mod lookup;
pub mod netns;
pub mod owner;
pub mod settings;
pub mod socket;
pub mod tcp_flag;
pub mod tcp_state;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod traffic;
pub mod units;
