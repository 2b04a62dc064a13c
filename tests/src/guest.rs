//! What the kernel of this guest can do.

use std::{
    os::unix::fs::MetadataExt,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result};

/// Something of the kernel without which a scenario cannot be provoked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    Conntrack,
    Ipvs,
    /// IPVS holds no more connections than `net.ipv4.vs.conn_max`.
    IpvsConnMax,
}

impl Need {
    const ALL: [Self; 3] = [Self::Conntrack, Self::Ipvs, Self::IpvsConnMax];

    fn module(self) -> &'static str {
        match self {
            Self::Conntrack => "nf_conntrack",
            Self::Ipvs | Self::IpvsConnMax => "ip_vs",
        }
    }

    /// A file that exists when the kernel has it.
    fn sign(self) -> &'static str {
        match self {
            Self::Conntrack => "/proc/sys/net/netfilter/nf_conntrack_max",
            Self::Ipvs => "/proc/net/ip_vs",
            Self::IpvsConnMax => "/proc/sys/net/ipv4/vs/conn_max",
        }
    }

    /// As a reader of the coverage knows it.
    fn name(self) -> &'static str {
        match self {
            Self::Conntrack | Self::Ipvs => self.module(),
            Self::IpvsConnMax => "net.ipv4.vs.conn_max",
        }
    }
}

pub struct Guest {
    pub release: String,
    lacks: Vec<Need>,
}

impl Guest {
    /// Loads what scenarios need and finds out what is missing.
    pub fn probe() -> Result<Self> {
        let uname = rustix::system::uname();
        let release =
            uname.release().to_str().context("the kernel's release is not text")?.to_owned();
        let mut lacks = Vec::new();
        for need in Need::ALL {
            // Built in, or not there at all, is as good as loaded: the sign decides.
            let _ = Command::new("modprobe")
                .args(["-q", need.module()])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status();
            if !Path::new(need.sign()).exists() {
                lacks.push(need);
            }
        }
        Ok(Self { release, lacks })
    }

    /// Loads a module; whether that was news to this kernel.
    pub fn load(&self, module: &str) -> Result<bool> {
        let sign = Path::new("/sys/module").join(module);
        if sign.exists() {
            return Ok(false);
        }
        let status = Command::new("modprobe")
            .arg(module)
            .stdin(Stdio::null())
            .status()
            .context("run modprobe")?;
        anyhow::ensure!(status.success(), "modprobe {module}: {status}");
        Ok(sign.exists())
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

    /// Why this kernel cannot play a scenario with these needs.
    pub fn lack(&self, needs: &[Need]) -> Option<String> {
        let lacking = needs.iter().find(|need| self.lacks.contains(need))?;
        Some(format!("kernel {} has no {}", self.release, lacking.name()))
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
