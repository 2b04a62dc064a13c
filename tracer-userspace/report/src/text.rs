//! Text from a file, which may hold anything.

use rsttrace_model::escape::terminal;
use schemars::JsonSchema;
use serde::Serialize;

/// Longest text in characters; no text of an event is longer, because its line stays below 12 KiB.
const LONGEST: usize = 4096;

/// One line of text that cannot move the cursor or reorder text: control and format characters are spelled
/// out when it is created. Markup of HTML or Markdown is not escaped yet.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, JsonSchema)]
#[serde(transparent)]
pub struct Text(String);

impl Text {
    pub fn new(text: &str) -> Self {
        let safe = terminal(text);
        Self(match safe.char_indices().nth(LONGEST) {
            Some((end, _)) => format!("{}…", &safe[..end]),
            None => safe,
        })
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for Text {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Self::new(text)
    }
}

impl From<String> for Text {
    fn from(text: String) -> Self {
        Self::new(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_an_escape_sequence_or_a_line_end_is_spelled_out() {
        assert_eq!(Text::new("a\u{1b}[2J\nb\u{202e}").as_str(), "a\\u{1b}[2J\\u{a}b\\u{202e}");
    }

    #[test]
    fn a_very_long_name_is_cut() {
        let text = Text::new(&"größe".repeat(10_000));
        assert_eq!(text.as_str().chars().count(), LONGEST + 1);
    }
}
