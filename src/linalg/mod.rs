//! Linear algebra: every BLAS call of the crate is made here.

mod causal;
#[cfg(all(feature = "openblas", target_os = "linux", target_arch = "x86_64"))]
mod core;
pub mod dot;
pub mod gemm;
pub mod profile;
pub mod self_check;
#[cfg(feature = "lapack")]
pub mod spectral;
pub mod threads;

pub(crate) use causal::{causal_products, causal_scores, causal_transposed_products};
pub use dot::dot;
pub use gemm::{Write, affine, gemm, gemm_and_norm};
