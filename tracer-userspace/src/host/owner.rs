//! Which process holds a socket: found by its link `/proc/PID/fd/N -> socket:[INODE]`.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;

use rustix::fs::{Dir, readlinkat};

use super::state::Owner;

/// Field 22 of `/proc/PID/stat` counts USER_HZ ticks, 100 a second on every architecture that
/// runs this program.
const NS_PER_USER_TICK: u64 = 10_000_000;

/// The holder with the lowest pid among those in network namespace `netns`, else among all: a
/// descriptor can be passed to, or inherited by, a process elsewhere.
pub(super) fn find(socket: u64, netns: u32) -> Option<Owner> {
    // A socket no process holds any more has inode number 0.
    if socket == 0 {
        return None;
    }
    let link = format!("socket:[{socket}]");
    let (near, far): (Vec<u32>, Vec<u32>) =
        others().into_iter().partition(|&pid| lives_in(pid, netns));
    let pid = near.into_iter().chain(far).find(|&pid| holds(pid, link.as_bytes()))?;
    describe(pid)
}

/// All processes but ours, in ascending order.
fn others() -> Vec<u32> {
    let mut pids = super::places::processes();
    pids.retain(|&pid| pid != std::process::id());
    pids.sort_unstable();
    pids
}

fn lives_in(pid: u32, netns: u32) -> bool {
    fs::metadata(format!("/proc/{pid}/ns/net")).is_ok_and(|ns| ns.ino() == u64::from(netns))
}

/// Links are read relative to the open directory: a busy server has tens of thousands of them.
fn holds(pid: u32, link: &[u8]) -> bool {
    let Ok(fds) = File::open(format!("/proc/{pid}/fd")) else {
        return false;
    };
    let Ok(entries) = Dir::read_from(&fds) else {
        return false;
    };
    let mut buffer = Vec::new();
    entries.flatten().any(|entry| {
        let Ok(target) = readlinkat(&fds, entry.file_name(), std::mem::take(&mut buffer)) else {
            return false;
        };
        let found = target.as_bytes() == link;
        buffer = target.into_bytes();
        found
    })
}

fn describe(pid: u32) -> Option<Owner> {
    let file = |name: &str| {
        let bytes = fs::read(format!("/proc/{pid}/{name}")).ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    };
    let cgroup = file("cgroup").as_deref().and_then(cgroup_path);
    Some(Owner {
        pid,
        comm: file("comm")?.trim_end_matches('\n').to_owned(),
        exe: fs::read_link(format!("/proc/{pid}/exe"))
            .ok()
            .map(|path| path.to_string_lossy().into_owned()),
        uid: file("status").as_deref().and_then(effective_uid),
        start_boottime_ns: file("stat").as_deref().and_then(start_boottime_ns),
        container_id: cgroup.as_deref().and_then(container_id),
        cgroup,
    })
}

/// Reads a `/proc/PID/stat` line. The name in field 2 may hold spaces and parentheses, so fields
/// are counted from the last parenthesis, which ends it.
fn start_boottime_ns(stat: &str) -> Option<u64> {
    let (_, from_field_3) = stat.rsplit_once(')')?;
    let ticks: u64 = from_field_3.split_whitespace().nth(22 - 3)?.parse().ok()?;
    ticks.checked_mul(NS_PER_USER_TICK)
}

/// `Uid:` in `/proc/PID/status` lists the real, effective, saved and file system id.
fn effective_uid(status: &str) -> Option<u32> {
    let ids = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    ids.split_whitespace().nth(1)?.parse().ok()
}

/// The most telling path in `/proc/PID/cgroup` (`hierarchy:controllers:path` lines). On a machine
/// that mixes both versions, one of the hierarchies may leave everybody at the root.
fn cgroup_path(cgroup: &str) -> Option<String> {
    let of = |wanted: &str| {
        cgroup.lines().find_map(|line| {
            let mut parts = line.splitn(3, ':').skip(1);
            let (controllers, path) = (parts.next()?, parts.next()?);
            controllers.split(',').any(|c| c == wanted).then_some(path)
        })
    };
    // Version 2 has an empty list of controllers.
    let paths = [of(""), of("memory"), of("pids")];
    let found = paths.iter().flatten();
    found.clone().find(|path| **path != "/").or(found.clone().next()).map(|path| (*path).to_owned())
}

/// The innermost container in a cgroup path. Runtimes write `docker-ID.scope`,
/// `cri-containerd-ID.scope`, `crio-ID.scope`, `libpod-ID.scope`, `…:cri-containerd:ID`, or `ID`.
fn container_id(cgroup: &str) -> Option<String> {
    cgroup.rsplit('/').find_map(|component| {
        let unit = component.strip_suffix(".scope").unwrap_or(component);
        let (prefix, id) = unit.rsplit_once(['-', ':']).unwrap_or(("", unit));
        let is_id = id.len() == 64 && id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        // conmon watches the container from outside.
        (is_id && !prefix.ends_with("conmon")).then(|| id.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "3f9c3f9c3f9c3f9c3f9c3f9c3f9c3f9c3f9c3f9c3f9c3f9c3f9c3f9c3f9c3f9c";

    #[test]
    fn start_time_is_found_behind_any_name() {
        for comm in ["cat", "a b) R 1 (c", ") 9 9 9 (", "))"] {
            let stat = format!(
                "8412 ({comm}) R 8399 8399 6344 0 -1 4194304 100 0 0 0 0 0 0 0 20 0 1 0 92355 3133440 411"
            );
            assert_eq!(start_boottime_ns(&stat), Some(923_550_000_000), "{comm}");
        }
    }

    #[test]
    fn a_cut_stat_line_is_unknown() {
        for stat in [
            "",
            "1 (x",
            "1 (x) R 1 2 3",
            "1 (x) 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 x y",
        ] {
            assert_eq!(start_boottime_ns(stat), None, "{stat}");
        }
    }

    #[test]
    fn uid_is_the_effective_one() {
        assert_eq!(effective_uid("Name:\tx\nUid:\t1000\t0\t0\t0\nGid:\t1\t2\t3\t4\n"), Some(0));
        assert_eq!(effective_uid("Name:\tx\n"), None);
    }

    #[test]
    fn cgroup_version_2_wins_unless_everybody_is_at_its_root() {
        assert_eq!(cgroup_path("5:memory:/v1\n0::/v2\n").as_deref(), Some("/v2"));
        assert_eq!(cgroup_path("5:memory:/v1\n0::/\n").as_deref(), Some("/v1"));
        assert_eq!(cgroup_path("9:cpu,pids:/a:b\n4:memory:/\n0::/\n").as_deref(), Some("/a:b"));
        assert_eq!(cgroup_path("0::/\n").as_deref(), Some("/"));
        assert_eq!(cgroup_path("1:cpuset:/only\n"), None);
    }

    #[test]
    fn container_ids_of_every_runtime_are_found() {
        for path in [
            format!("/docker/{ID}"),
            format!("/system.slice/docker-{ID}.scope"),
            format!("/system.slice/docker-{ID}.scope/init.scope"),
            format!("/kubepods.slice/kubepods-pod1_2.slice/cri-containerd-{ID}.scope"),
            format!("/kubepods.slice/kubepods-pod1_2.slice/crio-{ID}.scope"),
            format!("/kubepods/burstable/pod1-2/{ID}"),
            format!("/system.slice/kubepods-pod1_2.slice:cri-containerd:{ID}"),
            format!("/machine.slice/libpod-{ID}.scope/container"),
        ] {
            assert_eq!(container_id(&path).as_deref(), Some(ID), "{path}");
        }
    }

    #[test]
    fn other_paths_have_no_container() {
        for path in [
            "/".to_owned(),
            "/system.slice/ssh.service".to_owned(),
            format!("/machine.slice/libpod-conmon-{ID}.scope"),
            format!("/docker/{}", &ID[1..]),
            format!("/docker/{}", ID.to_uppercase()),
            format!("/docker/0{ID}"),
        ] {
            assert_eq!(container_id(&path), None, "{path}");
        }
    }
}
