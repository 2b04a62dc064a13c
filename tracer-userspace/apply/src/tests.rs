use proptest::prelude::*;
use rsttrace_model::{
    netns::{NetnsReach, Place},
    settings::Setting,
};

use super::{
    FileState, Slot, Step,
    fake::{Fake, World},
    is_ours,
    journal::{About, Item, Journal},
    run::{Applied, UndoReport, apply, undo},
};

const TCP: &str = "ipvs.tcp";
const MAX: &str = "net.netfilter.nf_conntrack_max";
const SYSCTLS: &str = "/etc/sysctl.d/99-rsttrace-test.conf";
const MODULES: &str = "/etc/modules-load.d/rsttrace-test.conf";

fn slot(netns: u32, key: &str) -> Slot {
    let reach =
        if netns == 1 { NetnsReach::Initial } else { NetnsReach::Named("/run/netns/web".into()) };
    Slot::new(Place { netns, reach }, Setting::find(key).expect("listed"))
}

fn file(text: &str) -> FileState {
    FileState::File { bytes: text.into(), mode: 0o644, uid: 0, gid: 0 }
}

/// One of our files already exists; the other file and its folder do not.
fn world() -> World {
    let mut world = World::default();
    world.values.insert((1, MAX), "65536".into());
    world.values.insert((2, TCP), "900".into());
    world.files.insert(SYSCTLS.into(), file("# by hand\nnet.netfilter.nf_conntrack_max = 1\n"));
    world.folders.insert("/etc/sysctl.d".into());
    world
}

fn steps() -> Vec<Step> {
    vec![
        Step::Value { slot: slot(1, MAX), to: 131_072 },
        Step::Value { slot: slot(2, TCP), to: 1200 },
        Step::File {
            path: SYSCTLS.into(),
            to: file("# today\nnet.netfilter.nf_conntrack_max = 131072\n"),
        },
        Step::File { path: MODULES.into(), to: file("nf_conntrack\n") },
    ]
}

fn about(id: &str) -> About {
    About {
        id: id.into(),
        boot_id: "boot".into(),
        when: "2026-11-21T10:00:00Z".into(),
        cause: Some("conntrack_table_full"),
        fix: "raise_conntrack_max".into(),
    }
}

fn saved_journal(world: &World) -> Option<Journal> {
    let text = world.journals.values().next_back()?;
    Some(Journal::from_json(text.as_bytes()).expect("written by us"))
}

fn undo_in(world: &mut World, force: bool) -> UndoReport {
    let journal = saved_journal(world).expect("a journal");
    undo(&mut Fake::unkillable(world), &journal, force)
}

#[test]
fn an_apply_takes_effect_and_is_undone_exactly() {
    let mut world = world();
    let before = world.clone();
    let applied = apply(&mut Fake::unkillable(&mut world), &steps(), about("1")).expect("applied");
    assert!(matches!(applied, Applied::Done(_)));
    assert_eq!(world.values[&(2, TCP)], "1200");
    assert_eq!(world.files[MODULES], file("nf_conntrack\n"));
    assert!(undo_in(&mut world, false).is_complete());
    assert_eq!(world, before);
}

#[test]
fn an_undo_restores_the_host_wherever_the_apply_and_an_earlier_undo_were_killed() {
    let before = world();
    let mut points = 0;
    loop {
        let mut after = before.clone();
        let mut run = Fake::new(&mut after, points);
        let _ = apply(&mut run, &steps(), about("1"));
        let was_killed = run.was_killed();
        let mut undo_points = 0;
        while let Some(journal) = saved_journal(&after) {
            let mut restored = after.clone();
            let mut run = Fake::new(&mut restored, undo_points);
            let _ = undo(&mut run, &journal, false);
            let undo_was_killed = run.was_killed();
            if saved_journal(&restored).is_some() {
                let undone = undo_in(&mut restored, false);
                assert!(undone.is_complete(), "{points}/{undo_points}: {undone:?}");
            }
            assert_eq!(restored, before, "apply killed at {points}, undo at {undo_points}");
            if !undo_was_killed {
                break;
            }
            undo_points += 1;
        }
        if saved_journal(&after).is_none() {
            assert_eq!(after, before, "no journal, apply killed at {points}");
        }
        if !was_killed {
            assert!(points > 20, "it was killed at {points} points only");
            break;
        }
        points += 1;
    }
}

#[test]
fn applying_twice_changes_nothing() {
    let mut world = world();
    let _ = apply(&mut Fake::unkillable(&mut world), &steps(), about("1")).expect("applied");
    let once = world.clone();
    let again = apply(&mut Fake::unkillable(&mut world), &steps(), about("2")).expect("applied");
    assert!(matches!(again, Applied::AlreadySo));
    assert_eq!(world, once);
}

#[test]
fn a_refused_write_restores_what_was_written_before_it() {
    for (rejects_writes_to, alters_write_to) in [(Some(TCP), None), (None, Some(TCP))] {
        let mut world = world();
        let before = world.clone();
        let mut run = Fake::unkillable(&mut world);
        (run.rejects_writes_to, run.alters_write_to) = (rejects_writes_to, alters_write_to);
        let failure = apply(&mut run, &steps(), about("1")).expect_err("refused");
        assert!(failure.reason.contains("ipvs.tcp in netns web"), "{}", failure.reason);
        assert_eq!(failure.left, [] as [&str; 0]);
        assert_eq!(world, before);
    }
}

#[test]
fn a_value_that_another_process_changes_before_the_first_write_is_kept() {
    let mut world = world();
    let mut expected = world.clone();
    expected.values.insert((2, TCP), "3600".into());
    let mut run = Fake::unkillable(&mut world);
    run.concurrent_write = Some(((2, TCP), "3600"));
    let failure = apply(&mut run, &steps(), about("1")).expect_err("stopped");
    assert!(failure.reason.contains("changed by another process"), "{}", failure.reason);
    assert_eq!(failure.left, [] as [&str; 0]);
    assert_eq!(world, expected, "and what was written is restored");
}

#[test]
fn a_change_by_another_process_is_left_alone_unless_forced() {
    let mut world = world();
    let before = world.clone();
    let _ = apply(&mut Fake::unkillable(&mut world), &steps(), about("1")).expect("applied");
    world.values.insert((2, TCP), "3600".into());
    world.files.insert(MODULES.into(), file("nf_conntrack\nip_vs\n"));
    let undone = undo_in(&mut world, false);
    assert_eq!(undone.foreign.len(), 2, "{undone:?}");
    assert_eq!(world.values[&(2, TCP)], "3600");
    assert_eq!(world.values[&(1, MAX)], "65536", "the rest is restored");
    assert!(saved_journal(&world).is_some(), "and can be undone later");
    assert!(undo_in(&mut world, true).is_complete());
    assert_eq!(world, before);
}

#[test]
fn a_namespace_that_no_longer_exists_is_reported_and_the_rest_is_restored() {
    let mut world = world();
    let before = world.clone();
    let _ = apply(&mut Fake::unkillable(&mut world), &steps(), about("1")).expect("applied");
    let journal = saved_journal(&world).expect("a journal");
    let mut run = Fake::unkillable(&mut world);
    run.gone = Some(2);
    let undone = undo(&mut run, &journal, false);
    assert_eq!(undone.gone, ["ipvs.tcp in netns web: the network namespace has gone"]);
    assert!(undone.is_complete());
    assert_eq!(world.files, before.files);
    assert_eq!(world.values[&(1, MAX)], "65536");
}

#[test]
fn a_new_namespace_with_the_inode_number_of_an_old_one_is_never_written_to() {
    let mut world = world();
    world.cookies.insert(2, 7);
    let _ = apply(&mut Fake::unkillable(&mut world), &steps(), about("1")).expect("applied");
    // The new namespace has the value that we wrote, so the value does not reveal the difference.
    world.cookies.insert(2, 8);
    let journal = saved_journal(&world).expect("a journal");
    let undone = undo(&mut Fake::unkillable(&mut world), &journal, true);
    assert_eq!(undone.gone, ["ipvs.tcp in netns web: another one has its number"]);
    assert_eq!(world.values[&(2, TCP)], "1200");
    assert_eq!(world.values[&(1, MAX)], "65536", "the rest is restored");
}

#[test]
fn a_journal_of_an_older_build_without_cookies_can_be_undone() {
    let mut world = world();
    let before = world.clone();
    let _ = apply(&mut Fake::unkillable(&mut world), &steps(), about("1")).expect("applied");
    let text = world.journals.values().next().expect("a journal").clone();
    assert!(!text.contains("cookie"), "{text}");
    world.cookies.insert(2, 8);
    assert!(undo_in(&mut world, false).is_complete());
    world.cookies.clear();
    assert_eq!(world, before);
}

#[test]
fn only_paths_of_fixes_are_ours() {
    for path in
        [SYSCTLS, MODULES, "/etc/systemd/system/multi-user.target.wants/rsttrace-a-b.service"]
    {
        assert!(is_ours(path), "{path}");
    }
    for path in [
        "/etc/sysctl.d/99-rsttrace-.conf",
        "/etc/sysctl.d/99-rsttrace-../../passwd.conf",
        "/etc/sysctl.d/99-custom.conf",
        "/etc/sysctl.d/99-rsttrace-x.conf\n",
        "/etc/sysctl.d/99-rsttrace-x.service",
        "/etc/shadow",
        "",
    ] {
        assert!(!is_ours(path), "{path}");
    }
}

fn applied_journal() -> String {
    let mut world = world();
    let _ = apply(&mut Fake::unkillable(&mut world), &steps(), about("1")).expect("applied");
    world.journals.into_values().next().expect("a journal")
}

#[test]
fn a_journal_that_names_any_other_setting_or_path_is_refused_entirely() {
    let good = applied_journal();
    for (from, to) in [
        (MAX, "kernel.core_pattern"),
        (MAX, "net.netfilter.nf_conntrack_count"),
        (SYSCTLS, "/etc/sysctl.d/../shadow"),
        ("\"131072\"", "\"131072; reboot\""),
        ("\"131072\"", "\"+131072\""),
        ("\"format\": 1", "\"format\": 2"),
        ("\"id\": \"1\"", "\"id\": \"../1\""),
        ("/etc/modules-load.d\"", "/home\""),
        ("0a", "zz"),
    ] {
        let bad = good.replace(from, to);
        assert_ne!(bad, good, "{from}");
        assert!(Journal::from_json(bad.as_bytes()).is_err(), "{from} -> {to}");
    }
}

proptest! {
    /// Whatever bytes a journal holds, it names only settings and paths of the allow-list.
    #[test]
    fn a_hostile_journal_names_only_what_fixes_write(
        at in any::<prop::sample::Index>(),
        bytes in prop::collection::vec(any::<u8>(), 0..12),
        cut in 0_usize..12,
    ) {
        let mut text = applied_journal().into_bytes();
        let at = at.index(text.len());
        let end = (at + cut).min(text.len());
        text.splice(at..end, bytes);
        if let Ok(journal) = Journal::from_json(&text) {
            for item in journal.items {
                match item {
                    Item::Value { slot, old, new } => {
                        prop_assert!(slot.setting.writable);
                        prop_assert!(old.parse::<u64>().is_ok() && new.parse::<u64>().is_ok());
                    }
                    Item::File { path, folders, .. } => {
                        prop_assert!(is_ours(&path));
                        prop_assert!(folders.iter().all(|folder| path.starts_with(folder.as_str())));
                    }
                }
            }
        }
    }
}
