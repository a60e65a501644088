//! Sixteen floats side by side: the shape in which every reduction adds up.
//!
//! LLVM does not reorder sums of floats, so a reduction that shall be vectorised names its partial sums itself. Which
//! elements a partial sum has depends on the slice's length alone, whatever the instruction set, the alignment or the
//! thread; the lanes are added by halving.

/// Floats in a lane array: one AVX-512 register, two of AVX2, four of SSE2.
pub(crate) const LANES: usize = 16;

/// Accumulators that a reduction keeps, to hide the latency of addition.
const BLOCKS: usize = 4;

/// One float per lane.
pub(crate) type Lanes = [f32; LANES];

/// The lanes combined by halving: lane i with lane i + 8, then with i + 4, i + 2, i + 1.
#[inline(always)]
pub(crate) fn combine(mut lanes: Lanes, f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] = f(lanes[i], lanes[i + half]);
        }
        half /= 2;
    }
    lanes[0]
}

/// The sum of the lanes.
#[inline(always)]
pub(crate) fn sum(lanes: Lanes) -> f32 {
    combine(lanes, |a, b| a + b)
}

/// The larger of two; `b` if either is NaN (one instruction on x86).
#[inline(always)]
pub(crate) fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

/// The smaller of two; `b` if either is NaN (one instruction on x86).
#[inline(always)]
pub(crate) fn smaller(a: f32, b: f32) -> f32 {
    if a < b { a } else { b }
}

/// Folds `x` into lanes that start at `start`: `step(accumulator, element)`, then `merge` over the accumulators.
#[inline(always)]
pub(crate) fn fold(x: &[f32], start: f32, step: impl Fn(f32, f32) -> f32, merge: impl Fn(f32, f32) -> f32) -> Lanes {
    let mut accumulators = [start; BLOCKS * LANES];
    let (blocks, rest) = x.as_chunks::<{ BLOCKS * LANES }>();
    for block in blocks {
        for i in 0..BLOCKS * LANES {
            accumulators[i] = step(accumulators[i], block[i]);
        }
    }
    let mut lanes = merge_blocks(&accumulators, &merge);
    let (blocks, rest) = rest.as_chunks::<LANES>();
    for block in blocks {
        for i in 0..LANES {
            lanes[i] = step(lanes[i], block[i]);
        }
    }
    let rest = fold_part::<8>(&mut lanes, rest, &step);
    let rest = fold_part::<4>(&mut lanes, rest, &step);
    let rest = fold_part::<2>(&mut lanes, rest, &step);
    fold_part::<1>(&mut lanes, rest, &step);
    lanes
}

/// Folds the first N elements of `x` into the first lanes, if it has so many, and returns the others. A remainder is
/// split into such parts because lanes that are indexed by a variable would have to leave the registers.
#[inline(always)]
fn fold_part<'a, const N: usize>(lanes: &mut Lanes, x: &'a [f32], step: impl Fn(f32, f32) -> f32) -> &'a [f32] {
    let Some((part, rest)) = x.split_first_chunk::<N>() else { return x };
    for i in 0..N {
        lanes[i] = step(lanes[i], part[i]);
    }
    rest
}

/// The sum over pairs of elements of two slices of one length: `step(accumulator, x, y)` from 0.
#[inline(always)]
pub(crate) fn sum_pairs(x: &[f32], y: &[f32], step: impl Fn(f32, f32, f32) -> f32) -> f32 {
    let mut accumulators = [0.0; BLOCKS * LANES];
    let (x_blocks, x_rest) = x.as_chunks::<{ BLOCKS * LANES }>();
    let (y_blocks, y_rest) = y.as_chunks::<{ BLOCKS * LANES }>();
    for (x, y) in x_blocks.iter().zip(y_blocks) {
        for i in 0..BLOCKS * LANES {
            accumulators[i] = step(accumulators[i], x[i], y[i]);
        }
    }
    let mut lanes = merge_blocks(&accumulators, |a, b| a + b);
    let (x_blocks, x_rest) = x_rest.as_chunks::<LANES>();
    let (y_blocks, y_rest) = y_rest.as_chunks::<LANES>();
    for (x, y) in x_blocks.iter().zip(y_blocks) {
        for i in 0..LANES {
            lanes[i] = step(lanes[i], x[i], y[i]);
        }
    }
    let mut rest = 0.0;
    for (&x, &y) in x_rest.iter().zip(y_rest) {
        rest = step(rest, x, y);
    }
    sum(lanes) + rest
}

#[inline(always)]
fn merge_blocks(accumulators: &[f32; BLOCKS * LANES], merge: impl Fn(f32, f32) -> f32) -> Lanes {
    let mut lanes = [0.0; LANES];
    for (i, lane) in lanes.iter_mut().enumerate() {
        let pair = |block: usize| merge(accumulators[block * LANES + i], accumulators[(block + 1) * LANES + i]);
        *lane = merge(pair(0), pair(2));
    }
    lanes
}
