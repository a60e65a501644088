//! Models: configuration, parameter layout, workspace, forward and backward of each.

pub mod skip_gram;
pub mod transformer;
