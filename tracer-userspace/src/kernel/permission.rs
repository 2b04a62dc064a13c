//! What tracing needs to be allowed, checked before anything is attached.

use std::{fs, path::Path};

/// Why tracing is not possible; the first sentence is for the user.
#[derive(Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Exit code 3.
    Missing { capability: &'static str },
    /// Exit code 4.
    Lockdown,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Missing { capability } => write!(
                f,
                "rsttrace lacks {capability}: run it as root, or grant cap_bpf,cap_perfmon (and \
                 cap_sys_admin for reading other network namespaces)"
            ),
            Self::Lockdown => write!(
                f,
                "this kernel is locked down (confidentiality): eBPF programs may not read kernel \
                 memory, so no reset can be explained"
            ),
        }
    }
}

impl std::error::Error for Refusal {}

// include/uapi/linux/capability.h
const CAP_SYS_ADMIN: u32 = 21;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;

/// Checks capabilities and lockdown.
///
/// # Errors
/// [`Refusal`], naming what is missing.
pub fn check(root: &Path) -> Result<(), Refusal> {
    let read = |path: &str| fs::read_to_string(root.join(path)).unwrap_or_default();
    capabilities(&read("proc/self/status"))?;
    if read("sys/kernel/security/lockdown").contains("[confidentiality]") {
        return Err(Refusal::Lockdown);
    }
    Ok(())
}

/// CAP_SYS_ADMIN alone is enough; otherwise both CAP_BPF and CAP_PERFMON. A status that cannot be
/// parsed refuses nothing: the kernel itself will.
fn capabilities(status: &str) -> Result<(), Refusal> {
    let Some(effective) = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
    else {
        return Ok(());
    };
    let has = |capability: u32| effective & (1 << capability) != 0;
    match (has(CAP_SYS_ADMIN), has(CAP_BPF), has(CAP_PERFMON)) {
        (true, _, _) | (_, true, true) => Ok(()),
        (_, false, _) => Err(Refusal::Missing { capability: "CAP_BPF" }),
        (_, _, false) => Err(Refusal::Missing { capability: "CAP_PERFMON" }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sys_admin_alone_is_enough() {
        assert_eq!(capabilities("CapEff:\t0000000000200000\n"), Ok(()));
    }

    #[test]
    fn bpf_without_perfmon_names_perfmon() {
        assert_eq!(
            capabilities("CapEff:\t0000008000000000\n"),
            Err(Refusal::Missing { capability: "CAP_PERFMON" })
        );
    }

    #[test]
    fn no_capability_names_bpf() {
        assert_eq!(
            capabilities("CapEff:\t0000000000000000\n"),
            Err(Refusal::Missing { capability: "CAP_BPF" })
        );
    }
}
