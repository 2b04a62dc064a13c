//! Incidents for a person at three in the morning: a headline, the story with times, the verdict, and
//! what to change.

use std::{collections::BTreeMap, fmt::Write as _};

use super::{escape::terminal, json::timestamp};
use crate::{
    cause::Family,
    event::Nanos,
    fix::Fix,
    incident::{Confidence, Finding, Incident},
};

/// Equal incidents within this time are counted, not told again.
const FOLD: Nanos = 10_000_000_000;

/// How to print.
#[derive(Clone, Copy, Debug)]
pub struct TableOptions {
    pub color: bool,
    /// Columns to wrap at.
    pub width: usize,
    /// Also what was ruled out and what cannot be seen.
    pub wide: bool,
}

/// What makes incidents equal enough to fold: cause, destination, owner.
type Key = (&'static str, String, Option<u32>);

struct Folded {
    since: Nanos,
    count: u64,
}

/// The printer, with the incidents it is folding.
pub struct Table {
    options: TableOptions,
    folded: BTreeMap<Key, Folded>,
}

#[derive(Clone, Copy)]
enum Style {
    Bold,
    Red,
    Green,
    Yellow,
    Dim,
}

impl Table {
    pub fn new(options: TableOptions) -> Self {
        Self { options, folded: BTreeMap::new() }
    }

    /// The text for an incident, or `None` when it is like one just told.
    pub fn incident(&mut self, incident: &Incident, now: Nanos) -> Option<String> {
        if incident.follows.is_some() || incident.cause.family == Family::Benign {
            return Some(self.line(incident));
        }
        let owner = incident.owner.as_ref().map(|owner| owner.pid);
        let key = (incident.cause.id, incident.destination.to_string(), owner);
        if let Some(folded) = self.folded.get_mut(&key) {
            folded.count += 1;
            return None;
        }
        self.folded.insert(key, Folded { since: now, count: 0 });
        Some(self.story(incident))
    }

    /// Counts whose time has come.
    pub fn tick(&mut self, now: Nanos) -> Option<String> {
        self.release(|folded| now.saturating_sub(folded.since) >= FOLD)
    }

    /// All counts, at the end.
    pub fn flush(&mut self) -> Option<String> {
        self.release(|_| true)
    }

    fn release(&mut self, due: impl Fn(&Folded) -> bool) -> Option<String> {
        let mut text = String::new();
        self.folded.retain(|(cause, destination, _), folded| {
            let release = due(folded);
            if release && folded.count > 0 {
                // Writing to a String cannot fail.
                let _ = writeln!(text, "… {cause} to {destination} x {} in 10 s", folded.count);
            }
            !release
        });
        (!text.is_empty()).then_some(text)
    }

    fn paint(&self, style: Style, text: &str) -> String {
        if !self.options.color {
            return text.to_owned();
        }
        let code = match style {
            Style::Bold => "1",
            Style::Red => "1;31",
            Style::Green => "32",
            Style::Yellow => "33",
            Style::Dim => "2",
        };
        format!("\u{1b}[{code}m{text}\u{1b}[0m")
    }

    /// One line: a benign reset, or the other end of an incident already told.
    fn line(&self, incident: &Incident) -> String {
        let about = match &incident.follows {
            Some(first) => format!(" (the other end of incident {})", short(first)),
            None => String::new(),
        };
        let text = format!(
            "{} {} {} → {}: {} ({}){about}",
            clock(incident.wall_ns),
            incident.action.id(),
            incident.source,
            incident.destination,
            terminal(&incident.why),
            incident.cause.id,
        );
        self.paint(Style::Dim, &text)
    }

    fn story(&self, incident: &Incident) -> String {
        let mut out = String::new();
        self.headline(&mut out, incident);
        self.timeline(&mut out, incident);
        if let Some(keepalive) = incident.keepalive {
            let state = if keepalive.enabled { "on" } else { "off" };
            let text = format!(
                "socket: SO_KEEPALIVE {state}; keepalive {:.0}/{:.0}/{} in its namespace",
                keepalive.time_s, keepalive.intvl_s, keepalive.probes
            );
            self.wrapped(&mut out, "  ", "  ", &text);
        }
        let confidence = incident.confidence.map_or("no verdict", Confidence::id);
        let verdict = format!("{} ({confidence}): {}", incident.cause.id, terminal(&incident.why));
        self.labelled(&mut out, "VERDICT", Style::Bold, &verdict);
        for (index, fix) in incident.fixes.iter().enumerate() {
            self.fix(&mut out, index + 1, fix);
        }
        for (what, because) in &incident.not_fixes {
            let text = format!("{}: {}", terminal(what), terminal(because));
            self.labelled(&mut out, "NOT A FIX", Style::Dim, &text);
        }
        if let Some(prove) = &incident.prove {
            self.labelled(&mut out, "TO PROVE", Style::Yellow, &terminal(prove));
        }
        if self.options.wide {
            for it in &incident.ruled_out {
                let text = format!("{}: {}", it.cause, terminal(&it.because));
                self.labelled(&mut out, "RULED OUT", Style::Dim, &text);
            }
            for blind in &incident.blind_spots {
                self.labelled(&mut out, "NOT SEEN", Style::Dim, blind);
            }
        }
        let _ = write!(out, "  {}", self.paint(Style::Dim, &format!("id {}", incident.event_id)));
        if incident.lost_events > 0 {
            let _ = write!(out, "  {} records were lost before this", incident.lost_events);
        }
        out.push('\n');
        out
    }

    fn headline(&self, out: &mut String, incident: &Incident) {
        let what = incident.action.id().to_uppercase();
        let who = incident.owner.as_ref().map_or(String::new(), |owner| {
            format!("  {} (pid {})", terminal(&owner.comm), owner.pid)
        });
        let nat = |side: Option<std::net::SocketAddr>| {
            side.map_or(String::new(), |nat| format!(" [→ {nat}]"))
        };
        let error = incident
            .errno
            .and_then(crate::incident::errno_name)
            .map_or(String::new(), |name| format!("  {name}"));
        let _ = writeln!(
            out,
            "{} {}  {}{} → {}{}{who}{error}",
            clock(incident.wall_ns),
            self.paint(Style::Red, &what),
            self.paint(Style::Bold, &incident.source.to_string()),
            nat(incident.source_nat),
            self.paint(Style::Bold, &incident.destination.to_string()),
            nat(incident.destination_nat),
        );
    }

    /// Findings in the order in which they happened; the first one the verdict named is its root.
    fn timeline(&self, out: &mut String, incident: &Incident) {
        let root = incident.evidence.first().filter(|_| incident.confidence.is_some());
        let mut findings: Vec<&Finding> = incident.evidence.iter().collect();
        findings.sort_by_key(|finding| finding.ts);
        let last = findings.len().saturating_sub(1);
        for (index, finding) in findings.into_iter().enumerate() {
            let branch = if index == last { "└" } else { "├" };
            let mark = match root {
                Some(root) if std::ptr::eq(root, finding) => "  ← ROOT CAUSE",
                _ => "",
            };
            let wall = incident.wall_ns.saturating_add(
                i64::try_from(i128::from(finding.ts) - i128::from(incident.opened)).unwrap_or(0),
            );
            let rest = if index == last { "   " } else { "  │" };
            let text = format!("{}{mark}", terminal(&finding.summary));
            self.wrapped(
                out,
                &format!("  {branch} {}  ", clock(wall)),
                &format!("{rest}               "),
                &text,
            );
        }
    }

    fn fix(&self, out: &mut String, number: usize, fix: &Fix) {
        let change = match (&fix.current, &fix.wanted) {
            (Some(current), Some(wanted)) => format!(" (now {current}, wanted {wanted})"),
            (None, Some(wanted)) => format!(" (wanted {wanted})"),
            _ => String::new(),
        };
        let text = format!("[{}] {}{change}", fix.owner.id(), terminal(&fix.summary));
        self.labelled(out, &format!("FIX {number}"), Style::Green, &text);
        for command in fix.commands() {
            // Never wrapped: it is there to be copied.
            let _ = writeln!(out, "             {}", terminal(&command));
        }
        for advice in fix.advice() {
            self.wrapped(out, "             ", "             ", &terminal(&advice));
        }
    }

    fn labelled(&self, out: &mut String, label: &str, style: Style, text: &str) {
        let first =
            format!("  {}{}", self.paint(style, label), " ".repeat(11 - label.len().min(10)));
        self.wrapped_by(out, &first, 13, &" ".repeat(13), text);
    }

    fn wrapped(&self, out: &mut String, first: &str, rest: &str, text: &str) {
        self.wrapped_by(out, first, first.chars().count(), rest, text);
    }

    /// Breaks at spaces; `first` may hold colours, so its visible width is given.
    fn wrapped_by(&self, out: &mut String, first: &str, visible: usize, rest: &str, text: &str) {
        out.push_str(first);
        let mut column = visible;
        let mut fresh = true;
        for word in text.split(' ') {
            let width = word.chars().count();
            if !fresh && column + 1 + width > self.options.width {
                out.push('\n');
                out.push_str(rest);
                column = rest.chars().count();
                fresh = true;
            }
            if !fresh {
                out.push(' ');
                column += 1;
            }
            out.push_str(word);
            column += width;
            fresh = false;
        }
        out.push('\n');
    }
}

/// HH:MM:SS.mmm, UTC.
fn clock(wall_ns: i64) -> String {
    timestamp(wall_ns).get(11..23).unwrap_or("??:??:??.???").to_owned()
}

/// Enough of an event id to find it.
fn short(event_id: &str) -> &str {
    event_id.get(24..).unwrap_or(event_id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        host::Owner,
        testing::{SECOND, article, replay},
    };

    const PLAIN: TableOptions = TableOptions { color: false, width: 100, wide: false };

    fn incident() -> Incident {
        replay(article()).remove(0)
    }

    #[test]
    fn the_story_names_root_cause_verdict_and_first_fix() {
        let text = Table::new(PLAIN).incident(&incident(), 0).expect("a story");
        for part in [
            "10.0.0.2:41822 → 10.96.0.10:3306 [→ 10.0.1.2:3306]",
            "← ROOT CAUSE",
            "VERDICT    ipvs_idle_expired (observed)",
            "FIX 1      [application] send keepalives at least every 300 s (now off, wanted 300/30/3)",
        ] {
            assert!(text.contains(part), "{part} is missing in:\n{text}");
        }
    }

    #[test]
    fn equal_incidents_fold_into_one_count() {
        let mut table = Table::new(PLAIN);
        assert!(table.incident(&incident(), 0).is_some());
        assert!(table.incident(&incident(), SECOND).is_none());
        assert!(table.incident(&incident(), 2 * SECOND).is_none());
        assert!(table.tick(3 * SECOND).is_none());
        let folded = table.tick(11 * SECOND).expect("a count");
        assert!(folded.contains("x 2 in 10 s"), "{folded}");
        assert!(table.flush().is_none());
    }

    #[test]
    fn a_hostile_process_name_cannot_move_the_cursor() {
        let mut hostile = incident();
        hostile.owner = Some(Owner { pid: 1, comm: "\u{1b}[2J\r".into(), ..Owner::default() });
        let text = Table::new(PLAIN).incident(&hostile, 0).expect("a story");
        assert!(!text.contains('\u{1b}') && !text.contains('\r'));
    }

    #[test]
    fn prose_keeps_to_the_width_and_commands_are_never_broken() {
        let narrow = TableOptions { width: 70, ..PLAIN };
        let text = Table::new(narrow).incident(&incident(), 0).expect("a story");
        let is_command = |line: &str| line.contains("setsockopt") || line.contains("sysctl -w");
        // A headline and the longest single word may stand out.
        let long = text.lines().skip(1).filter(|line| !is_command(line));
        assert!(long.clone().all(|line| line.chars().count() <= 70), "{text}");
        assert!(text.contains("setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, 1); setsockopt(fd, IPP"));
    }

    #[test]
    fn no_colour_means_no_escape_sequence() {
        let text = Table::new(PLAIN).incident(&incident(), 0).expect("a story");
        assert!(!text.contains('\u{1b}'));
        let colour = TableOptions { color: true, ..PLAIN };
        assert!(Table::new(colour).incident(&incident(), 0).is_some_and(|t| t.contains('\u{1b}')));
    }
}
