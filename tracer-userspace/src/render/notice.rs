//! Notices about the run itself, on standard error.

use std::collections::BTreeMap;

use rsttrace_core::event::SignalCoverage;

use super::page::{Page, Style};

const PREFIX: &str = "rsttrace: ";
const HANG: &str = "          ";

fn lines(width: usize, texts: impl IntoIterator<Item = String>) -> String {
    let mut page = Page::new(false, width);
    for text in texts {
        page.paragraph(&[(Style::Plain, PREFIX)], HANG, &[(Style::Plain, &text)]);
    }
    page.finish().unwrap_or_default()
}

/// What stays invisible, and for which signals. Signals with the same gap share a line.
fn gaps<'a>(coverage: impl IntoIterator<Item = &'a SignalCoverage>) -> Vec<String> {
    let mut gaps: Vec<(&str, Vec<&str>, &str)> = Vec::new();
    for signal in coverage {
        let how = if signal.way.is_some() { "partial" } else { "not traced" };
        let Some(blind) = signal.blind.as_deref() else { continue };
        match gaps.iter_mut().find(|gap| gap.0 == how && gap.2 == blind) {
            Some(gap) => gap.1.push(&signal.id),
            None => gaps.push((how, vec![&signal.id], blind)),
        }
    }
    gaps.into_iter()
        .map(|(how, ids, blind)| format!("{} ({how}): {blind}", ids.join(", ")))
        .collect()
}

/// The hooks are attached: how many signals are covered, and what stays invisible.
pub fn ready(coverage: &[SignalCoverage], width: usize) -> String {
    let covered = coverage.iter().filter(|signal| signal.way.is_some()).count();
    let first = format!("ready, {covered} of {} signals covered", coverage.len());
    lines(width, std::iter::once(first).chain(gaps(coverage)))
}

/// Signals gained or lost when a module was loaded or unloaded.
pub fn changed(changed: &[SignalCoverage], width: usize) -> String {
    let covered = changed.iter().filter_map(|signal| {
        let way = signal.way.as_ref()?;
        Some(format!("{} is covered now ({way})", signal.id))
    });
    let gone = changed.iter().filter(|signal| signal.way.is_none());
    lines(width, covered.chain(gaps(gone)))
}

/// Runs of our BPF programs that the kernel skipped, by hook.
pub fn skipped(hooks: &BTreeMap<String, u64>, width: usize) -> String {
    let runs: u64 = hooks.values().sum();
    let names: Vec<_> = hooks.iter().map(|(hook, runs)| format!("{hook} {runs}")).collect();
    let text = format!(
        "the kernel skipped {runs} {} of our BPF programs ({}), as it does when one program interrupts another; \
         records may be missing",
        if runs == 1 { "run" } else { "runs" },
        names.join(", "),
    );
    lines(width, [text])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signal(id: &str, way: Option<&str>, blind: Option<&str>) -> SignalCoverage {
        SignalCoverage {
            id: id.into(),
            way: way.map(str::to_owned),
            blind: blind.map(str::to_owned),
            attaching: false,
        }
    }

    #[test]
    fn the_ready_line_counts_signals_and_each_gap_has_a_line() {
        let coverage = [
            signal("reset_sent", Some("a"), None),
            signal("reset_received", Some("b"), Some("no ACK bit")),
            signal("ipvs_end", None, Some("no module")),
        ];
        assert_eq!(
            ready(&coverage, 200),
            "rsttrace: ready, 2 of 3 signals covered\n\
             rsttrace: reset_received (partial): no ACK bit\n\
             rsttrace: ipvs_end (not traced): no module\n"
        );
    }

    #[test]
    fn skipped_runs_are_counted_by_hook() {
        let hooks = BTreeMap::from([("nf_ct_delete".to_owned(), 1), ("tcp_reset".to_owned(), 2)]);
        assert_eq!(
            skipped(&hooks, 200),
            "rsttrace: the kernel skipped 3 runs of our BPF programs (nf_ct_delete 1, tcp_reset 2), as it does \
             when one program interrupts another; records may be missing\n"
        );
    }

    #[test]
    fn signals_with_the_same_gap_share_a_line() {
        let coverage = [
            signal("firewall_reset", Some("a"), Some("only its drop")),
            signal("ipvs_end", None, Some("no module")),
            signal("firewall_reset6", Some("a"), Some("only its drop")),
        ];
        assert_eq!(
            ready(&coverage, 200),
            "rsttrace: ready, 2 of 3 signals covered\n\
             rsttrace: firewall_reset, firewall_reset6 (partial): only its drop\n\
             rsttrace: ipvs_end (not traced): no module\n"
        );
    }

    #[test]
    fn a_new_hook_is_printed_with_its_program() {
        let coverage = [signal("ipvs_end", Some("ip_vs_conn_expire__kprobe"), None)];
        let text = changed(&coverage, 200);
        assert_eq!(text, "rsttrace: ipvs_end is covered now (ip_vs_conn_expire__kprobe)\n");
    }
}
