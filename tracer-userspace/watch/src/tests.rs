use rsttrace_model::{
    connection::{End, IpvsReading, tuples},
    conntrack::ConntrackEntry,
    ipvs::IpvsEntry,
    netns::{NetnsReach, Place},
    socket::{SocketAges, SocketTimer},
    testing::{address, flow},
};

use super::*;

const CLIENT: &str = "10.0.0.2:41822";
const VIP: &str = "10.96.0.10:3306";
const SERVER: &str = "10.0.1.2:3306";
const NODE: u32 = 1;

fn here<T>(netns: u32, value: T) -> InNetns<T> {
    InNetns {
        place: Place { netns, reach: NetnsReach::Named(format!("/run/netns/n{netns}")) },
        value,
    }
}

/// A reading 1000 s after boot.
fn sight() -> Snapshot {
    Snapshot { at: 1000 * SECOND, ..Snapshot::default() }
}

fn balanced(left_s: u32) -> InNetns<IpvsReading> {
    let entry = IpvsEntry {
        virtual_flow: flow(CLIENT, VIP),
        server: address(SERVER),
        state: "ESTABLISHED".into(),
        left_s,
    };
    here(NODE, IpvsReading { entry, read: 1000 * SECOND, limit_s: Some(900) })
}

/// Translated by destination.
fn tracked(netns: u32, left_s: u32) -> InNetns<ConntrackEntry> {
    let (original, reply) = (flow(CLIENT, VIP), flow(SERVER, CLIENT));
    here(netns, ConntrackEntry { original, reply, state: Some(3), left_s: Some(left_s) })
}

fn end(netns: u32, of: Flow, timer: Option<(TimerKind, u32)>) -> InNetns<End> {
    let ages =
        SocketAges { data_sent_ms: 88_000, data_received_ms: 88_000, ack_received_ms: 88_000 };
    let socket = SocketState {
        flow: of,
        state: tcp_state::ESTABLISHED,
        inode: 7,
        uid: 0,
        timer: timer.map(|(kind, left_ms)| SocketTimer { kind, left_ms }),
        retransmits: 0,
        receive_queue: 0,
        send_queue: 0,
        ages: Some(ages),
        bytes_received: None,
        bytes_acked: None,
        v6_only: false,
    };
    here(netns, End { socket, owner: None })
}

fn client(timer: Option<(TimerKind, u32)>) -> InNetns<End> {
    end(2, flow(CLIENT, VIP), timer)
}

fn server() -> InNetns<End> {
    end(3, flow(SERVER, CLIENT), None)
}

fn predict(sight: &Snapshot) -> (Level, String) {
    let outlook = outlook(sight);
    (outlook.level, outlook.text)
}

#[test]
fn a_keepalive_before_the_entry_expires_is_fine() {
    let ends = vec![client(Some((TimerKind::Keepalive, 212_000))), server()];
    let (level, text) = predict(&Snapshot { ends, ipvs: vec![balanced(812)], ..sight() });
    assert_eq!(level, Level::Fine);
    assert_eq!(
        text,
        "the IPVS entry in netns n1 expires in 812 s; the next keepalive is sent in 212 s: fine"
    );
}

#[test]
fn the_outlook_is_not_fine_while_something_could_not_be_read() {
    let unseen = vec!["conntrack entries".to_owned()];
    let (level, text) =
        predict(&Snapshot { ends: vec![client(None), server()], unseen, ..sight() });
    assert_eq!(level, Level::Open);
    assert!(text.ends_with("not everything could be read"), "{text}");
}

#[test]
fn a_keepalive_that_a_late_timer_may_send_too_late_is_not_fine() {
    let with = |next_s: u32| {
        let ends = vec![client(Some((TimerKind::Keepalive, next_s * 1000))), server()];
        predict(&Snapshot { ends, ipvs: vec![balanced(812)], ..sight() }).0
    };
    assert_eq!([with(718), with(720), with(811)], [Level::Fine, Level::Open, Level::Open]);
    assert_eq!([with(812), with(7112)], [Level::Breaks, Level::Breaks]);
}

#[test]
fn without_keepalive_at_either_end_the_connection_breaks_and_the_limit_is_shown() {
    let ends = vec![client(None), server()];
    let (level, text) = predict(&Snapshot { ends, ipvs: vec![balanced(812)], ..sight() });
    assert_eq!(level, Level::Breaks);
    assert!(text.contains("expires in 812 s, 900 s after the last packet"), "{text}");
}

#[test]
fn an_end_on_another_host_may_send_keepalives() {
    let one = Snapshot { ends: vec![server()], ipvs: vec![balanced(812)], ..sight() };
    assert_eq!(predict(&one).0, Level::Open);
    let none = Snapshot { ipvs: vec![balanced(812)], ..sight() };
    assert_eq!(predict(&none).0, Level::Open);
}

#[test]
fn behind_ipvs_a_conntrack_entry_may_expire_first_and_without_ipvs_its_translation_counts() {
    let ends = || vec![client(Some((TimerKind::Keepalive, 100_000))), server()];
    let under_ipvs = Snapshot {
        ends: ends(),
        ipvs: vec![balanced(812)],
        conntrack: vec![tracked(NODE, 50)],
        ..sight()
    };
    assert_eq!(predict(&under_ipvs).0, Level::Fine);
    let alone = Snapshot { ends: ends(), conntrack: vec![tracked(NODE, 50)], ..sight() };
    let (level, text) = predict(&alone);
    assert_eq!(level, Level::Breaks);
    assert!(text.starts_with("the conntrack entry in netns n1 expires in 50 s"), "{text}");
    let mut plain = tracked(NODE, 50);
    plain.value.reply = plain.value.original.reversed();
    let untranslated = Snapshot { ends: ends(), conntrack: vec![plain], ..sight() };
    assert_eq!(predict(&untranslated).0, Level::Fine);
}

#[test]
fn between_readings_the_time_left_is_counted_down_and_a_packet_makes_it_unknown() {
    let mut later = Snapshot { ends: vec![client(None)], ipvs: vec![balanced(812)], ..sight() };
    later.at += 4 * SECOND;
    assert_eq!(later.ipvs_left_s(&later.ipvs[0].value), Some(808));
    let ages = SocketAges { data_sent_ms: 1000, data_received_ms: 90_000, ack_received_ms: 90_000 };
    later.ends[0].value.socket.ages = Some(ages);
    assert_eq!(later.ipvs_left_s(&later.ipvs[0].value), None);
    assert_eq!(predict(&later).0, Level::Fine, "the timer was just refreshed");
}

#[test]
fn while_data_is_unanswered_a_keepalive_timer_does_not_make_it_fine() {
    let mut sender = client(Some((TimerKind::Retransmit, 1600)));
    sender.value.socket.retransmits = 3;
    let (level, text) =
        predict(&Snapshot { ends: vec![sender, server()], ipvs: vec![balanced(5)], ..sight() });
    assert_eq!(level, Level::Open);
    assert!(text.contains("in 1.6 s (3 without an answer"), "{text}");
}

#[test]
fn an_entry_with_no_time_left_expired_and_one_with_time_left_was_removed() {
    let with = |left_s| Snapshot {
        ends: vec![client(None)],
        ipvs: vec![balanced(left_s)],
        conntrack: vec![tracked(NODE, 86_000)],
        ..sight()
    };
    let mut gone = Snapshot { ends: vec![client(None)], ..sight() };
    gone.at += SECOND;
    let changed = |left_s| changes(&with(left_s), &gone);
    assert!(changed(1)[0].contains("(expired): the sockets are still open"), "{:?}", changed(1));
    assert!(changed(400)[0].contains("(removed 400 s before its expiry)"), "{:?}", changed(400));
    assert!(
        changed(1)[1].contains("together with its own entry, which has expired"),
        "{:?}",
        changed(1)
    );
    assert!(changed(400)[1].contains("if the IPVS entry still exists"), "{:?}", changed(400));
    assert!(changes(&gone, &with(1)).is_empty(), "a new entry is not a loss");
}

#[test]
fn only_a_conntrack_entry_that_translates_by_itself_is_a_loss() {
    let mut plain = tracked(NODE, 400);
    plain.value.reply = plain.value.original.reversed();
    for (entry, means) in
        [(tracked(NODE, 400), "its address translation is lost"), (plain, "harmless")]
    {
        let before = Snapshot { ends: vec![client(None)], conntrack: vec![entry], ..sight() };
        let now = Snapshot { ends: vec![client(None)], ..sight() };
        assert!(changes(&before, &now)[0].contains(means), "{:?}", changes(&before, &now));
    }
}

#[test]
fn a_lost_entry_is_remembered_until_a_new_one_exists() {
    let ends = || vec![client(Some((TimerKind::Keepalive, 100_000))), server()];
    let before = Snapshot { ends: ends(), ipvs: vec![balanced(1)], ..sight() };
    let mut now = Snapshot { ends: ends(), ..sight() };
    now.after(&before);
    assert_eq!(predict(&now).0, Level::Breaks);
    let mut still = Snapshot { ends: ends(), ..sight() };
    still.after(&now);
    assert!(predict(&still).1.contains("is gone"), "{:?}", predict(&still));
    let mut back = Snapshot { ends: ends(), ipvs: vec![balanced(900)], ..sight() };
    back.after(&still);
    assert_eq!(predict(&back).0, Level::Fine);
}

#[test]
fn a_connection_to_an_ipvs_service_without_an_entry_breaks_even_if_its_loss_was_not_seen() {
    let service = || vec![here(NODE, address(VIP))];
    let lost = Snapshot { ends: vec![client(None)], services: service(), ..sight() };
    let (level, text) = predict(&lost);
    assert_eq!(level, Level::Breaks);
    assert!(text.starts_with("10.96.0.10:3306 is an IPVS service in netns n1, and no"), "{text}");
    // The entry may be in a table that could not be read.
    let hidden = Snapshot { unseen: vec!["the tables of others".into()], ..lost.clone() };
    assert_eq!(predict(&hidden).0, Level::Open);
    // Not through IPVS: another translation, or a socket with the service's address on this host.
    let translated = Snapshot { conntrack: vec![tracked(NODE, 50)], ..lost.clone() };
    assert!(predict(&translated).1.contains("the conntrack entry"), "{:?}", predict(&translated));
    let local = end(NODE, flow(VIP, CLIENT), None);
    let direct = Snapshot { ends: vec![client(None), local], ..lost };
    assert_eq!(predict(&direct).0, Level::Fine);
}

#[test]
fn one_end_without_keepalive_is_not_fine_while_the_other_end_is_on_another_host() {
    let no_keepalive = Snapshot { ends: vec![client(None)], ..sight() };
    let (level, text) = predict(&no_keepalive);
    assert_eq!(level, Level::Open);
    assert!(text.ends_with("an entry of a device on the path may"), "{text}");
    let kept = client(Some((TimerKind::Keepalive, 100_000)));
    assert_eq!(predict(&Snapshot { ends: vec![kept], ..sight() }).0, Level::Fine);
}

#[test]
fn a_closed_connection_is_over_whatever_entries_are_left() {
    let mut waiting = client(Some((TimerKind::TimeWait, 59_000)));
    waiting.value.socket.state = tcp_state::TIME_WAIT;
    assert_eq!(
        predict(&Snapshot { ends: vec![waiting], ipvs: vec![balanced(119)], ..sight() }).0,
        Level::Over
    );
}

#[test]
fn a_connection_of_which_nothing_is_left_is_over() {
    assert_eq!(predict(&sight()).0, Level::Over);
}

#[test]
fn each_tuple_of_the_connection_is_listed_once() {
    let all = Snapshot {
        ends: vec![client(None), server()],
        ipvs: vec![balanced(1)],
        conntrack: vec![tracked(NODE, 1)],
        ..sight()
    };
    let names: Vec<_> = tuples(&all).into_iter().map(Flow::key).collect();
    assert_eq!(names, [flow(CLIENT, VIP).key(), flow(CLIENT, SERVER).key()]);
}
