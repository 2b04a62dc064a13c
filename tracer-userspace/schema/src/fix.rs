//! A fix, as shown in incidents and in the documents of `check` and `plan`.

use rsttrace_core::fix;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::text::sentence;

/// A fix with its owner, its commands and its undo commands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Fix {
    /// Stable id: the same action has the same id everywhere.
    pub id: String,
    /// Who can make the change.
    #[schemars(extend("enum" = ["application", "pod", "node", "kube-proxy", "cni", "cloud", "firewall"]))]
    pub owner: String,
    /// What may go wrong when it is applied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = ["low", "medium"]))]
    pub risk: Option<String>,
    /// What to do, in a clause.
    pub summary: String,
    /// Why it solves the problem.
    #[serde(default)]
    pub reason: String,
    /// The value that was found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current: Option<String>,
    /// The value to set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wanted: Option<String>,
    /// Lines to run, or to write into the application, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub commands: Vec<String>,
    /// Actions without a command, in sentences.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub advice: Vec<String>,
    /// The file that keeps the change over a reboot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persist: Option<Persist>,
    /// Lines that show whether the change is in force.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub verify: Vec<String>,
    /// Lines that restore the value that was found.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub undo: Vec<String>,
}

/// A file that keeps a change over a reboot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Persist {
    pub path: String,
    /// The whole content.
    pub text: String,
}

impl From<&fix::Fix> for Fix {
    fn from(fix: &fix::Fix) -> Self {
        Self {
            id: fix.id.into(),
            owner: fix.owner.id().into(),
            risk: Some(fix.risk.id().into()),
            summary: sentence(&fix.summary),
            reason: fix.reason.clone(),
            current: fix.current.clone(),
            wanted: fix.wanted.clone(),
            commands: fix.commands(),
            advice: fix.advice(),
            persist: fix.persist().map(|file| Persist { path: file.path, text: file.text }),
            verify: fix.verify(),
            undo: fix.undo(),
        }
    }
}
