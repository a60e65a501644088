//! The learning rate of each step.

use crate::config::{Schedule, TrainingConfig};

/// A learning rate that warms up linearly, then follows a schedule to the end of the run.
///
/// With w warm-up steps, n steps in all, peak p and minimum m, the step s, counted from 0, has the learning rate
/// p·(s + 1)/w for s < w (as in PyTorch's `LinearLR` from 0, one step ahead so that no step is wasted on a rate of 0).
/// After that, with x = (s − w)/(n − w) in [0, 1]:
/// constant p; linear p − (p − m)·x; cosine m + (p − m)·(1 + cos πx)/2; warm-up-stable-decay p until
/// s = n − decay_fraction·n, then linearly to m.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LearningRate {
    schedule: Schedule,
    peak: f64,
    minimum: f64,
    warmup: u64,
    total: u64,
    decay_fraction: f64,
}

impl LearningRate {
    /// The schedule of a run of `total` steps.
    #[must_use]
    pub fn new(config: &TrainingConfig, total: u64) -> Self {
        Self {
            schedule: config.schedule,
            peak: config.learning_rate,
            minimum: config.minimum_learning_rate,
            warmup: config.warmup_steps,
            total,
            decay_fraction: config.decay_fraction,
        }
    }

    /// The steps of the run in all.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.total
    }

    /// The learning rate of the step after `steps` steps were taken. Beyond the run's end it stays at its last value.
    #[must_use]
    pub fn at(&self, steps: u64) -> f64 {
        if steps < self.warmup {
            return self.peak * (steps + 1) as f64 / self.warmup as f64;
        }
        let fall = self.peak - self.minimum;
        match self.schedule {
            Schedule::Constant => self.peak,
            Schedule::Linear => self.peak - fall * self.share(steps, self.warmup),
            Schedule::Cosine => {
                let angle = std::f64::consts::PI * self.share(steps, self.warmup);
                self.minimum + fall * 0.5 * (1.0 + angle.cos())
            }
            Schedule::WarmupStableDecay => {
                let decay = (self.decay_fraction * self.total as f64).round() as u64;
                let start = self.total.saturating_sub(decay).max(self.warmup);
                self.peak - fall * self.share(steps, start)
            }
        }
    }

    /// How far `steps` lies between `start` and the end of the run, from 0 to 1.
    fn share(&self, steps: u64, start: u64) -> f64 {
        if steps <= start {
            return 0.0;
        }
        ((steps - start) as f64 / self.total.saturating_sub(start).max(1) as f64).min(1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(schedule: Schedule) -> LearningRate {
        let config = TrainingConfig {
            learning_rate: 1.0,
            minimum_learning_rate: 0.1,
            warmup_steps: 10,
            schedule,
            decay_fraction: 0.2,
            ..TrainingConfig::default()
        };
        LearningRate::new(&config, 110)
    }

    fn check(schedule: Schedule, expected: &[(u64, f64)]) {
        for &(steps, expected) in expected {
            let found = rate(schedule).at(steps);
            assert!((found - expected).abs() < 1e-12, "{schedule:?} at {steps}: {found} for {expected}");
        }
    }

    #[test]
    fn every_schedule_warms_up_and_ends_at_its_minimum() {
        let warmup = [(0, 0.1), (4, 0.5), (9, 1.0), (10, 1.0)];
        for schedule in [Schedule::Constant, Schedule::Linear, Schedule::Cosine, Schedule::WarmupStableDecay] {
            check(schedule, &warmup);
        }
        check(Schedule::Constant, &[(60, 1.0), (110, 1.0), (1000, 1.0)]);
        check(Schedule::Linear, &[(60, 0.55), (110, 0.1), (1000, 0.1)]);
        check(Schedule::Cosine, &[(35, 0.1 + 0.45 * (1.0 + 0.5f64.sqrt())), (60, 0.55), (110, 0.1), (1000, 0.1)]);
        check(Schedule::WarmupStableDecay, &[(88, 1.0), (99, 0.55), (110, 0.1), (1000, 0.1)]);
    }

    #[test]
    fn no_warmup_starts_at_the_peak() {
        let config = TrainingConfig { warmup_steps: 0, learning_rate: 0.5, ..TrainingConfig::default() };
        assert_eq!(LearningRate::new(&config, 100).at(0), 0.5);
    }
}
