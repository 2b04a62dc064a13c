//! Embeds the eBPF object that `cargo xtask build` made. Without one (a plain `cargo check`) the
//! library still builds and everything but attaching works.

use std::{env, fs, path::PathBuf};

fn main() -> std::io::Result<()> {
    println!("cargo::rerun-if-env-changed=RSTTRACE_EBPF_OBJECT");
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or(std::io::ErrorKind::NotFound)?);
    let object = match env::var_os("RSTTRACE_EBPF_OBJECT") {
        Some(path) => {
            println!("cargo::rerun-if-changed={}", path.display());
            fs::read(path)?
        }
        None => Vec::new(),
    };
    fs::write(out.join("tracer"), object)
}
