//! What the terminal supports: colours and columns.

use std::io::IsTerminal as _;

use clap::ValueEnum;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ColorWhen {
    Auto,
    Always,
    Never,
}

impl ColorWhen {
    /// Whether to colour standard output. `Auto` colours a terminal that is not dumb, unless NO_COLOR is set
    /// (https://no-color.org).
    pub fn on_stdout(self) -> bool {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        match self {
            Self::Always => true,
            Self::Never => false,
            Self::Auto => {
                let dumb = set("TERM").is_none_or(|term| term == "dumb");
                !dumb && set("NO_COLOR").is_none() && std::io::stdout().is_terminal()
            }
        }
    }
}

/// Columns of the terminal behind a stream; `None` if it is not a terminal or has no known size.
pub fn columns(stream: impl std::os::fd::AsFd) -> Option<usize> {
    rustix::termios::tcgetwinsize(stream)
        .ok()
        .map(|size| usize::from(size.ws_col))
        // A terminal whose size was never set reports 0.
        .filter(|columns| *columns > 0)
}

/// Columns for a page of text, 40 to 100.
pub fn page_width() -> usize {
    columns(std::io::stdout()).map_or(80, |columns| columns.clamp(40, 100))
}

/// Columns for incidents on standard output: those of the terminal, within 60 to 160, or 100 for files and
/// pipes.
pub fn page_columns() -> usize {
    columns(std::io::stdout()).map_or(100, |columns| columns.clamp(60, 160))
}
