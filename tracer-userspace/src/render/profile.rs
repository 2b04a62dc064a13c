//! Renders widely used advice line by line, for `rsttrace fix --profile`.

use rsttrace_apply::article::{LINES, Rating, effects};
use rsttrace_core::causes::fix_context::FixContext;
use serde_json::{Value, json};

use super::page::{Page, Style};

/// The total effect on a fresh node with kube-proxy in IPVS mode.
const TOTAL: &str = "\
Applied as written to a fresh kube-proxy node in IPVS mode, the article changes IPVS's TCP timeout from 900 to \
7200 until the next reboot, conntrack's established timeout until kube-proxy's next start, and the keepalive \
probes for the host alone. It also fills the table with UDP. Database connections that are idle for less than \
two hours then survive because of ipvsadm's 7200. Connections that are idle for longer still break.";

fn style(rating: Rating) -> Style {
    match rating {
        Rating::HelpsIf => Style::Green,
        Rating::NoEffect => Style::Dim,
        Rating::Harmful => Style::Red,
        Rating::Incomplete => Style::Yellow,
    }
}

/// Renders the page.
pub fn text(context: &FixContext<'_>, color: bool, width: usize) -> String {
    let mut page = Page::new(color, width);
    let title =
        "Resolving DB Connection Error (ECONNRESET) Issues: its settings, and what they do here";
    page.paragraph(&[], "", &[(Style::Bold, title)]);
    for line in LINES {
        page.blank();
        page.verbatim("  ", line.text);
        for effect in effects(line, context) {
            page.labelled("  here", Style::Dim, &effect);
        }
        page.labelled(line.rating.label(), style(line.rating), line.because);
        page.labelled("  instead", Style::Dim, line.instead);
    }
    page.blank();
    page.labelled("TOTAL", Style::Bold, TOTAL);
    page.finish().unwrap_or_default()
}

/// The same as [`text`], as one JSON object.
pub fn json(context: &FixContext<'_>) -> Value {
    let lines: Vec<Value> = (LINES.iter())
        .map(|line| {
            json!({
                "text": line.text,
                "here": effects(line, context),
                "verdict": line.rating.id(),
                "because": line.because,
                "instead": line.instead,
            })
        })
        .collect();
    json!({"profile": "article", "lines": lines, "altogether": TOTAL})
}

#[cfg(test)]
mod tests {
    use super::*;
    use rsttrace_model::host_state::HostState;

    #[test]
    fn every_line_of_the_article_is_printed_and_no_line_is_wider_than_the_page() {
        let view = HostState::default();
        let text = text(&FixContext::of(&view), false, 80);
        assert!(LINES.iter().all(|line| text.contains(line.text)), "{text}");
        assert_eq!(text.lines().find(|line| line.chars().count() > 80), None);
    }
}
