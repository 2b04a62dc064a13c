//! TCP over raw sockets: segments that no TCP socket sent, and hosts that are not on this machine.

use std::{
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    num::NonZeroU32,
    os::fd::OwnedFd,
    time::Instant,
};

use anyhow::{Context, Result, bail, ensure};
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, ipproto, recv, sendto,
    socket_with,
    sockopt::{Timeout, set_socket_timeout},
};

use crate::{actor::PATIENCE, netns::Namespace};

pub const FIN: u8 = 0x01;
pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;
pub const PSH: u8 = 0x08;
pub const ACK: u8 = 0x10;

const ETH_P_IP: u16 = 0x0800;
const IP_HEADER: usize = 20;
const TCP_HEADER: usize = 20;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    pub from: SocketAddrV4,
    pub to: SocketAddrV4,
    pub seq: u32,
    pub ack: u32,
    pub flags: u8,
    pub payload: Vec<u8>,
}

impl Segment {
    /// An IPv4 packet without options, checksums filled in.
    pub fn to_packet(&self) -> Result<Vec<u8>> {
        let length = u16::try_from(IP_HEADER + TCP_HEADER + self.payload.len())
            .context("the payload is too long for a packet")?;
        let mut packet = vec![0x45, 0];
        packet.extend(length.to_be_bytes());
        // Identification 0, do not fragment, TTL 64, TCP, checksum to come.
        packet.extend([0, 0, 0x40, 0, 64, 6, 0, 0]);
        packet.extend(self.from.ip().octets());
        packet.extend(self.to.ip().octets());
        let sum = checksum(&[&packet]);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());

        let mut tcp = Vec::new();
        tcp.extend(self.from.port().to_be_bytes());
        tcp.extend(self.to.port().to_be_bytes());
        tcp.extend(self.seq.to_be_bytes());
        tcp.extend(self.ack.to_be_bytes());
        // Five words of header, a window of 64 240, checksum to come, no urgent data.
        tcp.extend([0x50, self.flags, 0xfa, 0xf0, 0, 0, 0, 0]);
        tcp.extend(&self.payload);
        let sum = checksum(&[&self.pseudo_header(length), &tcp]);
        tcp[16..18].copy_from_slice(&sum.to_be_bytes());
        packet.extend(tcp);
        Ok(packet)
    }

    fn pseudo_header(&self, ip_length: u16) -> [u8; 12] {
        let mut header = [0; 12];
        header[..4].copy_from_slice(&self.from.ip().octets());
        header[4..8].copy_from_slice(&self.to.ip().octets());
        header[9] = 6;
        header[10..].copy_from_slice(&(ip_length - IP_HEADER as u16).to_be_bytes());
        header
    }

    /// `None` for anything but a whole, unfragmented TCP segment over IPv4.
    pub fn parse(packet: &[u8]) -> Option<Self> {
        let word = |bytes: &[u8], at: usize| {
            Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
        };
        let long = |bytes: &[u8], at: usize| {
            Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
        };
        let first = *packet.first()?;
        if first >> 4 != 4 || *packet.get(9)? != 6 || word(packet, 6)? & 0x3fff != 0 {
            return None;
        }
        let packet = packet.get(..usize::from(word(packet, 2)?))?;
        let tcp = packet.get(usize::from(first & 0xf) * 4..)?;
        let data_offset = usize::from(*tcp.get(12)? >> 4) * 4;
        Some(Self {
            from: SocketAddrV4::new(Ipv4Addr::from(long(packet, 12)?), word(tcp, 0)?),
            to: SocketAddrV4::new(Ipv4Addr::from(long(packet, 16)?), word(tcp, 2)?),
            seq: long(tcp, 4)?,
            ack: long(tcp, 8)?,
            flags: *tcp.get(13)?,
            payload: tcp.get(data_offset..)?.to_vec(),
        })
    }

    pub fn has(&self, flags: u8) -> bool {
        self.flags & flags == flags
    }

    /// The sequence number after this segment.
    fn end(&self) -> u32 {
        let length = self.payload.len() as u32;
        self.seq.wrapping_add(length).wrapping_add((self.flags & (SYN | FIN)).count_ones())
    }
}

/// The Internet checksum over the parts, of which all but the last have an even length.
fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0u32;
    for pair in parts.iter().flat_map(|part| part.chunks(2)) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Segments are made for IPv4 only.
pub fn v4(address: SocketAddr) -> Result<SocketAddrV4> {
    match address {
        SocketAddr::V4(address) => Ok(address),
        SocketAddr::V6(_) => bail!("{address} is not IPv4"),
    }
}

/// An address whose segments are sent and read over raw sockets, without the TCP stack of the namespace.
pub struct RawEnd {
    tap: OwnedFd,
    injector: OwnedFd,
    address: SocketAddrV4,
}

impl RawEnd {
    pub fn new(at: &Namespace, address: SocketAddr) -> Result<Self> {
        let address = v4(address)?;
        at.enter(|| {
            // A packet socket gets arriving packets before the stack, and needs no configured address.
            let ip = NonZeroU32::new(u32::from(ETH_P_IP.to_be())).map(Protocol::from_raw);
            let tap =
                socket_with(AddressFamily::PACKET, SocketType::DGRAM, SocketFlags::CLOEXEC, ip)
                    .context("make a packet socket")?;
            set_socket_timeout(&tap, Timeout::Recv, Some(PATIENCE))
                .context("set a socket timeout")?;
            let raw = Some(ipproto::RAW);
            let injector =
                socket_with(AddressFamily::INET, SocketType::RAW, SocketFlags::CLOEXEC, raw)
                    .context("make a raw socket")?;
            Ok(Self { tap, injector, address })
        })
    }

    pub fn send(&self, to: SocketAddrV4, seq: u32, ack: u32, flags: u8) -> Result<()> {
        self.send_segment(to, seq, ack, flags, &[])
    }

    pub fn send_data(&self, to: SocketAddrV4, seq: u32, ack: u32, payload: &[u8]) -> Result<()> {
        self.send_segment(to, seq, ack, ACK | PSH, payload)
    }

    fn send_segment(
        &self,
        to: SocketAddrV4,
        seq: u32,
        ack: u32,
        flags: u8,
        payload: &[u8],
    ) -> Result<()> {
        let payload = payload.to_vec();
        let segment = Segment { from: self.address, to, seq, ack, flags, payload };
        let packet = segment.to_packet()?;
        sendto(&self.injector, &packet, SendFlags::empty(), &to)
            .with_context(|| format!("send a segment from {} to {to}", self.address))?;
        Ok(())
    }

    /// Waits for an arriving segment to or from this address.
    pub fn await_segment(&self, what: &str, wanted: impl Fn(&Segment) -> bool) -> Result<Segment> {
        let deadline = Instant::now() + PATIENCE;
        let mut packet = [0; 2048];
        while Instant::now() < deadline {
            let (length, _) = recv(&self.tap, &mut packet, RecvFlags::empty())
                .with_context(|| format!("wait for {what}"))?;
            let segment = Segment::parse(&packet[..length]);
            let ours = segment.filter(|it| it.from == self.address || it.to == self.address);
            if let Some(segment) = ours.filter(&wanted) {
                return Ok(segment);
            }
        }
        bail!("{what} did not arrive within {} s", PATIENCE.as_secs())
    }

    /// The active side of a handshake, and the first data. The other side must answer at the same time.
    pub fn request(&self, to: SocketAddrV4) -> Result<Conversation> {
        const ISN: u32 = 0x0dd5_0000;
        self.send(to, ISN, 0, SYN)?;
        let answer =
            self.await_segment("a SYN-ACK", |it| it.to == self.address && it.has(SYN | ACK))?;
        ensure!(answer.ack == ISN + 1, "the server acknowledged {:#x}", answer.ack);
        let conversation = Conversation { peer: to, seq: answer.ack, ack: answer.end() };
        self.send(to, conversation.seq, conversation.ack, ACK)?;
        self.send(to, conversation.seq, conversation.ack, ACK | PSH)?;
        self.await_segment("the first data's acknowledgement", |it| {
            it.to == self.address && it.has(ACK) && !it.has(SYN)
        })?;
        Ok(conversation)
    }

    /// The passive side of a handshake, up to the first data.
    pub fn serve_first_request(&self) -> Result<Conversation> {
        const ISN: u32 = 0x5eed_0000;
        let syn = self.await_segment("a SYN", |it| it.to == self.address && it.has(SYN))?;
        self.send(syn.from, ISN, syn.end(), SYN | ACK)?;
        let data =
            self.await_segment("the first data", |it| it.to == self.address && it.has(ACK | PSH))?;
        ensure!(data.ack == ISN + 1, "the client acknowledged {:#x}", data.ack);
        self.send(data.from, data.ack, data.end(), ACK)?;
        Ok(Conversation { peer: data.from, seq: data.ack, ack: data.end() })
    }
}

/// The peer and the sequence numbers of a connection.
pub struct Conversation {
    pub peer: SocketAddrV4,
    pub seq: u32,
    pub ack: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(payload: &[u8]) -> Segment {
        Segment {
            from: SocketAddrV4::new(Ipv4Addr::new(10, 1, 9, 9), 3306),
            to: SocketAddrV4::new(Ipv4Addr::new(10, 1, 1, 2), 40_001),
            seq: u32::MAX,
            ack: 7,
            flags: ACK | PSH,
            payload: payload.to_vec(),
        }
    }

    #[test]
    fn a_segment_survives_a_round_trip() -> Result<()> {
        for payload in [&b""[..], b"odd", b"even"] {
            let segment = segment(payload);
            assert_eq!(Segment::parse(&segment.to_packet()?), Some(segment));
        }
        Ok(())
    }

    #[test]
    fn checksums_of_a_written_packet_verify() -> Result<()> {
        let segment = segment(b"odd");
        let packet = segment.to_packet()?;
        let (ip, tcp) = packet.split_at(IP_HEADER);
        assert_eq!(checksum(&[ip]), 0);
        assert_eq!(checksum(&[&segment.pseudo_header(packet.len() as u16), tcp]), 0);
        Ok(())
    }

    #[test]
    fn truncated_packets_are_not_segments() -> Result<()> {
        let packet = segment(b"data").to_packet()?;
        for length in 0..packet.len() {
            assert_eq!(Segment::parse(&packet[..length]), None, "{length} bytes");
        }
        Ok(())
    }

    #[test]
    fn the_end_counts_syn_fin_and_payload_and_wraps() {
        assert_eq!(segment(b"abc").end(), 2);
        assert_eq!(Segment { flags: SYN, seq: 1, ..segment(b"") }.end(), 2);
    }
}
