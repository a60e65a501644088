//! A static text encoder, trained on pairs.
//!
//! A text with the tokens t₁ … tₙ has the vector u = s/‖s‖ with s = Σᵢ w(tᵢ)·E(tᵢ), E a table of vectors and w learned
//! weights of tokens, or 1. That is the direction of the mean: its length drops out. A text without tokens, or whose sum
//! is shorter than 10⁻¹², has the vector 0. Training pulls the vectors of a query and of its document together and
//! those of other documents away, by the [in-batch softmax](crate::loss::in_batch_softmax) of their cosines.
//!
//! With Matryoshka widths k₁ < k₂ < … (Kusupati et al., "Matryoshka representation learning", 2022) the prefixes u[..k],
//! each brought to length 1 again, are trained as vectors of their own: the loss is the mean of those of all widths, the
//! whole one included.

mod pooling;
mod retrieval;
mod update;
mod workspace;

use ndarray::{Array2, ArrayView2, ArrayViewMut2};

pub(crate) use workspace::PairWorkspace;

use crate::config::PairEncoderConfig;
use crate::data::TokenRows;
use crate::kernels::elementwise::scale;
use crate::parallel::Parallelism;
use crate::params::{Initialisation, ParameterId, ParameterLayout, ParameterStore};
use crate::{Error, Result};

/// A table of token vectors, V × C, and weights of tokens.
///
/// ```
/// use cllm::config::PairEncoderConfig;
/// use cllm::data::TokenRows;
/// use cllm::models::pair_encoder::PairEncoder;
/// let config = PairEncoderConfig { vocabulary_size: 100, dim: 8, token_weights: false };
/// let encoder = PairEncoder::new(config, 1)?;
/// let texts: TokenRows = [vec![3, 14, 15], vec![92, 65]].into_iter().collect();
/// let vectors = encoder.encode(&texts)?;
/// assert_eq!(vectors.dim(), (2, 8));
/// assert!((vectors.row(1).dot(&vectors.row(1)) - 1.0).abs() < 1e-6);
/// # Ok::<(), cllm::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct PairEncoder {
    config: PairEncoderConfig,
    layout: ParameterLayout,
    parameters: ParameterStore,
    vectors: ParameterId,
    token_weights: Option<ParameterId>,
}

impl PairEncoder {
    /// An encoder with vectors drawn from the normal distribution, as those of PyTorch's `EmbeddingBag`, and weights of 1.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] if the config is not valid.
    pub fn new(config: PairEncoderConfig, seed: u64) -> Result<Self> {
        Self::with_parameters_from(config, |layout| {
            let mut parameters = ParameterStore::zeros(layout);
            layout.initialise(parameters.values_mut(), seed);
            Ok(parameters)
        })
    }

    /// An encoder with the parameters that `load` gives for its layout.
    pub(crate) fn with_parameters_from(
        config: PairEncoderConfig,
        load: impl FnOnce(&ParameterLayout) -> Result<ParameterStore>,
    ) -> Result<Self> {
        config.validate()?;
        let (vocabulary, dim) = (config.vocabulary_size, config.dim);
        let mut layout = ParameterLayout::default();
        let vectors = layout.matrix("embedding.weight", vocabulary, dim, Initialisation::Normal(1.0));
        let token_weights =
            config.token_weights.then(|| layout.vector("token_weights", vocabulary, Initialisation::Ones));
        let parameters = load(&layout)?;
        Ok(Self { config, layout, parameters, vectors, token_weights })
    }

    /// The shape.
    #[must_use]
    pub fn config(&self) -> &PairEncoderConfig {
        &self.config
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

    /// The vectors of all tokens, V × C, without their weights.
    #[must_use]
    pub fn vectors(&self) -> ArrayView2<'_, f32> {
        self.parameters.matrix(self.vectors)
    }

    /// The weights of all tokens, if they are learned.
    #[must_use]
    pub fn token_weights(&self) -> Option<&[f32]> {
        self.token_weights.map(|id| self.parameters.slice(id))
    }

    /// The vectors of all tokens times their weights, V × C: with these, a text's vector is the direction of a plain mean.
    #[must_use]
    pub fn weighted_vectors(&self) -> Array2<f32> {
        let mut vectors = self.vectors().to_owned();
        if let Some(weights) = self.token_weights() {
            for (mut row, &weight) in vectors.rows_mut().into_iter().zip(weights) {
                scale(row.as_slice_mut().expect("rows are contiguous"), weight);
            }
        }
        vectors
    }

    /// The vectors of `texts`, one a row, each of length 1 (or 0, see above).
    ///
    /// # Errors
    /// [`Error::TokenOutOfRange`].
    pub fn encode(&self, texts: &TokenRows) -> Result<Array2<f32>> {
        let mut vectors = Array2::zeros((texts.len(), self.config.dim));
        self.encode_into(texts, vectors.view_mut(), Parallelism::SEQUENTIAL)?;
        Ok(vectors)
    }

    /// As [`encode`](Self::encode), into rows that are there, split over workers of the rayon pool this is called in.
    ///
    /// # Errors
    /// [`Error::TokenOutOfRange`].
    ///
    /// # Panics
    /// If `vectors` has another shape than texts × C, or its rows are not contiguous.
    #[track_caller]
    pub fn encode_into(
        &self,
        texts: &TokenRows,
        vectors: ArrayViewMut2<'_, f32>,
        parallelism: Parallelism,
    ) -> Result<()> {
        assert_eq!(vectors.dim(), (texts.len(), self.config.dim), "encode: shape of the vectors");
        self.check("texts", texts)?;
        pooling::pool(self.table(), texts, &|_| 1.0, vectors, None, parallelism);
        Ok(())
    }

    /// Fails at the first id outside the vocabulary.
    pub(crate) fn check(&self, what: &str, texts: &TokenRows) -> Result<()> {
        let vocabulary = self.config.vocabulary_size;
        let ids = texts.ids();
        if ids.iter().max().is_none_or(|&id| (id as usize) < vocabulary) {
            return Ok(());
        }
        let index = ids.iter().position(|&id| id as usize >= vocabulary).expect("the maximum is outside");
        Err(Error::TokenOutOfRange { what: what.into(), position: index as u64, id: ids[index], vocabulary })
    }

    fn table(&self) -> pooling::Table<'_> {
        pooling::Table { vectors: self.parameters.slice(self.vectors), weights: self.token_weights() }
    }
}
