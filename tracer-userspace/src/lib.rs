//! `rsttrace`: why was this connection reset, and what do I change so it stops?
//!
//! Reading order, which is the way of the data:
//!
//! * [`kernel`] asks the running kernel what it can show (BTF, symbols), attaches the hooks and reads
//!   their records; [`host`] reads what only user space sees (namespaces, sysctls, IPVS, owners).
//! * [`decode`] turns bytes into [`event`]s.
//! * [`case`] gathers the events of one connection, [`memory`] keeps what died before, [`evidence`]
//!   puts both side by side, [`cause`] judges, [`correlator`] drives it and makes [`incident`]s with
//!   [`fix`]es.
//! * [`capture`] keeps the events and gives them back.
//! * [`report`] tells afterwards what happened, from what was kept.
//! * [`doctor`] says what this machine does not let us see.
//! * [`settings`] is the list of what may be changed, [`change`] changes it so that it can be taken back,
//!   [`audit`] judges a host before anything breaks.
//! * [`out`] shows them; [`cli`], [`filter`] and [`cmd`] are the command line.
//!
//! The layer rule: only `kernel/attach.rs` and `kernel/live.rs` name aya, and everything from
//! `decode` to `fix` is pure — no clock, no I/O, no environment — so that a recorded stream gives the
//! same verdicts anywhere. `cargo xtask check` enforces it.

pub mod audit;
pub mod capacity;
pub mod capture;
pub mod case;
pub mod cause;
pub mod change;
pub mod cli;
pub mod cmd;
pub mod correlator;
pub mod countdown;
pub mod decode;
pub mod doctor;
pub mod event;
pub mod evidence;
pub mod filter;
pub mod fix;
pub mod host;
pub mod idle;
pub mod incident;
pub mod kernel;
pub mod known;
pub mod memory;
pub mod out;
pub mod report;
pub mod settings;
#[cfg(test)]
mod testing;
