//! Which incidents are shown: all given criteria must hold.

use std::{
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use crate::{
    cause::{self, Family},
    incident::Incident,
    out::explain,
};

/// An address, a network (`10.0.0.0/8`), or an address with a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Side {
    ip: IpAddr,
    prefix: u8,
    port: Option<u16>,
}

impl Side {
    fn matches(&self, address: SocketAddr) -> bool {
        let same_network = match (self.ip, address.ip()) {
            (IpAddr::V4(a), IpAddr::V4(b)) => {
                let shift = 32 - u32::from(self.prefix);
                shift == 32 || u32::from(a) >> shift == u32::from(b) >> shift
            }
            (IpAddr::V6(a), IpAddr::V6(b)) => {
                let shift = 128 - u32::from(self.prefix);
                shift == 128 || u128::from(a) >> shift == u128::from(b) >> shift
            }
            _ => false,
        };
        same_network && self.port.is_none_or(|port| port == address.port())
    }
}

impl FromStr for Side {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(address) = text.parse::<SocketAddr>() {
            let ip = address.ip().to_canonical();
            return Ok(Self {
                ip,
                prefix: if ip.is_ipv4() { 32 } else { 128 },
                port: Some(address.port()),
            });
        }
        let (ip, prefix) = text.split_once('/').map_or((text, None), |(ip, p)| (ip, Some(p)));
        let ip: IpAddr =
            ip.parse().map_err(|_| format!("`{text}` is no address, network or address:port"))?;
        // Events show mapped addresses as IPv4. A network keeps the family its length belongs to.
        let ip = if prefix.is_none() { ip.to_canonical() } else { ip };
        let longest = if ip.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            None => longest,
            Some(prefix) => prefix
                .parse()
                .ok()
                .filter(|prefix| *prefix <= longest)
                .ok_or_else(|| format!("`/{prefix}` is no prefix length of {ip}"))?,
        };
        Ok(Self { ip, prefix, port: None })
    }
}

/// File system of namespaces (include/uapi/linux/magic.h).
const NSFS_MAGIC: rustix::fs::FsWord = 0x6e73_6673;

/// A network namespace, by inode number, or by a name or path that is looked up at once.
///
/// # Errors
/// A sentence when there is no such namespace.
pub fn parse_netns(text: &str) -> Result<u32, String> {
    use std::os::linux::fs::MetadataExt as _;
    if let Ok(inum) = text.parse() {
        return Ok(inum);
    }
    let path = match text.contains('/') {
        true => text.to_owned(),
        false => format!("/run/netns/{text}"),
    };
    // A name whose namespace is gone may be left behind as an ordinary file.
    let is_namespace = rustix::fs::statfs(path.as_str()).is_ok_and(|fs| fs.f_type == NSFS_MAGIC);
    std::fs::metadata(&path)
        .ok()
        .filter(|_| is_namespace)
        .and_then(|meta| u32::try_from(meta.st_ino()).ok())
        .ok_or_else(|| format!("there is no network namespace {path}"))
}

/// A cause id of the contract.
///
/// # Errors
/// A sentence that names what is meant, perhaps, and all there are.
pub fn parse_cause(text: &str) -> Result<String, String> {
    if let Some(cause) = cause::by_id(text) {
        return Ok(cause.id.to_owned());
    }
    let likeness = |id: &str| {
        let part = text.len() >= 3 && id.contains(text);
        if part { 1.0 } else { strsim::jaro(id, text) }
    };
    let mut near: Vec<_> =
        cause::ALL.iter().map(|it| (likeness(it.id), it.id)).filter(|it| it.0 > SIMILAR).collect();
    near.sort_by(|a, b| b.0.total_cmp(&a.0));
    let words: Vec<_> = near.iter().map(|(_, id)| format!("`{id}`")).take(SUGGESTED).collect();
    Err(match words.is_empty() {
        true => format!("there is no such cause; there are\n{}", explain::ids(80)),
        false => format!(
            "there is no such cause; did you mean {}?\n`rsttrace explain` lists all",
            words.join(" or ")
        ),
    })
}

/// Above this two words look alike; below 1, which is equal (Jaro's measure).
const SIMILAR: f64 = 0.8;

/// More suggestions than this are none.
const SUGGESTED: usize = 4;

/// A family of causes.
///
/// # Errors
/// A sentence that lists the families.
pub fn parse_family(text: &str) -> Result<Family, String> {
    Family::ALL.into_iter().find(|family| family.id() == text).ok_or_else(|| {
        let known: Vec<_> = Family::ALL.iter().map(|family| family.id()).collect();
        format!("`{text}` is no family; there are {}", known.join(", "))
    })
}

/// What `--fail-on` waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FailOn {
    /// Anything that is not benign.
    Any,
    Family(Family),
    Cause(String),
}

impl FromStr for FailOn {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "any" {
            return Ok(Self::Any);
        }
        parse_family(text)
            .map(Self::Family)
            .or_else(|_| parse_cause(text).map(Self::Cause))
            .map_err(|error| format!("it is neither `any` nor a family, and {error}"))
    }
}

impl FailOn {
    pub fn matches(&self, incident: &Incident) -> bool {
        match self {
            Self::Any => incident.cause.family != Family::Benign,
            Self::Family(family) => incident.cause.family == *family,
            Self::Cause(cause) => incident.cause.id == cause,
        }
    }
}

/// Criteria; an empty one lets everything through.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    pub pid: Vec<u32>,
    pub comm: Vec<String>,
    pub port: Vec<u16>,
    pub src: Vec<Side>,
    pub dst: Vec<Side>,
    pub netns: Vec<u32>,
    pub cause: Vec<String>,
    pub family: Vec<Family>,
}

impl Filter {
    pub fn matches(&self, incident: &Incident) -> bool {
        fn any<T>(wanted: &[T], holds: impl Fn(&T) -> bool) -> bool {
            wanted.is_empty() || wanted.iter().any(holds)
        }
        let source: Vec<SocketAddr> =
            [Some(incident.source), incident.source_nat].into_iter().flatten().collect();
        let destination: Vec<SocketAddr> =
            [Some(incident.destination), incident.destination_nat].into_iter().flatten().collect();
        let owner = incident.owner.as_ref();
        any(&self.pid, |pid| owner.is_some_and(|owner| owner.pid == *pid))
            && any(&self.comm, |comm| owner.is_some_and(|owner| owner.comm == *comm))
            && any(&self.port, |port| source.iter().chain(&destination).any(|a| a.port() == *port))
            && any(&self.src, |side| source.iter().any(|address| side.matches(*address)))
            && any(&self.dst, |side| destination.iter().any(|address| side.matches(*address)))
            && any(&self.netns, |netns| incident.netns == *netns)
            && any(&self.cause, |cause| incident.cause.id == cause)
            && any(&self.family, |family| incident.cause.family == *family)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        host::Owner,
        testing::{article, replay},
    };

    fn side(text: &str) -> Side {
        text.parse().expect("a side")
    }

    #[test]
    fn a_destination_matches_on_either_side_of_nat() {
        let incident = replay(article()).remove(0);
        for dst in ["10.96.0.10", "10.0.1.2:3306", "10.96.0.0/16"] {
            let filter = Filter { dst: vec![side(dst)], ..Filter::default() };
            assert!(filter.matches(&incident), "{dst}");
        }
        let other = Filter { dst: vec![side("10.97.0.0/16")], ..Filter::default() };
        assert!(!other.matches(&incident));
    }

    #[test]
    fn all_criteria_must_hold() {
        let incident = replay(article()).remove(0);
        let filter =
            Filter { port: vec![3306], cause: vec!["linger_zero".into()], ..Filter::default() };
        assert!(!filter.matches(&incident));
    }

    #[test]
    fn a_prefix_that_is_too_long_is_refused_by_name() {
        assert!("10.0.0.0/33".parse::<Side>().is_err_and(|error| error.contains("/33")));
        assert!(side("0.0.0.0/0").matches("1.2.3.4:5".parse().expect("address")));
    }

    #[test]
    fn a_mapped_address_is_the_ipv4_address_it_maps() {
        for text in ["::ffff:10.0.0.1", "[::ffff:10.0.0.1]:5"] {
            assert!(side(text).matches("10.0.0.1:5".parse().expect("address")), "{text}");
        }
    }

    #[test]
    fn criteria_on_the_owner_fail_when_there_is_none() {
        let mut incident = replay(article()).remove(0);
        let filter = Filter { comm: vec!["node".into()], ..Filter::default() };
        assert!(!filter.matches(&incident));
        incident.owner = Some(Owner { pid: 1, comm: "node".into(), ..Owner::default() });
        assert!(filter.matches(&incident));
    }

    #[test]
    fn a_namespace_is_found_by_number_and_path_and_nothing_else_is_one() {
        use std::os::linux::fs::MetadataExt as _;
        let inum = std::fs::metadata("/proc/self/ns/net").expect("procfs").st_ino();
        assert_eq!(parse_netns("/proc/self/ns/net").map(u64::from), Ok(inum));
        assert_eq!(parse_netns("4026531840"), Ok(4_026_531_840));
        assert!(parse_netns("/etc/passwd").is_err_and(|error| error.contains("/etc/passwd")));
        assert!(parse_netns("no-such").is_err_and(|error| error.contains("no-such")));
    }

    #[test]
    fn any_fails_on_everything_but_benign_resets() {
        let mut incident = replay(article()).remove(0);
        assert!(FailOn::Any.matches(&incident));
        incident.cause = cause::by_id("connection_refused").expect("a cause");
        assert!(!FailOn::Any.matches(&incident));
    }

    #[test]
    fn an_unknown_cause_brings_what_was_meant_or_all_there_are() {
        let told = |word| parse_cause(word).expect_err("no cause");
        assert!(told("ipvs_idle_expird").contains("did you mean `ipvs_idle_expired`"));
        assert!(told("halfclose").contains("did you mean `ipvs_halfclose_expired`?"));
        let all = told("gremlins");
        for cause in cause::ALL {
            assert!(all.contains(cause.id), "{cause:?} is missing in:\n{all}");
        }
        assert!("gremlins".parse::<FailOn>().is_err_and(|error| error.contains("linger_zero")));
    }
}
