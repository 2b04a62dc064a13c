//! A generic netlink socket (`linux/genetlink.h`): questions to one family of the kernel.

use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::net::netlink::{GENERIC, SocketAddrNetlink};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, connect, recv, send, socket_with,
};

use super::nlmsg::{Answer, Attributes, Each, Header, answer, attributes, malformed, u16_of};

const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP: u16 = 0x300;

const GENL_ID_CTRL: u16 = 0x10;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;

/// The kernel never fills a dump's buffer beyond this (`netlink_dump`), whatever we offer.
const LARGEST_REPLY: usize = 32 * 1024;
const RECEIVE_TIMEOUT: Duration = Duration::from_secs(1);

/// One generic netlink family, in the network namespace of the thread that connected.
pub(super) struct Family {
    socket: OwnedFd,
    id: u16,
    version: u8,
    sequence: u32,
    /// No answer is awaited beyond this moment.
    deadline: Instant,
}

impl Family {
    /// Asks the controller for the family `name`. Makes the kernel load the module of a family it
    /// does not know, so the caller has to know that it is there.
    pub(super) fn connect(name: &str, version: u8, deadline: Instant) -> io::Result<Family> {
        let flags = SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, Some(GENERIC))?;
        // Connected to the kernel, the socket takes no message from anybody else.
        connect(&socket, &SocketAddrNetlink::new(0, 0))?;
        set_socket_timeout(&socket, Timeout::Recv, Some(RECEIVE_TIMEOUT))?;
        let mut family = Family { socket, id: GENL_ID_CTRL, version: 1, sequence: 0, deadline };

        let mut wanted = Attributes::default();
        wanted.put(CTRL_ATTR_FAMILY_NAME, &[name.as_bytes(), b"\0"].concat());
        let mut id = None;
        family.request(CTRL_CMD_GETFAMILY, &wanted, &mut |reply| {
            for attribute in attributes(reply) {
                let (kind, payload) = attribute?;
                if kind == CTRL_ATTR_FAMILY_ID {
                    id = Some(u16_of(payload)?);
                }
            }
            Ok(())
        })?;
        family.id = id.ok_or_else(|| malformed("no family id"))?;
        family.version = version;
        Ok(family)
    }

    /// Sends one question and hands the attributes of each message of the answer to `each`.
    pub(super) fn request(&mut self, command: u8, with: &Attributes, each: Each) -> io::Result<()> {
        // With an acknowledgement, an answer of any length ends with NLMSG_ERROR.
        self.exchange(command, NLM_F_REQUEST | NLM_F_ACK, with, each)
    }

    /// The same for a question whose answer is a table.
    pub(super) fn dump(&mut self, command: u8, with: &Attributes, each: Each) -> io::Result<()> {
        self.exchange(command, NLM_F_REQUEST | NLM_F_DUMP, with, each)
    }

    fn exchange(
        &mut self,
        command: u8,
        flags: u16,
        with: &Attributes,
        each: Each,
    ) -> io::Result<()> {
        self.sequence += 1;
        let genl = [command, self.version, 0, 0];
        let header = Header { kind: self.id, flags, sequence: self.sequence };
        send(&self.socket, &header.message(&[&genl, with.bytes()]), SendFlags::empty())?;

        let mut buffer = vec![0; LARGEST_REPLY];
        loop {
            if Instant::now() >= self.deadline {
                return Err(ErrorKind::TimedOut.into());
            }
            let (_, length) = rustix::io::retry_on_intr(|| {
                recv(&self.socket, buffer.as_mut_slice(), RecvFlags::TRUNC)
            })?;
            let datagram = buffer.get(..length).ok_or_else(|| malformed("truncated"))?;
            if let Answer::Complete = answer(datagram, self.sequence, each)? {
                return Ok(());
            }
        }
    }
}
