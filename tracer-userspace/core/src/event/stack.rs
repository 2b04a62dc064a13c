//! Call stacks of the kernel.

/// Kernel function names, innermost first.
pub type Stack = Vec<Box<str>>;

/// Whether a stack contains a function (or a part that gcc split off, such as `ip_vs_flush.isra.0`).
pub fn has(stack: &[Box<str>], function: &str) -> bool {
    stack.iter().any(|name| {
        name.strip_prefix(function).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    })
}
