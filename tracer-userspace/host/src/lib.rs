//! Reads network namespaces, sockets and socket owners of this host.
//!
//! A kernel record names a network namespace and a socket by inode number. [`Host`] turns these
//! numbers into plain data ([`NetnsState`], [`Owner`]) that can be put into the event stream and
//! replayed elsewhere. This crate runs no other program. A failed reading is not fatal: its value is
//! `None`.

use std::{
    io,
    os::fd::AsFd,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use inside::inside;
use netns::Namespaces;
use pods::Pods;
use rsttrace_model::{
    firewall::FilterRules,
    flow::Flow,
    netns::NetnsState,
    owner::{OwnedSocket, Owner},
    socket::{SocketList, SocketState},
    tcp_state,
};

mod accept_queue;
mod addresses;
mod cgroup;
pub mod clock;
pub mod configured;
mod connection;
mod connection_watcher;
mod conntrack;
mod container;
mod cookie;
mod counters;
mod ctnetlink;
pub mod firewall;
pub mod fixture;
mod inside;
mod ipvs;
mod ipvs_conn;
mod ipvs_orphans;
mod ipvs_services;
mod machine;
mod nat;
mod netlink;
mod netns;
mod netns_paths;
mod nlmsg;
mod options;
mod owner;
mod pods;
mod process;
mod scan;
pub mod settings;
mod sock_diag;
mod survey;
mod sysctl;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod traffic;
mod tune;
pub mod view;

pub use connection_watcher::ConnectionWatcher;
pub use scan::{MachineFacts, NetnsContents, NetnsScan};
pub use sock_diag::SocketFilter;
pub use tune::NetnsLookupError;

/// Interval at which the worker thread checks whether the namespaces that it holds open can still be found.
const TIDY_EVERY: Duration = Duration::from_secs(20);

type Job = Box<dyn FnOnce(&mut Namespaces) + Send>;

/// This host, as far as `/proc`, `/run` and netlink show it.
///
/// Clones share one worker thread, which ends with the last clone. The methods block for as long
/// as the kernel takes (milliseconds, longer where IPVS has thousands of services), so an async
/// caller must call them on a blocking thread.
#[derive(Clone, Debug)]
pub struct Host {
    jobs: mpsc::Sender<Job>,
    /// Our own namespace, which can be read without CAP_SYS_ADMIN.
    own: u32,
    /// Root directories with the host's files, the preferred one first.
    roots: Arc<[PathBuf]>,
    pods: Arc<Mutex<Pods>>,
    tables: survey::StateTables,
    orphans: ipvs_orphans::Orphans,
}

impl Host {
    /// Starts the worker thread.
    ///
    /// # Errors
    ///
    /// When `/proc` does not show our own network namespace, or the thread cannot be started.
    pub fn new() -> io::Result<Host> {
        let namespaces = Namespaces::new()?;
        let own = namespaces.own();
        let (jobs, queue) = mpsc::channel();
        thread::Builder::new()
            .name("rsttrace-host".into())
            .spawn(move || work(&queue, namespaces))?;
        // A service or container may have its own mounts; pid 1 sees the host's.
        let roots = ["/proc/1/root", "/"].map(PathBuf::from);
        let pods = Arc::new(Mutex::new(Pods::new(roots.to_vec())));
        let tables = survey::StateTables::default();
        let orphans = ipvs_orphans::Orphans::default();
        Ok(Host { jobs, own, roots: Arc::new(roots), pods, tables, orphans })
    }

    /// The settings and counters of the network namespace with inode number `inum`, read at most
    /// `max_age` ago. `None` when no process or name refers to the namespace, or we may not enter it.
    #[must_use]
    pub fn netns(&self, inum: u32, max_age: Duration) -> Option<NetnsState> {
        let state =
            self.work(move |namespaces| namespaces.state(inum, max_age, Instant::now()))??;
        self.tables.note(&state);
        Some(state)
    }

    /// The TCP sockets of a network namespace that match `filter`, at most `most`. `None` when the
    /// namespace cannot be entered or the kernel does not list its sockets.
    ///
    /// Walks all connections of the host, unless the filter selects only listeners.
    #[must_use]
    pub fn sockets(&self, netns: u32, filter: SocketFilter, most: usize) -> Option<SocketList> {
        self.enter(netns, || sock_diag::list(filter, most))?.ok()
    }

    /// The socket that a packet from `flow.dst` to `flow.src` would find in a network namespace: the
    /// connection, else the listener. The outer `None` means that the socket is unknown.
    #[must_use]
    pub fn socket(&self, netns: u32, flow: Flow) -> Option<Option<SocketState>> {
        self.enter(netns, || sock_diag::find(flow))?.ok()
    }

    /// What the filter rules of a network namespace depend on.
    #[must_use]
    pub fn filter_rules(&self, netns: u32) -> FilterRules {
        let stateful = self.enter(netns, firewall::is_stateful).flatten();
        FilterRules { stateful }
    }

    /// Runs `read` inside a network namespace, on a separate thread, so that a slow reading delays only the
    /// caller.
    fn enter<T: Send>(&self, inum: u32, read: impl FnOnce() -> T + Send) -> Option<T> {
        if inum == self.own {
            return Some(read());
        }
        let ns = self.work(move |namespaces| namespaces.handle(inum, Instant::now()))??;
        inside(ns.as_fd(), read).ok()
    }

    /// Runs `job` on the worker thread and returns its result.
    fn work<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Namespaces) -> T + Send + 'static,
    ) -> Option<T> {
        let (sender, result) = mpsc::sync_channel(1);
        let job = move |namespaces: &mut Namespaces| {
            // No thread waits for the result once the calling thread has ended.
            let _ = sender.send(job(namespaces));
        };
        self.jobs.send(Box::new(job)).ok()?;
        result.recv().ok()
    }

    /// The process that holds a socket; else the process that connected the socket; else, for an accepted
    /// socket, a process that holds the listener. [`Owner::by`] says which of the three. Among several
    /// holders those in the socket's namespace come first, then the lowest pid. Our own process is never
    /// an owner.
    ///
    /// Walks every descriptor of every process when no process holds the socket, so call this once per
    /// socket.
    #[must_use]
    pub fn owner(&self, socket: &OwnedSocket) -> Option<Owner> {
        self.owners(std::slice::from_ref(socket)).pop().flatten()
    }

    /// The same as [`Host::owner`] for many sockets, in their order. Costs as much as one.
    #[must_use]
    pub fn owners(&self, sockets: &[OwnedSocket]) -> Vec<Option<Owner>> {
        let listener = |socket: &OwnedSocket| {
            let found = self.socket(socket.netns, socket.flow)??;
            (found.state == tcp_state::LISTEN).then_some(found.inode)
        };
        let found = owner::find(sockets, &self.roots, listener).into_iter();
        found.map(|owner| owner.map(|owner| self.with_pod(owner))).collect()
    }

    /// The process that has this pid now.
    #[must_use]
    pub fn process(&self, pid: u32) -> Option<Owner> {
        process::describe(pid).map(|owner| self.with_pod(owner))
    }

    fn with_pod(&self, owner: Owner) -> Owner {
        let uid = owner.cgroup.as_deref().and_then(cgroup::pod_uid);
        let mut pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        Owner { pod: pods.find(uid.as_deref(), owner.container_id.as_deref()), ..owner }
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
