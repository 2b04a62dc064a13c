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
pub mod live;
pub mod manifest;
mod missed;
pub mod permission;
pub mod plan;
pub mod prepare;
mod questions;
mod running;
pub mod sight;
pub mod signal;
pub mod start;
mod survivors;
pub mod symbols;
mod watch;
