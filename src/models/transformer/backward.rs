//! The backward pass: the forward's list reversed.

use ndarray::{Array2, ArrayView2, ArrayViewMut2, s};

use super::Model;
use super::forward::Pass;
use super::parameters::{LinearIds, NormIds};
use super::workspace::{Workspace, first};
use crate::layers::dropout::Site;
use crate::layers::layer_norm::Statistics;
use crate::layers::{attention, embedding, feed_forward, layer_norm, linear, slice_mut};
use crate::linalg::{Write, gemm};
use crate::loss::cross_entropy::{CrossEntropy, LossSum};
use crate::parallel::Parallelism;
use crate::params::{GradientNorms, ParameterId, ParameterStore};

/// Where the gradient of every parameter goes.
pub(crate) struct GradientOutput<'a> {
    pub values: &'a mut ParameterStore,
    /// Whether it replaces what is there or is added to it.
    pub write: Write,
    /// Norms to take of what is written, if this is the last to write.
    pub norms: Option<&'a mut GradientNorms>,
}

impl GradientOutput<'_> {
    /// Writes, or adds, the gradient xᵀ·dy of the weight `id`.
    fn weight(&mut self, id: ParameterId, x: ArrayView2<'_, f32>, dy: ArrayView2<'_, f32>, parallelism: Parallelism) {
        let dweight = self.values.matrix_mut(id);
        match &mut self.norms {
            Some(norms) => {
                norms.tell(id, linear::backward_weight_and_norm(x, dy, dweight, self.write, parallelism));
            }
            None => linear::backward_weight(x, dy, dweight, self.write, parallelism),
        }
    }
}

/// Computes, after the [`forward`](super::forward) of `ids`, the loss of `targets` and, for `weight` times it, the gradient
/// of every parameter.
pub(crate) fn loss_and_gradients(
    model: &Model<'_>,
    workspace: &mut Workspace,
    (ids, targets): (&[u32], &[u32]),
    (loss, weight): (CrossEntropy, f32),
    mut output: GradientOutput<'_>,
    pass: Pass,
) -> LossSum {
    if output.write == Write::Replace {
        clear_added(model, output.values);
    }
    let sum = score(model, workspace, targets, (loss, weight), &mut output, pass);
    backward(model, workspace, ids, output, pass);
    sum
}

/// Zeroes the gradients that the backward only ever adds to; the others are overwritten.
pub(crate) fn clear_added(model: &Model<'_>, gradients: &mut ParameterStore) {
    gradients.slice_mut(model.ids.positions).fill(0.0);
    let norms = model.ids.blocks.iter().flat_map(|block| [block.attention_norm, block.feed_forward_norm]);
    for norm in norms.chain([model.ids.final_norm]) {
        gradients.slice_mut(norm.gain).fill(0.0);
        gradients.slice_mut(norm.bias).fill(0.0);
    }
}

/// Scores every row against the vocabulary, and takes the gradient back to the output of the final norm
/// (`gradients.layer`) and to the token table.
fn score(
    model: &Model<'_>,
    workspace: &mut Workspace,
    targets: &[u32],
    (loss, weight): (CrossEntropy, f32),
    output: &mut GradientOutput<'_>,
    pass: Pass,
) -> LossSum {
    let table = model.parameters.matrix(model.ids.tokens);
    let activation_gradients = workspace.gradients.as_mut().expect("the workspace has room for gradients");
    let chunk_rows = workspace.scores.nrows();
    let mut sum = LossSum::default();
    let write = output.write;
    for (chunk, targets) in targets.chunks(chunk_rows).enumerate() {
        let range = chunk * chunk_rows..chunk * chunk_rows + targets.len();
        let normalised = workspace.normalised.slice(s![range.clone(), ..]);
        let mut scores = first(&mut workspace.scores, targets.len());
        gemm(1.0, normalised, table.t(), Write::Replace, scores.view_mut(), pass.parallelism);
        sum = sum + loss.replace_by_gradient(scores.view_mut(), targets, weight, pass.parallelism);
        let dnormalised = activation_gradients.layer.slice_mut(s![range, ..]);
        gemm(1.0, scores.view(), table, Write::Replace, dnormalised, pass.parallelism);
        output.weight(model.ids.tokens, scores.view(), normalised, pass.parallelism);
        output.write = Write::Add;
    }
    output.write = write;
    sum
}

fn backward(model: &Model<'_>, workspace: &mut Workspace, ids: &[u32], output: GradientOutput<'_>, pass: Pass) {
    let GradientOutput { values: gradients, norms, .. } = backward_encode(model, workspace, ids.len(), output, pass);
    let buffers = workspace.gradients.as_mut().expect("the workspace has room for gradients");
    let mut dresidual = first(&mut buffers.residual, ids.len());
    pass.drop(Site::Embedding, model.config.embedding_dropout, model.config.dim, slice_mut(&mut dresidual));
    let (dembedded, dtokens) = (dresidual.view(), gradients.matrix_mut(model.ids.tokens));
    match norms {
        Some(norms) => {
            norms.change(model.ids.tokens, embedding::backward_tokens_and_norm(ids, dembedded, dtokens));
        }
        None => embedding::backward_tokens(ids, dembedded, dtokens),
    }
    let dpositions = gradients.matrix_mut(model.ids.positions);
    embedding::backward_positions(pass.sequence_length, dresidual.view(), dpositions);
}

/// The backward of [`encode`](super::encode): from the gradient of the final norm's output, `gradients.layer`, to that of
/// the embedded input, `gradients.residual`.
pub(crate) fn backward_encode<'a>(
    model: &Model<'_>,
    workspace: &mut Workspace,
    tokens: usize,
    output: GradientOutput<'a>,
    pass: Pass,
) -> GradientOutput<'a> {
    let config = model.config;
    let rows = s![..tokens, ..];
    let buffers = workspace.gradients.as_mut().expect("the workspace has room for gradients");
    let mut dresidual = first(&mut buffers.residual, tokens);
    let mut dlayer = first(&mut buffers.layer, tokens);
    let mut dqkv = first(&mut buffers.qkv, tokens);
    let mut dhidden = first(&mut buffers.hidden, tokens);
    let mut layers = Layers { model, output, pass };

    dresidual.fill(0.0);
    let last = workspace.residual[config.layers].slice(rows);
    layers.norm(model.ids.final_norm, last, &workspace.final_norm, dlayer.view(), dresidual.view_mut());

    for (block, (ids, activations)) in model.ids.blocks.iter().zip(&workspace.blocks).enumerate().rev() {
        let projected = layers.dropped(Site::FeedForwardResidual(block), dresidual.view(), &mut buffers.dropped);
        layers.linear(ids.contract, activations.hidden.slice(rows), projected, dhidden.view_mut());
        feed_forward::activate_backward(activations.derivative.slice(rows), dhidden.view_mut(), pass.parallelism);
        layers.linear(ids.expand, activations.feed_forward_input.slice(rows), dhidden.view(), dlayer.view_mut());
        let (input, statistics) = (activations.middle.slice(rows), &activations.feed_forward_norm);
        layers.norm(ids.feed_forward_norm, input, statistics, dlayer.view(), dresidual.view_mut());

        let projected = layers.dropped(Site::AttentionResidual(block), dresidual.view(), &mut buffers.dropped);
        let attended = activations.attended.slice(rows);
        layers.linear(ids.attention_projection, attended, projected, dlayer.view_mut());
        attention::backward(
            pass.attention(model, block),
            activations.qkv.slice(rows),
            activations.log_sum_exp.slice(s![.., ..tokens]),
            dlayer.view(),
            dqkv.view_mut(),
            &mut workspace.attention,
            pass.parallelism,
        );
        layers.linear(ids.qkv, activations.attention_input.slice(rows), dqkv.view(), dlayer.view_mut());
        let (input, statistics) = (workspace.residual[block].slice(rows), &activations.attention_norm);
        layers.norm(ids.attention_norm, input, statistics, dlayer.view(), dresidual.view_mut());
    }
    layers.output
}

/// The backward of single layers, with what they all share.
struct Layers<'m, 'a> {
    model: &'m Model<'m>,
    output: GradientOutput<'a>,
    pass: Pass,
}

impl Layers<'_, '_> {
    fn linear(&mut self, ids: LinearIds, x: ArrayView2<'_, f32>, dy: ArrayView2<'_, f32>, dx: ArrayViewMut2<'_, f32>) {
        let parallelism = self.pass.parallelism;
        linear::backward_input(dy, self.model.parameters.matrix(ids.weight), dx, parallelism);
        let GradientOutput { values, write, .. } = &mut self.output;
        linear::backward_bias(dy, values.slice_mut(ids.bias), *write);
        self.output.weight(ids.weight, x, dy, parallelism);
    }

    fn norm(
        &mut self,
        ids: NormIds,
        x: ArrayView2<'_, f32>,
        statistics: &Statistics,
        dy: ArrayView2<'_, f32>,
        dx: ArrayViewMut2<'_, f32>,
    ) {
        let (dgain, dbias) = self.output.values.pair_mut(ids.gain, ids.bias);
        layer_norm::backward(x, statistics, self.model.parameters.slice(ids.gain), dy, dx, dgain, dbias);
    }

    /// The gradient of a projection whose output was dropped at `site` before it joined the residual stream.
    fn dropped<'a>(
        &self,
        site: Site,
        dresidual: ArrayView2<'a, f32>,
        copy: &'a mut Array2<f32>,
    ) -> ArrayView2<'a, f32> {
        let probability = self.pass.residual_dropout(self.model);
        if probability == 0.0 {
            return dresidual;
        }
        let mut masked = first(copy, dresidual.nrows());
        masked.assign(&dresidual);
        self.pass.drop(site, probability, self.model.config.dim, slice_mut(&mut masked));
        copy.slice(s![..dresidual.nrows(), ..])
    }
}
