//! One worker's share of a batch: a workspace and a gradient buffer of its own.

use std::ops::Range;

use ndarray::s;

use crate::config::{Sharding, TrainingConfig, TransformerConfig};
use crate::data::Batch;
use crate::layers::dropout::Masks;
use crate::linalg::{Write, gemm};
use crate::loss::cross_entropy::{CrossEntropy, LossSum};
use crate::memory::Room;
use crate::models::transformer::{
    GradientOutput, Model, Pass, Rooms, Transformer, Workspace, first, forward, forward_beside_update,
    loss_and_gradients,
};
use crate::optim::{OptimizerState, PendingUpdate, Update};
use crate::parallel::{Parallelism, part_of};
use crate::params::{GradientNorms, ParameterLayout, ParameterStore};

/// A model with more values than this has its operations split, since a second gradient buffer would cost more time to
/// fill and add than split products lose.
const LARGEST_SHARDED_MODEL: usize = 16 << 20;

impl TrainingConfig {
    /// How batches will be split over the workers: as configured, or for [`Sharding::Auto`] by whole sequences where
    /// there is one for each worker and the model is small enough for a gradient buffer each, else by operations.
    #[must_use]
    pub fn effective_sharding(&self, parameters: usize) -> Sharding {
        match self.sharding {
            Sharding::Auto if self.workers > self.batch_size || parameters > LARGEST_SHARDED_MODEL => {
                Sharding::Operations
            }
            Sharding::Auto => Sharding::Sequences,
            chosen => chosen,
        }
    }
}

/// The number of shards, and the workers inside each.
fn split(training: &TrainingConfig, layout: &ParameterLayout) -> (usize, Parallelism) {
    match training.effective_sharding(layout.parameter_count()) {
        Sharding::Operations => (1, Parallelism::workers(training.workers)),
        _ => (training.workers, Parallelism::SEQUENTIAL),
    }
}

/// The workspace of shard `shard` of `shards`: for its largest part of a micro-batch.
fn workspace(
    rooms: &Rooms,
    config: &TransformerConfig,
    training: &TrainingConfig,
    (shard, shards): (usize, usize),
    parallelism: Parallelism,
) -> Workspace {
    let (length, budget) = (training.sequence_length, training.scores_budget);
    let tokens = largest_part(training.batch_size, shard, shards) * length;
    Workspace::within(rooms, config, tokens, length, budget, parallelism, true)
}

/// The most sequences that part `part` of `parts` of a batch may have, of up to `batch_size` sequences.
fn largest_part(batch_size: usize, part: usize, parts: usize) -> usize {
    // A smaller batch may give this part one more than the whole does, but not one that is smaller by all parts' number.
    let batches = batch_size.saturating_sub(parts)..=batch_size;
    batches.map(|sequences| part_of(sequences, 1, part, parts).len()).max().unwrap_or(0)
}

/// A worker, or all workers together.
#[derive(Debug)]
pub(super) struct Shard {
    workspace: Workspace,
    parallelism: Parallelism,
    pub gradients: ParameterStore,
    /// The norms of `gradients`, as far as they are known.
    pub norms: GradientNorms,
    /// Whether `gradients` holds anything of the current step.
    pub has_gradients: bool,
    /// The sums of the current step.
    pub sum: LossSum,
}

/// What every shard is told about a training step.
#[derive(Clone, Copy)]
pub(super) struct Step<'a> {
    pub model: Model<'a>,
    pub batch: &'a Batch,
    pub loss: CrossEntropy,
    /// Factor of every target's gradient: 1 over the number of targets that count.
    pub weight: f32,
    pub masks: Masks,
    /// Sequences, from the first, whose forward has been made already.
    pub forwarded: usize,
}

impl Shard {
    /// The shards of a trainer, each with room for its largest part of a micro-batch.
    pub fn all(config: &TransformerConfig, training: &TrainingConfig, layout: &ParameterLayout) -> Vec<Self> {
        let (shards, parallelism) = split(training, layout);
        (0..shards)
            .map(|shard| Self {
                workspace: workspace(&Rooms::default(), config, training, (shard, shards), parallelism),
                parallelism,
                gradients: ParameterStore::zeros(layout),
                norms: GradientNorms::within(&Room::default(), layout),
                has_gradients: false,
                sum: LossSum::default(),
            })
            .collect()
    }

    /// Counts the workspaces of all shards in `rooms`, which only measure, and returns the number of shards: each has a
    /// gradient buffer besides.
    pub fn measure(
        rooms: &Rooms,
        config: &TransformerConfig,
        training: &TrainingConfig,
        layout: &ParameterLayout,
    ) -> usize {
        let (shards, parallelism) = split(training, layout);
        for shard in 0..shards {
            workspace(rooms, config, training, (shard, shards), parallelism);
            GradientNorms::within(&rooms.scratch, layout);
        }
        shards
    }

    /// Forgets the former step.
    pub fn begin(&mut self) {
        self.has_gradients = false;
        self.norms.forget();
        self.sum = LossSum::default();
    }

    fn pass(&self, batch: &Batch, masks: Option<Masks>, first_sequence: usize) -> Pass {
        let (sequence_length, parallelism) = (batch.sequence_length(), self.parallelism);
        Pass { sequence_length, masks, first_sequence, parallelism }
    }

    /// The forward of the sequences `rows` of a training step, beside the update by the gradient of the step before.
    pub fn forward_beside_update(
        &mut self,
        update: Update,
        config: &TrainingConfig,
        (model, optimizer): (&mut Transformer, &mut OptimizerState),
        (batch, masks): (&Batch, Masks),
        rows: Range<usize>,
    ) {
        let pass = self.pass(batch, Some(masks), rows.start);
        let (shape, layout, ids, parameters) = model.parts_mut();
        let update = PendingUpdate::new(update, config, layout, parameters, &self.gradients, optimizer);
        forward_beside_update((shape, ids), update, &mut self.workspace, batch.input_rows(rows), pass);
    }

    /// Adds the loss and the gradient of part `part` of `parts` of the sequences `rows`, which are the step's last or not.
    pub fn train(&mut self, step: Step<'_>, rows: Range<usize>, (part, parts): (usize, usize), is_last: bool) {
        let part = part_of(rows.len(), 1, part, parts);
        let rows = rows.start + part.start..rows.start + part.end;
        if rows.is_empty() {
            return;
        }
        let pass = self.pass(step.batch, Some(step.masks), rows.start);
        let (inputs, targets) = (step.batch.input_rows(rows.clone()), step.batch.target_rows(rows.clone()));
        if rows.start >= step.forwarded {
            forward(&step.model, &mut self.workspace, inputs, pass);
        }
        let write = if self.has_gradients { Write::Add } else { Write::Replace };
        // Further rows and other shards change the gradient, and its norms.
        let norms = (is_last && parts == 1).then_some(&mut self.norms);
        let output = GradientOutput { values: &mut self.gradients, write, norms };
        let sum = loss_and_gradients(
            &step.model,
            &mut self.workspace,
            (inputs, targets),
            (step.loss, step.weight),
            output,
            pass,
        );
        self.sum = self.sum + sum;
        self.has_gradients = true;
    }

    /// Adds the loss, without gradients and dropout, of part `part` of `parts` of the sequences `rows`.
    pub fn evaluate(
        &mut self,
        model: Model<'_>,
        batch: &Batch,
        (loss, top_k): (CrossEntropy, usize),
        rows: Range<usize>,
        (part, parts): (usize, usize),
    ) {
        let part = part_of(rows.len(), 1, part, parts);
        let rows = rows.start + part.start..rows.start + part.end;
        if rows.is_empty() {
            return;
        }
        let pass = self.pass(batch, None, rows.start);
        forward(&model, &mut self.workspace, batch.input_rows(rows.clone()), pass);
        let table = model.parameters.matrix(model.ids.tokens);
        let chunk_rows = self.workspace.scores.nrows();
        for (chunk, targets) in batch.target_rows(rows).chunks(chunk_rows).enumerate() {
            let range = chunk * chunk_rows..chunk * chunk_rows + targets.len();
            let normalised = self.workspace.normalised.slice(s![range, ..]);
            let mut scores = first(&mut self.workspace.scores, targets.len());
            gemm(1.0, normalised, table.t(), Write::Replace, scores.view_mut(), self.parallelism);
            self.sum = self.sum + loss.evaluate(scores.view(), targets, top_k, self.parallelism);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_batch_gives_a_shard_more_than_it_has_room_for() {
        for batch_size in 1..40 {
            for parts in 1..12 {
                for part in 0..parts {
                    let largest = (1..=batch_size).map(|sequences| part_of(sequences, 1, part, parts).len()).max();
                    assert_eq!(Some(largest_part(batch_size, part, parts)), largest, "{part} of {parts}, {batch_size}");
                }
            }
        }
    }
}
