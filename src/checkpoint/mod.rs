//! Checkpoints.
pub mod atomic;
mod checksum;
mod header;
pub mod tensors;

pub use checksum::{Checksum, Hasher};
