//! The state of the host before an apply. An undo relies on the journal alone, and accepts from it only
//! settings and paths of the allow-list.

use rsttrace_core::causes;
use rsttrace_model::{
    netns::{NetnsReach, Place},
    settings::Setting,
};
use serde::{Deserialize, Serialize};

use super::{FileState, Slot, is_ours};

/// Version of the format; journals of other versions are refused.
const FORMAT: u32 = 1;
/// Longest content of a file in bytes, old or new.
const LONGEST: usize = 64 * 1024;
/// Most items of a journal; no fix has more.
const MOST_ITEMS: usize = 64;

/// What a journal is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct About {
    pub id: String,
    /// The boot of the apply. Values of settings, and namespaces other than the initial one, end with it.
    pub boot_id: String,
    /// Time of the apply (RFC 3339).
    pub when: String,
    pub cause: Option<&'static str>,
    /// The fix's id.
    pub fix: String,
}

/// The old and the new state of every item that an apply changes.
#[derive(Clone, Debug)]
pub struct Journal {
    pub about: About,
    pub items: Vec<Item>,
}

#[derive(Clone, Debug)]
pub enum Item {
    Value { slot: Slot, old: String, new: String },
    File { path: String, old: FileState, new: FileState, folders: Vec<String> },
}

impl Item {
    /// The namespace of a value; `None` for a file.
    pub fn place(&self) -> Option<&Place> {
        match self {
            Self::Value { slot, .. } => Some(&slot.place),
            Self::File { .. } => None,
        }
    }

    /// For a sentence.
    pub fn describe(&self) -> String {
        match self {
            Self::Value { slot, .. } => slot.describe(),
            Self::File { path, .. } => path.clone(),
        }
    }
}

/// Whether this is a valid id: only digits and dashes, so that it cannot name a path elsewhere.
pub fn is_id(text: &str) -> bool {
    (1..=32).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit() || b == b'-')
}

#[derive(Serialize, Deserialize)]
struct JournalOnDisk {
    format: u32,
    id: String,
    boot_id: String,
    when: String,
    #[serde(default)]
    cause: Option<String>,
    fix: String,
    items: Vec<ItemOnDisk>,
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum ItemOnDisk {
    Value {
        key: String,
        netns: u32,
        reach: NetnsReach,
        /// Absent in journals of older builds and on older kernels.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cookie: Option<u64>,
        old: String,
        new: String,
    },
    File {
        path: String,
        old: FileOnDisk,
        new: FileOnDisk,
        folders: Vec<String>,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case")]
enum FileOnDisk {
    Absent,
    File { hex: String, mode: u32, uid: u32, gid: u32 },
    Link { target: String },
}

impl Journal {
    /// Serializes the journal as one JSON document.
    pub fn to_json(&self) -> String {
        let About { id, boot_id, when, cause, fix } = self.about.clone();
        let document = JournalOnDisk {
            format: FORMAT,
            id,
            boot_id,
            when,
            cause: cause.map(Into::into),
            fix,
            items: self.items.iter().map(ItemOnDisk::from).collect(),
        };
        // Plain data with string keys always serializes.
        serde_json::to_string_pretty(&document).unwrap_or_default()
    }

    /// Parses a journal, and refuses everything that an apply could not have written.
    ///
    /// # Errors
    /// What is wrong with the journal, as a clause.
    pub fn from_json(text: &[u8]) -> Result<Self, String> {
        let document: JournalOnDisk =
            serde_json::from_slice(text).map_err(|error| format!("is damaged: {error}"))?;
        if document.format != FORMAT {
            return Err(format!(
                "has format {} (this build supports format {FORMAT})",
                document.format
            ));
        }
        if !is_id(&document.id) || !rsttrace_model::escape::is_plain(&document.fix) {
            return Err("is damaged: invalid id or fix".into());
        }
        if document.items.len() > MOST_ITEMS {
            return Err("is damaged: too many items".into());
        }
        let about = About {
            id: document.id,
            boot_id: document.boot_id,
            when: document.when,
            cause: document.cause.as_deref().and_then(causes::by_id).map(|cause| cause.id),
            fix: document.fix,
        };
        let items = document.items.into_iter().map(Item::try_from).collect::<Result<_, _>>()?;
        Ok(Self { about, items })
    }
}

impl From<&Item> for ItemOnDisk {
    fn from(item: &Item) -> Self {
        match item.clone() {
            Item::Value { slot, old, new } => Self::Value {
                key: slot.setting.key.into(),
                netns: slot.place.netns,
                reach: slot.place.reach,
                cookie: slot.cookie,
                old,
                new,
            },
            Item::File { path, old, new, folders } => {
                Self::File { path, old: old.into(), new: new.into(), folders }
            }
        }
    }
}

impl TryFrom<ItemOnDisk> for Item {
    type Error = String;

    fn try_from(item: ItemOnDisk) -> Result<Self, String> {
        match item {
            ItemOnDisk::Value { key, netns, reach, cookie, old, new } => {
                let setting = Setting::find(&key)
                    .filter(|setting| setting.writable)
                    .ok_or_else(|| format!("names the setting {key:?}, which no fix changes"))?;
                let is_number =
                    |text: &str| text.parse::<u64>().is_ok_and(|n| n.to_string() == text);
                if !is_number(&old) || !is_number(&new) {
                    return Err(format!("has a value for {key} that is not a number"));
                }
                let slot = Slot { place: Place { netns, reach }, setting, cookie };
                Ok(Self::Value { slot, old, new })
            }
            ItemOnDisk::File { path, old, new, folders } => {
                if !is_ours(&path) {
                    return Err(format!("names the path {path:?}, which no fix writes"));
                }
                let is_above = |folder: &String| {
                    path.strip_prefix(folder.as_str()).is_some_and(|rest| rest.starts_with('/'))
                };
                if !folders.iter().all(is_above) {
                    return Err(format!("has folders that are not above {path:?}"));
                }
                Ok(Self::File { path, old: old.try_into()?, new: new.try_into()?, folders })
            }
        }
    }
}

impl From<FileState> for FileOnDisk {
    fn from(state: FileState) -> Self {
        match state {
            FileState::Absent => Self::Absent,
            FileState::File { bytes, mode, uid, gid } => {
                let hex = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
                Self::File { hex, mode, uid, gid }
            }
            FileState::Link { target } => Self::Link { target },
        }
    }
}

impl TryFrom<FileOnDisk> for FileState {
    type Error = String;

    fn try_from(state: FileOnDisk) -> Result<Self, String> {
        match state {
            FileOnDisk::Absent => Ok(Self::Absent),
            FileOnDisk::File { hex, mode, uid, gid } => {
                let bytes = unhex(&hex)
                    .ok_or("is damaged: the content of a file is not valid hexadecimal")?;
                // Drops set-id bits, which a settings file never has.
                let mode = mode & 0o777;
                Ok(Self::File { bytes, mode, uid, gid })
            }
            FileOnDisk::Link { target } => Ok(Self::Link { target }),
        }
    }
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || text.len() > 2 * LONGEST {
        return None;
    }
    let digit = |b: u8| char::from(b).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    text.as_bytes()
        .chunks_exact(2)
        .map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?))
        .collect()
}
