//! A forward pass of new tokens against the keys and values of the tokens before them.

use ndarray::{Array2, ArrayView2, ArrayViewMut2, s};

use crate::config::TransformerConfig;
use crate::kernels;
use crate::layers::layer_norm::{self, Statistics};
use crate::layers::{embedding, linear, slice_mut};
use crate::linalg::{Write, gemm};
use crate::models::transformer::{Model, NormIds, first};
use crate::parallel::Parallelism;

/// Tokens that go through the model at once: enough for efficient products, few enough for small buffers.
const CHUNK: usize = 64;

const SEQUENTIAL: Parallelism = Parallelism::SEQUENTIAL;

/// Keys and values of one sequence, and the buffers of a pass. N is the number of tokens in a pass.
#[derive(Debug)]
pub(super) struct Cache {
    /// Tokens whose keys and values are known.
    length: usize,
    /// For each block context × 2C: keys and values side by side.
    keys_values: Vec<Array2<f32>>,
    /// N × C: the residual stream before and after a block.
    residual: Array2<f32>,
    /// N × C: the residual stream after the attention.
    middle: Array2<f32>,
    /// N × C: output of a layer norm.
    normalised: Array2<f32>,
    queries: Array2<f32>,
    attended: Array2<f32>,
    /// N × F.
    hidden: Array2<f32>,
    /// N · context: one head's scores of the queries against all keys.
    weights: Vec<f32>,
    /// What layer norm and softmax keep for a backward pass, which there is none of.
    statistics: Statistics,
    log_sum_exp: Vec<f32>,
}

impl Cache {
    pub fn new(config: &TransformerConfig) -> Self {
        let rows = CHUNK.min(config.context);
        let zeros = |columns| Array2::zeros((rows, columns));
        Self {
            length: 0,
            keys_values: (0..config.layers).map(|_| Array2::zeros((config.context, 2 * config.dim))).collect(),
            residual: zeros(config.dim),
            middle: zeros(config.dim),
            normalised: zeros(config.dim),
            queries: zeros(config.dim),
            attended: zeros(config.dim),
            hidden: zeros(config.feed_forward),
            weights: vec![0.0; rows * config.context],
            statistics: Statistics::new(rows),
            log_sum_exp: vec![0.0; rows],
        }
    }

    /// Tokens whose keys and values are known.
    pub fn length(&self) -> usize {
        self.length
    }

    pub fn clear(&mut self) {
        self.length = 0;
    }

    /// Adds tokens, at least one, and fills `scores` with those of the token that follows them.
    ///
    /// # Panics
    /// If they exceed the context.
    #[track_caller]
    pub fn extend(&mut self, model: &Model<'_>, tokens: &[u32], scores: &mut [f32]) {
        let context = model.config.context;
        assert!(self.length + tokens.len() <= context, "{} + {} tokens in {context}", self.length, tokens.len());
        for chunk in tokens.chunks(CHUNK) {
            self.pass(model, chunk);
        }
        let last = (tokens.len() - 1) % CHUNK;
        let last_row = self.residual.slice(s![last..=last, ..]);
        normalise(model, model.ids.final_norm, last_row, &mut self.normalised, &mut self.statistics);
        let table = model.parameters.matrix(model.ids.tokens);
        let row = ArrayViewMut2::from_shape((1, scores.len()), scores).expect("one row");
        gemm(1.0, self.normalised.slice(s![..1, ..]), table.t(), Write::Replace, row, SEQUENTIAL);
    }

    /// Takes at most [`CHUNK`] tokens through all blocks.
    fn pass(&mut self, model: &Model<'_>, tokens: &[u32]) {
        let Model { config, ids, parameters } = *model;
        let (start, count, dim) = (self.length, tokens.len(), config.dim);
        let rows = s![..count, ..];
        embedding::forward(
            tokens,
            count,
            parameters.matrix(ids.tokens),
            parameters.matrix(ids.positions).slice(s![start.., ..]),
            first(&mut self.residual, count),
        );
        for (block, ids) in ids.blocks.iter().enumerate() {
            normalise(model, ids.attention_norm, self.residual.slice(rows), &mut self.normalised, &mut self.statistics);
            let (weight, bias) = (parameters.matrix(ids.qkv.weight), parameters.slice(ids.qkv.bias));
            let normalised = self.normalised.slice(rows);
            let queries = first(&mut self.queries, count);
            linear::forward(normalised, weight.slice(s![.., ..dim]), &bias[..dim], queries, SEQUENTIAL);
            // Keys and values are projected straight into the cache.
            let keys_values = self.keys_values[block].slice_mut(s![start..start + count, ..]);
            linear::forward(normalised, weight.slice(s![.., dim..]), &bias[dim..], keys_values, SEQUENTIAL);
            self.attend(block, config.heads, count);
            linear::forward_residual(
                self.attended.slice(rows),
                parameters.matrix(ids.attention_projection.weight),
                parameters.slice(ids.attention_projection.bias),
                self.residual.slice(rows),
                first(&mut self.middle, count),
                SEQUENTIAL,
            );

            normalise(
                model,
                ids.feed_forward_norm,
                self.middle.slice(rows),
                &mut self.normalised,
                &mut self.statistics,
            );
            let mut hidden = first(&mut self.hidden, count);
            linear::forward(
                self.normalised.slice(rows),
                parameters.matrix(ids.expand.weight),
                parameters.slice(ids.expand.bias),
                hidden.view_mut(),
                SEQUENTIAL,
            );
            kernels::gelu::gelu(slice_mut(&mut hidden));
            linear::forward_residual(
                hidden.view(),
                parameters.matrix(ids.contract.weight),
                parameters.slice(ids.contract.bias),
                self.middle.slice(rows),
                first(&mut self.residual, count),
                SEQUENTIAL,
            );
        }
        self.length += count;
    }

    /// The new queries against the keys and values up to their own.
    fn attend(&mut self, block: usize, heads: usize, count: usize) {
        let (start, end) = (self.length, self.length + count);
        let dim = self.queries.ncols();
        let head_dim = dim / heads;
        let scale = 1.0 / (head_dim as f32).sqrt();
        let keys_values = self.keys_values[block].slice(s![..end, ..]);
        let weights = &mut self.weights[..count * end];
        for head in 0..heads {
            let columns = head * head_dim..(head + 1) * head_dim;
            let q = self.queries.slice(s![..count, columns.clone()]);
            let k = keys_values.slice(s![.., columns.clone()]);
            let v = keys_values.slice(s![.., dim + columns.start..dim + columns.end]);
            let y = self.attended.slice_mut(s![..count, columns]);
            let p = ArrayViewMut2::from_shape((count, end), &mut *weights).expect("the lengths agree");
            gemm(1.0, q, k.t(), Write::Replace, p, SEQUENTIAL);
            let log_sum_exp = &mut self.log_sum_exp[..count];
            kernels::softmax::causal_softmax(weights, end, start + 1, scale, log_sum_exp);
            let p = ArrayView2::from_shape((count, end), &*weights).expect("the lengths agree");
            gemm(1.0, p, v, Write::Replace, y, SEQUENTIAL);
        }
    }
}

/// The first rows of y ← layer norm of x.
fn normalise(
    model: &Model<'_>,
    norm: NormIds,
    x: ArrayView2<'_, f32>,
    y: &mut Array2<f32>,
    statistics: &mut Statistics,
) {
    let (gain, bias) = (model.parameters.slice(norm.gain), model.parameters.slice(norm.bias));
    let y = first(y, x.nrows());
    layer_norm::forward(x, gain, bias, model.config.layer_norm_epsilon, y, statistics, SEQUENTIAL);
}
