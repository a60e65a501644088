//! Draws from a discrete distribution.

/// An alias table (Walker, "An efficient method for generating discrete random variables", 1977, built as by Vose,
/// 1991): draws an index with probability proportional to its weight, in constant time and 8 bytes an index.
#[derive(Clone, Debug)]
pub struct AliasTable {
    /// For each index, the threshold below which a draw stays there, in units of 2⁻³², and where it goes otherwise.
    slots: Vec<(u32, u32)>,
}

impl AliasTable {
    /// The table for these weights.
    ///
    /// # Panics
    /// If there is no weight or more than 2³², a weight is negative or not finite, or their sum is not positive and finite.
    #[must_use]
    pub fn new(weights: &[f64]) -> Self {
        let total: f64 = weights.iter().sum();
        assert!(
            u32::try_from(weights.len()).is_ok()
                && total > 0.0
                && total.is_finite()
                && weights.iter().all(|&w| w >= 0.0),
            "an alias table of {} weights with sum {total}",
            weights.len()
        );
        let mut shares: Vec<f64> = weights.iter().map(|weight| weight / total * weights.len() as f64).collect();
        // What is left in either list at the end has a share of 1 up to rounding, and stays with itself.
        let mut slots: Vec<(u32, u32)> = (0..weights.len() as u32).map(|index| (u32::MAX, index)).collect();
        let (mut small, mut large): (Vec<usize>, Vec<usize>) =
            (0..weights.len()).partition(|&index| shares[index] < 1.0);
        while let (Some(low), Some(&high)) = (small.pop(), large.last()) {
            slots[low] = ((shares[low] * f64::from(u32::MAX)) as u32, high as u32);
            shares[high] -= 1.0 - shares[low];
            if shares[high] < 1.0 {
                large.pop();
                small.push(high);
            }
        }
        Self { slots }
    }

    /// The index that two random words draw.
    #[must_use]
    #[inline]
    pub fn draw(&self, first: u32, second: u32) -> u32 {
        let index = ((u64::from(first) * self.slots.len() as u64) >> 32) as u32;
        let (threshold, alias) = self.slots[index as usize];
        if second < threshold { index } else { alias }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Purpose, Stream};

    #[test]
    fn draws_follow_the_weights() {
        let weights = [5.0, 0.0, 1.0, 0.25, 3.75, 10.0, 0.01];
        let table = AliasTable::new(&weights);
        let stream = Stream::new(1, Purpose::Negatives, 0);
        let (draws, mut counts) = (400_000u32, [0u32; 7]);
        for index in 0..draws {
            let [first, second, ..] = stream.block(index);
            counts[table.draw(first, second) as usize] += 1;
        }
        for (count, weight) in counts.iter().zip(weights) {
            let expected = weight / 20.01 * f64::from(draws);
            assert!((f64::from(*count) - expected).abs() <= 5.0 * expected.sqrt(), "{counts:?}");
        }
    }

    #[test]
    fn one_index_is_always_drawn() {
        let table = AliasTable::new(&[0.3]);
        assert!([0, 1 << 31, u32::MAX].iter().all(|&word| table.draw(word, word) == 0));
    }

    #[test]
    #[should_panic(expected = "an alias table of 2 weights with sum 0")]
    fn weights_without_a_sum_panic() {
        let _ = AliasTable::new(&[0.0, 0.0]);
    }
}
