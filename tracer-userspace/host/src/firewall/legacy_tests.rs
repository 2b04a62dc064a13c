//! Tables that iptables-legacy 1.8.9 made on Linux 6.18: the name of the tool and of the table, `struct
//! ipt_getinfo` and the entries, in hexadecimal.

use proptest::prelude::*;
use rsttrace_model::firewall::Firewall;

use super::*;

const DUMP: &str = include_str!("legacy-6.18.txt");

fn bytes(hex: &str) -> Vec<u8> {
    let byte = |at| u8::from_str_radix(hex.get(at..at + 2)?, 16).ok();
    (0..hex.len()).step_by(2).filter_map(byte).collect()
}

/// Layout, name, info and entries of each table.
pub fn tables() -> Vec<(Layout, String, Vec<u8>, Vec<u8>)> {
    let of_line = |line: &str| {
        let mut words = line.split(' ');
        let layout = if words.next()? == "iptables" { V4 } else { V6 };
        Some((layout, words.next()?.to_owned(), bytes(words.next()?), bytes(words.next()?)))
    };
    DUMP.lines().filter_map(of_line).collect()
}

fn decoded() -> Firewall {
    let mut reader = Reader::default();
    for (layout, table, info, block) in tables() {
        decode(&layout, &table, &info, &block, &mut reader).expect("valid");
    }
    reader.finish()
}

#[test]
fn rules_of_iptables_legacy_are_found_with_their_hooks() {
    let found = decoded();
    let summary = |hook: Hook| -> Vec<String> {
        let at = found.invalid.iter().filter(|rule| rule.hooks.contains(&hook));
        at.map(|it| format!("{} {:?}{}", it.at, it.answer, if it.narrowed { " if" } else { "" }))
            .collect()
    };
    assert_eq!(
        summary(Hook::Forward),
        ["ip6tables filter FORWARD rule 1 Reset if", "iptables filter KUBE-FORWARD rule 1 Drop",]
    );
    assert_eq!(
        summary(Hook::Input),
        ["iptables filter INPUT rule 1 Drop if", "iptables filter INPUT rule 2 Reset"]
    );
    assert_eq!(found.invalid.len(), 4);
}

#[test]
fn policies_and_masquerading_of_iptables_legacy_are_found() {
    let found = decoded();
    assert!(found.translates);
    let drops: Vec<_> = found.drop_policies.iter().map(|it| it.chain.to_string()).collect();
    assert_eq!(drops, ["iptables filter FORWARD"]);
    let out: Vec<_> = found.masquerades.iter().map(|it| it.out.clone()).collect();
    assert_eq!(
        out,
        [
            Outgoing::Only(Interface::Name("eth0".into())),
            Outgoing::Except(Interface::Prefix("docker".into())),
        ]
    );
}

#[test]
fn a_table_that_is_cut_anywhere_causes_no_panic() {
    for (layout, table, info, block) in tables() {
        for cut in 0..block.len() {
            let _ = decode(&layout, &table, &info, &block[..cut], &mut Reader::default());
        }
        for cut in 0..info.len() {
            let _ = decode(&layout, &table, &info[..cut], &block, &mut Reader::default());
        }
        let cut = &block[..block.len() - 8];
        assert!(decode(&layout, &table, &info, cut, &mut Reader::default()).is_err());
    }
}

proptest! {
    #[test]
    fn a_table_with_any_bytes_changed_causes_no_panic(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20),
    ) {
        for (layout, table, info, mut block) in tables() {
            for (at, byte) in &changes {
                let at = at.index(block.len());
                block[at] = *byte;
            }
            let _ = decode(&layout, &table, &info, &block, &mut Reader::default());
        }
    }
}
