//! Starts other programs from a thread that has no socket of any scenario.
//!
//! A new process has a copy of every descriptor of its parent until its exec closes them, which is later even than the
//! return of `posix_spawn`. If a scenario closes a socket in that time, the socket stays open: the tool that another
//! scenario starts closes the last copy later, and rsttrace rightly names that tool.

use std::{
    io::Write as _,
    process::{Command, Stdio},
    sync::{
        LazyLock,
        mpsc::{self, Sender},
    },
    thread,
};

use anyhow::{Context, Result, bail};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use crate::netns::Namespace;

type Job = Box<dyn FnOnce() + Send>;

/// The queue of the tools thread. The threads that it starts share its descriptor table.
static JOBS: LazyLock<Sender<Job>> = LazyLock::new(|| {
    let (jobs, queue) = mpsc::channel::<Job>();
    thread::spawn(move || {
        if leave_descriptors().is_ok() {
            queue.into_iter().for_each(|job| drop(thread::spawn(job)));
        }
    });
    jobs
});

#[expect(
    unsafe_code,
    reason = "after this call a descriptor number may be another file in this thread than elsewhere"
)]
fn leave_descriptors() -> rustix::io::Result<()> {
    // SAFETY: files that are opened in this table stay there: `apart` passes no descriptors in or out.
    unsafe { unshare_unsafe(UnshareFlags::FILES) }
}

/// Starts the tools thread. Must run before sockets are opened, because the thread keeps a copy of each open one.
pub fn prepare() {
    LazyLock::force(&JOBS);
}

/// Runs `work` in a thread without any scenario's descriptors. Neither `work` nor its result may hold a descriptor.
pub fn apart<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let (answer, result) = mpsc::channel();
    // Without a tools thread, `recv` below fails at once.
    let _ = JOBS.send(Box::new(move || drop(answer.send(work()))));
    result.recv().context("the tools thread is missing, or it panicked")?
}

/// Runs a tool with arguments separated by blanks, in a named network namespace or the initial one; returns its stdout.
pub fn run(netns: Option<&str>, line: &str, input: &str) -> Result<String> {
    let [netns, line, input] = [netns.unwrap_or_default(), line, input].map(str::to_owned);
    apart(move || {
        if !netns.is_empty() {
            Namespace::open(&netns)?.move_into()?;
        }
        run_here(&line, &input)
    })
}

fn run_here(line: &str, input: &str) -> Result<String> {
    let mut words = line.split_whitespace();
    let program = words.next().context("an empty command line")?;
    let mut child = Command::new(program)
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start `{line}`"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A tool that ends without reading its input prints the reason to stderr, which is reported below.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().with_context(|| format!("wait for `{line}`"))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("`{line}`: {} ({})", stderr.trim().replace('\n', "; "), output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::fd::AsRawFd as _;

    use super::*;

    #[test]
    fn descriptors_of_this_thread_are_not_open_in_the_tools_thread() {
        prepare();
        // The thread has its own table before it takes its first job.
        apart(|| Ok(())).expect("a tools thread");
        let file = File::open("/proc/self/stat").expect("proc is mounted");
        let here = fs::read_link(format!("/proc/thread-self/fd/{}", file.as_raw_fd()));
        let number = file.as_raw_fd();
        let there = apart(move || Ok(fs::read_link(format!("/proc/thread-self/fd/{number}")).ok()));
        assert_ne!(there.expect("a tools thread"), here.ok());
    }

    #[test]
    fn a_tools_output_is_returned_and_its_error_has_its_stderr() {
        assert_eq!(run(None, "cat", "one\ntwo").expect("cat"), "one\ntwo");
        let error = run(None, "cat /nowhere", "").expect_err("there is no such file");
        assert!(format!("{error:#}").contains("/nowhere"), "{error:#}");
    }
}
