//! What is said after an apply.

use rsttrace_apply::journal::About;

use super::*;

fn journal() -> Journal {
    let about = About {
        id: "20261201-030000".into(),
        boot_id: String::new(),
        when: String::new(),
        cause: None,
        fix: "raise_conntrack_max".into(),
    };
    Journal { about, items: Vec::new() }
}

#[test]
fn an_apply_that_kube_proxy_undoes_is_not_called_verified_without_saying_so() {
    let undone = ["nf_conntrack_max: kube-proxy writes 131072 when it starts\u{1b}".to_owned()];
    let text = applied_text(&journal(), &undone);
    assert!(text.contains("only until kube-proxy's next start"), "{text}");
    assert!(text.contains("kube-proxy writes 131072 when it starts\\u{1b}"), "{text}");
    assert!(already_text("raise_conntrack_max", &undone).contains("kube-proxy writes 131072"));
    assert_eq!(applied_json(&journal(), &undone)["undone"], json!(undone));
    let text = applied_text(&journal(), &[]);
    assert!(text.starts_with("raise_conntrack_max was applied and verified, as "), "{text}");
    assert!(applied_json(&journal(), &[]).get("undone").is_none());
    assert!(already_json("raise_conntrack_max", &[]).get("undone").is_none());
}
