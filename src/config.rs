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
