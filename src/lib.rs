//! cllm trains token embeddings and small language models on the CPU.
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(feature = "blas")]
extern crate blas_src as _;

pub mod data;
pub mod error;
pub mod kernels;
pub mod linalg;
pub mod parallel;
pub mod params;
pub mod rng;

pub use error::{Error, Result};
