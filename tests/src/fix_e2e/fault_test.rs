//! Fault tests: `rsttrace fix --apply` under bad conditions. It may fail, but everything that it leaves behind must be
//! reverted by the undo.

use std::{
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Instant,
};

use anyhow::{Context, Result, ensure};

use super::{
    operator::{CommandResult, Rsttrace},
    snapshot::Snapshot,
};
use crate::{
    guest::{Guest, Need},
    lab::{Lab, Net, Topology},
    tools,
};

pub struct FaultTest {
    pub name: &'static str,
    /// Runs the test; returns its result in two words.
    test: fn(&Bench<'_>) -> Result<String>,
}

pub const FAULT_TESTS: &[FaultTest] = &[
    FaultTest { name: "fix_on_read_only_proc", test: read_only },
    FaultTest { name: "fix_twice_at_once", test: at_once },
    FaultTest { name: "fix_changed_by_others", test: changed_by_others },
    FaultTest { name: "fix_killed", test: killed },
    FaultTest { name: "fix_in_container", test: in_container },
    FaultTest { name: "fix_in_renewed_netns", test: in_renewed_netns },
];

/// A fix that changes two values of the machine, and the files that persist them.
const FIX: [&str; 2] = ["fix", "conntrack_table_full"];
const MAX: &str = "/proc/sys/net/netfilter/nf_conntrack_max";
/// The number of moments during an apply at which it is killed.
const KILLS: u32 = 24;

struct Bench<'a> {
    rsttrace: Rsttrace<'a>,
    guest: &'a Guest,
    lab: Lab,
    state: PathBuf,
}

impl FaultTest {
    /// Runs the test and prints its `RESULT` line; returns false if it failed.
    pub fn run(&self, guest: &Guest, program: &Path, number: u8) -> bool {
        if let Some(fact) = guest.missing(&[Need::Conntrack]) {
            println!("RESULT {} skip {fact}", self.name);
            return true;
        }
        let result = Lab::build(Net::new(number), Topology::Direct).and_then(|lab| {
            let state = PathBuf::from("/tmp").join(self.name);
            (self.test)(&Bench { rsttrace: Rsttrace { program }, guest, lab, state })
        });
        match &result {
            Ok(words) => println!("RESULT {} pass {words}", self.name),
            Err(error) => println!("RESULT {} fail {}", self.name, crate::run::one_line(error)),
        }
        result.is_ok()
    }
}

impl Bench<'_> {
    fn snapshot(&self) -> Result<Snapshot> {
        Snapshot::take(self.guest, &self.lab)
    }

    fn same(&self, before: &Snapshot, when: &str) -> Result<()> {
        let differences = before.differences(&self.snapshot()?);
        ensure!(differences.is_empty(), "{when}: not as before: {}", differences.join("; "));
        Ok(())
    }

    fn arguments<'b>(&'b self, words: &[&'b str]) -> Result<Vec<&'b str>> {
        let state = self.state.to_str().context("a path is not UTF-8")?;
        Ok([words, &["--state-dir", state]].concat())
    }

    fn apply(&self) -> Result<CommandResult> {
        self.rsttrace.run(&self.arguments(&[FIX[0], FIX[1], "--apply", "--yes"])?)
    }

    fn start_apply(&self) -> Result<Child> {
        Command::new(self.rsttrace.program)
            .args(self.arguments(&[FIX[0], FIX[1], "--apply", "--yes"])?)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("start rsttrace fix --apply")
    }

    /// Reverts the last apply, if there is one.
    fn undo(&self) -> Result<CommandResult> {
        self.rsttrace.run(&self.arguments(&["fix", "--undo"])?)
    }
}

/// As in an unprivileged container: the values can be read, but not written.
fn read_only(bench: &Bench<'_>) -> Result<String> {
    let before = bench.snapshot()?;
    let words = bench.arguments(&[FIX[0], FIX[1], "--apply", "--yes"])?.join(" ");
    let script = format!(
        "mount -o bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && exec {} {words}",
        bench.rsttrace.program.display()
    );
    let output = Command::new("unshare")
        .args(["-m", "sh", "-c", &script])
        .stdin(Stdio::null())
        .output()
        .context("run unshare")?;
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(!output.status.success(), "the apply on a read-only /proc/sys succeeded");
    let is_named = stderr.contains("nothing was changed") && stderr.contains("nf_conntrack_max");
    ensure!(is_named, "the error does not name the value that cannot be written: {stderr}");
    bench.same(&before, "after an apply without write access")?;
    Ok("refused unchanged".to_owned())
}

/// Two applies at the same time: one undo reverts both.
fn at_once(bench: &Bench<'_>) -> Result<String> {
    let before = bench.snapshot()?;
    let children = [bench.start_apply()?, bench.start_apply()?];
    let mut successes = 0;
    for mut child in children {
        successes += u32::from(child.wait().context("wait for rsttrace")?.success());
    }
    ensure!(successes > 0, "both applies failed");
    ensure!(!before.differences(&bench.snapshot()?).is_empty(), "nothing was changed");
    let undone = bench.undo()?;
    ensure!(undone.code == Some(0), "the undo: {}", undone.describe());
    bench.same(&before, "after one undo")?;
    Ok(format!("{successes} applied"))
}

/// The undo does not overwrite a value that was changed after the apply; it reports that, and reverts the rest.
fn changed_by_others(bench: &Bench<'_>) -> Result<String> {
    let before = bench.snapshot()?;
    let applied = bench.apply()?;
    ensure!(applied.code == Some(0), "the apply: {}", applied.describe());
    let ours = std::fs::read_to_string(MAX).context("read nf_conntrack_max")?;
    std::fs::write(MAX, "77777").context("write nf_conntrack_max")?;
    let undone = bench.undo()?;
    ensure!(undone.code != Some(0), "the undo succeeded although a value was changed since");
    let printed = format!("{} {}", undone.stdout, undone.stderr);
    let is_named = printed.contains("nf_conntrack_max") && printed.contains("77777");
    ensure!(is_named, "the undo does not name the changed value: {printed}");
    let now = std::fs::read_to_string(MAX).context("read nf_conntrack_max")?;
    ensure!(now.trim() == "77777", "the undo overwrote the value with {now}");
    std::fs::write(MAX, ours.trim()).context("write nf_conntrack_max")?;
    let undone = bench.undo()?;
    ensure!(undone.code == Some(0), "the second undo: {}", undone.describe());
    bench.same(&before, "after the second undo")?;
    Ok("left alone".to_owned())
}

/// A container in the host's network namespace: with its own pid namespace, and with the host's.
fn in_container(bench: &Bench<'_>) -> Result<String> {
    const ETC: &str = "/tmp/etc-of-a-container";
    let before = bench.snapshot()?;
    for pids in [&["-p", "-f", "--mount-proc"][..], &[]] {
        let run = |words: &[&str]| {
            let words = bench.arguments(words)?.join(" ");
            let script = format!(
                "mkdir -p {ETC}/sysctl.d && mount --bind {ETC} /etc && exec {} {words}",
                bench.rsttrace.program.display()
            );
            let mut command = Command::new("unshare");
            command.arg("-m").args(pids).args(["sh", "-c", &script]);
            CommandResult::of(command).context("run unshare")
        };
        let applied = run(&[FIX[0], FIX[1], "--apply", "--yes"])?;
        ensure!(applied.code == Some(0), "the apply: {}", applied.describe());
        let is_reported =
            applied.stderr.contains("writes no file") && applied.stderr.contains("on the host");
        ensure!(
            is_reported,
            "the apply does not report that it writes no file: {}",
            applied.stderr
        );
        ensure!(!applied.stdout.contains("/etc/"), "the apply wrote files: {}", applied.stdout);
        let differences = before.differences(&bench.snapshot()?);
        let values = differences.iter().any(|it| it.contains("nf_conntrack_max"));
        ensure!(values, "the value was not set: {differences:?}");
        let undone = run(&["fix", "--undo"])?;
        ensure!(undone.code == Some(0), "the undo: {}", undone.describe());
        bench.same(&before, "after the undo in the container")?;

        let applied = bench.apply()?;
        ensure!(applied.code == Some(0), "the apply on the host: {}", applied.describe());
        let (ours, refused) = (bench.snapshot()?, run(&["fix", "--undo"])?);
        let is_refused = refused.code == Some(1) && refused.stderr.contains("run it there");
        ensure!(
            is_refused,
            "the host's files were reverted in a container: {}",
            refused.describe()
        );
        bench.same(&ours, "after a refused undo")?;
        let undone = bench.undo()?;
        ensure!(undone.code == Some(0), "the undo on the host: {}", undone.describe());
        bench.same(&before, "after the undo on the host")?;
    }
    Ok("values only".to_owned())
}

/// The namespace ends. A new one gets its name and its inode number, and has the value that the fix set.
fn in_renewed_netns(bench: &Bench<'_>) -> Result<String> {
    if let Some(fact) = bench.guest.missing(&[Need::Ipvs]) {
        return Ok(format!("not tried: {fact}"));
    }
    let balance = || tools::run(Some(RENEWED), "ipvsadm -A -t 127.0.0.1:80 -s rr", "");
    let timeouts = || tools::run(Some(RENEWED), "ipvsadm -L --timeout", "");
    let first = add(RENEWED)?;
    balance()?;
    let netns = first.to_string();
    let words = ["fix", "ipvs_idle_expired", "--choose", "raise_ipvs_timeout", "--idle", "1h"];
    let words = [&words[..], &["--netns", &netns, "--apply", "--yes"]].concat();
    let applied = bench.rsttrace.run(&bench.arguments(&words)?)?;
    ensure!(applied.code == Some(0), "the apply: {}", applied.describe());
    let fixed = timeouts()?;
    renew(first)?;
    balance()?;
    let seconds: Vec<_> =
        fixed.split_whitespace().filter(|word| word.parse::<u32>().is_ok()).collect();
    tools::run(Some(RENEWED), &format!("ipvsadm --set {}", seconds.join(" ")), "")?;
    ensure!(timeouts()? == fixed, "the new namespace does not have the timeouts of the fix");
    let undone = bench.undo()?;
    ensure!(undone.code == Some(0), "the undo: {}", undone.describe());
    let untouched = timeouts()? == fixed;
    delete(RENEWED)?;
    // SO_NETNS_COOKIE exists since 5.14: before, the two namespaces cannot be distinguished.
    if bench.guest.series() == "5.10" {
        return Ok("no cookies before 5.14".to_owned());
    }
    ensure!(untouched, "the undo changed another namespace: {}", undone.describe());
    ensure!(undone.stdout.contains("another one has its number"), "{}", undone.describe());
    Ok("not changed".to_owned())
}

const RENEWED: &str = "renewed";

/// Adds a network namespace; returns its inode number.
fn add(name: &str) -> Result<u64> {
    tools::run(None, &format!("ip netns add {name}"), "")?;
    let path = format!("/run/netns/{name}");
    Ok(std::fs::metadata(&path).with_context(|| format!("stat {path}"))?.ino())
}

fn delete(name: &str) -> Result<()> {
    tools::run(None, &format!("ip netns del {name}"), "").map(drop)
}

/// Deletes the namespace and makes another one with the same name and inode number.
fn renew(number: u64) -> Result<()> {
    /// The kernel assigns the lowest free number, and a namespace ends in the background.
    const TRIES: usize = 100;
    let mut fillers = Vec::new();
    let mut found = false;
    for attempt in 0..TRIES {
        delete(RENEWED)?;
        let filler = format!("{RENEWED}-{attempt}");
        if attempt > 0 && add(&filler)? == number {
            delete(&filler)?;
        } else if attempt > 0 {
            fillers.push(filler);
        }
        found = add(RENEWED)? == number;
        if found {
            break;
        }
    }
    fillers.iter().try_for_each(|name| delete(name))?;
    ensure!(found, "the inode number {number} was not assigned again in {TRIES} tries");
    Ok(())
}

/// Kills the apply at different moments, spread over its whole duration.
fn killed(bench: &Bench<'_>) -> Result<String> {
    let before = bench.snapshot()?;
    let started = Instant::now();
    let applied = bench.apply()?;
    let whole = started.elapsed();
    ensure!(applied.code == Some(0), "the apply: {}", applied.describe());
    let undone = bench.undo()?;
    ensure!(undone.code == Some(0), "the undo: {}", undone.describe());
    bench.same(&before, "after the first undo")?;
    let mut in_between = 0;
    for moment in 0..KILLS {
        let mut child = bench.start_apply()?;
        thread::sleep(whole * moment / KILLS);
        child.kill().context("kill rsttrace")?;
        child.wait().context("wait for rsttrace")?;
        let changed = !before.differences(&bench.snapshot()?).is_empty();
        let undone = bench.undo()?;
        in_between += u32::from(changed);
        let what =
            format!("killed after {moment}/{KILLS} of {whole:.0?}, undo: {}", undone.describe());
        bench.same(&before, &what)?;
        ensure!(!changed || undone.code == Some(0), "{what}");
    }
    eprintln!("# {in_between} of {KILLS} kills came after the first change");
    Ok(format!("{KILLS} kills"))
}
