//! The running kernel: what it has ([`btf`], [`symbols`]), what our object wants ([`manifest`]), how the
//! two meet ([`plan`], [`facts`]), what we attach for which purpose and by which way ([`signal`],
//! [`choose`], [`attach`], [`start`]), what else can be looked up ([`sight`]), and the stream of events
//! ([`live`]).

pub mod attach;
pub mod btf;
pub mod choose;
mod counters;
pub mod data_plane;
pub mod examine;
pub mod facts;
pub mod host_access;
mod idle_sampler;
pub mod live;
pub mod manifest;
pub mod permission;
pub mod plan;
pub mod prepare;
mod queries;
mod running;
pub mod signal;
mod skipped_runs;
pub mod start;
pub mod symbols;
mod watch;
