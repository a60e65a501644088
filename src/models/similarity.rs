//! The similarity objective: pairs of an input and a target token whose vectors shall be alike.
//!
//! With x the encoded row of the input table, y the row of the target table and s = x·y (or, with `unit_norm`, their
//! cosine x·y / (|x|·|y|)), the loss is the mean of −ln(max(s, 10⁻¹⁰)) over the pairs of a batch. The encoder is the
//! identity, or a transformer: positions are added, and blocks and a final norm follow, as in
//! [`transformer`](crate::models::transformer).
//!
//! # What is true of this loss
//! It has no negatives: nothing pushes the vectors of tokens apart that are never paired. Of dot products it has no lower
//! bound, since it falls for ever as norms grow; the vectors then say little. With `unit_norm`, the default, it is at
//! least 0, and tokens that are paired, directly or through others, end up in one place. A pair whose similarity is not
//! above 10⁻¹⁰ has no gradient at all; it moves only as far as other pairs move its vectors. To learn embeddings from
//! text, take [skip-gram or CBOW](crate::train::WordTrainer); this objective suits pairs that form groups.

mod checkpointing;
mod step;

use std::sync::Arc;

use ndarray::{Array2, ArrayView1, ArrayView2, s};

use super::transformer::{TransformerIds, Workspace, add_encoder};
use crate::Result;
use crate::checkpoint::saving::Saving;
use crate::config::{SimilarityConfig, TrainingConfig, TransformerConfig};
use crate::gather::GatherCache;
use crate::linalg::threads::SingleThreadedBlas;
use crate::optim::OptimizerState;
use crate::parallel::Parallelism;
use crate::params::{Initialisation, ParameterId, ParameterLayout, ParameterStore};

/// A transformer in front of the input side.
#[derive(Debug)]
struct Encoder {
    config: TransformerConfig,
    ids: TransformerIds,
    workspace: Workspace,
}

/// Two tables of embeddings, perhaps an encoder, and all that training them takes.
///
/// A step is [`cache_batch_embeddings`](Self::cache_batch_embeddings), [`compute_loss`](Self::compute_loss),
/// [`backward`](Self::backward), [`update`](Self::update), or [`step`](Self::step), which calls them. All memory is
/// allocated here: the calls allocate nothing, but for a block of the pool's queue now and then when they are made from
/// outside of [`in_workers`](Self::in_workers). Results are the same bits for the same number of workers.
///
/// ```
/// use cllm::config::SimilarityConfig;
/// use cllm::models::similarity::SimilarityModel;
/// use ndarray::array;
/// # fn main() -> cllm::Result<()> {
/// let config = SimilarityConfig { vocabulary_size: 6, dim: 16, learning_rate: 0.01, ..Default::default() };
/// let mut model = SimilarityModel::new(config)?;
/// // Tokens 0 to 2 belong together, and so do 3 to 5.
/// let (inputs, targets) = (array![[0, 1, 2, 0], [3, 4, 5, 4]], array![[1, 2, 0, 2], [4, 5, 3, 3]]);
/// let first = model.step(inputs.view(), targets.view())?;
/// let last = (0..300).try_fold(first, |_, _| model.step(inputs.view(), targets.view()))?;
/// assert!(last < first);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct SimilarityModel {
    config: SimilarityConfig,
    optimizer_config: TrainingConfig,
    layout: ParameterLayout,
    parameters: ParameterStore,
    gradients: ParameterStore,
    optimizer: OptimizerState,
    input: ParameterId,
    target: ParameterId,
    encoder: Option<Encoder>,
    inputs: GatherCache,
    targets: GatherCache,
    batch: Batch,
    /// How often the parameters were updated.
    steps: u64,
    state: State,
    saving: Saving,
    pool: Arc<rayon::ThreadPool>,
    _blas: SingleThreadedBlas,
}

/// What there is a value of for each pair of the batch, and N × C gradients.
#[derive(Debug)]
struct Batch {
    sequence_length: usize,
    counts: Vec<bool>,
    /// Ids of one side, with 0 in place of the ignored one.
    ids: Vec<u32>,
    similarities: Vec<f32>,
    loss: f64,
    /// d(loss)/d(similarity).
    gradients: Vec<f32>,
    /// 1/|x| and 1/|y|, 0 for vectors of zeros.
    input_scales: Vec<f32>,
    target_scales: Vec<f32>,
    d_inputs: Array2<f32>,
    d_targets: Array2<f32>,
}

/// How far the step has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum State {
    Empty,
    Cached,
    Compared,
    Scored,
    Differentiated,
}

impl SimilarityModel {
    /// A model with random values, and its worker threads.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`](crate::Error::InvalidConfig) if a value is not valid;
    /// [`Error::Threads`](crate::Error::Threads) if the threads cannot be started.
    pub fn new(config: SimilarityConfig) -> Result<Self> {
        config.validate()?;
        let (rows, dim) = (config.vocabulary_size, config.dim);
        let tokens = config.batch_size * config.sequence_length;
        let mut layout = ParameterLayout::default();
        let normal = Initialisation::Normal(config.initial_deviation);
        let input = layout.matrix("input", rows, dim, normal);
        let target = layout.matrix("target", rows, dim, normal);
        let encoder = (config.layers > 0).then(|| {
            let shape = config.encoder();
            let ids = add_encoder(&mut layout, &shape, input);
            // There are no scores over a vocabulary here.
            let without = TransformerConfig { vocabulary_size: 1, ..shape.clone() };
            let parallelism = Parallelism::workers(config.workers);
            let workspace = Workspace::new(&without, tokens, config.sequence_length, 0, parallelism, true);
            Encoder { config: shape, ids, workspace }
        });
        let mut parameters = ParameterStore::zeros(&layout);
        layout.initialise(parameters.values_mut(), config.seed);
        let optimizer_config = config.optimizer();
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(config.workers)
            .thread_name(|worker| format!("cllm worker {worker}"))
            .build()?;
        Ok(Self {
            gradients: ParameterStore::zeros(&layout),
            optimizer: OptimizerState::new(&layout, &optimizer_config, &parameters),
            optimizer_config,
            layout,
            parameters,
            input,
            target,
            encoder,
            inputs: GatherCache::new(tokens, (rows, dim)),
            targets: GatherCache::new(tokens, (rows, dim)),
            batch: Batch {
                sequence_length: config.sequence_length,
                counts: Vec::with_capacity(tokens),
                ids: Vec::with_capacity(tokens),
                loss: 0.0,
                similarities: Vec::with_capacity(tokens),
                gradients: Vec::with_capacity(tokens),
                input_scales: vec![1.0; tokens],
                target_scales: vec![1.0; tokens],
                d_inputs: Array2::zeros((tokens, dim)),
                d_targets: Array2::zeros((tokens, dim)),
            },
            steps: 0,
            state: State::Empty,
            saving: Saving::default(),
            pool: Arc::new(pool),
            _blas: SingleThreadedBlas::acquire(),
            config,
        })
    }

    /// Runs `work` on a worker thread, so that no call of it has to be handed over to one.
    pub fn in_workers<R: Send>(&mut self, work: impl FnOnce(&mut Self) -> R + Send) -> R {
        let pool = Arc::clone(&self.pool);
        pool.install(|| work(self))
    }

    fn parallelism(&self) -> Parallelism {
        Parallelism::workers(self.config.workers)
    }

    /// The row of the input table in place `index` of the batch.
    ///
    /// # Panics
    /// If the batch has no such place.
    #[must_use]
    pub fn cached_input(&self, index: usize) -> ArrayView1<'_, f32> {
        self.inputs.rows().slice_move(s![index, ..])
    }

    /// The row of the target table in place `index` of the batch.
    ///
    /// # Panics
    /// If the batch has no such place.
    #[must_use]
    pub fn cached_target(&self, index: usize) -> ArrayView1<'_, f32> {
        self.targets.rows().slice_move(s![index, ..])
    }

    /// The encoded inputs of the batch, a row a place: the cached ones where there is no encoder. They are not scaled.
    #[must_use]
    pub fn encoded_inputs(&self) -> ArrayView2<'_, f32> {
        match &self.encoder {
            Some(encoder) => encoder.workspace.normalised.slice(s![..self.inputs.len(), ..]),
            None => self.inputs.rows(),
        }
    }

    /// The input table, V × C: the embeddings, not scaled.
    #[must_use]
    pub fn vectors(&self) -> ArrayView2<'_, f32> {
        self.parameters.matrix(self.input)
    }

    /// The target table, V × C, not scaled.
    #[must_use]
    pub fn target_vectors(&self) -> ArrayView2<'_, f32> {
        self.parameters.matrix(self.target)
    }

    /// How often the parameters were updated.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// The settings.
    #[must_use]
    pub fn config(&self) -> &SimilarityConfig {
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

    /// All parameters. What the caches hold is not changed with them.
    pub fn parameters_mut(&mut self) -> &mut ParameterStore {
        self.saving.forget();
        &mut self.parameters
    }

    /// The gradient of every parameter, as of the last [`backward`](Self::backward).
    #[must_use]
    pub fn gradients(&self) -> &ParameterStore {
        &self.gradients
    }
}
