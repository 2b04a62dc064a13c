//! One file per hook. The file states why the hook is used, the prototypes it relies on, and what it cannot
//! report. Programs are named `<hook>__<way>`; that name is all the loader needs.

mod __ip_vs_del_dest;
mod early_drop;
mod inet_sock_set_state;
mod ip_vs_conn_expire;
mod ip_vs_conn_expire_now;
mod ip_vs_leave;
mod kfree_skb;
mod nf_ct_delete;
mod nf_ct_l4proto_log_invalid;
mod nf_ct_resolve_clash;
mod nf_nat_unregister_fn;
mod nf_send_reset;
mod nf_send_unreach;
mod tcp_receive_reset;
mod tcp_reset;
mod tcp_send_reset;
mod tcp_v4_send_reset;
mod timer_expire_entry;
