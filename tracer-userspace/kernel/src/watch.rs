//! Modules come and go: ip_vs, nf_conntrack and the reject modules are often loaded long after us. A
//! thread looks at `/proc/modules` and attaches what has become possible.

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

/// A new module is hooked within a second: this, and the time to load the programs. Well below the
/// correlator's wait, so that a verdict knows of a module that came just before.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What changed.
pub enum Change {
    /// The modules of these signals are there; their hooks are being attached.
    Coming(Vec<&'static str>),
    /// Signals that are covered from now on.
    Attached(Box<Attached>),
    /// The hooks of this signal went with their module, or could not be attached.
    Gone(&'static str),
}

/// Starts watching. `coverage` is what is attached already; the thread ends when the receiver is
/// dropped.
///
/// # Errors
/// When no thread can be started.
pub fn watch(
    object: &'static [u8],
    options: &AttachOptions,
    coverage: &[SignalCoverage],
) -> Result<UnboundedReceiver<Change>> {
    let (tell, changes) = unbounded_channel();
    let covered = coverage.iter().filter(|s| s.way.is_some()).map(|s| s.id.clone()).collect();
    let watcher = Watcher { object, options: options.clone(), covered, loaded: loaded(), tell };
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
        // "name size users by state address": a module still coming has no symbols to hook.
        .filter(|line| line.contains(" Live "))
        .filter_map(|line| line.split(' ').next().map(str::to_owned))
        .collect()
}

struct Watcher {
    object: &'static [u8],
    options: AttachOptions,
    covered: BTreeSet<String>,
    loaded: BTreeSet<String>,
    tell: UnboundedSender<Change>,
}

impl Watcher {
    fn run(mut self) {
        while !self.tell.is_closed() {
            thread::sleep(LOOK_EVERY);
            let now = loaded();
            let came: Vec<String> = now.difference(&self.loaded).cloned().collect();
            let went: Vec<String> = self.loaded.difference(&now).cloned().collect();
            self.loaded = now;
            for signal in signals_in(&went) {
                if self.covered.remove(signal) {
                    self.say(Change::Gone(signal));
                }
            }
            let new: Vec<&'static str> =
                signals_in(&came).filter(|id| !self.covered.contains(*id)).collect();
            if !new.is_empty() {
                // A verdict that rests on "nobody here sent it" has to wait for these.
                self.say(Change::Coming(new.clone()));
                self.attach(new);
            }
        }
    }

    /// A failure leaves the signals uncovered, and says so again.
    fn attach(&mut self, only: Vec<&'static str>) {
        let wanted = only.clone();
        if self.try_attach(only).is_none() {
            wanted.into_iter().for_each(|signal| self.say(Change::Gone(signal)));
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
        self.say(Change::Attached(Box::new(attached)));
        Some(())
    }

    fn say(&self, change: Change) {
        // Nobody listens any more: the loop above ends at its next turn.
        let _ = self.tell.send(change);
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
