//! The permissions that tracing needs, checked before anything is attached.

use std::{fs, path::Path};

/// Why tracing is not possible. The text is printed to the user.
#[derive(Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Exit code 3.
    Missing { capability: &'static str },
    /// Exit code 3: root in a user namespace other than the initial one.
    UserNamespace,
    /// Exit code 4.
    Lockdown,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Missing { capability } => write!(
                f,
                "{capability} is missing: run rsttrace as root, or grant cap_bpf,cap_perfmon (and \
                 cap_sys_admin,cap_sys_ptrace,cap_syslog for other namespaces, socket owners and \
                 kernel symbols)"
            ),
            Self::UserNamespace => f.write_str(
                "CAP_BPF is missing in the initial user namespace: run rsttrace as root of the host \
                 (root of another user namespace may not trace the kernel)",
            ),
            Self::Lockdown => write!(
                f,
                "this kernel is locked down (confidentiality mode): eBPF programs may not read kernel \
                 memory, so no reset can be explained"
            ),
        }
    }
}

impl std::error::Error for Refusal {}

// include/uapi/linux/capability.h
pub(super) const CAP_SYS_PTRACE: u32 = 19;
pub(super) const CAP_SYS_ADMIN: u32 = 21;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;

/// Effective capabilities in the initial user namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities(u64);

impl Capabilities {
    /// Read from `/proc/self`. All capabilities where that cannot be read: the kernel will refuse then.
    pub(super) fn of_this_process(root: &Path) -> Self {
        let read = |path: &str| fs::read_to_string(root.join(path)).unwrap_or_default();
        if in_user_namespace(&read("proc/self/uid_map")) {
            return Self(0);
        }
        Self::parse(&read("proc/self/status"))
    }

    fn parse(status: &str) -> Self {
        let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
        Self(effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(u64::MAX))
    }

    pub(super) fn has(self, capability: u32) -> bool {
        self.0 & (1 << capability) != 0
    }

    /// CAP_SYS_ADMIN alone is enough for tracing; otherwise both CAP_BPF and CAP_PERFMON are needed.
    fn for_tracing(self) -> Result<(), Refusal> {
        match (self.has(CAP_SYS_ADMIN), self.has(CAP_BPF), self.has(CAP_PERFMON)) {
            (true, _, _) | (_, true, true) => Ok(()),
            (_, false, _) => Err(Refusal::Missing { capability: "CAP_BPF" }),
            (_, _, false) => Err(Refusal::Missing { capability: "CAP_PERFMON" }),
        }
    }
}

/// The initial user namespace maps every user to itself: "0 0 4294967295".
fn in_user_namespace(uid_map: &str) -> bool {
    let fields: Vec<&str> = uid_map.split_whitespace().collect();
    !fields.is_empty() && fields != ["0", "0", "4294967295"]
}

/// Checks capabilities and lockdown.
///
/// # Errors
/// [`Refusal`], with the name of what is missing.
pub fn check(root: &Path) -> Result<(), Refusal> {
    let read = |path: &str| fs::read_to_string(root.join(path)).unwrap_or_default();
    if in_user_namespace(&read("proc/self/uid_map"))
        && Capabilities::parse(&read("proc/self/status")).for_tracing().is_ok()
    {
        return Err(Refusal::UserNamespace);
    }
    Capabilities::of_this_process(root).for_tracing()?;
    if read("sys/kernel/security/lockdown").contains("[confidentiality]") {
        return Err(Refusal::Lockdown);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tracing(status: &str) -> Result<(), Refusal> {
        Capabilities::parse(status).for_tracing()
    }

    #[test]
    fn only_the_initial_user_namespace_maps_every_user_to_itself() {
        assert!(!in_user_namespace("         0          0 4294967295\n"));
        assert!(in_user_namespace("         0       1000          1\n"));
        assert!(!in_user_namespace(""), "a kernel without user namespaces");
    }

    #[test]
    fn cap_sys_admin_alone_is_enough() {
        assert_eq!(tracing("CapEff:\t0000000000200000\n"), Ok(()));
    }

    #[test]
    fn cap_bpf_without_cap_perfmon_reports_cap_perfmon_missing() {
        assert_eq!(
            tracing("CapEff:\t0000008000000000\n"),
            Err(Refusal::Missing { capability: "CAP_PERFMON" })
        );
    }

    #[test]
    fn without_any_capability_cap_bpf_is_reported_missing() {
        assert_eq!(
            tracing("CapEff:\t0000000000000000\n"),
            Err(Refusal::Missing { capability: "CAP_BPF" })
        );
    }
}
