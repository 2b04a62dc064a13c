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

/// Reads the TCP entries of the calling thread's namespace, at most `most`. The kernel walks the table from
/// the start for every 4 KiB, so the time to read a whole table grows with the square of its size.
/// `None` while ip_vs is not loaded.
///
/// Since 7.2 the table grows and shrinks. While entries move, a reading shows some entries twice and others
/// not at all (`ip_vs_conn_array`). If a reading shows fewer entries than the kernel counts, the entries of
/// the next readings are added.
pub(super) fn read(most: usize) -> Option<IpvsTable> {
    let mut shown = Shown::default();
    for reading in 1..=MAX_READINGS {
        let count = count();
        shown
            .add(BufReader::new(File::open("/proc/thread-self/net/ip_vs_conn").ok()?), most)
            .ok()?;
        if reading == MAX_READINGS || count.is_none_or(|count| shown.is_all(count)) {
            break;
        }
        thread::sleep(PAUSE);
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
    fn add(&mut self, text: impl BufRead, most: usize) -> io::Result<()> {
        self.others = 0;
        for line in text.lines() {
            let Some(entry) = entry(&line?) else {
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
        Ok(())
    }

    /// Whether the readings showed all `count` entries of all protocols, or reached the limit.
    fn is_all(&self, count: u32) -> bool {
        let shown = self.table.entries.len() + self.others.saturating_sub(1);
        self.table.truncated || u32::try_from(shown).is_ok_and(|shown| shown >= count)
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
