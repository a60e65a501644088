//! Models: configuration, parameter layout, workspace, forward and backward of each.

pub mod transformer;
