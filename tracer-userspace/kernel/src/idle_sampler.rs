//! Idle ages that connections survive, sampled from the kernel's list of sockets: nothing is hooked
//! for it, because only a packet's arrival after a silence would tell, and there are millions of those.
//!
//! Nothing is sampled until a connection to a service was reset from elsewhere after it had been idle.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use rsttrace_core::event::{Body, Event};
use rsttrace_host::{Host, SocketFilter};
use rsttrace_model::{
    flow::{Flow, Nanos},
    socket::SocketState,
    tcp_state,
};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::live::now;

/// Services sampled at once; the newest is turned away, as its breaks are remembered anyway.
const WATCHES: usize = 32;
/// Sockets looked at for each service.
const SOCKETS: usize = 4096;
/// Bounds of the pause between two looks: an eighth of the shortest silence that broke a connection.
const OFTEN: Duration = Duration::from_millis(250);
const SELDOM: Duration = Duration::from_secs(5);
/// Shorter silences are the talk itself.
const IDLE: Nanos = 1_000_000_000;
/// A report must say this much more than the last one.
const LONGER: f64 = 1.02;

/// Which service to look after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Watch {
    netns: u32,
    service: SocketAddr,
    /// The sockets here are the service's own, not its clients'.
    is_local: bool,
    broke_after: Duration,
}

/// The sampling thread.
pub struct IdleSampler {
    watches: mpsc::Sender<Watch>,
    events: UnboundedReceiver<Event>,
}

impl IdleSampler {
    /// Starts the thread, which sleeps until something is watched.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(host: Host) -> Result<Self> {
        let (watches, requests) = mpsc::channel();
        let (report, events) = unbounded_channel();
        thread::Builder::new()
            .name("rsttrace-idle".into())
            .spawn(move || sample(&host, &requests, &report))
            .context("cannot start a helper thread")?;
        Ok(Self { watches, events })
    }

    /// From now on looks after the connections like this one, which broke after a silence.
    pub fn watch(&self, netns: u32, broken: Flow, silence: Nanos) {
        if silence < IDLE {
            return;
        }
        // The service's port is the lower one where neither side is known to listen.
        let is_local = broken.src.port() < broken.dst.port();
        let service = if is_local { broken.src } else { broken.dst };
        let broke_after = Duration::from_nanos(silence);
        // Without the thread there is nobody to tell.
        let _ = self.watches.send(Watch { netns, service, is_local, broke_after });
    }

    /// Waits for a connection that survived longer than any before.
    pub async fn next(&mut self) -> Event {
        match self.events.recv().await {
            Some(event) => event,
            None => std::future::pending().await,
        }
    }
}

fn sample(host: &Host, requests: &mpsc::Receiver<Watch>, report: &UnboundedSender<Event>) {
    let mut watched: Vec<(Watch, Silences)> = Vec::new();
    loop {
        let pause = watched.iter().map(|(watch, _)| watch.broke_after / 8).min();
        let request = match pause {
            None => requests.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(pause) => requests.recv_timeout(pause.clamp(OFTEN, SELDOM)),
        };
        match request {
            Ok(new) => {
                let same = |(known, _): &(Watch, _)| {
                    known.service == new.service && known.netns == new.netns
                };
                if let Some(index) = watched.iter().position(same) {
                    let known = &mut watched[index].0;
                    known.broke_after = known.broke_after.min(new.broke_after);
                } else if watched.len() < WATCHES {
                    watched.push((new, Silences::default()));
                }
                continue;
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        for (watch, silences) in &mut watched {
            let Some(list) = host.sockets(watch.netns, watch.filter(), SOCKETS) else {
                continue;
            };
            let ts = now();
            let theirs = list.sockets.iter().filter(|socket| watch.concerns(socket));
            if let Some(idle_s) = silences.look(ts, theirs) {
                let body = Body::Survived { service: watch.service, idle_s };
                if report.send(Event { ts, netns: watch.netns, body }).is_err() {
                    return;
                }
            }
        }
    }
}

impl Watch {
    fn filter(&self) -> SocketFilter {
        let port = Some(self.service.port());
        SocketFilter {
            states: 1 << tcp_state::ESTABLISHED,
            local_port: port.filter(|_| self.is_local),
            remote_port: port.filter(|_| !self.is_local),
        }
    }

    fn concerns(&self, socket: &SocketState) -> bool {
        self.service == if self.is_local { socket.flow.src } else { socket.flow.dst }
    }
}

/// When each socket was last heard of, by its inode.
#[derive(Default)]
struct Silences {
    looked: Nanos,
    heard: HashMap<u64, Nanos>,
    longest_s: f64,
}

impl Silences {
    /// Takes a look; the longest silence that a connection has ended since the last look, if it says
    /// more than what was told before. It was silent at the last look, so it is at least that long.
    fn look<'a>(
        &mut self,
        now: Nanos,
        sockets: impl Iterator<Item = &'a SocketState>,
    ) -> Option<f64> {
        let mut heard = HashMap::new();
        let mut longest = 0;
        for socket in sockets {
            let Some(ages) = socket.ages else { continue };
            let age_ms = ages.data_received_ms.min(ages.ack_received_ms);
            let last = now.saturating_sub(u64::from(age_ms) * 1_000_000);
            if let Some(before) = self.heard.get(&socket.inode)
                && last > self.looked
            {
                longest = longest.max(self.looked.saturating_sub(*before));
            }
            heard.insert(socket.inode, last);
        }
        self.looked = now;
        self.heard = heard;
        #[expect(clippy::cast_precision_loss, reason = "seconds for people")]
        let longest_s = longest as f64 / 1e9;
        let says_more = longest >= IDLE && longest_s > self.longest_s * LONGER;
        if says_more {
            self.longest_s = longest_s;
        }
        says_more.then_some(longest_s)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rsttrace_core::testing::{SECOND, flow};
    use rsttrace_model::socket::SocketAges;

    fn socket(inode: u64, age_ms: u32) -> SocketState {
        SocketState {
            flow: flow("10.0.0.2:40001", "10.9.9.9:443"),
            state: tcp_state::ESTABLISHED,
            inode,
            uid: 0,
            timer: None,
            retransmits: 0,
            receive_queue: 0,
            send_queue: 0,
            ages: Some(SocketAges {
                data_sent_ms: 0,
                data_received_ms: age_ms,
                ack_received_ms: age_ms,
            }),
            bytes_received: None,
            bytes_acked: None,
            v6_only: false,
        }
    }

    #[test]
    fn a_silence_that_ended_between_two_looks_was_survived() {
        let mut silences = Silences::default();
        assert_eq!(silences.look(100 * SECOND, [socket(1, 4000)].iter()), None);
        assert_eq!(silences.look(101 * SECOND, [socket(1, 100)].iter()), Some(4.0));
        assert_eq!(silences.look(102 * SECOND, [socket(1, 1100)].iter()), None);
    }

    #[test]
    fn a_silence_that_goes_on_or_ends_in_a_closed_socket_was_not() {
        let mut silences = Silences::default();
        assert_eq!(silences.look(100 * SECOND, [socket(1, 4000), socket(2, 9000)].iter()), None);
        assert_eq!(silences.look(101 * SECOND, [socket(1, 5000)].iter()), None);
        assert_eq!(silences.look(102 * SECOND, [socket(1, 6000), socket(2, 10)].iter()), None);
    }

    #[test]
    fn only_more_than_before_is_told() {
        let mut silences = Silences::default();
        for (second, age_ms, told) in
            [(100, 5000, None), (101, 0, Some(5.0)), (103, 2000, None), (104, 0, None)]
        {
            assert_eq!(silences.look(second * SECOND, [socket(1, age_ms)].iter()), told);
        }
    }
}
