//! The part of the netlink wire format (`linux/netlink.h`) that our requests need.
//! A malformed reply is an error, never a panic.

use std::io::{self, ErrorKind};

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLA_F_NESTED: u16 = 1 << 15;
/// The two top bits of an attribute's type are flags.
const NLA_TYPE_MASK: u16 = 0x3fff;

const NLMSG_HDRLEN: usize = 16;
const NLA_HDRLEN: usize = 4;

/// The handler of each message of a reply; an error ends the exchange.
pub(super) type Each<'a> = &'a mut dyn FnMut(&[u8]) -> io::Result<()>;

#[derive(Debug, PartialEq)]
pub(super) enum Reply {
    Complete,
    More,
}

/// Reads the messages of one datagram that reply to the request `sequence`.
pub(super) fn reply(mut datagram: &[u8], sequence: u32, each: Each) -> io::Result<Reply> {
    while !datagram.is_empty() {
        let (header, body, rest) = Header::split(datagram)?;
        datagram = rest;
        if header.sequence != sequence {
            continue; // the rest of a reply to an earlier request
        }
        match header.kind {
            NLMSG_ERROR | NLMSG_DONE => {
                let code = i32::from_ne_bytes(leading(body)?);
                return match code {
                    0 => Ok(Reply::Complete),
                    _ => Err(io::Error::from_raw_os_error(code.saturating_neg())),
                };
            }
            _ => each(body)?,
        }
    }
    Ok(Reply::More)
}

/// The fields of `struct nlmsghdr` that we use. The kernel fills in the sender's port id.
pub(super) struct Header {
    pub kind: u16,
    pub flags: u16,
    pub sequence: u32,
}

impl Header {
    pub(super) fn message(&self, parts: &[&[u8]]) -> Vec<u8> {
        let body = parts.concat();
        // Our requests are a few dozen bytes.
        let length = (NLMSG_HDRLEN + body.len()) as u32;
        let mut message = Vec::with_capacity(length as usize);
        message.extend(length.to_ne_bytes());
        message.extend(self.kind.to_ne_bytes());
        message.extend(self.flags.to_ne_bytes());
        message.extend(self.sequence.to_ne_bytes());
        message.extend(0_u32.to_ne_bytes());
        message.extend(body);
        message
    }

    /// Splits off the first message. Returns its header, its body, and the bytes that follow.
    fn split(bytes: &[u8]) -> io::Result<(Header, &[u8], &[u8])> {
        let length = u32::from_ne_bytes(leading(bytes)?) as usize;
        let message = bytes.get(..length).ok_or_else(|| malformed("message length"))?;
        let body = message.get(NLMSG_HDRLEN..).ok_or_else(|| malformed("message header"))?;
        let header = Header {
            kind: u16::from_ne_bytes(leading(&message[4..])?),
            flags: u16::from_ne_bytes(leading(&message[6..])?),
            sequence: u32::from_ne_bytes(leading(&message[8..])?),
        };
        Ok((header, body, after(bytes, length)))
    }
}

/// Attributes of a request, in the order they were put.
#[derive(Default)]
pub(super) struct Attributes(Vec<u8>);

impl Attributes {
    /// Appends one attribute. The payload must be short (a name, an address, a few numbers), because the
    /// length has 16 bits.
    pub(super) fn put(&mut self, kind: u16, payload: &[u8]) {
        let length = (NLA_HDRLEN + payload.len()) as u16;
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(payload);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    /// The encoded attributes, padding included.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    pub(super) fn put_nested(&mut self, kind: u16, inner: &Attributes) {
        self.put(kind | NLA_F_NESTED, &inner.0);
    }
}

/// The attributes in `bytes`: type without flags, and payload. An error is the last item.
pub(super) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = io::Result<(u16, &[u8])>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let item = split_attribute(bytes);
        bytes = item.as_ref().map_or(&[], |(_, _, rest)| rest);
        Some(item.map(|(kind, payload, _)| (kind, payload)))
    })
}

fn split_attribute(bytes: &[u8]) -> io::Result<(u16, &[u8], &[u8])> {
    let length = usize::from(u16::from_ne_bytes(leading(bytes)?));
    let attribute = bytes.get(..length).ok_or_else(|| malformed("attribute length"))?;
    let payload = attribute.get(NLA_HDRLEN..).ok_or_else(|| malformed("attribute header"))?;
    let kind = u16::from_ne_bytes(leading(&attribute[2..])?) & NLA_TYPE_MASK;
    Ok((kind, payload, after(bytes, length)))
}

/// The bytes after an item of `length` bytes. The padding of the last item may be missing.
fn after(bytes: &[u8], length: usize) -> &[u8] {
    bytes.get(length.next_multiple_of(4)..).unwrap_or_default()
}

/// A payload that is one number in host byte order.
pub(super) fn u16_of(payload: &[u8]) -> io::Result<u16> {
    payload.try_into().map(u16::from_ne_bytes).map_err(|_| malformed("wrong size of a number"))
}

/// A payload that is one number in host byte order.
pub(super) fn u32_of(payload: &[u8]) -> io::Result<u32> {
    payload.try_into().map(u32::from_ne_bytes).map_err(|_| malformed("wrong size of a number"))
}

/// The first `N` bytes.
pub(super) fn leading<const N: usize>(bytes: &[u8]) -> io::Result<[u8; N]> {
    bytes.first_chunk().copied().ok_or_else(|| malformed("too short"))
}

pub(super) fn malformed(what: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, format!("malformed netlink reply: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, sequence: u32, body: &[u8]) -> Vec<u8> {
        Header { kind, flags: 0, sequence }.message(&[body])
    }

    /// Whether the reply is complete, and the bodies of its messages.
    fn read(datagram: &[u8]) -> io::Result<(Reply, Vec<Vec<u8>>)> {
        let mut bodies = Vec::new();
        let end = reply(datagram, 7, &mut |body| {
            bodies.push(body.to_vec());
            Ok(())
        })?;
        Ok((end, bodies))
    }

    #[test]
    fn a_message_is_length_type_flags_sequence_port_body() {
        let bytes = Header { kind: 0x10, flags: 0x305, sequence: 9 }.message(&[b"abcd", b"ef"]);
        let mut expected = 22_u32.to_ne_bytes().to_vec();
        expected.extend(0x10_u16.to_ne_bytes());
        expected.extend(0x305_u16.to_ne_bytes());
        expected.extend(9_u32.to_ne_bytes());
        expected.extend([0; 4]);
        expected.extend(b"abcdef");
        assert_eq!(bytes, expected);
    }

    #[test]
    fn a_dump_ends_with_done_and_a_request_with_error_zero() {
        for kind in [NLMSG_DONE, NLMSG_ERROR] {
            let mut datagram = message(0x1b, 7, b"PAYL");
            assert_eq!(read(&datagram).expect("valid"), (Reply::More, vec![b"PAYL".to_vec()]));
            datagram.extend(message(kind, 7, &[0; 4]));
            assert_eq!(read(&datagram).expect("valid"), (Reply::Complete, vec![b"PAYL".to_vec()]));
        }
    }

    #[test]
    fn an_error_reply_has_its_errno() {
        let denied = message(NLMSG_ERROR, 7, &(-1_i32).to_ne_bytes());
        assert_eq!(read(&denied).expect_err("EPERM").raw_os_error(), Some(1));
    }

    #[test]
    fn replies_to_earlier_requests_are_skipped() {
        let stale = message(NLMSG_DONE, 6, &[0; 4]);
        assert_eq!(read(&stale).expect("valid"), (Reply::More, vec![]));
    }

    #[test]
    fn attributes_survive_a_round_trip() {
        let mut inner = Attributes::default();
        inner.put(1, b"odd");
        let mut outer = Attributes::default();
        outer.put_nested(2, &inner);
        outer.put(3, b"");
        assert_eq!(outer.0.len() % 4, 0);
        let read: Vec<_> = attributes(&outer.0).map(|a| a.expect("valid")).collect();
        assert_eq!(read, [(2, &inner.0[..]), (3, &b""[..])]);
        let nested: Vec<_> = attributes(&inner.0).map(|a| a.expect("valid")).collect();
        assert_eq!(nested, [(1, &b"odd"[..])]);
    }

    #[test]
    fn a_truncated_datagram_and_a_wrong_length_are_errors() {
        let whole = message(0x1b, 7, b"PAYL");
        for cut in 1..whole.len() {
            assert!(read(&whole[..cut]).is_err(), "{cut}");
        }
        for length in [0_u32, 4, 15, 21, u32::MAX] {
            let mut wrong = whole.clone();
            wrong[..4].copy_from_slice(&length.to_ne_bytes());
            assert!(read(&wrong).is_err(), "{length}");
        }
    }

    #[test]
    fn an_invalid_attribute_is_an_error_and_the_last_item() {
        for bytes in [&[4, 0, 1][..], &[0; 8], &[3, 0, 1, 0], &[255, 255, 1, 0, 0]] {
            let items: Vec<_> = attributes(bytes).collect();
            assert_eq!(items.len(), 1, "{bytes:?}");
            assert!(items[0].is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn a_number_of_another_size_is_an_error() {
        assert_eq!(u16_of(&7_u16.to_ne_bytes()).ok(), Some(7));
        assert_eq!(u32_of(&7_u32.to_ne_bytes()).ok(), Some(7));
        assert!(u16_of(&[0; 4]).is_err());
        assert!(u32_of(&[]).is_err());
    }
}
