//! What `rsttrace fix --apply` goes through in bad places: it may fail, and it leaves nothing behind that the undo does
//! not take back.

use std::{
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Instant,
};

use anyhow::{Context, Result, ensure};

use super::{
    operator::{Rsttrace, Said},
    snapshot::Snapshot,
};
use crate::{
    guest::{Guest, Need},
    lab::{Lab, Net, Topology},
    tools,
};

pub struct Ordeal {
    pub name: &'static str,
    /// What it came through, in two words.
    run: fn(&Bench<'_>) -> Result<String>,
}

pub const ORDEALS: &[Ordeal] = &[
    Ordeal { name: "fix_on_read_only_proc", run: read_only },
    Ordeal { name: "fix_twice_at_once", run: at_once },
    Ordeal { name: "fix_changed_by_others", run: changed_by_others },
    Ordeal { name: "fix_killed", run: killed },
    Ordeal { name: "fix_in_container", run: in_container },
    Ordeal { name: "fix_in_renewed_netns", run: in_renewed_netns },
];

/// Room in the table: two values of the machine, and the files that keep them.
const FIX: [&str; 2] = ["fix", "conntrack_table_full"];
const MAX: &str = "/proc/sys/net/netfilter/nf_conntrack_max";
/// So many moments of an apply at which it is killed.
const KILLS: u32 = 24;

struct Bench<'a> {
    rsttrace: Rsttrace<'a>,
    guest: &'a Guest,
    lab: Lab,
    state: PathBuf,
}

/// Whether it passed; a line is printed all the same.
pub fn run(ordeal: &Ordeal, guest: &Guest, program: &Path, number: u8) -> bool {
    if let Some(fact) = guest.lack(&[Need::Conntrack]) {
        println!("RESULT {} skip {fact}", ordeal.name);
        return true;
    }
    let result = Lab::build(Net::new(number), Topology::Direct).and_then(|lab| {
        let state = PathBuf::from("/tmp").join(ordeal.name);
        (ordeal.run)(&Bench { rsttrace: Rsttrace { program }, guest, lab, state })
    });
    match &result {
        Ok(came_through) => println!("RESULT {} pass {came_through}", ordeal.name),
        Err(error) => println!("RESULT {} fail {}", ordeal.name, crate::run::one_line(error)),
    }
    result.is_ok()
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
        let state = self.state.to_str().context("a path that is not text")?;
        Ok([words, &["--state-dir", state]].concat())
    }

    fn apply(&self) -> Result<Said> {
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

    /// Takes back what was applied last, if anything.
    fn undo(&self) -> Result<Said> {
        self.rsttrace.run(&self.arguments(&["fix", "--undo"])?)
    }
}

/// As in a container that is not privileged: the values can be read, and not written.
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
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(!output.status.success(), "it says that it could write to a read-only /proc/sys");
    let is_told = said.contains("nothing was changed") && said.contains("nf_conntrack_max");
    ensure!(is_told, "it does not say what could not be written: {said}");
    bench.same(&before, "after an apply that could write nothing")?;
    Ok("refused unchanged".to_owned())
}

/// Two administrators at the same moment: what both did is one undo away from what was.
fn at_once(bench: &Bench<'_>) -> Result<String> {
    let before = bench.snapshot()?;
    let children = [bench.start_apply()?, bench.start_apply()?];
    let mut successes = 0;
    for mut child in children {
        successes += u32::from(child.wait().context("wait for rsttrace")?.success());
    }
    ensure!(successes > 0, "neither of two could apply it");
    ensure!(!before.differences(&bench.snapshot()?).is_empty(), "nothing was changed");
    let said = bench.undo()?;
    ensure!(said.code == Some(0), "the undo: {}", said.describe());
    bench.same(&before, "after one undo")?;
    Ok(format!("{successes} applied"))
}

/// The undo does not write over what somebody else has set since; it says so, and takes back the rest.
fn changed_by_others(bench: &Bench<'_>) -> Result<String> {
    let before = bench.snapshot()?;
    let said = bench.apply()?;
    ensure!(said.code == Some(0), "the apply: {}", said.describe());
    let ours = std::fs::read_to_string(MAX).context("read nf_conntrack_max")?;
    std::fs::write(MAX, "77777").context("write nf_conntrack_max")?;
    let said = bench.undo()?;
    ensure!(said.code != Some(0), "the undo does not complain of a value that is not ours");
    let told = format!("{} {}", said.stdout, said.stderr);
    ensure!(told.contains("nf_conntrack_max") && told.contains("77777"), "it says {told}");
    let now = std::fs::read_to_string(MAX).context("read nf_conntrack_max")?;
    ensure!(now.trim() == "77777", "the undo wrote {now} over it");
    std::fs::write(MAX, ours.trim()).context("write nf_conntrack_max")?;
    let said = bench.undo()?;
    ensure!(said.code == Some(0), "the second undo: {}", said.describe());
    bench.same(&before, "after the second undo")?;
    Ok("left alone".to_owned())
}

/// A container with the host's network: with pids of its own, and with the host's.
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
            Said::by(command).context("run unshare")
        };
        let applied = run(&[FIX[0], FIX[1], "--apply", "--yes"])?;
        ensure!(applied.code == Some(0), "the apply: {}", applied.describe());
        let told =
            applied.stderr.contains("writes no file") && applied.stderr.contains("on the host");
        ensure!(told, "it does not say that it writes no file, and where to: {}", applied.stderr);
        ensure!(!applied.stdout.contains("/etc/"), "it wrote files: {}", applied.stdout);
        let differences = before.differences(&bench.snapshot()?);
        let values = differences.iter().any(|it| it.contains("nf_conntrack_max"));
        ensure!(values, "the value was not set: {differences:?}");
        let undone = run(&["fix", "--undo"])?;
        ensure!(undone.code == Some(0), "the undo: {}", undone.describe());
        bench.same(&before, "after the undo in the container")?;

        let applied = bench.apply()?;
        ensure!(applied.code == Some(0), "the apply on the host: {}", applied.describe());
        let (ours, refused) = (bench.snapshot()?, run(&["fix", "--undo"])?);
        let told = refused.code == Some(1) && refused.stderr.contains("run it there");
        ensure!(told, "the host's files were taken back from a container: {}", refused.describe());
        bench.same(&ours, "after an undo that was refused")?;
        let undone = bench.undo()?;
        ensure!(undone.code == Some(0), "the undo on the host: {}", undone.describe());
        bench.same(&before, "after the undo on the host")?;
    }
    Ok("values only".to_owned())
}

/// The namespace ends, and another one is given its name and its number, and happens to have the value
/// that the fix left.
fn in_renewed_netns(bench: &Bench<'_>) -> Result<String> {
    if let Some(fact) = bench.guest.lack(&[Need::Ipvs]) {
        return Ok(format!("not tried: {fact}"));
    }
    let balance = || tools::run(Some(RENEWED), "ipvsadm -A -t 127.0.0.1:80 -s rr", "");
    let timeouts = || tools::run(Some(RENEWED), "ipvsadm -L --timeout", "");
    let first = add(RENEWED)?;
    balance()?;
    let netns = first.to_string();
    let words = ["fix", "ipvs_idle_expired", "--choose", "raise_ipvs_timeout", "--idle", "1h"];
    let words = [&words[..], &["--netns", &netns, "--apply", "--yes"]].concat();
    let said = bench.rsttrace.run(&bench.arguments(&words)?)?;
    ensure!(said.code == Some(0), "the apply: {}", said.describe());
    let left = timeouts()?;
    renew(first)?;
    balance()?;
    let seconds: Vec<_> =
        left.split_whitespace().filter(|word| word.parse::<u32>().is_ok()).collect();
    tools::run(Some(RENEWED), &format!("ipvsadm --set {}", seconds.join(" ")), "")?;
    ensure!(timeouts()? == left, "the new namespace does not have what the fix left");
    let said = bench.undo()?;
    ensure!(said.code == Some(0), "the undo: {}", said.describe());
    let untouched = timeouts()? == left;
    delete(RENEWED)?;
    // SO_NETNS_COOKIE came with 5.14: before, nothing tells them apart.
    if bench.guest.series() == "5.10" {
        return Ok("no cookies before 5.14".to_owned());
    }
    ensure!(untouched, "it wrote into another namespace: {}", said.describe());
    ensure!(said.stdout.contains("another one has its number"), "{}", said.describe());
    Ok("told apart".to_owned())
}

const RENEWED: &str = "renewed";

/// A network namespace; its number.
fn add(name: &str) -> Result<u64> {
    tools::run(None, &format!("ip netns add {name}"), "")?;
    let path = format!("/run/netns/{name}");
    Ok(std::fs::metadata(&path).with_context(|| format!("stat {path}"))?.ino())
}

fn delete(name: &str) -> Result<()> {
    tools::run(None, &format!("ip netns del {name}"), "").map(drop)
}

/// Ends the namespace and makes another one of its name and number.
fn renew(number: u64) -> Result<()> {
    /// The lowest free number is given first, and a namespace ends in the background.
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
    ensure!(found, "the number {number} was not given again in {TRIES} tries");
    Ok(())
}

/// Killed at moments that are spread over a whole apply.
fn killed(bench: &Bench<'_>) -> Result<String> {
    let before = bench.snapshot()?;
    let started = Instant::now();
    let said = bench.apply()?;
    let whole = started.elapsed();
    ensure!(said.code == Some(0), "the apply: {}", said.describe());
    let said = bench.undo()?;
    ensure!(said.code == Some(0), "the undo: {}", said.describe());
    bench.same(&before, "after the first undo")?;
    let mut in_between = 0;
    for moment in 0..KILLS {
        let mut child = bench.start_apply()?;
        thread::sleep(whole * moment / KILLS);
        child.kill().context("kill rsttrace")?;
        child.wait().context("wait for rsttrace")?;
        let changed = !before.differences(&bench.snapshot()?).is_empty();
        let said = bench.undo()?;
        in_between += u32::from(changed);
        let what =
            format!("killed after {moment}/{KILLS} of {whole:.0?}, undo: {}", said.describe());
        bench.same(&before, &what)?;
        ensure!(!changed || said.code == Some(0), "{what}");
    }
    eprintln!("# {in_between} of {KILLS} kills came when something had been changed");
    Ok(format!("{KILLS} kills"))
}
