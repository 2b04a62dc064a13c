//! The settings that the host's configuration files and kube-proxy set.

use std::path::Path;

use rsttrace_model::configured::Configured;

mod drop_ins;
mod kube_proxy;
mod modules;
mod sysctl_d;

/// Reads the host's configuration files; `root` is `/` as pid 1 sees it. `release` is the kernel release
/// (`uname -r`).
#[must_use]
pub fn read(root: &Path, release: &str) -> Configured {
    let mut configured = Configured::default();
    sysctl_d::read(root, &mut configured);
    modules::read(root, release, &mut configured);
    kube_proxy::read(root, &mut configured);
    configured
}
