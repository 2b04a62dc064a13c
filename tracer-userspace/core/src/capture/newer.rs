//! Events of a newer rsttrace: a kind that this build does not know is counted, not reported as a damaged
//! line.

use std::{
    fmt::{self, Display},
    marker::PhantomData,
};

use rsttrace_model::flow::Nanos;
use serde::{
    Deserialize,
    de::{self, IgnoredAny, IntoDeserializer as _, MapAccess, Visitor},
};

use crate::event::{Body, Event};

/// Reads one line.
///
/// # Errors
/// When the line is not an event of any build.
pub fn event(line: &[u8]) -> serde_json::Result<Event> {
    serde_json::from_slice(line).or_else(|error| unknown_event(line).ok_or(error))
}

/// An event whose body has a name that [`Body`] does not know.
fn unknown_event(line: &[u8]) -> Option<Event> {
    #[derive(Deserialize)]
    struct Named {
        ts: Nanos,
        netns: u32,
        #[serde(deserialize_with = "name")]
        body: String,
    }
    let Named { ts, netns, body } = serde_json::from_slice(line).ok()?;
    let known = Body::deserialize(body.as_str().into_deserializer());
    let len = u32::try_from(line.len()).unwrap_or(u32::MAX);
    matches!(known, Err(NameError { unknown: true })).then_some(Event {
        ts,
        netns,
        body: Body::Unknown { kind: 0, len },
    })
}

/// The name of a variant with any content: `"tick"` or `{"tick": …}`.
fn name<'de, D: de::Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    struct Name<'de>(PhantomData<&'de ()>);
    impl<'de> Visitor<'de> for Name<'de> {
        type Value = String;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a name, or an object with one")
        }

        fn visit_str<E: de::Error>(self, name: &str) -> Result<String, E> {
            Ok(name.to_owned())
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<String, A::Error> {
            let entry = map.next_entry::<String, IgnoredAny>()?;
            entry.map(|(name, _)| name).ok_or_else(|| de::Error::custom("an empty object"))
        }
    }
    deserializer.deserialize_any(Name(PhantomData))
}

/// Whether the name was unknown.
#[derive(Debug)]
struct NameError {
    unknown: bool,
}

impl Display for NameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not the name of an event")
    }
}

impl std::error::Error for NameError {}

impl de::Error for NameError {
    fn custom<T: Display>(_: T) -> Self {
        Self { unknown: false }
    }

    fn unknown_variant(_: &str, _: &'static [&'static str]) -> Self {
        Self { unknown: true }
    }
}
