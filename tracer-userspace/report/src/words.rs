//! Sentences that every renderer shows.

use super::{
    counters::{Counter, Reading},
    model::{CausePart, Covered, FixPart, KeepaliveOff, Report, RuledOutPart, ServicePart},
    say::{names, plural, seconds, who, who_of},
};

impl Report {
    /// What `--since` and `--until` left.
    pub fn window(&self) -> Option<String> {
        let since = self.since.map(|at| format!("from {} UTC", at.full()));
        let until = self.until.map(|at| format!("before {} UTC", at.full()));
        let all: Vec<String> = [since, until].into_iter().flatten().collect();
        (!all.is_empty()).then(|| all.join(", "))
    }

    /// What `--since`, `--until` and `--cause` left.
    pub fn selected(&self) -> Option<String> {
        let only = (!self.only.is_empty()).then(|| format!("only {}", self.only.join(", ")));
        let all: Vec<String> = [self.window(), only].into_iter().flatten().collect();
        (!all.is_empty()).then(|| all.join(", "))
    }

    /// What is counted how.
    pub fn counted(&self) -> String {
        let mut text = plural(self.connections, "broken connection");
        let other_ends = plural(self.other_ends, "error");
        // Counted for the whole file only.
        let absorbed = if self.selected().is_some() { 0 } else { self.absorbed };
        let repeats = plural(absorbed, "repeat");
        match (self.other_ends, absorbed) {
            (0, 0) => {}
            (_, 0) => text.push_str(&format!(
                "; {other_ends} at the other end of one of them counted with it"
            )),
            (0, _) => text.push_str(&format!("; {repeats} counted with them")),
            (_, _) => text.push_str(&format!(
                "; {other_ends} at their other ends and {repeats} counted with them"
            )),
        }
        if !self.benign.is_empty() {
            let benign: Vec<String> =
                self.benign.iter().map(|it| format!("{} {}", it.cause, it.count)).collect();
            text.push_str(&format!("; benign: {}", benign.join(", ")));
        }
        text
    }

    /// How full the tables were.
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

    /// What the report cannot know; says so when there is nothing.
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
            let ends = plural(unseen.forgotten, "end");
            format!("{ends} of entries forgotten for want of room")
        });
        count(unseen.damaged, {
            let lines = plural(unseen.damaged, "line");
            format!("{lines} of {} cannot be read, and what is in them is not in here", self.file)
        });
        lines.extend(unseen.damage.iter().map(|it| format!("{}: {it}", self.file)));
        lines.extend(unseen.notes.iter().cloned());
        if unseen.is_empty() {
            lines.push(match self.input {
                "capture" => {
                    "nothing is known to be missing: every signal that this kernel offers \
                              was covered and no record was lost"
                        .into()
                }
                _ => {
                    "nothing is known to be missing: no blind spot was told and no record was lost"
                        .into()
                }
            });
        }
        if let Some(Covered { covered, of }) = unseen.signals {
            lines.push(format!("{covered} of {of} signals were covered at the end"));
        }
        lines
            .push("resets that are merely forwarded between two other hosts are never seen".into());
        lines
    }
}

impl CausePart {
    /// The command that makes such a plan from what is in force now; `None` where there is nothing to
    /// plan, or for a cause that this build does not know.
    pub fn plan(&self) -> Option<String> {
        let known = rsttrace_core::causes::by_id(self.cause.as_str())?;
        (!self.fixes.is_empty()).then(|| format!("rsttrace fix {}", known.id))
    }

    /// What there is to say beside what it is.
    pub fn sentences(&self) -> Vec<String> {
        let mut all = Vec::new();
        let sure: Vec<String> = self
            .confidences
            .iter()
            .map(|it| match self.confidences.len() {
                1 => it.text.to_string(),
                _ => format!("{} {}", it.connections, it.text),
            })
            .collect();
        all.push(format!("Verdict: {}.", sure.join(", ")));
        if !self.clients.is_empty() {
            let clients = who_of(&self.clients, self.connections, 5);
            all.push(format!("Clients: {clients}."));
        }
        let services: Vec<String> = self.services.iter().map(|it| it.address.to_string()).collect();
        let servers = match self.servers.as_slice() {
            [] => String::new(),
            servers => format!(" ({})", who(servers, 3)),
        };
        all.push(format!("To: {}{servers}.", names(services.iter().map(String::as_str), 4)));
        if let Some(idle) = self.idle {
            let (shortest, longest) = (seconds(idle.shortest_s), seconds(idle.longest_s));
            all.push(match shortest == longest {
                true => format!("Idle before: {longest}."),
                false => format!(
                    "Idle before: {shortest} to {longest}, half of them {} or more.",
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
            all.push(format!("Limit met: {limits}."));
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
    /// The reason, and of how many of the cause's connections it was given.
    pub fn reason(&self, connections: u64) -> String {
        let of = (self.connections < connections)
            .then(|| format!("said of {} of {connections}", self.connections));
        let numbers = self.numbers_differ.then(|| "with other numbers for others".to_owned());
        let others =
            (self.other_reasons > 0).then(|| plural(self.other_reasons as u64, "other reason"));
        let notes: Vec<String> = [of, numbers, others].into_iter().flatten().collect();
        match notes.is_empty() {
            true => self.because.to_string(),
            false => format!("{} ({})", self.because, notes.join("; ")),
        }
    }
}

impl FixPart {
    /// Why it helps, what is now and what is wanted, what may go wrong.
    pub fn about(&self, total: u64) -> String {
        let fix = &self.fix;
        let mut text = match fix.reason.as_str() {
            "" => String::new(),
            reason => format!("{reason}. "),
        };
        match (&fix.current, &fix.wanted) {
            (Some(now), Some(wanted)) => text.push_str(&format!("Now {now}, wanted {wanted}. ")),
            (None, Some(wanted)) => text.push_str(&format!("Wanted: {wanted}. ")),
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

    /// What to do instead of undoing, where no old value is on record.
    pub fn without_undo(&self) -> &'static str {
        match self.fix.owner.as_str() {
            "application" => "Roll back: deploy the application as it was.",
            _ => "Roll back: note the value before you change it; no old one is on record.",
        }
    }
}

impl ServicePart {
    /// Where its connections really went.
    pub fn backends_text(&self) -> Option<String> {
        let all: Vec<String> = self.backends.iter().map(ToString::to_string).collect();
        (!all.is_empty()).then(|| names(all.iter().map(String::as_str), 3))
    }
}

impl Counter {
    /// "+7".
    pub fn change(&self) -> String {
        format!("{:+}", i128::from(self.after) - i128::from(self.before))
    }
}
