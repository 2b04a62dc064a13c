//! The IPVS connection table: `/proc/net/ip_vs_conn` (`net/netfilter/ipvs/ip_vs_conn.c`), which no
//! netlink family offers.

use std::{
    collections::HashSet,
    fs::File,
    io::{self, BufRead, BufReader},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    thread,
    time::Duration,
};

use rsttrace_model::{
    flow::Flow,
    ipvs::{IpvsEntry, IpvsTable},
};

use super::ipvs;

/// How often a table is read until all of it was seen, and the pause between two readings: the kernel
/// moves the entries of a small table within milliseconds.
const READINGS: usize = 3;
const PAUSE: Duration = Duration::from_millis(20);

/// The TCP entries of the calling thread's namespace, at most `most`: the kernel walks the table
/// anew for every 4 KiB, so reading all of it takes time that grows with the square of its size.
/// `None` while ip_vs is not loaded.
///
/// Since 7.2 the table grows and shrinks. While its entries move, a reading shows some twice and others
/// not at all (`ip_vs_conn_array`): if fewer came than there are, what the next readings show is added.
pub(super) fn read(most: usize) -> Option<IpvsTable> {
    let mut shown = Shown::default();
    for reading in 1..=READINGS {
        let count = ipvs::connections();
        shown
            .add(BufReader::new(File::open("/proc/thread-self/net/ip_vs_conn").ok()?), most)
            .ok()?;
        if reading == READINGS || count.is_none_or(|count| shown.is_all(count)) {
            break;
        }
        thread::sleep(PAUSE);
    }
    Some(shown.table)
}

/// The same, but only the entries that are wanted, of the first `most`.
pub(super) fn find(wanted: impl Fn(&IpvsEntry) -> bool, most: usize) -> Option<IpvsTable> {
    let mut table = read(most)?;
    table.entries.retain(wanted);
    Some(table)
}

pub(super) fn parse(text: impl BufRead, most: usize) -> io::Result<IpvsTable> {
    let mut shown = Shown::default();
    shown.add(text, most)?;
    Ok(shown.table)
}

/// What readings of one table showed, each entry once.
#[derive(Default)]
struct Shown {
    table: IpvsTable,
    flows: HashSet<Flow>,
    /// Lines of the last reading that are no TCP connection, the heading among them.
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

    /// Whether that were the `count` entries of all protocols, or as many as were asked for.
    fn is_all(&self, count: u32) -> bool {
        let shown = self.table.entries.len() + self.others.saturating_sub(1);
        self.table.truncated || u32::try_from(shown).is_ok_and(|shown| shown >= count)
    }
}

/// `TCP 0A0C0102 9C41 0A0C6401 0CEA 0A0C0202 0CEA ESTABLISHED       3`; `None` for the heading, other
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

/// Eight hexadecimal digits, or IPv6 in full.
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
    fn a_longer_table_than_asked_for_says_so() {
        let table = parse(TABLE.as_bytes(), 1).expect("memory");
        assert_eq!((table.entries.len(), table.truncated), (1, true));
        assert!(!parse(TABLE.as_bytes(), 2).expect("memory").truncated);
    }

    #[test]
    fn a_table_that_moved_is_put_together_from_its_readings() {
        let lines: Vec<_> = TABLE.lines().collect();
        let reading = |shown: &[usize]| {
            let text: Vec<_> = shown.iter().map(|line| lines[*line]).collect();
            text.join("\n")
        };
        let mut shown = Shown::default();
        shown.add(reading(&[0, 1, 1, 2]).as_bytes(), 9).expect("memory");
        assert!(!shown.is_all(4), "one came twice, two not at all");
        shown.add(reading(&[0, 2, 3, 4]).as_bytes(), 9).expect("memory");
        assert!(shown.is_all(4));
        assert_eq!(shown.table, parse(TABLE.as_bytes(), 9).expect("memory"));
    }

    #[test]
    fn a_cut_line_is_no_entry() {
        let line = TABLE.lines().nth(1).expect("the first entry").trim_end_matches("       3");
        assert_eq!(entry(line), None);
        assert_eq!(entry("TCP zz 9C41 0A0C6401 0CEA 0A0C0202 0CEA ESTABLISHED 3"), None);
    }
}
