//! Everything that a fix may change, read without rsttrace.

use std::{collections::BTreeMap, fs, os::unix::fs::PermissionsExt, path::Path};

use anyhow::{Context, Result};

use crate::{
    guest::{Guest, Need},
    lab::Lab,
    tools,
};

/// All settings in these directories, not only those that rsttrace knows.
const SYSCTLS: [&str; 4] = ["net/core", "net/ipv4", "net/ipv4/vs", "net/netfilter"];
/// Measured values, not settings.
const MEASURED: [&str; 2] = ["nf_conntrack_count", "random_id"];
const HASHSIZE: &str = "/sys/module/nf_conntrack/parameters/hashsize";
/// Where settings persist over a reboot.
const FILES: [&str; 4] = ["/etc", "/run/sysctl.d", "/run/systemd", "/usr/lib/sysctl.d"];

/// The content of each value and file, by its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot(BTreeMap<String, Vec<u8>>);

impl Snapshot {
    /// The values of the initial namespace and of a lab's namespaces, and the machine's files.
    pub fn take(guest: &Guest, lab: &Lab) -> Result<Self> {
        let timeouts = guest.missing(&[Need::Ipvs]).is_none();
        let mut found = BTreeMap::new();
        let mut add = |at: &str, values: Vec<(String, Vec<u8>)>| {
            found.extend(values.into_iter().map(|(name, value)| (format!("{name} {at}"), value)));
        };
        let ipvs = |netns| timeouts.then(|| ipvs_timeouts(netns)).transpose();
        add("on the host", values()?);
        add("on the host", ipvs(None)?.into_iter().collect());
        for namespace in lab.namespaces() {
            let place = format!("in {}", namespace.name());
            add(&place, namespace.enter(values)?);
            add(&place, ipvs(Some(namespace.name()))?.into_iter().collect());
        }
        for root in FILES {
            files(Path::new(root), &mut found)?;
        }
        Ok(Self(found))
    }

    /// The names with another content or in only one of the two snapshots, one line each.
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let show = |value: Option<&Vec<u8>>| {
            value.map_or_else(
                || "absent".to_owned(),
                |value| String::from_utf8_lossy(value).trim().to_owned(),
            )
        };
        let names: std::collections::BTreeSet<_> = self.0.keys().chain(other.0.keys()).collect();
        names
            .into_iter()
            .filter(|name| self.0.get(*name) != other.0.get(*name))
            .map(|name| {
                format!("{name}: {} -> {}", show(self.0.get(name)), show(other.0.get(name)))
            })
            .collect()
    }
}

/// The settings of the calling thread's namespace.
fn values() -> Result<Vec<(String, Vec<u8>)>> {
    let mut found = Vec::new();
    for directory in SYSCTLS {
        // A directory exists only if its module is loaded.
        let Ok(entries) = fs::read_dir(Path::new("/proc/sys").join(directory)) else { continue };
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if MEASURED.contains(&name.as_str()) || !entry.path().is_file() {
                continue;
            }
            // Some are write-only.
            if let Ok(value) = fs::read(entry.path()) {
                found.push((format!("{directory}/{name}"), value));
            }
        }
    }
    if let Ok(value) = fs::read(HASHSIZE) {
        found.push(("hashsize".to_owned(), value));
    }
    Ok(found)
}

/// The IPVS timeouts as printed by ipvsadm: a check that does not rely on rsttrace.
fn ipvs_timeouts(netns: Option<&str>) -> Result<(String, Vec<u8>)> {
    let timeouts = tools::run(netns, "ipvsadm -L --timeout", "")?;
    Ok(("IPVS timeouts".to_owned(), timeouts.into_bytes()))
}

fn files(path: &Path, found: &mut BTreeMap<String, Vec<u8>>) -> Result<()> {
    let Ok(metadata) = path.symlink_metadata() else { return Ok(()) };
    if metadata.is_dir() {
        for entry in fs::read_dir(path).with_context(|| format!("read {}", path.display()))? {
            files(&entry?.path(), found)?;
        }
        return Ok(());
    }
    let content = if metadata.is_symlink() {
        fs::read_link(path).map(|to| to.to_string_lossy().into_owned().into_bytes())
    } else {
        fs::read(path)
    };
    let mut content = content.with_context(|| format!("read {}", path.display()))?;
    content.extend(format!(" mode {:o}", metadata.permissions().mode()).bytes());
    found.insert(path.display().to_string(), content);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_a_new_and_a_missing_value_are_differences() {
        let of = |values: &[(&str, &str)]| {
            let values = values.iter().map(|(k, v)| ((*k).to_owned(), v.as_bytes().to_vec()));
            Snapshot(values.collect())
        };
        let before = of(&[("a", "1\n"), ("b", "2\n"), ("c", "3\n")]);
        let after = of(&[("a", "1\n"), ("b", "4\n"), ("d", "5\n")]);
        assert_eq!(before.differences(&before), Vec::<String>::new());
        let want = ["b: 2 -> 4", "c: 3 -> absent", "d: absent -> 5"];
        assert_eq!(before.differences(&after), want);
    }

    /// Everything that rsttrace may change is in a directory that is compared here.
    #[test]
    fn every_setting_that_rsttrace_knows_is_compared() {
        use rsttrace_model::settings::{ALL, Stored};
        for setting in ALL.iter().filter(|setting| setting.writable) {
            let compared = match setting.stored {
                Stored::Sysctl => {
                    let path = setting.key.replace('.', "/");
                    SYSCTLS.iter().any(|directory| {
                        path.strip_prefix(directory).is_some_and(|rest| !rest[1..].contains('/'))
                    })
                }
                Stored::IpvsTimeout(_) => true,
                Stored::Parameter { module, name } => {
                    HASHSIZE == format!("/sys/module/{module}/parameters/{name}")
                }
            };
            assert!(compared, "{}", setting.key);
        }
    }
}
