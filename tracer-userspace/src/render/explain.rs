//! The documentation of causes, for `rsttrace explain` and `--help`.

use rsttrace_core::{
    causes::{self, cause::Cause, doc::RequiredSignal},
    verdict::Family,
};
use serde_json::{Value, json};

use super::page::{Page, Style};

/// Columns of the ids in the list, with the gap after them.
const ID: usize = 24;

/// All causes by family, one per line.
pub fn list(color: bool, width: usize) -> String {
    let mut page = Page::new(color, width);
    let hang = " ".repeat(2 + ID);
    for family in Family::ALL {
        page.paragraph(
            &[(Style::Bold, family.id())],
            "",
            &[(Style::Dim, &format!(": {}", family.title()))],
        );
        for cause in causes::ALL.iter().filter(|cause| cause.family == family) {
            let head = format!("  {:ID$}", cause.id);
            page.paragraph(&[(Style::Plain, &head)], &hang, &[(Style::Plain, cause.title)]);
        }
    }
    page.finish().unwrap_or_default()
}

/// The ids alone, by family.
pub fn ids(width: usize) -> String {
    let mut page = Page::new(false, width);
    let hang = " ".repeat(20);
    for family in Family::ALL {
        let ids: Vec<_> = causes::ALL
            .iter()
            .filter(|cause| cause.family == family)
            .map(|cause| (Style::Plain, cause.id))
            .collect();
        page.paragraph(&[(Style::Plain, &format!("  {:18}", family.id()))], &hang, &ids);
    }
    page.finish().unwrap_or_default()
}

/// The documentation of one cause.
pub fn text(cause: &Cause, color: bool, width: usize) -> String {
    let doc = &cause.doc;
    let mut page = Page::new(color, width);
    let family = format!("({})", cause.family.id());
    page.paragraph(&[], "", &[(Style::Bold, cause.id), (Style::Dim, &family)]);
    page.paragraph(&[(Style::Plain, "  ")], "  ", &[(Style::Plain, cause.title)]);
    page.blank();
    page.labelled("WHAT", Style::Bold, doc.about);
    for detection in doc.detections {
        let needs: Vec<_> = detection.needs.iter().map(RequiredSignal::to_string).collect();
        let text = format!("{} (signals: {})", detection.evidence, needs.join(", "));
        page.labelled(&detection.confidence.id().to_uppercase(), Style::Bold, &text);
    }
    for (what, difference) in doc.mistaken_for {
        page.labelled("NOT THIS", Style::Yellow, &format!("{what}: {difference}"));
    }
    for (index, fix) in doc.fixes.iter().enumerate() {
        let text = format!("[{}] {}", fix.owner.id(), fix.summary);
        page.labelled(&format!("FIX {}", index + 1), Style::Green, &text);
        page.labelled("  how", Style::Dim, fix.how);
        page.labelled("  why", Style::Dim, fix.reason);
    }
    for (what, because) in doc.not_fixes {
        page.labelled("NOT A FIX", Style::Dim, &format!("{what}: {because}"));
    }
    page.finish().unwrap_or_default()
}

/// The documentation of one cause as a JSON object.
pub fn json(cause: &Cause) -> Value {
    let doc = &cause.doc;
    let need = |need: &RequiredSignal| json!({"id": need.signal(), "in_full": matches!(need, RequiredSignal::Full(_))});
    json!({
        "cause": cause.id,
        "family": cause.family.id(),
        "title": cause.title,
        "about": doc.about,
        "recognised": doc.detections.iter().map(|detection| json!({
            "confidence": detection.confidence.id(),
            "evidence": detection.evidence,
            "signals": detection.needs.iter().map(need).collect::<Vec<_>>(),
        })).collect::<Vec<_>>(),
        "mistaken_for": doc.mistaken_for.iter().map(|(what, difference)| {
            json!({"what": what, "how_to_tell": difference})
        }).collect::<Vec<_>>(),
        "fixes": doc.fixes.iter().map(|fix| json!({
            "id": fix.id,
            "owner": fix.owner.id(),
            "risk": fix.risk.id(),
            "summary": fix.summary,
            "reason": fix.reason,
            "how": fix.how,
        })).collect::<Vec<_>>(),
        "not_fixes": doc.not_fixes.iter().map(|(what, because)| {
            json!({"what": what, "because": because})
        }).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_line_is_wider_than_the_page() {
        for width in [80, 120] {
            let all: String = causes::ALL.iter().map(|cause| text(cause, false, width)).collect();
            let all = all + &list(false, width);
            let wide = all.lines().find(|line| line.chars().count() > width);
            assert_eq!(wide, None, "at {width} columns");
        }
    }

    #[test]
    fn the_text_and_the_json_contain_every_fix_and_not_fix() {
        for cause in causes::ALL {
            let text = text(cause, false, 2000);
            let json = json(cause).to_string();
            let doc = &cause.doc;
            let fixes = doc.fixes.iter().flat_map(|fix| [fix.summary, fix.how, fix.reason]);
            let not_fixes = doc.not_fixes.iter().flat_map(|(what, because)| [*what, *because]);
            for part in fixes.chain(not_fixes).chain([doc.about]) {
                assert!(text.contains(part), "{cause:?}: {part}");
                assert!(json.contains(part), "{cause:?}: {part}");
            }
        }
    }

    #[test]
    fn the_list_holds_every_cause_under_its_family() {
        let list = list(false, 80);
        for cause in causes::ALL {
            let family = list.find(cause.family.id()).expect("the family");
            let id = list.find(&format!("\n  {} ", cause.id)).expect("the cause");
            assert!(family < id, "{cause:?}");
        }
    }
}
