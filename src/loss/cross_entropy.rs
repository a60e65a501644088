//! Softmax cross-entropy over the vocabulary.
//!
//! For scores s and target t: loss = −ln softmax(s)ₜ, gradient = softmax(s) − onehot(t). With label smoothing ε the
//! target distribution is (1 − ε)·onehot(t) + ε/V (Szegedy et al., 2016). Targets equal to the ignore id count neither
//! in the loss nor in the gradient.

use ndarray::{ArrayView2, ArrayViewMut2};

use crate::kernels::cross_entropy::{cross_entropy_row, cross_entropy_row_loss};
use crate::parallel::{Parallelism, map_rows};

/// How scores are compared with targets.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CrossEntropy {
    /// Targets with this id do not count.
    pub ignore_id: Option<u32>,
    /// Share of the target's probability that is spread evenly over the vocabulary.
    pub label_smoothing: f32,
}

/// Sums over the targets that count.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LossSum {
    /// Sum of the losses, in nats.
    pub loss: f64,
    /// How many targets have the highest score.
    pub correct: u64,
    /// How many targets are among the k highest scores; counted by [`CrossEntropy::evaluate`] only.
    pub correct_in_top_k: u64,
    /// How many targets count.
    pub targets: u64,
}

impl std::ops::Add for LossSum {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            loss: self.loss + other.loss,
            correct: self.correct + other.correct,
            correct_in_top_k: self.correct_in_top_k + other.correct_in_top_k,
            targets: self.targets + other.targets,
        }
    }
}

impl CrossEntropy {
    /// scores ← `weight` · d(loss)/d(scores), one target a row; returns the sums. Rows of ignored targets become 0.
    ///
    /// # Panics
    /// If the number of targets is not the number of rows, or a target that counts is not a column.
    pub fn replace_by_gradient(
        &self,
        scores: ArrayViewMut2<'_, f32>,
        targets: &[u32],
        weight: f32,
        parallelism: Parallelism,
    ) -> LossSum {
        assert_eq!(targets.len(), scores.nrows(), "one target a row");
        let work = |(mut scores, targets): (ArrayViewMut2<'_, f32>, &[u32])| {
            let mut sum = LossSum::default();
            for (mut row, &target) in scores.rows_mut().into_iter().zip(targets) {
                let row = row.as_slice_mut().expect("a row of scores is contiguous");
                if Some(target) == self.ignore_id {
                    row.fill(0.0);
                    continue;
                }
                let found = cross_entropy_row(row, target as usize, self.label_smoothing, weight);
                sum.loss += found.loss;
                sum.correct += u64::from(found.correct);
                sum.targets += 1;
            }
            sum
        };
        map_rows(parallelism, targets.len(), (scores, targets), &work, &|a, b| a + b)
    }

    /// The sums alone, with the count of targets among the `top_k` highest scores.
    ///
    /// # Panics
    /// As [`CrossEntropy::replace_by_gradient`].
    #[must_use]
    pub fn evaluate(
        &self,
        scores: ArrayView2<'_, f32>,
        targets: &[u32],
        top_k: usize,
        parallelism: Parallelism,
    ) -> LossSum {
        assert_eq!(targets.len(), scores.nrows(), "one target a row");
        let work = |(scores, targets): (ArrayView2<'_, f32>, &[u32])| {
            let mut sum = LossSum::default();
            for (row, &target) in scores.rows().into_iter().zip(targets) {
                if Some(target) == self.ignore_id {
                    continue;
                }
                let row = row.to_slice().expect("a row of scores is contiguous");
                let (loss, rank) = cross_entropy_row_loss(row, target as usize, self.label_smoothing);
                sum.loss += loss;
                sum.correct += u64::from(rank == 0);
                sum.correct_in_top_k += u64::from(rank < top_k);
                sum.targets += 1;
            }
            sum
        };
        map_rows(parallelism, targets.len(), (scores, targets), &work, &|a, b| a + b)
    }
}
