//! The running kernel: what it has ([`btf`], [`symbols`]), what our object wants ([`manifest`]), how the
//! two meet ([`plan`], [`facts`]), what we attach for which purpose ([`signal`], [`attach`]), and the
//! stream of events ([`live`]).

pub mod attach;
pub mod btf;
pub mod facts;
pub mod live;
pub mod manifest;
pub mod permission;
pub mod plan;
pub mod prepare;
mod questions;
mod running;
pub mod signal;
mod survivors;
pub mod symbols;
mod watch;
