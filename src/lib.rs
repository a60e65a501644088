//! cllm trains token embeddings and small language models on the CPU: embeddings and activations in ndarray arrays,
//! large products in OpenBLAS, hand-written backward passes into workspaces that are allocated once.
//!
//! Everything it trains is one pipeline:
//!
//! ```text
//! tokens → gather → encode → similarity (matrix product) → loss, in place → backward → optimizer
//! ```
//!
//! Start with [`Trainer`], whose example is a whole program; [`data`] turns text into batches.
//!
//! # Glossary
//!
//! | symbol | meaning |
//! |---|---|
//! | B | batch: sequences in one forward and backward pass |
//! | T | sequence length, in tokens |
//! | N | tokens in a pass, B·T |
//! | C | width of an embedding and of the residual stream |
//! | H | attention heads |
//! | D | width of a head, C/H |
//! | F | width of the feed-forward's hidden layer |
//! | V | number of tokens in the vocabulary |
//!
//! # Features
//!
//! `openblas` (default) links the system's OpenBLAS; `netlib`, `blis`, `accelerate` and `intel-mkl` link another BLAS
//! instead, through the `blas-src` crate. Without any of them ndarray's own matrix product is used. `tokenizers`
//! (default) adds byte-pair encoding.

#[cfg(feature = "blas")]
extern crate blas_src as _;

pub mod checkpoint;
pub mod config;
pub mod data;
pub mod error;
pub mod export;
pub mod gather;
pub mod generate;
pub mod kernels;
pub mod layers;
pub mod linalg;
pub mod loss;
pub mod models;
pub mod optim;
pub mod parallel;
pub mod params;
pub mod rng;
pub mod train;

pub use config::{OnNonFinite, Optimizer, Preset, Schedule, Sharding, TrainingConfig, TransformerConfig};
pub use error::{Error, Result};
pub use models::transformer::Transformer;
pub use train::Trainer;

/// The programs in the README, compiled and run with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
