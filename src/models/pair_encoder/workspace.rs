//! The buffers of a training step on pairs: forward, loss, and the gradient of each text's sum.

use ndarray::{Array2, ArrayViewMut2, Axis, s};

use super::PairEncoder;
use super::pooling::{add_prefixes, pool, replace_by_gradient, take_prefixes};
use crate::config::PairTrainingConfig;
use crate::data::PairBatch;
use crate::gather::DistinctIds;
use crate::linalg::{Write, gemm};
use crate::loss::cross_entropy::LossSum;
use crate::loss::in_batch_softmax::InBatchSoftmax;
use crate::parallel::Parallelism;

/// Bytes of scores that are worked on together, where the loss allows it: products are the faster the more rows they have,
/// up to some hundreds.
const SCORES_BYTES: usize = 6 << 20;

/// Everything a step needs besides the parameters and their moments, for batches of up to a fixed size.
#[derive(Debug)]
pub(crate) struct PairWorkspace {
    /// 1/τ.
    query_length: f32,
    symmetric: bool,
    loss: InBatchSoftmax,
    /// Queries × documents: all queries of a batch if the loss is symmetric, else some.
    scores: Array2<f32>,
    /// The vectors of all texts: those of queries at the length 1/τ, so that products with documents are scores, those of
    /// documents at 1. When they have served, the gradients of the sums that were brought to these lengths.
    vectors: Array2<f32>,
    /// What the sums were multiplied with.
    factors: Vec<f32>,
    /// The gradients of the vectors of as many queries as `scores` has, and of all documents.
    d_queries: Array2<f32>,
    d_documents: Array2<f32>,
    widths: Vec<usize>,
    prefixes: Option<Prefixes>,
    /// The distinct ids of the batch, with the texts they stand in as their places.
    distinct: DistinctIds,
    /// Of each place of the batch, the text it belongs to.
    text_of: Vec<u32>,
}

/// Prefixes of all vectors, at the lengths of these, as `vectors` and `factors` there, and the sum of their gradients.
#[derive(Debug)]
struct Prefixes {
    vectors: Array2<f32>,
    factors: Vec<f32>,
    d_sums: Array2<f32>,
}

impl PairWorkspace {
    pub fn new(encoder: &PairEncoder, config: &PairTrainingConfig) -> Self {
        let (batch, texts, places) = (config.batch_size, config.texts(), config.places() as usize);
        let dim = encoder.config.dim;
        let widths: Vec<usize> = config.matryoshka.iter().copied().filter(|&width| width < dim).collect();
        let prefixes = widths.last().map(|&width| Prefixes {
            vectors: Array2::zeros((texts, width)),
            factors: vec![0.0; texts],
            d_sums: Array2::zeros((texts, width)),
        });
        let documents = texts - batch;
        let most = if config.symmetric { batch } else { (SCORES_BYTES / size_of::<f32>() / documents).max(64) };
        // Parts of about the same size, of whole tiles of a product.
        let queries = batch.div_ceil(batch.div_ceil(most)).next_multiple_of(12).min(batch);
        Self {
            query_length: (1.0 / config.temperature) as f32,
            symmetric: config.symmetric,
            loss: InBatchSoftmax::new(batch, config.symmetric),
            scores: Array2::zeros((queries, documents)),
            vectors: Array2::zeros((texts, dim)),
            factors: vec![0.0; texts],
            d_queries: Array2::zeros((queries, dim)),
            d_documents: Array2::zeros((documents, dim)),
            widths,
            prefixes,
            distinct: DistinctIds::new(encoder.config.vocabulary_size, places),
            text_of: Vec::with_capacity(places),
        }
    }

    /// The loss of `batch`, which must fit and have ids of the vocabulary, and the gradient of its texts' sums. The loss
    /// is summed over the queries, of all widths' means; correct is what the whole vectors get right. The flag says
    /// whether the gradient is finite.
    pub fn loss_and_gradient(
        &mut self,
        encoder: &PairEncoder,
        batch: &PairBatch,
        parallelism: Parallelism,
    ) -> (LossSum, bool) {
        let rows = batch.rows();
        let (texts, pairs) = (rows.len(), batch.pairs());
        let (distinct, text_of) = (&mut self.distinct, &mut self.text_of);
        let mut vectors = self.vectors.slice_mut(s![..texts, ..]);
        let factors = &mut self.factors[..texts];
        let query_length = self.query_length;
        let length_of = |text: usize| if text < pairs { query_length } else { 1.0 };
        pool(encoder.table(), rows, &length_of, vectors.view_mut(), Some(&mut *factors), parallelism);
        distinct.find(rows.ids().iter().copied());
        text_of.clear();
        let mut start = 0;
        for (text, &end) in rows.ends().iter().enumerate() {
            text_of.resize(text_of.len() + end - start, text as u32);
            start = end;
        }
        distinct.label_places(text_of);

        let mut contrast = Contrast {
            scores: self.scores.slice_mut(s![.., ..texts - pairs]),
            d_queries: self.d_queries.view_mut(),
            d_documents: self.d_documents.slice_mut(s![..texts - pairs, ..]),
            pairs,
            symmetric: self.symmetric,
            loss: &mut self.loss,
            query_length,
            weight: 1.0 / (pairs * (1 + self.widths.len())) as f32,
            parallelism,
        };
        let Some(prefixes) = &mut self.prefixes else {
            return contrast.run(vectors, factors);
        };
        let mut d_sums = prefixes.d_sums.slice_mut(s![..texts, ..]);
        d_sums.fill(0.0);
        let mut loss_of_prefixes = 0.0;
        for &width in &self.widths {
            let mut prefix = prefixes.vectors.slice_mut(s![..texts, ..width]);
            let prefix_factors = &mut prefixes.factors[..texts];
            take_prefixes(vectors.view(), factors, &length_of, prefix.view_mut(), prefix_factors, parallelism);
            loss_of_prefixes += contrast.run(prefix.view_mut(), prefix_factors).0.loss;
            add_prefixes(prefix.view(), d_sums.view_mut(), parallelism);
        }
        let (mut sum, mut finite) = contrast.run(vectors.view_mut(), factors);
        finite &= add_prefixes(d_sums.view(), vectors, parallelism);
        sum.loss += loss_of_prefixes;
        sum.loss /= (1 + self.widths.len()) as f64;
        (sum, finite)
    }

    /// The distinct ids of the batch.
    pub fn distinct(&self) -> &DistinctIds {
        &self.distinct
    }

    /// The gradient of all texts' sums, one a row, and the texts that the `index`-th distinct id stands in, as often as it
    /// does: the gradient of its vector, before its weight, is the sum of their rows.
    pub fn gradient_of(&self, index: usize) -> (&[f32], &[u32]) {
        (self.vectors.as_slice().expect("gradients are contiguous"), self.distinct.places(index))
    }
}

/// What it takes to score vectors and to replace them by the gradients of the sums that they were.
struct Contrast<'a> {
    scores: ArrayViewMut2<'a, f32>,
    d_queries: ArrayViewMut2<'a, f32>,
    d_documents: ArrayViewMut2<'a, f32>,
    pairs: usize,
    symmetric: bool,
    loss: &'a mut InBatchSoftmax,
    query_length: f32,
    weight: f32,
    parallelism: Parallelism,
}

impl Contrast<'_> {
    /// `vectors` ← the gradients of the sums that times `factors` are these vectors, of the width of `vectors`. Returns the
    /// loss, and whether the gradients are finite.
    fn run(&mut self, vectors: ArrayViewMut2<'_, f32>, factors: &[f32]) -> (LossSum, bool) {
        let (width, parallelism) = (vectors.ncols(), self.parallelism);
        let (mut queries, documents) = vectors.split_at(Axis(0), self.pairs);
        let (query_factors, document_factors) = factors.split_at(self.pairs);
        let mut d_documents = self.d_documents.slice_mut(s![.., ..width]);
        let (mut sum, mut finite) = (LossSum::default(), true);
        let mut write = Write::Replace;
        for start in (0..self.pairs).step_by(self.scores.nrows()) {
            let end = (start + self.scores.nrows()).min(self.pairs);
            let queries = queries.slice_mut(s![start..end, ..]);
            let mut d_queries = self.d_queries.slice_mut(s![..end - start, ..width]);
            let mut scores = self.scores.slice_mut(s![..end - start, ..]);
            gemm(1.0, queries.view(), documents.t(), Write::Replace, scores.view_mut(), parallelism);
            sum = sum
                + if self.symmetric {
                    self.loss.replace_by_gradient(scores.view_mut(), self.weight, parallelism)
                } else {
                    self.loss.replace_part_by_gradient(scores.view_mut(), start, self.weight, parallelism)
                };
            gemm(1.0, scores.view(), documents.view(), Write::Replace, d_queries.view_mut(), parallelism);
            gemm(1.0, scores.t(), queries.view(), write, d_documents.view_mut(), parallelism);
            write = Write::Add;
            let factors = &query_factors[start..end];
            finite &= replace_by_gradient(queries, d_queries.view(), factors, self.query_length, parallelism);
        }
        finite &= replace_by_gradient(documents, d_documents.view(), document_factors, 1.0, parallelism);
        (sum, finite)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::PairEncoderConfig;
    use crate::data::TokenRows;
    use crate::kernels::dispatch::{InstructionSet, under_every_instruction_set};
    use crate::kernels::gathered::gathered_sum;
    use crate::kernels::testing::{numerical_gradient, wide};
    use crate::rng::{Purpose, Stream};

    const VOCABULARY: usize = 13;
    const DIM: usize = 7;
    const PAIRS: usize = 5;

    /// Texts of 0 to 4 tokens, some of them more than once in a text.
    fn batch(hard_negatives: usize) -> PairBatch {
        let stream = Stream::new(5, Purpose::Caller, hard_negatives as u64);
        let texts = PAIRS * (2 + hard_negatives);
        let rows: TokenRows = (0..texts as u64)
            .map(|text| {
                let length = if text == 3 { 0 } else { 1 + stream.below(8 * text, 4) };
                (1..=length).map(|token| stream.below(8 * text + token, VOCABULARY as u64) as u32).collect::<Vec<_>>()
            })
            .collect();
        PairBatch::new(rows, hard_negatives).unwrap()
    }

    /// The loss by the plain formula, of the flat parameters.
    fn reference(parameters: &[f64], encoder: &PairEncoder, config: &PairTrainingConfig, batch: &PairBatch) -> f64 {
        let weight = |id: usize| encoder.token_weights.map_or(1.0, |weights| parameters[weights.range()][id]);
        let vectors = &parameters[encoder.vectors.range()];
        let sum = |text: usize, column: usize| -> f64 {
            let row = batch.rows().row(text).iter().map(|&id| id as usize);
            row.map(|id| weight(id) * vectors[id * DIM + column]).sum()
        };
        let log_sum = |scores: Vec<f64>| scores.into_iter().map(f64::exp).sum::<f64>().ln();
        let widths: Vec<usize> = config.matryoshka.iter().copied().chain([DIM]).collect();
        let of_width = |width: usize| {
            let unit = |text: usize| -> Vec<f64> {
                let sums: Vec<f64> = (0..width).map(|column| sum(text, column)).collect();
                let length = sums.iter().map(|x| x * x).sum::<f64>().sqrt();
                sums.iter().map(|x| if length > 0.0 { x / length } else { 0.0 }).collect()
            };
            let units: Vec<Vec<f64>> = (0..batch.rows().len()).map(unit).collect();
            let score = |query: usize, document: usize| {
                let pairs = units[query].iter().zip(&units[PAIRS + document]);
                pairs.map(|(x, y)| x * y).sum::<f64>() / config.temperature
            };
            let documents = PAIRS * (1 + batch.hard_negatives());
            let of_pair = |pair: usize| {
                let by_row =
                    log_sum((0..documents).map(|document| score(pair, document)).collect()) - score(pair, pair);
                let by_column = log_sum((0..PAIRS).map(|query| score(query, pair)).collect()) - score(pair, pair);
                if config.symmetric { 0.5 * (by_row + by_column) } else { by_row }
            };
            (0..PAIRS).map(of_pair).sum::<f64>() / PAIRS as f64
        };
        widths.iter().map(|&width| of_width(width)).sum::<f64>() / widths.len() as f64
    }

    #[test]
    fn loss_and_gradient_agree_with_the_plain_formula() {
        for (hard_negatives, symmetric, matryoshka, token_weights) in [
            (0, false, vec![], false),
            (0, true, vec![], false),
            (1, false, vec![], false),
            (2, true, vec![], true),
            (0, false, vec![2, 5], false),
            (1, true, vec![3], true),
        ] {
            let case = format!("{hard_negatives}, symmetric {symmetric}, {matryoshka:?}, weights {token_weights}");
            let config = PairTrainingConfig {
                // Larger than the batch.
                batch_size: PAIRS + 1,
                max_tokens: 4,
                temperature: 0.3,
                hard_negatives,
                symmetric,
                matryoshka,
                ..Default::default()
            };
            let shape = PairEncoderConfig { vocabulary_size: VOCABULARY, dim: DIM, token_weights };
            let mut encoder = PairEncoder::new(shape, 3).unwrap();
            if let Some(weights) = encoder.token_weights {
                Stream::new(9, Purpose::Caller, 0).fill_normal(encoder.parameters.slice_mut(weights), 1.0);
            }
            let batch = batch(hard_negatives);
            let parameters = wide(encoder.parameters.values());
            let expected_loss = reference(&parameters, &encoder, &config, &batch);
            let expected = numerical_gradient(&parameters, 1e-5, |at| reference(at, &encoder, &config, &batch));
            under_every_instruction_set(|set| {
                let mut workspace = PairWorkspace::new(&encoder, &config);
                if !config.symmetric {
                    // In parts of two queries, and one of one.
                    workspace.scores = Array2::zeros((2, workspace.scores.ncols()));
                    workspace.d_queries = Array2::zeros((2, DIM));
                }
                workspace.d_queries.fill(f32::NAN);
                workspace.d_documents.fill(f32::NAN);
                let parallelism = Parallelism::workers(if set == InstructionSet::Portable { 1 } else { 3 });
                let (sum, finite) = workspace.loss_and_gradient(&encoder, &batch, parallelism);
                assert!(finite && sum.targets == PAIRS as u64);
                let loss = sum.loss / PAIRS as f64;
                assert!((loss - expected_loss).abs() < 1e-5, "{case}, {set:?}: {loss} for {expected_loss}");

                let mut found = vec![0.0; parameters.len()];
                for (index, &id) in workspace.distinct().ids().iter().enumerate() {
                    let (mut gradient, id) = ([0.0; DIM], id as usize);
                    let (d_sums, texts) = workspace.gradient_of(index);
                    gathered_sum(&mut gradient, d_sums, texts, None);
                    let weight = encoder.token_weights().map_or(1.0, |weights| weights[id]);
                    for (column, &value) in gradient.iter().enumerate() {
                        found[encoder.vectors.range().start + id * DIM + column] = weight * value;
                        if let Some(weights) = encoder.token_weights {
                            found[weights.range().start + id] += value * encoder.vectors()[[id, column]];
                        }
                    }
                }
                for (place, (found, expected)) in found.iter().zip(&expected).enumerate() {
                    let found = f64::from(*found);
                    assert!((found - expected).abs() < 1e-5, "{case}, {set:?}, {place}: {found} for {expected}");
                }
            });
        }
    }

    #[test]
    fn a_gradient_that_overflows_is_told_though_the_loss_is_finite() {
        let shape = PairEncoderConfig { vocabulary_size: VOCABULARY, dim: DIM, token_weights: false };
        // Of document i the one token is PAIRS + i.
        let rows: TokenRows = (0..2 * PAIRS as u32).map(|token| vec![token]).collect();
        let batch = PairBatch::new(rows, 0).unwrap();
        // Of all values of documents, or of the first two alone.
        for (matryoshka, columns) in [(vec![], DIM), (vec![2], DIM), (vec![2], 2)] {
            for (short, finite) in [(1.0, true), (1e-10, false)] {
                let config = PairTrainingConfig {
                    batch_size: PAIRS,
                    max_tokens: 4,
                    // Below what settings allow, where no gradient overflows.
                    temperature: 1e-30,
                    matryoshka: matryoshka.clone(),
                    ..Default::default()
                };
                let mut encoder = PairEncoder::new(shape.clone(), 3).unwrap();
                for vector in encoder.parameters.slice_mut(encoder.vectors)[PAIRS * DIM..].chunks_exact_mut(DIM) {
                    vector[..columns].iter_mut().for_each(|value| *value *= short);
                }
                let mut workspace = PairWorkspace::new(&encoder, &config);
                let (sum, found) = workspace.loss_and_gradient(&encoder, &batch, Parallelism::SEQUENTIAL);
                assert!(
                    sum.loss.is_finite() && sum.correct < sum.targets && found == finite,
                    "{matryoshka:?}, {columns}, {short}: {sum:?}, {found}"
                );
            }
        }
    }
}
