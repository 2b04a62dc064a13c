//! Processes and pods that own sockets.

use serde::{Deserialize, Serialize};

use crate::flow::Flow;

/// How the owner of a socket was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OwnerBy {
    /// It holds the socket.
    #[default]
    Descriptor,
    /// It connected the socket; no process held the socket any more when it was queried.
    Connect,
    /// It closed the socket.
    Close,
    /// It listens where the connection was accepted; another process may have accepted it.
    Listener,
}

impl OwnerBy {
    /// Its id in the output.
    pub fn id(self) -> &'static str {
        match self {
            Self::Descriptor => "descriptor",
            Self::Connect => "connect",
            Self::Close => "close",
            Self::Listener => "listener",
        }
    }
}

/// A Kubernetes pod, as far as the files of the node show it. Names have only the characters that Kubernetes
/// allows.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Pod {
    /// A UUID, or 32 hexadecimal digits for a static pod.
    pub uid: Option<String>,
    pub name: Option<String>,
    pub namespace: Option<String>,
}

/// The process that owns a socket. The process chooses its names: untrusted text.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Owner {
    pub pid: u32,
    /// `/proc/PID/comm`, at most 15 bytes, bad UTF-8 replaced.
    pub comm: String,
    /// Path of the program file.
    pub exe: Option<String>,
    /// Effective user id.
    pub uid: Option<u32>,
    /// Start of the process, nanoseconds of CLOCK_BOOTTIME (the kernel reports it in 10 ms steps).
    pub start_boottime_ns: Option<u64>,
    /// Control group path: version 2, or the memory or pids hierarchy of version 1.
    pub cgroup: Option<String>,
    /// 64 hexadecimal digits, as Docker, containerd, CRI-O and Podman put them into the path.
    pub container_id: Option<String>,
    pub pod: Option<Pod>,
    pub by: OwnerBy,
}

/// The process that connected a socket, as recorded by then: the process may have exited since.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opener {
    pub pid: u32,
    /// Name of its main thread: untrusted text.
    pub comm: String,
    /// Start of the process, nanoseconds of CLOCK_BOOTTIME. It differs for another process with the same pid.
    pub start_boottime_ns: u64,
    /// Inode of its directory in the version 2 control group hierarchy.
    pub cgroup: u64,
}

impl From<&Opener> for Owner {
    /// The facts that are known without a query.
    fn from(opener: &Opener) -> Self {
        Self {
            pid: opener.pid,
            comm: opener.comm.clone(),
            start_boottime_ns: Some(opener.start_boottime_ns),
            by: OwnerBy::Connect,
            ..Self::default()
        }
    }
}

/// A socket whose owner is queried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnedSocket {
    /// 0 once no process holds it.
    pub inode: u64,
    pub netns: u32,
    /// Local side first.
    pub flow: Flow,
    /// The process that connected it, if it is on record.
    pub opener: Option<Opener>,
}
