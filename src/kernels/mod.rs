//! SIMD kernels over plain slices, each written once and compiled for every instruction set (see [`dispatch`]).

pub mod adamw;
pub mod cross_entropy;
pub(crate) mod dispatch;
pub mod elementwise;
pub mod exp;
pub mod gelu;
pub(crate) mod lanes;
pub mod layer_norm;
pub(crate) mod logistic;
pub mod reduce;
pub mod sgd;
pub(crate) mod small_product;
pub mod softmax;
pub(crate) mod transpose;

pub use dispatch::{InstructionSet, instruction_set};
