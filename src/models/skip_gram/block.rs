//! A block of centre words: gather, scores, loss, gradient.
//!
//! With T centres, their input rows X (T × C), the output rows Y of the T + 2·window words that windows reach, and the
//! output rows N (K × C) of the negatives they share:
//!
//! - X·Nᵀ are the scores of the negative pairs. Each negative stands for several draws: a centre with p positive pairs
//!   has weight p·negatives/K on each, so that the expected gradient is that of drawing `negatives` words for each pair.
//! - X·Yᵀ is needed in a band around its diagonal alone. A tile of a few centres reaches `band` contexts, a multiple of
//!   16: the band is computed as one small product for each tile. Pairs outside the drawn windows have weight 0.
//! - The loss overwrites the scores with its gradient G, and dX = G·[Y; N] and d[Y; N] = Gᵀ·X are again small products.
//!
//! A word that stands at two places has two rows here, since the small products take rows in the order of the text; their
//! gradients both go to its row of the table: a sum over the block at the tables as they were before it, as if its row had
//! been gathered once. Of English text 13 % of the rows are such repetitions, which are in the first-level cache then, and
//! gathering and scattering all rows takes a seventh of the time. A word at more than four places has pairs of less weight, as if it stood
//! at four. CBOW has the same parts: the band of window weights times the input rows
//! of the contexts gives the means, which take the place of X.
//!
//! Sharing negatives is from Ji et al., "Parallelizing word2vec in shared and distributed memory" (2016), who share them
//! within one window.

use super::row_set::TableName;
use super::rows::{NO_ROW, Rows, Table};
use super::subwords::{Composed, Subwords};
use super::update::BlockGradient;
use super::windows::Windows;
use crate::config::{WordObjective, WordTrainingConfig};
use crate::kernels::elementwise::{axpy, dot};
use crate::kernels::lanes::LANES;
use crate::kernels::logistic::negative_sampling_rows;
use crate::kernels::small_product::{Strided, small_product};
use crate::kernels::transpose::transpose;
use crate::params::AlignedBuffer;

/// The sizes of a block.
#[derive(Clone, Copy, Debug)]
struct Shape {
    dim: usize,
    /// Floats from one row to the next: `dim`, and zeros up to a multiple of 16.
    stride: usize,
    centres: usize,
    /// Rows of contexts, those of the last tile and zeros up to a multiple of 16 included.
    contexts: usize,
    negatives: usize,
    /// Contexts that a tile of centres reaches, and centres in a tile.
    band: usize,
    tile: usize,
}

impl Shape {
    fn new(config: &WordTrainingConfig) -> Self {
        let band = (2 * config.window + 4).next_multiple_of(LANES);
        let tile = band - 2 * config.window;
        let contexts = ((config.block - 1) / tile * tile + band).next_multiple_of(LANES);
        let stride = config.dim.next_multiple_of(LANES);
        let (centres, negatives) = (config.block, config.shared_negatives);
        Self { dim: config.dim, stride, centres, contexts, negatives, band, tile }
    }

    /// The first centre of every tile, and how many it has.
    fn tiles(self) -> impl Iterator<Item = (usize, usize)> {
        (0..self.centres).step_by(self.tile).map(move |first| (first, self.tile.min(self.centres - first)))
    }
}

/// What a block's loss was, before the update.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct BlockLoss {
    /// Sum over the positive pairs and the negatives that belong to them.
    pub loss: f64,
    /// Positive pairs.
    pub pairs: f64,
}

/// The buffers of a block.
#[derive(Debug)]
pub(crate) struct Block<'a> {
    shape: Shape,
    objective: WordObjective,
    pub subwords: Option<&'a Subwords>,
    ratio: f32,
    pub windows: Windows,
    /// T × band: the weight of each pair.
    weights: Vec<f32>,
    /// Skip-gram: input rows of the centres. CBOW: means of the contexts.
    queries: AlignedBuffer,
    /// CBOW: the gradient of the means.
    d_means: AlignedBuffer,
    contexts: AlignedBuffer,
    negatives: AlignedBuffer,
    /// CBOW: output rows of the centres, and the weights of their scores, T × 16 of which the first column counts.
    targets: AlignedBuffer,
    target_weights: Vec<f32>,
    /// C × rows.
    contexts_transposed: AlignedBuffer,
    negatives_transposed: AlignedBuffer,
    /// T × (K + band), or T × (K + 16) for CBOW: scores, then their gradient.
    scores: AlignedBuffer,
}

/// Copies the rows of `words`.
fn gather(table: impl Rows, words: &[u32], into: &mut [f32], shape: Shape) {
    for (&word, into) in words.iter().zip(into.chunks_exact_mut(shape.stride)) {
        if word != NO_ROW {
            table.read(word, &mut into[..shape.dim]);
        }
    }
}

fn prefetch(table: impl Rows, words: &[u32]) {
    words.iter().filter(|&&word| word != NO_ROW).for_each(|&word| table.prefetch(word));
}

impl<'a> Block<'a> {
    /// With `subwords`, the vectors of the input table are those it makes of the rows.
    pub fn new(config: &WordTrainingConfig, subwords: Option<&'a Subwords>) -> Self {
        let shape = Shape::new(config);
        let rows = |count: usize| AlignedBuffer::zeros(count * shape.stride);
        let (of_skip_gram, of_cbow) = match config.objective {
            WordObjective::SkipGram => (1, 0),
            WordObjective::Cbow => (0, 1),
        };
        let width = of_skip_gram * shape.band + of_cbow * LANES;
        Self {
            shape,
            objective: config.objective,
            subwords,
            ratio: config.negatives as f32,
            windows: Windows::new(
                shape.centres,
                config.window,
                shape.negatives,
                subwords.map_or(0, Subwords::row_count),
            ),
            weights: vec![0.0; shape.centres * shape.band],
            queries: rows(shape.centres),
            d_means: rows(of_cbow * shape.centres),
            contexts: rows(shape.contexts),
            negatives: rows(shape.negatives),
            targets: rows(of_cbow * shape.centres),
            target_weights: vec![0.0; of_cbow * shape.centres * LANES],
            contexts_transposed: rows(of_skip_gram * shape.contexts),
            negatives_transposed: rows(shape.negatives),
            scores: AlignedBuffer::zeros(shape.centres * (shape.negatives + width)),
        }
    }

    /// Room for the gradient of a block.
    pub fn new_gradient(&self) -> BlockGradient {
        BlockGradient::new(self.gradient_rows(), self.shape.stride, self.shape.dim)
    }

    /// Rows of the gradient: of inputs, outputs and negatives.
    fn gradient_rows(&self) -> [usize; 3] {
        let Shape { centres, contexts, negatives, .. } = self.shape;
        match self.objective {
            WordObjective::SkipGram => [centres, contexts, negatives],
            WordObjective::Cbow => [contexts, centres, negatives],
        }
    }

    /// Calls `each(table, word, place)` for every word of the block, whose gradient has a row at `place`.
    ///
    /// For CBOW, as in word2vec.c, every word of a window takes the whole gradient of the mean, not its share of it.
    pub fn for_each_word(&self, mut each: impl FnMut(TableName, u32, usize)) {
        let (centres, contexts) = (self.windows.centres(), self.windows.contexts());
        let (inputs, outputs) = match self.objective {
            WordObjective::SkipGram => (centres, contexts),
            WordObjective::Cbow => (contexts, centres),
        };
        let [input_rows, output_rows, _] = self.gradient_rows();
        let parts = [
            (TableName::Input, inputs, 0),
            (TableName::Output, outputs, input_rows),
            (TableName::Output, self.windows.negatives(), input_rows + output_rows),
        ];
        for (table, words, start) in parts {
            for (place, &word) in (start..).zip(words).filter(|(_, word)| **word != NO_ROW) {
                each(table, word, place);
            }
        }
    }

    /// Draws the windows of the block whose words are in `windows`.
    pub fn draw_windows(&mut self) {
        self.windows.pairs(self.subwords, &mut self.weights, self.shape.band, self.shape.tile);
        if self.objective == WordObjective::SkipGram {
            let rows = self.weights.chunks_exact_mut(self.shape.band);
            for (weights, &share) in rows.zip(self.windows.centre_shares()).filter(|(_, share)| **share < 1.0) {
                weights.iter_mut().for_each(|weight| *weight *= share);
            }
        }
    }

    /// Overwrites `gradient` with that of the block whose windows were drawn, at the tables as they are.
    pub fn compute(&mut self, input: impl Table, output: impl Rows, gradient: &mut BlockGradient) -> BlockLoss {
        match (self.objective, self.subwords) {
            (WordObjective::SkipGram, None) => self.skip_gram(input, output, gradient),
            (WordObjective::Cbow, None) => self.cbow(input, output, gradient),
            (WordObjective::SkipGram, Some(subwords)) => {
                self.skip_gram(Composed { table: input, subwords }, output, gradient)
            }
            (WordObjective::Cbow, Some(subwords)) => self.cbow(Composed { table: input, subwords }, output, gradient),
        }
    }

    fn skip_gram(&mut self, input: impl Rows, output: impl Rows, gradient: &mut BlockGradient) -> BlockLoss {
        let (shape, windows) = (self.shape, &self.windows);
        let Shape { stride, band, negatives, .. } = shape;
        let width = negatives + band;
        gather(input, windows.centres(), &mut self.queries, shape);
        gather(output, windows.contexts(), &mut self.contexts, shape);
        gather(output, windows.negatives(), &mut self.negatives, shape);

        transpose(&self.contexts, stride, &mut self.contexts_transposed, shape.contexts);
        prefetch(output, windows.next_negatives());
        self.score_negatives(width);
        prefetch(input, self.windows.next_centres());
        for (first, count) in shape.tiles() {
            let queries = Strided { values: &self.queries[first * stride..], row_stride: stride, column_stride: 1 };
            let contexts = (&self.contexts_transposed[first..], shape.contexts);
            let scores = (&mut self.scores[first * width + negatives..], width);
            small_product(queries, contexts, scores, (count, shape.dim, band), false);
        }

        let loss = negative_sampling_rows(&mut self.scores, negatives, &self.weights, band, self.ratio);
        prefetch(output, self.windows.next_contexts());

        let [d_queries, d_contexts, d_negatives] = gradient.parts_mut();
        let (scores, vectors) = ((&self.scores[..], width), [&self.queries[..], &self.negatives[..]]);
        propagate_negatives(shape, scores, vectors, [d_queries, d_negatives]);
        d_contexts.fill(0.0);
        for (first, count) in shape.tiles() {
            let gradients = &self.scores[first * width + negatives..];
            let rows = first * stride;
            small_product(
                Strided { values: gradients, row_stride: width, column_stride: 1 },
                (&self.contexts[rows..], stride),
                (&mut d_queries[rows..], stride),
                (count, band, stride),
                true,
            );
            small_product(
                Strided { values: gradients, row_stride: 1, column_stride: width },
                (&self.queries[rows..], stride),
                (&mut d_contexts[rows..], stride),
                (band, count, stride),
                true,
            );
        }
        BlockLoss { loss: loss[0] + loss[1], pairs: self.weights.iter().map(|&weight| f64::from(weight)).sum() }
    }

    fn cbow(&mut self, input: impl Rows, output: impl Rows, gradient: &mut BlockGradient) -> BlockLoss {
        let (shape, windows) = (self.shape, &self.windows);
        let Shape { stride, band, negatives, .. } = shape;
        let width = negatives + LANES;
        gather(input, windows.contexts(), &mut self.contexts, shape);
        gather(output, windows.centres(), &mut self.targets, shape);
        gather(output, windows.negatives(), &mut self.negatives, shape);
        prefetch(output, windows.next_negatives());

        for (first, count) in shape.tiles() {
            let weights = Strided { values: &self.weights[first * band..], row_stride: band, column_stride: 1 };
            let means = (&mut self.queries[first * stride..], stride);
            small_product(weights, (&self.contexts[first * stride..], stride), means, (count, band, stride), false);
        }
        let rows = self.queries.chunks_exact_mut(stride).zip(self.weights.chunks_exact(band));
        for (centre, (mean, weights)) in rows.enumerate() {
            let count: f32 = weights.iter().sum();
            let factor = if count > 0.0 { 1.0 / count } else { 0.0 };
            mean.iter_mut().for_each(|value| *value *= factor);
            let share = self.windows.centre_shares()[centre];
            self.target_weights[centre * LANES] = if count > 0.0 { share } else { 0.0 };
            self.scores[centre * width + negatives..][..LANES].fill(0.0);
            self.scores[centre * width + negatives] = dot(mean, &self.targets[centre * stride..][..stride]);
        }
        prefetch(output, self.windows.next_centres());
        self.score_negatives(width);

        let loss = negative_sampling_rows(&mut self.scores, negatives, &self.target_weights, LANES, self.ratio);
        prefetch(input, self.windows.next_contexts());

        let [d_contexts, d_targets, d_negatives] = gradient.parts_mut();
        let (scores, vectors) = ((&self.scores[..], width), [&self.queries[..], &self.negatives[..]]);
        propagate_negatives(shape, scores, vectors, [&mut self.d_means, d_negatives]);
        d_targets.fill(0.0);
        for centre in 0..shape.centres {
            let row = centre * stride..(centre + 1) * stride;
            let slope = self.scores[centre * width + negatives];
            axpy(&mut d_targets[row.clone()], slope, &self.queries[row.clone()]);
            axpy(&mut self.d_means[row.clone()], slope, &self.targets[row]);
        }
        d_contexts.fill(0.0);
        for (first, count) in shape.tiles() {
            let weights = Strided { values: &self.weights[first * band..], row_stride: 1, column_stride: band };
            let d_contexts = (&mut d_contexts[first * stride..], stride);
            small_product(weights, (&self.d_means[first * stride..], stride), d_contexts, (band, count, stride), true);
        }
        let pairs = self.target_weights.iter().map(|&weight| f64::from(weight)).sum();
        BlockLoss { loss: loss[0] + loss[1], pairs }
    }

    /// The scores of the queries against the negatives, into rows of `width` scores.
    fn score_negatives(&mut self, width: usize) {
        let Shape { dim, stride, centres, negatives, .. } = self.shape;
        transpose(&self.negatives, stride, &mut self.negatives_transposed, negatives);
        let queries = Strided { values: &self.queries, row_stride: stride, column_stride: 1 };
        let scores = (&mut self.scores[..], width);
        small_product(queries, (&self.negatives_transposed, negatives), scores, (centres, dim, negatives), false);
    }
}

/// From the gradient of the scores of the negatives, rows of `width` scores, to those of the queries and the negatives,
/// which it overwrites.
fn propagate_negatives(
    shape: Shape,
    (scores, width): (&[f32], usize),
    [queries, negatives]: [&[f32]; 2],
    [d_queries, d_negatives]: [&mut [f32]; 2],
) {
    let Shape { stride, centres, negatives: count, .. } = shape;
    let gradients = Strided { values: scores, row_stride: width, column_stride: 1 };
    small_product(gradients, (negatives, stride), (d_queries, stride), (centres, count, stride), false);
    let gradients = Strided { values: scores, row_stride: 1, column_stride: width };
    small_product(gradients, (queries, stride), (d_negatives, stride), (count, centres, stride), false);
}

#[cfg(test)]
mod tests;
