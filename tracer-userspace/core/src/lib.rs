//! Events in, incidents out.
//!
//! * [`decode`] turns kernel records into [`event`]s. [`capture`] writes events to a file and reads them back.
//! * [`query`] lists what the correlator has to read from the host because of an event.
//! * [`case`] collects the events of one connection. [`history`] keeps earlier ends of entries and drops.
//!   [`evidence`] combines both. [`causes`] give the verdict. [`correlator`] runs these steps and makes
//!   [`incident`]s with [`fix`]es.
//!
//! The crate uses no clock, no I/O and no environment, so that a recorded stream gives the same verdicts
//! anywhere. Its dependencies and its `clippy.toml` enforce that.

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
