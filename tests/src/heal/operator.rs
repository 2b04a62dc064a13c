//! `rsttrace check` and `rsttrace fix`, run as an operator runs them.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::tools;

pub struct Rsttrace<'a> {
    pub program: &'a Path,
}

/// How a command ended.
pub struct Said {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Said {
    /// Runs a command to its end.
    pub fn by(mut command: Command) -> Result<Self> {
        command.stdin(Stdio::null());
        let output = tools::apart(move || Ok(command.output()?))?;
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        Ok(Self {
            code: output.status.code(),
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
        })
    }

    /// One line for a failure.
    pub fn describe(&self) -> String {
        let code = self.code.map_or_else(|| "a signal".to_owned(), |code| format!("code {code}"));
        let text = format!("{} {}", self.stdout.trim(), self.stderr.trim());
        format!("{code}: {}", text.split_whitespace().collect::<Vec<_>>().join(" "))
    }
}

impl Rsttrace<'_> {
    pub fn run(&self, arguments: &[&str]) -> Result<Said> {
        let mut command = Command::new(self.program);
        command.args(arguments);
        Said::by(command).with_context(|| format!("run rsttrace {}", arguments.join(" ")))
    }

    fn succeed(&self, arguments: &[&str]) -> Result<String> {
        let said = self.run(arguments)?;
        let words = arguments.join(" ");
        ensure!(said.code == Some(0), "`rsttrace {words}`: {}", said.describe());
        Ok(said.stdout)
    }

    /// Everything that would break on this host.
    pub fn check(&self) -> Result<Vec<Value>> {
        self.succeed(&["check", "-o", "json"])?
            .lines()
            .map(|line| {
                serde_json::from_str(line).with_context(|| format!("check printed {line:?}"))
            })
            .collect()
    }
}

/// The fixes of one healing: its incident and its journal.
pub struct Fixer<'a> {
    rsttrace: &'a Rsttrace<'a>,
    incidents: PathBuf,
    event_id: String,
    state: PathBuf,
    asked: &'a [&'a str],
}

impl<'a> Fixer<'a> {
    pub fn new(
        rsttrace: &'a Rsttrace<'a>,
        directory: &Path,
        incident: &Value,
        asked: &'a [&'a str],
    ) -> Result<Self> {
        std::fs::create_dir_all(directory)
            .with_context(|| format!("make {}", directory.display()))?;
        let incidents = directory.join("incidents.ndjson");
        std::fs::write(&incidents, format!("{incident}\n"))
            .with_context(|| format!("write {}", incidents.display()))?;
        let event_id = incident["event_id"].as_str().context("no event_id")?.to_owned();
        Ok(Self { rsttrace, incidents, event_id, state: directory.join("state"), asked })
    }

    fn arguments<'b>(&'b self, more: &[&'b str]) -> Result<Vec<&'b str>> {
        let path = |path: &'b Path| path.to_str().context("a path that is not text");
        let mut arguments = vec!["fix", "--from", path(&self.incidents)?];
        arguments.extend(["--event", &self.event_id, "--state-dir", path(&self.state)?]);
        arguments.extend(self.asked);
        arguments.extend(more);
        Ok(arguments)
    }

    /// The plan, as people read it. What `asked` says of the choice is said each time.
    pub fn plan(&self) -> Result<String> {
        self.rsttrace.succeed(&self.arguments(&[])?)
    }

    pub fn apply(&self) -> Result<String> {
        self.rsttrace.succeed(&self.arguments(&["--apply", "--yes"])?)
    }

    pub fn undo(&self) -> Result<String> {
        let state = self.state.to_str().context("a path that is not text")?;
        self.rsttrace.succeed(&["fix", "--undo", "--state-dir", state])
    }
}
