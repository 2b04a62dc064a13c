//! Which incidents are shown: all given filters must match.

mod expression;

use std::{
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use rsttrace_core::{
    causes::{self, cause::Cause},
    incident::Incident,
    verdict::Family,
};
use rsttrace_model::owner::Owner;

use crate::render::explain;

pub use expression::{Expression, ParseError};

/// An address, a CIDR (`10.0.0.0/8`), or an address with a port.
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
        let ip: IpAddr = ip.parse().map_err(|_| {
            format!("invalid address `{text}` (expected an address, CIDR or address:port)")
        })?;
        // Events show mapped addresses as IPv4. A CIDR keeps the family that its prefix length belongs to.
        let ip = if prefix.is_none() { ip.to_canonical() } else { ip };
        let longest = if ip.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            None => longest,
            Some(prefix) => {
                prefix.parse().ok().filter(|prefix| *prefix <= longest).ok_or_else(|| {
                    format!("invalid prefix length `/{prefix}` (expected /0 to /{longest})")
                })?
            }
        };
        Ok(Self { ip, prefix, port: None })
    }
}

/// The file system of namespaces (include/uapi/linux/magic.h).
const NSFS_MAGIC: rustix::fs::FsWord = 0x6e73_6673;

/// The inode number of a network namespace, given by number, name or path. A name or path is looked up now.
///
/// # Errors
/// A message when there is no such namespace.
pub fn parse_netns(text: &str) -> Result<u32, String> {
    use std::os::linux::fs::MetadataExt as _;
    if let Ok(inum) = text.parse() {
        return Ok(inum);
    }
    let path = match text.contains('/') {
        true => text.to_owned(),
        false => format!("/run/netns/{text}"),
    };
    // The name of a deleted namespace may remain as an ordinary file.
    let is_namespace = rustix::fs::statfs(path.as_str()).is_ok_and(|fs| fs.f_type == NSFS_MAGIC);
    std::fs::metadata(&path)
        .ok()
        .filter(|_| is_namespace)
        .and_then(|meta| u32::try_from(meta.st_ino()).ok())
        .ok_or_else(|| format!("network namespace `{path}` not found"))
}

/// Bytes of a process name that the kernel keeps (`TASK_COMM_LEN` - 1, include/linux/sched.h).
const COMM_BYTES: usize = 15;

/// A process name as the kernel keeps it.
///
/// # Errors
/// A message when no process can have this name.
pub fn parse_comm(text: &str) -> Result<String, String> {
    match text.len() {
        0 => Err("empty process name".into()),
        1..=COMM_BYTES => Ok(text.to_owned()),
        _ => {
            let kept = &text[..text.floor_char_boundary(COMM_BYTES)];
            Err(format!(
                "the kernel keeps {COMM_BYTES} bytes of a process name (did you mean `{kept}`?)"
            ))
        }
    }
}

/// A cause id.
///
/// # Errors
/// A message that suggests similar ids, or lists all ids.
pub fn parse_cause(text: &str) -> Result<String, String> {
    if let Some(cause) = causes::by_id(text) {
        return Ok(cause.id.to_owned());
    }
    let likeness = |id: &str| {
        let part = text.len() >= 3 && id.contains(text);
        if part { 1.0 } else { strsim::jaro(id, text) }
    };
    let mut near: Vec<_> =
        causes::ALL.iter().map(|it| (likeness(it.id), it.id)).filter(|it| it.0 > SIMILAR).collect();
    near.sort_by(|a, b| b.0.total_cmp(&a.0));
    let words: Vec<_> = near.iter().map(|(_, id)| format!("`{id}`")).take(SUGGESTED).collect();
    Err(match words.is_empty() {
        true => format!("unknown cause `{text}`; the causes are\n{}", explain::ids(80).trim_end()),
        false => format!(
            "unknown cause `{text}` (did you mean {}?)\n`rsttrace explain` lists all causes",
            words.join(" or ")
        ),
    })
}

/// Jaro similarity above which a word is suggested; 1 means equal.
const SIMILAR: f64 = 0.8;

/// Suggestions at most; more would not help.
const SUGGESTED: usize = 4;

/// A family of causes.
///
/// # Errors
/// A message that lists the families.
pub fn parse_family(text: &str) -> Result<Family, String> {
    Family::ALL.into_iter().find(|family| family.id() == text).ok_or_else(|| {
        let known: Vec<_> = Family::ALL.iter().map(|family| family.id()).collect();
        format!("unknown family `{text}` (expected one of {})", known.join(", "))
    })
}

/// A container, given by its id or a prefix of its id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container(String);

impl FromStr for Container {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_id = (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit());
        is_id
            .then(|| Self(text.to_ascii_lowercase()))
            .ok_or_else(|| format!("invalid container id `{text}` (expected 1 to 64 hex digits)"))
    }
}

impl Container {
    fn matches(&self, owner: &Owner) -> bool {
        owner.container_id.as_ref().is_some_and(|id| id.starts_with(&self.0))
    }
}

/// A pod: `NAME`, `NAMESPACE/NAME`, or UID.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodName {
    namespace: Option<String>,
    name: String,
}

impl FromStr for PodName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (namespace, name) =
            text.split_once('/').map_or((None, text), |(namespace, name)| (Some(namespace), name));
        let is_empty = namespace.is_some_and(str::is_empty) || name.is_empty();
        if is_empty || name.contains('/') {
            return Err(format!("invalid pod `{text}` (expected NAME, NAMESPACE/NAME or UID)"));
        }
        Ok(Self { namespace: namespace.map(str::to_owned), name: name.to_owned() })
    }
}

impl PodName {
    fn matches(&self, owner: &Owner) -> bool {
        let Some(pod) = &owner.pod else {
            return false;
        };
        match &self.namespace {
            None => [&pod.name, &pod.uid].into_iter().flatten().any(|it| *it == self.name),
            Some(_) => pod.namespace == self.namespace && pod.name.as_ref() == Some(&self.name),
        }
    }
}

/// The value of `--fail-on`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FailOn {
    /// Every cause that is not benign.
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
            .map_err(|error| format!("expected `any`, a family or a cause; {error}"))
    }
}

impl FailOn {
    pub fn matches(&self, incident: &Incident) -> bool {
        self.is(incident.cause)
    }

    fn is(&self, cause: &Cause) -> bool {
        match self {
            Self::Any => cause.family != Family::Benign,
            Self::Family(family) => cause.family == *family,
            Self::Cause(id) => cause.id == id,
        }
    }
}

/// Filters; an empty list matches everything.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    pub pid: Vec<u32>,
    pub comm: Vec<String>,
    pub port: Vec<u16>,
    pub src: Vec<Side>,
    pub dst: Vec<Side>,
    /// Either end.
    pub cidr: Vec<Side>,
    pub expression: Option<Expression>,
    pub netns: Vec<u32>,
    pub container: Vec<Container>,
    pub pod: Vec<PodName>,
    pub cause: Vec<String>,
    pub family: Vec<Family>,
}

impl Filter {
    /// Whether the filters on causes and families match this cause.
    fn lets_through_cause(&self, cause: &Cause) -> bool {
        (self.cause.is_empty() || self.cause.iter().any(|id| id == cause.id))
            && (self.family.is_empty() || self.family.contains(&cause.family))
    }

    /// Whether any cause matches the filters on causes and families.
    pub fn can_match_a_cause(&self) -> bool {
        causes::ALL.iter().any(|cause| self.lets_through_cause(cause))
    }

    /// Whether a connection can match both `src` and `dst`: its ends have the same address family.
    pub fn can_match_addresses(&self) -> bool {
        let both = |is: fn(&Side) -> bool| {
            let has = |sides: &[Side]| sides.is_empty() || sides.iter().any(is);
            has(&self.src) && has(&self.dst)
        };
        both(|side| side.ip.is_ipv4()) || both(|side| side.ip.is_ipv6())
    }

    /// Whether an incident that `--fail-on` matches can pass the filters.
    pub fn lets_through(&self, wanted: &FailOn) -> bool {
        causes::ALL.iter().any(|cause| self.lets_through_cause(cause) && wanted.is(cause))
    }

    /// Whether the filters name a benign cause or the benign family.
    pub fn asks_for_benign(&self) -> bool {
        let named = |cause: &Cause| self.cause.iter().any(|id| id == cause.id);
        self.family.contains(&Family::Benign)
            || causes::ALL.iter().any(|cause| cause.family == Family::Benign && named(cause))
    }

    pub fn matches(&self, incident: &Incident) -> bool {
        fn any<T>(wanted: &[T], holds: impl Fn(&T) -> bool) -> bool {
            wanted.is_empty() || wanted.iter().any(holds)
        }
        let source: Vec<SocketAddr> =
            [Some(incident.source), incident.source_nat].into_iter().flatten().collect();
        let destination: Vec<SocketAddr> =
            [Some(incident.destination), incident.destination_nat].into_iter().flatten().collect();
        // The process that is filtered for may be at either end.
        let owned =
            |holds: &dyn Fn(&Owner) -> bool| incident.owner.iter().chain(&incident.peer).any(holds);
        any(&self.pid, |pid| owned(&|owner| owner.pid == *pid))
            && any(&self.comm, |comm| owned(&|owner| owner.comm == *comm))
            && any(&self.container, |container| owned(&|owner| container.matches(owner)))
            && any(&self.pod, |pod| owned(&|owner| pod.matches(owner)))
            && any(&self.port, |port| source.iter().chain(&destination).any(|a| a.port() == *port))
            && any(&self.src, |side| source.iter().any(|address| side.matches(*address)))
            && any(&self.dst, |side| destination.iter().any(|address| side.matches(*address)))
            && any(&self.cidr, |side| source.iter().chain(&destination).any(|a| side.matches(*a)))
            && self.expression.as_ref().is_none_or(|it| it.matches(&source, &destination))
            && any(&self.netns, |netns| incident.namespaces.contains(netns))
            && any(&self.cause, |cause| incident.cause.id == cause)
            && any(&self.family, |family| incident.cause.family == *family)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rsttrace_core::testing::{CLIENT_NS, NODE_NS, SERVER_NS, article, replay};
    use rsttrace_model::owner::Pod;

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
    fn all_filters_must_match() {
        let incident = replay(article()).remove(0);
        let filter =
            Filter { port: vec![3306], cause: vec!["linger_zero".into()], ..Filter::default() };
        assert!(!filter.matches(&incident));
    }

    #[test]
    fn a_prefix_that_is_too_long_is_an_error_that_names_it() {
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
    fn filters_on_the_owner_do_not_match_without_an_owner() {
        let mut incident = replay(article()).remove(0);
        let filter = Filter { comm: vec!["node".into()], ..Filter::default() };
        assert!(!filter.matches(&incident));
        incident.owner = Some(Owner { pid: 1, comm: "node".into(), ..Owner::default() });
        assert!(filter.matches(&incident));
    }

    #[test]
    fn the_process_container_and_pod_of_either_end_match() {
        let mut incident = replay(article()).remove(0);
        incident.owner = Some(Owner { pid: 1, comm: "node".into(), ..Owner::default() });
        incident.peer = Some(Owner {
            pid: 2,
            comm: "mysqld".into(),
            container_id: Some("3f9c".repeat(16)),
            pod: Some(Pod {
                uid: Some("81e09ae0-12ec-4ec5-94b8-51cda7906370".into()),
                name: Some("mysql-0".into()),
                namespace: Some("shop".into()),
            }),
            ..Owner::default()
        });
        let pod =
            |text: &str| Filter { pod: vec![text.parse().expect("a pod")], ..Filter::default() };
        let container = |text: &str| Filter {
            container: vec![text.parse().expect("an id")],
            ..Filter::default()
        };
        for filter in [
            Filter { pid: vec![2], ..Filter::default() },
            Filter { comm: vec!["mysqld".into()], ..Filter::default() },
            Filter { comm: vec!["node".into()], pid: vec![2], ..Filter::default() },
            container("3f9c3f9c3f9c"),
            container("3F9C"),
            pod("mysql-0"),
            pod("shop/mysql-0"),
            pod("81e09ae0-12ec-4ec5-94b8-51cda7906370"),
        ] {
            assert!(filter.matches(&incident), "{filter:?}");
        }
        for filter in [container("9c"), pod("mysql"), pod("default/mysql-0"), pod("shop/mysql-1")] {
            assert!(!filter.matches(&incident), "{filter:?}");
        }
    }

    #[test]
    fn invalid_containers_and_pods_are_errors_that_name_them() {
        for text in ["", "web", &"3".repeat(65)] {
            assert!(text.parse::<Container>().is_err_and(|error| error.contains(text)));
        }
        for text in ["", "/mysql-0", "shop/", "a/b/c"] {
            assert!(text.parse::<PodName>().is_err_and(|error| error.contains(text)));
        }
    }

    #[test]
    fn every_namespace_of_the_incident_matches() {
        let incident = replay(article()).remove(0);
        let filter = |netns| Filter { netns: vec![netns], ..Filter::default() };
        assert!(filter(CLIENT_NS).matches(&incident) && filter(NODE_NS).matches(&incident));
        assert!(!filter(SERVER_NS).matches(&incident));
    }

    #[test]
    fn a_namespace_is_found_by_number_and_path_and_other_files_are_errors() {
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
        incident.cause = causes::by_id("connection_refused").expect("a cause");
        assert!(!FailOn::Any.matches(&incident));
    }

    #[test]
    fn an_unknown_cause_suggests_similar_ids_or_lists_all() {
        let error = |word| parse_cause(word).expect_err("unknown");
        assert!(error("ipvs_idle_expird").contains("did you mean `ipvs_idle_expired`"));
        assert!(error("halfclose").contains("did you mean `ipvs_halfclose_expired`?"));
        let all = error("gremlins");
        for cause in causes::ALL {
            assert!(all.contains(cause.id), "{cause:?} is missing in:\n{all}");
        }
        assert!("gremlins".parse::<FailOn>().is_err_and(|error| error.contains("linger_zero")));
    }
}
