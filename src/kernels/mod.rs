//! SIMD kernels over plain slices, each written once and compiled for every instruction set (see [`dispatch`]).

pub(crate) mod dispatch;
pub mod elementwise;

pub use dispatch::{InstructionSet, instruction_set};
