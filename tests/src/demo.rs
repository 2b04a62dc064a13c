//! The demo: an idle connection through IPVS breaks, slowly enough to follow it on the screen.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::{
    actor::{accept, connect, errno_name, listen, send, talk, wait_error},
    guest::{Guest, Need},
    lab::{Lab, Net, Topology},
    scenarios::{CLIENT, PORT, Stage, ipvs},
    tracer::READY,
};

const TIMEOUT: u64 = 10;
/// A pause for the reader; an incident is printed within 1 s.
const PAUSE: Duration = Duration::from_secs(3);

pub fn demo(tracer: &Path) -> Result<()> {
    if let Some(fact) = Guest::probe()?.missing(&[Need::Ipvs, Need::Conntrack]) {
        anyhow::bail!("the demo cannot run here: {fact}");
    }
    let net = Net::new(1);
    let lab = Lab::build(net, Topology::Routed)?;
    let stage = Stage::new(net, &lab, &|| Ok(()));
    let (vip, server_at) = (net.vip(PORT), net.server(PORT));

    println!("# rsttrace live");
    let mut child = Command::new(tracer)
        .arg("live")
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {}", tracer.display()))?;
    let stderr = child.stderr.take().context("the tracer's stderr")?;
    let (ready, is_ready) = mpsc::channel();
    let forward = thread::spawn(move || {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            eprintln!("{line}");
            if line.starts_with(READY) {
                // The receiver is gone if the demo has failed.
                let _ = ready.send(());
            }
        }
    });
    is_ready.recv_timeout(Duration::from_secs(60)).context("the tracer did not become ready")?;

    let played = play(&stage, TIMEOUT);
    thread::sleep(PAUSE);
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).context("the tracer's pid")?;
    kill_process(pid, Signal::INT).context("interrupt the tracer")?;
    let status = child.wait().context("wait for the tracer")?;
    let _ = forward.join();
    played.with_context(|| {
        format!("the connection from {} to {vip} at {server_at}", net.client(CLIENT))
    })?;
    ensure!(status.success(), "the tracer ended with {status}");
    Ok(())
}

fn play(stage: &Stage<'_>, timeout: u64) -> Result<()> {
    let (net, lab) = (stage.net, stage.lab);
    let (vip, backend, from) = (net.vip(PORT), net.server(PORT), net.client(CLIENT));
    println!(
        "# node: an IPVS service {vip} -> {backend}; idle TCP entries expire after {timeout} s (default: 900 s)"
    );
    ipvs::track(stage)?;
    ipvs::serve(stage, vip, &[backend], timeout)?;
    let listener = listen(lab.server()?, backend)?;
    println!("# client: connects from {from} to {vip} through IPVS");
    let client = connect(lab.client()?, from, vip)?;
    let server = accept(&listener)?;
    talk(&client, &server)?;
    let idle_since = Instant::now();
    println!("# client: has its answer and returns the connection to the pool, without keepalive");
    ipvs::wait_expired(stage, CLIENT)?;
    let idle = idle_since.elapsed().as_secs_f64();
    println!(
        "# node: the IPVS entry expired after {idle:.1} s; client and server are not notified"
    );
    thread::sleep(PAUSE);
    println!("# client: takes the connection from the pool and sends its next query");
    send(&client, "SELECT 2;\n")?;
    let errno = wait_error(&client)?;
    println!("# client: read {}", errno_name(errno));
    // rsttrace prints the incident here, before the server's end is closed.
    thread::sleep(PAUSE);
    Ok(())
}
