//! The features of this guest's kernel.

use std::{
    os::unix::fs::MetadataExt,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result};

/// A kernel feature that a scenario needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    Conntrack,
    Nat,
    Ipvs,
    /// IPVS holds no more connections than `net.ipv4.vs.conn_max`.
    IpvsConnMax,
}

impl Need {
    const ALL: [Self; 4] = [Self::Conntrack, Self::Nat, Self::Ipvs, Self::IpvsConnMax];

    fn module(self) -> &'static str {
        match self {
            Self::Conntrack => "nf_conntrack",
            Self::Nat => "nf_nat",
            Self::Ipvs | Self::IpvsConnMax => "ip_vs",
        }
    }

    /// A file that exists if the kernel has the feature.
    fn file(self) -> &'static str {
        match self {
            Self::Conntrack => "/proc/sys/net/netfilter/nf_conntrack_max",
            Self::Nat => "/sys/module/nf_nat",
            Self::Ipvs => "/proc/net/ip_vs",
            Self::IpvsConnMax => "/proc/sys/net/ipv4/vs/conn_max",
        }
    }

    /// The name in the coverage table.
    fn name(self) -> &'static str {
        match self {
            Self::Conntrack | Self::Nat | Self::Ipvs => self.module(),
            Self::IpvsConnMax => "net.ipv4.vs.conn_max",
        }
    }
}

pub struct Guest {
    pub release: String,
    missing: Vec<Need>,
}

impl Guest {
    /// Loads the modules that scenarios need, and finds the missing features.
    pub fn probe() -> Result<Self> {
        let uname = rustix::system::uname();
        let release =
            uname.release().to_str().context("the kernel's release is not UTF-8")?.to_owned();
        let mut missing = Vec::new();
        for need in Need::ALL {
            // The exit status is ignored: only the file shows whether the kernel has the feature.
            let _ = Command::new("modprobe")
                .args(["-q", need.module()])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status();
            if !Path::new(need.file()).exists() {
                missing.push(need);
            }
        }
        Ok(Self { release, missing })
    }

    /// Loads a module; returns whether it is loaded now and was not before.
    pub fn load(&self, module: &str) -> Result<bool> {
        let folder = Path::new("/sys/module").join(module);
        if folder.exists() {
            return Ok(false);
        }
        let status = Command::new("modprobe")
            .arg(module)
            .stdin(Stdio::null())
            .status()
            .context("run modprobe")?;
        anyhow::ensure!(status.success(), "modprobe {module}: {status}");
        Ok(folder.exists())
    }

    /// `6.1` of `6.1.0-32-cloud-amd64`.
    pub fn series(&self) -> &str {
        series(&self.release)
    }

    /// The inode of the namespace in which this program runs.
    pub fn initial_netns(&self) -> Result<u64> {
        let path = "/proc/self/ns/net";
        Ok(std::fs::metadata(path).with_context(|| format!("stat {path}"))?.ino())
    }

    /// Why this kernel cannot run a scenario with these needs: the missing feature.
    pub fn missing(&self, needs: &[Need]) -> Option<String> {
        let missing = needs.iter().find(|need| self.missing.contains(need))?;
        Some(format!("kernel {} has no {}", self.release, missing.name()))
    }
}

fn series(release: &str) -> &str {
    let end = release.match_indices(|it: char| !it.is_ascii_digit()).nth(1);
    end.map_or(release, |(at, _)| &release[..at])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_series_is_the_first_two_numbers() {
        for (release, wanted) in [
            ("6.1.0-32-cloud-amd64", "6.1"),
            ("5.10.0-46-cloud-amd64", "5.10"),
            ("7.2+deb14-cloud-amd64", "7.2"),
            ("6.18", "6.18"),
        ] {
            assert_eq!(series(release), wanted);
        }
    }
}
