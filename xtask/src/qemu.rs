//! Boots one guest under QEMU, passes on its command's output, and detects failures.
//!
//! The guest has three serial ports (see `guest/init.sh`): kernel log, command, status. As the
//! command has its own port, its output cannot be mixed up with kernel messages or the exit status.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Read as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Accel {
    /// Hardware virtualisation.
    Kvm,
    /// Emulation: slower, and works everywhere.
    Tcg,
}

pub struct Guest<'a> {
    pub kernel: &'a Path,
    pub initramfs: &'a Path,
    pub accel: Accel,
    pub cpus: u32,
    /// In MiB.
    pub memory: u32,
    /// User space must be reached within this time.
    pub boot_limit: Duration,
    /// The guest must have ended within this time.
    pub timeout: Duration,
    /// The folder for logs.
    pub dir: &'a Path,
}

#[derive(Clone, Debug)]
pub struct GuestResult {
    pub exit_code: u8,
    pub kernel_release: String,
    pub seconds: f64,
    /// Warnings (`WARN_ON`) that the kernel logged. They do not fail the run.
    pub kernel_warnings: Vec<String>,
}

impl Guest<'_> {
    /// Runs the guest's command; `sink` gets each line as soon as it is printed.
    pub fn run(&self, sink: &mut dyn FnMut(&str)) -> Result<GuestResult> {
        let started = Instant::now();
        let mut qemu = self.spawn(false)?;
        let stdout = qemu.0.stdout.take().context("QEMU has no stdout")?;
        let (send, lines) = mpsc::channel();
        thread::spawn(move || {
            let mut stdout = BufReader::new(stdout);
            let mut line = Vec::new();
            while stdout.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
                let text = String::from_utf8_lossy(&line);
                if send.send(text.trim_end_matches(['\r', '\n']).to_owned()).is_err() {
                    return;
                }
                line.clear();
            }
        });
        let mut watch = Watch::new(self, started);
        let mut checked = Instant::now();
        loop {
            match lines.recv_timeout(Duration::from_millis(50)) {
                Ok(line) => sink(&line),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if checked.elapsed() > Duration::from_millis(100) {
                watch.check()?;
                checked = Instant::now();
            }
        }
        qemu.0.wait().context("cannot wait for QEMU")?;
        watch.verdict()
    }

    /// Runs the guest's command on this terminal.
    pub fn attach(&self) -> Result<GuestResult> {
        let started = Instant::now();
        let mut qemu = self.spawn(true)?;
        let status = qemu.0.wait().context("cannot wait for QEMU")?;
        let watch = Watch::new(self, started);
        // Ctrl-A X ends QEMU without an exit status from the guest, and is not a failure.
        if status.success() && !fs::read_to_string(self.status_file())?.contains("exit ") {
            return Ok(GuestResult {
                exit_code: 0,
                kernel_release: String::new(),
                seconds: started.elapsed().as_secs_f64(),
                kernel_warnings: Vec::new(),
            });
        }
        watch.verdict()
    }

    fn spawn(&self, attached: bool) -> Result<Running> {
        fs::create_dir_all(self.dir)
            .with_context(|| format!("cannot create {}", self.dir.display()))?;
        let create = |file: PathBuf| {
            File::create(&file).with_context(|| format!("cannot create {}", file.display()))
        };
        create(self.log_file())?;
        create(self.status_file())?;
        let mut cmd = self.command(attached);
        cmd.stderr(create(self.stderr_file())?);
        if !attached {
            cmd.stdin(Stdio::null()).stdout(Stdio::piped());
        }
        let child = cmd.spawn().with_context(|| {
            "cannot start qemu-system-x86_64 (package qemu-system-x86)".to_owned()
        })?;
        Ok(Running(child))
    }

    fn command(&self, attached: bool) -> Command {
        let mut cmd = Command::new("qemu-system-x86_64");
        cmd.args(["-machine", "q35", "-cpu", "max", "-nodefaults", "-display", "none"]);
        cmd.args([
            "-accel",
            match self.accel {
                Accel::Kvm => "kvm",
                Accel::Tcg => "tcg,thread=multi",
            },
        ]);
        cmd.args(["-smp", &self.cpus.to_string()]);
        cmd.args(["-m", &self.memory.to_string()]);
        // A kernel that panics reboots at once (panic=-1), and a reboot ends QEMU.
        cmd.arg("-no-reboot");
        cmd.arg("-kernel").arg(self.kernel);
        cmd.arg("-initrd").arg(self.initramfs);
        // An emulated guest on a busy machine may stall for a long time: long watchdog timeouts.
        cmd.arg("-append").arg(
            "console=ttyS0 loglevel=5 panic=-1 oops=panic mitigations=off \
             watchdog_thresh=60 rcupdate.rcu_cpu_stall_timeout=120",
        );
        let file = |id: &str, path: PathBuf| {
            // QEMU separates options with commas, and reads a double comma as a literal one.
            let path = path.display().to_string().replace(',', ",,");
            format!("file,id={id},path={path}")
        };
        cmd.arg("-chardev").arg(file("log", self.log_file()));
        cmd.arg("-chardev").arg(file("status", self.status_file()));
        if attached {
            cmd.args(["-chardev", "stdio,id=tty,signal=off,mux=on", "-mon", "tty"]);
        } else {
            cmd.args(["-chardev", "stdio,id=tty,signal=off"]);
        }
        for id in ["log", "tty", "status"] {
            cmd.arg("-serial").arg(format!("chardev:{id}"));
        }
        cmd
    }

    fn log_file(&self) -> PathBuf {
        self.dir.join("kernel.log")
    }

    fn status_file(&self) -> PathBuf {
        self.dir.join("status")
    }

    /// QEMU's own error messages.
    fn stderr_file(&self) -> PathBuf {
        self.dir.join("qemu.err")
    }
}

/// A running QEMU, killed on drop.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only if QEMU has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Watches a guest's kernel log and its status port.
struct Watch<'a> {
    guest: &'a Guest<'a>,
    started: Instant,
    trouble_since: Option<Instant>,
}

impl<'a> Watch<'a> {
    fn new(guest: &'a Guest<'a>, started: Instant) -> Self {
        Self { guest, started, trouble_since: None }
    }

    /// Fails when the guest cannot succeed any more: kernel trouble, no user space in time, or timeout.
    fn check(&mut self) -> Result<()> {
        let elapsed = self.started.elapsed();
        let Guest { boot_limit, timeout, .. } = self.guest;
        let log = self.log()?;
        if let Some(line) = trouble(&log) {
            // Lets the kernel finish its report.
            let since = *self.trouble_since.get_or_insert_with(Instant::now);
            if since.elapsed() > Duration::from_secs(2) {
                bail!("the guest's kernel failed: {line}\n{}", tail(&log));
            }
        }
        if elapsed > *boot_limit && Status::parse(&self.status()?).release.is_none() {
            let seconds = boot_limit.as_secs();
            bail!("the guest did not reach user space in {seconds} s\n{}", tail(&log));
        }
        if elapsed > *timeout {
            let seconds = timeout.as_secs();
            bail!(
                "the guest was still running after {seconds} s (see --timeout) and was stopped\n{}",
                tail(&log)
            );
        }
        Ok(())
    }

    /// The result, after QEMU has ended.
    fn verdict(&self) -> Result<GuestResult> {
        let log = self.log()?;
        if let Some(line) = trouble(&log) {
            bail!("the guest's kernel failed: {line}\n{}", tail(&log));
        }
        let Status { release, exit_code } = Status::parse(&self.status()?);
        let Some(kernel_release) = release else {
            let stderr = read(&self.guest.stderr_file())?;
            if let Some(line) = stderr.lines().next() {
                bail!("{line}\n{}", tail(&log));
            }
            bail!("the guest ended before user space\n{}", tail(&log));
        };
        let exit_code = exit_code
            .with_context(|| format!("the guest ended before its command had\n{}", tail(&log)))?;
        Ok(GuestResult {
            exit_code,
            kernel_release,
            seconds: self.started.elapsed().as_secs_f64(),
            kernel_warnings: warnings(&log),
        })
    }

    fn log(&self) -> Result<String> {
        read(&self.guest.log_file())
    }

    fn status(&self) -> Result<String> {
        read(&self.guest.status_file())
    }
}

fn read(file: &Path) -> Result<String> {
    let mut bytes = Vec::new();
    File::open(file)
        .and_then(|mut f| f.read_to_end(&mut bytes))
        .with_context(|| format!("cannot read {}", file.display()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// What init wrote to the status port.
#[derive(Debug, Default, PartialEq, Eq)]
struct Status {
    release: Option<String>,
    exit_code: Option<u8>,
}

impl Status {
    fn parse(text: &str) -> Self {
        let mut status = Self::default();
        // An incomplete line does not count.
        for line in text.split_inclusive('\n').filter(|l| l.ends_with('\n')) {
            match line.trim_end().split_once(' ') {
                Some(("ready", release)) => status.release = Some(release.to_owned()),
                Some(("exit", code)) => status.exit_code = code.parse().ok(),
                _ => {}
            }
        }
        status
    }
}

/// The first line of a panic, an oops or another kernel bug.
fn trouble(log: &str) -> Option<&str> {
    let markers = [
        "Kernel panic",
        "BUG: ", // unable to handle…, soft lockup…, KASAN…
        "kernel BUG at",
        "Oops: ",
        "general protection fault",
    ];
    let mut lines = log.lines();
    lines.find(|line| markers.iter().any(|marker| line.contains(marker)))
}

fn warnings(log: &str) -> Vec<String> {
    let lines = log.lines().filter(|line| line.contains("WARNING: "));
    lines.map(|line| line.trim_end().to_owned()).collect()
}

/// The last lines of the kernel log, for an error message.
fn tail(log: &str) -> String {
    let lines: Vec<_> = log.lines().map(str::trim_end).filter(|l| !l.is_empty()).collect();
    if lines.is_empty() {
        return "  (the kernel logged nothing)".to_owned();
    }
    let last = lines[lines.len().saturating_sub(40)..].join("\n  ");
    format!("  {last}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_status_port() {
        let status = |release: Option<&str>, exit_code| Status {
            release: release.map(str::to_owned),
            exit_code,
        };
        assert_eq!(Status::parse(""), status(None, None));
        assert_eq!(Status::parse("ready 6.1.0-5"), status(None, None));
        assert_eq!(Status::parse("ready 6.1.0-56\n"), status(Some("6.1.0-56"), None));
        assert_eq!(Status::parse("ready 6.1\r\nexit 1"), status(Some("6.1"), None));
        assert_eq!(Status::parse("ready 6.1\r\nexit 13\r\n"), status(Some("6.1"), Some(13)));
        assert_eq!(Status::parse("ready 6.1\nexit x\n"), status(Some("6.1"), None));
    }

    #[test]
    fn detects_kernel_trouble() {
        let log = "[    1.0] fine\n[   2.0] watchdog: BUG: soft lockup - CPU#0 stuck\n";
        assert!(trouble(log).is_some_and(|l| l.contains("soft lockup")));
        assert!(trouble("---[ end Kernel panic - not syncing: VFS ]---").is_some());
        assert_eq!(trouble("[ 1.0] nf_conntrack: table full, dropping packet\n"), None);
    }

    #[test]
    fn tails_at_most_forty_lines() {
        let log: String = (0..100).map(|n| format!("line {n}\r\n")).collect();
        assert!(tail(&log).starts_with("  line 60\n"));
        assert!(tail(&log).ends_with("\n  line 99"));
        assert_eq!(tail(""), "  (the kernel logged nothing)");
    }
}
