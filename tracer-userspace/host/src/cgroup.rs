//! Control groups: the cgroup path of a process, and the container and pod that the path names.

use std::{collections::VecDeque, fs, os::unix::fs::DirEntryExt, path::Path};

/// Limit of directories that a search visits: more than a node with 500 pods has.
const MOST_DIRECTORIES: usize = 16_384;

/// The most specific path in `/proc/PID/cgroup` (`hierarchy:controllers:path` lines). On a host that
/// mixes both versions, one of the hierarchies may have all processes at its root.
pub(super) fn path(cgroup: &str) -> Option<String> {
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
    let path = found.clone().find(|path| **path != "/").or(found.clone().next())?;
    // An exiting process may still be in a cgroup that was deleted.
    Some(path.strip_suffix(" (deleted)").unwrap_or(path).to_owned())
}

/// The path of the version 2 cgroup whose directory has this inode number, which is what
/// `bpf_get_current_cgroup_id` returns. `None` when the cgroup was deleted. `root` is `/`, except in tests.
pub(super) fn path_by_inode(root: &Path, inode: u64) -> Option<String> {
    // On hosts with version 1 at /sys/fs/cgroup, version 2 is mounted at "unified".
    let mount = ["sys/fs/cgroup/unified", "sys/fs/cgroup"]
        .map(|path| root.join(path))
        .into_iter()
        .find(|path| path.join("cgroup.procs").exists())?;
    let mut queue = VecDeque::from([mount.clone()]);
    let mut left = MOST_DIRECTORIES;
    while let Some(directory) = queue.pop_front() {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            if entry.ino() == inode {
                return below(&mount, &entry.path());
            }
            left = left.checked_sub(1)?;
            queue.push_back(entry.path());
        }
    }
    None
}

fn below(mount: &Path, path: &Path) -> Option<String> {
    Some(format!("/{}", path.strip_prefix(mount).ok()?.to_str()?))
}

/// The id of the innermost container in a path. Runtimes write `docker-ID.scope`, `cri-containerd-ID.scope`,
/// `crio-ID.scope`, `libpod-ID.scope`, `…:cri-containerd:ID`, or `ID`.
pub(super) fn container_id(path: &str) -> Option<String> {
    path.rsplit('/').find_map(|component| {
        let unit = component.strip_suffix(".scope").unwrap_or(component);
        let (prefix, id) = unit.rsplit_once(['-', ':']).unwrap_or(("", unit));
        // conmon monitors the container and runs outside it.
        (is_hex(id, 64) && !prefix.ends_with("conmon")).then(|| id.to_owned())
    })
}

/// The uid of the innermost Kubernetes pod in a path: `podUID`, or `kubepods-burstable-podUID.slice` with
/// `_` instead of `-`. The uid of a static pod is the hash of its manifest.
pub(super) fn pod_uid(path: &str) -> Option<String> {
    if !path.contains("kubepods") {
        return None;
    }
    path.rsplit('/').find_map(|component| {
        let slice = component.split(':').next().unwrap_or(component);
        let name = slice.strip_suffix(".slice").unwrap_or(slice);
        let uid = name.strip_prefix("pod").or(name.rsplit_once("-pod").map(|(_, uid)| uid))?;
        let uid = uid.replace('_', "-");
        is_pod_uid(&uid).then_some(uid)
    })
}

/// Whether the text is a UUID, or the 32 hexadecimal digits of a static pod.
pub(super) fn is_pod_uid(text: &str) -> bool {
    let is_uuid = text.len() == 36
        && text.bytes().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => is_hex_digit(byte),
        });
    is_uuid || is_hex(text, 32)
}

pub(super) fn is_hex(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(is_hex_digit)
}

fn is_hex_digit(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TempRoot;

    const ID: &str = "3f9c3f9c3f9c3f9c3f9c3f9c3f9c3f9c3f9c3f9c3f9c3f9c3f9c3f9c3f9c3f9c";
    const UID: &str = "81e09ae0-12ec-4ec5-94b8-51cda7906370";
    const HASH: &str = "33d556edd3ae8ef21980288cef77ae8b";

    #[test]
    fn version_2_wins_unless_the_process_is_at_its_root() {
        assert_eq!(path("5:memory:/v1\n0::/v2\n").as_deref(), Some("/v2"));
        assert_eq!(path("5:memory:/v1\n0::/\n").as_deref(), Some("/v1"));
        assert_eq!(path("9:cpu,pids:/a:b\n4:memory:/\n0::/\n").as_deref(), Some("/a:b"));
        assert_eq!(path("0::/\n").as_deref(), Some("/"));
        assert_eq!(path("1:cpuset:/only\n"), None);
        assert_eq!(path("0::/gone.scope (deleted)\n").as_deref(), Some("/gone.scope"));
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

    #[test]
    fn pods_of_either_driver_and_every_class_are_found() {
        let systemd = UID.replace('-', "_");
        for path in [
            format!("/kubepods/besteffort/pod{UID}/{ID}"),
            format!("/kubepods/pod{UID}"),
            format!("/kubepods.slice/kubepods-pod{systemd}.slice/cri-containerd-{ID}.scope"),
            format!(
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{systemd}.slice/\
                 crio-{ID}.scope"
            ),
            format!("/system.slice/kubepods-burstable-pod{systemd}.slice:cri-containerd:{ID}"),
            format!(
                "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{systemd}.slice/{ID}"
            ),
        ] {
            assert_eq!(pod_uid(&path).as_deref(), Some(UID), "{path}");
        }
        let static_pod = format!("/kubepods/burstable/pod{HASH}/{ID}");
        assert_eq!(pod_uid(&static_pod).as_deref(), Some(HASH));
    }

    #[test]
    fn paths_that_only_resemble_a_pod_have_no_pod_uid() {
        for path in [
            format!("/system.slice/pod{UID}"),
            format!("/kubepods/pod{}", &UID[1..]),
            "/kubepods/podunrelated".to_owned(),
            format!("/machine.slice/machine-libpod_pod_{ID}.slice/libpod-{ID}.scope"),
        ] {
            assert_eq!(pod_uid(&path), None, "{path}");
        }
    }

    #[test]
    fn a_cgroup_is_found_by_the_inode_of_its_directory() {
        use std::os::unix::fs::MetadataExt as _;
        for mount in ["sys/fs/cgroup", "sys/fs/cgroup/unified"] {
            let root = TempRoot::new();
            root.file(&format!("{mount}/cgroup.procs"), "");
            root.file(&format!("{mount}/a.slice/b.scope/cgroup.procs"), "");
            let inode = fs::metadata(root.path().join(mount).join("a.slice/b.scope"))
                .expect("just made")
                .ino();
            assert_eq!(path_by_inode(root.path(), inode).as_deref(), Some("/a.slice/b.scope"));
            assert_eq!(path_by_inode(root.path(), 1), None);
        }
    }
}
