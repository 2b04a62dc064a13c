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

fn told(sight: &Snapshot) -> (Level, String) {
    let outlook = outlook(sight);
    (outlook.level, outlook.text)
}

#[test]
fn a_keepalive_before_the_entry_expires_is_fine() {
    let ends = vec![client(Some((TimerKind::Keepalive, 212_000))), server()];
    let (level, text) = told(&Snapshot { ends, ipvs: vec![balanced(812)], ..sight() });
    assert_eq!(level, Level::Fine);
    assert_eq!(
        text,
        "the IPVS entry in netns n1 expires in 812 s; the next keepalive goes out in 212 s: fine"
    );
}

#[test]
fn nothing_is_called_fine_while_something_could_not_be_looked_at() {
    let unseen = vec!["conntrack entries".to_owned()];
    let (level, text) = told(&Snapshot { ends: vec![client(None), server()], unseen, ..sight() });
    assert_eq!(level, Level::Open);
    assert!(text.ends_with("not everything could be looked at"), "{text}");
}

#[test]
fn a_keepalive_that_comes_as_late_as_a_timer_may_be_is_not_fine() {
    let with = |next_s: u32| {
        let ends = vec![client(Some((TimerKind::Keepalive, next_s * 1000))), server()];
        told(&Snapshot { ends, ipvs: vec![balanced(812)], ..sight() }).0
    };
    assert_eq!([with(718), with(720), with(811)], [Level::Fine, Level::Open, Level::Open]);
    assert_eq!([with(812), with(7112)], [Level::Breaks, Level::Breaks]);
}

#[test]
fn without_keepalive_at_either_end_it_breaks_and_the_limit_is_told() {
    let ends = vec![client(None), server()];
    let (level, text) = told(&Snapshot { ends, ipvs: vec![balanced(812)], ..sight() });
    assert_eq!(level, Level::Breaks);
    assert!(text.contains("expires in 812 s, 900 s after the last packet"), "{text}");
}

#[test]
fn an_end_that_is_not_here_may_send_keepalives() {
    let one = Snapshot { ends: vec![server()], ipvs: vec![balanced(812)], ..sight() };
    assert_eq!(told(&one).0, Level::Open);
    let none = Snapshot { ipvs: vec![balanced(812)], ..sight() };
    assert_eq!(told(&none).0, Level::Open);
}

#[test]
fn behind_ipvs_conntrack_may_go_first_and_elsewhere_its_translation_counts() {
    let ends = || vec![client(Some((TimerKind::Keepalive, 100_000))), server()];
    let under_ipvs = Snapshot {
        ends: ends(),
        ipvs: vec![balanced(812)],
        conntrack: vec![tracked(NODE, 50)],
        ..sight()
    };
    assert_eq!(told(&under_ipvs).0, Level::Fine);
    let alone = Snapshot { ends: ends(), conntrack: vec![tracked(NODE, 50)], ..sight() };
    let (level, text) = told(&alone);
    assert_eq!(level, Level::Breaks);
    assert!(text.starts_with("the conntrack entry in netns n1 expires in 50 s"), "{text}");
    let mut plain = tracked(NODE, 50);
    plain.value.reply = plain.value.original.reversed();
    let untranslated = Snapshot { ends: ends(), conntrack: vec![plain], ..sight() };
    assert_eq!(told(&untranslated).0, Level::Fine);
}

#[test]
fn between_readings_the_table_is_counted_down_and_a_packet_makes_it_unknown() {
    let mut later = Snapshot { ends: vec![client(None)], ipvs: vec![balanced(812)], ..sight() };
    later.at += 4 * SECOND;
    assert_eq!(later.ipvs_left_s(&later.ipvs[0].value), Some(808));
    let ages = SocketAges { data_sent_ms: 1000, data_received_ms: 90_000, ack_received_ms: 90_000 };
    later.ends[0].value.socket.ages = Some(ages);
    assert_eq!(later.ipvs_left_s(&later.ipvs[0].value), None);
    assert_eq!(told(&later).0, Level::Fine, "it has just been wound up");
}

#[test]
fn while_data_is_unanswered_keepalive_is_no_comfort() {
    let mut sender = client(Some((TimerKind::Retransmit, 1600)));
    sender.value.socket.retransmits = 3;
    let (level, text) =
        told(&Snapshot { ends: vec![sender, server()], ipvs: vec![balanced(5)], ..sight() });
    assert_eq!(level, Level::Open);
    assert!(text.contains("in 1.6 s (3 without an answer"), "{text}");
}

#[test]
fn an_entry_that_ran_out_expired_and_one_that_did_not_was_removed() {
    let with = |left_s| Snapshot {
        ends: vec![client(None)],
        ipvs: vec![balanced(left_s)],
        conntrack: vec![tracked(NODE, 86_000)],
        ..sight()
    };
    let mut gone = Snapshot { ends: vec![client(None)], ..sight() };
    gone.at += SECOND;
    let told = |left_s| changes(&with(left_s), &gone);
    assert!(told(1)[0].contains("(it expired): the sockets do not know"), "{:?}", told(1));
    assert!(told(400)[0].contains("(removed, 400 s before its time)"), "{:?}", told(400));
    assert!(told(1)[1].contains("together with its own, which has run out"), "{:?}", told(1));
    assert!(told(400)[1].contains("if IPVS still has its own"), "{:?}", told(400));
    assert!(changes(&gone, &with(1)).is_empty(), "what comes is no loss");
}

#[test]
fn only_a_conntrack_entry_that_translates_by_itself_is_a_loss() {
    let mut plain = tracked(NODE, 400);
    plain.value.reply = plain.value.original.reversed();
    for (entry, means) in [(tracked(NODE, 400), "its translation is lost"), (plain, "harmless")] {
        let before = Snapshot { ends: vec![client(None)], conntrack: vec![entry], ..sight() };
        let now = Snapshot { ends: vec![client(None)], ..sight() };
        assert!(changes(&before, &now)[0].contains(means), "{:?}", changes(&before, &now));
    }
}

#[test]
fn what_was_lost_is_remembered_until_it_is_back() {
    let ends = || vec![client(Some((TimerKind::Keepalive, 100_000))), server()];
    let before = Snapshot { ends: ends(), ipvs: vec![balanced(1)], ..sight() };
    let mut now = Snapshot { ends: ends(), ..sight() };
    now.after(&before);
    assert_eq!(told(&now).0, Level::Breaks);
    let mut still = Snapshot { ends: ends(), ..sight() };
    still.after(&now);
    assert!(told(&still).1.contains("is gone"), "{:?}", told(&still));
    let mut back = Snapshot { ends: ends(), ipvs: vec![balanced(900)], ..sight() };
    back.after(&still);
    assert_eq!(told(&back).0, Level::Fine);
}

#[test]
fn a_connection_to_an_ipvs_service_without_an_entry_breaks_although_its_loss_was_not_watched() {
    let service = || vec![here(NODE, address(VIP))];
    let lost = Snapshot { ends: vec![client(None)], services: service(), ..sight() };
    let (level, text) = told(&lost);
    assert_eq!(level, Level::Breaks);
    assert!(text.starts_with("10.96.0.10:3306 is an IPVS service in netns n1, and no"), "{text}");
    // Its entry may be where nobody could look.
    let hidden = Snapshot { unseen: vec!["the tables of others".into()], ..lost.clone() };
    assert_eq!(told(&hidden).0, Level::Open);
    // Not through IPVS: another translation, or the socket at the service's address itself.
    let translated = Snapshot { conntrack: vec![tracked(NODE, 50)], ..lost.clone() };
    assert!(told(&translated).1.contains("the conntrack entry"), "{:?}", told(&translated));
    let local = end(NODE, flow(VIP, CLIENT), None);
    let direct = Snapshot { ends: vec![client(None), local], ..lost };
    assert_eq!(told(&direct).0, Level::Fine);
}

#[test]
fn an_end_without_keepalive_is_not_fine_while_the_other_is_elsewhere() {
    let quiet = Snapshot { ends: vec![client(None)], ..sight() };
    let (level, text) = told(&quiet);
    assert_eq!(level, Level::Open);
    assert!(text.ends_with("a device on the path may"), "{text}");
    let kept = client(Some((TimerKind::Keepalive, 100_000)));
    assert_eq!(told(&Snapshot { ends: vec![kept], ..sight() }).0, Level::Fine);
}

#[test]
fn a_closed_connection_is_over_whatever_tables_say() {
    let mut waiting = client(Some((TimerKind::TimeWait, 59_000)));
    waiting.value.socket.state = tcp_state::TIME_WAIT;
    assert_eq!(
        told(&Snapshot { ends: vec![waiting], ipvs: vec![balanced(119)], ..sight() }).0,
        Level::Over
    );
}

#[test]
fn where_nothing_is_left_it_is_over() {
    assert_eq!(told(&sight()).0, Level::Over);
}

#[test]
fn every_name_of_the_connection_is_known_once() {
    let all = Snapshot {
        ends: vec![client(None), server()],
        ipvs: vec![balanced(1)],
        conntrack: vec![tracked(NODE, 1)],
        ..sight()
    };
    let names: Vec<_> = tuples(&all).into_iter().map(Flow::key).collect();
    assert_eq!(names, [flow(CLIENT, VIP).key(), flow(CLIENT, SERVER).key()]);
}
