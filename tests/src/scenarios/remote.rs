//! The reset comes from a host that is not on this machine. A raw socket plays it: no TCP of this kernel has the
//! connection's other end, or sends the reset.

use anyhow::{Result, anyhow};
use std::thread;

use super::{CLIENT, PORT, Scenario, Stage, Witness};
use crate::actor::{connect, send, wait_error};
use crate::expect::{Expect, Incident};
use crate::lab::{Net, Topology};
use crate::rawtcp::{ACK, RST, RawEnd};

pub const SCENARIOS: &[Scenario] = &[
    Scenario::new(
        "peer_aborted",
        Topology::Direct,
        |net| Expect::one(received(net, "peer_aborted").inferred()),
        |stage| reset_by_remote(stage, RST | ACK),
    ),
    Scenario::new(
        "peer_state_lost",
        Topology::Direct,
        |net| Expect::one(received(net, "peer_state_lost").inferred()),
        |stage| reset_by_remote(stage, RST),
    ),
];

fn received(net: Net, cause: &'static str) -> Incident {
    Incident::new(cause, net.client(CLIENT), net.remote(PORT))
        .victim("source", "ECONNRESET")
        .origin("remote")
        .on(
            &["5.10"],
            "tcp_reset has no sk_buff on 5.10: the RST's ACK bit cannot be read",
            Incident::unknown,
        )
}

fn reset_by_remote(stage: &Stage<'_>, flags: u8) -> Result<Witness> {
    let net = stage.net;
    // The address is routed to the server's namespace, where nobody has it.
    let remote = RawEnd::new(stage.lab.server()?, net.remote(PORT))?;
    let from_client = stage.lab.client()?;
    let (client, conversation) = thread::scope(|scope| {
        let client = scope.spawn(|| {
            let client = connect(from_client, net.client(CLIENT), net.remote(PORT))?;
            send(&client, "SELECT 1;\n")?;
            Ok::<_, anyhow::Error>(client)
        });
        let conversation = remote.serve_first_request();
        let client = client.join().map_err(|_| anyhow!("the client's thread panicked"))?;
        Ok::<_, anyhow::Error>((client?, conversation?))
    })?;
    // A bare RST has no acknowledgement number.
    let ack = if flags & ACK == 0 { 0 } else { conversation.ack };
    remote.send(conversation.peer, conversation.seq, ack, flags)?;
    let errno = wait_error(&client)?;
    stage.keep(client);
    Ok(Witness::errno(errno))
}
