//! The cargo commands that xtask runs.

use std::{env, process::Command};

/// Variables that the outer cargo sets or reads. A build with other flags or another
/// toolchain must not get them.
const REMOVED: [&str; 7] = [
    "CARGO",
    "RUSTC",
    "RUSTC_WRAPPER",
    "RUSTFLAGS",
    "RUSTDOCFLAGS",
    "RUSTUP_TOOLCHAIN",
    // Points to the libraries of the toolchain that runs us.
    "LD_LIBRARY_PATH",
];
const REMOVED_PREFIXES: [&str; 7] = [
    "CARGO_BIN_",
    "CARGO_BUILD_",
    "CARGO_ENCODED_",
    "CARGO_MANIFEST_",
    "CARGO_PKG_",
    "CARGO_PROFILE_",
    "CARGO_TARGET_",
];

/// Removes the outer cargo's variables from the command's environment.
pub fn clean(mut cmd: Command) -> Command {
    for (name, _) in env::vars_os() {
        let name = name.to_string_lossy();
        if REMOVED.contains(&&*name) || REMOVED_PREFIXES.iter().any(|p| name.starts_with(p)) {
            cmd.env_remove(&*name);
        }
    }
    cmd
}

/// The cargo that runs us, for programs of this machine.
pub fn host() -> Command {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut cmd = clean(Command::new(cargo));
    // `cargo +1.95 xtask` must also build with 1.95.
    if let Some(toolchain) = env::var_os("RUSTUP_TOOLCHAIN") {
        cmd.env("RUSTUP_TOOLCHAIN", toolchain);
    }
    cmd
}
