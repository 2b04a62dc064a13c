//! `rsttrace live -o json` as a child process, and its output.

use std::{
    io::{BufRead, BufReader, Read},
    mem,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::schema::Schemas;

const READY_WITHIN: Duration = Duration::from_secs(60);
/// The incidents of a phase must be printed within this time, however many there are.
const SETTLED_WITHIN: Duration = Duration::from_secs(60);
const ENDED_WITHIN: Duration = Duration::from_secs(20);
pub const READY: &str = "rsttrace: ready";

/// One line of the tracer's standard output.
#[derive(Clone, Debug)]
pub struct Record {
    pub arrived: SystemTime,
    pub line: String,
    pub value: Value,
}

impl Record {
    pub fn is(&self, dataset: &str) -> bool {
        self.value["event"]["dataset"] == dataset
    }
}

#[derive(Default)]
struct Printed {
    records: Vec<Record>,
    /// Lines that are not JSON, or not as `rsttrace schema` describes them, with the reason.
    garbage: Vec<String>,
    stderr: Vec<String>,
    last: Option<Instant>,
    stderr_closed: bool,
}

#[derive(Default)]
struct Feed {
    printed: Mutex<Printed>,
    changed: Condvar,
}

impl Feed {
    fn lock(&self) -> MutexGuard<'_, Printed> {
        self.printed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn update(&self, change: impl FnOnce(&mut Printed)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    /// Waits until `done` holds or the deadline has passed; returns whether it held.
    fn wait(&self, deadline: Instant, mut done: impl FnMut(&Printed) -> bool) -> bool {
        let mut printed = self.lock();
        loop {
            if done(&printed) {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let waited = self.changed.wait_timeout(printed, left);
            printed = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

pub struct Tracer {
    child: Child,
    feed: Arc<Feed>,
    readers: Vec<JoinHandle<()>>,
    pub ready_after: Duration,
}

/// The tracer's exit status and its output.
pub struct ExitReport {
    pub status: ExitStatus,
    pub records: Vec<Record>,
    pub garbage: Vec<String>,
    pub stderr: Vec<String>,
}

impl Tracer {
    /// Starts the tracer with these arguments and waits until it is attached.
    pub fn start(program: &Path, arguments: &[&str]) -> Result<Self> {
        let schemas = Schemas::of(program)?;
        let started = Instant::now();
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {}", program.display()))?;
        let feed = Arc::new(Feed::default());
        let stdout = child.stdout.take().context("the tracer's stdout")?;
        let stderr = child.stderr.take().context("the tracer's stderr")?;
        let readers = vec![
            read_stdout(stdout, schemas, Arc::clone(&feed)),
            read_stderr(stderr, Arc::clone(&feed)),
        ];
        let mut tracer = Self { child, feed, readers, ready_after: Duration::ZERO };

        let is_ready =
            |printed: &Printed| printed.stderr.iter().any(|line| line.starts_with(READY));
        tracer.feed.wait(started + READY_WITHIN, |it| is_ready(it) || it.stderr_closed);
        if !is_ready(&tracer.feed.lock()) {
            let end = tracer.child.try_wait().context("get the tracer's status")?;
            let end = end.map_or_else(|| "still running".to_owned(), |status| status.to_string());
            let stderr = tracer.feed.lock().stderr.join("; ");
            bail!("the tracer is not ready after {:.0?} ({end}): {stderr}", started.elapsed());
        }
        tracer.ready_after = started.elapsed();
        Ok(tracer)
    }

    pub fn records(&self) -> Vec<Record> {
        self.feed.lock().records.clone()
    }

    /// Waits until `done` holds for the records, or nothing has been printed for `quiet`.
    pub fn wait_for(&self, quiet: Duration, mut done: impl FnMut(&[Record]) -> bool) {
        let since = Instant::now();
        let last = |printed: &Printed| printed.last.map_or(since, |last| last.max(since));
        let mut seen = since;
        while !self.feed.wait(seen + quiet, |printed| done(&printed.records)) {
            let now_last = last(&self.feed.lock());
            if now_last == seen || since.elapsed() > SETTLED_WITHIN {
                return;
            }
            seen = now_last;
        }
    }

    /// Waits until stderr has a line that starts with `start`; returns whether it has.
    pub fn prints(&self, start: &str, within: Duration) -> bool {
        let has_line =
            |printed: &Printed| printed.stderr.iter().any(|line| line.starts_with(start));
        self.feed.wait(Instant::now() + within, |it| has_line(it) || it.stderr_closed);
        has_line(&self.feed.lock())
    }

    /// Stops the tracer with SIGINT; returns everything that it printed.
    pub fn stop(mut self) -> Result<ExitReport> {
        let pid = i32::try_from(self.child.id())
            .ok()
            .and_then(Pid::from_raw)
            .context("the tracer's pid")?;
        kill_process(pid, Signal::INT).context("interrupt the tracer")?;
        let deadline = Instant::now() + ENDED_WITHIN;
        let status = loop {
            if let Some(status) = self.child.try_wait().context("wait for the tracer")? {
                break status;
            }
            ensure!(
                Instant::now() < deadline,
                "the tracer still runs {ENDED_WITHIN:?} after SIGINT"
            );
            thread::sleep(Duration::from_millis(20));
        };
        for reader in self.readers.drain(..) {
            reader.join().map_err(|_| anyhow!("a reader of the tracer's output panicked"))?;
        }
        let Printed { records, garbage, stderr, .. } = mem::take(&mut *self.feed.lock());
        Ok(ExitReport { status, records, garbage, stderr })
    }

    pub fn stderr(&self) -> Vec<String> {
        self.feed.lock().stderr.clone()
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn read_stdout(
    stdout: impl Read + Send + 'static,
    schemas: Schemas,
    feed: Arc<Feed>,
) -> JoinHandle<()> {
    thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            let (arrived, value) = (SystemTime::now(), serde_json::from_str::<Value>(&line));
            let violation = value.as_ref().ok().and_then(|value| schemas.violation(value));
            feed.update(|printed| {
                printed.last = Some(Instant::now());
                printed.garbage.extend(violation.map(|violation| format!("{violation}: {line}")));
                match value {
                    Ok(value) => printed.records.push(Record { arrived, line, value }),
                    Err(_) => printed.garbage.push(line),
                }
            });
        }
    })
}

fn read_stderr(stderr: impl Read + Send + 'static, feed: Arc<Feed>) -> JoinHandle<()> {
    thread::spawn(move || {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            feed.update(|printed| printed.stderr.push(line));
        }
        feed.update(|printed| printed.stderr_closed = true);
    })
}
