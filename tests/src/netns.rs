//! A named network namespace, and functions that work inside it.
//!
//! Sockets stay in the namespace in which they were made, so a scenario enters only to make them (or to run a tool,
//! write a sysctl, read `/proc`) and uses them from its own thread afterwards.

use std::{
    fs::{self, File},
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    thread,
};

use anyhow::{Context, Result, anyhow};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::tools;

pub struct Namespace {
    name: String,
    fd: OwnedFd,
    inode: u64,
}

impl Namespace {
    /// Opens what `ip netns add NAME` left under `/run/netns`.
    pub fn open(name: &str) -> Result<Self> {
        let path = format!("/run/netns/{name}");
        let file = File::open(&path).with_context(|| format!("open {path}"))?;
        let inode = file.metadata().with_context(|| format!("stat {path}"))?.ino();
        Ok(Self { name: name.to_owned(), fd: file.into(), inode })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// What `rsttrace.netns` holds for this namespace.
    pub fn inode(&self) -> u64 {
        self.inode
    }

    /// Moves the calling thread into this namespace, for good.
    pub fn move_into(&self) -> Result<()> {
        move_into_link_name_space(self.fd.as_fd(), Some(LinkNameSpaceType::Network))
            .with_context(|| format!("enter the namespace {}", self.name))
    }

    /// Runs `work` on a new thread in this namespace.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        thread::scope(|scope| {
            scope
                .spawn(|| {
                    self.move_into()?;
                    work()
                })
                .join()
                .map_err(|_| anyhow!("a thread panicked in the namespace {}", self.name))?
        })
    }

    /// Runs a tool with arguments separated by blanks; returns its stdout.
    pub fn run(&self, line: &str) -> Result<String> {
        tools::run(Some(&self.name), line, "")
    }

    /// Loads an nftables script.
    pub fn nft(&self, script: &str) -> Result<()> {
        tools::run(Some(&self.name), "nft -f -", script).map(drop)
    }

    /// Runs `ip` commands, one a line.
    pub fn ip(&self, commands: &str) -> Result<()> {
        tools::run(Some(&self.name), "ip -batch -", commands).map(drop)
    }

    /// Writes a sysctl of this namespace, named as in `/proc/sys`.
    pub fn sysctl(&self, key: &str, value: impl ToString) -> Result<()> {
        let (path, value) = (format!("/proc/sys/{key}"), value.to_string());
        self.enter(|| {
            fs::write(&path, &value)
                .with_context(|| format!("write {value} to {path} in {}", self.name))
        })
    }

    /// Reads a number from a sysctl of this namespace.
    pub fn sysctl_value(&self, key: &str) -> Result<u64> {
        let path = format!("/proc/sys/{key}");
        self.enter(|| {
            let text = fs::read_to_string(&path)
                .with_context(|| format!("read {path} in {}", self.name))?;
            text.trim().parse().with_context(|| format!("{path} holds {text:?}, not a number"))
        })
    }
}

/// A file of `/proc/net` of the calling thread's namespace (`/proc/net` itself is the main thread's).
pub fn proc_net(file: &str) -> Result<String> {
    let path = format!("/proc/thread-self/net/{file}");
    fs::read_to_string(&path).with_context(|| format!("read {path}"))
}
