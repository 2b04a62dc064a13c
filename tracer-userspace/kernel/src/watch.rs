//! Watches for modules: ip_vs, nf_conntrack and the reject modules are often loaded long after tracing
//! began. A thread reads `/proc/modules` and attaches the hooks of new modules.

use std::{collections::BTreeSet, fs, path::Path, thread, time::Duration};

use anyhow::{Context as _, Result};
use rsttrace_core::event::SignalCoverage;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::{
    attach::{AttachOptions, Attached, Kprobes, attach},
    prepare::prepare,
    signal,
    symbols::KernelSymbols,
};

/// A new module is hooked within a second, which includes this interval and the time to load the programs.
/// The interval is well below the correlator's wait, so that a verdict accounts for a module loaded just
/// before.
const CHECK_EVERY: Duration = Duration::from_millis(100);

/// A change of coverage.
pub enum Change {
    /// The modules of these signals were loaded, and their hooks are being attached.
    Attaching(Vec<&'static str>),
    /// Programs of signals that are covered from now on.
    Attached(Box<Attached>),
    /// The hooks of this signal were lost with their module, or could not be attached.
    Lost(&'static str),
}

/// Starts watching. `coverage` is what is attached already. The thread ends when the receiver is dropped.
///
/// # Errors
/// When no thread can be started.
pub fn watch(
    object: &'static [u8],
    options: &AttachOptions,
    coverage: &[SignalCoverage],
) -> Result<UnboundedReceiver<Change>> {
    let (sender, changes) = unbounded_channel();
    let covered = coverage.iter().filter(|s| s.way.is_some()).map(|s| s.id.clone()).collect();
    let watcher = Watcher { object, options: options.clone(), covered, loaded: loaded(), sender };
    thread::Builder::new()
        .name("rsttrace-modules".into())
        .spawn(move || watcher.run())
        .context("cannot start a helper thread")?;
    Ok(changes)
}

/// Names of the modules that are loaded.
fn loaded() -> BTreeSet<String> {
    fs::read_to_string("/proc/modules")
        .unwrap_or_default()
        .lines()
        // "name size users by state address": a module that is still loading has no symbols to hook.
        .filter(|line| line.contains(" Live "))
        .filter_map(|line| line.split(' ').next().map(str::to_owned))
        .collect()
}

struct Watcher {
    object: &'static [u8],
    options: AttachOptions,
    covered: BTreeSet<String>,
    loaded: BTreeSet<String>,
    sender: UnboundedSender<Change>,
}

impl Watcher {
    fn run(mut self) {
        while !self.sender.is_closed() {
            thread::sleep(CHECK_EVERY);
            let now = loaded();
            let added: Vec<String> = now.difference(&self.loaded).cloned().collect();
            let removed: Vec<String> = self.loaded.difference(&now).cloned().collect();
            self.loaded = now;
            for signal in signals_in(&removed) {
                if self.covered.remove(signal) {
                    self.send(Change::Lost(signal));
                }
            }
            let new: Vec<&'static str> =
                signals_in(&added).filter(|id| !self.covered.contains(*id)).collect();
            if !new.is_empty() {
                // A verdict that assumes that this host did not send the reset has to wait for these.
                self.send(Change::Attaching(new.clone()));
                self.attach(new);
            }
        }
    }

    /// After a failure the signals are not covered, and are reported as lost.
    fn attach(&mut self, only: Vec<&'static str>) {
        let wanted = only.clone();
        if self.try_attach(only).is_none() {
            wanted.into_iter().for_each(|signal| self.send(Change::Lost(signal)));
        }
    }

    fn try_attach(&mut self, only: Vec<&'static str>) -> Option<()> {
        let symbols = KernelSymbols::load(Path::new("/"))
            .ok()
            .filter(|_| self.options.kprobes != Kprobes::Use);
        let prepared = prepare(self.object, symbols.as_ref()).ok()?;
        let options = AttachOptions { only: Some(only), ..self.options.clone() };
        let attached = attach(self.object, &prepared.manifest, &prepared.facts, &options).ok()?;
        self.covered.extend(attached.coverage().filter(|s| s.way.is_some()).map(|s| s.id));
        self.send(Change::Attached(Box::new(attached)));
        Some(())
    }

    fn send(&self, change: Change) {
        // Fails when the receiver was dropped, and then the loop above ends.
        let _ = self.sender.send(change);
    }
}

fn signals_in(modules: &[String]) -> impl Iterator<Item = &'static str> {
    signal::ALL
        .iter()
        .filter(|signal| {
            signal.module.is_some_and(|module| modules.iter().any(|name| name == module))
        })
        .map(|signal| signal.id)
}
