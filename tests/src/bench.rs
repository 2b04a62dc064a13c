//! The cost of tracing: of the tracer itself, and per connection that ends.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::{
    actor::{abort_on_close, accept, receive_end},
    tracer::READY,
};

/// The result is the median of this many series; one connection is too short for the clock of an emulated machine.
const SERIES: usize = 5;
const CONNECTIONS: u32 = 2000;
/// How long the idle tracer is measured.
const IDLE: Duration = Duration::from_secs(5);
const INCIDENTS: &str = "/tmp/bench.ndjson";

/// Prints lines with `BENCH`, a name and a number.
pub fn bench(tracer: &Path) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").context("listen on the loopback device")?;
    // The first connections run with cold caches.
    series(&listener, true)?;
    let (reset, orderly) = (median(&listener, true)?, median(&listener, false)?);

    let started = Instant::now();
    let tracer = RunningTracer::start(tracer)?;
    show("start_ms", started.elapsed().as_millis());
    show("start_cpu_ms", tracer.cpu_ms()?);
    let before = tracer.cpu_ms()?;
    thread::sleep(IDLE);
    show("idle_cpu_ms_per_s", (tracer.cpu_ms()? - before) / IDLE.as_secs());
    show("resident_kb", tracer.status("VmRSS")?);
    show("peak_kb", tracer.status("VmHWM")?);

    show("reset_us", reset.as_micros());
    show("reset_traced_us", median(&listener, true)?.as_micros());
    show("orderly_us", orderly.as_micros());
    show("orderly_traced_us", median(&listener, false)?.as_micros());
    show("busy_peak_kb", tracer.status("VmHWM")?);
    show("lost", tracer.stop()?);
    Ok(())
}

fn show(name: &str, number: impl std::fmt::Display) {
    println!("BENCH {name} {number}");
}

fn median(listener: &TcpListener, is_reset: bool) -> Result<Duration> {
    let mut all = (0..SERIES).map(|_| series(listener, is_reset)).collect::<Result<Vec<_>>>()?;
    all.sort();
    Ok(all[SERIES / 2])
}

/// Opens and closes connections; returns the time per connection.
fn series(listener: &TcpListener, is_reset: bool) -> Result<Duration> {
    let to = listener.local_addr().context("the listener's address")?;
    let started = Instant::now();
    for _ in 0..CONNECTIONS {
        let client = TcpStream::connect(to).context("connect")?;
        let server = accept(listener)?;
        if is_reset {
            abort_on_close(&client)?;
            drop(client);
        } else {
            drop(client);
            receive_end(&server)?;
        }
    }
    Ok(started.elapsed() / CONNECTIONS)
}

struct RunningTracer {
    child: Child,
}

impl RunningTracer {
    fn start(tracer: &Path) -> Result<Self> {
        let incidents = File::create(INCIDENTS).context("make a file for the incidents")?;
        let mut child = Command::new(tracer)
            .args(["live", "-o", "json"])
            .stdin(Stdio::null())
            .stdout(incidents)
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {}", tracer.display()))?;
        let mut stderr = BufReader::new(child.stderr.take().context("the tracer's stderr")?);
        let mut line = String::new();
        while !line.starts_with(READY) {
            line.clear();
            ensure!(stderr.read_line(&mut line)? > 0, "the tracer ended before it was ready");
        }
        // Keeps the pipe empty, so that the tracer does not block.
        thread::spawn(move || stderr.lines().for_each(drop));
        Ok(Self { child })
    }

    /// A value of `/proc/PID/status`, in kB.
    fn status(&self, name: &str) -> Result<u64> {
        let text = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let number =
            line.and_then(|line| line.split_whitespace().next()).context("no such line")?;
        Ok(number.parse()?)
    }

    /// User and system time: the 14th and 15th field, in ticks of 10 ms (USER_HZ).
    fn cpu_ms(&self) -> Result<u64> {
        let text = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let (_, fields) = text.rsplit_once(')').context("no command in stat")?;
        let ticks = fields.split_whitespace().skip(11).take(2).map(str::parse::<u64>);
        Ok(ticks.sum::<Result<u64, _>>()? * 10)
    }

    /// Stops the tracer; returns the number of records that it lost.
    fn stop(mut self) -> Result<Value> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        kill_process(pid.context("the tracer's pid")?, Signal::INT)?;
        ensure!(self.child.wait()?.success(), "the tracer failed");
        let text = fs::read_to_string(INCIDENTS).context("read the incidents")?;
        let summary: Value = serde_json::from_str(text.lines().last().context("no summary")?)?;
        Ok(summary["rsttrace"]["lost_events"].clone())
    }
}
