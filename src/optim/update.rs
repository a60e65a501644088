//! One update of the parameters, of all of them at once or range by range.

use std::ops::Range;

use rayon::join;

use super::OptimizerState;
use crate::config::TrainingConfig;
use crate::kernels::adamw::{AdamwStep, adamw};
use crate::kernels::sgd::{SgdStep, moving_average, sgd_momentum};
use crate::parallel::Parallelism;
use crate::params::{CHUNK, ParameterLayout, ParameterStore, ParameterView};

/// What an update is told besides the gradient.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Update {
    /// The step, counted from 1.
    pub step: u64,
    pub learning_rate: f64,
    /// The clip's factor.
    pub gradient_scale: f64,
}

/// The arithmetic of an update, with the decay of weights.
#[derive(Clone, Copy, Debug)]
enum Rule {
    AdamW(AdamwStep),
    Sgd(SgdStep),
}

impl Rule {
    fn of(config: &TrainingConfig, Update { step, learning_rate, gradient_scale }: Update, is_adamw: bool) -> Self {
        if !is_adamw {
            return Self::Sgd(SgdStep {
                learning_rate,
                momentum: config.momentum,
                weight_decay: config.weight_decay,
                gradient_scale,
                nesterov: config.nesterov,
            });
        }
        let power = i32::try_from(step).unwrap_or(i32::MAX);
        Self::AdamW(AdamwStep {
            learning_rate,
            beta1: config.beta1,
            beta2: config.beta2,
            epsilon: config.epsilon,
            weight_decay: config.weight_decay,
            gradient_scale,
            bias_correction1: 1.0 - config.beta1.powi(power),
            bias_correction2: 1.0 - config.beta2.powi(power),
        })
    }

    /// Updates parameters that decay or do not.
    fn apply(&self, decay: bool, p: &mut [f32], g: &[f32], m: &mut [f32], v: Option<&mut [f32]>) {
        let of = |weight_decay| if decay { weight_decay } else { 0.0 };
        match *self {
            Self::AdamW(step) => {
                let v = v.expect("AdamW has second moments");
                adamw(p, g, m, v, &AdamwStep { weight_decay: of(step.weight_decay), ..step });
            }
            Self::Sgd(step) => sgd_momentum(p, g, m, &SgdStep { weight_decay: of(step.weight_decay), ..step }),
        }
    }
}

/// An update of the parameters in a range of the flat buffers, that is still to be made. No sum crosses a value, so
/// neither cuts nor the number of workers change the result.
#[derive(Debug)]
pub(crate) struct PendingUpdate<'a> {
    rule: Rule,
    average_decay: f64,
    layout: &'a ParameterLayout,
    /// Where the range begins.
    start: usize,
    parameters: &'a mut [f32],
    gradients: &'a [f32],
    first: &'a mut [f32],
    second: Option<&'a mut [f32]>,
    average: Option<&'a mut [f32]>,
}

impl<'a> PendingUpdate<'a> {
    /// The update of all parameters.
    pub fn new(
        update: Update,
        config: &TrainingConfig,
        layout: &'a ParameterLayout,
        parameters: &'a mut ParameterStore,
        gradients: &'a ParameterStore,
        state: &'a mut OptimizerState,
    ) -> Self {
        Self {
            rule: Rule::of(config, update, state.second.is_some()),
            average_decay: config.moving_average_decay.unwrap_or_default(),
            layout,
            start: 0,
            parameters: parameters.values_mut(),
            gradients: gradients.values(),
            first: state.first.values_mut(),
            second: state.second.as_mut().map(ParameterStore::values_mut),
            average: state.average.as_mut().map(ParameterStore::values_mut),
        }
    }

    /// The update of what lies before `place` in the flat buffers, and that of the rest.
    pub fn split_at(self, place: usize) -> (Self, Self) {
        let at = place - self.start;
        let (parameters, gradients) = (self.parameters.split_at_mut(at), self.gradients.split_at(at));
        let first = self.first.split_at_mut(at);
        let second = self.second.map(|second| second.split_at_mut(at)).unzip();
        let average = self.average.map(|average| average.split_at_mut(at)).unzip();
        let left = Self {
            parameters: parameters.0,
            gradients: gradients.0,
            first: first.0,
            second: second.0,
            average: average.0,
            ..self
        };
        let right = Self {
            start: place,
            parameters: parameters.1,
            gradients: gradients.1,
            first: first.1,
            second: second.1,
            average: average.1,
            ..self
        };
        (left, right)
    }

    /// Makes the update, spread over the rayon pool if there are several workers; returns the parameters, which are then as
    /// they will be.
    pub fn apply(mut self, parallelism: Parallelism) -> ParameterView<'a> {
        self.reborrow().spread(parallelism);
        ParameterView::new(self.parameters, self.start)
    }

    fn reborrow(&mut self) -> PendingUpdate<'_> {
        PendingUpdate {
            parameters: self.parameters,
            first: self.first,
            second: self.second.as_deref_mut(),
            average: self.average.as_deref_mut(),
            ..*self
        }
    }

    fn spread(mut self, parallelism: Parallelism) {
        let chunks = self.parameters.len().div_ceil(CHUNK);
        if chunks > 1 {
            let middle = self.start + chunks / 2 * CHUNK;
            let (left, right) = self.split_at(middle);
            if parallelism.count() > 1 {
                join(|| left.spread(parallelism), || right.spread(parallelism));
            } else {
                left.spread(parallelism);
                right.spread(parallelism);
            }
            return;
        }
        for (part, spec) in self.layout.parts_of(self.start..self.start + self.parameters.len()) {
            self.rule.apply(
                spec.decay,
                &mut self.parameters[part.clone()],
                &self.gradients[part.clone()],
                &mut self.first[part.clone()],
                self.second.as_deref_mut().map(|second| &mut second[part]),
            );
        }
        if let Some(average) = self.average {
            moving_average(average, self.parameters, self.average_decay);
        }
    }

    /// `values` ← what the parameters `range` of the flat buffers, of a matrix, will be.
    pub fn preview(&self, range: Range<usize>, values: &mut [f32]) {
        const PIECE: usize = 256;
        let range = range.start - self.start..range.end - self.start;
        values.copy_from_slice(&self.parameters[range.clone()]);
        for (piece, values) in values.chunks_mut(PIECE).enumerate() {
            let start = range.start + piece * PIECE;
            let place = start..start + values.len();
            let ([mut first, mut second], length) = ([[0.0; PIECE]; 2], values.len());
            first[..length].copy_from_slice(&self.first[place.clone()]);
            if let Some(moments) = &self.second {
                second[..length].copy_from_slice(&moments[place.clone()]);
            }
            let gradients = &self.gradients[place];
            self.rule.apply(true, values, gradients, &mut first[..length], Some(&mut second[..length]));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Optimizer;
    use crate::params::Initialisation;
    use crate::rng::{Purpose, Stream};

    #[test]
    fn weight_decay_leaves_vectors_alone() {
        let mut layout = ParameterLayout::default();
        let weight = layout.matrix("weight", 2, 2, Initialisation::Ones);
        let gain = layout.vector("gain", 2, Initialisation::Ones);
        for optimizer in [Optimizer::AdamW, Optimizer::Sgd] {
            let config = TrainingConfig { optimizer, weight_decay: 0.5, ..TrainingConfig::default() };
            let mut parameters = ParameterStore::zeros(&layout);
            layout.initialise(parameters.values_mut(), 0);
            let gradients = ParameterStore::zeros(&layout);
            let mut state = OptimizerState::new(&layout, &config, &parameters);
            let update = Update { step: 1, learning_rate: 0.1, gradient_scale: 1.0 };
            PendingUpdate::new(update, &config, &layout, &mut parameters, &gradients, &mut state)
                .apply(Parallelism::workers(2));
            assert_eq!(parameters.slice(weight), [0.95; 4], "{optimizer:?}");
            assert_eq!(parameters.slice(gain), [1.0; 2], "{optimizer:?}");
        }
    }

    /// Cut anywhere, and previewed before it is made, an update is bit by bit the same.
    #[test]
    fn parts_and_previews_are_those_of_the_whole() {
        let mut layout = ParameterLayout::default();
        let table = layout.matrix("table", 67, 301, Initialisation::Normal(1.0));
        layout.vector("gain", 5, Initialisation::Ones);
        let last = layout.matrix("weight", 300, 100, Initialisation::Normal(1.0));
        for (optimizer, average) in
            [(Optimizer::AdamW, None), (Optimizer::AdamW, Some(0.9)), (Optimizer::Sgd, Some(0.5))]
        {
            let config = TrainingConfig { optimizer, moving_average_decay: average, ..TrainingConfig::default() };
            let random = |step| {
                let mut store = ParameterStore::zeros(&layout);
                for spec in layout.specs() {
                    let stream = Stream::new(1, Purpose::Caller, step + spec.id.index() as u64);
                    stream.fill_normal(store.slice_mut(spec.id), 1.0);
                }
                store
            };
            let (before, gradients) = (random(0), random(10));
            let mut state_before = OptimizerState::new(&layout, &config, &before);
            state_before.first = random(20);
            if let Some(second) = &mut state_before.second {
                second.values_mut().fill(0.25);
            }
            let update = Update { step: 3, learning_rate: 0.1, gradient_scale: 0.5 };
            let stores = |state: &OptimizerState, parameters: &ParameterStore| {
                let OptimizerState { first, second, average } = state.clone();
                let stores = [Some(parameters.clone()), Some(first), second, average];
                stores.into_iter().flatten().flat_map(|store| store.values().to_vec()).collect::<Vec<_>>()
            };

            let (mut whole, mut whole_state) = (before.clone(), state_before.clone());
            PendingUpdate::new(update, &config, &layout, &mut whole, &gradients, &mut whole_state)
                .apply(Parallelism::SEQUENTIAL);
            assert!(whole.values().iter().zip(before.values()).filter(|(new, old)| new == old).count() < 100);
            for cut in [16, table.range().end.next_multiple_of(16), last.range().start + 1600, layout.buffer_length()] {
                let (mut parts, mut state) = (before.clone(), state_before.clone());
                let pending = PendingUpdate::new(update, &config, &layout, &mut parts, &gradients, &mut state);
                let (left, right) = pending.split_at(cut);
                if cut > table.range().end {
                    for row in [0, 1, 50, 66] {
                        let range = row * 301..(row + 1) * 301;
                        let mut values = [f32::NAN; 301];
                        left.preview(range.clone(), &mut values);
                        assert_eq!(values, whole.values()[range], "{optimizer:?}, row {row}");
                    }
                }
                if cut < last.range().start {
                    assert_eq!(right.apply(Parallelism::SEQUENTIAL).slice(last), whole.slice(last), "{optimizer:?}");
                    left.apply(Parallelism::workers(2));
                } else {
                    left.apply(Parallelism::workers(2));
                    right.apply(Parallelism::SEQUENTIAL);
                }
                assert_eq!(stores(&state, &parts), stores(&whole_state, &whole), "{optimizer:?}, cut at {cut}");
            }
        }
    }
}
