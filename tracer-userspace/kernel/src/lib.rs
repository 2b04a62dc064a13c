//! The running kernel.
//!
//! [`btf`] and [`symbols`] read the types and symbols of the kernel, and [`manifest`] reads what the eBPF
//! object needs. [`resolve`] finds the values of these [`facts`]. [`signal`] lists what can be traced and the
//! ways to attach to it; [`choose`], [`attach`] and [`start`] attach the best of these ways. [`host_access`]
//! lists what else user space can read. [`live`] produces the stream of events.

pub mod attach;
pub mod btf;
pub mod choose;
mod counters;
pub mod data_plane;
pub mod examine;
pub mod facts;
mod filtered;
mod flow_key;
pub mod host_access;
mod idle_sampler;
pub mod ipvs_layout;
pub mod live;
pub mod manifest;
mod mapping;
pub mod permission;
pub mod prepare;
mod queries;
pub mod resolve;
mod running;
pub mod signal;
mod skipped_runs;
mod socket_ends;
pub mod start;
pub mod symbols;
mod watch;
