//! BPF programs of other software that forward packets without the kernel's own tables.

use std::{collections::BTreeSet, fs, path::Path};

/// A data plane that is implemented in BPF.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataPlane {
    pub name: &'static str,
    /// The interfaces, pinned maps and programs that it was recognised by.
    pub found: Vec<String>,
    /// Commands that list its own connection table.
    pub look_at: &'static str,
}

/// How to recognise a data plane.
struct Signature {
    name: &'static str,
    /// Name prefixes of its pinned maps and programs.
    prefixes: &'static [&'static str],
    interfaces: &'static [&'static str],
    look_at: &'static str,
}

/// Calico's `cali…` interfaces also exist without its BPF data plane; `bpfin.cali` does not.
const KNOWN: &[Signature] = &[
    Signature {
        name: "Cilium",
        prefixes: &["cilium_", "cil_"],
        interfaces: &["cilium_host", "cilium_net"],
        look_at: "cilium-dbg bpf ct list global, cilium-dbg monitor --type drop",
    },
    Signature {
        name: "Calico eBPF",
        prefixes: &["cali_"],
        interfaces: &["bpfin.cali", "bpfout.cali"],
        look_at: "calico-node -bpf conntrack dump",
    },
];

/// Names listed per kind. More of them add nothing.
const SHOWN: usize = 3;

/// Pinned maps are at most this deep: `/sys/fs/bpf/tc/globals/MAP`, `/sys/fs/bpf/cilium/devices/LINK`.
const DEPTH: usize = 4;

/// Finds data planes. `programs` are the names of the loaded BPF programs, empty without permission.
pub fn look(root: &Path, programs: &[String]) -> Vec<DataPlane> {
    let mut pins = BTreeSet::new();
    names_below(&root.join("sys/fs/bpf"), DEPTH, &mut pins);
    let mut interfaces = BTreeSet::new();
    names_below(&root.join("sys/class/net"), 0, &mut interfaces);
    KNOWN.iter().filter_map(|signature| signature.find(&pins, &interfaces, programs)).collect()
}

impl Signature {
    fn find(
        &self,
        pins: &BTreeSet<String>,
        interfaces: &BTreeSet<String>,
        programs: &[String],
    ) -> Option<DataPlane> {
        let has_prefix =
            |name: &&String| self.prefixes.iter().any(|prefix| name.starts_with(prefix));
        let programs: BTreeSet<&String> = programs.iter().filter(has_prefix).collect();
        let kinds: [(&str, Vec<&String>); 3] = [
            (
                "interface",
                interfaces.iter().filter(|it| self.interfaces.contains(&it.as_str())).collect(),
            ),
            ("pinned map", pins.iter().filter(has_prefix).collect()),
            ("program", programs.into_iter().collect()),
        ];
        let found: Vec<String> = kinds
            .into_iter()
            .flat_map(|(kind, names)| {
                names.into_iter().take(SHOWN).map(move |name| format!("{kind} {name}"))
            })
            .collect();
        (!found.is_empty()).then_some(DataPlane { name: self.name, found, look_at: self.look_at })
    }
}

/// Adds the names of the entries below a directory. An unreadable directory counts as empty.
fn names_below(directory: &Path, depth: usize, names: &mut BTreeSet<String>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if depth > 0 && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            names_below(&entry.path(), depth - 1, names);
        } else {
            names.insert(entry.file_name().to_string_lossy().into_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A fake `/sys`, which is removed on drop.
    struct Root(std::path::PathBuf);

    impl Root {
        fn new(name: &str, files: &[&str]) -> Self {
            let root = std::env::temp_dir().join(format!("rsttrace-{name}-{}", std::process::id()));
            for file in files {
                let path = root.join(file);
                fs::create_dir_all(path.parent().expect("a directory")).expect("writable");
                fs::write(path, "").expect("writable");
            }
            Self(root)
        }
    }

    impl Drop for Root {
        fn drop(&mut self) {
            // A leftover in the temporary directory is harmless.
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn names(root: &Root, programs: &[&str]) -> Vec<&'static str> {
        let programs: Vec<String> = programs.iter().map(|it| (*it).to_owned()).collect();
        look(&root.0, &programs).into_iter().map(|it| it.name).collect()
    }

    #[test]
    fn cilium_is_recognised_by_its_pinned_maps_alone() {
        let root = Root::new("cilium", &["sys/fs/bpf/tc/globals/cilium_ct4_global"]);
        let found = look(&root.0, &[]);
        assert_eq!(found[0].name, "Cilium");
        assert_eq!(found[0].found, ["pinned map cilium_ct4_global"]);
    }

    #[test]
    fn pod_interfaces_of_calico_alone_are_not_a_bpf_data_plane() {
        let root = Root::new("calico", &["sys/class/net/cali12345678901", "sys/class/net/eth0"]);
        assert!(names(&root, &["sd_fw_egress"]).is_empty());
        assert_eq!(names(&root, &["cali_tc_main"]), ["Calico eBPF"]);
    }

    #[test]
    fn a_host_without_a_bpf_file_system_has_no_data_plane() {
        let root = Root::new("plain", &["sys/class/net/lo"]);
        assert!(names(&root, &[]).is_empty());
    }
}
