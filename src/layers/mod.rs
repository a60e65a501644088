//! Layers, each a forward and a backward function over views.
//!
//! Conventions: activations are matrices with one token a row; a backward function overwrites the gradient of its
//! input, unless its documentation says it adds, and takes a [`Write`](crate::linalg::Write) that says whether it
//! replaces or adds to the gradients of parameters.

pub mod attention;
pub mod dropout;
pub mod embedding;
pub mod feed_forward;
pub mod layer_norm;
pub mod linear;

use ndarray::{ArrayView2, ArrayViewMut2};

#[track_caller]
pub(crate) fn slice<'a>(rows: &'a ArrayView2<'_, f32>) -> &'a [f32] {
    rows.as_slice().unwrap_or_else(|| panic!("rows of shape {:?} are not contiguous", rows.dim()))
}

#[track_caller]
pub(crate) fn slice_mut<'a>(rows: &'a mut ArrayViewMut2<'_, f32>) -> &'a mut [f32] {
    let shape = rows.dim();
    rows.as_slice_mut().unwrap_or_else(|| panic!("rows of shape {shape:?} are not contiguous"))
}
