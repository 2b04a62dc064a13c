//! A private apt directory that offers the kernels of several Debian releases.
//!
//! It is made from this machine's own apt sources with only the suite changed, so it
//! uses the same mirror and proxy. The machine's own package lists are not changed.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, bail};

use crate::cmd;

/// Releases whose kernels we test on. Together they offer 5.10 to the newest.
const SUITES: [&str; 6] =
    ["bullseye", "bookworm", "bookworm-backports", "trixie", "trixie-backports", "experimental"];
/// The newest kernels of an old release are only here.
const SECURITY_SUITES: [&str; 3] = ["bullseye-security", "bookworm-security", "trixie-security"];

/// Package lists younger than this are not updated.
const FRESH: Duration = Duration::from_hours(24);

pub struct Archive {
    dir: PathBuf,
}

/// One version of one package.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Package {
    pub name: String,
    pub version: String,
    /// Names only; all alternatives are listed.
    pub depends: Vec<String>,
}

impl Archive {
    /// Opens the private directory at `dir`, with package lists at most a day old.
    pub fn open(dir: &Path) -> Result<Self> {
        let archive = Self { dir: dir.to_owned() };
        let sources = sources(&Mirror::of_this_machine()?);
        let list = dir.join("sources.list");
        let stamp = dir.join("updated");
        let unchanged = fs::read_to_string(&list).is_ok_and(|old| old == sources);
        if unchanged && age(&stamp).is_some_and(|age| age < FRESH) {
            return Ok(archive);
        }
        for sub in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(dir.join(sub))
                .with_context(|| format!("cannot create {}", dir.join(sub).display()))?;
        }
        fs::write(&list, sources).with_context(|| format!("cannot write {}", list.display()))?;
        archive.update()?;
        fs::write(&stamp, "").with_context(|| format!("cannot write {}", stamp.display()))?;
        Ok(archive)
    }

    fn update(&self) -> Result<()> {
        eprintln!("reading the kernel lists of {}", SUITES.join(", "));
        // apt-get fails even if only one of the suites is gone, and old suites are removed some day:
        // it is an error only if no kernel is available afterwards.
        if let Err(error) = cmd::output(self.get().arg("update"), "reading the package lists") {
            if self.names("linux-image-")?.is_empty() {
                return Err(error);
            }
            for line in format!("{error:#}").lines().filter(|l| l.starts_with("E: ")) {
                eprintln!("  not available: {}", line.trim_start_matches("E: "));
            }
        }
        Ok(())
    }

    /// The packages whose name starts with `prefix`.
    pub fn names(&self, prefix: &str) -> Result<Vec<String>> {
        let mut cmd = self.cache();
        cmd.args(["pkgnames", prefix]);
        let names = cmd::output(&mut cmd, "listing the kernels")?;
        Ok(names.lines().map(str::to_owned).collect())
    }

    /// Every version of the named packages; names without any version are left out.
    pub fn packages(&self, names: &[String]) -> Result<Vec<Package>> {
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let mut cmd = self.cache();
        let text = cmd::output(cmd.arg("show").args(names), "reading the kernel packages")?;
        Ok(parse_show(&text))
    }

    /// Downloads the package (checked by apt against the signed lists) into `dir`.
    pub fn download(&self, package: &Package, dir: &Path) -> Result<()> {
        let Package { name, version, .. } = package;
        let mut cmd = self.get();
        cmd.current_dir(dir).args(["-q", "download"]).arg(format!("{name}={version}"));
        cmd::output(&mut cmd, &format!("downloading {name}"))?;
        Ok(())
    }

    fn get(&self) -> Command {
        let mut cmd = Command::new("apt-get");
        cmd.args(self.options());
        cmd
    }

    fn cache(&self) -> Command {
        let mut cmd = Command::new("apt-cache");
        cmd.args(self.options());
        cmd
    }

    fn options(&self) -> Vec<OsString> {
        let dir = self.dir.display();
        let options = [
            format!("Dir::Etc::sourcelist={dir}/sources.list"),
            "Dir::Etc::sourceparts=-".to_owned(),
            // The machine's apt pins would hide the other releases.
            "Dir::Etc::preferences=-".to_owned(),
            "Dir::Etc::preferencesparts=-".to_owned(),
            format!("Dir::State::lists={dir}/lists"),
            format!("Dir::Cache={dir}/cache"),
            // Container images disable this cache; without it each call parses every list again.
            "Dir::Cache::pkgcache=pkgcache.bin".to_owned(),
            "Dir::Cache::srcpkgcache=srcpkgcache.bin".to_owned(),
            // apt's sandbox user may not write below a private checkout.
            "APT::Sandbox::User=".to_owned(),
        ];
        let pairs = options.into_iter().map(|o| ["-o".into(), o.into()]);
        pairs.flatten().collect()
    }
}

fn age(file: &Path) -> Option<Duration> {
    let modified = file.metadata().ok()?.modified().ok()?;
    SystemTime::now().duration_since(modified).ok()
}

/// The Debian mirrors of this machine.
#[derive(Debug, PartialEq, Eq)]
struct Mirror {
    main: String,
    security: Option<String>,
}

impl Mirror {
    /// Queries apt, which reads both formats of source files and knows from the
    /// signed Release files which sources are Debian's own.
    fn of_this_machine() -> Result<Self> {
        let mut cmd = Command::new("apt-get");
        cmd.args(["indextargets", "--format", "$(REPO_URI) $(LABEL)", "Created-By: Packages"]);
        let targets = cmd::output(&mut cmd, "reading this machine's apt sources")
            .context("test kernels are Debian packages, fetched with apt-get: is this Debian?")?;
        match Self::parse(&targets) {
            Some(mirror) => Ok(mirror),
            None => bail!(
                "apt has no Debian archive on this machine, so kernels cannot be downloaded; \
                 if the sources are configured, run `apt-get update` as root"
            ),
        }
    }

    fn parse(targets: &str) -> Option<Self> {
        let uri = |label: &str| {
            let mut lines = targets.lines().filter_map(|l| l.split_once(' '));
            lines.find_map(|(uri, l)| (l == label).then(|| uri.to_owned()))
        };
        Some(Self { main: uri("Debian")?, security: uri("Debian-Security") })
    }
}

fn sources(mirror: &Mirror) -> String {
    let keyring = ["pgp", "gpg"]
        .map(|ext| format!("/usr/share/keyrings/debian-archive-keyring.{ext}"))
        .into_iter()
        .find(|file| Path::new(file).exists());
    let signed_by = keyring.map_or(String::new(), |file| format!(" signed-by={file}"));
    let line = |uri: &str, suite: &str| {
        // The Release file of an old suite may have expired; its signature is still checked.
        format!(
            "deb [arch=amd64 target=Packages check-valid-until=no{signed_by}] {uri} {suite} main\n"
        )
    };
    let main = SUITES.iter().map(|suite| line(&mirror.main, suite));
    let security = mirror.security.iter();
    let security = security.flat_map(|uri| SECURITY_SUITES.iter().map(|suite| line(uri, suite)));
    main.chain(security).collect()
}

/// Parses the output of `apt-cache show`; a version that is in two suites is listed once.
fn parse_show(text: &str) -> Vec<Package> {
    let mut seen = BTreeSet::new();
    let records = text.split("\n\n").filter_map(|record| {
        let field = |key: &str| {
            let mut lines = record.lines();
            lines.find_map(|l| l.strip_prefix(key)?.strip_prefix(": "))
        };
        Some(Package {
            name: field("Package")?.to_owned(),
            version: field("Version")?.to_owned(),
            depends: parse_depends(field("Depends").unwrap_or_default()),
        })
    });
    records.filter(|p| seen.insert((p.name.clone(), p.version.clone()))).collect()
}

fn parse_depends(field: &str) -> Vec<String> {
    let words = field.split([',', '|']).filter_map(|d| d.split_whitespace().next());
    words.map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_debian_among_other_sources() {
        let targets = "https://example.org/node/ . nodistro\n\
                       http://mirror.example/debian/ Debian\n\
                       http://mirror.example/debian/ Debian Backports\n\
                       http://mirror.example/debian-security/ Debian-Security\n";
        let want = Mirror {
            main: "http://mirror.example/debian/".to_owned(),
            security: Some("http://mirror.example/debian-security/".to_owned()),
        };
        assert_eq!(Mirror::parse(targets), Some(want));
        assert_eq!(Mirror::parse("http://ubuntu.example/ Ubuntu\n"), None);
        assert_eq!(Mirror::parse(""), None);
    }

    #[test]
    fn changes_only_the_suite() {
        let sources =
            sources(&Mirror { main: "http://mirror.example/debian/".to_owned(), security: None });
        assert_eq!(sources.lines().count(), SUITES.len());
        let line = sources.lines().next().expect("a line");
        assert!(line.starts_with("deb [arch=amd64 "), "{line}");
        assert!(line.ends_with("] http://mirror.example/debian/ bullseye main"), "{line}");
    }

    #[test]
    fn reads_apt_cache_show() {
        let text = "Package: a\nVersion: 1-1\nDepends: b (= 1-1), c | d (>= 2), e\nDescription: x\n more\n\n\
                    Package: a\nVersion: 1-1\n\nPackage: a\nVersion: 2-1\n\nN: no such package\n";
        let package = |version: &str, depends: &[&str]| Package {
            name: "a".to_owned(),
            version: version.to_owned(),
            depends: depends.iter().map(|d| (*d).to_owned()).collect(),
        };
        let want = [package("1-1", &["b", "c", "d", "e"]), package("2-1", &[])];
        assert_eq!(parse_show(text), want);
    }
}
