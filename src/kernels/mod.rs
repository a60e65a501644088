//! SIMD kernels over plain slices, each written once and compiled for every [`InstructionSet`].
//!
//! The widest set that the processor has is chosen at run time; the environment variable `CLLM_KERNELS` (`portable`,
//! `avx2` or `avx512`) lowers it. Results depend on the instruction set in the last bits, since only some of them fuse
//! multiply-adds, but never on alignment or threads. Nothing here allocates.

pub mod adamw;
mod ahead;
pub mod cross_entropy;
pub(crate) mod dispatch;
pub mod elementwise;
pub mod exp;
pub(crate) mod gathered;
pub mod gelu;
pub(crate) mod in_batch;
pub(crate) mod lanes;
pub mod layer_norm;
pub(crate) mod logistic;
pub(crate) mod packed_product;
pub mod reduce;
pub mod sgd;
pub(crate) mod shared_rows;
pub(crate) mod small_product;
pub mod softmax;
#[cfg(test)]
pub(crate) mod testing;
mod tile;
pub(crate) mod transpose;
pub(crate) mod triangular_product;

pub use dispatch::{InstructionSet, instruction_set};
