//! A process that is killed with SIGKILL before each system call by which it changes the disk: real
//! files, a real journal, a real death. Only the kernel's settings are files here.

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
    run::{Effects, Trouble, apply, undo},
    store::Store,
};

/// What the child is to do: `apply` or `undo`.
const TASK: &str = "RSTTRACE_TEST_TASK";
/// Below which folder.
const ROOT: &str = "RSTTRACE_TEST_ROOT";
/// The point at which it dies; from 1.
const DIES_AT: &str = "RSTTRACE_TEST_DIES_AT";

const MAX: &str = "net.netfilter.nf_conntrack_max";
const SYSCTLS: &str = "/etc/sysctl.d/99-rsttrace-test.conf";
const MODULES: &str = "/etc/modules-load.d/rsttrace-test.conf";
const LINK: &str = "/etc/systemd/system/multi-user.target.wants/rsttrace-test.service";

/// The next system call changes the disk. Everywhere but in the child this does nothing.
pub fn point() {
    static DIES: OnceLock<Option<u32>> = OnceLock::new();
    static PASSED: AtomicU32 = AtomicU32::new(0);
    let dies_at = DIES.get_or_init(|| env::var(DIES_AT).ok()?.parse().ok());
    if *dies_at == Some(PASSED.fetch_add(1, Ordering::Relaxed) + 1) {
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

fn failed(error: std::io::Error) -> Trouble {
    Trouble::Failed(error.to_string())
}

impl Effects for OnDisk {
    fn cookie(&mut self, _: &Slot) -> Result<Option<u64>, Trouble> {
        Ok(None)
    }

    fn value(&mut self, slot: &Slot) -> Result<String, Trouble> {
        fs::read_to_string(self.of(slot)).map_err(failed)
    }

    fn set_value(&mut self, slot: &Slot, value: &str) -> Result<(), Trouble> {
        // The kernel takes a value whole or not at all; a file is given one the same way.
        let beside = self.root.join("value");
        fs::write(&beside, value).map_err(failed)?;
        point();
        fs::rename(beside, self.of(slot)).map_err(failed)
    }

    fn file(&mut self, path: &str) -> Result<FileState, Trouble> {
        disk::read(&self.at(path)).map_err(failed)
    }

    fn put_file(&mut self, path: &str, state: &FileState) -> Result<(), Trouble> {
        disk::put(&self.at(path), state).map_err(failed)
    }

    fn missing_folders(&mut self, path: &str) -> Result<Vec<String>, Trouble> {
        let folders = disk::missing_folders(&self.at(path)).map_err(failed)?;
        let below =
            |folder: PathBuf| Some(folder.strip_prefix(&self.root).ok()?.to_str()?.to_owned());
        Ok(folders.into_iter().filter_map(below).map(|folder| format!("/{folder}")).collect())
    }

    fn tidy(&mut self, path: &str, folders: &[String]) -> Result<(), Trouble> {
        let folders: Vec<_> = folders.iter().map(|folder| self.at(folder)).collect();
        disk::tidy(&self.at(path), &folders).map_err(failed)
    }

    fn save(&mut self, journal: &Journal) -> Result<(), Trouble> {
        self.store.save(journal).map_err(failed)
    }

    fn forget(&mut self, journal: &Journal) -> Result<(), Trouble> {
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

/// The child's part; nothing without the parent.
#[test]
fn the_task_of_a_child_ends_well_or_by_sigkill() {
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

fn child(task: &str, root: &Path, dies_at: Option<u32>) -> ExitStatus {
    let mut child = Command::new(env::current_exe().expect("the test program"));
    child.args(["--exact", "killed::the_task_of_a_child_ends_well_or_by_sigkill"]);
    child.env(TASK, task).env(ROOT, root);
    if let Some(point) = dies_at {
        child.env(DIES_AT, point.to_string());
    }
    child.output().expect("started").status
}

/// A sysctl, a file of ours from before, and nothing else.
fn host() -> TempRoot {
    let root = TempRoot::new();
    root.file(&format!("proc/sys/{}", MAX.replace('.', "/")), "65536");
    root.file(SYSCTLS.trim_start_matches('/'), "# by hand\nold = 1\n");
    root
}

/// Every folder, file and link with its content and mode; the lock apart, which is no state, and the
/// half-written value of a kernel that is none.
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

/// A host on which the folder of journals is there, and what it looks like.
fn prepared() -> (TempRoot, BTreeMap<PathBuf, (u32, Vec<u8>)>) {
    let root = host();
    assert!(child("undo", root.path(), None).success());
    let before = snapshot(root.path());
    (root, before)
}

#[test]
fn an_apply_killed_at_any_moment_is_undone_to_the_byte() {
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
fn an_undo_killed_at_any_moment_is_ended_by_the_next() {
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
