//! Runs other programs. Every error names the command and its purpose.

use std::{
    env,
    ffi::OsStr,
    io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

/// Runs `cmd` with its stdout sent to our stderr: our own stdout is for results only.
pub fn run(cmd: &mut Command, what: &str) -> Result<()> {
    let status = cmd
        .stdout(Stdio::from(io::stderr()))
        .status()
        .with_context(|| format!("{what}: cannot start `{}`", show(cmd)))?;
    if !status.success() {
        bail!("{what}: `{}` ended with {status}", show(cmd));
    }
    Ok(())
}

/// Prints the command, then runs it: for commands that change the machine.
pub fn run_loudly(cmd: &mut Command, what: &str) -> Result<()> {
    eprintln!("+ {}", show(cmd));
    run(cmd, what)
}

/// Runs `cmd` and returns what it wrote to stdout; its stderr becomes part of the error.
pub fn output(cmd: &mut Command, what: &str) -> Result<String> {
    let out = cmd
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{what}: cannot start `{}`", show(cmd)))?;
    if !out.status.success() {
        let stderr = String::from_utf8_lossy(&out.stderr);
        bail!("{what}: `{}` ended with {}\n{}", show(cmd), out.status, stderr.trim_end());
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// The command as typed in a shell, with the variables that it sets.
pub fn show(cmd: &Command) -> String {
    let vars = cmd.get_envs().filter_map(|(name, value)| Some(assignment(name, value?)));
    let words = [cmd.get_program()].into_iter().chain(cmd.get_args());
    vars.chain(words.map(quote)).collect::<Vec<_>>().join(" ")
}

fn assignment(name: &OsStr, value: &OsStr) -> String {
    let name = name.to_string_lossy();
    // For PATH, show only the folder that was prepended.
    let before = env::var(&*name).ok().filter(|_| name == "PATH");
    let (value, rest) = (value.to_string_lossy(), before.unwrap_or_default());
    match value.strip_suffix(&*rest) {
        Some(first) if !rest.is_empty() => format!("{name}={first}$PATH"),
        _ => format!("{name}={}", quote(&*value)),
    }
}

/// Quotes a word for a POSIX shell, where it needs quotes.
pub fn quote(word: impl AsRef<OsStr>) -> String {
    let word = word.as_ref().to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=+:,./@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.into_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// The path of `program`; also searches where Debian installs administrators' tools
/// (which are not on an ordinary user's PATH).
pub fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from))
        .map(|dir| dir.join(program))
        .find(|file| is_executable(file))
}

fn is_executable(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    file.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_only_what_needs_it() {
        assert_eq!(quote("a/b-c=1"), "a/b-c=1");
        assert_eq!(quote("a b"), "'a b'");
        assert_eq!(quote("it's"), r"'it'\''s'");
        assert_eq!(quote(""), "''");
        assert_eq!(quote("$HOME"), "'$HOME'");
    }
}
