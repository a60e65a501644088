//! Models: configuration, parameter layout, workspace, forward and backward of each.

pub mod pair_encoder;
pub mod similarity;
pub mod skip_gram;
pub mod transformer;
