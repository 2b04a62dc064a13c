//! From nothing to attached hooks, for whoever traces.

use std::{collections::BTreeMap, io::ErrorKind};

use anyhow::anyhow;
use rsttrace_core::event::SignalCoverage;

use super::{
    attach::{AttachOptions, Attached, Kprobes, attach, io_kind},
    prepare::{Prepared, StartError, check_permission, prepare},
    running::SymbolTable,
    signal,
};

/// Attached hooks, and what was learnt on the way.
pub struct Started {
    pub attached: Attached,
    pub symbols: SymbolTable,
    /// Names of `enum sk_rst_reason`.
    pub reasons: BTreeMap<u32, String>,
}

/// Attaches everything this kernel can give.
///
/// # Errors
/// [`StartError`] when tracing cannot start at all.
pub fn start(object: &[u8], options: &AttachOptions) -> Result<Started, StartError> {
    check_permission()?;
    let symbols = SymbolTable::start();
    // Addresses are only needed for the way without kprobes; waiting for them costs time.
    let symbols = if options.kprobes == Kprobes::Use { symbols } else { symbols.wait() };
    let Prepared { manifest, facts } = prepare(object, symbols.get())?;
    let reasons = facts.reason_names("sk_rst_reason").cloned().unwrap_or_default();
    let attached = attach(object, &manifest, &facts, options).map_err(refusal)?;
    if !attached.coverage().any(|coverage| shows_resets(&coverage)) {
        let refused: Vec<_> =
            attached.refused.iter().map(|it| format!("{}: {}", it.program, it.why)).collect();
        return Err(StartError::Unsupported(anyhow!(
            "no hook that sees a reset could be attached to this kernel: {}",
            refused.join("; ")
        )));
    }
    Ok(Started { attached, symbols, reasons })
}

/// A namespace or a seccomp filter can forbid what the capabilities allow.
fn refusal(error: anyhow::Error) -> StartError {
    match io_kind(&error) {
        Some(ErrorKind::PermissionDenied) => StartError::NotPermitted(error.context(
            "this process may not load eBPF programs, whatever its capabilities say (a container's \
             seccomp filter, or a security module)",
        )),
        _ => StartError::Internal(error),
    }
}

fn shows_resets(coverage: &SignalCoverage) -> bool {
    signal::ESSENTIAL.contains(&coverage.id.as_str()) && coverage.way.is_some()
}
