//! Selects the kernel modules that a guest may load, with their dependencies.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{cmd, kernels::Kernel, repo};

/// Everything below these folders of `kernel/`…
const FOLDERS: [&str; 6] =
    ["net/netfilter/", "net/ipv4/", "net/ipv6/", "net/bridge/", "net/sched/", "net/mptcp/"];
/// …and these by name.
const NAMES: [&str; 8] =
    ["veth", "dummy", "ifb", "tun", "nlmon", "af_packet_diag", "unix_diag", "netlink_diag"];
/// Modules that every guest needs; a kernel may have them built in. Any other module may be missing
/// on some kernel.
const ESSENTIAL: [&str; 5] = ["veth", "nf_conntrack", "nf_nat", "ip_vs", "tcp_diag"];

/// A folder whose `lib/modules` holds the selected modules, uncompressed (so that they load
/// quickly in an emulated guest). Made once per kernel package.
pub fn tree(kernel: &Kernel) -> Result<PathBuf> {
    let _lock = repo::lock("kernels/guest")?;
    // Another selection of modules, or another revision of the kernel, needs another folder.
    let mut choice = DefaultHasher::new();
    (FOLDERS, NAMES, &kernel.package).hash(&mut choice);
    let name = format!("{}-{:016x}", kernel.release, choice.finish());
    let root = repo::target("kernels/guest").join(name);
    if root.exists() {
        return Ok(root);
    }
    let partial = root.with_file_name(format!("{}.partial", kernel.release));
    if partial.exists() {
        fs::remove_dir_all(&partial)?;
    }
    let below = Path::new("lib/modules").join(&kernel.release);
    let (from, to) = (kernel.root.join(&below), partial.join(&below));
    fs::create_dir_all(&to).with_context(|| format!("cannot create {}", to.display()))?;

    let dep = read(&from.join("modules.dep"))?;
    let builtin = read(&from.join("modules.builtin"))?;
    let chosen = choose(&dep);
    for name in ESSENTIAL {
        let mut present = chosen.iter().copied().chain(builtin.lines());
        if !present.any(|file| module(file) == name) {
            bail!("{} has no module {name}, which the tests need", kernel.package);
        }
    }
    for file in ["modules.builtin", "modules.builtin.modinfo", "modules.order"] {
        if from.join(file).exists() {
            copy(&from.join(file), &to.join(file))?;
        }
    }
    for file in chosen {
        copy(&from.join(file), &to.join(file))?;
    }
    decompress(&to)?;
    let mut depmod =
        Command::new(cmd::find("depmod").context("`depmod` (package kmod) is missing")?);
    depmod.arg("-b").arg(&partial).arg(&kernel.release);
    cmd::run(&mut depmod, "indexing the guest's modules")?;
    fs::rename(&partial, &root).with_context(|| format!("cannot create {}", root.display()))?;
    Ok(root)
}

/// The files to copy, from the text of `modules.dep` (which lists all dependencies of each
/// module, direct and indirect).
fn choose(dep: &str) -> BTreeSet<&str> {
    let depends: BTreeMap<&str, &str> = dep.lines().filter_map(|l| l.split_once(':')).collect();
    let wanted = |file: &&str| {
        let below = file.strip_prefix("kernel/").unwrap_or(file);
        FOLDERS.iter().any(|folder| below.starts_with(folder)) || NAMES.contains(&module(file))
    };
    let mut chosen = BTreeSet::new();
    for file in depends.keys().copied().filter(wanted) {
        chosen.insert(file);
        chosen.extend(depends.get(file).into_iter().flat_map(|d| d.split_whitespace()));
    }
    chosen
}

/// `kernel/net/ipv4/tcp_diag.ko.xz` is the module `tcp_diag`.
fn module(file: &str) -> &str {
    let name = file.rsplit('/').next().unwrap_or(file);
    name.split('.').next().unwrap_or(name)
}

fn read(file: &Path) -> Result<String> {
    fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::copy(from, to)
        .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    Ok(())
}

fn decompress(dir: &Path) -> Result<()> {
    for (extension, program, args) in [
        ("xz", "xz", ["-d", "-q"].as_slice()),
        ("zst", "zstd", &["-d", "-q", "--rm"]),
        ("gz", "gzip", &["-d", "-q"]),
    ] {
        let files = with_extension(dir, extension)?;
        if !files.is_empty() {
            let mut cmd = Command::new(program);
            cmd::run(cmd.args(args).args(files), "unpacking kernel modules")?;
        }
    }
    Ok(())
}

fn with_extension(dir: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(with_extension(&path, extension)?);
        } else if path.extension().is_some_and(|e| e == extension) {
            found.push(path);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_modules_with_their_dependencies() {
        let dep = "kernel/drivers/net/veth.ko.xz:\n\
                   kernel/drivers/net/bonding.ko.xz: kernel/net/tls/tls.ko.xz\n\
                   kernel/net/netfilter/ipvs/ip_vs.ko.xz: kernel/lib/libcrc32c.ko.xz kernel/x/y.ko.xz\n\
                   kernel/lib/libcrc32c.ko.xz:\n";
        let want = [
            "kernel/drivers/net/veth.ko.xz",
            "kernel/lib/libcrc32c.ko.xz",
            "kernel/net/netfilter/ipvs/ip_vs.ko.xz",
            "kernel/x/y.ko.xz",
        ];
        assert_eq!(choose(dep), BTreeSet::from(want));
    }

    #[test]
    fn names_modules() {
        assert_eq!(module("kernel/net/ipv4/tcp_diag.ko.xz"), "tcp_diag");
        assert_eq!(module("kernel/drivers/net/veth.ko"), "veth");
    }
}
