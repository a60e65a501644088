//! Models: configuration, parameter layout, workspace, forward and backward of each.

pub mod similarity;
pub mod skip_gram;
pub mod transformer;
