//! Layout of the IPVS structs on kernels before 5.11, which have no module BTF.
//!
//! Source: `objdump -dr ip_vs.ko` of Debian's `linux-image-5.10.0-46-cloud-amd64` 5.10.262-1. Every
//! number equals the one in the module BTF of Debian's 6.1.192-2, from which the member names are taken. The
//! disassembly of 5.10 shows:
//!
//! * `ip_vs_conn_new` stores most members of a connection: `cport` 0x10, `dport` 0x12, `vport`
//!   0x14, `af` 0x16, `caddr` 0x18, `vaddr` 0x28, `daddr` 0x38, `flags` 0x48, `protocol` 0x4c,
//!   `daf` 0x4e, `ipvs` 0x50, `refcnt` 0x58, `timer` 0x60, `state` 0x94, `old_state` 0x96,
//!   `fwmark` 0x98, `control` 0xa8, `n_control` 0xb0, `dest` 0xb8, `in_pkts` 0xc0;
//!   `ip_vs_conn_expire` writes 60 s (15000 jiffies) to `timeout` 0x88.
//! * `ip_vs_new_dest` and `__ip_vs_update_dest` store `af` 0x20, `port` 0x22, `addr` 0x24,
//!   `conn_flags` 0x38 and `weight` 0x3c; `ip_vs_conn_new` sets the overload bit in `flags` 0x34.
//!   `ip_vs_new_dest` copies `protocol` 0x190, `vport` 0x192 and `vaddr` 0x194 from the service.
//! * `ip_vs_leave` reads the service's `af` 0x24, `port` 0x38, `fwmark` 0x3c and `ipvs` 0x50, and
//!   `netns_ipvs.sysctl_cache_bypass` 0x71c. These, and the three before, were read from 5.10 only.
//! * `__ip_vs_del_dest` and `ip_vs_in.part.0` test `netns_ipvs.sysctl_expire_nodest_conn` at 0x720.
//! * `netns_ipvs.net`: `__ip_vs_init` begins with `ipvs->net = net`, which is
//!   `mov %rbx,0x870(%rbp)`; `ip_vs_conn_drop_conntrack` loads `cp->ipvs` (0x50) and then 0x870 of
//!   it as the first argument of `nf_conntrack_find_get`. 0x870 is 2160, as in 6.1's module BTF.

use std::{fs, path::Path};

use super::btf::{Btf, Kind, ParamType};

/// One member that is in none of the kernel's BTF.
pub(super) struct BuiltIn {
    pub(super) owner: &'static str,
    pub(super) member: &'static str,
    /// In bytes.
    pub(super) offset: u32,
    pub(super) size: u32,
    /// The member's own type, if paths may continue in it. That type is in vmlinux BTF.
    pub(super) inner: Option<(Kind, &'static str)>,
}

const fn plain(owner: &'static str, member: &'static str, offset: u32, size: u32) -> BuiltIn {
    BuiltIn { owner, member, offset, size, inner: None }
}

const fn nested(
    owner: &'static str,
    member: &'static str,
    offset: u32,
    size: u32,
    inner: (Kind, &'static str),
) -> BuiltIn {
    BuiltIn { inner: Some(inner), ..plain(owner, member, offset, size) }
}

const ADDRESS: (Kind, &str) = (Kind::Struct, "nf_inet_addr");
const ATOMIC: (Kind, &str) = (Kind::Typedef, "atomic_t");
const REFCOUNT: (Kind, &str) = (Kind::Typedef, "refcount_t");
const TIMER: (Kind, &str) = (Kind::Struct, "timer_list");

/// Types in which paths of the table may continue.
pub(super) const INNER_TYPES: [(Kind, &str); 4] = [ADDRESS, ATOMIC, REFCOUNT, TIMER];

const TABLE: &[BuiltIn] = &[
    plain("ip_vs_conn", "cport", 16, 2),
    plain("ip_vs_conn", "dport", 18, 2),
    plain("ip_vs_conn", "vport", 20, 2),
    plain("ip_vs_conn", "af", 22, 2),
    nested("ip_vs_conn", "caddr", 24, 16, ADDRESS),
    nested("ip_vs_conn", "vaddr", 40, 16, ADDRESS),
    nested("ip_vs_conn", "daddr", 56, 16, ADDRESS),
    plain("ip_vs_conn", "flags", 72, 4),
    plain("ip_vs_conn", "protocol", 76, 2),
    plain("ip_vs_conn", "daf", 78, 2),
    plain("ip_vs_conn", "ipvs", 80, 8),
    nested("ip_vs_conn", "refcnt", 88, 4, REFCOUNT),
    nested("ip_vs_conn", "timer", 96, 40, TIMER),
    plain("ip_vs_conn", "timeout", 136, 8),
    plain("ip_vs_conn", "state", 148, 2),
    plain("ip_vs_conn", "old_state", 150, 2),
    plain("ip_vs_conn", "fwmark", 152, 4),
    plain("ip_vs_conn", "control", 168, 8),
    nested("ip_vs_conn", "n_control", 176, 4, ATOMIC),
    plain("ip_vs_conn", "dest", 184, 8),
    nested("ip_vs_conn", "in_pkts", 192, 4, ATOMIC),
    plain("ip_vs_dest", "af", 32, 2),
    plain("ip_vs_dest", "port", 34, 2),
    nested("ip_vs_dest", "addr", 36, 16, ADDRESS),
    plain("ip_vs_dest", "flags", 52, 4),
    nested("ip_vs_dest", "conn_flags", 56, 4, ATOMIC),
    nested("ip_vs_dest", "weight", 60, 4, ATOMIC),
    plain("ip_vs_dest", "protocol", 400, 2),
    plain("ip_vs_dest", "vport", 402, 2),
    nested("ip_vs_dest", "vaddr", 404, 16, ADDRESS),
    plain("ip_vs_service", "af", 36, 2),
    plain("ip_vs_service", "port", 56, 2),
    plain("ip_vs_service", "fwmark", 60, 4),
    plain("ip_vs_service", "ipvs", 80, 8),
    plain("netns_ipvs", "sysctl_cache_bypass", 1820, 4),
    plain("netns_ipvs", "sysctl_expire_nodest_conn", 1824, 4),
    plain("netns_ipvs", "net", 2160, 8),
];

/// Whether the table is the correct and only source for this kernel's IPVS structs: `ip_vs` is loaded (or
/// `/sys/module` does not exist), the kernel has no module BTF at all, and is old enough for the table.
/// `root` is `/` except in tests.
pub fn apply(root: &Path, vmlinux: &Btf) -> bool {
    predates_module_btf(vmlinux) && !has_module_btf(root) && may_be_loaded(root, "ip_vs")
}

pub(super) fn find(owner: &str, member: &str) -> Option<&'static BuiltIn> {
    TABLE.iter().find(|entry| entry.owner == owner && entry.member == member)
}

/// Module BTF came with 5.11. So did the second parameter of `tcp_reset`, which distinguishes an old kernel
/// from a newer one that was built without module BTF and has another layout.
fn predates_module_btf(vmlinux: &Btf) -> bool {
    let tcp_reset = (Kind::Func, "tcp_reset");
    let params =
        vmlinux.find_all(&[tcp_reset]).get(&tcp_reset).and_then(|id| vmlinux.prototype(*id));
    params
        .is_some_and(|params| matches!(&*params, [only] if only.ty == ParamType::PointerTo("sock")))
}

fn has_module_btf(root: &Path) -> bool {
    fs::read_dir(root.join("sys/kernel/btf"))
        .is_ok_and(|entries| entries.flatten().any(|entry| entry.file_name() != "vmlinux"))
}

fn may_be_loaded(root: &Path, module: &str) -> bool {
    let modules = root.join("sys/module");
    !modules.is_dir() || modules.join(module).is_dir()
}

#[cfg(test)]
mod tests {
    use super::super::btf::build::Builder;
    use super::*;
    use rsttrace_host::testing::TempRoot;

    fn kernel(tcp_reset_params: usize) -> Btf {
        let mut b = Builder::new();
        let sock = b.fwd("sock");
        let sock = b.ptr(sock);
        b.func("tcp_reset", &vec![("p", sock); tcp_reset_params]);
        b.build()
    }

    /// A fake `/sys`.
    fn root(paths: &[&str]) -> TempRoot {
        let root = TempRoot::new();
        paths.iter().for_each(|path| root.directory(path));
        root
    }

    #[test]
    fn the_table_is_used_on_an_old_kernel_with_ipvs_loaded() {
        let root = root(&["sys/kernel/btf/vmlinux", "sys/module/ip_vs"]);
        assert!(apply(root.path(), &kernel(1)));
    }

    #[test]
    fn the_table_is_not_used_on_a_kernel_with_module_btf() {
        let root = root(&["sys/kernel/btf/x_tables", "sys/module/ip_vs"]);
        assert!(!apply(root.path(), &kernel(1)));
    }

    #[test]
    fn the_table_is_not_used_on_a_newer_kernel_built_without_module_btf() {
        let root = root(&["sys/kernel/btf/vmlinux", "sys/module/ip_vs"]);
        assert!(!apply(root.path(), &kernel(2)));
        assert!(!apply(root.path(), &Builder::new().build()));
    }

    #[test]
    fn the_table_is_not_used_without_ipvs_but_used_when_modules_cannot_be_listed() {
        let without = root(&["sys/kernel/btf/vmlinux", "sys/module/tcp_bbr"]);
        assert!(!apply(without.path(), &kernel(1)));
        let unlisted = root(&["sys/kernel/btf/vmlinux"]);
        assert!(apply(unlisted.path(), &kernel(1)));
    }

    #[test]
    fn members_of_a_struct_do_not_overlap() {
        for a in TABLE {
            for b in TABLE {
                let apart = a.owner != b.owner
                    || a.member == b.member
                    || a.offset + a.size <= b.offset
                    || b.offset + b.size <= a.offset;
                assert!(apart, "{}: {} and {}", a.owner, a.member, b.member);
            }
        }
    }

    #[test]
    fn offsets_are_those_of_5_10() {
        let offset = |owner, member| find(owner, member).map(|entry| entry.offset);
        let conn = [
            ("af", 22),
            ("daf", 78),
            ("protocol", 76),
            ("caddr", 24),
            ("cport", 16),
            ("vaddr", 40),
            ("vport", 20),
            ("daddr", 56),
            ("dport", 18),
            ("flags", 72),
            ("state", 148),
            ("old_state", 150),
            ("timeout", 136),
            ("timer", 96),
            ("refcnt", 88),
            ("n_control", 176),
            ("control", 168),
            ("in_pkts", 192),
            ("dest", 184),
            ("ipvs", 80),
            ("fwmark", 152),
        ];
        for (member, expected) in conn {
            assert_eq!(offset("ip_vs_conn", member), Some(expected), "{member}");
        }
        assert_eq!(offset("netns_ipvs", "net"), Some(2160));
        assert_eq!(offset("netns_ipvs", "conn_count"), None);
    }
}
