//! Counter-based random numbers: every draw is a pure function of (seed, stream, step, index).
//!
//! The generator is Philox4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3",
//! SC 2011). It has no hidden state, so there is nothing to save in a checkpoint beyond the seed and the step, and two
//! workers that draw different indices never have to agree on an order.

use std::f32::consts::TAU;

/// What a stream of random numbers is for. Streams with different purposes never overlap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Purpose {
    /// Initial parameters; the step is the parameter's index.
    Initialisation = 1,
    /// Offsets of random training sequences.
    BatchOffsets = 2,
    /// Order of sequences in a shuffled epoch; the step is the epoch.
    EpochOrder = 3,
    /// Dropout masks.
    Dropout = 4,
    /// Sampling from a model.
    Sampling = 5,
    /// Draws of negative examples.
    Negatives = 6,
    /// Subsampling of frequent words.
    Subsampling = 7,
    /// Widths of skip-gram windows.
    Windows = 8,
    /// Anything a caller draws for its own use.
    Caller = 1 << 16,
}

/// One stream of random numbers, addressed by index.
///
/// ```
/// use cllm::rng::{Purpose, Stream};
/// let stream = Stream::new(42, Purpose::Caller, 7);
/// assert_eq!(stream.u32_at(3), Stream::new(42, Purpose::Caller, 7).u32_at(3));
/// assert_ne!(stream.u32_at(3), stream.u32_at(4));
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Stream {
    key: [u32; 2],
    purpose: u32,
    step: u64,
}

impl Stream {
    /// The stream of `purpose` at `step` under `seed`.
    #[must_use]
    pub fn new(seed: u64, purpose: Purpose, step: u64) -> Self {
        Self::with_lane(seed, purpose, 0, step)
    }

    /// As [`Stream::new`], with a further 16-bit coordinate, such as a layer.
    #[must_use]
    pub fn with_lane(seed: u64, purpose: Purpose, lane: u16, step: u64) -> Self {
        Self {
            key: [seed as u32, (seed >> 32) as u32],
            purpose: (purpose as u32).wrapping_add((lane as u32) << 17),
            step,
        }
    }

    /// Four random words: block `block` of the stream.
    #[must_use]
    #[inline(always)]
    pub fn block(&self, block: u32) -> [u32; 4] {
        philox([block, self.step as u32, (self.step >> 32) as u32, self.purpose], self.key)
    }

    /// The `index`-th word of the stream; indices run to 2³⁴.
    #[must_use]
    pub fn u32_at(&self, index: u64) -> u32 {
        self.block((index / 4) as u32)[(index % 4) as usize]
    }

    /// The `index`-th 64-bit number of the stream.
    #[must_use]
    pub fn u64_at(&self, index: u64) -> u64 {
        let block = self.block((index / 2) as u32);
        let half = 2 * (index % 2) as usize;
        u64::from(block[half]) | u64::from(block[half + 1]) << 32
    }

    /// The `index`-th draw, uniform in 0..bound, by the high half of a 64-bit product (bias below bound / 2⁶⁴).
    ///
    /// # Panics
    /// If `bound` is 0.
    #[must_use]
    pub fn below(&self, index: u64, bound: u64) -> u64 {
        assert!(bound > 0, "a draw below 0");
        ((u128::from(self.u64_at(index)) * u128::from(bound)) >> 64) as u64
    }

    /// The `index`-th draw, uniform in [0, 1) on a grid of 2⁻²⁴.
    #[must_use]
    pub fn uniform(&self, index: u64) -> f32 {
        unit(self.u32_at(index))
    }

    /// Fills `out` with normal draws of mean 0 and the given standard deviation (Box–Muller).
    pub fn fill_normal(&self, out: &mut [f32], standard_deviation: f32) {
        for (block, chunk) in out.chunks_mut(4).enumerate() {
            let words = self.block(block as u32);
            let mut draws = [0.0f32; 4];
            for pair in 0..2 {
                // 1 − u lies in (0, 1], so the logarithm is finite.
                let radius = (-2.0 * (1.0 - unit(words[2 * pair])).ln()).sqrt();
                let (sine, cosine) = (TAU * unit(words[2 * pair + 1])).sin_cos();
                draws[2 * pair] = radius * cosine;
                draws[2 * pair + 1] = radius * sine;
            }
            for (value, draw) in chunk.iter_mut().zip(draws) {
                *value = standard_deviation * draw;
            }
        }
    }
}

fn unit(word: u32) -> f32 {
    (word >> 8) as f32 * (1.0 / (1 << 24) as f32)
}

#[inline(always)]
fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let first = u64::from(counter[0]) * 0xD251_1F53;
        let second = u64::from(counter[2]) * 0xCD9E_8D57;
        counter = [
            (second >> 32) as u32 ^ counter[1] ^ key[0],
            second as u32,
            (first >> 32) as u32 ^ counter[3] ^ key[1],
            first as u32,
        ];
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    counter
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers distributed with the reference implementation (Random123, `kat_vectors`).
    #[test]
    fn philox_matches_the_known_answers() {
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox([u32::MAX; 4], [u32::MAX; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        assert_eq!(
            philox([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn normal_draws_have_the_asked_moments() {
        let mut draws = vec![0.0; 100_001];
        Stream::new(1, Purpose::Initialisation, 0).fill_normal(&mut draws, 0.5);
        let mean = draws.iter().map(|&x| f64::from(x)).sum::<f64>() / draws.len() as f64;
        let variance = draws.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / draws.len() as f64;
        assert!(mean.abs() < 0.006, "mean {mean}");
        assert!((variance - 0.25).abs() < 0.005, "variance {variance}");
    }

    #[test]
    fn draws_below_a_bound_cover_it_evenly() {
        let stream = Stream::new(9, Purpose::BatchOffsets, 3);
        let mut counts = [0u32; 7];
        for index in 0..70_000 {
            counts[stream.below(index, 7) as usize] += 1;
        }
        assert!(counts.iter().all(|&count| (9_600..10_400).contains(&count)), "{counts:?}");
    }

    #[test]
    fn lanes_purposes_steps_and_seeds_give_different_streams() {
        let draws = [
            Stream::new(1, Purpose::Dropout, 1),
            Stream::new(2, Purpose::Dropout, 1),
            Stream::new(1 << 32 | 1, Purpose::Dropout, 1),
            Stream::new(1, Purpose::Sampling, 1),
            Stream::new(1, Purpose::Dropout, 2),
            Stream::new(1, Purpose::Dropout, 1 << 32 | 1),
            Stream::with_lane(1, Purpose::Dropout, 1, 1),
        ]
        .map(|stream| stream.u64_at(0));
        for (index, draw) in draws.iter().enumerate() {
            assert!(!draws[..index].contains(draw), "stream {index} repeats another");
        }
    }
}
