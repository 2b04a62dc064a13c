//! Where a value comes from.

use super::view::{Netns, View};
use crate::settings::{IpvsTimer, Setting, Stored};

/// In a clause: "the kernel's default", and who else says what.
pub fn of(view: &View, netns: &Netns, key: &str) -> String {
    let _ = view;
    let Some(setting) = Setting::find(key) else {
        return String::new();
    };
    let is_default = setting.default.is_some() && netns.values.number(key) == setting.default;
    let read = match setting.stored {
        Stored::Sysctl => key.to_owned(),
        Stored::IpvsTimeout(timer) => {
            let name = match timer {
                IpvsTimer::Tcp => "tcp",
                IpvsTimer::TcpFin => "tcpfin",
                IpvsTimer::Udp => "udp",
            };
            format!("ipvsadm -Ln --timeout ({name})")
        }
        Stored::Parameter { .. } => key.to_owned(),
    };
    match is_default {
        true => format!("{read}: the kernel's default"),
        false => format!("{read}: set by hand or by a program"),
    }
}
