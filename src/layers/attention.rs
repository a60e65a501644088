//! Causal multi-head attention (Vaswani et al., 2017) over packed queries, keys and values.
//!
//! For each head, with S = Q·Kᵀ/√D below and on the diagonal: P = softmax(S) row by row, Y = P·V.
//!
//! Heads are windows of the packed matrices: nothing is copied or transposed, BLAS strides over the window. Queries
//! are worked off in tiles of [`TILE`] rows against the keys up to the tile's diagonal, so that little work is done
//! above the diagonal and the scores take memory for one tile a worker, not T² a head. The forward keeps each row's
//! ln Σ exp(S); the backward recomputes P from it (Dao et al., "FlashAttention", 2022):
//!
//! dV = Pᵀ·dY, dP = dY·Vᵀ, dS = P ∘ (dP − rowsum(P ∘ dP)) / √D, dQ = dS·K, dK = dSᵀ·Q.
//!
//! Dropout multiplies P by a mask M after the softmax: then Y = (P∘M)·V, dV = (P∘M)ᵀ·dY, dP = (dY·Vᵀ)∘M.

use std::ops::Range;

use ndarray::{Array3, ArrayView2, ArrayViewMut2, ArrayViewMut3, Axis, s};

use super::dropout::{Masks, Site};
use super::{slice, slice_mut};
use crate::kernels::softmax::{causal_probabilities, causal_softmax, softmax_backward};
use crate::linalg::{Write, causal_products, causal_scores, causal_transposed_products};
use crate::memory::Room;
use crate::parallel::{Parallelism, join};

/// Query rows in a tile.
pub const TILE: usize = 64;

/// Sequences, heads and dropout of one attention.
#[derive(Clone, Copy, Debug)]
pub struct Attention {
    /// Tokens in a sequence (T); the rows of every matrix are sequences one after the other.
    pub sequence_length: usize,
    /// Number of heads (H).
    pub heads: usize,
    /// Dropout of attention weights, if any.
    pub dropout: Option<AttentionDropout>,
}

/// Dropout of attention weights.
#[derive(Clone, Copy, Debug)]
pub struct AttentionDropout {
    /// The step's masks.
    pub masks: Masks,
    /// Which block this is.
    pub block: usize,
    /// Probability of dropping a weight.
    pub probability: f32,
    /// Index in the whole batch of the first sequence here.
    pub first_sequence: usize,
}

/// Tiles of scores and of their gradients for each of some workers.
#[derive(Clone, Debug)]
pub struct Scratch {
    scores: Array3<f32>,
    dscores: Array3<f32>,
}

impl Scratch {
    /// Room for `workers` workers and sequences of up to `sequence_length`.
    #[must_use]
    pub fn new(workers: usize, sequence_length: usize) -> Self {
        Self::within(&Room::default(), workers, sequence_length)
    }

    pub(crate) fn within(room: &Room, workers: usize, sequence_length: usize) -> Self {
        let tile = TILE.min(sequence_length);
        Self {
            scores: room.tensor(workers, tile, sequence_length),
            dscores: room.tensor(workers, tile, sequence_length),
        }
    }
}

/// Y ← attention of the packed `[Q K V]`, tokens × 3C; `log_sum_exp` is heads × tokens.
pub fn forward(
    attention: Attention,
    qkv: ArrayView2<'_, f32>,
    y: ArrayViewMut2<'_, f32>,
    log_sum_exp: ArrayViewMut2<'_, f32>,
    scratch: &mut Scratch,
    parallelism: Parallelism,
) {
    let (q, kv) = qkv.split_at(Axis(1), y.ncols());
    let (k, v) = kv.split_at(Axis(1), y.ncols());
    let heads = 0..attention.heads;
    forward_heads(attention, heads, [q, k, v], y, log_sum_exp, scratch.scores.view_mut(), parallelism.count());
}

/// The heads numbered `heads`, whose columns the matrices hold, spread over `workers` workers.
fn forward_heads(
    attention: Attention,
    heads: Range<usize>,
    qkv: [ArrayView2<'_, f32>; 3],
    mut y: ArrayViewMut2<'_, f32>,
    mut log_sum_exp: ArrayViewMut2<'_, f32>,
    mut scores: ArrayViewMut3<'_, f32>,
    workers: usize,
) {
    let head_dim = y.ncols() / heads.len();
    if workers > 1 && heads.len() > 1 {
        let (left, middle) = (workers / 2, heads.len() / 2);
        let qkv = qkv.map(|matrix| matrix.split_at(Axis(1), middle * head_dim));
        let y = y.split_at(Axis(1), middle * head_dim);
        let log_sum_exp = log_sum_exp.split_at(Axis(0), middle);
        let scores = scores.split_at(Axis(0), left);
        let middle = heads.start + middle;
        let (before, after) = (qkv.map(|pair| pair.0), qkv.map(|pair| pair.1));
        join(
            || forward_heads(attention, heads.start..middle, before, y.0, log_sum_exp.0, scores.0, left),
            || forward_heads(attention, middle..heads.end, after, y.1, log_sum_exp.1, scores.1, workers - left),
        );
        return;
    }
    let mut scores = scores.index_axis_mut(Axis(0), 0);
    let length = attention.sequence_length;
    let scale = 1.0 / (head_dim as f32).sqrt();
    for (column, head) in heads.enumerate() {
        let columns = column * head_dim..(column + 1) * head_dim;
        for sequence in 0..y.nrows() / length {
            let rows = sequence * length..(sequence + 1) * length;
            let [q, k, v] = qkv.map(|matrix| matrix.slice_move(s![rows.clone(), columns.clone()]));
            let mut y = y.slice_mut(s![rows.clone(), columns.clone()]);
            let mut log_sum_exp = log_sum_exp.slice_mut(s![column, rows]);
            let log_sum_exp = log_sum_exp.as_slice_mut().expect("a head's rows are contiguous");
            for tile in tiles(length) {
                let mut p = tile_view(&mut scores, &tile);
                let q = q.slice(s![tile.clone(), ..]);
                causal_scores(q, k.slice(s![..tile.end, ..]), p.view_mut());
                let flat = slice_mut(&mut p);
                causal_softmax(flat, tile.end, tile.start + 1, scale, &mut log_sum_exp[tile.clone()]);
                attention.drop(sequence, head, &tile, flat);
                causal_products(p.view(), v.slice(s![..tile.end, ..]), y.slice_mut(s![tile.clone(), ..]));
            }
        }
    }
}

/// dQKV ← the gradient of the packed `[Q K V]`, from the forward's `log_sum_exp` and `dy`.
#[allow(clippy::too_many_arguments)]
pub fn backward(
    attention: Attention,
    qkv: ArrayView2<'_, f32>,
    log_sum_exp: ArrayView2<'_, f32>,
    dy: ArrayView2<'_, f32>,
    dqkv: ArrayViewMut2<'_, f32>,
    scratch: &mut Scratch,
    parallelism: Parallelism,
) {
    let width = dy.ncols();
    let (q, kv) = qkv.split_at(Axis(1), width);
    let (k, v) = kv.split_at(Axis(1), width);
    let (dq, dkv) = dqkv.split_at(Axis(1), width);
    let (dk, dv) = dkv.split_at(Axis(1), width);
    let views = Backward {
        given: [q, k, v, dy],
        log_sum_exp,
        gradients: [dq, dk, dv],
        scores: scratch.scores.view_mut(),
        dscores: scratch.dscores.view_mut(),
    };
    backward_heads(attention, 0..attention.heads, views, parallelism.count());
}

/// What the backward of some neighbouring heads reads and writes: their columns, and scratch for their workers.
struct Backward<'a> {
    given: [ArrayView2<'a, f32>; 4],
    log_sum_exp: ArrayView2<'a, f32>,
    gradients: [ArrayViewMut2<'a, f32>; 3],
    scores: ArrayViewMut3<'a, f32>,
    dscores: ArrayViewMut3<'a, f32>,
}

impl Backward<'_> {
    fn split(self, columns: usize, heads: usize, workers: usize) -> (Self, Self) {
        let [q, k, v, dy] = self.given.map(|matrix| matrix.split_at(Axis(1), columns));
        let [dq, dk, dv] = self.gradients.map(|matrix| matrix.split_at(Axis(1), columns));
        let log_sum_exp = self.log_sum_exp.split_at(Axis(0), heads);
        let scores = self.scores.split_at(Axis(0), workers);
        let dscores = self.dscores.split_at(Axis(0), workers);
        (
            Self {
                given: [q.0, k.0, v.0, dy.0],
                log_sum_exp: log_sum_exp.0,
                gradients: [dq.0, dk.0, dv.0],
                scores: scores.0,
                dscores: dscores.0,
            },
            Self {
                given: [q.1, k.1, v.1, dy.1],
                log_sum_exp: log_sum_exp.1,
                gradients: [dq.1, dk.1, dv.1],
                scores: scores.1,
                dscores: dscores.1,
            },
        )
    }
}

fn backward_heads(attention: Attention, heads: Range<usize>, mut views: Backward<'_>, workers: usize) {
    let head_dim = views.given[0].ncols() / heads.len();
    if workers > 1 && heads.len() > 1 {
        let (left, middle) = (workers / 2, heads.len() / 2);
        let (before, after) = views.split(middle * head_dim, middle, left);
        let middle = heads.start + middle;
        join(
            || backward_heads(attention, heads.start..middle, before, left),
            || backward_heads(attention, middle..heads.end, after, workers - left),
        );
        return;
    }
    let mut scores = views.scores.index_axis_mut(Axis(0), 0);
    let mut dscores = views.dscores.index_axis_mut(Axis(0), 0);
    let length = attention.sequence_length;
    let scale = 1.0 / (head_dim as f32).sqrt();
    for (column, head) in heads.enumerate() {
        let columns = column * head_dim..(column + 1) * head_dim;
        for sequence in 0..views.given[0].nrows() / length {
            let rows = sequence * length..(sequence + 1) * length;
            let window = s![rows.clone(), columns.clone()];
            let [q, k, v, dy] = views.given.map(|matrix| matrix.slice_move(window));
            let [dq, dk, dv] = &mut views.gradients;
            let (mut dq, mut dk, mut dv) = (dq.slice_mut(window), dk.slice_mut(window), dv.slice_mut(window));
            let log_sum_exp = views.log_sum_exp.slice_move(s![column, rows]);
            let log_sum_exp = log_sum_exp.to_slice().expect("a head's rows are contiguous");
            // The last tile sees every key, so it writes all rows of dK and dV; the tiles before it add to theirs.
            for tile in tiles(length).rev() {
                let write = if tile.end == length { Write::Replace } else { Write::Add };
                let keys = s![..tile.end, ..];
                let queries = s![tile.clone(), ..];
                let (q, dy) = (q.slice(queries), dy.slice(queries));
                let mut p = tile_view(&mut scores, &tile);
                causal_scores(q, k.slice(keys), p.view_mut());
                causal_probabilities(slice_mut(&mut p), tile.end, tile.start + 1, scale, &log_sum_exp[tile.clone()]);
                let mut ds = tile_view(&mut dscores, &tile);
                causal_scores(dy, v.slice(keys), ds.view_mut());
                attention.drop(sequence, head, &tile, slice_mut(&mut ds));
                softmax_backward(slice(&p.view()), slice_mut(&mut ds), tile.end, tile.start + 1, scale);
                attention.drop(sequence, head, &tile, slice_mut(&mut p));
                causal_transposed_products(p.view(), dy, write, dv.slice_mut(keys));
                causal_products(ds.view(), k.slice(keys), dq.slice_mut(queries));
                causal_transposed_products(ds.view(), q, write, dk.slice_mut(keys));
            }
        }
    }
}

impl Attention {
    /// Applies the dropout mask to a tile of weights, whose rows are the queries and whose columns the keys.
    fn drop(&self, sequence: usize, head: usize, tile: &Range<usize>, weights: &mut [f32]) {
        let Some(dropout) = self.dropout else { return };
        let length = self.sequence_length as u64;
        let matrix = ((dropout.first_sequence + sequence) * self.heads + head) as u64;
        for (query, row) in tile.clone().zip(weights.chunks_mut(tile.end)) {
            let first = (matrix * length + query as u64) * length;
            dropout.masks.apply(Site::Attention(dropout.block), dropout.probability, first, row);
        }
    }
}

/// The query rows of each tile.
fn tiles(length: usize) -> impl DoubleEndedIterator<Item = Range<usize>> {
    (0..length.div_ceil(TILE)).map(move |tile| tile * TILE..((tile + 1) * TILE).min(length))
}

/// The part of the scratch that holds a tile's queries against all keys up to its last, as one contiguous matrix.
fn tile_view<'a>(scratch: &'a mut ArrayViewMut2<'_, f32>, tile: &Range<usize>) -> ArrayViewMut2<'a, f32> {
    let flat = scratch.as_slice_mut().expect("scratch is contiguous");
    ArrayViewMut2::from_shape((tile.len(), tile.end), &mut flat[..tile.len() * tile.end]).expect("the lengths agree")
}
