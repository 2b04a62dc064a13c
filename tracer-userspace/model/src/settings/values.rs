//! The values of a network namespace or of the machine.

use std::collections::BTreeMap;

use super::Setting;

/// Why a value was not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unread {
    /// This kernel has no such setting, or its module is not loaded.
    Absent,
    /// Permission to read it was denied.
    Denied,
}

/// The values of a network namespace or of the machine, as the kernel prints them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Values(BTreeMap<&'static str, Result<String, Unread>>);

impl Values {
    pub fn insert(&mut self, setting: &'static Setting, value: Result<String, Unread>) {
        self.0.insert(setting.key, value);
    }

    /// The text, without the end of the line.
    pub fn text(&self, key: &str) -> Result<&str, Unread> {
        match self.0.get(key) {
            Some(Ok(text)) => Ok(text.trim()),
            Some(Err(why)) => Err(*why),
            None => Err(Unread::Absent),
        }
    }

    /// The number; `None` if the value is unknown or not a number.
    pub fn number(&self, key: &str) -> Option<u64> {
        self.text(key).ok()?.parse().ok()
    }

    /// Whether a switch is on: any value but 0 is on in the kernel.
    pub fn is_on(&self, key: &str) -> Option<bool> {
        self.number(key).map(|value| value != 0)
    }

    /// Keys that exist and could not be read.
    pub fn denied(&self) -> impl Iterator<Item = &'static str> {
        self.0.iter().filter(|(_, value)| **value == Err(Unread::Denied)).map(|(key, _)| *key)
    }
}
