//! What `xtask` and the program that it builds and starts (`leyline-local`) share: their options, what a machine must have,
//! and tools from Debian. Small, because `cargo xtask` is built before anything else.

pub mod machine;
pub mod options;
pub mod tools;
