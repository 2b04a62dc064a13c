//! What the kernel side and the user side agree on.
//!
//! * a **hook** is a kernel function or tracepoint we listen to;
//! * a **record** is what a hook writes to the ring buffer: bytes, laid out in [`record`];
//! * an **event** is a decoded record or a piece of host state;
//! * an **incident** is one broken connection with its evidence;
//! * a **cause** explains it.
//!
//! Records hold integers only: no `bool`, no Rust enum, no implicit padding. User space never
//! casts bytes to these types; it copies fields out at checked offsets (see [`wire`]), so a
//! corrupt or newer record is an error, not undefined behaviour.
#![no_std]

pub mod net;
pub mod record;
pub mod wire;
