//! Word embeddings: one vector for each word as an input, one as an output.
//!
//! Skip-gram with negative sampling (Mikolov et al., 2013) minimises, over the pairs of a centre word i and a word j in
//! its window, −ln σ(x_i·y_j) − Σ over a few negative words n of ln σ(−x_i·y_n), with x from the input table and y from
//! the output table. CBOW has in place of x_i the mean of the input vectors in the window, and i in place of j.
//!
//! Here blocks of centre words share their negatives, so that everything is a product of small matrices.

pub(crate) mod block;
pub(crate) mod rows;
pub(crate) mod windows;

use ndarray::ArrayView2;

use crate::Result;
use crate::config::WordTrainingConfig;
use crate::params::{Initialisation, ParameterId, ParameterLayout, ParameterStore};

/// The two tables of word embeddings, V × C each.
#[derive(Clone, Debug)]
pub struct SkipGram {
    layout: ParameterLayout,
    parameters: ParameterStore,
    input: ParameterId,
    output: ParameterId,
}

impl SkipGram {
    /// Tables for `vocabulary_size` words: input vectors uniform in ±1/(2·dim), output vectors 0, as in word2vec.c.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`](crate::Error::InvalidConfig) if the config or the size is not valid.
    pub fn new(vocabulary_size: usize, config: &WordTrainingConfig) -> Result<Self> {
        config.validate()?;
        if vocabulary_size == 0 || u32::try_from(vocabulary_size).is_err() {
            return Err(crate::Error::config("vocabulary_size", vocabulary_size, "must lie between 1 and 2³² − 1"));
        }
        let mut layout = ParameterLayout::default();
        let bound = 0.5 / config.dim as f32;
        let input = layout.matrix("input", vocabulary_size, config.dim, Initialisation::Uniform(bound));
        let output = layout.matrix("output", vocabulary_size, config.dim, Initialisation::Zeros);
        let mut parameters = ParameterStore::zeros(&layout);
        layout.initialise(parameters.values_mut(), config.seed);
        Ok(Self { layout, parameters, input, output })
    }

    /// The input vectors, V × C: the embeddings.
    #[must_use]
    pub fn vectors(&self) -> ArrayView2<'_, f32> {
        self.parameters.matrix(self.input)
    }

    /// The output vectors, V × C.
    #[must_use]
    pub fn output_vectors(&self) -> ArrayView2<'_, f32> {
        self.parameters.matrix(self.output)
    }

    /// The parameters' names, shapes and places.
    #[must_use]
    pub fn layout(&self) -> &ParameterLayout {
        &self.layout
    }

    /// All parameters.
    #[must_use]
    pub fn parameters(&self) -> &ParameterStore {
        &self.parameters
    }

    /// All parameters.
    pub fn parameters_mut(&mut self) -> &mut ParameterStore {
        &mut self.parameters
    }

    /// Input and output table.
    pub(crate) fn tables_mut(&mut self) -> (&mut [f32], &mut [f32]) {
        self.parameters.pair_mut(self.input, self.output)
    }
}
