//! Checks permissions, resolves facts and attaches hooks: the start of every tracing command.

use std::{collections::BTreeMap, io::ErrorKind};

use anyhow::anyhow;
use rsttrace_core::event::SignalCoverage;

use super::{
    attach::{AttachOptions, Attached, Kprobes, attach, io_kind},
    prepare::{Prepared, StartError, check_permission, prepare},
    running::SymbolTable,
    signal,
};

/// Attached hooks, and what was read from the kernel for them.
pub struct Started {
    pub attached: Attached,
    pub symbols: SymbolTable,
    /// Names of `enum sk_rst_reason`.
    pub reasons: BTreeMap<u32, String>,
}

/// Attaches every signal that this kernel supports.
///
/// # Errors
/// [`StartError`] when tracing cannot start at all.
pub fn start(object: &[u8], options: &AttachOptions) -> Result<Started, StartError> {
    check_permission()?;
    let symbols = SymbolTable::start();
    // Symbol addresses are only needed where kprobes are not used or drops have no reason, and loading them takes time.
    let needed = options.kprobes != Kprobes::Use || !drops_have_reasons();
    let symbols = if needed { symbols.wait() } else { symbols };
    let Prepared { manifest, facts } = prepare(object, symbols.get())?;
    let reasons = facts.reason_names("sk_rst_reason").cloned().unwrap_or_default();
    let attached = attach(object, &manifest, &facts, options).map_err(refusal)?;
    if !attached.coverage().any(|coverage| traces_resets(&coverage)) {
        let refused: Vec<_> =
            attached.refused.iter().map(|it| format!("{}: {}", it.program, it.why)).collect();
        return Err(StartError::Unsupported(anyhow!(
            "no hook that traces resets could be attached to this kernel: {}",
            refused.join("; ")
        )));
    }
    Ok(Started { attached, symbols, reasons })
}

/// Whether the kernel says why it drops a packet (5.17 and Debian's 6.1 on): the tracepoint's format names the reason.
fn drops_have_reasons() -> bool {
    ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"].iter().any(|root| {
        let format = std::fs::read_to_string(format!("{root}/events/skb/kfree_skb/format"));
        format.is_ok_and(|text| text.contains("reason"))
    })
}

/// A namespace, a seccomp filter or a security module can forbid what the capabilities allow.
fn refusal(error: anyhow::Error) -> StartError {
    match io_kind(&error) {
        Some(ErrorKind::PermissionDenied) => StartError::NotPermitted(error.context(
            "this process may not load eBPF programs despite its capabilities (check the container's \
             seccomp filter and the security modules)",
        )),
        _ => StartError::Internal(error),
    }
}

fn traces_resets(coverage: &SignalCoverage) -> bool {
    signal::ESSENTIAL.contains(&coverage.id.as_str()) && coverage.way.is_some()
}
