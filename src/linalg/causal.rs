//! The products of causal attention, for a tile of queries against the keys up to its last query.
//!
//! P is such a tile, r × n: its row i has n − r + i + 1 valid entries, and zeros after them. The square of its last r
//! columns is triangular, and only its triangle is multiplied with where the crate's own kernels are fast.

use ndarray::{ArrayView2, ArrayViewMut2, Axis};

use super::gemm::{Write, gemm};
use super::profile::counted;
use crate::kernels::packed_product::is_fast;
use crate::kernels::triangular_product::{Triangle, takes, triangular_product};
use crate::parallel::Parallelism;

/// Heads wider than this have their tiles multiplied whole: reading B where it lies, for each block of rows again, then costs
/// more than the triangle (W4, of width 64, was 1 % slower).
const WIDEST: usize = 32;

/// The valid entries of P ← Q·Kᵀ, with Q r × d and K n × d; what the others hold is not specified.
#[track_caller]
pub(crate) fn causal_scores(q: ArrayView2<'_, f32>, k: ArrayView2<'_, f32>, p: ArrayViewMut2<'_, f32>) {
    let before = triangle_start(k.nrows(), q.nrows(), k.ncols());
    let (k_before, k) = k.split_at(Axis(0), before);
    let (p_before, p) = p.split_at(Axis(1), before);
    whole(q, k_before.t(), Write::Replace, p_before);
    triangular(q, k.t(), Write::Replace, p, Triangle::Wanted);
}

/// Y ← P·V, with V n × d and Y r × d.
#[track_caller]
pub(crate) fn causal_products(p: ArrayView2<'_, f32>, v: ArrayView2<'_, f32>, mut y: ArrayViewMut2<'_, f32>) {
    let before = triangle_start(p.ncols(), p.nrows(), v.ncols());
    let (p_before, p) = p.split_at(Axis(1), before);
    let (v_before, v) = v.split_at(Axis(0), before);
    let write = if before > 0 { Write::Add } else { Write::Replace };
    whole(p_before, v_before, Write::Replace, y.view_mut());
    triangular(p, v, write, y, Triangle::Lower);
}

/// V ← Pᵀ·Y, or V + Pᵀ·Y, with Y r × d and V n × d.
#[track_caller]
pub(crate) fn causal_transposed_products(
    p: ArrayView2<'_, f32>,
    y: ArrayView2<'_, f32>,
    write: Write,
    v: ArrayViewMut2<'_, f32>,
) {
    let before = triangle_start(p.ncols(), p.nrows(), v.ncols());
    let (p_before, p) = p.split_at(Axis(1), before);
    let (v_before, v) = v.split_at(Axis(0), before);
    whole(p_before.t(), y, write, v_before);
    triangular(p.t(), y, write, v, Triangle::Upper);
}

/// Where the triangle of a tile of `queries` against `keys` begins, or the end if it is not treated as one.
fn triangle_start(keys: usize, queries: usize, head_dim: usize) -> usize {
    if head_dim <= WIDEST { keys - queries } else { keys }
}

/// The part of a product that is not triangular, if there is any.
fn whole(a: ArrayView2<'_, f32>, b: ArrayView2<'_, f32>, write: Write, c: ArrayViewMut2<'_, f32>) {
    if !a.is_empty() && !b.is_empty() {
        gemm(1.0, a, b, write, c, Parallelism::SEQUENTIAL);
    }
}

fn triangular(
    a: ArrayView2<'_, f32>,
    b: ArrayView2<'_, f32>,
    write: Write,
    c: ArrayViewMut2<'_, f32>,
    triangle: Triangle,
) {
    if a.is_empty() || b.is_empty() {
        return;
    }
    if is_fast() && takes(b) {
        counted(|| triangular_product(a, b, c, triangle, write == Write::Add));
    } else {
        gemm(1.0, a, b, write, c, Parallelism::SEQUENTIAL);
    }
}
