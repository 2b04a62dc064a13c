//! What the machine's files and kube-proxy say that the settings should be.

use std::path::Path;

use rsttrace_model::configured::Configured;

mod drop_ins;
mod kube_proxy;
mod modules;
mod sysctl_d;

/// Reads the machine's files; `root` is `/` as pid 1 sees it. `release` is that of the kernel.
#[must_use]
pub fn read(root: &Path, release: &str) -> Configured {
    let mut configured = Configured::default();
    sysctl_d::read(root, &mut configured);
    modules::read(root, release, &mut configured);
    kube_proxy::read(root, &mut configured);
    configured
}
