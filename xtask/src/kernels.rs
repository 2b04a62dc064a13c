//! Fetches the Debian kernel of a series and unpacks it below `target/kernels`.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    apt::{Archive, Package},
    cmd, repo,
    version::{self, Series},
};

/// A kernel ready to boot.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// The requested series, which may differ from that of `release`.
    pub wanted: Series,
    /// What `uname -r` prints in the guest.
    pub release: String,
    /// Package name and version: the exact revision.
    pub package: String,
    pub image: PathBuf,
    /// The folder that holds `lib/modules`.
    pub root: PathBuf,
}

/// Fetches kernels that are missing. The archive keeps only the newest revisions of a series,
/// so this uses the newest one and prints its exact version.
pub fn fetch(wanted: &[Series]) -> Result<Vec<Kernel>> {
    let _lock = repo::lock("kernels")?;
    let dir = repo::target("kernels");
    let catalogue = Archive::open(&dir.join("apt")).and_then(|archive| {
        let names = archive.names("linux-image-")?;
        let names: Vec<_> = names.into_iter().filter(|n| abi(n).is_some()).collect();
        let offered = Catalogue::new(archive.packages(&names)?);
        Ok((archive, offered))
    });
    let (archive, offered) = match catalogue {
        Ok(found) => found,
        Err(error) => return unpacked_before(wanted, &dir, error),
    };
    let fetch_one = |&wanted: &Series| {
        let (series, package) = offered.choose(wanted)?;
        if series != wanted {
            eprintln!(
                "kernel {wanted}: wanted {wanted}, got {series} (the archive does not offer {wanted})"
            );
        }
        let home = dir.join(format!("{}_{}", package.name, package.version));
        if !home.exists() {
            eprintln!("kernel {wanted}: downloading {} {}", package.name, package.version);
            download(&archive, package, &home)
                .with_context(|| format!("cannot fetch the kernel of series {wanted}"))?;
        }
        let kernel = open(wanted, &home)?;
        eprintln!("kernel {wanted}: {}", kernel.package);
        Ok(kernel)
    };
    wanted.iter().map(fetch_one).collect()
}

/// The ABI part of a bootable package's name: `6.1.0-56-cloud-amd64`.
fn abi(name: &str) -> Option<&str> {
    name.strip_prefix("linux-image-").filter(|abi| abi.ends_with("-cloud-amd64"))
}

/// The series that a kernel package belongs to. A metapackage has a series too, and works as well:
/// its dependencies are fetched with it.
fn series_of(name: &str) -> Option<Series> {
    let abi = abi(name)?;
    let (major, rest) = abi.split_once('.')?;
    let digits = rest.find(|c: char| !c.is_ascii_digit())?;
    format!("{major}.{}", &rest[..digits]).parse().ok()
}

/// The newest package of every available series.
struct Catalogue(BTreeMap<Series, Package>);

impl Catalogue {
    fn new(packages: Vec<Package>) -> Self {
        let mut newest: BTreeMap<Series, Package> = BTreeMap::new();
        for package in packages {
            let Some(series) = series_of(&package.name) else {
                continue;
            };
            let older = newest
                .get(&series)
                .is_none_or(|old| version::compare(&old.version, &package.version).is_lt());
            if older {
                newest.insert(series, package);
            }
        }
        Self(newest)
    }

    fn choose(&self, wanted: Series) -> Result<(Series, &Package)> {
        version::nearest(wanted, self.0.keys().copied())
            .and_then(|series| Some((series, self.0.get(&series)?)))
            .context("the archive offers no kernel")
    }
}

fn download(archive: &Archive, package: &Package, home: &Path) -> Result<()> {
    let mut partial = home.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    if partial.exists() {
        fs::remove_dir_all(&partial)?;
    }
    fs::create_dir_all(&partial).with_context(|| format!("cannot create {}", partial.display()))?;
    for part in parts(archive, package)? {
        archive.download(&part, &partial)?;
    }
    for entry in fs::read_dir(&partial)? {
        let file = entry?.path();
        let mut dpkg = Command::new("dpkg");
        dpkg.arg("-x").arg(&file).arg(&partial);
        cmd::run(&mut dpkg, "unpacking the kernel")?;
        fs::remove_file(&file)?;
    }
    // Newer releases unpack to usr/lib only, and depmod versions differ in the folder that they search.
    if !partial.join("lib").exists() {
        std::os::unix::fs::symlink("usr/lib", partial.join("lib"))?;
    }
    let release = release(&partial)?;
    let mut depmod =
        Command::new(cmd::find("depmod").context("`depmod` (package kmod) is missing")?);
    depmod.arg("-b").arg(&partial).arg(&release);
    cmd::run(&mut depmod, "resolving the kernel's modules")?;
    fs::rename(&partial, home).with_context(|| format!("cannot create {}", home.display()))
}

/// The package and the kernel packages that it depends on: from 7.2 on, the image, the modules and
/// their lists are separate packages.
fn parts(archive: &Archive, package: &Package) -> Result<Vec<Package>> {
    let mut parts = vec![package.clone()];
    let mut next = 0;
    while let Some(part) = parts.get(next).cloned() {
        next += 1;
        let wanted = |name: &&String| {
            let kinds = ["linux-base-", "linux-binary-", "linux-image-", "linux-modules-"];
            kinds.iter().any(|kind| name.starts_with(kind))
                && parts.iter().all(|known| known.name != **name)
        };
        let names: Vec<_> = part.depends.iter().filter(wanted).cloned().collect();
        let found = archive.packages(&names)?;
        parts.extend(found.into_iter().filter(|p| p.version == part.version));
    }
    Ok(parts)
}

/// The kernel unpacked in `home`.
fn open(wanted: Series, home: &Path) -> Result<Kernel> {
    let release = release(home)?;
    let places = [
        home.join(format!("boot/vmlinuz-{release}")),
        home.join(format!("lib/modules/{release}/vmlinuz")),
    ];
    let name = home.file_name().unwrap_or_default().to_string_lossy();
    let image = places.into_iter().find(|file| file.exists());
    Ok(Kernel {
        wanted,
        image: image.with_context(|| format!("no vmlinuz in {}", home.display()))?,
        package: name.replacen('_', " ", 1),
        release,
        root: home.to_owned(),
    })
}

/// The only release that has modules below `root`.
fn release(root: &Path) -> Result<String> {
    let modules = root.join("lib/modules");
    let entries = fs::read_dir(&modules)
        .with_context(|| format!("no kernel modules in {}", modules.display()))?;
    let names: Vec<_> = entries.flatten().map(|e| e.file_name()).collect();
    match names.as_slice() {
        [name] => Ok(name.to_string_lossy().into_owned()),
        _ => bail!("expected one kernel in {}, found {}", modules.display(), names.len()),
    }
}

/// Kernels that were unpacked earlier, for when the archive cannot be read.
fn unpacked_before(wanted: &[Series], dir: &Path, error: anyhow::Error) -> Result<Vec<Kernel>> {
    let mut kernels = Vec::new();
    for &series in wanted {
        let homes = fs::read_dir(dir).into_iter().flatten().flatten();
        let homes = homes.map(|e| e.file_name().to_string_lossy().into_owned());
        let newest = homes
            .filter_map(|home| {
                let (name, version) = home.split_once('_')?;
                (series_of(name)? == series && !home.ends_with(".partial"))
                    .then(|| (version.to_owned(), home.clone()))
            })
            .max_by(|a, b| version::compare(&a.0, &b.0));
        let Some((_, home)) = newest else {
            return Err(error);
        };
        let kernel = open(series, &dir.join(home))?;
        eprintln!("kernel {series}: {} (fetched earlier)", kernel.package);
        kernels.push(kernel);
    }
    eprintln!("the package archive could not be read, so these may not be the newest: {error:#}");
    Ok(kernels)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, version: &str) -> Package {
        Package { name: name.to_owned(), version: version.to_owned(), depends: Vec::new() }
    }

    #[test]
    fn reads_the_series_from_the_package_name() {
        let series = |name| series_of(name).map(|s| s.to_string());
        assert_eq!(series("linux-image-5.10.0-46-cloud-amd64").as_deref(), Some("5.10"));
        assert_eq!(series("linux-image-6.12.117+deb13-cloud-amd64").as_deref(), Some("6.12"));
        assert_eq!(series("linux-image-7.3-cloud-amd64").as_deref(), Some("7.3"));
        assert_eq!(series("linux-image-6.12.117+deb13-cloud-amd64-dbg"), None);
        assert_eq!(series("linux-image-6.1.0-56-cloud-amd64-unsigned"), None);
        assert_eq!(series("linux-image-cloud-amd64"), None);
        assert_eq!(series("linux-image-6.1.0-56-amd64"), None);
    }

    #[test]
    fn chooses_the_newest_of_the_nearest_series() {
        let offered = Catalogue::new(vec![
            package("linux-image-6.1.0-0.deb11.52-cloud-amd64", "6.1.180-1~deb11u1"),
            package("linux-image-6.1.0-56-cloud-amd64", "6.1.192-2"),
            package("linux-image-6.1.0-55-cloud-amd64", "6.1.192-1"),
            package("linux-image-6.12.117+deb13-cloud-amd64", "6.12.117-1"),
        ]);
        let choose = |word: &str| {
            let (series, package) = offered.choose(word.parse().expect("series")).expect("offered");
            (series.to_string(), package.version.clone())
        };
        assert_eq!(choose("6.1"), ("6.1".to_owned(), "6.1.192-2".to_owned()));
        assert_eq!(choose("6.6"), ("6.12".to_owned(), "6.12.117-1".to_owned()));
        assert_eq!(choose("7.2"), ("6.12".to_owned(), "6.12.117-1".to_owned()));
        let nothing = Catalogue::new(Vec::new());
        assert!(nothing.choose("6.1".parse().expect("series")).is_err());
    }
}
