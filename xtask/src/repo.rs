//! Paths in this repository.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

/// The repository's root: the folder above this crate.
pub fn root() -> &'static Path {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().unwrap_or(xtask)
}

/// A path below `target/`. It does not depend on CARGO_TARGET_DIR, so that
/// the documented path `target/dist` is always right.
pub fn target(below: &str) -> PathBuf {
    root().join("target").join(below)
}

/// Locks `target/NAME` against other threads and processes until the file is dropped.
pub fn lock(name: &str) -> Result<File> {
    let dir = target(name);
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let file = dir.join("lock");
    File::create(&file)
        .and_then(|f| f.lock().map(|()| f))
        .with_context(|| format!("cannot lock {}", file.display()))
}
