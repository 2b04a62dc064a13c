//! Reads `struct sock`: only this module uses the offsets of socket fields.

use aya_ebpf::helpers::generated::bpf_jiffies64;
use tracer_common::{
    net::{AF_INET6, IPPROTO_TCP},
    record::{Flow, Sock},
};

use crate::{
    kread::{copy, facts, read, read_or_zero},
    packet,
};

facts! {
    OFFSET_OF_sock_common_DOT_skc_daddr,
    OFFSET_OF_sock_common_DOT_skc_rcv_saddr,
    OFFSET_OF_sock_common_DOT_skc_v6_daddr,
    OFFSET_OF_sock_common_DOT_skc_v6_rcv_saddr,
    OFFSET_OF_sock_common_DOT_skc_dport,
    OFFSET_OF_sock_common_DOT_skc_num,
    OFFSET_OF_sock_common_DOT_skc_family,
    OFFSET_OF_sock_common_DOT_skc_state,
    OFFSET_OF_sock_common_DOT_skc_flags,
    OFFSET_OF_sock_common_DOT_skc_net_DOT_net,
    OFFSET_OF_sock_DOT_sk_err,
    OFFSET_OF_sock_DOT_sk_err_soft,
    OFFSET_OF_sock_DOT_sk_lingertime,
    OFFSET_OF_sock_DOT_sk_shutdown,
    OFFSET_OF_sock_DOT_sk_protocol,
    OFFSET_OF_sock_DOT_sk_uid,
    OFFSET_OF_sock_DOT_sk_ack_backlog,
    OFFSET_OF_sock_DOT_sk_max_ack_backlog,
    OFFSET_OF_sock_DOT_sk_socket,
    OFFSET_OF_socket_alloc_DOT_vfs_inode,
    OFFSET_OF_inode_DOT_i_ino,
    OFFSET_OF_inet_sock_DOT_inet_saddr,
    OFFSET_OF_inet_sock_DOT_inet_sport,
    OFFSET_OF_inet_timewait_sock_DOT_tw_substate,
    OFFSET_OF_inet_connection_sock_DOT_icsk_retransmits,
    OFFSET_OF_inet_connection_sock_DOT_icsk_probes_out,
    OFFSET_OF_inet_connection_sock_DOT_icsk_user_timeout,
    OFFSET_OF_inet_connection_sock_DOT_icsk_ack_DOT_lrcvtime,
    OFFSET_OF_tcp_sock_DOT_rcv_tstamp,
    OFFSET_OF_tcp_sock_DOT_lsndtime,
    OFFSET_OF_tcp_sock_DOT_keepalive_time,
    OFFSET_OF_tcp_sock_DOT_keepalive_intvl,
    OFFSET_OF_tcp_sock_DOT_keepalive_probes,
    OFFSET_OF_tcp_sock_DOT_linger2,
    OFFSET_OF_tcp_sock_DOT_total_retrans,
    OFFSET_OF_tcp_sock_DOT_packets_out,
    OFFSET_OF_tcp_sock_DOT_snd_una,
    OFFSET_OF_tcp_sock_DOT_snd_nxt,
    OFFSET_OF_tcp_sock_DOT_snd_wnd,
    OFFSET_OF_tcp_sock_DOT_rcv_nxt,
    OFFSET_OF_tcp_sock_DOT_copied_seq,
    OFFSET_OF_tcp_sock_DOT_bytes_received,
    OFFSET_OF_tcp_sock_DOT_bytes_acked,
    OFFSET_OF_tcp_sock_DOT_bytes_sent,
    OFFSET_OF_tcp_sock_DOT_rx_opt_DOT_ts_recent_stamp,
    OFFSET_OF_sock_DOT_sk_reuseport_cb,
    OFFSET_OF_sock_reuseport_DOT_synq_overflow_ts,
    OFFSET_OF_net_DOT_ipv4_DOT_sysctl_tcp_keepalive_time,
    OFFSET_OF_net_DOT_ipv4_DOT_sysctl_tcp_keepalive_intvl,
    OFFSET_OF_net_DOT_ipv4_DOT_sysctl_tcp_keepalive_probes,
    OFFSET_OF_net_DOT_ipv4_DOT_sysctl_tcp_retries2,
}

/// include/net/tcp_states.h
pub const TCP_SYN_SENT: u8 = 2;
pub const TCP_SYN_RECV: u8 = 3;
pub const TCP_FIN_WAIT1: u8 = 4;
pub const TCP_TIME_WAIT: u8 = 6;
pub const TCP_CLOSE: u8 = 7;
pub const TCP_LAST_ACK: u8 = 9;
pub const TCP_LISTEN: u8 = 10;
pub const TCP_NEW_SYN_RECV: u8 = 12;

/// `skc_state`; 0 for "no socket".
#[inline(always)]
pub fn state(sk: u64) -> u8 {
    if sk == 0 {
        return 0;
    }
    read_or_zero(sk, OFFSET_OF_sock_common_DOT_skc_state.load())
}

/// Whether the socket is a whole `struct sock`. TIME_WAIT and request sockets are smaller, so a read beyond
/// their end returns other memory.
#[inline(always)]
pub fn is_full(state: u8) -> bool {
    state != TCP_TIME_WAIT && state != TCP_NEW_SYN_RECV && state != 0
}

/// Whether a full socket is a TCP socket.
#[inline(always)]
pub fn is_tcp(sk: u64) -> bool {
    // u16 since 5.6; u8 after a bitfield before (which does not resolve, so the result is `false`).
    read::<u16>(sk, OFFSET_OF_sock_DOT_sk_protocol.load()) == Some(u16::from(IPPROTO_TCP))
}

/// `sk_err`, positive errno.
#[inline(always)]
pub fn error(sk: u64) -> u32 {
    read_or_zero(sk, OFFSET_OF_sock_DOT_sk_err.load())
}

/// Whether a full socket is orphaned: no process holds it (SOCK_DEAD, include/net/sock.h).
#[inline(always)]
pub fn is_dead(sk: u64) -> bool {
    read_or_zero::<u64>(sk, OFFSET_OF_sock_common_DOT_skc_flags.load()) & 1 != 0
}

/// How long no payload has been received or sent, jiffies. Both stamps are set when the connection begins.
#[inline(always)]
pub fn idle_j(sk: u64) -> u32 {
    // SAFETY: a helper without arguments.
    let now = unsafe { bpf_jiffies64() } as u32;
    let since = |offset| now.wrapping_sub(read_or_zero::<u32>(sk, offset));
    let received = since(OFFSET_OF_inet_connection_sock_DOT_icsk_ack_DOT_lrcvtime.load());
    received.min(since(OFFSET_OF_tcp_sock_DOT_lsndtime.load()))
}

/// Remote port, host order.
#[inline(always)]
pub fn remote_port(sk: u64) -> u16 {
    u16::from_be(read_or_zero(sk, OFFSET_OF_sock_common_DOT_skc_dport.load()))
}

#[inline(always)]
fn net(sk: u64) -> u64 {
    read_or_zero(sk, OFFSET_OF_sock_common_DOT_skc_net_DOT_net.load())
}

/// Inode number of the socket's namespace; 0 without a socket.
#[inline(always)]
pub fn netns(sk: u64) -> u32 {
    if sk == 0 {
        return 0;
    }
    packet::netns_of_net(net(sk))
}

/// Fills in the local and remote side. `skc_num` and `skc_rcv_saddr` are already cleared when a closed socket
/// sends its reset; `inet_sport` and `inet_saddr` are not (net/ipv4/inet_hashtables.c, unhash).
///
/// # Safety
/// `flow` must be writable.
#[inline(always)]
pub unsafe fn fill_flow(flow: *mut Flow, sk: u64, full: bool) {
    // SAFETY: per contract; kernel reads are checked by the helper.
    unsafe {
        if read::<u16>(sk, OFFSET_OF_sock_common_DOT_skc_family.load()) == Some(u16::from(AF_INET6))
        {
            copy!(flow.dst_addr, sk, OFFSET_OF_sock_common_DOT_skc_v6_daddr);
            copy!(flow.src_addr, sk, OFFSET_OF_sock_common_DOT_skc_v6_rcv_saddr);
        } else {
            let dst: [u8; 4] = read_or_zero(sk, OFFSET_OF_sock_common_DOT_skc_daddr.load());
            let mut src: [u8; 4] = read_or_zero(sk, OFFSET_OF_sock_common_DOT_skc_rcv_saddr.load());
            if full && u32::from_ne_bytes(src) == 0 {
                src = read_or_zero(sk, OFFSET_OF_inet_sock_DOT_inet_saddr.load());
            }
            (*flow).dst_addr = packet::mapped(dst);
            (*flow).src_addr = packet::mapped(src);
        }
        (*flow).dst_port = remote_port(sk);
        let mut port: u16 = read_or_zero(sk, OFFSET_OF_sock_common_DOT_skc_num.load());
        if full && port == 0 {
            port = u16::from_be(read_or_zero(sk, OFFSET_OF_inet_sock_DOT_inet_sport.load()));
        }
        (*flow).src_port = port;
    }
}

/// Fills in the fields that can be read in the socket's state.
///
/// # Safety
/// `out` must be writable.
#[inline(always)]
pub unsafe fn fill(out: *mut Sock, sk: u64) {
    if sk == 0 {
        return;
    }
    let state = state(sk);
    let full = is_full(state);
    // SAFETY: per contract; kernel reads are checked by the helper.
    unsafe {
        (*out).id = sk;
        (*out).state = state;
        fill_flow(&raw mut (*out).flow, sk, full);
        if state == TCP_TIME_WAIT {
            copy!(out.tw_substate, sk, OFFSET_OF_inet_timewait_sock_DOT_tw_substate);
        }
        if full {
            fill_full(out, sk);
        }
        if state == TCP_LISTEN {
            (*out).synq_overflow_j = synq_overflow_j(sk);
        }
    }
}

/// When a listener last needed SYN cookies, jiffies, as stored by `tcp_synq_overflow` (include/net/tcp.h).
#[inline(always)]
fn synq_overflow_j(sk: u64) -> u32 {
    let group: u64 = read_or_zero(sk, OFFSET_OF_sock_DOT_sk_reuseport_cb.load());
    if group != 0 {
        return read_or_zero(group, OFFSET_OF_sock_reuseport_DOT_synq_overflow_ts.load());
    }
    read_or_zero(sk, OFFSET_OF_tcp_sock_DOT_rx_opt_DOT_ts_recent_stamp.load())
}

#[inline(always)]
unsafe fn fill_full(out: *mut Sock, sk: u64) {
    // SAFETY: as `fill`.
    unsafe {
        copy!(out.flags, sk, OFFSET_OF_sock_common_DOT_skc_flags);
        copy!(out.err, sk, OFFSET_OF_sock_DOT_sk_err);
        copy!(out.err_soft, sk, OFFSET_OF_sock_DOT_sk_err_soft);
        copy!(out.lingertime_j, sk, OFFSET_OF_sock_DOT_sk_lingertime);
        copy!(out.shutdown, sk, OFFSET_OF_sock_DOT_sk_shutdown);
        copy!(out.uid, sk, OFFSET_OF_sock_DOT_sk_uid);
        copy!(out.ack_backlog, sk, OFFSET_OF_sock_DOT_sk_ack_backlog);
        copy!(out.max_ack_backlog, sk, OFFSET_OF_sock_DOT_sk_max_ack_backlog);
        copy!(out.retransmits, sk, OFFSET_OF_inet_connection_sock_DOT_icsk_retransmits);
        copy!(out.probes_out, sk, OFFSET_OF_inet_connection_sock_DOT_icsk_probes_out);
        copy!(out.user_timeout_ms, sk, OFFSET_OF_inet_connection_sock_DOT_icsk_user_timeout);
        copy!(out.lrcvtime_j, sk, OFFSET_OF_inet_connection_sock_DOT_icsk_ack_DOT_lrcvtime);
        copy!(out.rcv_tstamp_j, sk, OFFSET_OF_tcp_sock_DOT_rcv_tstamp);
        copy!(out.lsndtime_j, sk, OFFSET_OF_tcp_sock_DOT_lsndtime);
        copy!(out.keepalive_time_j, sk, OFFSET_OF_tcp_sock_DOT_keepalive_time);
        copy!(out.keepalive_intvl_j, sk, OFFSET_OF_tcp_sock_DOT_keepalive_intvl);
        copy!(out.keepalive_probes, sk, OFFSET_OF_tcp_sock_DOT_keepalive_probes);
        copy!(out.linger2, sk, OFFSET_OF_tcp_sock_DOT_linger2);
        copy!(out.total_retrans, sk, OFFSET_OF_tcp_sock_DOT_total_retrans);
        copy!(out.packets_out, sk, OFFSET_OF_tcp_sock_DOT_packets_out);
        copy!(out.snd_una, sk, OFFSET_OF_tcp_sock_DOT_snd_una);
        copy!(out.snd_nxt, sk, OFFSET_OF_tcp_sock_DOT_snd_nxt);
        copy!(out.snd_wnd, sk, OFFSET_OF_tcp_sock_DOT_snd_wnd);
        copy!(out.rcv_nxt, sk, OFFSET_OF_tcp_sock_DOT_rcv_nxt);
        copy!(out.copied_seq, sk, OFFSET_OF_tcp_sock_DOT_copied_seq);
        copy!(out.bytes_received, sk, OFFSET_OF_tcp_sock_DOT_bytes_received);
        copy!(out.bytes_acked, sk, OFFSET_OF_tcp_sock_DOT_bytes_acked);
        copy!(out.bytes_sent, sk, OFFSET_OF_tcp_sock_DOT_bytes_sent);

        let socket: u64 = read_or_zero(sk, OFFSET_OF_sock_DOT_sk_socket.load());
        let inode = OFFSET_OF_socket_alloc_DOT_vfs_inode.load();
        if socket != 0 && inode != tracer_common::wire::ABSENT {
            copy!(out.inode, socket + u64::from(inode), OFFSET_OF_inode_DOT_i_ino);
        }
        let net = net(sk);
        if net != 0 {
            copy!(
                out.sysctl_keepalive_time_j,
                net,
                OFFSET_OF_net_DOT_ipv4_DOT_sysctl_tcp_keepalive_time
            );
            copy!(
                out.sysctl_keepalive_intvl_j,
                net,
                OFFSET_OF_net_DOT_ipv4_DOT_sysctl_tcp_keepalive_intvl
            );
            copy!(
                out.sysctl_keepalive_probes,
                net,
                OFFSET_OF_net_DOT_ipv4_DOT_sysctl_tcp_keepalive_probes
            );
            copy!(out.sysctl_retries2, net, OFFSET_OF_net_DOT_ipv4_DOT_sysctl_tcp_retries2);
        }
    }
}
