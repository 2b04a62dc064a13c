//! Netlink sockets: requests to one netlink protocol, and to one family of generic netlink.

use std::{
    io::{self, ErrorKind},
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, connect,
    netlink::{GENERIC, SocketAddrNetlink},
    recv, send, socket_with,
    sockopt::{Timeout, set_socket_timeout},
};

use super::nlmsg::{Attributes, Each, Header, Reply, attributes, malformed, reply, u16_of};

const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP: u16 = 0x300;

const GENL_ID_CTRL: u16 = 0x10;
const GENL_HDRLEN: usize = 4;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;

/// The kernel never fills more than this of a dump's buffer, bytes (`netlink_dump`).
const LARGEST_REPLY: usize = 32 * 1024;
const RECEIVE_TIMEOUT: Duration = Duration::from_secs(1);

/// A socket for one netlink protocol, in the network namespace of the thread that opened it.
pub(super) struct Link {
    socket: OwnedFd,
    sequence: u32,
    /// No reply is awaited after this time.
    deadline: Instant,
}

impl Link {
    /// `None` is rtnetlink, whose protocol number is 0.
    pub(super) fn open(
        protocol: impl Into<Option<Protocol>>,
        deadline: Instant,
    ) -> io::Result<Link> {
        let flags = SocketFlags::CLOEXEC;
        let protocol = protocol.into();
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, protocol)?;
        // A socket that is connected to the kernel receives no messages from other senders.
        connect(&socket, &SocketAddrNetlink::new(0, 0))?;
        set_socket_timeout(&socket, Timeout::Recv, Some(RECEIVE_TIMEOUT))?;
        Ok(Link { socket, sequence: 0, deadline })
    }

    /// Sends one request of type `kind` and passes the body of each message of the reply to `each`.
    pub(super) fn request(&mut self, kind: u16, parts: &[&[u8]], each: Each) -> io::Result<()> {
        // With NLM_F_ACK, a reply of any length ends with NLMSG_ERROR.
        self.exchange(kind, NLM_F_REQUEST | NLM_F_ACK, parts, each)
    }

    /// The same as [`Self::request`], for a request whose reply is a table.
    pub(super) fn dump(&mut self, kind: u16, parts: &[&[u8]], each: Each) -> io::Result<()> {
        self.exchange(kind, NLM_F_REQUEST | NLM_F_DUMP, parts, each)
    }

    fn exchange(&mut self, kind: u16, flags: u16, parts: &[&[u8]], each: Each) -> io::Result<()> {
        self.sequence += 1;
        let header = Header { kind, flags, sequence: self.sequence };
        send(&self.socket, &header.message(parts), SendFlags::empty())?;

        let mut buffer = vec![0; LARGEST_REPLY];
        loop {
            if Instant::now() >= self.deadline {
                return Err(ErrorKind::TimedOut.into());
            }
            let (_, length) = rustix::io::retry_on_intr(|| {
                recv(&self.socket, buffer.as_mut_slice(), RecvFlags::TRUNC)
            })?;
            let datagram = buffer.get(..length).ok_or_else(|| malformed("truncated"))?;
            if let Reply::Complete = reply(datagram, self.sequence, each)? {
                return Ok(());
            }
        }
    }
}

/// One generic netlink family (`linux/genetlink.h`).
pub(super) struct Family {
    link: Link,
    id: u16,
    version: u8,
}

impl Family {
    /// Requests the id of the family `name` from the controller. For an unknown family the kernel loads the
    /// family's module, so the caller must check first that the module is loaded.
    pub(super) fn connect(name: &str, version: u8, deadline: Instant) -> io::Result<Family> {
        let mut family =
            Family { link: Link::open(GENERIC, deadline)?, id: GENL_ID_CTRL, version: 1 };
        let mut request = Attributes::default();
        request.put(CTRL_ATTR_FAMILY_NAME, &[name.as_bytes(), b"\0"].concat());
        let mut id = None;
        family.request(CTRL_CMD_GETFAMILY, &request, &mut |reply| {
            for attribute in attributes(reply) {
                let (kind, payload) = attribute?;
                if kind == CTRL_ATTR_FAMILY_ID {
                    id = Some(u16_of(payload)?);
                }
            }
            Ok(())
        })?;
        family.id = id.ok_or_else(|| malformed("missing family id"))?;
        family.version = version;
        Ok(family)
    }

    /// Sends one request and passes the attributes of each message of the reply to `each`.
    pub(super) fn request(&mut self, command: u8, with: &Attributes, each: Each) -> io::Result<()> {
        let parts: &[&[u8]] = &[&[command, self.version, 0, 0], with.bytes()];
        self.link.request(self.id, parts, &mut |body| each(attributes_of(body)?))
    }

    /// The same as [`Self::request`], for a request whose reply is a table.
    pub(super) fn dump(&mut self, command: u8, with: &Attributes, each: Each) -> io::Result<()> {
        let parts: &[&[u8]] = &[&[command, self.version, 0, 0], with.bytes()];
        self.link.dump(self.id, parts, &mut |body| each(attributes_of(body)?))
    }
}

/// The attributes, which follow `struct genlmsghdr`.
fn attributes_of(body: &[u8]) -> io::Result<&[u8]> {
    body.get(GENL_HDRLEN..).ok_or_else(|| malformed("missing genl header"))
}
