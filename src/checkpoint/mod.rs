//! Files that hold parameters.

pub mod atomic;
pub mod tensors;
