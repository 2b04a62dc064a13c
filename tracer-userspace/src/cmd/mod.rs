//! The commands, one file each, and their exit codes.

pub mod check;
pub mod doctor;
pub mod explain;
pub mod fix;
pub mod live;
pub mod plan;
pub mod record;
pub mod replay;
pub mod report;
pub mod schema;
mod show;
mod stderr;
mod stdout;
mod stream;
pub mod watch;

pub use stderr::say;

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Fine,
    /// An internal error, or input or output that failed.
    Internal,
    /// The arguments make no sense on this host.
    Usage,
    /// A capability is missing.
    NotPermitted,
    /// This kernel is not supported.
    Unsupported,
    /// `--fail-on` matched.
    Found,
}

impl Exit {
    /// The exit code. Most usage errors end in clap, with code 2 too.
    pub fn code(self) -> u8 {
        match self {
            Self::Fine => 0,
            Self::Internal => 1,
            Self::Usage => 2,
            Self::NotPermitted => 3,
            Self::Unsupported => 4,
            Self::Found => 5,
        }
    }
}

/// The error of a command, with its exit code.
#[derive(Debug)]
pub struct Failure {
    pub exit: Exit,
    pub error: anyhow::Error,
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self { exit: Exit::Internal, error }
    }
}
