//! Sentences that the Markdown and the HTML renderer share.

use super::{
    format::{joined, joined_of, names, plural, seconds},
    model::{
        CausePart, Counter, Covered, FixPart, KeepaliveOff, Reading, Report, RuledOutPart,
        ServicePart,
    },
};

impl Report {
    /// The time window of `--since` and `--until`.
    pub fn window(&self) -> Option<String> {
        let since = self.since.map(|at| format!("from {} UTC", at.full()));
        let until = self.until.map(|at| format!("before {} UTC", at.full()));
        let all: Vec<String> = [since, until].into_iter().flatten().collect();
        (!all.is_empty()).then(|| all.join(", "))
    }

    /// The selection of `--since`, `--until` and `--cause`.
    pub fn selected(&self) -> Option<String> {
        let only = (!self.only.is_empty()).then(|| format!("only {}", self.only.join(", ")));
        let all: Vec<String> = [self.window(), only].into_iter().flatten().collect();
        (!all.is_empty()).then(|| all.join(", "))
    }

    /// How many connections broke, and what was counted beside them.
    pub fn counted(&self) -> String {
        let mut text = plural(self.connections, "broken connection");
        // `absorbed` is counted for the whole file only.
        let absorbed = if self.selected().is_some() { 0 } else { self.absorbed };
        let follow_ups = self.other_ends.saturating_add(absorbed);
        if follow_ups > 0 {
            let errors = plural(follow_ups, "follow-up error");
            text.push_str(&format!(" plus {errors} on the same connections"));
        }
        if !self.benign.is_empty() {
            let benign: Vec<String> =
                self.benign.iter().map(|it| format!("{} {}", it.cause, it.count)).collect();
            text.push_str(&format!("; benign: {}", benign.join(", ")));
        }
        text
    }

    /// The fullest moment of each conntrack table.
    pub fn fill_lines(&self) -> Vec<String> {
        let fills = self.conntrack_fill.iter().take(5);
        fills
            .filter_map(|fill| {
                let Reading { at, entries, max } = *fill.peak()?;
                let share = fill.peak()?.share() * 100.0;
                let at = at.format("%H:%M:%S");
                Some(format!(
                    "the conntrack table {} held at most {entries} of {max} entries ({share:.0} %), \
                     at {at}",
                    fill.place
                ))
            })
            .collect()
    }

    /// The known gaps of the report, or a line that there are none.
    pub fn unseen_lines(&self) -> Vec<String> {
        let unseen = &self.unseen;
        let mut lines: Vec<String> =
            unseen.blind_spots.iter().map(|spot| spot.to_string()).collect();
        let mut count = |count: u64, text: String| {
            if count > 0 {
                lines.push(text);
            }
        };
        count(unseen.lost_events, {
            let events = plural(unseen.lost_events, "kernel record");
            format!("{events} lost: the ring buffer was full, so a cause may be missing")
        });
        count(unseen.unreadable, {
            format!("{} could not be decoded", plural(unseen.unreadable, "record"))
        });
        count(unseen.forgotten, {
            let records = plural(unseen.forgotten, "ended-entry record");
            format!("{records} evicted: the history was full")
        });
        count(unseen.damaged, {
            let lines = plural(unseen.damaged, "line");
            let are = if unseen.damaged == 1 { "is" } else { "are" };
            format!("{lines} of {} cannot be read and {are} missing from this report", self.file)
        });
        lines.extend(unseen.damage.iter().map(|it| format!("{}: {it}", self.file)));
        lines.extend(unseen.notes.iter().cloned());
        if unseen.is_empty() {
            lines.push(match self.input {
                "capture" => {
                    "no known gaps: every signal that this kernel offers was covered and no record \
                     was lost"
                        .into()
                }
                _ => "no known gaps: no blind spot was reported and no record was lost".into(),
            });
        }
        if let Some(Covered { covered, of }) = unseen.signals {
            lines.push(format!("{covered} of {of} signals were covered when the capture ended"));
        }
        lines
            .push("resets that are merely forwarded between two other hosts are never seen".into());
        lines
    }
}

impl CausePart {
    /// The command that computes this plan from the current values; `None` when the cause has no fix, or
    /// this build does not know the cause.
    pub fn plan(&self) -> Option<String> {
        let known = rsttrace_core::causes::by_id(self.cause.as_str())?;
        (!self.fixes.is_empty()).then(|| format!("rsttrace fix {}", known.id))
    }

    /// What is known of the cause's connections beside the title.
    pub fn sentences(&self) -> Vec<String> {
        let mut all = Vec::new();
        let confidences: Vec<String> = self
            .confidences
            .iter()
            .map(|it| match self.confidences.len() {
                1 => it.text.to_string(),
                _ => format!("{} {}", it.connections, it.text),
            })
            .collect();
        all.push(format!("Confidence: {}.", confidences.join(", ")));
        if !self.clients.is_empty() {
            let clients = joined_of(&self.clients, self.connections, 5);
            all.push(format!("Clients: {clients}."));
        }
        let services: Vec<String> = self.services.iter().map(|it| it.address.to_string()).collect();
        let servers = match self.servers.as_slice() {
            [] => String::new(),
            servers => format!(" ({})", joined(servers, 3)),
        };
        all.push(format!("To: {}{servers}.", names(services.iter().map(String::as_str), 4)));
        if let Some(idle) = self.idle {
            let (shortest, longest) = (seconds(idle.shortest_s), seconds(idle.longest_s));
            all.push(match shortest == longest {
                true => format!("Idle before the failure: {longest}."),
                false => format!(
                    "Idle before the failure: {shortest} to {longest}, median {}.",
                    seconds(idle.median_s)
                ),
            });
        }
        let limits: Vec<String> = self
            .limits
            .iter()
            .map(|limit| format!("{} {}", limit.name, seconds(limit.limit_s)))
            .collect();
        if !limits.is_empty() {
            let limits = names(limits.iter().map(String::as_str), 4);
            all.push(format!("Idle limit reached: {limits}."));
        }
        if let Some(KeepaliveOff { off, known }) = self.keepalive {
            all.push(match off {
                0 => "SO_KEEPALIVE was on.".into(),
                off if off == known => "SO_KEEPALIVE was off.".into(),
                off => format!("SO_KEEPALIVE was off on {off} of {known} sockets."),
            });
        }
        if self.connections > 1 {
            all.push(format!(
                "First {}, last {} UTC; busiest minute {} with {}.",
                self.first.full(),
                self.last.full(),
                self.peak.minute.format("%H:%M"),
                self.peak.connections
            ));
        }
        all
    }
}

impl RuledOutPart {
    /// The reason, and for how many of the cause's connections it was given.
    pub fn reason(&self, connections: u64) -> String {
        let count = (self.connections < connections)
            .then(|| format!("for {} of {connections} connections", self.connections));
        let numbers =
            self.numbers_differ.then(|| "other connections have other numbers".to_owned());
        let others =
            (self.other_reasons > 0).then(|| plural(self.other_reasons as u64, "other reason"));
        let notes: Vec<String> = [count, numbers, others].into_iter().flatten().collect();
        match notes.is_empty() {
            true => self.because.to_string(),
            false => format!("{} ({})", self.because, notes.join("; ")),
        }
    }
}

impl FixPart {
    /// Why the fix helps, the current and the new value, and the risk.
    pub fn about(&self, total: u64) -> String {
        let fix = &self.fix;
        let mut text = match fix.reason.as_str() {
            "" => String::new(),
            reason => format!("{reason}. "),
        };
        match (&fix.current, &fix.wanted) {
            (Some(now), Some(wanted)) => text.push_str(&format!("Now: {now}; set: {wanted}. ")),
            (None, Some(wanted)) => text.push_str(&format!("Set: {wanted}. ")),
            _ => {}
        }
        if let Some(risk) = &fix.risk {
            text.push_str(&format!("Risk: {risk}. "));
        }
        if self.connections < total {
            text.push_str(&format!("For {} of {total} connections.", self.connections));
        }
        text.trim_end().to_owned()
    }

    /// How to roll back a fix that has no undo commands.
    pub fn without_undo(&self) -> &'static str {
        match self.fix.owner.as_str() {
            "application" => "Roll back: redeploy the application without this change.",
            _ => {
                "Roll back: note the current value before you change it, because no old value is on record."
            }
        }
    }
}

impl ServicePart {
    /// The real servers or NAT targets behind the service's address.
    pub fn backends_text(&self) -> Option<String> {
        let all: Vec<String> = self.backends.iter().map(ToString::to_string).collect();
        (!all.is_empty()).then(|| names(all.iter().map(String::as_str), 3))
    }
}

impl Counter {
    /// The signed difference: "+7".
    pub fn change(&self) -> String {
        format!("{:+}", i128::from(self.after) - i128::from(self.before))
    }
}
