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
//! A word that stands at two places has two rows here, whose gradients both go to its row of the table: a sum over the
//! block at the tables as they were before it. A word at more than four places has pairs of less weight, as if it stood
//! at four. CBOW has the same parts: the band of window weights times the input rows
//! of the contexts gives the means, which take the place of X.
//!
//! Sharing negatives is from Ji et al., "Parallelizing word2vec in shared and distributed memory" (2016), who share them
//! within one window.

use super::rows::{NO_ROW, Rows, Table};
use super::subwords::{Composed, Subwords};
use super::update::Update;
use super::windows::{BlockNumber, Windows};
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
    subwords: Option<&'a Subwords>,
    ratio: f32,
    pub windows: Windows,
    /// T × band: the weight of each pair.
    weights: Vec<f32>,
    /// Skip-gram: input rows of the centres. CBOW: means of the contexts.
    queries: AlignedBuffer,
    d_queries: AlignedBuffer,
    contexts: AlignedBuffer,
    d_contexts: AlignedBuffer,
    negatives: AlignedBuffer,
    d_negatives: AlignedBuffer,
    /// CBOW: output rows of the centres, and the weights of their scores, T × 16 of which the first column counts.
    targets: AlignedBuffer,
    d_targets: AlignedBuffer,
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
            d_queries: rows(shape.centres),
            contexts: rows(shape.contexts),
            d_contexts: rows(shape.contexts),
            negatives: rows(shape.negatives),
            d_negatives: rows(shape.negatives),
            targets: rows(of_cbow * shape.centres),
            d_targets: rows(of_cbow * shape.centres),
            target_weights: vec![0.0; of_cbow * shape.centres * LANES],
            contexts_transposed: rows(of_skip_gram * shape.contexts),
            negatives_transposed: rows(shape.negatives),
            scores: AlignedBuffer::zeros(shape.centres * (shape.negatives + width)),
        }
    }

    /// The gradient of the block `number`, whose words are in `windows`, at the tables as they are.
    pub fn compute(&mut self, number: BlockNumber, input: impl Table, output: impl Rows) -> BlockLoss {
        self.windows.pairs(number, self.subwords, &mut self.weights, self.shape.band, self.shape.tile);
        match (self.objective, self.subwords) {
            (WordObjective::SkipGram, None) => self.skip_gram(input, output),
            (WordObjective::Cbow, None) => self.cbow(input, output),
            (WordObjective::SkipGram, Some(subwords)) => self.skip_gram(Composed { table: input, subwords }, output),
            (WordObjective::Cbow, Some(subwords)) => self.cbow(Composed { table: input, subwords }, output),
        }
    }

    fn skip_gram(&mut self, input: impl Rows, output: impl Rows) -> BlockLoss {
        let (shape, windows) = (self.shape, &self.windows);
        let Shape { stride, band, negatives, .. } = shape;
        let width = negatives + band;
        for (weights, &share) in self.weights.chunks_exact_mut(band).zip(windows.centre_shares()) {
            if share < 1.0 {
                weights.iter_mut().for_each(|weight| *weight *= share);
            }
        }
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

        self.propagate_negatives(width);
        self.d_contexts.fill(0.0);
        for (first, count) in shape.tiles() {
            let gradients = &self.scores[first * width + negatives..];
            let rows = first * stride;
            small_product(
                Strided { values: gradients, row_stride: width, column_stride: 1 },
                (&self.contexts[rows..], stride),
                (&mut self.d_queries[rows..], stride),
                (count, band, stride),
                true,
            );
            small_product(
                Strided { values: gradients, row_stride: 1, column_stride: width },
                (&self.queries[rows..], stride),
                (&mut self.d_contexts[rows..], stride),
                (band, count, stride),
                true,
            );
        }
        BlockLoss { loss: loss[0] + loss[1], pairs: self.weights.iter().map(|&weight| f64::from(weight)).sum() }
    }

    fn cbow(&mut self, input: impl Rows, output: impl Rows) -> BlockLoss {
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

        self.propagate_negatives(width);
        self.d_targets.fill(0.0);
        for centre in 0..shape.centres {
            let row = centre * stride..(centre + 1) * stride;
            let gradient = self.scores[centre * width + negatives];
            axpy(&mut self.d_targets[row.clone()], gradient, &self.queries[row.clone()]);
            axpy(&mut self.d_queries[row.clone()], gradient, &self.targets[row]);
        }
        self.d_contexts.fill(0.0);
        for (first, count) in shape.tiles() {
            let weights = Strided { values: &self.weights[first * band..], row_stride: 1, column_stride: band };
            let d_contexts = (&mut self.d_contexts[first * stride..], stride);
            small_product(
                weights,
                (&self.d_queries[first * stride..], stride),
                d_contexts,
                (band, count, stride),
                true,
            );
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

    /// From the gradient of these scores to those of the queries and the negatives, which it overwrites.
    fn propagate_negatives(&mut self, width: usize) {
        let Shape { stride, centres, negatives, .. } = self.shape;
        let gradients = Strided { values: &self.scores, row_stride: width, column_stride: 1 };
        let d_queries = (&mut self.d_queries[..], stride);
        small_product(gradients, (&self.negatives, stride), d_queries, (centres, negatives, stride), false);
        let gradients = Strided { values: &self.scores, row_stride: 1, column_stride: width };
        let d_negatives = (&mut self.d_negatives[..], stride);
        small_product(gradients, (&self.queries, stride), d_negatives, (negatives, centres, stride), false);
    }

    /// The gradient of rows of the input table.
    pub fn input_update(&self) -> Update<'_> {
        match self.objective {
            WordObjective::SkipGram => self.update(self.windows.centres(), self.subwords, &self.d_queries),
            WordObjective::Cbow => self.update(self.windows.contexts(), self.subwords, &self.d_contexts),
        }
    }

    /// The gradients of rows of the output table.
    ///
    /// For CBOW, as in word2vec.c, every word of a window takes the whole gradient of the mean, not its share of it.
    pub fn output_updates(&self) -> [Update<'_>; 2] {
        let positive = match self.objective {
            WordObjective::SkipGram => self.update(self.windows.contexts(), None, &self.d_contexts),
            WordObjective::Cbow => self.update(self.windows.centres(), None, &self.d_targets),
        };
        [positive, self.update(self.windows.negatives(), None, &self.d_negatives)]
    }

    fn update<'u>(&self, words: &'u [u32], subwords: Option<&'u Subwords>, gradients: &'u [f32]) -> Update<'u> {
        Update { words, subwords, gradients, stride: self.shape.stride, dim: self.shape.dim }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::SubwordConfig;
    use crate::data::{AliasTable, TextFiles, TextOptions, WordSplit, WordStream, WordVocabulary};
    use crate::kernels::dispatch::under_every_instruction_set;
    use crate::models::skip_gram::rows::Frozen;
    use crate::rng::{Purpose, Stream};

    const NUMBER: BlockNumber = BlockNumber { seed: 3, worker: 1, epoch: 2, block: 0 };

    fn config(objective: WordObjective) -> WordTrainingConfig {
        WordTrainingConfig { objective, dim: 7, window: 2, block: 29, shared_negatives: 16, ..Default::default() }
    }

    /// A text of 26 words in lines of 1 to 11.
    fn text() -> (tempfile::TempDir, TextFiles, WordVocabulary) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("text");
        std::fs::write(&path, "a b c a d\nb\n\ne f g a b a a b c h\nc d e\nf a b c h g a\n").unwrap();
        let corpus = TextFiles::collect(&[path], &TextOptions::default()).unwrap();
        let vocabulary = WordVocabulary::build(&corpus, WordSplit::Blanks, 1).unwrap();
        (folder, corpus, vocabulary)
    }

    /// A block on the text: its last places hold no word.
    fn block<'a>(config: &WordTrainingConfig, subwords: Option<&'a Subwords>) -> (Block<'a>, usize) {
        let (_folder, corpus, vocabulary) = text();
        let keep = vec![1.0; vocabulary.len()];
        let mut stream = WordStream::new(&corpus, &vocabulary, &keep, 0..u64::MAX, 1);
        stream.restart(0).unwrap();
        let table = AliasTable::new(&vec![1.0; vocabulary.len()]);
        let mut block = Block::new(config, subwords);
        block.windows.start(&mut stream, &table, NUMBER).unwrap();
        assert!(block.windows.advance(&mut stream, &table).unwrap().is_some());
        (block, vocabulary.len())
    }

    /// The loss of one centre, by the plain formula.
    fn centre_loss(block: &Block<'_>, objective: WordObjective, centre: usize, input: &[f64], output: &[f64]) -> f64 {
        let dim = block.shape.dim;
        let row = |table: &[f64], word: u32| table[word as usize * dim..][..dim].to_vec();
        let cost = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>().exp().ln_1p();
        let negated = |x: Vec<f64>| x.into_iter().map(|x| -x).collect::<Vec<f64>>();
        let words = block.windows.contexts();
        let first = centre / block.shape.tile * block.shape.tile;
        let weights = &block.weights[centre * block.shape.band..][..block.shape.band];
        let pairs: Vec<(u32, f64)> = (0..weights.len())
            .filter(|&at| weights[at] > 0.0)
            .map(|at| (words[first + at], f64::from(weights[at])))
            .collect();
        if pairs.is_empty() {
            return 0.0;
        }
        let word = block.windows.centres()[centre];
        let (query, targets) = match objective {
            WordObjective::SkipGram => (row(input, word), pairs),
            WordObjective::Cbow => {
                let sum = |at: usize| pairs.iter().map(|&(pair, weight)| weight * row(input, pair)[at]).sum::<f64>();
                let weight = pairs_of(block, centre);
                let share = f64::from(block.windows.centre_shares()[centre]);
                ((0..dim).map(|at| sum(at) / weight).collect(), vec![(word, share)])
            }
        };
        let attraction: f64 =
            targets.iter().map(|&(target, weight)| weight * cost(&query, &negated(row(output, target)))).sum();
        let negatives = block.windows.negatives();
        let repulsion: f64 = negatives.iter().map(|&negative| cost(&query, &row(output, negative))).sum();
        let weight: f64 = targets.iter().map(|&(_, weight)| weight).sum();
        attraction + weight * 5.0 / negatives.len() as f64 * repulsion
    }

    fn pairs_of(block: &Block<'_>, centre: usize) -> f64 {
        block.weights[centre * block.shape.band..][..block.shape.band].iter().map(|&weight| f64::from(weight)).sum()
    }

    #[test]
    fn loss_and_gradients_agree_with_the_plain_formula() {
        for objective in [WordObjective::SkipGram, WordObjective::Cbow] {
            let config = config(objective);
            let (mut block, words) = block(&config, None);
            let mut tables = vec![0.0; 2 * words * config.dim];
            Stream::new(8, Purpose::Caller, 0).fill_normal(&mut tables, 0.5);
            let (input, output) = tables.split_at(words * config.dim);
            under_every_instruction_set(|set| {
                let frozen = |values| Frozen { values, dim: config.dim };
                let found = block.compute(NUMBER, frozen(input), frozen(output));
                let mut gradient = vec![0.0; tables.len()];
                let mut collect = |offset: usize, update: Update<'_>| {
                    update.for_each(0..u32::MAX, |row, values| {
                        let into = &mut gradient[offset + row as usize * config.dim..][..config.dim];
                        into.iter_mut().zip(values).for_each(|(into, value)| *into += f64::from(*value));
                    });
                };
                collect(0, block.input_update());
                block.output_updates().into_iter().for_each(|update| collect(input.len(), update));

                let wide: Vec<f64> = tables.iter().map(|&value| value.into()).collect();
                let loss = |values: &[f64], centre| {
                    centre_loss(&block, objective, centre, &values[..input.len()], &values[input.len()..])
                };
                let centres = 0..config.block;
                let expected: f64 = centres.clone().map(|centre| loss(&wide, centre)).sum();
                assert!((found.loss - expected).abs() < 1e-5 * expected, "{set:?}: {found:?} for {expected}");
                let pairs = centres.clone().map(|centre| (pairs_of(&block, centre), centre));
                let share = |centre: usize| f64::from(block.windows.centre_shares()[centre]);
                let pairs: f64 = match objective {
                    WordObjective::SkipGram => pairs.map(|(pairs, _)| pairs).sum(),
                    WordObjective::Cbow => {
                        pairs.filter(|&(pairs, _)| pairs > 0.0).map(|(_, centre)| share(centre)).sum()
                    }
                };
                assert!((found.pairs - pairs).abs() < 1e-4, "{found:?} for {pairs}");
                assert!(pairs >= 15.0 && centres.clone().any(|centre| share(centre) < 1.0), "{pairs}");
                for at in 0..wide.len() {
                    let slope = |centre: usize| {
                        let moved = |by: f64| {
                            let mut wide = wide.clone();
                            wide[at] += by;
                            loss(&wide, centre)
                        };
                        // word2vec.c does not divide what the words of a window take by their number.
                        let factor = if objective == WordObjective::Cbow && at < input.len() {
                            pairs_of(&block, centre)
                        } else {
                            1.0
                        };
                        factor * (moved(1e-5) - moved(-1e-5)) / 2e-5
                    };
                    let expected: f64 = centres.clone().map(slope).sum();
                    let found = gradient[at];
                    assert!(
                        (found - expected).abs() < 1e-4,
                        "{objective:?}, {set:?}, element {at}: {found} for {expected}"
                    );
                }
            });
        }
    }

    #[test]
    fn pairs_lie_within_a_line_and_within_the_window() {
        let config = config(WordObjective::SkipGram);
        let (mut block, words) = block(&config, None);
        let table = vec![0.0; words * config.dim];
        block.compute(NUMBER, Frozen { values: &table, dim: 7 }, Frozen { values: &table, dim: 7 });
        // The number of each word's line, by the places of the text; empty lines count.
        let lines: Vec<usize> =
            [(0, 5), (1, 1), (3, 10), (4, 3), (5, 7)].iter().flat_map(|&(line, words)| vec![line; words]).collect();
        for centre in 0..config.block {
            let weights = &block.weights[centre * block.shape.band..][..block.shape.band];
            let first = (centre / block.shape.tile * block.shape.tile) as isize - config.window as isize;
            let mut widest = 0;
            for (at, &weight) in weights.iter().enumerate() {
                let distance = (first + at as isize - centre as isize).unsigned_abs();
                let other = usize::try_from(first + at as isize).ok().and_then(|place| lines.get(place));
                let possible =
                    distance > 0 && distance <= config.window && other.is_some() && other == lines.get(centre);
                // Of the words of this text, "a" stands at 7 places and "b" at 5, where 4 count.
                let (a, b) = (4.0 / 7.0, 4.0 / 5.0);
                let counts = [0.0, 1.0, a, b, a * a, a * b, b * b];
                let known = counts.iter().any(|count: &f32| (weight - count).abs() < 1e-6);
                assert!(known && (weight == 0.0 || possible), "centre {centre}, column {at}: {weight}");
                widest = widest.max(if weight > 0.0 { distance } else { 0 });
            }
            let alone = lines.get(centre).is_none_or(|line| lines.iter().filter(|&other| other == line).count() == 1);
            assert_eq!(widest == 0, alone, "centre {centre}: neighbours are always within the window");
        }
    }

    /// Against central differences of the plain formula by the vectors that the plain means of the rows are: as in fastText,
    /// each row takes the whole gradient of a vector as often as it is part of it.
    #[test]
    fn rows_of_subwords_take_the_gradients_of_their_words() {
        // So few buckets that words share them, and meet some of them twice.
        let subwords = SubwordConfig { min_length: 1, max_length: 3, buckets: 5 };
        let subwords = Subwords::new(&text().2, subwords);
        for objective in [WordObjective::SkipGram, WordObjective::Cbow] {
            let config = config(objective);
            let (dim, rows) = (config.dim, subwords.row_count());
            let (mut block, words) = block(&config, Some(&subwords));
            assert!((0..words as u32).any(|word| {
                let rows = subwords.of_word(word);
                rows.iter().enumerate().any(|(at, row)| rows[..at].contains(row))
            }));
            let mut tables = vec![0.0; (rows + words) * dim];
            Stream::new(9, Purpose::Caller, 0).fill_normal(&mut tables, 0.5);
            let (input, output) = tables.split_at(rows * dim);
            let mut vectors = vec![0.0; words * dim];
            for (word, vector) in vectors.chunks_mut(dim).enumerate() {
                let rows = subwords.of_word(word as u32);
                for (at, value) in vector.iter_mut().enumerate() {
                    let values = rows.iter().map(|&row| f64::from(input[row as usize * dim + at]));
                    *value = values.sum::<f64>() / rows.len() as f64;
                }
            }
            let output_wide: Vec<f64> = output.iter().map(|&value| value.into()).collect();
            under_every_instruction_set(|set| {
                let found = block.compute(NUMBER, Frozen { values: input, dim }, Frozen { values: output, dim });
                let loss = |vectors: &[f64]| -> f64 {
                    (0..config.block).map(|centre| centre_loss(&block, objective, centre, vectors, &output_wide)).sum()
                };
                let whole = loss(&vectors);
                assert!(whole > 10.0 && (found.loss - whole).abs() < 1e-5 * whole, "{set:?}: {found:?} for {whole}");
                let mut expected = vec![0.0; input.len()];
                for at in 0..vectors.len() {
                    let slope = |centre: usize| {
                        let moved = |by: f64| {
                            let mut vectors = vectors.clone();
                            vectors[at] += by;
                            centre_loss(&block, objective, centre, &vectors, &output_wide)
                        };
                        let factor = if objective == WordObjective::Cbow { pairs_of(&block, centre) } else { 1.0 };
                        factor * (moved(1e-5) - moved(-1e-5)) / 2e-5
                    };
                    let slope: f64 = (0..config.block).map(slope).sum();
                    for &row in subwords.of_word((at / dim) as u32) {
                        expected[row as usize * dim + at % dim] += slope;
                    }
                }
                // In two parts, as two workers take them.
                let mut gradient = vec![0.0; input.len()];
                for range in [0..words as u32 + 2, words as u32 + 2..rows as u32] {
                    block.input_update().for_each(range.clone(), |row, values| {
                        assert!(range.contains(&row));
                        let into = &mut gradient[row as usize * dim..][..dim];
                        into.iter_mut().zip(values).for_each(|(into, value)| *into += f64::from(*value));
                    });
                }
                for (at, (found, expected)) in gradient.iter().zip(&expected).enumerate() {
                    let what = format!("{objective:?}, {set:?}, element {at}: {found} for {expected}");
                    assert!((found - expected).abs() < 2e-4, "{what}");
                }
            });
        }
    }
}
