//! The interface between the kernel side and user space.
//!
//! * a **hook** is a kernel function or tracepoint that we attach to;
//! * a **record** is what a program on a hook writes to the ring buffer: bytes, in the layout of [`record`];
//! * an **event** is a decoded record or a piece of host state;
//! * an **incident** is one broken connection with its evidence;
//! * a **cause** explains it.
//!
//! Records hold integers only: no `bool`, no Rust enum, no implicit padding. User space never
//! casts bytes to these types; it copies fields out at checked offsets (see [`wire`]), so an
//! invalid or newer record is an error, not undefined behaviour.
#![no_std]

pub mod net;
pub mod record;
pub mod wire;
