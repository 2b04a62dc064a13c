//! Resolves the values that the eBPF object needs, on the running kernel.

use std::path::Path;

use anyhow::Context as _;

use super::{
    btf::load_kernel_btf, facts::Facts, ipvs_layout, manifest::Manifest, permission,
    resolve::resolve, symbols::KernelSymbols,
};

/// Modules whose types the object's facts refer to.
const MODULES: [&str; 2] = ["ip_vs", "nf_conntrack"];

/// Why tracing could not start, by exit code.
#[derive(Debug)]
pub enum StartError {
    /// Exit code 3.
    NotPermitted(anyhow::Error),
    /// Exit code 4.
    Unsupported(anyhow::Error),
    /// Exit code 1.
    Internal(anyhow::Error),
}

/// What can be attached, and the values that it needs.
pub struct Prepared {
    pub manifest: Manifest,
    pub facts: Facts,
}

/// Checks whether this host allows tracing at all.
///
/// # Errors
/// [`StartError`] with the missing capability, or with what the kernel forbids.
pub fn check_permission() -> Result<(), StartError> {
    permission::check(Path::new("/")).map_err(|refusal| match refusal {
        permission::Refusal::Missing { .. } | permission::Refusal::UserNamespace => {
            StartError::NotPermitted(refusal.into())
        }
        permission::Refusal::Lockdown => StartError::Unsupported(refusal.into()),
    })
}

/// Resolves every fact of `object` on the running kernel.
///
/// # Errors
/// [`StartError`] when the object is invalid, or the kernel has no usable BTF.
pub fn prepare(object: &[u8], symbols: Option<&KernelSymbols>) -> Result<Prepared, StartError> {
    if object.is_empty() {
        return Err(StartError::Internal(anyhow::anyhow!(
            "this build contains no eBPF object (build rsttrace with `cargo xtask build`)"
        )));
    }
    let root = Path::new("/");
    let manifest = Manifest::from_elf(object)
        .context("the embedded eBPF object is invalid")
        .map_err(StartError::Internal)?;
    let (vmlinux, modules) = load_kernel_btf(root, &MODULES)
        .context("cannot read the BTF of this kernel")
        .map_err(StartError::Unsupported)?;
    let built_in = ipvs_layout::apply(root, &vmlinux);
    let facts = resolve(&manifest, &vmlinux, &modules, built_in, symbols);
    Ok(Prepared { manifest, facts })
}
