//! Incidents for a person: a headline, the timeline of the evidence, the verdict, and what to change.

use std::net::SocketAddr;

use rsttrace_core::{
    fix::Fix,
    incident::{Incident, Side},
    verdict::{Confidence, Family, Finding},
};
use rsttrace_model::{
    errno::errno_name,
    flow::Nanos,
    owner::{Owner, OwnerBy, Pod},
    socket::Keepalive,
};
use rsttrace_schema::json::timestamp;

use super::{
    fold::{Folds, Print, Repeats},
    page::{HANG, Page, Style},
};

/// How to print.
#[derive(Clone, Copy, Debug)]
pub struct TableOptions {
    pub color: bool,
    /// Columns to wrap at.
    pub width: usize,
    /// Also print how to persist, check and undo each fix, what was ruled out, and what cannot be seen.
    pub wide: bool,
}

/// The table output, with the incidents that are being folded.
pub struct Table {
    options: TableOptions,
    folds: Folds,
    /// The date that was printed last; the clock times below it are on this date.
    day: String,
}

impl Table {
    pub fn new(options: TableOptions) -> Self {
        Self { options, folds: Folds::default(), day: String::new() }
    }

    /// The text for an incident, or `None` when the incident is a repeat.
    pub fn incident(&mut self, incident: &Incident, now: Nanos) -> Option<String> {
        let print = self.folds.take(incident, now);
        if print == Print::Nothing {
            return None;
        }
        let mut page = self.page();
        self.date(&mut page, incident.wall_ns);
        match print {
            Print::Full if incident.cause.family != Family::Benign => {
                in_full(&mut page, incident, self.options.wide);
            }
            _ => one_line(&mut page, incident),
        }
        page.finish()
    }

    /// The counts that are due.
    pub fn tick(&mut self, now: Nanos) -> Option<String> {
        let repeats = self.folds.due(now);
        self.repeats(&repeats)
    }

    /// All counts, at the end.
    pub fn flush(&mut self) -> Option<String> {
        let repeats = self.folds.rest();
        self.repeats(&repeats)
    }

    fn page(&self) -> Page {
        Page::new(self.options.color, self.options.width)
    }

    fn repeats(&self, repeats: &[Repeats]) -> Option<String> {
        let mut page = self.page();
        for it in repeats {
            let owner = it.owner.as_ref().map_or(String::new(), |owner| format!("  {owner}"));
            let text = format!(
                "x {} in {} s  {}  → {}{owner}",
                it.count, it.seconds, it.cause, it.destination
            );
            page.paragraph(&[], HANG, &[(Style::Yellow, &text)]);
        }
        page.finish()
    }

    /// Prints the date and the time zone when the date has changed.
    fn date(&mut self, page: &mut Page, wall_ns: i64) {
        let day = timestamp(wall_ns).split('T').next().unwrap_or_default().to_owned();
        if day != self.day {
            page.paragraph(&[], "", &[(Style::Dim, &format!("── {day} UTC ──"))]);
            self.day = day;
        }
    }
}

/// A benign reset, or the other end of an incident that was printed in full.
fn one_line(page: &mut Page, incident: &Incident) {
    let about = match &incident.follows {
        Some(first) => format!("other end of incident {} ({})", short(first), incident.cause.id),
        None => format!("{} ({})", incident.why, incident.cause.id),
    };
    let text = format!(
        "{} {}  {} → {}: {about}",
        clock(incident.wall_ns),
        incident.action.id(),
        incident.source,
        incident.destination,
    );
    page.paragraph(&[], HANG, &[(Style::Dim, &text)]);
}

fn in_full(page: &mut Page, incident: &Incident, wide: bool) {
    headline(page, incident);
    timeline(page, incident);
    if let Some(text) = processes(incident) {
        page.labelled("PROCESS", Style::Plain, &text);
    }
    if let Some(keepalive) = incident.keepalive {
        page.labelled("SOCKET", Style::Plain, &socket(keepalive));
    }
    let confidence = incident.confidence.map_or("no verdict", Confidence::id);
    let verdict =
        format!("{} ({confidence}), {}: {}", incident.cause.id, incident.what, incident.why);
    page.labelled("VERDICT", Style::Bold, &verdict);
    for (index, it) in incident.fixes.iter().enumerate() {
        fix(page, index + 1, it, wide);
    }
    for (what, because) in &incident.not_fixes {
        page.labelled("NOT A FIX", Style::Dim, &format!("{what}: {because}"));
    }
    if let Some(prove) = &incident.prove {
        page.labelled("TO CONFIRM", Style::Yellow, prove);
    }
    if wide {
        for it in &incident.ruled_out {
            page.labelled("RULED OUT", Style::Dim, &format!("{}: {}", it.cause, it.because));
        }
        for blind in &incident.blind_spots {
            page.labelled("BLIND SPOT", Style::Dim, blind);
        }
    }
    if incident.lost_events > 0 {
        let text = format!("{} kernel records lost before this incident", incident.lost_events);
        page.labelled("LOST", Style::Yellow, &text);
    }
    page.labelled("ID", Style::Dim, &incident.event_id);
}

fn headline(page: &mut Page, incident: &Incident) {
    let side = |address: SocketAddr, nat: Option<SocketAddr>| match nat {
        Some(nat) => format!("{address} [→ {nat}]"),
        None => address.to_string(),
    };
    let source = format!(" {}", side(incident.source, incident.source_nat));
    let destination = side(incident.destination, incident.destination_nat);
    let who = incident.owner.as_ref().map(|owner| format!(" {} (pid {})", owner.comm, owner.pid));
    let error = incident.errno.and_then(errno_name).map(|name| format!(" {name}"));
    let what = incident.action.id().to_uppercase();
    let head = format!("{} ", clock(incident.wall_ns));
    let mut body = vec![
        (Style::Red, what.as_str()),
        (Style::Bold, &source),
        (Style::Plain, "→"),
        (Style::Bold, &destination),
    ];
    body.extend(who.iter().chain(&error).map(|text| (Style::Plain, text.as_str())));
    page.paragraph(&[(Style::Plain, &head)], HANG, &body);
}

/// Findings in the order in which they happened. The first finding of the verdict is the root cause.
fn timeline(page: &mut Page, incident: &Incident) {
    let root = incident.evidence.first().filter(|_| incident.confidence.is_some());
    let mut findings: Vec<&Finding> = incident.evidence.iter().collect();
    findings.sort_by_key(|finding| finding.ts);
    let last = findings.len().saturating_sub(1);
    for (index, finding) in findings.into_iter().enumerate() {
        let (branch, trunk) = if index == last { ("└", " ") } else { ("├", "│") };
        let offset = i128::from(finding.ts) - i128::from(incident.opened);
        let wall = incident.wall_ns.saturating_add(i64::try_from(offset).unwrap_or(0));
        let mut body = vec![(Style::Plain, finding.summary.as_str())];
        if root.is_some_and(|root| std::ptr::eq(root, finding)) {
            body.push((Style::Red, " ← ROOT CAUSE"));
        }
        let head = format!("  {branch} {}  ", clock(wall));
        page.paragraph(&[(Style::Plain, &head)], &format!("  {trunk}               "), &body);
    }
}

/// The processes at the ends: "source node (pid 7), pod shop/orders-api-7c9; destination …".
fn processes(incident: &Incident) -> Option<String> {
    let mut text = end(incident.owner_side?, incident.owner.as_ref()?);
    if let Some(peer) = &incident.peer {
        text.push_str("; ");
        text.push_str(&end(incident.owner_side?.other(), peer));
    }
    Some(text)
}

fn end(side: Side, owner: &Owner) -> String {
    /// As many digits as container tools show.
    const SHORT_ID: usize = 12;
    let what = match owner.by {
        OwnerBy::Listener => ", its listener",
        _ => "",
    };
    let mut text = format!("{} {} (pid {}{what})", side.id(), owner.comm, owner.pid);
    match owner.pod.as_ref() {
        Some(Pod { name: Some(name), namespace: Some(namespace), .. }) => {
            text.push_str(&format!(", pod {namespace}/{name}"));
        }
        Some(Pod { uid: Some(uid), .. }) => text.push_str(&format!(", pod {uid}")),
        _ => {}
    }
    if let Some(id) = owner.container_id.as_ref().and_then(|id| id.get(..SHORT_ID)) {
        text.push_str(&format!(", container {id}"));
    }
    text
}

/// The keepalive of the socket, and where its time comes from.
fn socket(keepalive: Keepalive) -> String {
    let period = format!("{:.0}/{:.0}/{}", keepalive.time_s, keepalive.intvl_s, keepalive.probes);
    match (keepalive.enabled, keepalive.time_is_own) {
        (false, false) => format!("SO_KEEPALIVE off (defaults {period})"),
        (false, true) => format!("SO_KEEPALIVE off ({period} set by the application, no effect)"),
        (true, true) => format!("SO_KEEPALIVE on, {period} set by the application"),
        (true, false) => format!("SO_KEEPALIVE on, {period} from its namespace's sysctls"),
    }
}

fn fix(page: &mut Page, number: usize, fix: &Fix, wide: bool) {
    let change = match (&fix.current, &fix.wanted) {
        (Some(current), Some(wanted)) => {
            format!(" (now: {}; set: {})", setting(current), setting(wanted))
        }
        (None, Some(wanted)) => format!(" (set: {})", setting(wanted)),
        _ => String::new(),
    };
    let text = format!("[{}] {}{change}", fix.owner.id(), fix.summary);
    page.labelled(&format!("FIX {number}"), Style::Green, &text);
    for command in fix.commands() {
        page.verbatim(HANG, &command);
    }
    for advice in fix.advice() {
        page.paragraph(&[(Style::Plain, HANG)], HANG, &[(Style::Plain, &advice)]);
    }
    if !wide {
        return;
    }
    page.labelled("  why", Style::Dim, &fix.reason);
    if let Some(file) = fix.persist() {
        page.labelled("  keep", Style::Dim, &file.path);
        for line in file.text.lines() {
            page.verbatim(HANG, line);
        }
    }
    for (label, lines) in [("  check", fix.verify()), ("  undo", fix.undo())] {
        for (index, line) in lines.iter().enumerate() {
            let label = if index == 0 { label } else { "" };
            page.verbatim(&format!("  {label:<11}"), line);
        }
    }
}

/// Keepalive settings such as `300/30/3` in words; other values as they are.
fn setting(value: &str) -> String {
    let parts: Vec<&str> = value.split('/').collect();
    match parts.as_slice() {
        [time, intvl, probes] if parts.iter().all(|part| part.parse::<u64>().is_ok()) => {
            let s = if *probes == "1" { "" } else { "s" };
            format!("idle {time} s, interval {intvl} s, {probes} probe{s}")
        }
        _ => value.to_owned(),
    }
}

/// HH:MM:SS.mmm, UTC.
fn clock(wall_ns: i64) -> String {
    timestamp(wall_ns).get(11..23).unwrap_or("??:??:??.???").to_owned()
}

/// The end of an event id. Its beginning is the time, which is similar for incidents close together.
fn short(event_id: &str) -> &str {
    event_id.get(24..).unwrap_or(event_id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rsttrace_core::{
        fix::Change,
        testing::{SECOND, article, replay},
    };
    use rsttrace_model::{
        netns::{NetnsReach, Place},
        owner::Owner,
    };

    const PLAIN: TableOptions = TableOptions { color: false, width: 100, wide: false };
    /// Nothing wraps.
    const UNWRAPPED: TableOptions = TableOptions { width: 500, ..PLAIN };

    fn incident() -> Incident {
        replay(article()).remove(0)
    }

    fn printed(options: TableOptions, incident: &Incident) -> String {
        Table::new(options).incident(incident, 0).expect("a text")
    }

    #[test]
    fn an_incident_names_root_cause_verdict_and_first_fix() {
        let text = printed(PLAIN, &incident());
        for part in [
            "10.0.0.2:41822 → 10.96.0.10:3306 [→ 10.0.1.2:3306]",
            "← ROOT CAUSE",
            "VERDICT    ipvs_idle_expired (observed), reset after 973 s idle: its IPVS entry",
            "FIX 1      [application] send keepalives at least every 300 s (now: off; set: idle 300 s, \
             interval",
            "  30 s, 3 probes)",
        ] {
            assert!(text.contains(part), "{part} is missing in:\n{text}");
        }
    }

    #[test]
    fn the_root_cause_is_marked_once_and_findings_are_in_order() {
        let text = printed(UNWRAPPED, &incident());
        assert_eq!(text.matches("ROOT CAUSE").count(), 1);
        let root = text.lines().find(|line| line.contains("ROOT CAUSE")).expect("a mark");
        assert!(root.contains("├") && text.find(root) < text.find("└"), "{text}");
        let times: Vec<&str> =
            text.lines().filter_map(|l| l.get(6..18).filter(|_| l.contains(['├', '└']))).collect();
        assert!(times.len() > 1 && times.is_sorted(), "{text}");
    }

    #[test]
    fn an_unknown_cause_has_no_root() {
        let unknown = Incident { confidence: None, ..incident() };
        assert!(!printed(PLAIN, &unknown).contains("ROOT CAUSE"));
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
    fn the_other_end_is_one_line_that_names_the_first_incident() {
        let mut table = Table::new(UNWRAPPED);
        let first = incident();
        table.incident(&first, 0);
        let end = Incident { follows: Some(first.event_id.clone()), ..incident() };
        let line = table.incident(&end, 1).expect("a line");
        assert_eq!(line.lines().count(), 1);
        assert!(line.contains(short(&first.event_id)), "{line}");
    }

    #[test]
    fn the_date_is_printed_once_a_day() {
        let mut table = Table::new(PLAIN);
        let first = incident();
        let mut texts = Vec::new();
        for (port, days) in [(1, 0), (2, 0), (3, 1)] {
            let mut next = first.clone();
            next.destination.set_port(port);
            next.wall_ns += days * 86_400_000_000_000;
            texts.push(table.incident(&next, 0).expect("a text"));
        }
        let dated: Vec<bool> = texts.iter().map(|text| text.contains(" UTC ──")).collect();
        assert_eq!(dated, [true, false, true]);
    }

    #[test]
    fn only_the_wide_table_shows_how_to_persist_and_undo_a_fix() {
        let mut incident = incident();
        let place = Place { netns: 1, reach: NetnsReach::Initial };
        let key = "net.ipv4.tcp_keepalive_time";
        incident.fixes[0].changes = vec![Change::Sysctl { place, key, from: Some(7200), to: 300 }];
        let wide = printed(TableOptions { wide: true, ..PLAIN }, &incident);
        let narrow = printed(PLAIN, &incident);
        for part in ["/etc/sysctl.d/", "sysctl -w net.ipv4.tcp_keepalive_time=7200", "RULED OUT"] {
            assert!(wide.contains(part), "{part} is missing in:\n{wide}");
            assert!(!narrow.contains(part), "{part} is in:\n{narrow}");
        }
        assert!(narrow.contains("sysctl -w net.ipv4.tcp_keepalive_time=300"), "{narrow}");
    }

    #[test]
    fn the_socket_line_shows_where_the_keepalive_time_comes_from() {
        let keepalive = |enabled, time_is_own| Keepalive {
            enabled,
            time_s: 600.0,
            intvl_s: 75.0,
            probes: 9,
            time_is_own,
        };
        assert!(socket(keepalive(true, true)).contains("set by the application"));
        assert!(socket(keepalive(true, false)).contains("namespace"));
        assert_eq!(socket(keepalive(false, false)), "SO_KEEPALIVE off (defaults 600/75/9)");
        assert!(socket(keepalive(false, true)).contains("off (600/75/9 set by the application"));
    }

    #[test]
    fn a_hostile_process_name_cannot_move_the_cursor() {
        let mut hostile = incident();
        hostile.owner = Some(Owner { pid: 1, comm: "\u{1b}[2J\r".into(), ..Owner::default() });
        let text = printed(PLAIN, &hostile);
        assert!(!text.contains(['\u{1b}', '\r']), "{text}");
        assert!(text.contains("\\u{1b}[2J"), "{text}");
    }

    #[test]
    fn the_processes_at_both_ends_are_printed_with_pod_and_container() {
        let mut both = incident();
        let pod = |uid: &str, name: Option<&str>| Pod {
            uid: Some(uid.into()),
            name: name.map(str::to_owned),
            namespace: name.map(|_| "shop".into()),
        };
        both.owner = Some(Owner {
            pid: 7,
            comm: "node".into(),
            container_id: Some("3f9c".repeat(16)),
            pod: Some(pod("u-1", Some("orders-api-7c9"))),
            ..Owner::default()
        });
        both.owner_side = Some(Side::Source);
        let by = OwnerBy::Listener;
        let pod = Some(pod("u-2", None));
        both.peer = Some(Owner { pid: 8, comm: "mysqld".into(), by, pod, ..Owner::default() });
        let wanted = "  PROCESS    source node (pid 7), pod shop/orders-api-7c9, container \
                      3f9c3f9c3f9c; destination mysqld (pid 8, its listener), pod u-2\n";
        let text = printed(UNWRAPPED, &both);
        assert!(text.contains(wanted), "{text}");
    }

    #[test]
    fn prose_keeps_to_the_width_and_commands_are_never_wrapped() {
        let text = printed(TableOptions { width: 70, ..PLAIN }, &incident());
        let is_command = |line: &str| line.contains("setsockopt") || line.contains("sysctl -w");
        let mut prose = text.lines().filter(|line| !is_command(line));
        assert!(prose.all(|line| line.chars().count() <= 70), "{text}");
        assert!(text.contains("setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, 300)"));
    }

    #[test]
    fn no_colour_means_no_escape_sequence() {
        assert!(!printed(PLAIN, &incident()).contains('\u{1b}'));
        assert!(printed(TableOptions { color: true, ..PLAIN }, &incident()).contains('\u{1b}'));
    }
}
