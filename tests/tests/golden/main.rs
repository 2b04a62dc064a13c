//! Replays golden captures of real kernels (`data/<kernel>/<scenario>.cap`, made by `cargo xtask record`),
//! without root.

mod ablation;
mod captures;
mod damage;
mod difference;
mod documented;
mod replay;
