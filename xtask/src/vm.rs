//! `cargo xtask vm`: a command, or a shell, on Debian's kernels in virtual machines.

use std::{
    fs,
    io::{self, IsTerminal as _, Write as _},
    path::PathBuf,
    process::{self, Command, ExitCode},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use clap::Args;

pub use crate::qemu::GuestResult;
use crate::{
    Usage, build, cmd,
    initramfs::{self, Contents},
    kernels::{self, Kernel},
    qemu::{Accel, Guest},
    repo, setup,
    version::Series,
};

#[derive(Args)]
pub struct Vm {
    /// Kernel series, such as 5.10 or 6.12
    ///
    /// Uses the newest Debian cloud kernel of the series. For a series that Debian no longer offers,
    /// it uses the next newer one, else the next older one, and prints both names.
    #[arg(required = true, value_name = "KERNEL")]
    kernels: Vec<String>,

    /// Command to run; without it, a shell on this terminal (Ctrl-A X quits)
    ///
    /// A single word is run as a shell script. Of several words, the first is a program and the others
    /// are its arguments. The guest has /bin/rsttrace, /bin/rsttrace-guest, ip, ss, tc, ipvsadm,
    /// conntrack, nft, iptables and busybox. Load modules with modprobe.
    #[arg(last = true)]
    command: Vec<String>,

    /// Do not build rsttrace, and leave it out of the guest
    #[arg(long)]
    bare: bool,

    /// Also copy this program to the guest's /bin, with the libraries it needs
    #[arg(long, value_name = "FILE")]
    add: Vec<PathBuf>,

    /// Guests that run in parallel; their output lines then start with `[KERNEL] `
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..))]
    jobs: u8,

    #[command(flatten)]
    options: Options,
}

/// The virtual hardware of a guest.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Processors of each guest
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub cpus: u32,

    /// Memory of each guest, in MiB
    #[arg(long, value_name = "MB", default_value_t = 2048)]
    pub memory: u32,

    /// Stop a guest that still runs after this many seconds, and fail
    #[arg(long, value_name = "SECS", default_value_t = 900)]
    pub timeout: u64,

    /// How QEMU runs guests [default: kvm if a guest boots with it, else tcg]
    #[arg(long, value_name = "HOW")]
    pub accel: Option<Accel>,
}

impl Vm {
    pub fn run(&self) -> Result<ExitCode> {
        let wanted = parse_series(&self.kernels)?;
        let mut programs = if self.bare {
            setup::vm_tools()?;
            Vec::new()
        } else {
            guest_programs()?
        };
        for file in &self.add {
            let name = file.file_name().unwrap_or(file.as_os_str());
            programs.push((name.to_string_lossy().into_owned(), file.clone()));
        }
        let kernels = kernels::fetch(&wanted)?;
        let lab = Lab::new(&self.options, &kernels, programs)?;
        if self.command.is_empty() {
            return self.shell(&lab, &kernels);
        }

        let script = script(&self.command);
        let prefixed = self.jobs > 1 && kernels.len() > 1;
        let results = each(&kernels, self.jobs.into(), |kernel| {
            let prefix = if prefixed { format!("[{}] ", kernel.wanted) } else { String::new() };
            if !prefixed && kernels.len() > 1 {
                eprintln!("--- {} ---", kernel.wanted);
            }
            lab.run(kernel, &script, &mut |line| print_line(&format!("{prefix}{line}")))
        });
        Ok(ExitCode::from(summarise(&kernels, &results)))
    }

    fn shell(&self, lab: &Lab, kernels: &[Kernel]) -> Result<ExitCode> {
        let [kernel] = kernels else {
            bail!(Usage(
                "a shell needs exactly one kernel; to run a command on several, add `-- COMMAND`"
                    .to_owned()
            ));
        };
        eprintln!("Ctrl-A X quits");
        let result = lab.attach(kernel, "exec $(command -v bash || echo sh) -i")?;
        Ok(ExitCode::from(result.exit_code))
    }
}

pub fn parse_series(words: &[String]) -> Result<Vec<Series>> {
    let parse =
        |word: &String| word.parse().map_err(|e: anyhow::Error| Usage(e.to_string()).into());
    words.iter().map(parse).collect()
}

/// Builds our own programs for guests.
pub fn guest_programs() -> Result<Vec<(String, PathBuf)>> {
    setup::vm_tools()?;
    let built = build::host_static(&[build::RSTTRACE, build::GUEST])?;
    Ok(built)
}

/// Prints one line of a guest. A closed stdout does not stop the guest.
pub fn print_line(line: &str) {
    let mut stdout = io::stdout().lock();
    let _ = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
}

/// The shell script for the words typed after `--`.
fn script(words: &[String]) -> String {
    match words {
        [script] => script.clone(),
        words => words.iter().map(cmd::quote).collect::<Vec<_>>().join(" "),
    }
}

/// Prints to stderr how each guest ended; returns the first exit code that is not 0.
fn summarise(kernels: &[Kernel], results: &[Result<GuestResult>]) -> u8 {
    let mut code = 0;
    for (kernel, result) in kernels.iter().zip(results) {
        let (own, text) = match result {
            Ok(guest) => (
                guest.exit_code,
                format!("exit code {} after {:.0} s", guest.exit_code, guest.seconds),
            ),
            Err(error) => (1, format!("{error:#}")),
        };
        eprintln!("{:>5}  {}: {text}", kernel.wanted, kernel.package);
        for line in result.iter().flat_map(|guest| &guest.kernel_warnings) {
            eprintln!("       the kernel warned: {line}");
        }
        code = if code == 0 { own } else { code };
    }
    code
}

/// Calls `f` for every kernel, for at most `jobs` of them at a time. A failure does not stop the others.
pub fn each<T: Send>(
    kernels: &[Kernel],
    jobs: usize,
    f: impl Fn(&Kernel) -> Result<T> + Sync,
) -> Vec<Result<T>> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..jobs.min(kernels.len()) {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(kernel) = kernels.get(index) else {
                        return;
                    };
                    let result = f(kernel);
                    done.lock().unwrap_or_else(|e| e.into_inner()).push((index, result));
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_else(|e| e.into_inner());
    done.sort_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, result)| result).collect()
}

/// The settings that all guests of a run share: hardware, accelerator and programs.
pub struct Lab {
    options: Options,
    accel: Accel,
    programs: Vec<(String, PathBuf)>,
}

impl Lab {
    pub fn new(
        options: &Options,
        kernels: &[Kernel],
        programs: Vec<(String, PathBuf)>,
    ) -> Result<Self> {
        let mut lab = Self { options: options.clone(), accel: Accel::Tcg, programs };
        let first = kernels.first().context("no kernel to run")?;
        lab.accel = match options.accel {
            Some(accel) => accel,
            None => lab.fastest(first),
        };
        Ok(lab)
    }

    /// Tests KVM with a guest: in nested virtualisation, /dev/kvm may exist although guests
    /// hang or crash.
    fn fastest(&self, kernel: &Kernel) -> Accel {
        let usable = fs::File::options().read(true).write(true).open("/dev/kvm");
        if usable.is_err() {
            eprintln!("guests run emulated (there is no usable /dev/kvm)");
            return Accel::Tcg;
        }
        let probe = Self {
            options: Options { timeout: 8, ..self.options.clone() },
            accel: Accel::Kvm,
            programs: Vec::new(),
        };
        match probe.run(kernel, "true", &mut |_| {}) {
            Ok(_) => {
                eprintln!("guests run on KVM");
                Accel::Kvm
            }
            Err(error) => {
                let why = error.to_string();
                let why = why.lines().next().unwrap_or_default();
                eprintln!("guests run emulated (tried KVM: {why})");
                Accel::Tcg
            }
        }
    }

    /// Boots `kernel` and runs the shell script `command`; `sink` gets every line that it prints.
    pub fn run(
        &self,
        kernel: &Kernel,
        command: &str,
        sink: &mut dyn FnMut(&str),
    ) -> Result<GuestResult> {
        self.with_guest(kernel, command, false, |guest| guest.run(sink))
    }

    /// Boots `kernel` and runs the shell script `command` on this terminal.
    pub fn attach(&self, kernel: &Kernel, command: &str) -> Result<GuestResult> {
        if !io::stdin().is_terminal() {
            bail!(
                "an attached guest needs a terminal; to run a command without one, use `cargo xtask vm KERNEL -- COMMAND`"
            );
        }
        self.with_guest(kernel, command, true, |guest| guest.attach())
    }

    fn with_guest(
        &self,
        kernel: &Kernel,
        command: &str,
        attached: bool,
        run: impl FnOnce(&Guest<'_>) -> Result<GuestResult>,
    ) -> Result<GuestResult> {
        let dir = Scratch::new(kernel.wanted)?;
        let initramfs = dir.0.join("initramfs");
        let contents = Contents {
            command: format!("{command}\n"),
            env: guest_env(attached),
            programs: self.programs.clone(),
        };
        initramfs::write(kernel, &contents, &initramfs)?;
        let timeout = Duration::from_secs(self.options.timeout);
        run(&Guest {
            kernel: &kernel.image,
            initramfs: &initramfs,
            accel: self.accel,
            cpus: self.options.cpus,
            memory: self.options.memory,
            boot_limit: timeout.min(Duration::from_secs(120)),
            timeout,
            dir: &dir.0,
        })
    }
}

/// init's settings for the terminal.
fn guest_env(attached: bool) -> String {
    if !attached {
        return "INTERACTIVE=0\n".to_owned();
    }
    let mut stty = Command::new("stty");
    let size = stty.arg("size").stdin(process::Stdio::inherit()).output();
    let size = size.map(|out| String::from_utf8_lossy(&out.stdout).into_owned());
    let size = size.unwrap_or_default();
    let (rows, columns) = size.trim().split_once(' ').unwrap_or(("24", "80"));
    let term = std::env::var("TERM").unwrap_or_else(|_| "vt100".to_owned());
    format!(
        "INTERACTIVE=1\nROWS={}\nCOLUMNS={}\nexport TERM={}\n",
        cmd::quote(rows),
        cmd::quote(columns),
        cmd::quote(term)
    )
}

/// A temporary folder of one guest, removed on drop.
struct Scratch(PathBuf);

impl Scratch {
    fn new(series: Series) -> Result<Self> {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = repo::target(&format!("vm/{series}-{}-{count}", process::id()));
        fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        Ok(Self(dir))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A folder that cannot be removed does no harm.
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|w| (*w).to_owned()).collect()
    }

    #[test]
    fn one_word_is_a_script_and_several_are_a_command() {
        assert_eq!(script(&words(&["uname -r; id"])), "uname -r; id");
        assert_eq!(script(&words(&["echo", "a b", "$HOME"])), "echo 'a b' '$HOME'");
    }

    #[test]
    fn an_unknown_kernel_is_a_usage_error_that_names_the_word() {
        let error = parse_series(&words(&["6.1", "bookworm"])).expect_err("no series");
        let usage = error.downcast::<Usage>().expect("a usage error");
        assert!(usage.0.contains("`bookworm`"), "{}", usage.0);
    }
}
