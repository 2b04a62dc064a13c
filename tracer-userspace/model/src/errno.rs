//! Errors that a TCP socket can get (asm-generic/errno.h).

/// EPIPE, ECONNRESET, ETIMEDOUT, ECONNREFUSED (asm-generic/errno.h).
pub const EPIPE: u32 = 32;

/// See [`EPIPE`].
pub const ECONNRESET: u32 = 104;

/// See [`EPIPE`].
pub const ETIMEDOUT: u32 = 110;

/// See [`EPIPE`].
pub const ECONNREFUSED: u32 = 111;

/// See [`EPIPE`].
pub const ECONNABORTED: u32 = 103;

/// Symbolic name of a positive errno (asm-generic/errno.h), for the errors that a TCP socket can get.
pub fn errno_name(errno: u32) -> Option<&'static str> {
    Some(match errno {
        32 => "EPIPE",
        71 => "EPROTO",
        100 => "ENETDOWN",
        101 => "ENETUNREACH",
        103 => "ECONNABORTED",
        104 => "ECONNRESET",
        110 => "ETIMEDOUT",
        111 => "ECONNREFUSED",
        112 => "EHOSTDOWN",
        113 => "EHOSTUNREACH",
        _ => return None,
    })
}

/// [`errno_name`], or the number where it has no name here.
pub fn errno_text(errno: u32) -> String {
    errno_name(errno).map_or_else(|| format!("errno {errno}"), str::to_owned)
}
