//! Text for a terminal: escaped, coloured and wrapped in one place, so that no untrusted text reaches the
//! terminal unescaped.

use rsttrace_model::escape::terminal;

/// The style of a piece of text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    Plain,
    Bold,
    Red,
    Green,
    Yellow,
    Dim,
}

impl Style {
    /// Parameters of the SGR sequence.
    fn sgr(self) -> Option<&'static str> {
        match self {
            Self::Plain => None,
            Self::Bold => Some("1"),
            Self::Red => Some("1;31"),
            Self::Green => Some("32"),
            Self::Yellow => Some("33"),
            Self::Dim => Some("2"),
        }
    }
}

/// A piece of text in one style; the text may be untrusted.
pub type Span<'a> = (Style, &'a str);

/// Columns of a label such as `NOT A FIX`, with the margin before it.
const LABEL: usize = 13;

/// Margin of the lines that follow a labelled line.
pub const HANG: &str = "             ";

/// Builds the lines of a page.
pub struct Page {
    color: bool,
    width: usize,
    text: String,
}

impl Page {
    /// An empty page of this many columns.
    pub fn new(color: bool, width: usize) -> Self {
        Self { color, width, text: String::new() }
    }

    /// The finished lines; `None` when there are none.
    pub fn finish(self) -> Option<String> {
        (!self.text.is_empty()).then_some(self.text)
    }

    /// A paragraph: `head` unbroken, then `body` wrapped at spaces, with `hang` before each further line.
    /// A space separates the spans of the body.
    pub fn paragraph(&mut self, head: &[Span<'_>], hang: &str, body: &[Span<'_>]) {
        let mut column = 0;
        for (style, text) in head {
            column += self.put(*style, &terminal(text));
        }
        let mut fresh = true;
        for (style, text) in body {
            for word in terminal(text).split(' ') {
                if !fresh && column + 1 + word.chars().count() > self.width {
                    self.text.push('\n');
                    column = self.put(Style::Plain, hang);
                } else if !fresh {
                    column += self.put(Style::Plain, " ");
                }
                column += self.put(*style, word);
                fresh = false;
            }
        }
        self.text.push('\n');
    }

    /// A paragraph after a label in the margin.
    pub fn labelled(&mut self, label: &str, style: Style, text: &str) {
        let gap = " ".repeat(LABEL.saturating_sub(2 + label.chars().count()).max(1));
        let head = [(Style::Plain, "  "), (style, label), (Style::Plain, gap.as_str())];
        self.paragraph(&head, HANG, &[(Style::Plain, text)]);
    }

    /// A line to copy, after a label in the margin.
    pub fn labelled_verbatim(&mut self, label: &str, style: Style, line: &str) {
        let gap = " ".repeat(LABEL.saturating_sub(2 + label.chars().count()).max(1));
        self.put(Style::Plain, "  ");
        self.put(style, label);
        self.verbatim(&gap, line);
    }

    /// An empty line.
    pub fn blank(&mut self) {
        self.text.push('\n');
    }

    /// A line to copy: never wrapped.
    pub fn verbatim(&mut self, indent: &str, line: &str) {
        self.put(Style::Plain, indent);
        self.put(Style::Plain, &terminal(line));
        self.text.push('\n');
    }

    /// Appends escaped text and returns its number of columns.
    fn put(&mut self, style: Style, safe: &str) -> usize {
        match style.sgr().filter(|_| self.color && !safe.is_empty()) {
            Some(sgr) => {
                for part in ["\u{1b}[", sgr, "m", safe, "\u{1b}[0m"] {
                    self.text.push_str(part);
                }
            }
            None => self.text.push_str(safe),
        }
        safe.chars().count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(color: bool, body: &[Span<'_>]) -> String {
        let mut page = Page::new(color, 20);
        page.paragraph(&[(Style::Bold, "head: ")], "      ", body);
        page.finish().expect("a line")
    }

    #[test]
    fn colours_do_not_change_where_lines_break() {
        let body = [(Style::Red, "one two three"), (Style::Plain, "four five")];
        let plain = page(false, &body);
        assert_eq!(plain, "head: one two three\n      four five\n");
        let mut coloured = page(true, &body);
        for code in ["\u{1b}[1m", "\u{1b}[1;31m", "\u{1b}[0m"] {
            coloured = coloured.replace(code, "");
        }
        assert_eq!(coloured, plain);
    }

    #[test]
    fn a_line_to_copy_is_not_wrapped() {
        let mut page = Page::new(false, 10);
        page.verbatim("  ", "sysctl -w net.ipv4.tcp_keepalive_time=300");
        let text = page.finish();
        assert_eq!(text.as_deref(), Some("  sysctl -w net.ipv4.tcp_keepalive_time=300\n"));
    }

    #[test]
    fn hostile_text_is_escaped_in_every_position() {
        let hostile = "\u{1b}[2J\u{202e}\n";
        let mut page = Page::new(false, 80);
        page.paragraph(&[(Style::Plain, hostile)], "", &[(Style::Plain, hostile)]);
        page.verbatim("", hostile);
        let text = page.finish().expect("lines");
        assert!(!text.contains(['\u{1b}', '\u{202e}']), "{text}");
        assert_eq!(text.lines().count(), 2);
    }
}
