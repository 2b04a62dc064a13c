//! The IPVS connection table, read from `/proc/net/ip_vs_conn` (`net/netfilter/ipvs/ip_vs_conn.c`), because
//! no netlink family offers the table.

use std::{
    collections::HashSet,
    fs::{self, File},
    io::{self, BufRead, BufReader},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    thread,
    time::Duration,
};

use rsttrace_model::{
    flow::Flow,
    ipvs::{IpvsEntry, IpvsTable},
};

/// Limit of readings until all entries were seen, and the pause between two readings. The kernel moves the
/// entries of a small table within milliseconds.
const MAX_READINGS: usize = 3;
const PAUSE: Duration = Duration::from_millis(20);
/// The kernel shows at least this many bytes without a pause (`seq_read_iter`, a page).
const ONE_PIECE: usize = 4096;

/// Reads the TCP entries of the calling thread's namespace, at most `most`. The kernel walks the table from
/// the start for every 4 KiB, so the time to read a whole table grows with the square of its size.
/// `None` while ip_vs is not loaded.
///
/// One reading may miss entries (`ip_vs_conn_array`):
/// - A position in the table is a number of entries of all namespaces. When one ends between two pieces of 4 KiB,
///   the next piece begins one entry too late.
/// - Since 7.2 the table grows and shrinks. While entries move, some are shown twice and others not at all.
///
/// So the entries of several readings are added, until the kernel's own count is reached, or, where the kernel
/// shows none, until a reading adds no entry.
pub(super) fn read(most: usize) -> Option<IpvsTable> {
    let open = || File::open("/proc/thread-self/net/ip_vs_conn").ok().map(BufReader::new);
    read_repeatedly(|| Some((count(), open()?)), most)
}

/// Takes the kernel's count of entries and one reading of the table as often as needed.
fn read_repeatedly<R: BufRead>(
    mut reading: impl FnMut() -> Option<(Option<u32>, R)>,
    most: usize,
) -> Option<IpvsTable> {
    let mut shown = Shown::default();
    for number in 1..=MAX_READINGS {
        let known = shown.table.entries.len();
        let (count, text) = reading()?;
        let bytes = shown.add(text, most).ok()?;
        let is_complete = count.map_or_else(
            || bytes <= ONE_PIECE || number > 1 && shown.table.entries.len() == known,
            |count| shown.is_all(count),
        );
        if shown.table.truncated || is_complete {
            break;
        }
        if number < MAX_READINGS {
            thread::sleep(PAUSE);
        }
    }
    Some(shown.table)
}

/// The same as [`read`], but keeps only the wanted entries of the first `most`.
pub(super) fn find(wanted: impl Fn(&IpvsEntry) -> bool, most: usize) -> Option<IpvsTable> {
    let mut table = read(most)?;
    table.entries.retain(wanted);
    Some(table)
}

/// The number of entries of all protocols in the calling thread's namespace; shown since 7.2.
pub(super) fn count() -> Option<u32> {
    parse_count(&fs::read_to_string("/proc/thread-self/net/ip_vs_status").ok()?)
}

/// The first line of `/proc/net/ip_vs_status` is `Conns:`, a tab and the number.
fn parse_count(status: &str) -> Option<u32> {
    status.lines().find_map(|line| line.strip_prefix("Conns:"))?.trim().parse().ok()
}

pub(super) fn parse(text: impl BufRead, most: usize) -> io::Result<IpvsTable> {
    let mut shown = Shown::default();
    shown.add(text, most)?;
    Ok(shown.table)
}

/// The entries that the readings of one table showed, each entry once.
#[derive(Default)]
struct Shown {
    table: IpvsTable,
    flows: HashSet<Flow>,
    /// Lines of the last reading that are not TCP entries, including the heading.
    others: usize,
}

impl Shown {
    /// Adds one reading; returns its length in bytes.
    fn add(&mut self, text: impl BufRead, most: usize) -> io::Result<usize> {
        self.others = 0;
        let mut bytes = 0;
        for line in text.lines() {
            let line = line?;
            bytes += line.len() + 1;
            let Some(entry) = entry(&line) else {
                self.others += 1;
                continue;
            };
            if self.flows.contains(&entry.virtual_flow) {
                continue;
            }
            if self.table.entries.len() == most {
                self.table.truncated = true;
                break;
            }
            self.flows.insert(entry.virtual_flow);
            self.table.entries.push(entry);
        }
        Ok(bytes)
    }

    /// Whether the readings showed all `count` entries of all protocols.
    fn is_all(&self, count: u32) -> bool {
        let shown = self.table.entries.len() + self.others.saturating_sub(1);
        u32::try_from(shown).is_ok_and(|shown| shown >= count)
    }
}

/// Parses `TCP 0A0C0102 9C41 0A0C6401 0CEA 0A0C0202 0CEA ESTABLISHED       3`; `None` for the heading, other
/// protocols, and templates of persistent services, which have no client port.
fn entry(line: &str) -> Option<IpvsEntry> {
    let mut words = line.split_whitespace();
    if words.next()? != "TCP" {
        return None;
    }
    let mut address = || {
        let ip = ip(words.next()?)?;
        let port = u16::from_str_radix(words.next()?, 16).ok()?;
        Some(SocketAddr::new(ip, port))
    };
    let (client, service, server) = (address()?, address()?, address()?);
    let state = words.next()?.to_owned();
    let left_s = words.next()?.parse().ok()?;
    (client.port() != 0).then_some(IpvsEntry {
        virtual_flow: Flow { src: client, dst: service },
        server,
        state,
        left_s,
    })
}

/// Parses eight hexadecimal digits (IPv4), or a full IPv6 address.
pub(super) fn ip(word: &str) -> Option<IpAddr> {
    if word.contains(':') {
        return word.parse().ok().map(|ip: Ipv6Addr| IpAddr::V6(ip));
    }
    u32::from_str_radix(word, 16).ok().map(|bits| IpAddr::V4(Ipv4Addr::from_bits(bits)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
Pro FromIP   FPrt ToIP     TPrt DestIP   DPrt State       Expires PEName PEData
TCP 0A0C0102 9C41 0A0C6401 0CEA 0A0C0202 0CEA ESTABLISHED       3
UDP 0A0C0102 9C41 0A0C6401 0035 0A0C0202 0035 UDP             299
TCP 0A0C0102 0000 0A0C6401 0CEA 0A0C0202 0CEA NONE            120
TCP fd00:000c:0001:0000:0000:0000:0000:0002 9C42 fd00:000c:0064:0000:0000:0000:0000:0001 0CEA \
fd00:000c:0002:0000:0000:0000:0000:0002 0CEA CLOSE_WAIT       12
";

    #[test]
    fn tcp_connections_of_both_families_are_read_and_nothing_else() {
        let table = parse(TABLE.as_bytes(), 9).expect("memory");
        assert!(!table.truncated);
        assert_eq!(table.entries.len(), 2);
        let (v4, v6) = (&table.entries[0], &table.entries[1]);
        let at = |text: &str| text.parse::<SocketAddr>().expect("an address");
        assert_eq!(
            v4.virtual_flow,
            Flow { src: at("10.12.1.2:40001"), dst: at("10.12.100.1:3306") }
        );
        assert_eq!(
            (v4.server, v4.state.as_str(), v4.left_s),
            (at("10.12.2.2:3306"), "ESTABLISHED", 3)
        );
        assert_eq!(v6.server, at("[fd00:c:2::2]:3306"));
        assert_eq!((v6.state.as_str(), v6.left_s), ("CLOSE_WAIT", 12));
    }

    #[test]
    fn a_table_longer_than_the_limit_is_marked_truncated() {
        let table = parse(TABLE.as_bytes(), 1).expect("memory");
        assert_eq!((table.entries.len(), table.truncated), (1, true));
        assert!(!parse(TABLE.as_bytes(), 2).expect("memory").truncated);
    }

    #[test]
    fn a_table_whose_entries_moved_is_complete_after_several_readings() {
        let lines: Vec<_> = TABLE.lines().collect();
        let reading = |shown: &[usize]| {
            let text: Vec<_> = shown.iter().map(|line| lines[*line]).collect();
            text.join("\n")
        };
        let mut shown = Shown::default();
        shown.add(reading(&[0, 1, 1, 2]).as_bytes(), 9).expect("memory");
        assert!(!shown.is_all(4), "one entry was shown twice, two not at all");
        shown.add(reading(&[0, 2, 3, 4]).as_bytes(), 9).expect("memory");
        assert!(shown.is_all(4));
        assert_eq!(shown.table, parse(TABLE.as_bytes(), 9).expect("memory"));
    }

    #[test]
    fn without_a_count_a_long_table_is_read_until_nothing_is_added() {
        let line = |port: u16| {
            format!("TCP 0A0C0102 {port:04X} 0A0C6401 0CEA 0A0C0202 0CEA ESTABLISHED     900\n")
        };
        let whole: Vec<String> = (1..=100).map(line).collect();
        // An entry of another namespace ended while the table was read: the 62nd is not shown.
        let gap = [&whole[..61], &whole[62..]].concat().concat();
        let whole = whole.concat();
        let read = |texts: &[&str]| {
            let mut left = texts.iter().copied();
            let table = read_repeatedly(|| Some((None, left.next()?.as_bytes())), 999);
            (table.map(|table| table.entries.len()), left.count())
        };
        assert_eq!(read(&[&gap, &whole, &whole]), (Some(100), 0));
        assert_eq!(read(&[&whole, &whole, &whole]), (Some(100), 1), "two readings agree");
        assert_eq!(read(&[TABLE, TABLE]), (Some(2), 1), "a short table is shown in one piece");
    }

    #[test]
    fn a_truncated_line_is_not_an_entry() {
        let line = TABLE.lines().nth(1).expect("the first entry").trim_end_matches("       3");
        assert_eq!(entry(line), None);
        assert_eq!(entry("TCP zz 9C41 0A0C6401 0CEA 0A0C0202 0CEA ESTABLISHED 3"), None);
    }

    #[test]
    fn newer_kernels_show_the_number_of_connections_in_the_status() {
        let status = "Conns:\t2\nConn buckets:\t256 (8 bits, lfactor -4)\nServices:\t1\n";
        assert_eq!(parse_count(status), Some(2));
        assert_eq!(parse_count("Services:\t1\n"), None);
    }
}
