//! Settings of models and of training: plain serde structs, checked by `validate` before anything is allocated.

mod non_finite;
mod pair_training;
mod preset;
mod similarity;
mod training;
mod transformer;
mod word_training;

pub(crate) use non_finite::NonFinitePolicy;
pub use non_finite::OnNonFinite;
pub use pair_training::{PairEncoderConfig, PairTrainingConfig};
pub use preset::Preset;
pub use similarity::SimilarityConfig;
pub use training::{Optimizer, Schedule, Sharding, TrainingConfig};
pub use transformer::TransformerConfig;
pub use word_training::{SubwordConfig, WordObjective, WordTrainingConfig, WorkerMode};

use crate::{Error, Result};

fn positive(name: &'static str, value: usize) -> Result<()> {
    if value == 0 { Err(Error::config(name, value, "must be at least 1")) } else { Ok(()) }
}

/// As short as it can be said: 1, 0.5, 1e-30.
fn number(value: f64) -> String {
    let text = format!("{value:?}");
    text.strip_suffix(".0").unwrap_or(&text).to_owned()
}

/// `value` must be finite and within `low..=high`.
fn within(name: &'static str, value: f64, low: f64, high: f64) -> Result<()> {
    if (low..=high).contains(&value) && value.is_finite() {
        return Ok(());
    }
    let expected = match (low, high) {
        (low, f64::INFINITY) => format!("must be finite and at least {}", number(low)),
        _ => format!("must lie between {} and {}", number(low), number(high)),
    };
    Err(Error::config(name, number(value), expected))
}

/// A learning rate must be greater than 0, and finite as f32.
fn learning_rate(value: f64) -> Result<()> {
    if value > 0.0 && value <= f32::MAX.into() {
        Ok(())
    } else {
        let expected = format!("must be greater than 0 and at most {:?}", f32::MAX);
        Err(Error::config("learning_rate", number(value), expected))
    }
}

/// AdamW's ε must not be 0 as f32, nor become 0 in arithmetic: it keeps a gradient of 0 from being 0/0.
fn epsilon(value: f64) -> Result<()> {
    if value >= f32::MIN_POSITIVE.into() && value.is_finite() {
        Ok(())
    } else {
        let expected = format!("must be finite and at least {:?}", f32::MIN_POSITIVE);
        Err(Error::config("epsilon", number(value), expected))
    }
}

/// `value` must be finite and in `low..high`, the end excluded.
fn below(name: &'static str, value: f64, low: f64, high: f64) -> Result<()> {
    if (low..high).contains(&value) {
        Ok(())
    } else {
        let expected = format!("must be at least {} and below {}", number(low), number(high));
        Err(Error::config(name, number(value), expected))
    }
}

/// `value` must be finite and greater than 0.
fn above_zero(name: &'static str, value: f64) -> Result<()> {
    if value > 0.0 && value.is_finite() {
        Ok(())
    } else {
        Err(Error::config(name, number(value), "must be finite and greater than 0"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether the configs of language models, text pairs and the similarity objective take a learning rate and an ε.
    fn taken(learning_rate: f64, epsilon: f64) -> [Result<()>; 3] {
        [
            TrainingConfig { learning_rate, minimum_learning_rate: 0.0, epsilon, ..Default::default() }.validate(),
            PairTrainingConfig { learning_rate, minimum_learning_rate: 0.0, epsilon, ..Default::default() }.validate(),
            SimilarityConfig { learning_rate, epsilon, ..Default::default() }.validate(),
        ]
    }

    #[test]
    fn what_is_0_or_infinite_as_f32_is_refused() {
        for (learning_rate, epsilon) in
            [(f32::MAX.into(), 1e-8), (1e-60, 1e-8), (0.1, f32::MIN_POSITIVE.into()), (0.1, 1e9)]
        {
            assert!(taken(learning_rate, epsilon).iter().all(Result::is_ok), "{learning_rate}, {epsilon}");
        }
        for (learning_rate, epsilon, refused) in [
            (1e39, 1e-8, "learning_rate"),
            (f64::INFINITY, 1e-8, "learning_rate"),
            (f64::NAN, 1e-8, "learning_rate"),
            (0.0, 1e-8, "learning_rate"),
            (-0.1, 1e-8, "learning_rate"),
            (0.1, 1e-50, "epsilon"),
            (0.1, 1e-38, "epsilon"),
            (0.1, 0.0, "epsilon"),
            (0.1, -1e-8, "epsilon"),
            (0.1, f64::INFINITY, "epsilon"),
            (0.1, f64::NAN, "epsilon"),
        ] {
            for result in taken(learning_rate, epsilon) {
                let named = matches!(&result, Err(Error::InvalidConfig { name, .. }) if *name == refused);
                assert!(named, "{learning_rate}, {epsilon}: {result:?}");
            }
        }
    }
}
