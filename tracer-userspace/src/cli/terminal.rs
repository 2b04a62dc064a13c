//! What the terminal can show: colours, columns.

use std::io::IsTerminal as _;

use clap::ValueEnum;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ColorWhen {
    Auto,
    Always,
    Never,
}

impl ColorWhen {
    /// Whether to colour standard output: a terminal that is not dumb, unless NO_COLOR says no
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

/// Columns of the terminal behind a stream, if there is one that knows them.
pub fn columns(stream: impl std::os::fd::AsFd) -> Option<usize> {
    rustix::termios::tcgetwinsize(stream)
        .ok()
        .map(|size| usize::from(size.ws_col))
        // A terminal that was never told its size says 0.
        .filter(|columns| *columns > 0)
}

/// Columns for text that is read like a page.
pub fn page_width() -> usize {
    columns(std::io::stdout()).map_or(80, |columns| columns.clamp(40, 100))
}

/// Columns for stories on standard output: the terminal's, within what reads well, or a fixed width for
/// files and pipes.
pub fn page_columns() -> usize {
    columns(std::io::stdout()).map_or(100, |columns| columns.clamp(60, 160))
}
