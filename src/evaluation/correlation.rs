//! Correlation of ranks.

/// Spearman's rank correlation of two samples: the Pearson correlation of their ranks, equal values sharing the mean of
/// theirs. Not a number if there are fewer than two values, if all of a sample are equal, or if one is not a number.
///
/// ```
/// use cllm::evaluation::spearman;
///
/// assert!((spearman(&[1.0, 2.0, 3.0], &[10.0, 20.0, 90.0]) - 1.0).abs() < 1e-12);
/// // Ranks 1, 2.5, 2.5, 4 and 1, 2, 3, 4.
/// assert!((spearman(&[1.0, 5.0, 5.0, 7.0], &[1.0, 2.0, 3.0, 4.0]) - 0.9_f64.sqrt()).abs() < 1e-12);
/// ```
///
/// # Panics
/// If the lengths differ.
#[must_use]
#[track_caller]
pub fn spearman(x: &[f64], y: &[f64]) -> f64 {
    assert_eq!(x.len(), y.len(), "spearman: lengths of x and y");
    if x.iter().chain(y).any(|value| value.is_nan()) {
        return f64::NAN;
    }
    pearson(&ranks(x), &ranks(y))
}

/// The rank of each value, counted from 1.
fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_unstable_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0.0; values.len()];
    let mut before = 0;
    for equal in order.chunk_by(|&a, &b| values[a] == values[b]) {
        // The ranks before + 1 to before + n, on average.
        let rank = before as f64 + (equal.len() + 1) as f64 / 2.0;
        equal.iter().for_each(|&index| ranks[index] = rank);
        before += equal.len();
    }
    ranks
}

fn pearson(x: &[f64], y: &[f64]) -> f64 {
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let (mean_x, mean_y) = (mean(x), mean(y));
    let (mut covariance, mut variance_x, mut variance_y) = (0.0, 0.0, 0.0);
    for (x, y) in x.iter().zip(y) {
        covariance += (x - mean_x) * (y - mean_y);
        variance_x += (x - mean_x).powi(2);
        variance_y += (y - mean_y).powi(2);
    }
    covariance / (variance_x.sqrt() * variance_y.sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_of_equal_values_are_shared() {
        assert_eq!(ranks(&[3.0, 1.0, 3.0, 3.0, 2.0]), [4.0, 1.0, 4.0, 4.0, 2.0]);
        assert_eq!(ranks(&[0.0, -0.0]), [1.5, 1.5]);
    }

    #[test]
    fn the_figures_are_those_of_scipy() {
        // scipy.stats.spearmanr, 1.17.
        let x =
            [7.35, 10.0, 7.46, 7.62, 7.58, 5.77, 6.31, 7.5, 6.77, 7.42, 6.85, 6.19, 5.92, 7.0, 6.62, 6.81, 4.62, 5.81];
        let y = [0.5, 1.0, 0.3, 0.5, 0.3, 0.1, 0.1, 0.4, 0.9, 0.2, 0.6, 0.6, -0.2, 0.3, 0.3, 0.1, 0.0, -0.1];
        assert!((spearman(&x, &y) - SCIPY).abs() < 1e-12, "{}", spearman(&x, &y));
        assert!((spearman(&y, &x) - SCIPY).abs() < 1e-12);
        let negative: Vec<f64> = x.iter().map(|x| -x).collect();
        assert!((spearman(&negative, &y) + SCIPY).abs() < 1e-12);
    }

    const SCIPY: f64 = 0.592_112_088_317_541_8;

    #[test]
    fn what_has_no_correlation_is_not_a_number() {
        assert!(spearman(&[], &[]).is_nan());
        assert!(spearman(&[1.0], &[1.0]).is_nan());
        assert!(spearman(&[1.0, 1.0], &[1.0, 2.0]).is_nan());
        assert!(spearman(&[1.0, f64::NAN], &[1.0, 2.0]).is_nan());
    }
}
