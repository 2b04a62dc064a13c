//! Turns the gathered counts into the report.

use std::{cmp::Reverse, net::SocketAddr};

use rsttrace_core::causes;

use super::{
    Input,
    format::{plural, ranked},
    gather::{FixCount, Gather, Group, Service},
    model::{
        BrokenConnection, CausePart, Covered, EvidenceLine, Extent, FixPart, Gaps, Idle,
        KeepaliveOff, Limit, Minute, Peak, Report, RuledOutPart, ServiceCount, ServicePart, Time,
    },
    parsed::{CauseCount, ParsedIncident},
    runs::Totals,
    summary, timeline, verify,
};

const MINUTE: i64 = 60_000_000_000;

/// Causes that the summary explains in sentences.
const IN_FULL: usize = 3;

/// Fixes listed per cause.
const FIXES: usize = 8;

impl Gather {
    pub fn report(mut self, input: Input) -> Report {
        let totals = std::mem::take(&mut self.runs).finish();
        let mut causes: Vec<CausePart> =
            self.groups.iter().map(|(id, group)| part(id.as_str(), group)).collect();
        // Causes with the same number of connections keep the core's order of precedence.
        let place = |part: &CausePart| {
            causes::ALL.iter().position(|it| it.id == part.cause.as_str()).unwrap_or(usize::MAX)
        };
        causes.sort_by_key(|part| (Reverse(part.connections), place(part)));
        let mut services: Vec<ServicePart> =
            self.services.iter().map(|(address, it)| service(*address, it)).collect();
        services.sort_by_key(|it| Reverse(it.connections));
        let mut benign: Vec<CauseCount> = totals
            .benign
            .iter()
            .filter(|(cause, _)| self.selects_cause(cause.as_str()))
            .map(|(cause, count)| CauseCount { cause: cause.clone(), count: *count })
            .collect();
        benign.sort_by_key(|it| Reverse(it.count));
        let unseen = unseen(&self, &totals, &input);
        let has_states = !self.namespaces.is_empty();
        let mut report = Report {
            schema: "1.0",
            rsttrace: env!("CARGO_PKG_VERSION"),
            file: input.file,
            input: input.kind,
            hosts: ranked(&self.hosts).into_iter().map(|it| it.text).collect(),
            kernels: ranked(&self.kernels).into_iter().map(|it| it.text).collect(),
            extent: self
                .extent
                .map(|(first, last)| Extent { first: Time(first), last: Time(last) }),
            since: self.selection.window.since_ns().map(Time),
            until: self.selection.window.until_ns().map(Time),
            only: self.selection.causes.clone(),
            headline: String::new(),
            summary: String::new(),
            connections: self.connections,
            other_ends: self.other_ends,
            absorbed: totals.absorbed,
            causes,
            benign,
            services,
            timeline: Vec::new(),
            not_listed: self.connections.saturating_sub(self.briefs.len() as u64),
            broken: broken(&mut self),
            counters: has_states.then(|| self.namespaces.counters()),
            conntrack_fill: self.namespaces.fill(),
            unseen,
        };
        report.headline = summary::headline(&report);
        report.summary = summary::summary(&report, IN_FULL);
        report.timeline = timeline::timeline(&report);
        report
    }

    fn selects_cause(&self, cause: &str) -> bool {
        let causes = &self.selection.causes;
        causes.is_empty() || causes.iter().any(|id| id == cause)
    }
}

fn broken(gather: &mut Gather) -> Vec<BrokenConnection> {
    let mut briefs = std::mem::take(&mut gather.briefs);
    briefs.sort_by_key(|brief| brief.wall_ns);
    briefs
        .into_iter()
        .map(|brief| BrokenConnection {
            at: Time(brief.wall_ns),
            cause: brief.cause,
            confidence: brief.confidence,
            source: brief.source,
            destination: brief.destination,
            client: brief.client,
            idle_s: brief.idle_s,
            event_id: brief.event_id,
        })
        .collect()
}

/// The minute with the most connections, or the first such minute; `minutes` holds minutes since the epoch.
fn peak(minutes: impl Iterator<Item = (i64, u64)>) -> Peak {
    let (minute, connections) =
        minutes.max_by_key(|(minute, count)| (*count, Reverse(*minute))).unwrap_or_default();
    Peak { minute: Time(minute.saturating_mul(MINUTE)), connections }
}

fn part(id: &str, group: &Group) -> CausePart {
    let known = causes::by_id(id);
    let mut times = group.times.clone();
    times.sort_unstable();
    let (first, last) =
        (times.first().copied().unwrap_or_default(), times.last().copied().unwrap_or_default());
    let per_minute = times
        .chunk_by(|a, b| a.div_euclid(MINUTE) == b.div_euclid(MINUTE))
        .filter_map(|chunk| Some((chunk.first()?.div_euclid(MINUTE), chunk.len() as u64)));
    let mut idle_s = group.idle_s.clone();
    idle_s.sort_by(f64::total_cmp);
    let mut services: Vec<ServiceCount> = group
        .services
        .iter()
        .map(|(address, connections)| ServiceCount { address: *address, connections: *connections })
        .collect();
    services.sort_by_key(|it| Reverse(it.connections));
    let idle = idle(&idle_s);
    let limits = limits(group);
    let example = &group.example;
    CausePart {
        cause: id.into(),
        family: group.family.clone(),
        title: known.map_or("", |cause| cause.title),
        connections: group.times.len() as u64,
        confidences: ranked(&group.confidences),
        first: Time(first),
        last: Time(last),
        peak: peak(per_minute),
        clients: ranked(&group.clients),
        servers: ranked(&group.servers),
        idle,
        keepalive: (group.keepalive_known > 0)
            .then_some(KeepaliveOff { off: group.keepalive_off, known: group.keepalive_known }),
        message: example.message.clone(),
        event_id: example.event_id.clone(),
        evidence: evidence(example),
        ruled_out: ruled_out(group),
        fixes: fixes(group),
        not_fixes: not_fixes(group),
        verify: verify::queries(&id.into(), &services, idle.as_ref(), &limits, (first, last)),
        proves: ranked(&group.proves),
        services,
        limits,
        times,
        idle_s,
    }
}

fn idle(sorted: &[f64]) -> Option<Idle> {
    Some(Idle {
        shortest_s: *sorted.first()?,
        median_s: *sorted.get(sorted.len() / 2)?,
        longest_s: *sorted.last()?,
        known: sorted.len() as u64,
    })
}

fn limits(group: &Group) -> Vec<Limit> {
    let mut limits: Vec<Limit> = group
        .limits
        .iter()
        .map(|((name, millis), connections)| {
            #[expect(clippy::cast_precision_loss, reason = "seconds for people")]
            let limit_s = *millis as f64 / 1000.0;
            Limit { name: name.clone(), limit_s, connections: *connections }
        })
        .collect();
    limits.sort_by_key(|limit| Reverse(limit.connections));
    limits
}

fn evidence(example: &ParsedIncident) -> Vec<EvidenceLine> {
    let mut lines: Vec<EvidenceLine> = example
        .evidence
        .iter()
        .enumerate()
        .map(|(index, it)| EvidenceLine {
            at: Time(it.wall_ns),
            text: it.summary.clone(),
            // The first piece of evidence is the one that the verdict rests on.
            root: index == 0 && example.confidence.is_some(),
        })
        .collect();
    lines.sort_by_key(|it| it.at);
    lines
}

fn ruled_out(group: &Group) -> Vec<RuledOutPart> {
    let mut parts: Vec<RuledOutPart> = group
        .ruled_out
        .iter()
        .filter_map(|(cause, reasons)| {
            let most = reasons.values().max_by_key(|reason| reason.count)?;
            Some(RuledOutPart {
                cause: cause.clone(),
                because: most.text.clone(),
                connections: most.count,
                numbers_differ: most.numbers_differ,
                other_reasons: reasons.len() - 1,
            })
        })
        .collect();
    parts.sort_by_key(|part| Reverse(part.connections));
    parts
}

/// Fixes with the same id, owner and summary are merged, even when their namespaces differ.
fn fixes(group: &Group) -> Vec<FixPart> {
    let mut counted: Vec<&FixCount> = group.fixes.values().collect();
    counted.sort_by_key(|it| (it.rank, Reverse(it.count)));
    let mut parts: Vec<FixPart> = Vec::new();
    for FixCount { fix, count, .. } in counted {
        let same = |part: &&mut FixPart| {
            let other = &part.fix;
            (&other.id, &other.owner, &other.summary) == (&fix.id, &fix.owner, &fix.summary)
        };
        let room = parts.len() < FIXES;
        match parts.iter_mut().find(same) {
            Some(part) => {
                part.connections += count;
                let lists = [
                    (&mut part.fix.commands, &fix.commands),
                    (&mut part.fix.advice, &fix.advice),
                    (&mut part.fix.verify, &fix.verify),
                    (&mut part.fix.undo, &fix.undo),
                ];
                for (all, more) in lists {
                    for line in more {
                        if !all.contains(line) {
                            all.push(line.clone());
                        }
                    }
                }
            }
            None if room => {
                parts.push(FixPart { fix: fix.clone(), connections: *count });
            }
            None => {}
        }
    }
    parts
}

fn not_fixes(group: &Group) -> Vec<super::parsed::NotFix> {
    let mut all: Vec<_> = group.not_fixes.iter().collect();
    all.sort_by_key(|(_, count)| Reverse(**count));
    let mut distinct: Vec<super::parsed::NotFix> = Vec::new();
    for (it, _) in all {
        // The same reason may come with other numbers in `what`.
        if !distinct.iter().any(|other| other.because == it.because) {
            distinct.push(it.clone());
        }
    }
    distinct
}

fn service(address: SocketAddr, it: &Service) -> ServicePart {
    let count = |causes: &super::gather::Tally| causes.values().sum::<u64>();
    ServicePart {
        address,
        backends: it.backends.keys().copied().collect(),
        clients: ranked(&it.clients),
        servers: ranked(&it.servers),
        connections: it.minutes.values().map(count).sum(),
        peak: peak(it.minutes.iter().map(|(minute, causes)| (*minute, count(causes)))),
        minutes: it
            .minutes
            .iter()
            .map(|(minute, causes)| Minute {
                minute: Time(minute.saturating_mul(MINUTE)),
                causes: ranked(causes)
                    .into_iter()
                    .map(|it| CauseCount { cause: it.text, count: it.connections })
                    .collect(),
            })
            .collect(),
    }
}

fn unseen(gather: &Gather, totals: &Totals, input: &Input) -> Gaps {
    let faults = &input.faults;
    let mut blind_spots: Vec<_> =
        ranked(&gather.blind_spots).into_iter().map(|it| it.text).collect();
    for spot in gather.session.iter().flat_map(rsttrace_core::event::Session::blind_spots) {
        let spot = spot.into();
        if !blind_spots.contains(&spot) {
            blind_spots.push(spot);
        }
    }
    let mut notes = Vec::new();
    let mut note = |count: u64, text: String| {
        if count > 0 {
            notes.push(text);
        }
    };
    note(gather.duplicates, {
        let (appear, are) =
            if gather.duplicates == 1 { ("appears", "is") } else { ("appear", "are") };
        let events = plural(gather.duplicates, "event");
        format!("{events} {appear} twice in the file and {are} counted once")
    });
    note(faults.foreign, format!("not an rsttrace event: {}", plural(faults.foreign, "line")));
    note(faults.newer, {
        let events = plural(faults.newer, "event");
        format!(
            "{events} skipped: written by a newer rsttrace, of a kind that this build does not know"
        )
    });
    let selects = !gather.selection.window.is_open() || !gather.selection.causes.is_empty();
    note(if selects { 0 } else { totals.missing }, {
        let missing = plural(totals.missing, "broken connection");
        format!(
            "the summaries count {missing} more than the stream holds: lines of the stream are missing"
        )
    });
    note(gather.shortened, {
        let incidents = plural(gather.shortened, "incident");
        format!(
            "{incidents} shortened to the length of a log line: some of the evidence, ruled-out causes \
             or fixes are not in the file"
        )
    });
    note(gather.other_services, {
        let connections = plural(gather.other_services, "connection");
        format!("{connections} to further services counted in the totals only, not per service")
    });
    if gather.connections > 0 && input.kind == "ndjson" {
        notes.push(
            "a stream of incidents holds no kernel counters; a capture (rsttrace record) holds them"
                .into(),
        );
        notes.push(
            "the commands come from the stream and were not checked; rsttrace fix computes its own"
                .into(),
        );
    }
    let session = gather.session.as_ref();
    Gaps {
        blind_spots,
        signals: session.map(|session| Covered {
            covered: session.coverage.iter().filter(|signal| signal.way.is_some()).count(),
            of: session.coverage.len(),
        }),
        lost_events: totals.lost,
        unreadable: totals.unreadable,
        forgotten: totals.forgotten,
        damaged: faults.damaged,
        damage: faults.named.clone(),
        notes,
    }
}
