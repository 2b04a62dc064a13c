//! Temporary files for tests.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

/// A temporary directory for the files of one test; removed on drop.
pub struct TempRoot(PathBuf);

impl Default for TempRoot {
    fn default() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name =
            format!("rsttrace-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let root = std::env::temp_dir().join(name);
        fs::create_dir_all(&root).expect("the temporary directory is writable");
        Self(root)
    }
}

impl TempRoot {
    /// # Panics
    /// When the temporary directory is not writable, as do the other methods that write.
    pub fn new() -> Self {
        Self::default()
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn directory(&self, path: &str) {
        fs::create_dir_all(self.0.join(path)).expect("the temporary directory is writable");
    }

    pub fn file(&self, path: &str, text: &str) {
        let path = self.0.join(path);
        fs::create_dir_all(path.parent().expect("below the root")).expect("writable");
        fs::write(path, text).expect("the temporary directory is writable");
    }
}

impl Drop for TempRoot {
    fn drop(&mut self) {
        // A failure leaves the directory in the temporary directory, which does no harm.
        let _ = fs::remove_dir_all(&self.0);
    }
}
