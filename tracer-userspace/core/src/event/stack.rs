//! Call stacks of the kernel.

/// Kernel function names, innermost first.
pub type Stack = Vec<Box<str>>;

/// Whether a stack passes through a function (or the part of it that gcc split off).
pub fn has(stack: &[Box<str>], function: &str) -> bool {
    stack.iter().any(|name| {
        name.strip_prefix(function).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    })
}
