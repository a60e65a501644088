//! Softmax cross-entropy of a square of scores by rows and by columns at once.
//!
//! The statistics of the columns are taken down the rows, so that memory is read in its order.

use super::cross_entropy::{RowLoss, exponential_sum};
use super::dispatch::kernel;
use super::exp::exp_flushed;
use super::lanes::larger;
use super::softmax::largest;

kernel! {
    /// largest ← max(largest, row), elementwise; passes over a NaN in `row`.
    ///
    /// # Panics
    /// If the lengths differ.
    pub(crate) fn larger_assign<T>(largest: &mut [f32], row: &[f32]) {
        assert_eq!(largest.len(), row.len(), "larger_assign: lengths");
        for (largest, &x) in largest.iter_mut().zip(row) {
            *largest = larger(x, *largest);
        }
    }

    /// sums ← sums + e^(row − shifts), elementwise; no exponent may exceed 88.
    ///
    /// # Panics
    /// If the lengths differ.
    pub(crate) fn add_exponentials<T>(sums: &mut [f32], row: &[f32], shifts: &[f32]) {
        assert!(sums.len() == row.len() && row.len() == shifts.len(), "add_exponentials: lengths");
        for ((sum, &x), &shift) in sums.iter_mut().zip(row).zip(shifts) {
            *sum += exp_flushed::<T>(x - shift);
        }
    }

    /// The loss of a row of scores s and of the column of its target t, l = (ln Σ_j e^(s_j) − s_t) + (c_t − s_t), where
    /// c_j is ln Σ e^s of column j; `scores` ← weight·(softmax(s)_j + e^(s_j − c_j) − 2·[j = t]). Scores beyond
    /// `column_log_sums` have no part of their column.
    ///
    /// Summed over all rows, that is the gradient of the sum of all l. A score that is NaN or +∞ makes the row NaN.
    ///
    /// # Panics
    /// If `target` is not below the number of columns, or there are more columns than scores.
    pub(crate) fn symmetric_row<T>(
        scores: &mut [f32], target: usize, column_log_sums: &[f32], weight: f32,
    ) -> RowLoss {
        let columns = column_log_sums.len();
        assert!(target < columns && columns <= scores.len(), "symmetric_row: {target} of {columns} columns");
        let shift = largest(scores);
        let target_score = scores[target];
        let correct = target_score == shift && scores[..target].iter().all(|&x| x != shift);
        let mut sum = 0.0;
        for chunk in scores.chunks(4096) {
            sum += f64::from(exponential_sum::<T>(chunk, shift));
        }
        let log_sum = f64::from(shift) + sum.ln();
        let factor = (f64::from(weight) / sum) as f32;
        let (both, row_only) = scores.split_at_mut(columns);
        for (x, &column) in both.iter_mut().zip(column_log_sums) {
            let by_column = weight * exp_flushed::<T>(*x - column);
            *x = T::multiply_add(factor, exp_flushed::<T>(*x - shift), by_column);
        }
        for x in row_only {
            *x = factor * exp_flushed::<T>(*x - shift);
        }
        scores[target] -= 2.0 * weight;
        let target_score = f64::from(target_score);
        RowLoss { loss: log_sum - target_score + (f64::from(column_log_sums[target]) - target_score), correct }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::{check_every_set, lengths, normal, wide};

    #[test]
    fn column_statistics_match_at_every_length() {
        check_every_set(|report| {
            for length in lengths() {
                let (x, y) = (normal(length, 1), normal(length, 2));
                let mut most = y.clone();
                larger_assign(&mut most, &x);
                let expected: Vec<f32> = x.iter().zip(&y).map(|(&x, &y)| x.max(y)).collect();
                report.same_bits(&format!("larger, length {length}"), &most, &expected);
                let mut sums = vec![1.0; length];
                add_exponentials(&mut sums, &x, &most);
                let expected: Vec<f64> =
                    wide(&x).iter().zip(wide(&most)).map(|(x, most)| 1.0 + (x - most).exp()).collect();
                report.close(&format!("sums, length {length}"), &sums, &expected, |_, _| 4e-7);
            }
        });
    }

    #[test]
    fn a_row_matches_the_formula_at_every_length() {
        check_every_set(|report| {
            for length in lengths().filter(|&length| length > 0 && length < 200) {
                for columns in [1, length.div_ceil(2), length] {
                    let scores = normal(length, 3);
                    let columns_of: Vec<f32> =
                        scores[..columns].iter().zip(normal(columns, 4)).map(|(s, x)| s + x.abs()).collect();
                    let target = columns / 2;
                    let wide_scores = wide(&scores);
                    let sum: f64 = wide_scores.iter().map(|s| s.exp()).sum();
                    let expected: Vec<f64> = (0..length)
                        .map(|j| {
                            let column = columns_of.get(j).map_or(0.0, |&c| (wide_scores[j] - f64::from(c)).exp());
                            let hit = if j == target { 2.0 } else { 0.0 };
                            0.7 * (wide_scores[j].exp() / sum + column - hit)
                        })
                        .collect();
                    let mut found = scores.clone();
                    let loss = symmetric_row(&mut found, target, &columns_of, 0.7).loss;
                    let case = format!("length {length}, {columns} columns");
                    report.close(&case, &found, &expected, |_, _| 1e-6);
                    let wanted = sum.ln() + f64::from(columns_of[target]) - 2.0 * wide_scores[target];
                    report.check((loss - wanted).abs() < 1e-5, || format!("{case}: loss {loss} for {wanted}"));
                }
            }
        });
    }
}
