//! What `rsttrace fix --apply` goes through in bad places: it may fail, and it leaves nothing behind that the undo does
//! not take back.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use super::operator::{Rsttrace, Said};
use super::snapshot::Snapshot;
use crate::guest::{Guest, Need};
use crate::lab::{Lab, Net, Topology};

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
