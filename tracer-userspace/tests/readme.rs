//! What README.md repeats from the code.

use rsttrace_core::{causes, verdict::Family};

#[test]
fn the_readme_lists_every_cause_with_its_family() {
    let mut table = String::new();
    for family in Family::ALL {
        let of_family: Vec<_> = causes::ALL
            .iter()
            .filter(|cause| cause.family == family)
            .map(|cause| format!("`{}`", cause.id))
            .collect();
        table.push_str(&format!("| {} | {} |\n", family.id(), of_family.join(" ")));
    }
    let readme = include_str!("../../README.md");
    assert!(readme.contains(&table), "README.md should hold:\n{table}");
}
