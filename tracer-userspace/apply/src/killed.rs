//! Kills a process with SIGKILL before each system call that changes the disk, with real files and a real
//! journal. Only the kernel's settings are files here.

use std::{
    collections::BTreeMap,
    env, fs,
    os::unix::{fs::PermissionsExt as _, process::ExitStatusExt as _},
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
};

use rsttrace_host::testing::TempRoot;
use rsttrace_model::{
    netns::{NetnsReach, Place},
    settings::Setting,
};

use super::{
    FileState, Slot, Step, disk,
    journal::{About, Journal},
    run::{ApplyError, Effects, apply, undo},
    store::Store,
};

/// The child's task: `apply` or `undo`.
const TASK: &str = "RSTTRACE_TEST_TASK";
/// The folder that stands for `/`.
const ROOT: &str = "RSTTRACE_TEST_ROOT";
/// The number of the kill point at which the child is killed, from 1.
const KILLED_AT: &str = "RSTTRACE_TEST_KILLED_AT";

const MAX: &str = "net.netfilter.nf_conntrack_max";
const SYSCTLS: &str = "/etc/sysctl.d/99-rsttrace-test.conf";
const MODULES: &str = "/etc/modules-load.d/rsttrace-test.conf";
const LINK: &str = "/etc/systemd/system/multi-user.target.wants/rsttrace-test.service";

/// Called before each system call that changes the disk. Does nothing outside the child.
pub fn kill_point() {
    static KILLED: OnceLock<Option<u32>> = OnceLock::new();
    static PASSED: AtomicU32 = AtomicU32::new(0);
    let killed_at = KILLED.get_or_init(|| env::var(KILLED_AT).ok()?.parse().ok());
    if *killed_at == Some(PASSED.fetch_add(1, Ordering::Relaxed) + 1) {
        let own = rustix::process::getpid();
        rustix::process::kill_process(own, rustix::process::Signal::KILL).expect("our own process");
        unreachable!("SIGKILL cannot be waited out");
    }
}

struct OnDisk {
    root: PathBuf,
    store: Store,
}

impl OnDisk {
    fn open(root: &Path) -> Self {
        Self { root: root.to_owned(), store: Store::open(&root.join("state")).expect("private") }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    fn of(&self, slot: &Slot) -> PathBuf {
        self.root.join(slot.setting.path().expect("a sysctl"))
    }
}

fn failed(error: std::io::Error) -> ApplyError {
    ApplyError::Failed(error.to_string())
}

impl Effects for OnDisk {
    fn cookie(&mut self, _: &Slot) -> Result<Option<u64>, ApplyError> {
        Ok(None)
    }

    fn value(&mut self, slot: &Slot) -> Result<String, ApplyError> {
        fs::read_to_string(self.of(slot)).map_err(failed)
    }

    fn set_value(&mut self, slot: &Slot, value: &str) -> Result<(), ApplyError> {
        // The kernel sets a value atomically, so the file is replaced atomically as well.
        let beside = self.root.join("value");
        fs::write(&beside, value).map_err(failed)?;
        kill_point();
        fs::rename(beside, self.of(slot)).map_err(failed)
    }

    fn file(&mut self, path: &str) -> Result<FileState, ApplyError> {
        disk::read(&self.at(path)).map_err(failed)
    }

    fn put_file(&mut self, path: &str, state: &FileState) -> Result<(), ApplyError> {
        disk::put(&self.at(path), state).map_err(failed)
    }

    fn missing_folders(&mut self, path: &str) -> Result<Vec<String>, ApplyError> {
        let folders = disk::missing_folders(&self.at(path)).map_err(failed)?;
        let below =
            |folder: PathBuf| Some(folder.strip_prefix(&self.root).ok()?.to_str()?.to_owned());
        Ok(folders.into_iter().filter_map(below).map(|folder| format!("/{folder}")).collect())
    }

    fn tidy(&mut self, path: &str, folders: &[String]) -> Result<(), ApplyError> {
        let folders: Vec<_> = folders.iter().map(|folder| self.at(folder)).collect();
        disk::tidy(&self.at(path), &folders).map_err(failed)
    }

    fn save(&mut self, journal: &Journal) -> Result<(), ApplyError> {
        self.store.save(journal).map_err(failed)
    }

    fn forget(&mut self, journal: &Journal) -> Result<(), ApplyError> {
        self.store.forget(&journal.about.id).map_err(failed)
    }
}

fn steps() -> Vec<Step> {
    let place = Place { netns: 1, reach: NetnsReach::Initial };
    let slot = Slot::new(place, Setting::find(MAX).expect("listed"));
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let file = |text: &str| FileState::File { bytes: text.into(), mode: 0o644, uid, gid };
    vec![
        Step::Value { slot, to: 131_072 },
        Step::File { path: SYSCTLS.into(), to: file("new = 1\n") },
        Step::File { path: MODULES.into(), to: file("nf_conntrack\n") },
        Step::File { path: LINK.into(), to: FileState::Link { target: "../x.service".into() } },
    ]
}

/// Runs the child's task; does nothing unless the parent set one.
#[test]
fn a_child_finishes_its_task_or_is_killed() {
    let (Ok(task), Some(root)) = (env::var(TASK), env::var_os(ROOT)) else {
        return;
    };
    let mut effects = OnDisk::open(Path::new(&root));
    if task == "apply" {
        let about = About {
            id: effects.store.new_id("20261121-101502").expect("readable"),
            boot_id: "boot".into(),
            when: "2026-11-21T10:15:02Z".into(),
            cause: Some("conntrack_table_full"),
            fix: "raise_conntrack_max".into(),
        };
        let _ = apply(&mut effects, &steps(), about).expect("applied");
        return;
    }
    for id in effects.store.ids().expect("readable") {
        let journal = effects.store.load(&id).expect("written by us");
        let undone = undo(&mut effects, &journal, false);
        assert!(undone.is_complete(), "{undone:?}");
    }
}

fn child(task: &str, root: &Path, killed_at: Option<u32>) -> ExitStatus {
    let mut child = Command::new(env::current_exe().expect("the test program"));
    child.args(["--exact", "killed::a_child_finishes_its_task_or_is_killed"]);
    child.env(TASK, task).env(ROOT, root);
    if let Some(point) = killed_at {
        child.env(KILLED_AT, point.to_string());
    }
    child.output().expect("started").status
}

/// A host with one sysctl and one of our files.
fn host() -> TempRoot {
    let root = TempRoot::new();
    root.file(&format!("proc/sys/{}", MAX.replace('.', "/")), "65536");
    root.file(SYSCTLS.trim_start_matches('/'), "# by hand\nold = 1\n");
    root
}

/// Every folder, file and link with its content and mode, except the lock and the temporary file of
/// `set_value`.
fn snapshot(root: &Path) -> BTreeMap<PathBuf, (u32, Vec<u8>)> {
    let (mut found, mut folders) = (BTreeMap::new(), vec![root.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("readable") {
            let path = entry.expect("readable").path();
            let kind = fs::symlink_metadata(&path).expect("there");
            if path.starts_with(root.join("state")) && path.ends_with("lock")
                || path == root.join("value")
            {
                continue;
            }
            let content = if kind.is_dir() {
                folders.push(path.clone());
                Vec::new()
            } else if kind.is_symlink() {
                fs::read_link(&path).expect("a link").into_os_string().into_encoded_bytes()
            } else {
                fs::read(&path).expect("readable")
            };
            found.insert(path, (kind.permissions().mode(), content));
        }
    }
    found
}

/// A host with an empty folder of journals, and its snapshot.
fn prepared() -> (TempRoot, BTreeMap<PathBuf, (u32, Vec<u8>)>) {
    let root = host();
    assert!(child("undo", root.path(), None).success());
    let before = snapshot(root.path());
    (root, before)
}

#[test]
fn an_apply_killed_at_any_point_is_undone_to_the_byte() {
    let (root, before) = prepared();
    let mut point = 0;
    loop {
        point += 1;
        let status = child("apply", root.path(), Some(point));
        assert!(child("undo", root.path(), None).success(), "apply killed at {point}");
        assert_eq!(snapshot(root.path()), before, "apply killed at {point}");
        if status.success() {
            break;
        }
        assert_eq!(status.signal(), Some(9), "at {point}: {status}");
    }
    assert!(point > 20, "it was killed at {} points only", point - 1);
}

#[test]
fn an_undo_killed_at_any_point_is_finished_by_the_next() {
    let (root, before) = prepared();
    let mut point = 0;
    loop {
        point += 1;
        assert!(child("apply", root.path(), None).success());
        assert_ne!(snapshot(root.path()), before, "applied");
        let status = child("undo", root.path(), Some(point));
        assert!(child("undo", root.path(), None).success(), "undo killed at {point}");
        assert_eq!(snapshot(root.path()), before, "undo killed at {point}");
        if status.success() {
            break;
        }
        assert_eq!(status.signal(), Some(9), "at {point}: {status}");
    }
    assert!(point > 10, "it was killed at {} points only", point - 1);
}
