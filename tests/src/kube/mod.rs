//! The real kube-proxy: each event of [`table`] happens to real connections under `rsttrace live`, and is judged.

mod api;
mod cluster;
mod events;
mod judge;
mod proxy;
mod stage;
mod table;

use std::{cell::RefCell, fs, path::Path, thread};

use anyhow::{Context, Result, anyhow, bail};

use self::{
    api::Api,
    cluster::{Cluster, Service, node_object},
    judge::Outcome,
    stage::{Running, Stage},
    table::{ROWS, Row},
};
use crate::{
    guest::Guest,
    run::{GRACE, LATE_MODULES, QUIET, ended_well, one_line},
    tracer::Tracer,
};

pub use proxy::Mode;

/// How often an event is repeated whose outcome is one of chance.
const ATTEMPTS: usize = 3;
const CAPTURE: &str = "/tmp/kube.cap";
/// The services' numbers begin here.
const FIRST: usize = 10;

/// Plays these rows (all without any) in one mode. Prints `ROW name pass|fail|unseen text` for each; before that, the
/// incidents of a failed row as `EVENT name JSON`, and the lines of its capture as `CAPTURE name line`, with `record`
/// those of every row. Returns whether no row failed.
pub fn run(tracer: &Path, mode: Mode, names: &[String], record: bool) -> Result<bool> {
    if let Some(unknown) = names.iter().find(|name| ROWS.iter().all(|row| row.name != **name)) {
        let known: Vec<_> = ROWS.iter().map(|row| row.name).collect();
        bail!("no row {unknown} (there are {})", known.join(", "));
    }
    let guest = Guest::probe()?;
    for (module, _) in LATE_MODULES {
        guest.load(module)?;
    }
    guest.load("nf_conntrack_netlink")?;
    let api = Api::start()?;
    api.put(node_object())?;
    let mut cluster = Cluster::build()?;
    let proxy = RefCell::<Running>::default();
    let mut all_passed = true;
    for (index, row) in ROWS.iter().enumerate() {
        let wanted = names.is_empty() || names.iter().any(|name| name == row.name);
        if !wanted || row.expected(mode).is_none() {
            continue;
        }
        let number = u8::try_from(FIRST + index).context("too many rows")?;
        let service = Service { name: row.name, number };
        let mut outcome = Outcome::Unseen(String::new());
        for _ in 0..ATTEMPTS {
            let play = Play { tracer, mode, row, api: &api, cluster: &cluster, proxy: &proxy };
            outcome = play.run(service).unwrap_or_else(|error| Outcome::Fail {
                reason: one_line(&error),
                events: Vec::new(),
            });
            cluster.restart_pods()?;
            if !matches!(outcome, Outcome::Unseen(_)) {
                break;
            }
        }
        if let Outcome::Fail { events, .. } = &outcome {
            all_passed = false;
            events.iter().for_each(|event| println!("EVENT {} {event}", row.name));
        }
        if record || matches!(outcome, Outcome::Fail { .. }) {
            let capture = fs::read_to_string(CAPTURE).unwrap_or_default();
            capture.lines().for_each(|line| println!("CAPTURE {} {line}", row.name));
        }
        println!("ROW {} {outcome}", row.name);
    }
    proxy.borrow_mut().stop()?;
    Ok(all_passed)
}

struct Play<'a> {
    tracer: &'a Path,
    mode: Mode,
    row: &'static Row,
    api: &'a Api,
    cluster: &'a Cluster,
    proxy: &'a RefCell<Running>,
}

impl Play<'_> {
    /// One attempt.
    fn run(&self, service: Service) -> Result<Outcome> {
        let Self { mode, row, .. } = self;
        let expected = row.expected(*mode).context("the row has no outcome in this mode")?;
        self.proxy.borrow_mut().ensure(self.api, *mode, row.timeouts)?;
        // A capture is a new file.
        if Path::new(CAPTURE).exists() {
            fs::remove_file(CAPTURE).context(CAPTURE)?;
        }
        let recorder = Tracer::start(self.tracer, &["record", CAPTURE])?;
        let tracer = Tracer::start(self.tracer, &["live", "-o", "json", "--all"])?;
        let stage = Stage::new(*mode, row.timeouts, self.api, self.cluster, self.proxy, service);
        let saw = (row.provoke)(&stage).with_context(|| format!("provoke: {}", row.event));
        let failed = saw.iter().flatten().filter(|it| judge::is_failure(it)).count();
        tracer.wait_for(QUIET, |records| judge::incidents(records, service).len() >= failed);
        thread::sleep(GRACE);
        let exit = tracer.stop()?;
        ended_well(&exit)?;
        ended_well(&recorder.stop()?)?;
        // Closes the sockets only now.
        stage.kept.take();
        self.api.delete("Service", service.name);
        self.api.delete("EndpointSlice", service.name);
        if let Some(line) = exit.garbage.first() {
            return Err(anyhow!("stdout is not NDJSON: {line:?}"));
        }
        match saw {
            Ok(saw) => Ok(judge::judge(expected, &saw, &exit.records, service)),
            Err(error) => Ok(Outcome::Fail {
                reason: one_line(&error),
                events: judge::lines(&exit.records, service),
            }),
        }
    }
}
