//! How an IPVS entry ended.

use crate::event::{IpvsEnd, has};

/// What removed the entry, as a clause; `None` if it expired by itself or ended because of its server.
pub fn lost_to(end: &IpvsEnd) -> Option<String> {
    let stack = |function: &str| has(&end.stack, function);
    if end.is_unused_copy() {
        return Some(
            "it was a copy of another director's entry, which sent no update of it".into(),
        );
    }
    if stack("ip_vs_random_dropentry") {
        return Some("the drop_entry defence removed it".into());
    }
    if !stack("ip_vs_conn_net_cleanup") && !stack("ip_vs_conn_flush") {
        return None;
    }
    Some(if stack("cleanup_net") {
        "its network namespace ended".into()
    } else if stack("__do_sys_delete_module") || stack("__x64_sys_delete_module") {
        format!("{} unloaded ip_vs", end.task)
    } else {
        format!("{} flushed the table", end.task)
    })
}
