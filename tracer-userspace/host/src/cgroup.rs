//! Control groups: where a process stands in their tree, and what container and pod that is.

use std::{collections::VecDeque, fs, os::unix::fs::DirEntryExt, path::Path};

/// Directories looked at before a search is given up: more than a node with 500 pods has.
const MOST_DIRECTORIES: usize = 16_384;

/// The most telling path in `/proc/PID/cgroup` (`hierarchy:controllers:path` lines). On a machine
/// that mixes both versions, one of the hierarchies may leave everybody at the root.
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
    // A process that is dying may outlive its group.
    Some(path.strip_suffix(" (deleted)").unwrap_or(path).to_owned())
}

/// The path of the version 2 group whose directory has this inode number, which is what
/// `bpf_get_current_cgroup_id` tells. `None` when it is gone. `root` is `/` but in tests.
pub(super) fn path_by_inode(root: &Path, inode: u64) -> Option<String> {
    // "unified" where version 1 has the usual place.
    let mount = ["sys/fs/cgroup/unified", "sys/fs/cgroup"]
        .map(|path| root.join(path))
        .into_iter()
        .find(|path| path.join("cgroup.procs").exists())?;
    let mut open = VecDeque::from([mount.clone()]);
    let mut left = MOST_DIRECTORIES;
    while let Some(directory) = open.pop_front() {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            if entry.ino() == inode {
                return below(&mount, &entry.path());
            }
            left = left.checked_sub(1)?;
            open.push_back(entry.path());
        }
    }
    None
}

fn below(mount: &Path, path: &Path) -> Option<String> {
    Some(format!("/{}", path.strip_prefix(mount).ok()?.to_str()?))
}

/// The innermost container in a path. Runtimes write `docker-ID.scope`, `cri-containerd-ID.scope`,
/// `crio-ID.scope`, `libpod-ID.scope`, `…:cri-containerd:ID`, or `ID`.
pub(super) fn container_id(path: &str) -> Option<String> {
    path.rsplit('/').find_map(|component| {
        let unit = component.strip_suffix(".scope").unwrap_or(component);
        let (prefix, id) = unit.rsplit_once(['-', ':']).unwrap_or(("", unit));
        // conmon watches the container from outside.
        (is_hex(id, 64) && !prefix.ends_with("conmon")).then(|| id.to_owned())
    })
}

/// The innermost Kubernetes pod in a path: `podUID`, or `kubepods-burstable-podUID.slice` with `_` for
/// `-`. A static pod's is the hash of its manifest.
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

/// A UUID, or the 32 hexadecimal digits of a static pod.
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
    fn version_2_wins_unless_everybody_is_at_its_root() {
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
    fn what_only_looks_like_a_pod_is_none() {
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
    fn a_group_is_found_by_the_inode_of_its_directory() {
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
