//! Other programs, started by a thread that has no socket of any scenario.
//!
//! A new process holds a copy of every descriptor of whoever starts it until its exec closes them, which is later even
//! than the return of `posix_spawn`. A scenario that closes a socket in that moment closes nothing: the tool that another
//! scenario just starts does so in its place, later, and is rightly named for it.

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

/// The way to the thread apart. Its threads share its table of descriptors, as threads do.
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
    reason = "the one call after which a number may mean another descriptor here than elsewhere"
)]
fn leave_descriptors() -> rustix::io::Result<()> {
    // SAFETY: what is opened in this table stays there: `apart` takes and gives no descriptors.
    unsafe { unshare_unsafe(UnshareFlags::FILES) }
}

/// Makes the thread. Before there are sockets: it keeps what exists.
pub fn prepare() {
    LazyLock::force(&JOBS);
}

/// Does something where no scenario's descriptors are. Neither `work` nor its result may hold one.
pub fn apart<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let (answer, result) = mpsc::channel();
    // Who asked is waiting; when there is no thread to send it to, the wait ends at once.
    let _ = JOBS.send(Box::new(move || drop(answer.send(work()))));
    result.recv().context("no thread for tools, or it panicked")?
}

/// Runs a tool with arguments separated by blanks, in a named network namespace or the initial one; its standard output.
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
        // A tool that ends without reading its input says why on stderr, which is reported below.
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
    fn what_is_open_here_is_not_open_where_tools_are_started() {
        prepare();
        // The thread has its own table before it takes its first job.
        apart(|| Ok(())).expect("a thread apart");
        let file = File::open("/proc/self/stat").expect("proc is mounted");
        let here = fs::read_link(format!("/proc/thread-self/fd/{}", file.as_raw_fd()));
        let number = file.as_raw_fd();
        let there = apart(move || Ok(fs::read_link(format!("/proc/thread-self/fd/{number}")).ok()));
        assert_ne!(there.expect("a thread apart"), here.ok());
    }

    #[test]
    fn a_tools_output_comes_back_and_its_failure_is_told_in_its_own_words() {
        assert_eq!(run(None, "cat", "one\ntwo").expect("cat"), "one\ntwo");
        let error = run(None, "cat /nowhere", "").expect_err("there is no such file");
        assert!(format!("{error:#}").contains("/nowhere"), "{error:#}");
    }
}
