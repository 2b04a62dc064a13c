//! Idle periods that connections survive, sampled from the kernel's list of sockets. No hook is used,
//! because it would have to run for every received packet, of which there are millions.
//!
//! Nothing is sampled until a connection to a service was reset by another host after it had been idle.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
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

/// Most services that are sampled at once: those with the latest broken connections.
const WATCHES: usize = 32;
/// Most sockets that are read for each service.
const SOCKETS: usize = 4096;
/// Bounds of the interval between two samples, which is an eighth of the shortest idle period that broke a
/// connection.
const MIN_INTERVAL: Duration = Duration::from_millis(250);
const MAX_INTERVAL: Duration = Duration::from_secs(5);
/// Shorter pauses are part of the traffic.
const IDLE: Nanos = 1_000_000_000;
/// A period is reported if it exceeds the last reported one by this factor.
const LONGER: f64 = 1.02;

/// A service to sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Watch {
    netns: u32,
    service: SocketAddr,
    /// The sockets on this host are the service's own, not its clients'.
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

    /// Samples connections to the same service from now on, as this one broke after being idle for `idle`.
    pub fn watch(&self, netns: u32, broken: Flow, idle: Nanos) {
        if idle < IDLE {
            return;
        }
        // Neither side is known to listen, so the lower port is assumed to be the service's.
        let is_local = broken.src.port() < broken.dst.port();
        let service = if is_local { broken.src } else { broken.dst };
        let broke_after = Duration::from_nanos(idle);
        // Fails when the thread has ended, and then nothing is sampled.
        let _ = self.watches.send(Watch { netns, service, is_local, broke_after });
    }

    /// Waits for a connection that survived a longer idle period than any before.
    pub async fn next(&mut self) -> Event {
        match self.events.recv().await {
            Some(event) => event,
            None => std::future::pending().await,
        }
    }
}

fn sample(host: &Host, requests: &mpsc::Receiver<Watch>, report: &UnboundedSender<Event>) {
    let mut watched: Vec<(Watch, IdlePeriods)> = Vec::new();
    let mut due: Option<Instant> = None;
    loop {
        let request = match due {
            None => requests.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(due) => requests.recv_timeout(due.saturating_duration_since(Instant::now())),
        };
        match request {
            Ok(new) => {
                add(&mut watched, new);
                // A request only brings the next sample forward: many requests must not delay the sample.
                let next = Instant::now() + interval(&watched);
                due = Some(due.map_or(next, |due| due.min(next)));
                continue;
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        for (watch, periods) in &mut watched {
            let Some(list) = host.sockets(watch.netns, watch.filter(), SOCKETS) else {
                continue;
            };
            let ts = now();
            let sockets = list.sockets.iter().filter(|socket| watch.concerns(socket));
            if let Some(idle_s) = periods.sample(ts, sockets) {
                let body = Body::Survived { service: watch.service, idle_s };
                if report.send(Event { ts, netns: watch.netns, body }).is_err() {
                    return;
                }
            }
        }
        due = Some(Instant::now() + interval(&watched));
    }
}

/// The time between two samples.
fn interval(watched: &[(Watch, IdlePeriods)]) -> Duration {
    let shortest = watched.iter().map(|(watch, _)| watch.broke_after / 8).min();
    shortest.unwrap_or(MAX_INTERVAL).clamp(MIN_INTERVAL, MAX_INTERVAL)
}

/// Adds a service, or renews its place at the end of the list. A full list drops the service whose last
/// broken connection is the oldest.
fn add(watched: &mut Vec<(Watch, IdlePeriods)>, new: Watch) {
    let same = |(known, _): &(Watch, _)| known.service == new.service && known.netns == new.netns;
    let renewed = match watched.iter().position(same) {
        Some(index) => {
            let (known, periods) = watched.remove(index);
            (Watch { broke_after: known.broke_after.min(new.broke_after), ..known }, periods)
        }
        None => (new, IdlePeriods::default()),
    };
    if watched.len() >= WATCHES {
        watched.remove(0);
    }
    watched.push(renewed);
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

/// When each socket last received a packet, by the inode of the socket.
#[derive(Default)]
struct IdlePeriods {
    sampled: Nanos,
    received: HashMap<u64, Nanos>,
    longest_s: f64,
}

impl IdlePeriods {
    /// Takes a sample. Returns the longest idle period in seconds that a connection has ended since the last
    /// sample, if it is longer than those reported before. The connection was idle at the last sample, so the
    /// period up to that sample is a lower bound.
    fn sample<'a>(
        &mut self,
        now: Nanos,
        sockets: impl Iterator<Item = &'a SocketState>,
    ) -> Option<f64> {
        let mut received = HashMap::new();
        let mut longest = 0;
        for socket in sockets {
            let Some(ages) = socket.ages else { continue };
            let age_ms = ages.data_received_ms.min(ages.ack_received_ms);
            let last = now.saturating_sub(u64::from(age_ms) * 1_000_000);
            if let Some(before) = self.received.get(&socket.inode)
                && last > self.sampled
            {
                longest = longest.max(self.sampled.saturating_sub(*before));
            }
            received.insert(socket.inode, last);
        }
        self.sampled = now;
        self.received = received;
        #[expect(clippy::cast_precision_loss, reason = "seconds to print")]
        let longest_s = longest as f64 / 1e9;
        let is_longer = longest >= IDLE && longest_s > self.longest_s * LONGER;
        if is_longer {
            self.longest_s = longest_s;
        }
        is_longer.then_some(longest_s)
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
    fn a_full_list_drops_the_service_whose_last_break_is_the_oldest() {
        let watch = |port| Watch {
            netns: 1,
            service: ([10, 9, 9, 9], port).into(),
            is_local: false,
            broke_after: Duration::from_secs(u64::from(port)),
        };
        let mut watched = Vec::new();
        (2..34).for_each(|port| add(&mut watched, watch(port)));
        add(&mut watched, Watch { broke_after: Duration::from_secs(9), ..watch(2) });
        add(&mut watched, watch(34));
        let ports: Vec<_> = watched.iter().map(|(watch, _)| watch.service.port()).collect();
        assert_eq!(ports, (4..34).chain([2, 34]).collect::<Vec<_>>());
        assert_eq!(watched[30].0.broke_after, Duration::from_secs(2), "the shortest counts");
    }

    #[test]
    fn an_idle_period_that_ended_between_two_samples_was_survived() {
        let mut periods = IdlePeriods::default();
        assert_eq!(periods.sample(100 * SECOND, [socket(1, 4000)].iter()), None);
        assert_eq!(periods.sample(101 * SECOND, [socket(1, 100)].iter()), Some(4.0));
        assert_eq!(periods.sample(102 * SECOND, [socket(1, 1100)].iter()), None);
    }

    #[test]
    fn an_idle_period_that_continues_or_ends_with_the_socket_was_not_survived() {
        let mut periods = IdlePeriods::default();
        assert_eq!(periods.sample(100 * SECOND, [socket(1, 4000), socket(2, 9000)].iter()), None);
        assert_eq!(periods.sample(101 * SECOND, [socket(1, 5000)].iter()), None);
        assert_eq!(periods.sample(102 * SECOND, [socket(1, 6000), socket(2, 10)].iter()), None);
    }

    #[test]
    fn only_a_longer_period_than_before_is_reported() {
        let mut periods = IdlePeriods::default();
        for (second, age_ms, reported) in
            [(100, 5000, None), (101, 0, Some(5.0)), (103, 2000, None), (104, 0, None)]
        {
            assert_eq!(periods.sample(second * SECOND, [socket(1, age_ms)].iter()), reported);
        }
    }
}
