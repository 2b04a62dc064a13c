//! The identity of an incident: the same for the same boot, namespace, tuple and first kernel time,
//! whatever the verdict, so that replaying a capture gives the same ids.

use rsttrace_model::flow::{Flow, Nanos};
use sha1::{Digest, Sha1};

/// An incident's id.
pub fn event_id(boot_id: &str, netns: u32, flow: Flow, opened: Nanos, wall_ns: i64) -> String {
    let mut hash = Sha1::new();
    hash.update(boot_id.as_bytes());
    hash.update(netns.to_be_bytes());
    hash.update(flow.key().to_string().as_bytes());
    hash.update(opened.to_be_bytes());
    uuid(hash, wall_ns)
}

/// The id of a summary event: one for each boot and time.
pub fn summary_id(boot_id: &str, wall_ns: i64) -> String {
    let mut hash = Sha1::new();
    hash.update(boot_id.as_bytes());
    hash.update(b"summary");
    hash.update(wall_ns.to_be_bytes());
    uuid(hash, wall_ns)
}

/// A UUIDv8 (RFC 9562 5.8): 48 bits of milliseconds, then the hash.
fn uuid(hash: Sha1, wall_ns: i64) -> String {
    let digest = hash.finalize();
    let millis = u64::try_from(wall_ns / 1_000_000).unwrap_or(0);
    let mut bytes = [0_u8; 16];
    bytes[..6].copy_from_slice(&millis.to_be_bytes()[2..]);
    bytes[6..].copy_from_slice(&digest[..10]);
    bytes[6] = bytes[6] & 0x0f | 0x80;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}
