//! The process that rsttrace names as the owner of a socket that no longer exists. The tracer is stopped while the
//! program at one end closes, so that it never finds a descriptor.

use std::{fs, net::TcpStream, path::Path, process};

use anyhow::{Context, Result};
use rustix::io::Errno;

use super::{CLIENT, Observed, PORT, Scenario, Stage, TracerUse};
use crate::{
    actor::{abort_on_close, accept, connect, listen},
    expect::{Expect, Incident, Owner},
    lab::Net,
    program::{End, Program, talk, while_the_tracer_is_stopped},
    tools,
};

pub const SCENARIOS: &[Scenario] = &[
    alone(
        "owner_closed_at_once",
        |net| {
            Expect::one(
                aborted(net, "source")
                    .owner(Owner::new("destination", "close"))
                    .owner(Owner::new("source", "connect")),
            )
        },
        client_closes_at_once,
    ),
    alone(
        "owner_accepted_and_closed_at_once",
        |net| {
            Expect::one(
                aborted(net, "destination")
                    .owner(Owner::new("source", "close"))
                    .owner(Owner::new("destination", "listener")),
            )
        },
        server_closes_at_once,
    ),
    alone(
        "owner_exited_at_once",
        |net| {
            Expect::one(
                Incident::new("user_timeout", net.client(CLIENT), net.server(PORT))
                    .observed()
                    .victim("source", "ETIMEDOUT")
                    .owner(Owner::new("source", "connect").pod(POD)),
            )
        },
        client_exits_at_once,
    ),
    alone(
        "owner_older_than_the_tracer",
        |net| {
            Expect::one(
                aborted(net, "source")
                    .owner(Owner::new("destination", "close"))
                    .owner(Owner::new("source", "descriptor")),
            )
        },
        older_client,
    )
    .tracer(TracerUse::Late),
];

const fn alone(
    name: &'static str,
    expect: fn(Net) -> Expect,
    provoke: fn(&Stage<'_>) -> Result<Observed>,
) -> Scenario {
    Scenario::direct(name, expect, provoke).tracer(TracerUse::Own)
}

/// This program aborts a connection whose other end belongs to another program.
fn aborted(net: Net, victim: &'static str) -> Incident {
    Incident::new("linger_zero", net.client(CLIENT), net.server(PORT))
        .observed()
        .victim(victim, "ECONNRESET")
        .origin("local_socket")
}

/// Starts a client that reacts to its error as in `then`, and accepts its connection; this program is the server.
fn client(stage: &Stage<'_>, then: &[&str]) -> Result<(Program, TcpStream)> {
    let net = stage.net;
    let listener = listen(stage.lab.server()?, net.server(PORT))?;
    let client = start(stage, stage.lab.client()?.name(), "client", then)?;
    let (mut client, server) = join(client, || accept(&listener))?;
    client.next_step()?;
    stage.keep(listener);
    Ok((client, server))
}

fn start(stage: &Stage<'_>, netns: &str, end: &str, then: &[&str]) -> Result<Program> {
    let net = stage.net;
    let (client, server) = (net.client(CLIENT).to_string(), net.server(PORT).to_string());
    Program::start(&[&["program", netns, end, &client, &server], then].concat())
}

fn join(
    mut client: Program,
    accept: impl FnOnce() -> Result<TcpStream>,
) -> Result<(Program, TcpStream)> {
    client.next_step()?;
    let server = accept()?;
    talk(&server, End::Server)?;
    client.expect("connected")?;
    Ok((client, server))
}

/// Aborts this end; returns the other end's error.
fn abort(stream: TcpStream, other: &mut Program) -> Result<Errno> {
    abort_on_close(&stream)?;
    drop(stream);
    other.errno()
}

/// The RST is received in softirq while this program runs, which is not the owner of the client's socket.
fn client_closes_at_once(stage: &Stage<'_>) -> Result<Observed> {
    let (mut client, server) = client(stage, &["close"])?;
    let errno = while_the_tracer_is_stopped(|| abort(server, &mut client))?;
    let pids = vec![("source", client.pid()), ("destination", process::id())];
    stage.keep_alive(client);
    Ok(Observed { pids, ..Observed::errno(errno) })
}

fn server_closes_at_once(stage: &Stage<'_>) -> Result<Observed> {
    let net = stage.net;
    let mut server = start(stage, stage.lab.server()?.name(), "server", &["close"])?;
    server.expect("listening")?;
    let client = connect(stage.lab.client()?, net.client(CLIENT), net.server(PORT))?;
    talk(&client, End::Client)?;
    server.expect("connected")?;
    server.next_step()?;
    let errno = while_the_tracer_is_stopped(|| abort(client, &mut server))?;
    let pids = vec![("source", process::id()), ("destination", server.pid())];
    stage.keep_alive(server);
    Ok(Observed { pids, ..Observed::errno(errno) })
}

fn older_client(stage: &Stage<'_>) -> Result<Observed> {
    let (mut client, server) = client(stage, &["hold"])?;
    (stage.start_tracer)()?;
    let errno = abort(server, &mut client)?;
    let pids = vec![("source", client.pid()), ("destination", process::id())];
    stage.keep_alive(client);
    Ok(Observed { pids, ..Observed::errno(errno) })
}

/// The pod in which the client runs: uid, container, namespace, name.
const POD: [&str; 4] = [
    "81e09ae0-12ec-4ec5-94b8-51cda7906370",
    "3f9c2a7d51e84b06c1d29f5be7a4083d62f1c95ab07e3d4418f6a2c0be957d13",
    "shop",
    "orders-api-7c9",
];

/// A timer ends the connection, on any processor and in the context of any task. When the tracer looks the client up,
/// only the files of its node are left.
fn client_exits_at_once(stage: &Stage<'_>) -> Result<Observed> {
    let net = stage.net;
    let listener = listen(stage.lab.server()?, net.server(PORT))?;
    let netns = stage.lab.client()?.name();
    let client = start(stage, netns, "client", &["exit", "--user-timeout", "1500"])?;
    stage.keep_alive(Node::with_pod_of(&client)?);
    let pids = vec![("source", client.pid())];
    let (mut client, server) = join(client, || accept(&listener))?;
    stage.cut_path()?;
    client.next_step()?;
    let errno = while_the_tracer_is_stopped(|| {
        let errno = client.errno()?;
        client.wait()?;
        Ok(errno)
    })?;
    stage.keep(listener);
    stage.keep(server);
    Ok(Observed { pids, ..Observed::errno(errno) })
}

/// The files that a kubelet and a container runtime create on a node for one pod; removed on drop.
struct Node {
    cgroups: [String; 3],
    logs: String,
}

impl Node {
    fn with_pod_of(program: &Program) -> Result<Self> {
        const CGROUPS: &str = "/sys/fs/cgroup";
        let [uid, container, namespace, name] = POD;
        if !Path::new(CGROUPS).join("cgroup.procs").exists() {
            tools::run(None, &format!("mount -t cgroup2 none {CGROUPS}"), "")?;
        }
        let slice = format!("{CGROUPS}/kubepods.slice");
        let pod = format!("{slice}/kubepods-pod{}.slice", uid.replace('-', "_"));
        let scope = format!("{pod}/cri-containerd-{container}.scope");
        let logs = format!("/var/log/pods/{namespace}_{name}_{uid}");
        for path in [&scope, &logs] {
            fs::create_dir_all(path).with_context(|| format!("make {path}"))?;
        }
        let procs = format!("{scope}/cgroup.procs");
        fs::write(&procs, program.pid().to_string()).with_context(|| format!("write {procs}"))?;
        Ok(Self { cgroups: [scope, pod, slice], logs })
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        for path in self.cgroups.iter().chain([&self.logs]) {
            if let Err(error) = fs::remove_dir(path) {
                eprintln!("# teardown: remove {path}: {error}");
            }
        }
    }
}
