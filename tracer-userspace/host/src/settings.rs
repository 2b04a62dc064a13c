//! Reads the settings that the kernel shows as files.

use std::{fs, io::ErrorKind, path::Path};

use rsttrace_model::settings::{ALL, Scope, Setting, Unread, Values};

/// Reads one value, as the kernel prints it. `/proc/sys/net` shows the network namespace of the calling
/// thread; `root` is `/`, or a directory that stands in for it.
///
/// # Errors
/// [`Unread::Absent`] where the file does not exist, and for the IPVS timeouts, which no file contains.
/// [`Unread::Denied`] for every other error.
pub fn read_file(root: &Path, setting: &Setting) -> Result<String, Unread> {
    let path = setting.path().ok_or(Unread::Absent)?;
    fs::read_to_string(root.join(path)).map_err(|error| match error.kind() {
        ErrorKind::NotFound => Unread::Absent,
        _ => Unread::Denied,
    })
}

/// Reads every setting of one scope that is a file.
pub fn read_files(root: &Path, scope: Scope) -> Values {
    let mut values = Values::default();
    let of_scope = |setting: &&Setting| setting.scope == scope && setting.path().is_some();
    for setting in ALL.iter().filter(of_scope) {
        values.insert(setting, read_file(root, setting));
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TempRoot;

    #[test]
    fn existing_files_are_read_and_missing_files_are_absent() {
        let root = TempRoot::new();
        root.file("proc/sys/net/ipv4/tcp_keepalive_time", "7200\n");
        root.file("sys/module/nf_conntrack/parameters/hashsize", "65536\n");
        let values = read_files(root.path(), Scope::Netns);
        assert_eq!(values.number("net.ipv4.tcp_keepalive_time"), Some(7200));
        assert_eq!(values.text("net.ipv4.vs.conntrack"), Err(Unread::Absent));
        let values = read_files(root.path(), Scope::Machine);
        assert_eq!(values.number("nf_conntrack.hashsize"), Some(65536));
        assert_eq!(
            values.text("net.ipv4.tcp_keepalive_time"),
            Err(Unread::Absent),
            "the setting of a network namespace"
        );
    }

    #[test]
    fn an_unreadable_file_is_not_reported_as_absent() {
        let root = TempRoot::new();
        root.directory("proc/sys/net/ipv4/tcp_retries2");
        let setting = Setting::find("net.ipv4.tcp_retries2").expect("listed");
        assert_eq!(read_file(root.path(), setting), Err(Unread::Denied));
    }
}
