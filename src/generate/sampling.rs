//! Drawing a token from scores.

use std::cmp::Ordering;

use serde::{Deserialize, Serialize};

use crate::kernels::exp::exp;
use crate::kernels::reduce::all_finite;
use crate::rng::{Purpose, Stream};
use crate::{Error, Result};

/// How a token is drawn from scores s.
///
/// Token i is drawn with probability softmax(s / temperature)_i, renormalised over the tokens that the cuts leave: first
/// the k highest scores (top-k; Fan, Lewis and Dauphin, "Hierarchical neural story generation", 2018), then, of those,
/// the smallest set of the most probable whose probabilities sum to p (top-p; Holtzman et al., "The curious case of
/// neural text degeneration", 2020). Among equal scores the lower id counts as the higher.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sampling {
    /// Divides the scores: below 1 sharpens, above 1 flattens; 0 always takes the highest score.
    pub temperature: f32,
    /// Only this many of the highest scores are drawn from.
    pub top_k: Option<usize>,
    /// Only the most probable tokens that together have this probability are drawn from.
    pub top_p: Option<f32>,
    /// Seed of the draws. A draw is a function of the seed and the token's position.
    pub seed: u64,
}

impl Default for Sampling {
    /// The model's own distribution, uncut.
    fn default() -> Self {
        Self { temperature: 1.0, top_k: None, top_p: None, seed: 0 }
    }
}

impl Sampling {
    /// Checks every value.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] for the first value outside its domain.
    pub fn validate(&self) -> Result<()> {
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return Err(Error::config("temperature", self.temperature, "must be finite and at least 0"));
        }
        if self.top_k == Some(0) {
            return Err(Error::config("top_k", 0, "must be at least 1, or left out"));
        }
        match self.top_p {
            Some(p) if !(p > 0.0 && p <= 1.0) => {
                Err(Error::config("top_p", p, "must be above 0 and at most 1, or left out"))
            }
            _ => Ok(()),
        }
    }
}

/// The buffers of a draw.
#[derive(Debug)]
pub(super) struct Sampler {
    /// Probabilities up to a common factor; 0 where a token is cut.
    weights: Vec<f32>,
    /// Tokens, the highest scores first as far as a cut needs it.
    order: Vec<u32>,
}

impl Sampler {
    pub fn new(vocabulary_size: usize) -> Self {
        Self { weights: vec![0.0; vocabulary_size], order: vec![0; vocabulary_size] }
    }

    /// Draws the token at `position`. `sampling` is valid.
    pub fn draw(&mut self, scores: &[f32], sampling: &Sampling, position: u64) -> Result<u32> {
        if !all_finite(scores) {
            let token = scores.iter().position(|score| !score.is_finite()).expect("a score is not finite");
            return Err(Error::NonFiniteScore { position, token: token as u32, value: scores[token] });
        }
        let highest = (0..scores.len() as u32).min_by(|a, b| by_score(scores, a, b)).expect("a vocabulary has a token");
        if sampling.temperature == 0.0 {
            return Ok(highest);
        }
        // Subtracted before the division, which may then overflow only to −∞.
        for (weight, score) in self.weights.iter_mut().zip(scores) {
            *weight = (score - scores[highest as usize]) / sampling.temperature;
        }
        exp(&mut self.weights);
        self.cut(scores, sampling);
        Ok(pick(&self.weights, uniform(sampling.seed, position)))
    }

    /// Sets the weights of tokens that are not to be drawn to 0.
    fn cut(&mut self, scores: &[f32], sampling: &Sampling) {
        let vocabulary = scores.len();
        let mut kept = vocabulary;
        if sampling.top_k.is_some() || sampling.top_p.is_some() {
            for (token, id) in self.order.iter_mut().zip(0..) {
                *token = id;
            }
        }
        if let Some(k) = sampling.top_k.filter(|&k| k < vocabulary) {
            self.order.select_nth_unstable_by(k - 1, |a, b| by_score(scores, a, b));
            kept = k;
        }
        if let Some(p) = sampling.top_p {
            let weights = &self.weights;
            let mass = |tokens: &[u32]| tokens.iter().map(|&token| f64::from(weights[token as usize])).sum::<f64>();
            let order = &mut self.order[..kept];
            let mut missing = f64::from(p) * mass(order);
            // The last token to keep lies in low..high; each round selects that range's better half.
            let (mut low, mut high) = (0, kept);
            while high - low > 1 {
                let half = (high - low) / 2;
                order[low..high].select_nth_unstable_by(half, |a, b| by_score(scores, a, b));
                let better = mass(&order[low..low + half]);
                if better >= missing {
                    high = low + half;
                } else {
                    missing -= better;
                    low += half;
                }
            }
            kept = high;
        }
        if kept < vocabulary {
            for &token in &self.order[kept..] {
                self.weights[token as usize] = 0.0;
            }
        }
    }
}

/// Higher scores first, then lower ids.
fn by_score(scores: &[f32], a: &u32, b: &u32) -> Ordering {
    scores[*b as usize].total_cmp(&scores[*a as usize]).then(a.cmp(b))
}

/// A number in [0, 1) with 53 random bits.
fn uniform(seed: u64, position: u64) -> f64 {
    let draw = Stream::new(seed, Purpose::Sampling, position).u64_at(0);
    (draw >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
}

/// The index at which the running sum of the weights passes `uniform` times their sum.
fn pick(weights: &[f32], uniform: f64) -> u32 {
    let threshold = uniform * weights.iter().copied().map(f64::from).sum::<f64>();
    let (mut sum, mut picked) = (0.0, 0);
    for (index, &weight) in weights.iter().enumerate().filter(|(_, weight)| **weight > 0.0) {
        // Kept in case that the product above was rounded up to the sum.
        picked = index;
        sum += f64::from(weight);
        if sum > threshold {
            break;
        }
    }
    picked as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    const DRAWS: u64 = 40_000;
    const SCORES: [f32; 7] = [0.1, 2.0, -1.0, 2.0, 0.7, -4.0, 1.3];

    /// Shares of the tokens in many draws.
    fn shares(scores: &[f32], sampling: Sampling) -> Vec<f64> {
        let mut sampler = Sampler::new(scores.len());
        let mut counts = vec![0u32; scores.len()];
        for position in 0..DRAWS {
            counts[sampler.draw(scores, &sampling, position).unwrap() as usize] += 1;
        }
        counts.iter().map(|&count| f64::from(count) / DRAWS as f64).collect()
    }

    /// softmax(scores / temperature) over `kept`, 0 elsewhere.
    fn expected(scores: &[f32], temperature: f64, kept: &[usize]) -> Vec<f64> {
        let weight = |i: usize| if kept.contains(&i) { (f64::from(scores[i]) / temperature).exp() } else { 0.0 };
        let sum: f64 = (0..scores.len()).map(weight).sum();
        (0..scores.len()).map(|i| weight(i) / sum).collect()
    }

    #[track_caller]
    fn check(sampling: Sampling, kept: &[usize]) {
        let expected = expected(&SCORES, f64::from(sampling.temperature), kept);
        let found = shares(&SCORES, sampling);
        for (token, (&found, &expected)) in found.iter().zip(&expected).enumerate() {
            // Five standard deviations; a token that is cut must never come.
            let deviation = (expected * (1.0 - expected) / DRAWS as f64).sqrt();
            assert!((found - expected).abs() <= 5.0 * deviation, "token {token}: {found} for {expected}");
            assert!(!kept.contains(&token) || found > 0.0, "token {token} never came");
        }
    }

    #[test]
    fn frequencies_are_those_of_the_softmax() {
        let all = [0, 1, 2, 3, 4, 5, 6];
        check(Sampling::default(), &all);
        check(Sampling { temperature: 2.5, seed: 1, ..Sampling::default() }, &all);
        check(Sampling { temperature: 0.7, top_k: Some(100), top_p: Some(1.0), ..Sampling::default() }, &all);
    }

    #[test]
    fn top_k_keeps_the_highest_scores_and_the_lower_id_of_equal_ones() {
        check(Sampling { top_k: Some(1), ..Sampling::default() }, &[1]);
        check(Sampling { top_k: Some(2), ..Sampling::default() }, &[1, 3]);
        check(Sampling { top_k: Some(4), ..Sampling::default() }, &[1, 3, 4, 6]);
    }

    #[test]
    fn top_p_keeps_the_smallest_set_that_reaches_p() {
        // In order: 1, 3, 6, 4, 0, 2, 5 with cumulative probabilities .337, .673, .840, .932, .982, .9992, 1.
        let sets: [(f32, &[usize]); 7] = [
            (1e-6, &[1]),
            (0.33, &[1]),
            (0.36, &[1, 3]),
            (0.66, &[1, 3]),
            (0.70, &[1, 3, 6]),
            (0.90, &[1, 3, 6, 4]),
            (0.95, &[1, 3, 6, 4, 0]),
        ];
        for (p, kept) in sets {
            check(Sampling { top_p: Some(p), ..Sampling::default() }, kept);
        }
    }

    #[test]
    fn top_p_counts_probabilities_after_top_k_and_temperature() {
        // Of the three highest, 1 and 3 have .801 together, though only .673 of the whole.
        check(Sampling { top_k: Some(3), top_p: Some(0.81), ..Sampling::default() }, &[1, 3, 6]);
        check(Sampling { top_k: Some(3), top_p: Some(0.79), ..Sampling::default() }, &[1, 3]);
        // At temperature 0.1 the two highest have .999 together.
        check(Sampling { temperature: 0.1, top_p: Some(0.9), ..Sampling::default() }, &[1, 3]);
    }

    /// The selection by halves against a full sort, on more scores.
    #[test]
    fn top_p_cuts_where_a_sort_would() {
        let mut scores = vec![0.0; 777];
        Stream::new(5, Purpose::Caller, 0).fill_normal(&mut scores, 2.0);
        for index in 0..100 {
            scores[3 * index] = scores[index];
        }
        for p in [0.01, 0.1, 0.33, 0.5, 0.75, 0.9, 0.99, 0.9999] {
            let mut order: Vec<u32> = (0..777).collect();
            order.sort_by(|&a, &b| scores[b as usize].partial_cmp(&scores[a as usize]).unwrap().then(a.cmp(&b)));
            let probabilities = expected(&scores, 1.0, &(0..777).collect::<Vec<_>>());
            let mut sum = 0.0;
            let kept = 1 + order
                .iter()
                .position(|&token| {
                    sum += probabilities[token as usize];
                    sum >= f64::from(p)
                })
                .unwrap();
            let mut sampler = Sampler::new(777);
            sampler.draw(&scores, &Sampling { top_p: Some(p), ..Sampling::default() }, 0).unwrap();
            for (rank, &token) in order.iter().enumerate() {
                let weight = sampler.weights[token as usize];
                assert_eq!(weight > 0.0, rank < kept, "p = {p}: rank {rank} of {kept} kept has weight {weight}");
            }
        }
    }

    #[test]
    fn temperature_0_and_nearly_0_take_the_maximum() {
        let mut sampler = Sampler::new(4);
        for temperature in [0.0, 1e-45, 1e-30] {
            for position in 0..50 {
                let sampling = Sampling { temperature, ..Sampling::default() };
                assert_eq!(sampler.draw(&[-3.0, 5.0, 5.5, 1.0], &sampling, position).unwrap(), 2);
                assert_eq!(sampler.draw(&[f32::MIN, f32::MAX, 0.0, 0.0], &sampling, position).unwrap(), 1);
            }
        }
        let greedy = Sampling { temperature: 0.0, ..Sampling::default() };
        assert_eq!(sampler.draw(&[0.0, 7.0, 7.0, 1.0], &greedy, 0).unwrap(), 1);
    }

    #[test]
    fn the_largest_draw_picks_a_token_that_can_come() {
        assert_eq!(pick(&[0.25, 1.0, 0.3, 0.0], 1.0 - f64::EPSILON / 2.0), 2);
        assert_eq!(pick(&[0.0, 1.0, 0.3, 0.0], 0.0), 1);
        assert_eq!(pick(&[0.3, 1.0, 0.0], 1.0), 1);
    }

    #[test]
    fn scores_that_are_not_finite_are_an_error() {
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for temperature in [0.0, 1.0] {
                let sampling = Sampling { temperature, ..Sampling::default() };
                let error = Sampler::new(3).draw(&[1.0, value, 0.0], &sampling, 9).unwrap_err();
                let Error::NonFiniteScore { position: 9, token: 1, value: found } = error else { panic!("{error}") };
                assert_eq!(found.to_bits(), value.to_bits());
            }
        }
    }

    #[test]
    fn values_outside_their_domain_are_errors() {
        let valid = Sampling::default();
        let invalid = [
            ("temperature", Sampling { temperature: -0.1, ..valid }),
            ("temperature", Sampling { temperature: f32::NAN, ..valid }),
            ("temperature", Sampling { temperature: f32::INFINITY, ..valid }),
            ("top_k", Sampling { top_k: Some(0), ..valid }),
            ("top_p", Sampling { top_p: Some(0.0), ..valid }),
            ("top_p", Sampling { top_p: Some(1.1), ..valid }),
            ("top_p", Sampling { top_p: Some(f32::NAN), ..valid }),
        ];
        assert!(valid.validate().is_ok());
        for (expected, sampling) in invalid {
            let error = sampling.validate().unwrap_err();
            let Error::InvalidConfig { name, .. } = error else { panic!("{error}") };
            assert_eq!(name, expected);
        }
    }
}
