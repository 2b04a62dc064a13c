//! The commands, one file each, and what they end with.

pub mod check;
pub mod doctor;
pub mod explain;
pub mod fix;
pub mod live;
pub mod plan;
pub mod record;
pub mod replay;
pub mod report;
mod show;
mod stderr;
mod stdout;
mod stream;
pub mod watch;

pub use stderr::say;

/// How a command ended, as the exit code tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Fine,
    /// Something that cannot happen did.
    Internal,
    /// What was asked for makes no sense on this host.
    Usage,
    /// A capability is missing.
    NotPermitted,
    /// This kernel cannot do it.
    Unsupported,
    /// What `--fail-on` was asked to find was found.
    Found,
}

impl Exit {
    /// The contract's number. Most usage errors are reported by the parser itself.
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

/// A command that could not do its work.
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
