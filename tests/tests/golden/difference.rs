//! How a replay differs from its golden file: in the sentences that people read, or in the verdict.

use serde_json::Value;

/// Fields that hold sentences; all others are the verdict.
const SENTENCES: [&str; 8] =
    ["message", "summary", "because", "reason", "advice", "what", "blind_spots", "prove"];

/// Fields of these names that are words for machines.
const WORDS: [&str; 2] = ["/event/reason", "/rsttrace/rst/reason"];

/// The version of the schema, which a new field or cause raises.
const VERSION: &str = "/rsttrace/schema";

/// What changed between two streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Difference {
    None,
    /// Sentences or the version of the schema only: causes, confidences, victims, tuples, ids, numbers and their order are the same.
    Text,
    Verdict,
}

pub fn between(old: &str, new: &str) -> Difference {
    if old == new {
        return Difference::None;
    }
    if old.lines().count() != new.lines().count() {
        return Difference::Verdict;
    }
    let parse = |line| serde_json::from_str::<Value>(line).unwrap_or_default();
    let lines = old.lines().zip(new.lines());
    lines.map(|(old, new)| values(&parse(old), &parse(new), "")).max().unwrap_or(Difference::None)
}

fn values(old: &Value, new: &Value, path: &str) -> Difference {
    match (old, new) {
        (Value::Object(old), Value::Object(new)) if old.keys().eq(new.keys()) => {
            let fields = old.iter().zip(new.values());
            let each = fields.map(|((key, old), new)| values(old, new, &format!("{path}/{key}")));
            each.max().unwrap_or(Difference::None)
        }
        (Value::Array(old), Value::Array(new)) if old.len() == new.len() => {
            let items = old.iter().zip(new).map(|(old, new)| values(old, new, path));
            items.max().unwrap_or(Difference::None)
        }
        // Equal objects may still have their keys in another order.
        (Value::Object(_), _) => Difference::Verdict,
        _ if old == new => Difference::None,
        (Value::String(old), Value::String(new)) => {
            let field = path.rsplit('/').next().unwrap_or_default();
            let sentence = SENTENCES.contains(&field) && !WORDS.contains(&path);
            let same_file = path.ends_with("/persist/text") && settings(old).eq(settings(new));
            if sentence || same_file || path == VERSION {
                Difference::Text
            } else {
                Difference::Verdict
            }
        }
        _ => Difference::Verdict,
    }
}

/// The lines of a configuration file that are not for people.
fn settings(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter(|line| !line.starts_with('#') && !line.starts_with("Description="))
}

#[test]
fn a_new_sentence_is_text_and_a_new_number_word_or_order_is_a_verdict() {
    let old = r#"{"message":"a","event":{"reason":"x"},"rsttrace":{"idle_s":1.0,"prove":"b"}}"#;
    let is = |from: &str, to: &str| between(old, &old.replace(from, to));
    assert_eq!(is("none", ""), Difference::None);
    assert_eq!(is(r#""b""#, r#""c""#), Difference::Text);
    let version = |of: &str| format!(r#"{{"rsttrace":{{"schema":"{of}"}}}}"#);
    assert_eq!(between(&version("1.0"), &version("1.1")), Difference::Text);
    assert_eq!(is(r#""x""#, r#""y""#), Difference::Verdict, "event.reason is a word");
    assert_eq!(is("1.0", "2.0"), Difference::Verdict);
    assert_eq!(
        is(r#""idle_s":1.0,"prove":"b""#, r#""prove":"b","idle_s":1.0"#),
        Difference::Verdict
    );
    assert_eq!(between(old, ""), Difference::Verdict);
}
