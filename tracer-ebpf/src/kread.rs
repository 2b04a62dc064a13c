//! Reads of kernel memory at offsets that user space fills in before load.
//!
//! Each fact is one frozen `.rodata` word, so the verifier sees a constant and prunes the code for fields
//! that this kernel does not have. When rustc supports BTF relocations, they can replace this file.

use aya_ebpf::helpers::generated::bpf_probe_read_kernel;
use tracer_common::wire::{ABSENT, COUNTER_UNREADABLE};

use crate::emit;

/// Declares facts for the manifest: `u32`, [`ABSENT`] until user space resolves them.
macro_rules! facts {
    ($($name:ident),+ $(,)?) => {$(
        #[unsafe(no_mangle)]
        pub static $name: aya_ebpf::Global<u32> =
            aya_ebpf::Global::new(tracer_common::wire::ABSENT);
    )+};
}

/// Declares kernel addresses for the manifest: `u64`, 0 where the symbol is unknown.
macro_rules! addresses {
    ($($name:ident),+ $(,)?) => {$(
        #[unsafe(no_mangle)]
        pub static $name: aya_ebpf::Global<u64> = aya_ebpf::Global::new(0);
    )+};
}

/// Copies the field at `base + OFFSET` into a record's field, which stays zero when this kernel has no such
/// field.
macro_rules! copy {
    ($record:ident . $($field:ident).+, $base:expr, $fact:ident) => {
        crate::kread::copy_to(&raw mut (*$record).$($field).+, $base, $fact.load())
    };
}

pub(crate) use {addresses, copy, facts};

/// Reads a `T` at `base + offset`. `None` when the offset is unknown or the read faults.
#[inline(always)]
pub fn read<T: Copy>(base: u64, offset: u32) -> Option<T> {
    if offset == ABSENT {
        return None;
    }
    let mut value = core::mem::MaybeUninit::<T>::uninit();
    // SAFETY: the helper writes `size_of::<T>()` bytes or fails; `T` is a plain integer or array.
    let failed = unsafe {
        bpf_probe_read_kernel(
            value.as_mut_ptr().cast(),
            size_of::<T>() as u32,
            (base + u64::from(offset)) as *const _,
        )
    };
    if failed != 0 {
        emit::count(COUNTER_UNREADABLE);
        return None;
    }
    // SAFETY: filled by the helper.
    Some(unsafe { value.assume_init() })
}

/// [`read`], or zero when the value cannot be read.
#[inline(always)]
pub fn read_or_zero<T: Copy + Default>(base: u64, offset: u32) -> T {
    read(base, offset).unwrap_or_default()
}

/// Reads directly into a record.
///
/// # Safety
/// `target` must be writable for a `T`.
#[inline(always)]
pub unsafe fn copy_to<T>(target: *mut T, base: u64, offset: u32) {
    if offset == ABSENT {
        return;
    }
    // SAFETY: per contract; the helper checks `base` itself.
    let failed = unsafe {
        bpf_probe_read_kernel(
            target.cast(),
            size_of::<T>() as u32,
            (base + u64::from(offset)) as *const _,
        )
    };
    if failed != 0 {
        emit::count(COUNTER_UNREADABLE);
    }
}
