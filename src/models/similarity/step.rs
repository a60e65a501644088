//! A training step: gather, encode, compare, loss, backward, update.

use ndarray::{ArrayView2, Zip, s};

use super::{Batch, Encoder, SimilarityModel, State};
use crate::kernels::reduce::all_finite;
use crate::layers::embedding;
use crate::linalg::Write;
use crate::loss::log_similarity;
use crate::models::transformer::{
    GradientOutput, Model, Pass, backward_encode, check_tokens, clear_added, encode, first,
};
use crate::optim::{PendingUpdate, Update};
use crate::parallel::{Parallelism, for_rows};
use crate::similarity::row_dots;
use crate::{Error, Result};

impl SimilarityModel {
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
        let model = Model { config, ids, parameters: self.parameters.view() };
        encode(&model, workspace, rows.nrows(), pass);
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
        self.batch.loss = loss / pairs;
        self.batch.loss
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
        let model = Model { config, ids, parameters: parameters.view() };
        clear_added(&model, gradients);
        let buffers = workspace.gradients.as_mut().expect("the workspace has room for gradients");
        first(&mut buffers.layer, pairs).assign(&batch.d_inputs.slice(rows));
        let output = GradientOutput { values: gradients, write: Write::Replace, norms: None };
        backward_encode(&model, workspace, pairs, output, pass);
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
    /// [`Error::NonFinite`] if a gradient or the loss is not finite; nothing is changed then.
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
        // Finite weights can have a product that is not, and it may have a gradient of 0.
        if !self.batch.loss.is_finite() {
            return Err(Error::NonFinite { step, what: "the loss".into(), value: self.batch.loss });
        }
        self.in_workers(|model| {
            let parallelism = model.parallelism();
            let Self { layout, optimizer_config, optimizer, parameters, gradients, config, .. } = model;
            let update = Update { step, learning_rate: config.learning_rate, gradient_scale: 1.0 };
            PendingUpdate::new(update, optimizer_config, layout, parameters, gradients, optimizer).apply(parallelism);
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
}

/// scales\[i\] ← 1/|row i|, or 0 for a row of zeros.
fn scales(rows: ArrayView2<'_, f32>, scales: &mut [f32], parallelism: Parallelism) {
    row_dots(rows, rows, scales, parallelism);
    for_rows(parallelism, scales.len(), scales, &|scales: &mut [f32]| {
        scales.iter_mut().for_each(|scale| *scale = if *scale == 0.0 { 0.0 } else { 1.0 / scale.sqrt() });
    });
}
