//! Runs `rsttrace check` and `rsttrace fix` as an operator does.

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

/// The exit code and the output of a command.
pub struct CommandResult {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl CommandResult {
    /// Runs a command and waits for its end.
    pub fn of(mut command: Command) -> Result<Self> {
        command.stdin(Stdio::null());
        let output = tools::apart(move || Ok(command.output()?))?;
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        Ok(Self {
            code: output.status.code(),
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
        })
    }

    /// One line for an error message.
    pub fn describe(&self) -> String {
        let code = self.code.map_or_else(|| "a signal".to_owned(), |code| format!("code {code}"));
        let text = format!("{} {}", self.stdout.trim(), self.stderr.trim());
        format!("{code}: {}", text.split_whitespace().collect::<Vec<_>>().join(" "))
    }
}

impl Rsttrace<'_> {
    pub fn run(&self, arguments: &[&str]) -> Result<CommandResult> {
        let mut command = Command::new(self.program);
        command.args(arguments);
        CommandResult::of(command).with_context(|| format!("run rsttrace {}", arguments.join(" ")))
    }

    fn succeed(&self, arguments: &[&str]) -> Result<String> {
        let result = self.run(arguments)?;
        let words = arguments.join(" ");
        ensure!(result.code == Some(0), "`rsttrace {words}`: {}", result.describe());
        Ok(result.stdout)
    }

    /// The findings of `rsttrace check` on this host.
    pub fn check(&self) -> Result<Vec<Value>> {
        self.succeed(&["check", "-o", "json"])?
            .lines()
            .map(|line| {
                serde_json::from_str(line).with_context(|| format!("check printed {line:?}"))
            })
            .collect()
    }
}

/// Runs `rsttrace fix` for one incident, with its own journal.
pub struct Fixer<'a> {
    rsttrace: &'a Rsttrace<'a>,
    incidents: PathBuf,
    event_id: String,
    state: PathBuf,
    options: &'a [&'a str],
}

impl<'a> Fixer<'a> {
    pub fn new(
        rsttrace: &'a Rsttrace<'a>,
        directory: &Path,
        incident: &Value,
        options: &'a [&'a str],
    ) -> Result<Self> {
        std::fs::create_dir_all(directory)
            .with_context(|| format!("make {}", directory.display()))?;
        let incidents = directory.join("incidents.ndjson");
        std::fs::write(&incidents, format!("{incident}\n"))
            .with_context(|| format!("write {}", incidents.display()))?;
        let event_id = incident["event_id"].as_str().context("no event_id")?.to_owned();
        Ok(Self { rsttrace, incidents, event_id, state: directory.join("state"), options })
    }

    fn arguments<'b>(&'b self, more: &[&'b str]) -> Result<Vec<&'b str>> {
        let path = |path: &'b Path| path.to_str().context("a path is not UTF-8");
        let mut arguments = vec!["fix", "--from", path(&self.incidents)?];
        arguments.extend(["--event", &self.event_id, "--state-dir", path(&self.state)?]);
        arguments.extend(self.options);
        arguments.extend(more);
        Ok(arguments)
    }

    /// The human-readable plan. `options` are passed each time.
    pub fn plan(&self) -> Result<String> {
        self.rsttrace.succeed(&self.arguments(&[])?)
    }

    pub fn apply(&self) -> Result<String> {
        self.rsttrace.succeed(&self.arguments(&["--apply", "--yes"])?)
    }

    pub fn undo(&self) -> Result<String> {
        let state = self.state.to_str().context("a path is not UTF-8")?;
        self.rsttrace.succeed(&["fix", "--undo", "--state-dir", state])
    }
}
