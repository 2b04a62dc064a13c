//! Numbers of the socket interface that both sides use.

/// include/linux/socket.h
pub const AF_INET: u8 = 2;
/// include/linux/socket.h
pub const AF_INET6: u8 = 10;
/// include/uapi/linux/in.h
pub const IPPROTO_TCP: u8 = 6;
/// include/uapi/linux/in.h
pub const IPPROTO_UDP: u8 = 17;
