//! What this machine says about namespaces and socket owners.
//!
//! A kernel record names a network namespace and a socket by inode number. [`Host`] turns those
//! numbers into plain data ([`NetnsState`], [`Owner`]) that can be put into the event stream and
//! replayed elsewhere. Nothing here runs a program, and nothing here is fatal: what cannot be read
//! is `None`.

mod conntrack;
mod counters;
mod inside;
mod ipvs;
mod machine;
mod netlink;
mod netns;
mod nlmsg;
mod owner;
mod places;
mod state;
mod sysctl;

use std::io;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use netns::Namespaces;
pub use state::{
    ConntrackStat, ConntrackState, ConntrackTcpTimeouts, IpvsDestination, IpvsService, IpvsState,
    NetnsReach, NetnsState, Owner, TcpCounters, TcpSysctls,
};

/// How often the worker looks whether a namespace it holds open has died.
const TIDY_EVERY: Duration = Duration::from_secs(20);

type Job = Box<dyn FnOnce(&mut Namespaces) + Send>;

/// This machine, as far as `/proc`, `/run` and netlink show it.
///
/// Clones share one worker thread, which ends with the last clone. The questions block for as long
/// as the kernel takes (milliseconds, longer where IPVS has thousands of services), so an async
/// caller asks from a blocking thread.
#[derive(Clone, Debug)]
pub struct Host {
    jobs: mpsc::Sender<Job>,
}

impl Host {
    /// Starts the worker thread.
    ///
    /// # Errors
    ///
    /// When `/proc` does not show our own network namespace, or no thread can be started.
    pub fn new() -> io::Result<Host> {
        let namespaces = Namespaces::new()?;
        let (jobs, queue) = mpsc::channel();
        thread::Builder::new()
            .name("rsttrace-host".into())
            .spawn(move || work(&queue, namespaces))?;
        Ok(Host { jobs })
    }

    /// The settings and counters of the network namespace with inode number `inum`, read at most
    /// `max_age` ago. `None` when no process or name leads to it, or we may not enter it.
    #[must_use]
    pub fn netns(&self, inum: u32, max_age: Duration) -> Option<NetnsState> {
        let (answer, reply) = mpsc::sync_channel(1);
        let job = move |namespaces: &mut Namespaces| {
            // Nobody waits for the answer once the asking thread is gone.
            let _ = answer.send(namespaces.state(inum, max_age, Instant::now()));
        };
        self.jobs.send(Box::new(job)).ok()?;
        reply.recv().ok()?
    }

    /// The process that has the socket with inode number `socket` open; among several, the lowest
    /// pid, those in network namespace `netns_inum` first. Our own process never counts.
    ///
    /// Walks every descriptor of every process when nobody has it, so ask once per socket.
    #[must_use]
    pub fn owner(&self, socket: u64, netns_inum: u32) -> Option<Owner> {
        owner::find(socket, netns_inum)
    }

    /// The random id of this boot (`/proc/sys/kernel/random/boot_id`).
    #[must_use]
    pub fn boot_id(&self) -> Option<String> {
        machine::boot_id()
    }

    /// The node name, as `uname -n` prints it.
    #[must_use]
    pub fn hostname(&self) -> String {
        machine::hostname()
    }

    /// Jiffies per second (`CONFIG_HZ`), for the kernel's own timers.
    #[must_use]
    pub fn hz(&self) -> Option<u32> {
        machine::hz()
    }
}

fn work(queue: &mpsc::Receiver<Job>, mut namespaces: Namespaces) {
    let mut tidied = Instant::now();
    loop {
        match queue.recv_timeout(TIDY_EVERY) {
            Ok(job) => job(&mut namespaces),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        if tidied.elapsed() >= TIDY_EVERY {
            namespaces.tidy(Instant::now());
            tidied = Instant::now();
        }
    }
}
