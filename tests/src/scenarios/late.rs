//! What happened before anybody looked: who called whom, and flows that are older than the tracer.

use anyhow::Result;

use super::{Scenario, Stage, Witness};
use crate::actor::{abort_on_close, accept, connect, listen, talk, wait_error};
use crate::expect::{Expect, Incident};
use crate::lab::{Net, Topology};

/// Both are ephemeral, and the larger one is the server's.
const CALLER: u16 = 33_001;
const CALLED: u16 = 55_001;

pub const SCENARIOS: &[Scenario] = &[Scenario::new(
    "linger_zero_ephemeral_ports",
    Topology::Direct,
    |net| Expect::one(aborted(net)),
    abort_between_ephemeral_ports,
)];

fn aborted(net: Net) -> Incident {
    Incident::new("linger_zero", net.client(CALLER), net.server(CALLED))
        .observed()
        .victim("source", "ECONNRESET")
        .origin("local_socket")
}

fn abort_between_ephemeral_ports(stage: &Stage<'_>) -> Result<Witness> {
    let net = stage.net;
    let listener = listen(stage.lab.server()?, net.server(CALLED))?;
    let client = connect(stage.lab.client()?, net.client(CALLER), net.server(CALLED))?;
    let server = accept(&listener)?;
    talk(&client, &server)?;
    abort_on_close(&server)?;
    drop(server);
    let errno = wait_error(&client)?;
    stage.keep(listener);
    stage.keep(client);
    Ok(Witness::errno(errno))
}
