//! Softmax cross-entropy over the documents of a batch: every document is a negative of every other query.
//!
//! For scores S (B × D) of B queries with D ≥ B documents, of which document i belongs to query i and those from B on are
//! hard negatives, the loss of query i is −ln softmax(S_i)ᵢ (Henderson et al., "Efficient natural language response
//! suggestion for smart reply", 2017; InfoNCE of van den Oord et al., 2018). The symmetric loss is half of it and half of
//! that of the documents' columns, −ln softmax(S₀ᵢ … S₍B₋₁₎ᵢ)ᵢ (Radford et al., "CLIP", 2021); hard negatives belong to no
//! query and have no column of their own.
//!
//! The scores are taken as they are: with queries of length 1/τ they are those of temperature τ, and products with their
//! gradient need no further factor. Documents that occur twice in a batch are negatives of each other's query.

use ndarray::{ArrayView2, ArrayViewMut2, Axis};

use super::cross_entropy::{CrossEntropy, LossSum};
use crate::kernels::in_batch::{add_exponentials, larger_assign, symmetric_row};
use crate::parallel::{Parallelism, SplitRows, for_rows, map_rows};

/// Rows whose f32 sums are added to the f64 sums together.
const FLUSH: usize = 64;

/// The loss, with its memory for batches of up to a fixed size.
#[derive(Clone, Debug)]
pub struct InBatchSoftmax {
    /// 0, 1, 2, …: the document of each query.
    targets: Vec<u32>,
    columns: Option<Columns>,
}

/// Of each column the largest score, sums of exponentials, and their logarithm.
#[derive(Clone, Debug)]
struct Columns {
    largest: Vec<f32>,
    partial_sums: Vec<f32>,
    sums: Vec<f64>,
    log_sums: Vec<f32>,
}

impl InBatchSoftmax {
    /// The loss of batches of up to `queries` queries.
    ///
    /// # Panics
    /// If that has more than 32 bits.
    #[must_use]
    pub fn new(queries: usize, symmetric: bool) -> Self {
        let count = u32::try_from(queries).expect("queries are numbered by 32 bits");
        let columns = symmetric.then(|| Columns {
            largest: vec![0.0; queries],
            partial_sums: vec![0.0; queries],
            sums: vec![0.0; queries],
            log_sums: vec![0.0; queries],
        });
        Self { targets: (0..count).collect(), columns }
    }

    /// As [`replace_by_gradient`](Self::replace_by_gradient), of some of the queries: `scores` has the row of query `first`
    /// and those after it. Only the loss that is not symmetric can be taken in parts.
    ///
    /// # Panics
    /// As there, and if the loss is symmetric.
    #[track_caller]
    pub fn replace_part_by_gradient(
        &self,
        scores: ArrayViewMut2<'_, f32>,
        first: usize,
        weight: f32,
        parallelism: Parallelism,
    ) -> LossSum {
        let (queries, documents) = scores.dim();
        let (end, room) = (first + queries, self.targets.len());
        assert!(self.columns.is_none(), "in-batch softmax: the symmetric loss in parts");
        assert!(end <= documents, "in-batch softmax: {end} queries of {documents} documents");
        assert!(end <= room, "in-batch softmax: {end} queries for {room}");
        CrossEntropy::default().replace_by_gradient(scores, &self.targets[first..end], weight, parallelism)
    }

    /// scores ← `weight` · d(sum of the losses)/d(scores); returns the sums over the queries, without the weight.
    ///
    /// # Panics
    /// If there are more queries than the capacity, or fewer documents than queries.
    #[track_caller]
    pub fn replace_by_gradient(
        &mut self,
        scores: ArrayViewMut2<'_, f32>,
        weight: f32,
        parallelism: Parallelism,
    ) -> LossSum {
        let (queries, documents) = scores.dim();
        assert!(queries <= documents, "in-batch softmax: {queries} queries of {documents} documents");
        assert!(queries <= self.targets.len(), "in-batch softmax: {queries} queries for {}", self.targets.len());
        let targets = &self.targets[..queries];
        let Some(columns) = &mut self.columns else {
            return self.replace_part_by_gradient(scores, 0, weight, parallelism);
        };
        columns.find(scores.view(), parallelism);
        let log_sums = &columns.log_sums[..queries];
        let work = |(mut scores, targets): (ArrayViewMut2<'_, f32>, &[u32])| {
            let mut sum = LossSum::default();
            for (mut row, &target) in scores.rows_mut().into_iter().zip(targets) {
                let row = row.as_slice_mut().expect("a row of scores is contiguous");
                let found = symmetric_row(row, target as usize, log_sums, 0.5 * weight);
                sum.loss += 0.5 * found.loss;
                sum.correct += u64::from(found.correct);
                sum.targets += 1;
            }
            sum
        };
        map_rows(parallelism, queries, (scores, targets), &work, &|a, b| a + b)
    }
}

/// A matrix that is cut between columns.
struct ByColumns<'a>(ArrayView2<'a, f32>);

impl SplitRows for ByColumns<'_> {
    fn split_rows(self, at: usize) -> (Self, Self) {
        let (left, right) = self.0.split_at(Axis(1), at);
        (Self(left), Self(right))
    }
}

impl Columns {
    /// Finds the statistics of the first columns, as many as there are rows.
    fn find(&mut self, scores: ArrayView2<'_, f32>, parallelism: Parallelism) {
        let queries = scores.nrows();
        let (square, _) = scores.split_at(Axis(1), queries);
        let parts = (
            ByColumns(square),
            &mut self.largest[..queries],
            &mut self.partial_sums[..queries],
            &mut self.sums[..queries],
            &mut self.log_sums[..queries],
        );
        for_rows(parallelism, queries, parts, &|(ByColumns(scores), largest, partial_sums, sums, log_sums)| {
            largest.fill(f32::NEG_INFINITY);
            sums.fill(0.0);
            let row = |index: usize| scores.row(index).to_slice().expect("a row of scores is contiguous");
            (0..queries).for_each(|index| larger_assign(largest, row(index)));
            for start in (0..queries).step_by(FLUSH) {
                partial_sums.fill(0.0);
                for index in start..(start + FLUSH).min(queries) {
                    add_exponentials(partial_sums, row(index), largest);
                }
                sums.iter_mut().zip(&*partial_sums).for_each(|(sum, &partial)| *sum += f64::from(partial));
            }
            for ((log_sum, &sum), &largest) in log_sums.iter_mut().zip(&*sums).zip(&*largest) {
                *log_sum = (f64::from(largest) + sum.ln()) as f32;
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use ndarray::Array2;

    use super::*;
    use crate::kernels::dispatch::under_every_instruction_set;
    use crate::kernels::testing::{normal, numerical_gradient, wide};

    fn log_sum(values: impl Iterator<Item = f64>) -> f64 {
        values.map(f64::exp).sum::<f64>().ln()
    }

    /// The sum of the losses by the plain formula.
    fn reference(scores: &[f64], queries: usize, symmetric: bool) -> f64 {
        let documents = scores.len() / queries;
        let at = |query: usize, document: usize| scores[query * documents + document];
        let of_query = |i: usize| log_sum((0..documents).map(|j| at(i, j))) - at(i, i);
        let of_document = |j: usize| log_sum((0..queries).map(|i| at(i, j))) - at(j, j);
        let loss = |i| if symmetric { 0.5 * (of_query(i) + of_document(i)) } else { of_query(i) };
        (0..queries).map(loss).sum()
    }

    #[test]
    fn loss_and_gradient_agree_with_the_plain_formula() {
        for (queries, documents) in [(1, 1), (1, 3), (5, 5), (5, 15), (17, 17), (70, 70), (67, 134)] {
            for symmetric in [false, true] {
                let scores: Vec<f32> = normal(queries * documents, 9).into_iter().map(|x| 3.0 * x).collect();
                let exact = wide(&scores);
                let expected_loss = reference(&exact, queries, symmetric);
                let expected = numerical_gradient(&exact, 1e-4, |scores| 0.5 * reference(scores, queries, symmetric));
                under_every_instruction_set(|set| {
                    let mut loss = InBatchSoftmax::new(70, symmetric);
                    for workers in [1, 2, 3] {
                        let case = format!("{queries} × {documents}, symmetric {symmetric}, {workers}, {set:?}");
                        let mut found = Array2::from_shape_vec((queries, documents), scores.clone()).unwrap();
                        let sum = loss.replace_by_gradient(found.view_mut(), 0.5, Parallelism::workers(workers));
                        assert_eq!(sum.targets, queries as u64);
                        assert!((sum.loss - expected_loss).abs() < 1e-5 * expected_loss.max(1.0), "{case}: {sum:?}");
                        // Other threads would not be under this instruction set.
                        if !symmetric && workers == 1 {
                            let mut parts = Array2::from_shape_vec((queries, documents), scores.clone()).unwrap();
                            for (part, mut rows) in parts.axis_chunks_iter_mut(Axis(0), 3).enumerate() {
                                loss.replace_part_by_gradient(rows.view_mut(), 3 * part, 0.5, Parallelism::SEQUENTIAL);
                            }
                            assert_eq!(parts, found, "{case}");
                        }
                        for (place, (found, expected)) in found.iter().zip(&expected).enumerate() {
                            assert!(
                                (f64::from(*found) - expected).abs() < 3e-6,
                                "{case}, {place}: {found}, {expected}"
                            );
                        }
                    }
                });
            }
        }
    }

    #[test]
    fn the_largest_score_on_the_diagonal_counts_as_correct() {
        for symmetric in [false, true] {
            let mut scores = ndarray::array![[2.0, 1.0, 0.0], [0.0, 1.0, 3.0]];
            let sum =
                InBatchSoftmax::new(2, symmetric).replace_by_gradient(scores.view_mut(), 1.0, Parallelism::SEQUENTIAL);
            assert_eq!((sum.correct, sum.targets), (1, 2));
        }
    }

    #[test]
    #[should_panic(expected = "3 queries of 2 documents")]
    fn fewer_documents_than_queries_panic() {
        InBatchSoftmax::new(3, false).replace_by_gradient(
            Array2::zeros((3, 2)).view_mut(),
            1.0,
            Parallelism::SEQUENTIAL,
        );
    }
}
