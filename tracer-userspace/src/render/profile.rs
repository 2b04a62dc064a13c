//! Well-known advice line by line, for `rsttrace fix --profile`.

use rsttrace_apply::article::{LINES, Verdict, effects};
use rsttrace_core::causes::scene::Scene;
use serde_json::{Value, json};

use super::page::{Page, Style};

/// What would be left of it on a fresh node with kube-proxy in IPVS mode.
const ALTOGETHER: &str = "\
Applied as written to a fresh kube-proxy node in IPVS mode, it changes IPVS's TCP timeout from 900 to 7200 \
until the next reboot, conntrack's established timeout until kube-proxy's next start, keepalive's probes for \
the host alone, and fills the table with UDP. Database connections that are silent for less than two hours \
then survive, because of the one 7200 of ipvsadm; longer ones still break.";

fn style(verdict: Verdict) -> Style {
    match verdict {
        Verdict::RightWhen => Style::Green,
        Verdict::NoOp => Style::Dim,
        Verdict::Wrong => Style::Red,
        Verdict::Incomplete => Style::Yellow,
    }
}

/// The page.
pub fn text(scene: &Scene<'_>, color: bool, width: usize) -> String {
    let mut page = Page::new(color, width);
    let title =
        "Resolving DB Connection Error (ECONNRESET) Issues: its settings, and what they do here";
    page.paragraph(&[], "", &[(Style::Bold, title)]);
    for line in LINES {
        page.blank();
        page.verbatim("  ", line.text);
        for effect in effects(line, scene) {
            page.labelled("  here", Style::Dim, &effect);
        }
        page.labelled(line.verdict.id(), style(line.verdict), line.because);
        page.labelled("  instead", Style::Dim, line.instead);
    }
    page.blank();
    page.labelled("ALTOGETHER", Style::Bold, ALTOGETHER);
    page.finish().unwrap_or_default()
}

/// The same as one JSON object.
pub fn json(scene: &Scene<'_>) -> Value {
    let lines: Vec<Value> = (LINES.iter())
        .map(|line| {
            json!({
                "text": line.text,
                "here": effects(line, scene),
                "verdict": line.verdict.id(),
                "because": line.because,
                "instead": line.instead,
            })
        })
        .collect();
    json!({"profile": "article", "lines": lines, "altogether": ALTOGETHER})
}

#[cfg(test)]
mod tests {
    use super::*;
    use rsttrace_model::host_state::HostState;

    #[test]
    fn every_line_of_the_article_is_printed_and_nothing_is_broader_than_the_page() {
        let view = HostState::default();
        let text = text(&Scene::of(&view), false, 80);
        assert!(LINES.iter().all(|line| text.contains(line.text)), "{text}");
        assert_eq!(text.lines().find(|line| line.chars().count() > 80), None);
    }
}
