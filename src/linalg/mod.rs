//! Linear algebra: every BLAS call of the crate is made here.

pub mod gemm;
pub mod threads;

pub use gemm::{Write, gemm};
