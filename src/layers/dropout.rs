//! Dropout (Srivastava et al., 2014) with masks that are recomputed instead of stored.
//!
//! Whether a value is dropped is a pure function of (seed, step, site, index), so the backward pass draws the forward's
//! mask again, and the split of a batch over workers does not change it. Kept values are scaled by 1 / (1 − p).

use crate::rng::{Purpose, Stream};

/// The dropout masks of one training step.
#[derive(Clone, Copy, Debug)]
pub struct Masks {
    seed: u64,
    step: u64,
}

/// A place in the model where values are dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Site {
    /// The embedded input.
    Embedding,
    /// The attention weights of a block.
    Attention(usize),
    /// What a block's attention adds to the residual stream.
    AttentionResidual(usize),
    /// What a block's feed-forward adds to the residual stream.
    FeedForwardResidual(usize),
}

impl Site {
    /// 14 bits: three lanes a block.
    fn lane(self) -> u16 {
        let lane = match self {
            Self::Embedding => 0,
            Self::Attention(block) => 1 + 3 * block,
            Self::AttentionResidual(block) => 2 + 3 * block,
            Self::FeedForwardResidual(block) => 3 + 3 * block,
        };
        u16::try_from(lane).expect("a checked config has fewer blocks")
    }
}

impl Masks {
    /// The masks of step `step` under `seed`.
    #[must_use]
    pub fn new(seed: u64, step: u64) -> Self {
        Self { seed, step }
    }

    /// Drops each of `values` with `probability` and scales the rest. Their indices at the site begin at `first`.
    pub fn apply(&self, site: Site, probability: f32, first: u64, values: &mut [f32]) {
        if probability == 0.0 {
            return;
        }
        let stream = Stream::with_lane(self.seed, Purpose::Dropout, site.lane(), self.step);
        let threshold = (f64::from(probability) * 2f64.powi(32)) as u32;
        let scale = 1.0 / (1.0 - probability);
        let drop = |value: &mut f32, word: u32| *value = if word < threshold { 0.0 } else { *value * scale };
        let head = ((4 - first % 4) % 4).min(values.len() as u64) as usize;
        let (start, rest) = values.split_at_mut(head);
        for (offset, value) in start.iter_mut().enumerate() {
            drop(value, stream.u32_at(first + offset as u64));
        }
        for (block, chunk) in ((first + head as u64) / 4..).zip(rest.chunks_mut(4)) {
            for (value, word) in chunk.iter_mut().zip(stream.block(block as u32)) {
                drop(value, word);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_does_not_depend_on_how_it_is_cut() {
        let masks = Masks::new(5, 2);
        let mut whole = vec![1.0; 103];
        masks.apply(Site::AttentionResidual(3), 0.3, 1001, &mut whole);
        for cut in 0..103 {
            let mut parts = vec![1.0; 103];
            let (left, right) = parts.split_at_mut(cut);
            masks.apply(Site::AttentionResidual(3), 0.3, 1001, left);
            masks.apply(Site::AttentionResidual(3), 0.3, 1001 + cut as u64, right);
            assert_eq!(whole, parts, "cut at {cut}");
        }
    }

    #[test]
    fn drops_the_asked_share_and_keeps_the_mean() {
        let mut values = vec![1.0; 100_000];
        Masks::new(1, 1).apply(Site::Embedding, 0.2, 0, &mut values);
        let kept = values.iter().filter(|&&value| value == 1.25).count();
        let dropped = values.iter().filter(|&&value| value == 0.0).count();
        assert_eq!(kept + dropped, values.len());
        assert!((19_500..20_500).contains(&dropped), "{dropped} dropped");
    }

    #[test]
    fn sites_have_masks_of_their_own() {
        let mask = |site| {
            let mut values = vec![1.0; 64];
            Masks::new(1, 1).apply(site, 0.5, 0, &mut values);
            values
        };
        let sites = [
            Site::Embedding,
            Site::Attention(0),
            Site::AttentionResidual(0),
            Site::FeedForwardResidual(0),
            Site::Attention(1),
        ];
        for (index, &site) in sites.iter().enumerate() {
            for &other in &sites[..index] {
                assert_ne!(mask(site), mask(other), "{site:?} and {other:?}");
            }
        }
    }
}
