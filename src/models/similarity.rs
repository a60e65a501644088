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

use std::sync::Arc;

use ndarray::{Array2, ArrayView1, ArrayView2, Zip, s};

use super::transformer::{
    Model, Pass, TransformerIds, Workspace, add_encoder, backward_encode, check_tokens, clear_added, encode, first,
};
use crate::config::{SimilarityConfig, TrainingConfig, TransformerConfig};
use crate::gather::GatherCache;
use crate::kernels::reduce::all_finite;
use crate::layers::embedding;
use crate::linalg::Write;
use crate::linalg::threads::SingleThreadedBlas;
use crate::loss::log_similarity;
use crate::optim::OptimizerState;
use crate::parallel::{Parallelism, for_rows};
use crate::params::{Initialisation, ParameterId, ParameterLayout, ParameterStore};
use crate::similarity::row_dots;
use crate::{Error, Result};

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
    /// [`Error::InvalidConfig`] if a value is not valid; [`Error::Threads`] if the threads cannot be started.
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
                similarities: Vec::with_capacity(tokens),
                gradients: Vec::with_capacity(tokens),
                input_scales: vec![1.0; tokens],
                target_scales: vec![1.0; tokens],
                d_inputs: Array2::zeros((tokens, dim)),
                d_targets: Array2::zeros((tokens, dim)),
            },
            steps: 0,
            state: State::Empty,
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

    /// Gathers the rows of a batch, sequences × T ids on both sides, into the two caches, and encodes the inputs.
    ///
    /// The pair of a place does not count if either id is the ignored one. Its input still stands in its sequence, as
    /// token 0 if the id is outside the vocabulary: padding belongs at the end, where no other token attends to it.
    ///
    /// # Errors
    /// [`Error::Shape`] if the sides differ in shape or the batch is larger than the caches; [`Error::TokenOutOfRange`];
    /// [`Error::NoTargets`] if no pair counts. The caches are as before then.
    pub fn cache_batch_embeddings(&mut self, inputs: ArrayView2<'_, u32>, targets: ArrayView2<'_, u32>) -> Result<()> {
        self.check("inputs", inputs, None)?;
        self.check("targets", targets, Some(inputs.dim()))?;
        let ignored = |id: &u32| Some(*id) == self.config.ignore_id;
        if !inputs.iter().zip(&targets).any(|(input, target)| !ignored(input) && !ignored(target)) {
            return Err(Error::NoTargets { positions: inputs.len() });
        }
        let batch = &mut self.batch;
        batch.sequence_length = inputs.ncols();
        batch.counts.clear();
        batch.counts.extend(inputs.iter().zip(&targets).map(|(input, target)| !ignored(input) && !ignored(target)));
        let rows = self.config.vocabulary_size;
        let known = |&id: &u32| if (id as usize) < rows { id } else { 0 };
        self.in_workers(|model| {
            let parallelism = model.parallelism();
            let Self { batch, inputs: input_cache, targets: target_cache, parameters, .. } = model;
            batch.ids.clear();
            batch.ids.extend(inputs.iter().map(known));
            input_cache.gather(parameters.matrix(model.input), &batch.ids, parallelism);
            batch.ids.clear();
            batch.ids.extend(targets.iter().map(known));
            target_cache.gather(parameters.matrix(model.target), &batch.ids, parallelism);
            model.encode();
        });
        self.state = State::Cached;
        Ok(())
    }

    fn check(&self, what: &str, ids: ArrayView2<'_, u32>, shape: Option<(usize, usize)>) -> Result<()> {
        let (most, found) = ((self.config.batch_size, self.config.sequence_length), ids.dim());
        let fits = found.0 <= most.0 && found.1 <= most.1 && !ids.is_empty();
        if !fits || shape.is_some_and(|shape| shape != found) {
            let (what, expected) = match shape {
                Some(shape) => (format!("{what}, as the inputs"), shape),
                None => (format!("{what}, at most"), most),
            };
            return Err(Error::Shape { what, expected: vec![expected.0, expected.1], found: vec![found.0, found.1] });
        }
        for row in ids.rows() {
            match row.as_slice() {
                Some(row) => check_tokens(what, row, self.config.vocabulary_size, self.config.ignore_id)?,
                None => row.iter().try_for_each(|&id| {
                    check_tokens(what, &[id], self.config.vocabulary_size, self.config.ignore_id)
                })?,
            }
        }
        Ok(())
    }

    fn parallelism(&self) -> Parallelism {
        Parallelism::workers(self.config.workers)
    }

    fn pass(&self) -> Pass {
        let sequence_length = self.batch.sequence_length;
        Pass { sequence_length, masks: None, first_sequence: 0, parallelism: self.parallelism() }
    }

    fn encode(&mut self) {
        let pass = self.pass();
        let Some(Encoder { config, ids, workspace }) = &mut self.encoder else { return };
        let rows = self.inputs.rows();
        let positions = self.parameters.matrix(ids.positions);
        let mut embedded = first(&mut workspace.residual[0], rows.nrows());
        for (index, (row, mut embedded)) in rows.rows().into_iter().zip(embedded.rows_mut()).enumerate() {
            Zip::from(&mut embedded)
                .and(row)
                .and(positions.row(index % pass.sequence_length))
                .for_each(|embedded, &row, &position| *embedded = row + position);
        }
        let model = Model { config, ids, parameters: &self.parameters };
        encode(&model, workspace, rows.nrows(), pass);
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

    /// The similarity of each pair of the batch, those that do not count included, in the order of the places.
    ///
    /// # Panics
    /// If there is no batch.
    #[track_caller]
    pub fn similarities(&mut self) -> &[f32] {
        assert!(self.state >= State::Cached, "similarities: there is no batch in the caches");
        if self.state == State::Cached {
            self.in_workers(Self::compare);
            self.state = State::Compared;
        }
        &self.batch.similarities
    }

    fn compare(&mut self) {
        let parallelism = self.parallelism();
        let mut similarities = std::mem::take(&mut self.batch.similarities);
        similarities.resize(self.inputs.len(), 0.0);
        let (encoded, targets) = (self.encoded_inputs(), self.targets.rows());
        row_dots(encoded, targets, &mut similarities, parallelism);
        if self.config.unit_norm {
            let (mut of_inputs, mut of_targets) =
                (std::mem::take(&mut self.batch.input_scales), std::mem::take(&mut self.batch.target_scales));
            let (encoded, targets) = (self.encoded_inputs(), self.targets.rows());
            scales(encoded, &mut of_inputs[..similarities.len()], parallelism);
            scales(targets, &mut of_targets[..similarities.len()], parallelism);
            for ((similarity, x), y) in similarities.iter_mut().zip(&of_inputs).zip(&of_targets) {
                *similarity *= x * y;
            }
            (self.batch.input_scales, self.batch.target_scales) = (of_inputs, of_targets);
        }
        self.batch.similarities = similarities;
    }

    /// The mean of −ln(max(s, 10⁻¹⁰)) over the pairs that count, in nats.
    ///
    /// # Panics
    /// If there is no batch.
    #[track_caller]
    pub fn compute_loss(&mut self) -> f64 {
        self.similarities();
        let Batch { similarities, gradients, counts, .. } = &mut self.batch;
        gradients.clear();
        gradients.extend_from_slice(similarities);
        let pairs = counts.iter().filter(|&&counts| counts).count() as f64;
        let loss = log_similarity::replace_by_gradient(gradients, counts, (1.0 / pairs) as f32);
        self.state = State::Scored;
        loss / pairs
    }

    /// The gradient of the loss for every parameter, which is then in [`gradients`](Self::gradients).
    ///
    /// # Panics
    /// If the loss of the batch was not computed.
    #[track_caller]
    pub fn backward(&mut self) {
        assert!(self.state >= State::Scored, "backward: the loss of the batch was not computed");
        self.in_workers(Self::differentiate);
        self.state = State::Differentiated;
    }

    fn differentiate(&mut self) {
        let (parallelism, pass, pairs) = (self.parallelism(), self.pass(), self.inputs.len());
        self.differentiate_pairs();
        let Self { gradients, batch, encoder, parameters, .. } = self;
        gradients.slice_mut(self.input).fill(0.0);
        gradients.slice_mut(self.target).fill(0.0);
        let rows = s![..pairs, ..];
        self.targets.scatter(batch.d_targets.slice(rows), gradients.matrix_mut(self.target), parallelism);
        let Some(Encoder { config, ids, workspace }) = encoder else {
            self.inputs.scatter(batch.d_inputs.slice(rows), gradients.matrix_mut(self.input), parallelism);
            return;
        };
        let model = Model { config, ids, parameters };
        clear_added(&model, gradients);
        let buffers = workspace.gradients.as_mut().expect("the workspace has room for gradients");
        first(&mut buffers.layer, pairs).assign(&batch.d_inputs.slice(rows));
        backward_encode(&model, workspace, pairs, gradients, Write::Replace, pass);
        let buffers = workspace.gradients.as_mut().expect("the workspace has room for gradients");
        let d_embedded = buffers.residual.slice(rows);
        embedding::backward_positions(pass.sequence_length, d_embedded, gradients.matrix_mut(ids.positions));
        self.inputs.scatter(d_embedded, gradients.matrix_mut(self.input), parallelism);
    }

    /// From the gradients g of the similarities to those of both sides: for dot products g·y and g·x; for cosines s, with
    /// x̂ and ŷ of length 1, g·(ŷ − s·x̂)/|x| and g·(x̂ − s·ŷ)/|y|.
    fn differentiate_pairs(&mut self) {
        let (mut d_inputs, mut d_targets) =
            (std::mem::take(&mut self.batch.d_inputs), std::mem::take(&mut self.batch.d_targets));
        let (x, y) = (self.encoded_inputs(), self.targets.rows());
        let Batch { similarities, gradients, input_scales, target_scales, .. } = &self.batch;
        let unit_norm = self.config.unit_norm;
        let work = |index: usize, own: &[f32], other: &[f32], own_scale: f32, other_scale: f32, out: &mut [f32]| {
            let g = gradients[index];
            let (a, b) = match unit_norm {
                true => (g * own_scale * other_scale, -g * similarities[index] * own_scale * own_scale),
                false => (g, 0.0),
            };
            if g == 0.0 {
                // Not 0·x, which is not 0 for what is not finite.
                return out.fill(0.0);
            }
            for ((out, own), other) in out.iter_mut().zip(own).zip(other) {
                *out = a * other + b * own;
            }
        };
        let rows = d_inputs.rows_mut().into_iter().zip(d_targets.rows_mut());
        for (index, ((x, y), (mut dx, mut dy))) in x.rows().into_iter().zip(y.rows()).zip(rows).enumerate() {
            let (x, y) = (x.to_slice().expect("rows are contiguous"), y.to_slice().expect("rows are contiguous"));
            let (dx, dy) = (dx.as_slice_mut().expect("contiguous"), dy.as_slice_mut().expect("contiguous"));
            work(index, x, y, input_scales[index], target_scales[index], dx);
            work(index, y, x, target_scales[index], input_scales[index], dy);
        }
        (self.batch.d_inputs, self.batch.d_targets) = (d_inputs, d_targets);
    }

    /// One step of AdamW on every parameter, as PyTorch's: rows outside of the batch keep moving by their moments, and
    /// decay. The caches keep the former rows until the next batch.
    ///
    /// # Errors
    /// [`Error::NonFinite`] if a gradient is not finite; nothing is changed then.
    ///
    /// # Panics
    /// If there was no [`backward`](Self::backward) since the batch was cached.
    #[track_caller]
    pub fn update(&mut self) -> Result<()> {
        assert!(self.state == State::Differentiated, "update: there is no gradient of the batch");
        let step = self.steps + 1;
        for spec in self.layout.specs() {
            let values = self.gradients.slice(spec.id);
            if !all_finite(values) {
                let value = values.iter().copied().find(|value| !value.is_finite()).unwrap_or(f32::NAN);
                let what = format!("the gradient of {}", spec.name);
                return Err(Error::NonFinite { step, what, value: value.into() });
            }
        }
        self.in_workers(|model| {
            let Self { layout, optimizer_config, parameters, gradients, config, .. } = model;
            model.optimizer.update(layout, optimizer_config, parameters, gradients, (step, config.learning_rate, 1.0));
        });
        self.steps = step;
        self.state = State::Empty;
        Ok(())
    }

    /// Caches a batch, computes its loss and gradient, and updates; returns the loss before the update.
    ///
    /// # Errors
    /// Those of [`cache_batch_embeddings`](Self::cache_batch_embeddings) and of [`update`](Self::update).
    pub fn step(&mut self, inputs: ArrayView2<'_, u32>, targets: ArrayView2<'_, u32>) -> Result<f64> {
        self.in_workers(|model| {
            model.cache_batch_embeddings(inputs, targets)?;
            let loss = model.compute_loss();
            model.backward();
            model.update()?;
            Ok(loss)
        })
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
        &mut self.parameters
    }

    /// The gradient of every parameter, as of the last [`backward`](Self::backward).
    #[must_use]
    pub fn gradients(&self) -> &ParameterStore {
        &self.gradients
    }
}

/// scales\[i\] ← 1/|row i|, or 0 for a row of zeros.
fn scales(rows: ArrayView2<'_, f32>, scales: &mut [f32], parallelism: Parallelism) {
    row_dots(rows, rows, scales, parallelism);
    for_rows(parallelism, scales.len(), scales, &|scales: &mut [f32]| {
        scales.iter_mut().for_each(|scale| *scale = if *scale == 0.0 { 0.0 } else { 1.0 / scale.sqrt() });
    });
}
