//! The kernel side: programs on hooks that write records. `probes/` has one file per hook.
//!
//! This object is its own manifest. User space reads from it what to attach (programs named
//! `<hook>__<way>`) and what to look up in the running kernel's BTF before loading (globals named
//! `OFFSET_OF_…`, `SIZE_OF_…`, `ARG_OF_…`, `VALUE_OF_…`, `ADDRESS_OF_…`).
#![no_std]
#![no_main]
#![allow(
    non_snake_case,
    non_upper_case_globals,
    reason = "names carry kernel symbols, exactly as the kernel spells them"
)]

mod backup_program;
mod conntrack;
mod emit;
mod full_table;
mod ipvs;
mod kread;
mod opener;
mod packet;
mod plain_end;
mod probes;
mod reset;
mod rule_drop;
mod sock;
mod socket_end;
mod task;

/// `bpf_probe_read_kernel`, `bpf_get_stack` and others are GPL-only helpers.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
