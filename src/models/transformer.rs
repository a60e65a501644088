//! Decoder-only transformer with GPT-2's arithmetic.
//!
//! `x = tokens[id] + positions[t]`; then for each block x ← x + attention(norm(x)) and x ← x + feed-forward(norm(x));
//! at last the scores are norm(x) · tokensᵀ: the token table serves as input embedding and as output similarity.
//! Dimensions and initialisation are those of Radford et al., "Language models are unsupervised multitask learners"
//! (2019); names and orientations of the parameters are Hugging Face's.

mod backward;
mod forward;
mod overlap;
mod parameters;
mod workspace;

use std::fmt;
use std::path::Path;

use ndarray::{Array3, ArrayView2, ArrayViewD, IxDyn, s};

pub(crate) use backward::{GradientOutput, backward_encode, clear_added, loss_and_gradients};
pub(crate) use forward::{Pass, encode, forward};
pub(crate) use overlap::forward_beside_update;
pub(crate) use parameters::{NormIds, TransformerIds, add_encoder, layout};
pub(crate) use workspace::{Rooms, Workspace, first};

use crate::checkpoint::tensors;
use crate::config::TransformerConfig;
use crate::linalg::{Write, gemm};
use crate::parallel::Parallelism;
use crate::params::{ParameterLayout, ParameterSpec, ParameterStore, ParameterView};
use crate::{Error, Result};

/// A transformer: its configuration and its parameters.
///
/// ```
/// use cllm::{Transformer, TransformerConfig};
/// # fn main() -> cllm::Result<()> {
/// let config = TransformerConfig { vocabulary_size: 10, context: 8, dim: 16, heads: 2, layers: 1, feed_forward: 64,
///     ..Default::default() };
/// let model = Transformer::new(config, 1)?;
/// let scores = model.logits(ndarray::array![[1, 2, 3]].view())?;
/// assert_eq!(scores.dim(), (1, 3, 10));
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Transformer {
    config: TransformerConfig,
    layout: ParameterLayout,
    ids: TransformerIds,
    parameters: ParameterStore,
}

impl fmt::Debug for Transformer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Transformer")
            .field("config", &self.config)
            .field("parameters", &self.layout.parameter_count())
            .finish_non_exhaustive()
    }
}

/// A model as the passes see it: some parameters under a configuration. They may be an average of the weights.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Model<'a> {
    pub config: &'a TransformerConfig,
    pub ids: &'a TransformerIds,
    pub parameters: ParameterView<'a>,
}

impl Transformer {
    /// A model with random parameters drawn from `seed`.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] if the configuration is not valid.
    pub fn new(config: TransformerConfig, seed: u64) -> Result<Self> {
        Self::with_parameters_from(config, |layout| {
            let mut parameters = ParameterStore::zeros(layout);
            layout.initialise(parameters.values_mut(), seed);
            Ok(parameters)
        })
    }

    /// A model with parameters read from a safetensors file that holds exactly this configuration's tensors.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`], [`Error::Io`], [`Error::InvalidFile`], or, for a tensor that is missing or does not
    /// fit, [`Error::MissingTensor`] or [`Error::Shape`].
    pub fn load_parameters(config: TransformerConfig, path: &Path) -> Result<Self> {
        Self::with_parameters_from(config, |layout| tensors::load(path, layout).map(|(parameters, _)| parameters))
    }

    /// A model with the parameters that `load` gives for its layout.
    pub(crate) fn with_parameters_from(
        config: TransformerConfig,
        load: impl FnOnce(&ParameterLayout) -> Result<ParameterStore>,
    ) -> Result<Self> {
        config.validate()?;
        let (layout, ids) = layout(&config);
        let parameters = load(&layout)?;
        Ok(Self { config, layout, ids, parameters })
    }

    /// Writes the parameters as a safetensors file, whole or not at all. Equal parameters give equal bytes.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn save_parameters(&self, path: &Path) -> Result<()> {
        tensors::write(path, &self.layout, &self.parameters)
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> &TransformerConfig {
        &self.config
    }

    /// The table of parameters.
    #[must_use]
    pub fn layout(&self) -> &ParameterLayout {
        &self.layout
    }

    /// Names of the parameters, in order.
    pub fn parameter_names(&self) -> impl Iterator<Item = &str> {
        self.layout.specs().iter().map(|spec| spec.name.as_str())
    }

    /// The parameter of this name.
    #[must_use]
    pub fn parameter(&self, name: &str) -> Option<ArrayViewD<'_, f32>> {
        self.layout.find(name).map(|spec| view(&self.parameters, spec))
    }

    /// All parameters as one flat store.
    #[must_use]
    pub fn parameters(&self) -> &ParameterStore {
        &self.parameters
    }

    /// All parameters as one flat store.
    pub fn parameters_mut(&mut self) -> &mut ParameterStore {
        &mut self.parameters
    }

    /// All but the parameters, and these.
    pub(crate) fn parts_mut(&mut self) -> (&TransformerConfig, &ParameterLayout, &TransformerIds, &mut ParameterStore) {
        (&self.config, &self.layout, &self.ids, &mut self.parameters)
    }

    pub(crate) fn view(&self) -> Model<'_> {
        self.with_parameters(&self.parameters)
    }

    pub(crate) fn with_parameters<'a>(&'a self, parameters: &'a ParameterStore) -> Model<'a> {
        Model { config: &self.config, ids: &self.ids, parameters: parameters.view() }
    }

    /// Scores of every next token (logits) after every position: sequences × T × V, for inputs sequences × T.
    ///
    /// A convenience that allocates its buffers; a trainer evaluates without.
    ///
    /// # Errors
    /// [`Error::TokenOutOfRange`], or [`Error::Shape`] if the inputs are empty or longer than the context.
    pub fn logits(&self, inputs: ArrayView2<'_, u32>) -> Result<Array3<f32>> {
        let (sequences, sequence_length) = inputs.dim();
        let ids: Vec<u32> = inputs.iter().copied().collect();
        if ids.is_empty() || sequence_length > self.config.context {
            return Err(Error::Shape {
                what: "inputs, sequences × at most the context".into(),
                expected: vec![sequences.max(1), self.config.context],
                found: vec![sequences, sequence_length],
            });
        }
        check_tokens("inputs", &ids, self.config.vocabulary_size, None)?;
        let sequential = Parallelism::SEQUENTIAL;
        // No scores are kept in the workspace: they are the result.
        let mut workspace = Workspace::new(&self.config, ids.len(), sequence_length, 0, sequential, false);
        let pass = Pass { sequence_length, masks: None, first_sequence: 0, parallelism: sequential };
        forward(&self.view(), &mut workspace, &ids, pass);
        let mut scores = ndarray::Array2::zeros((ids.len(), self.config.vocabulary_size));
        let table = self.parameters.matrix(self.ids.tokens);
        gemm(
            1.0,
            workspace.normalised.slice(s![..ids.len(), ..]),
            table.t(),
            Write::Replace,
            scores.view_mut(),
            sequential,
        );
        Ok(scores
            .into_shape_with_order((sequences, sequence_length, self.config.vocabulary_size))
            .expect("the scores have one row a token"))
    }
}

/// A parameter of `store` in its own shape.
pub(crate) fn view<'a>(store: &'a ParameterStore, spec: &ParameterSpec) -> ArrayViewD<'a, f32> {
    ArrayViewD::from_shape(IxDyn(&spec.shape), store.slice(spec.id)).expect("a spec has its slice's length")
}

/// Every id must be below `vocabulary`, or be the `ignored` one.
pub(crate) fn check_tokens(what: &str, ids: &[u32], vocabulary: usize, ignored: Option<u32>) -> Result<()> {
    match ids.iter().position(|&id| id as usize >= vocabulary && Some(id) != ignored) {
        None => Ok(()),
        Some(position) => {
            Err(Error::TokenOutOfRange { what: what.into(), position: position as u64, id: ids[position], vocabulary })
        }
    }
}
