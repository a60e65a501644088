//! Linear algebra: every BLAS call of the crate is made here.

pub mod gemm;
pub mod self_check;
pub mod threads;

pub use gemm::{Write, gemm};
