//! The syntax of a path: its two ends, and the limits that only the user knows.

use std::{
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

/// The value of `--path`: `SRC→DST` or `SRC->DST`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    pub src: Endpoint,
    pub dst: Endpoint,
}

/// An end of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// Port 0 is any port.
    Address(SocketAddr),
    Pid(u32),
    /// A network namespace (number, name or path) or a pod (NAME, NAMESPACE/NAME).
    Name(String),
}

impl FromStr for Spec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (src, dst) = text
            .split_once('→')
            .or_else(|| text.split_once("->"))
            .ok_or_else(|| format!("invalid path `{text}` (expected SRC→DST or SRC->DST)"))?;
        Ok(Self { src: src.trim().parse()?, dst: dst.trim().parse()? })
    }
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err(
                "empty end of the path (expected an address, a network namespace, a pod or pid:N)"
                    .into(),
            );
        }
        if let Some(pid) = text.strip_prefix("pid:") {
            let invalid = |_| format!("invalid process id `{pid}` (expected a number)");
            return pid.parse().map(Self::Pid).map_err(invalid);
        }
        if let Ok(address) = text.parse() {
            return Ok(Self::Address(address));
        }
        match text.parse::<IpAddr>() {
            Ok(ip) => Ok(Self::Address(SocketAddr::new(ip, 0))),
            Err(_) => Ok(Self::Name(text.into())),
        }
    }
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Address(address) if address.port() == 0 => write!(f, "{}", address.ip()),
            Self::Address(address) => write!(f, "{address}"),
            Self::Pid(pid) => write!(f, "pid:{pid}"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

/// An idle limit that no table of this host holds: `lb=350`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assumption {
    pub name: String,
    pub seconds: u64,
}

impl FromStr for Assumption {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let invalid =
            || format!("invalid idle limit `{text}` (expected NAME=SECONDS, for example lb=350)");
        let (name, seconds) = text.split_once('=').ok_or_else(invalid)?;
        let seconds = seconds.strip_suffix('s').unwrap_or(seconds);
        match seconds.parse() {
            Ok(seconds) if seconds > 0 && !name.is_empty() => {
                Ok(Self { name: name.into(), seconds })
            }
            _ => Err(invalid()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ends_are_addresses_processes_or_names() {
        let spec: Spec = "shop/orders→10.96.0.1:3306".parse().expect("a path");
        assert_eq!(spec.src, Endpoint::Name("shop/orders".into()));
        assert_eq!(spec.dst.to_string(), "10.96.0.1:3306");
        let spec: Spec = "pid:12 -> [fd00::1]:80".parse().expect("a path");
        assert_eq!((spec.src, spec.dst.to_string()), (Endpoint::Pid(12), "[fd00::1]:80".into()));
        for wrong in ["", "a", "→b", "a->", "pid:x->b"] {
            assert!(wrong.parse::<Spec>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn assumptions_have_a_name_and_seconds() {
        let lb = Assumption { name: "lb".into(), seconds: 350 };
        assert_eq!(("lb=350".parse(), "lb=350s".parse()), (Ok(lb.clone()), Ok(lb)));
        for wrong in ["lb", "lb=", "=5", "lb=0", "lb=-1", "lb=5m"] {
            assert!(wrong.parse::<Assumption>().is_err(), "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_without_a_panic(text in "\\PC{0,20}(->|→)?\\PC{0,20}") {
            let _ = text.parse::<Spec>();
            let _ = text.parse::<Assumption>();
        }
    }
}
