//! Licences of what is linked into the program, and crates that are there in several versions.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::{cargo, cmd, repo};

/// Licences that a program under MIT or Apache-2.0 may contain.
const ALLOWED: [&str; 13] = [
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "ISC",
    "MIT",
    "MIT-0",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// Crates that may be there twice: their dependants have not moved to the newest version yet.
const TWICE: &[&str] = &[
    "bit-set",
    "bit-vec",
    "bitflags",
    "cpufeatures",
    "getrandom",
    "hashbrown",
    "linux-raw-sys",
    "object",
    "r-efi",
    "rand",
    "rand_chacha",
    "rand_core",
    "rustix",
    "syn",
    "thiserror",
    "thiserror-impl",
    "windows-sys",
];

pub fn check() -> Result<()> {
    let mut cargo = cargo::host();
    cargo.current_dir(repo::root()).args(["metadata", "--locked", "--format-version", "1"]);
    let metadata = cmd::output(&mut cargo, "reading the dependencies")?;
    let metadata: Value =
        serde_json::from_str(&metadata).context("`cargo metadata` is not JSON")?;
    let mut complaints = Vec::new();
    let mut packages: Vec<(&str, &str, &str)> = Vec::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let text = |key: &str| package[key].as_str().unwrap_or_default();
        packages.push((text("name"), text("version"), text("license")));
    }
    ensure!(packages.len() > 10, "`cargo metadata` lists no packages");
    for (name, version, licence) in &packages {
        if !is_allowed(licence) {
            complaints.push(format!("{name} {version}: licence `{licence}` is not on the list"));
        }
    }
    packages.sort_unstable();
    for pair in packages.windows(2) {
        let [(name, old, _), (other, new, _)] = pair else { continue };
        if name == other && !TWICE.contains(name) {
            complaints.push(format!("{name} is there as {old} and as {new}"));
        }
    }
    ensure!(complaints.is_empty(), "{}", complaints.join("\n"));
    Ok(())
}

/// Whether an SPDX expression leaves a choice that is allowed: one of `OR`, each of `AND`.
fn is_allowed(expression: &str) -> bool {
    let plain = expression.replace('/', " OR ").replace(['(', ')'], " ");
    let allowed = |licence: &str| ALLOWED.contains(&licence.trim());
    // Without parentheses AND binds closer; with them, every licence that is named must be allowed.
    match expression.contains('(') {
        true => plain.split(" OR ").flat_map(|it| it.split(" AND ")).all(allowed),
        false => plain.split(" OR ").any(|choice| choice.split(" AND ").all(allowed)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_allowed_choice_is_enough_and_every_part_of_it_must_be_allowed() {
        assert!(is_allowed("MIT OR Apache-2.0"));
        assert!(is_allowed("MIT/GPL-3.0"));
        assert!(is_allowed("(MIT OR Apache-2.0) AND Unicode-3.0"));
        assert!(!is_allowed("GPL-3.0"));
        assert!(!is_allowed("MIT AND GPL-3.0"));
        assert!(!is_allowed(""));
    }
}
