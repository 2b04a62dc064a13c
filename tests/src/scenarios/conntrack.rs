//! Connection tracking with NAT: entries that end before their connection does.

use std::{
    env, fs,
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use super::{CLIENT, Observed, PORT, Scenario, Stage};
use crate::{
    actor::{
        abort_on_close, accept, accept_either, connect, listen, receive, send, talk,
        wait_acknowledged, wait_error,
    },
    expect::{Expect, Incident},
    guest::Need,
    lab::{Net, Topology},
};

/// Instead of five days.
pub(super) const TIMEOUT: Duration = Duration::from_secs(3);
/// An upper bound for the delay of the kernel's timers and of delayed ACKs.
pub(super) const SLACK: Duration = Duration::from_millis(1_500);
/// The name of the process that deletes entries; unique, so that evidence with this name cannot be a coincidence.
const DELETER: &str = "ct-evictor";

pub const SCENARIOS: &[Scenario] = &[
    conntrack("conntrack_idle_expired", |net| Expect::one(idle_expired(net)), server_first),
    Scenario::new(
        "conntrack_idle_expired_client_first",
        Topology::RoutedTwo,
        |net| Expect::one(idle_expired(net).victim("source", "ECONNRESET")),
        client_first,
    )
    .needs(NEEDS),
    conntrack("conntrack_deleted", |net| Expect::one(deleted(net)), delete),
    conntrack(
        "near_miss_conntrack_tuple_reused",
        |net| Expect::one(deleted(net).or_both_victims()).then(aborted(net)),
        tuple_reused,
    ),
    conntrack("near_miss_conntrack_one_backend", |_| Expect::nothing(), picked_up_again),
];

pub const NEEDS: &[Need] = &[Need::Conntrack];

const fn conntrack(
    name: &'static str,
    expect: fn(Net) -> Expect,
    provoke: fn(&Stage<'_>) -> Result<Observed>,
) -> Scenario {
    Scenario::new(name, Topology::Routed, expect, provoke).needs(NEEDS)
}

fn idle_expired(net: Net) -> Incident {
    Incident::new("conntrack_idle_expired", net.client(CLIENT), net.vip(PORT))
        .observed()
        .nat(net.server(PORT))
        .victim("destination", "ECONNRESET")
        .origin("local_stack")
        .idle()
}

fn deleted(net: Net) -> Incident {
    Incident::new("conntrack_deleted", net.client(CLIENT), net.vip(PORT))
        .observed()
        .nat(net.server(PORT))
        .victim("destination", "ECONNRESET")
        .origin("local_stack")
        .evidence(DELETER)
}

fn aborted(net: Net) -> Incident {
    Incident::new("linger_zero", net.client(CLIENT), net.vip(PORT))
        .observed()
        .nat(net.server(PORT))
        .victim("source", "ECONNRESET")
        .origin("local_socket")
}

/// DNAT from the VIP to `to`, the target of the rule.
pub fn translate(stage: &Stage<'_>, to: &str) -> Result<()> {
    let (vip, node) = (stage.net.vip(PORT), stage.lab.node()?);
    node.nft(&format!(
        "table ip nat {{
            chain prerouting {{
                type nat hook prerouting priority -100;
                ip daddr {} tcp dport {PORT} dnat to {to};
            }}
        }}",
        vip.ip()
    ))
}

pub(super) struct Connection {
    client: TcpStream,
    server: TcpStream,
    pub(super) idle_since: Instant,
}

impl Connection {
    pub(super) fn open(stage: &Stage<'_>) -> Result<Self> {
        let (connection, listener) = Self::open_listening(stage)?;
        stage.keep(listener);
        Ok(connection)
    }

    fn open_listening(stage: &Stage<'_>) -> Result<(Self, TcpListener)> {
        let net = stage.net;
        translate(stage, &net.server(PORT).to_string())?;
        let listener = listen(stage.lab.server()?, net.server(PORT))?;
        let client = connect(stage.lab.client()?, net.client(CLIENT), net.vip(PORT))?;
        let server = accept(&listener)?;
        let idle_since = talk(&client, &server)?;
        Ok((Self { client, server, idle_since }, listener))
    }

    /// Waits for the timeout. An expired entry stays in the table until a packet hits it, so the table need not be polled.
    pub(super) fn outwait_timeout(&self) -> Duration {
        let end = self.idle_since + TIMEOUT + SLACK;
        thread::sleep(end.saturating_duration_since(Instant::now()));
        self.idle_since.elapsed()
    }

    /// The segment is not translated back, and the client's host has no connection to the server's own address.
    pub(super) fn server_writes(self, stage: &Stage<'_>) -> Result<Observed> {
        send(&self.server, "you have been idle\n")?;
        let errno = wait_error(&self.server)?;
        stage.keep(self.client);
        stage.keep(self.server);
        Ok(Observed::errno(errno))
    }
}

pub(super) fn shorten_timeout(stage: &Stage<'_>) -> Result<()> {
    let key = "net/netfilter/nf_conntrack_tcp_timeout_established";
    stage.lab.node()?.sysctl(key, TIMEOUT.as_secs())
}

fn server_first(stage: &Stage<'_>) -> Result<Observed> {
    shorten_timeout(stage)?;
    let connection = Connection::open(stage)?;
    let idle = connection.outwait_timeout();
    Ok(Observed { idle: Some(idle), ..connection.server_writes(stage)? })
}

/// The second scheduled packet goes to the other server, which never had the connection.
fn client_first(stage: &Stage<'_>) -> Result<Observed> {
    let net = stage.net;
    shorten_timeout(stage)?;
    let backends = [net.server(PORT), net.spare(PORT)];
    let [one, other] = backends.map(|backend| backend.ip());
    translate(stage, &format!("numgen inc mod 2 map {{ 0 : {one}, 1 : {other} }}"))?;
    let listeners: [TcpListener; 2] =
        [listen(stage.lab.server()?, backends[0])?, listen(stage.lab.spare()?, backends[1])?];
    let client = connect(stage.lab.client()?, net.client(CLIENT), net.vip(PORT))?;
    let (server, chosen) = accept_either([&listeners[0], &listeners[1]])?;
    let idle_since = talk(&client, &server)?;
    let connection = Connection { client, server, idle_since };
    let idle = connection.outwait_timeout();
    send(&connection.client, "SELECT 2;\n")?;
    let errno = wait_error(&connection.client)?;
    stage.keep(connection.client);
    stage.keep(connection.server);
    listeners.into_iter().for_each(|listener| stage.keep(listener));
    Ok(Observed { idle: Some(idle), nat: Some(backends[chosen]), ..Observed::errno(errno) })
}

/// With one back end the rule translates the client's next packet as before, and nothing breaks.
fn picked_up_again(stage: &Stage<'_>) -> Result<Observed> {
    shorten_timeout(stage)?;
    let connection = Connection::open(stage)?;
    connection.outwait_timeout();
    send(&connection.client, "SELECT 2;\n")?;
    receive(&connection.server, "SELECT 2;\n")?;
    stage.keep(connection.client);
    stage.keep(connection.server);
    Ok(Observed::default())
}

fn delete(stage: &Stage<'_>) -> Result<Observed> {
    let connection = Connection::open(stage)?;
    delete_entry(stage)?;
    connection.server_writes(stage)
}

/// After the first connection, another one with the same ports breaks for another reason.
fn tuple_reused(stage: &Stage<'_>) -> Result<Observed> {
    let (net, at) = (stage.net, stage.lab.client()?);
    let (first, listener) = Connection::open_listening(stage)?;
    delete_entry(stage)?;
    send(&first.server, "you have been idle\n")?;
    let errno = wait_error(&first.server)?;
    // The rule translates it as before, and the server's listener answers.
    send(&first.client, "SELECT 2;\n")?;
    wait_error(&first.client)?;
    drop(first);

    let client = connect(at, net.client(CLIENT), net.vip(PORT)).context("again")?;
    let server = accept(&listener)?;
    talk(&client, &server)?;
    abort_on_close(&server)?;
    drop(server);
    let second_errno = wait_error(&client)?;
    ensure!(second_errno == errno, "the second connection ended in {second_errno}");
    stage.keep(listener);
    stage.keep(client);
    Ok(Observed::errno(errno))
}

pub(super) fn delete_entry(stage: &Stage<'_>) -> Result<()> {
    // An ACK after the deletion would create the entry again.
    wait_acknowledged(stage.lab.server()?, CLIENT)?;
    let deleter = Deleter::new(stage)?;
    deleter.delete(stage, stage.net.client(CLIENT))
}

/// The `conntrack` tool under the name [`DELETER`].
struct Deleter {
    path: PathBuf,
}

impl Deleter {
    fn new(stage: &Stage<'_>) -> Result<Self> {
        let tool = find_tool("conntrack")?;
        let directory = env::temp_dir().join(stage.lab.node()?.name());
        fs::create_dir_all(&directory).with_context(|| format!("make {}", directory.display()))?;
        let path = directory.join(DELETER);
        let _ = fs::remove_file(&path);
        symlink(&tool, &path).with_context(|| format!("link {}", path.display()))?;
        Ok(Self { path })
    }

    fn delete(&self, stage: &Stage<'_>, client: SocketAddr) -> Result<()> {
        let (ip, port) = (client.ip(), client.port());
        let line = format!("{} -D -p tcp --orig-src {ip} --sport {port}", self.path.display());
        stage.lab.node()?.run(&line).map(drop)
    }
}

impl Drop for Deleter {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
        if let Some(directory) = self.path.parent() {
            let _ = fs::remove_dir(directory);
        }
    }
}

fn find_tool(name: &str) -> Result<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_else(|| "/usr/sbin:/usr/bin:/sbin:/bin".into());
    env::split_paths(&path)
        .map(|directory| directory.join(name))
        .find(|path: &PathBuf| Path::exists(path))
        .with_context(|| format!("{name} is not in PATH"))
}
