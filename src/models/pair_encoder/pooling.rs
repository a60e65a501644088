//! From tokens to a vector of length 1, and the gradient's way back to the sum before it was normalised.

use ndarray::{ArrayView2, ArrayViewMut2};

use crate::data::TokenRows;
use crate::kernels::elementwise::{all_finite, axpy, dot, scale, squared_norm};
use crate::kernels::gathered::gathered_sum;
use crate::parallel::{Parallelism, SplitRows, for_rows, map_rows};

/// A vector that is shorter than this counts as 0.
const SHORTEST: f64 = 1e-12;

/// The vectors of all tokens, and their weights.
#[derive(Clone, Copy)]
pub(super) struct Table<'a> {
    pub vectors: &'a [f32],
    pub weights: Option<&'a [f32]>,
}

/// The numbers of consecutive texts, which are split like rows.
struct Numbers(std::ops::Range<usize>);

impl SplitRows for Numbers {
    fn split_rows(self, at: usize) -> (Self, Self) {
        let middle = self.0.start + at;
        (Self(self.0.start..middle), Self(middle..self.0.end))
    }
}

/// Row i of `vectors` ← the vector of text i; `inverse_lengths[i]` ← 1 over the length of its sum, or 0.
pub(super) fn pool(
    table: Table<'_>,
    texts: &TokenRows,
    vectors: ArrayViewMut2<'_, f32>,
    inverse_lengths: Option<&mut [f32]>,
    parallelism: Parallelism,
) {
    let (ids, ends) = (texts.ids(), texts.ends());
    let work =
        |(Numbers(numbers), mut vectors, mut inverse_lengths): (_, ArrayViewMut2<'_, f32>, Option<&mut [f32]>)| {
            let mut place = numbers.start.checked_sub(1).map_or(0, |before| ends[before]);
            for (index, (number, mut row)) in numbers.zip(vectors.rows_mut()).enumerate() {
                let sum = row.as_slice_mut().expect("rows of vectors are contiguous");
                let tokens = &ids[place..ends[number]];
                place = ends[number];
                gathered_sum(sum, table.vectors, tokens, table.weights);
                let inverse = normalise(sum);
                if let Some(inverse_lengths) = &mut inverse_lengths {
                    inverse_lengths[index] = inverse;
                }
            }
        };
    for_rows(parallelism, texts.len(), (Numbers(0..texts.len()), vectors, inverse_lengths), &work);
}

/// x ← x/‖x‖, or 0 where x is too short; returns the factor.
fn normalise(x: &mut [f32]) -> f32 {
    let length = squared_norm(x).sqrt();
    // A length that is not a number passes, so that the loss tells.
    let inverse = if length < SHORTEST { 0.0 } else { (1.0 / length) as f32 };
    scale(x, inverse);
    inverse
}

/// d ← d − u·(u·d), for every row: the gradient of x at length 1 from that of u = x/‖x‖.
pub(super) fn project(units: ArrayView2<'_, f32>, gradients: ArrayViewMut2<'_, f32>, parallelism: Parallelism) {
    for_rows(parallelism, units.nrows(), (units, gradients), &|(units, mut gradients)| {
        for (unit, mut gradient) in units.rows().into_iter().zip(gradients.rows_mut()) {
            let (unit, gradient) = (slice(&unit), gradient.as_slice_mut().expect("rows of gradients are contiguous"));
            axpy(gradient, -dot(unit, gradient), unit);
        }
    });
}

/// Every row of `prefixes` ← the first values of the row of `units`, at length 1; `inverse_lengths` as in [`pool`].
pub(super) fn take_prefixes(
    units: ArrayView2<'_, f32>,
    prefixes: ArrayViewMut2<'_, f32>,
    inverse_lengths: &mut [f32],
    parallelism: Parallelism,
) {
    let parts = (units, prefixes, inverse_lengths);
    for_rows(parallelism, units.nrows(), parts, &|(units, mut prefixes, inverse_lengths)| {
        let rows = units.rows().into_iter().zip(prefixes.rows_mut());
        for ((unit, mut prefix), inverse) in rows.zip(inverse_lengths) {
            let prefix = prefix.as_slice_mut().expect("rows of prefixes are contiguous");
            prefix.copy_from_slice(&slice(&unit)[..prefix.len()]);
            *inverse = normalise(prefix);
        }
    });
}

/// Adds to the first values of each row of `gradients` what comes from `d_prefixes`, the gradient of [`take_prefixes`].
pub(super) fn add_prefixes(
    prefixes: ArrayView2<'_, f32>,
    d_prefixes: ArrayView2<'_, f32>,
    inverse_lengths: &[f32],
    gradients: ArrayViewMut2<'_, f32>,
    parallelism: Parallelism,
) {
    let parts = (prefixes, d_prefixes, inverse_lengths, gradients);
    for_rows(parallelism, prefixes.nrows(), parts, &|(prefixes, d_prefixes, inverse_lengths, mut gradients)| {
        let rows = prefixes.rows().into_iter().zip(d_prefixes.rows()).zip(inverse_lengths).zip(gradients.rows_mut());
        for (((prefix, d_prefix), &inverse), mut gradient) in rows {
            let (prefix, d_prefix) = (slice(&prefix), slice(&d_prefix));
            let gradient = &mut gradient.as_slice_mut().expect("rows of gradients are contiguous")[..prefix.len()];
            axpy(gradient, inverse, d_prefix);
            axpy(gradient, -inverse * dot(prefix, d_prefix), prefix);
        }
    });
}

/// Every row of `out` ← `factor` times the row of `rows`.
pub(super) fn scaled_rows(
    rows: ArrayView2<'_, f32>,
    factor: f32,
    out: ArrayViewMut2<'_, f32>,
    parallelism: Parallelism,
) {
    for_rows(parallelism, rows.nrows(), (rows, out), &|(rows, mut out)| {
        for (row, mut out) in rows.rows().into_iter().zip(out.rows_mut()) {
            let out = out.as_slice_mut().expect("rows are contiguous");
            out.copy_from_slice(slice(&row));
            scale(out, factor);
        }
    });
}

/// Every row of `gradients` ← itself times its factor; returns whether all is finite.
pub(super) fn scale_rows(gradients: ArrayViewMut2<'_, f32>, factors: &[f32], parallelism: Parallelism) -> bool {
    let work = |(mut gradients, factors): (ArrayViewMut2<'_, f32>, &[f32])| {
        let mut finite = true;
        for (mut gradient, &factor) in gradients.rows_mut().into_iter().zip(factors) {
            let gradient = gradient.as_slice_mut().expect("rows of gradients are contiguous");
            scale(gradient, factor);
            finite &= all_finite(gradient);
        }
        finite
    };
    map_rows(parallelism, factors.len(), (gradients, factors), &work, &|a, b| a && b)
}

fn slice<'a>(row: &ndarray::ArrayView1<'a, f32>) -> &'a [f32] {
    row.to_slice().expect("rows are contiguous")
}
