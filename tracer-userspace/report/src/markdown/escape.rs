//! Escapes hostile text for Markdown, so that it cannot mark up, link or end a table cell. Line ends and
//! control characters are spelled out before, by [`Text`](crate::text::Text).

/// Escapes a sentence for any position in a line. Characters that cannot be markup stay unescaped, because
/// Markdown is also read as plain text.
pub fn text(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    let mut before = None;
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        let after = rest.as_str().chars().next();
        let inside_word = [before, after].iter().all(|c| c.is_some_and(char::is_alphanumeric));
        let marks_up = match c {
            '\\' | '`' | '*' | '[' | ']' | '<' | '|' | '~' | '$' | '&' | '@' => true,
            // Emphasis does not begin within a word, and ids are full of them.
            '_' => !inside_word,
            // At the start of an item these begin a heading, a list or a quote.
            '#' | '+' | '-' | '>' | '=' => before.is_none(),
            '.' | ')' => is_number_at_start(text, text.len() - rest.as_str().len() - 1),
            // Links without brackets (autolinks).
            ':' => {
                after == Some('/')
                    || before.is_some_and(char::is_alphabetic)
                        && after.is_some_and(char::is_alphabetic)
            }
            _ => false,
        } || c == '.' && ends_with_www(&safe);
        if marks_up {
            safe.push('\\');
        }
        safe.push(c);
        before = Some(c);
    }
    safe
}

/// [`text`] in bold. Blanks are trimmed, because bold text must not begin or end with one.
pub fn bold(sentence: &str) -> String {
    match sentence.trim() {
        "" => String::new(),
        sentence => format!("**{}**", text(sentence)),
    }
}

/// Whether the text starts with "1." or "1)", which begins a list.
fn is_number_at_start(text: &str, end: usize) -> bool {
    let number = &text[..end];
    let ends = text[end + 1..].chars().next().is_none_or(char::is_whitespace);
    !number.is_empty() && ends && number.bytes().all(|b| b.is_ascii_digit())
}

fn ends_with_www(text: &str) -> bool {
    text.get(text.len().saturating_sub(3)..).is_some_and(|end| end.eq_ignore_ascii_case("www"))
}

/// A run of at least `least` backticks that is longer than any run in `text`.
fn fence(text: &str, least: usize) -> String {
    let longest = text.split(|c| c != '`').map(str::len).max().unwrap_or_default();
    "`".repeat((longest + 1).max(least))
}

/// Inline code.
pub fn code(text: &str) -> String {
    let fence = fence(text, 1);
    // A backtick at either end would join the fence. The space that separates them is not rendered.
    match text.starts_with('`') || text.ends_with('`') || text.trim().is_empty() {
        true => format!("{fence} {text} {fence}"),
        false => format!("{fence}{text}{fence}"),
    }
}

/// A code block.
pub fn fenced<'a>(lines: impl IntoIterator<Item = &'a str>) -> String {
    let lines: Vec<&str> = lines.into_iter().collect();
    let text = lines.join("\n");
    let fence = fence(&text, 3);
    format!("{fence}text\n{text}\n{fence}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markup_is_escaped() {
        for (hostile, safe) in [
            ("a|b", "a\\|b"),
            ("<b>x</b>", "\\<b>x\\</b>"),
            ("[x](y)", "\\[x\\](y)"),
            ("`id`", "\\`id\\`"),
            ("**bold** _it_", "\\*\\*bold\\*\\* \\_it\\_"),
            ("a\\", "a\\\\"),
            ("&lt;", "\\&lt;"),
            ("# heading", "\\# heading"),
            ("- item", "\\- item"),
            ("> quote", "\\> quote"),
            ("1. item", "1\\. item"),
            ("12) item", "12\\) item"),
            ("http://example.org", "http\\://example.org"),
            ("www.example.org", "www\\.example.org"),
            ("mailto:x", "mailto\\:x"),
            ("@everyone", "\\@everyone"),
            ("$x$", "\\$x\\$"),
        ] {
            assert_eq!(text(hostile), safe);
        }
    }

    #[test]
    fn addresses_ids_and_sentences_stay_readable() {
        for plain in [
            "10.1.1.2:40001 -> 10.96.12.8:3306 reset after 973 s idle: ipvs_idle_expired (limit 900 s)",
            "[2001"[1..].into(),
            "net.ipv4.tcp_keepalive_time=900 (equal timeouts)",
        ] {
            assert_eq!(text(plain), plain);
        }
    }

    #[test]
    fn a_backtick_does_not_end_code() {
        assert_eq!(code("a"), "`a`");
        assert_eq!(code("a``b"), "```a``b```");
        assert_eq!(code("`"), "`` ` ``");
        assert_eq!(fenced(["a", "```", "b"]), "````text\na\n```\nb\n````\n");
    }
}
