//! Events in, incidents out.
//!
//! * [`decode`] turns records into [`event`]s, [`capture`] keeps events and gives them back.
//! * [`query`] lists what an event makes the correlator want to know of the host.
//! * [`case`] gathers the events of one connection, [`history`] keeps what died before, [`evidence`]
//!   puts both side by side, [`causes`] judge, [`correlator`] drives them and makes [`incident`]s with
//!   [`fix`]es.
//!
//! Pure: no clock, no I/O, no environment, so that a recorded stream gives the same verdicts anywhere.
//! The crate's dependencies and its `clippy.toml` enforce that.

pub mod capture;
pub mod case;
pub mod causes;
pub mod correlator;
pub mod decode;
pub mod event;
pub mod evidence;
pub mod fix;
pub mod history;
pub mod incident;
pub mod query;
pub mod summary;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod verdict;
