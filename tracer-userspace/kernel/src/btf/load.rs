//! Reads the BTF files of the running kernel.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
};

use super::{Btf, BtfError};

/// Why the kernel's BTF is not usable.
#[derive(Debug)]
pub enum LoadError {
    /// The kernel was built without BTF (`CONFIG_DEBUG_INFO_BTF`).
    NoVmlinux {
        path: PathBuf,
    },
    Read {
        path: PathBuf,
        error: io::Error,
    },
    Parse {
        path: PathBuf,
        error: BtfError,
    },
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoVmlinux { path } => write!(
                f,
                "{} is missing (the kernel was built without CONFIG_DEBUG_INFO_BTF)",
                path.display()
            ),
            Self::Read { path, .. } => write!(f, "cannot read {}", path.display()),
            Self::Parse { path, .. } => write!(f, "cannot parse {}", path.display()),
        }
    }
}

impl std::error::Error for LoadError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::NoVmlinux { .. } => None,
            Self::Read { error, .. } => Some(error),
            Self::Parse { error, .. } => Some(error),
        }
    }
}

/// Reads `<root>/sys/kernel/btf/vmlinux` and the BTF of those `modules` that have one. A module that is not
/// loaded, or is built in, has none. `root` is `/` except in tests.
///
/// # Errors
/// If the BTF of vmlinux is missing, or a file cannot be read or parsed.
pub fn load_kernel_btf(
    root: &Path,
    modules: &[&str],
) -> Result<(Btf, Vec<(String, Btf)>), LoadError> {
    let folder = root.join("sys/kernel/btf");
    let path = folder.join("vmlinux");
    let Some(bytes) = read_if_present(&path)? else {
        return Err(LoadError::NoVmlinux { path });
    };
    let vmlinux = Btf::parse(bytes).map_err(|error| LoadError::Parse { path, error })?;

    let mut described = Vec::new();
    for name in modules {
        let path = folder.join(name);
        if let Some(bytes) = read_if_present(&path)? {
            let btf = Btf::parse_split(bytes, &vmlinux)
                .map_err(|error| LoadError::Parse { path, error })?;
            described.push(((*name).to_owned(), btf));
        }
    }
    Ok((vmlinux, described))
}

fn read_if_present(path: &Path) -> Result<Option<Vec<u8>>, LoadError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(LoadError::Read { path: path.to_owned(), error }),
    }
}

#[cfg(test)]
mod tests {
    use super::super::build::Builder;
    use super::*;

    #[test]
    fn missing_btf_and_invalid_btf_are_different_errors() {
        let root = std::env::temp_dir().join(format!("rsttrace-btf-{}", std::process::id()));
        let mut vmlinux = Builder::new();
        vmlinux.int("u32", 4);
        let folder = root.join("sys/kernel/btf");
        fs::create_dir_all(&folder).expect("the temporary directory is writable");
        let load = || load_kernel_btf(&root, &["ip_vs", "nf_nat"]);

        let missing = load();
        fs::write(folder.join("vmlinux"), "garbage").expect("writable");
        let garbage = load();
        fs::write(folder.join("vmlinux"), vmlinux.bytes()).expect("writable");
        let module = Builder::onto(&vmlinux.build()).bytes();
        fs::write(folder.join("ip_vs"), module).expect("writable");
        let loaded = load();
        fs::remove_dir_all(&root).expect("writable");

        assert!(matches!(missing, Err(LoadError::NoVmlinux { .. })));
        assert!(matches!(garbage, Err(LoadError::Parse { .. })));
        let (_, modules) = loaded.expect("both files are valid");
        let names: Vec<_> = modules.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["ip_vs"]);
    }
}
