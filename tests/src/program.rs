//! A program at one end of a connection. It is a separate process, so that it can be distinguished from processes that
//! only run at the same time.
//!
//! It does its next step when it reads a line from stdin, and prints a line when the step is done.

use std::{
    env, fs,
    io::{self, BufRead, BufReader, Write},
    net::{SocketAddr, TcpStream},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use rustix::{
    io::Errno,
    process::{Pid, Signal, kill_process},
};

use crate::{
    actor::{
        PATIENCE, POLL_EVERY, accept, connect, listen, receive, send, user_timeout, wait_error,
    },
    netns::Namespace,
};

const GREETING: &str = "8.0.36 greeting\n";
const QUERY: &str = "SELECT 1;\n";
const ANSWER: &str = "1 row\n";

#[derive(Args)]
pub struct Role {
    /// Network namespace
    netns: String,
    #[arg(value_enum)]
    end: End,
    /// The client's address
    client: SocketAddr,
    /// The server's address
    server: SocketAddr,
    /// What the program does when its connection has failed
    #[arg(value_enum)]
    then: Then,
    /// Set TCP_USER_TIMEOUT, and send once more
    #[arg(long, value_name = "MS")]
    user_timeout: Option<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum End {
    Client,
    Server,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Then {
    /// Closes its socket at once.
    Close,
    /// Exits at once.
    Exit,
    /// Keeps its socket.
    Hold,
}

/// Runs the program.
pub fn play(role: &Role) -> Result<()> {
    let mut input = io::stdin().lock().lines();
    let mut wait = || -> Result<()> {
        input.next().context("stdin ended before the last step")??;
        Ok(())
    };
    let at = Namespace::open(&role.netns)?;
    let (stream, _listener) = match role.end {
        End::Client => {
            wait()?;
            (connect(&at, role.client, role.server)?, None)
        }
        End::Server => {
            let listener = listen(&at, role.server)?;
            print("listening")?;
            (accept(&listener)?, Some(listener))
        }
    };
    talk(&stream, role.end)?;
    if let Some(ms) = role.user_timeout {
        user_timeout(&stream, Duration::from_millis(ms))?;
    }
    print("connected")?;
    wait()?;
    if role.user_timeout.is_some() {
        send(&stream, QUERY)?;
    }
    let errno = wait_error(&stream)?;
    let _held = (role.then == Then::Hold).then_some(stream);
    print(&errno.raw_os_error().to_string())?;
    if role.then != Then::Exit {
        // Waits for the end of stdin.
        let _ = wait();
    }
    Ok(())
}

fn print(line: &str) -> Result<()> {
    println!("{line}");
    io::stdout().flush().context("print the step")
}

/// One end of a conversation in which the server sends first.
pub fn talk(stream: &TcpStream, end: End) -> Result<()> {
    match end {
        End::Server => {
            send(stream, GREETING)?;
            receive(stream, QUERY)?;
            send(stream, ANSWER)
        }
        End::Client => {
            receive(stream, GREETING)?;
            send(stream, QUERY)?;
            receive(stream, ANSWER)
        }
    }
}

/// A program that was started; it is killed when this is dropped.
pub struct Program {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Program {
    /// Starts this executable with `arguments`.
    pub fn start(arguments: &[&str]) -> Result<Self> {
        let mut child = Command::new(env::current_exe().context("find this program")?)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {}", arguments.join(" ")))?;
        let input = child.stdin.take().context("the program's stdin")?;
        let output = BufReader::new(child.stdout.take().context("the program's stdout")?);
        Ok(Self { child, input, output })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Starts the program's next step.
    pub fn next_step(&mut self) -> Result<()> {
        self.input.write_all(b"\n").context("start the program's next step")
    }

    /// Waits for the next line that the program prints.
    fn read_line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.output.read_line(&mut line).context("wait for the program")?;
        ensure!(!line.is_empty(), "the program ended");
        Ok(line.trim().to_owned())
    }

    pub fn expect(&mut self, wanted: &str) -> Result<()> {
        let line = self.read_line()?;
        ensure!(line == wanted, "the program printed {line:?}, not {wanted:?}");
        Ok(())
    }

    /// Waits for the error with which its connection ended.
    pub fn errno(&mut self) -> Result<Errno> {
        let line = self.read_line()?;
        let number = line.parse().with_context(|| format!("invalid errno {line:?}"))?;
        Ok(Errno::from_raw_os_error(number))
    }

    /// Waits until the process is gone, including its pid.
    pub fn wait(&mut self) -> Result<()> {
        self.child.wait().context("wait for the program's end").map(drop)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs `work` while the tracer, if there is one, is stopped: it sees only what is left afterwards.
pub fn while_the_tracer_is_stopped<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    let tracers = children_named("rsttrace")?;
    // If it were stopped while it reads the kernel's symbols, it would have to read them within the 1 s for a verdict.
    let deadline = Instant::now() + PATIENCE;
    while !tracers.iter().all(|pid| is_idle(*pid)) {
        ensure!(Instant::now() < deadline, "the tracer does not become idle");
        thread::sleep(POLL_EVERY);
    }
    let signal = |signal| -> Result<()> {
        for pid in &tracers {
            kill_process(*pid, signal).context("stop and continue the tracer")?;
        }
        Ok(())
    };
    signal(Signal::STOP)?;
    let done = work();
    signal(Signal::CONT)?;
    done
}

/// Whether all threads of a process are sleeping.
fn is_idle(pid: Pid) -> bool {
    let threads = fs::read_dir(format!("/proc/{}/task", pid.as_raw_nonzero()));
    threads.into_iter().flatten().flatten().all(|thread| {
        // "pid (name) state …", where the name may hold anything.
        fs::read_to_string(thread.path().join("stat"))
            .is_ok_and(|stat| stat.rsplit_once(')').is_some_and(|(_, it)| it.starts_with(" S")))
    })
}

fn children_named(comm: &str) -> Result<Vec<Pid>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").context("read /proc")? {
        let path = entry?.path();
        // Processes may end in the meantime.
        let Ok(status) = fs::read_to_string(path.join("status")) else { continue };
        let has = |line: String| status.lines().any(|it| it == line);
        if has(format!("Name:\t{comm}")) && has(format!("PPid:\t{}", std::process::id())) {
            let pid = path.file_name().and_then(|name| name.to_str()?.parse().ok());
            found.extend(pid.and_then(Pid::from_raw));
        }
    }
    Ok(found)
}
