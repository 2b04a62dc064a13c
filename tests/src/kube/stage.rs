//! What an event works with: the cluster, the service of its row, and its connections.

use std::{
    any::Any,
    cell::{Cell, RefCell},
    net::{SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result};
use rustix::io::Errno;

use super::{
    api::Api,
    cluster::{Cluster, From, NODE_NAME, PODS, Service, pod_address},
    proxy::{KubeProxy, Mode, Timeouts, clean_up},
};
use crate::{
    actor::{accept_either, connect, errno_name, listen, reaches, talk, try_connect, wait_until},
    scenarios::Kept,
};

/// kube-proxy follows a change within seconds, and removes what is unused only some time later.
const FOLLOWED_WITHIN: Duration = Duration::from_secs(60);

/// What a connection saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    /// It works, or it ended in order.
    Lives,
    Fails(Errno),
}

impl Wire {
    pub fn name(self) -> String {
        match self {
            Self::Lives => "lives".to_owned(),
            Self::Fails(errno) => errno_name(errno),
        }
    }
}

/// kube-proxy, with the mode and settings in which it runs.
#[derive(Default)]
pub struct Running {
    proxy: Option<(KubeProxy, Mode, Timeouts)>,
}

impl Running {
    /// kube-proxy runs so afterwards; what another mode or other settings left is cleaned up first.
    pub fn ensure(&mut self, api: &Api, mode: Mode, timeouts: Timeouts) -> Result<()> {
        let wanted = |it: &(KubeProxy, Mode, Timeouts)| it.1 == mode && it.2 == timeouts;
        if self.proxy.as_ref().is_some_and(wanted) {
            return Ok(());
        }
        if let Some((proxy, ..)) = self.proxy.take() {
            proxy.stop()?;
            clean_up()?;
        }
        self.start(api, mode, timeouts)
    }

    pub fn start(&mut self, api: &Api, mode: Mode, timeouts: Timeouts) -> Result<()> {
        self.proxy = Some((KubeProxy::start(api.address, mode, timeouts)?, mode, timeouts));
        Ok(())
    }

    pub fn stop(&mut self) -> Result<()> {
        self.proxy.take().map_or(Ok(()), |(proxy, ..)| proxy.stop())
    }
}

pub struct Stage<'a> {
    pub mode: Mode,
    pub timeouts: Timeouts,
    pub api: &'a Api,
    pub cluster: &'a Cluster,
    pub proxy: &'a RefCell<Running>,
    pub service: Service,
    client_port: Cell<u16>,
    pub kept: RefCell<Vec<Kept>>,
}

/// The two ends of a connection through the service.
pub struct Pair {
    pub client: TcpStream,
    pub server: TcpStream,
    pub pod: usize,
}

impl Pair {
    /// Writes at the client, and sees whether that arrives.
    pub fn ask(&self) -> Result<Wire> {
        Ok(reaches(&self.client, &self.server)?.map_or(Wire::Lives, Wire::Fails))
    }
}

impl<'a> Stage<'a> {
    pub fn new(
        mode: Mode,
        timeouts: Timeouts,
        api: &'a Api,
        cluster: &'a Cluster,
        proxy: &'a RefCell<Running>,
        service: Service,
    ) -> Self {
        let client_port = Cell::new(40_000 + 100 * u16::from(service.number));
        Self { mode, timeouts, api, cluster, proxy, service, client_port, kept: RefCell::default() }
    }

    /// Keeps a socket open until the verdict, because closing it would be another event.
    pub fn keep(&self, thing: impl Any + Send) {
        self.kept.borrow_mut().push(Box::new(thing));
    }

    /// Publishes the service with these pods, each ready or not.
    pub fn publish(&self, pods: &[(usize, bool)]) -> Result<()> {
        self.api.put(self.service.slice(pods, NODE_NAME))?;
        self.api.put(self.service.object())?;
        let address = self.service.address().ip();
        self.until("kube-proxy programmed the service", |dump| {
            self.mode.serves(dump, address)
                && pods.iter().all(|&(pod, ready)| self.sends_to(dump, pod) == ready)
        })
    }

    pub fn sends_to(&self, dump: &str, pod: usize) -> bool {
        self.mode.sends_to(dump, pod_address(pod, self.service.port()))
    }

    /// Waits until what the kernel holds of the services is so.
    pub fn until(&self, what: &str, is_so: impl Fn(&str) -> bool) -> Result<()> {
        wait_until(FOLLOWED_WITHIN, what, || Ok(is_so(&self.mode.dump()?)))
            .with_context(super::proxy::log_tail)
    }

    /// Deletes the service and waits until the kernel has none of it.
    pub fn delete_service(&self) -> Result<()> {
        self.api.delete("Service", self.service.name);
        self.api.delete("EndpointSlice", self.service.name);
        let address = self.service.address().ip().to_string();
        self.until("kube-proxy removed the service", |dump| !dump.contains(&address))
    }

    /// A client's port that the row has not used.
    pub fn next_port(&self) -> u16 {
        self.client_port.replace(self.client_port.get() + 1)
    }

    /// A server in each pod.
    pub fn listen(&self) -> Result<[TcpListener; PODS]> {
        let at = |index| listen(self.cluster.pod(index)?, pod_address(index, self.service.port()));
        Ok([at(0)?, at(1)?])
    }

    /// Connections through the service to servers in these pods, after a query and its answer.
    pub fn open(&self, from: From, pods: &[usize], count: usize) -> Result<Vec<Pair>> {
        let listeners = self.listen()?;
        let ready: Vec<_> = pods.iter().map(|&pod| (pod, true)).collect();
        self.publish(&ready)?;
        let mut pairs = Vec::new();
        for _ in 0..count {
            let source = from.address(self.next_port());
            let client = connect(self.cluster.at(from), source, self.service.address())?;
            let (server, pod) = accept_either(listeners.each_ref())?;
            talk(&client, &server)?;
            pairs.push(Pair { client, server, pod });
        }
        self.keep(listeners);
        Ok(pairs)
    }

    /// What a connect sees.
    pub fn try_connect(&self, from: From, to: SocketAddr) -> Result<Wire> {
        let source = from.address(self.next_port());
        let tried = try_connect(self.cluster.at(from), source, to)?;
        Ok(match tried {
            Err(errno) => Wire::Fails(errno),
            Ok(stream) => {
                self.keep(stream);
                Wire::Lives
            }
        })
    }

    /// Sends over each connection; keeps them all.
    pub fn ask_all(&self, pairs: Vec<Pair>) -> Result<Vec<Wire>> {
        let saw = pairs.iter().map(Pair::ask).collect();
        self.keep(pairs);
        saw
    }

    /// Ends kube-proxy and starts it in a mode; what the old one wrote stays.
    pub fn restart_in(&self, mode: Mode) -> Result<()> {
        let mut proxy = self.proxy.borrow_mut();
        proxy.stop()?;
        proxy.start(self.api, mode, self.timeouts)
    }
}
