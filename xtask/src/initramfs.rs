//! A guest's file system: busybox, network tools from this machine, kernel modules,
//! our own programs, and an init script.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{BufWriter, Write},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::{cmd, cpio::Archive, kernels::Kernel, modules};

const INIT: &str = include_str!("../guest/init.sh");

/// Tools that are copied from this machine with the libraries they need.
const TOOLS: [&str; 13] = [
    // busybox's own shell would run its applets instead of `ip` and other tools.
    "dash",
    "ip",
    "ss",
    "tc",
    "bridge",
    "ipvsadm",
    "conntrack",
    "nft",
    "xtables-nft-multi",
    "xtables-legacy-multi",
    "nsenter",
    "unshare",
    "kmod",
];
/// Copied if this machine has them: useful in an interactive guest.
const OPTIONAL_TOOLS: [&str; 3] = ["bash", "strace", "tcpdump"];
/// Other names of the tools.
const ALIASES: [(&str, &[&str]); 4] = [
    ("dash", &["sh"]),
    ("kmod", &["modprobe", "insmod", "rmmod", "lsmod", "modinfo"]),
    (
        "xtables-nft-multi",
        &[
            "iptables",
            "iptables-save",
            "iptables-restore",
            "ip6tables",
            "ip6tables-save",
            "ip6tables-restore",
            "iptables-nft",
            "iptables-nft-save",
            "iptables-nft-restore",
            "ip6tables-nft",
        ],
    ),
    (
        "xtables-legacy-multi",
        &["iptables-legacy", "iptables-legacy-save", "iptables-legacy-restore", "ip6tables-legacy"],
    ),
];

/// The files that differ between guests.
pub struct Contents {
    /// A shell script.
    pub command: String,
    /// `NAME=value` lines for init.
    pub env: String,
    /// Our programs: the name in `/bin`, and the path here.
    pub programs: Vec<(String, PathBuf)>,
}

/// Writes the initramfs for `kernel` to `file`.
pub fn write(kernel: &Kernel, contents: &Contents, file: &Path) -> Result<()> {
    let out = File::create(file).with_context(|| format!("cannot create {}", file.display()))?;
    let mut root = Root(Archive::new(BufWriter::new(out)));
    (|| {
        root.skeleton()?;
        root.text("init", 0o755, INIT)?;
        root.text("etc/guest/command", 0o644, &contents.command)?;
        root.text("etc/guest/env", 0o644, &contents.env)?;
        for (name, from) in &contents.programs {
            root.copy(from, &format!("usr/bin/{name}"))?;
        }
        let programs = contents.programs.iter().map(|(_, from)| from.clone());
        root.tools(programs.collect())?;
        // Last, so that applets do not replace the real programs of the same name.
        root.busybox()?;
        root.tree(&modules::tree(kernel)?, "lib", "usr/lib")?;
        root.0.finish()?;
        anyhow::Ok(())
    })()
    .with_context(|| format!("cannot write the guest's initramfs {}", file.display()))
}

struct Root<W>(Archive<W>);

impl<W: Write> Root<W> {
    fn skeleton(&mut self) -> Result<()> {
        // Everything is below /usr, as on the machine that the tools come from.
        for name in ["bin", "lib", "lib64"] {
            self.0.dir(&format!("usr/{name}"))?;
            self.0.symlink(name, &format!("usr/{name}"))?;
        }
        for name in ["sbin", "usr/sbin"] {
            self.0.symlink(name, "/usr/bin")?;
        }
        for dir in ["dev", "proc", "sys", "run", "tmp", "root", "mnt", "var"] {
            self.0.dir(dir)?;
        }
        self.0.symlink("var/run", "../run")?;
        self.0.symlink("var/lock", "../run")?;
        self.text("etc/passwd", 0o644, "root:x:0:0:root:/root:/bin/sh\n")?;
        self.text("etc/group", 0o644, "root:x:0:\n")?;
        // ipset takes protocols by the names of this file.
        self.text("etc/protocols", 0o644, "icmp 1 ICMP\ntcp 6 TCP\nudp 17 UDP\nsctp 132 SCTP\n")?;
        self.text("etc/hosts", 0o644, "127.0.0.1 localhost guest\n::1 localhost\n")?;
        Ok(())
    }

    fn text(&mut self, path: &str, mode: u32, text: &str) -> Result<()> {
        Ok(self.0.file(path, mode, text.as_bytes())?)
    }

    fn copy(&mut self, from: &Path, to: &str) -> Result<()> {
        let data = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
        Ok(self.0.file(to, 0o755, &data)?)
    }

    fn busybox(&mut self) -> Result<()> {
        let busybox = tool("busybox")?;
        self.copy(&busybox, "usr/bin/busybox")?;
        let applets =
            cmd::output(Command::new(&busybox).arg("--list"), "listing busybox's applets")?;
        for applet in applets.lines() {
            self.0.symlink(&format!("usr/bin/{applet}"), "busybox")?;
        }
        Ok(())
    }

    /// The tools, and the libraries for them and for `programs`.
    fn tools(&mut self, programs: Vec<PathBuf>) -> Result<()> {
        let mut files = Vec::new();
        for name in TOOLS {
            files.push(tool(name)?);
        }
        files.extend(OPTIONAL_TOOLS.into_iter().filter_map(cmd::find));
        for file in &files {
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            self.copy(file, &format!("usr/bin/{name}"))?;
        }
        for (name, aliases) in ALIASES {
            for alias in aliases {
                self.0.symlink(&format!("usr/bin/{alias}"), name)?;
            }
        }
        // iptables loads its matches and targets at run time, by their full path on this machine.
        for plugin in xtables_plugins()? {
            self.copy(&plugin, &below_usr(&plugin))?;
            files.push(plugin);
        }
        files.extend(programs);
        for library in libraries(&files)? {
            self.copy(&library, &below_usr(&library))?;
        }
        Ok(())
    }

    fn tree(&mut self, root: &Path, below: &str, to: &str) -> Result<()> {
        let dir = root.join(below);
        for entry in fs::read_dir(&dir).with_context(|| format!("cannot read {}", dir.display()))? {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let (below, to) = (format!("{below}/{name}"), format!("{to}/{name}"));
            if entry.file_type()?.is_dir() {
                self.tree(root, &below, &to)?;
            } else {
                self.copy(&entry.path(), &to)?;
            }
        }
        Ok(())
    }
}

fn tool(name: &str) -> Result<PathBuf> {
    cmd::find(name).with_context(|| format!("`{name}` is missing (the guests need it)"))
}

fn xtables_plugins() -> Result<Vec<PathBuf>> {
    let mut plugins = Vec::new();
    for dir in ["/usr/lib/x86_64-linux-gnu/xtables", "/usr/lib64/xtables", "/usr/lib/xtables"] {
        let Ok(entries) = fs::read_dir(dir) else {
            continue;
        };
        let files = entries.flatten().map(|e| e.path());
        plugins.extend(files.filter(|f| f.extension().is_some_and(|e| e == "so")));
    }
    plugins.sort();
    Ok(plugins)
}

/// The shared libraries, and the loader, that these files need.
fn libraries(files: &[PathBuf]) -> Result<BTreeSet<PathBuf>> {
    // ldd fails for a static file, but prints the libraries of the other files.
    let out = Command::new("ldd")
        .args(files)
        .output()
        .context("cannot start ldd, which finds the libraries of the guest's tools")?;
    Ok(parse_ldd(&String::from_utf8_lossy(&out.stdout)))
}

fn parse_ldd(text: &str) -> BTreeSet<PathBuf> {
    let lines = text.lines().filter(|line| line.starts_with(char::is_whitespace));
    let paths = lines.filter_map(|line| line.split_whitespace().find(|w| w.starts_with('/')));
    paths.map(PathBuf::from).collect()
}

/// `/lib/x` and `/usr/lib/x` are the same file, on this machine and in the guest.
fn below_usr(path: &Path) -> String {
    let path = path.to_string_lossy();
    let path = path.trim_start_matches('/');
    format!("usr/{}", path.strip_prefix("usr/").unwrap_or(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_ldd() {
        let text = "/usr/sbin/nft:\n\tlinux-vdso.so.1 (0x00007ff7)\n\
                    \tlibmnl.so.0 => /lib/x86_64-linux-gnu/libmnl.so.0 (0x00007ff7)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007ff7)\n\
                    /usr/bin/static:\n\tstatically linked\n";
        let want = ["/lib/x86_64-linux-gnu/libmnl.so.0", "/lib64/ld-linux-x86-64.so.2"];
        assert_eq!(parse_ldd(text), want.map(PathBuf::from).into());
    }

    #[test]
    fn puts_everything_below_usr() {
        assert_eq!(below_usr(Path::new("/lib64/ld.so")), "usr/lib64/ld.so");
        assert_eq!(below_usr(Path::new("/usr/lib/a.so")), "usr/lib/a.so");
    }
}
