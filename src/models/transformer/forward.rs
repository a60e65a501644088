//! The forward pass, a flat list of layers.

use std::ops::Range;

use ndarray::{ArrayView2, s};

use super::Model;
use super::workspace::{Workspace, first};
use crate::layers::attention::{self, Attention, AttentionDropout};
use crate::layers::dropout::{Masks, Site};
use crate::layers::{embedding, feed_forward, layer_norm, linear, slice_mut};
use crate::parallel::Parallelism;

/// What a pass is told besides its tokens.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pass {
    /// Tokens in a sequence.
    pub sequence_length: usize,
    /// The step's dropout masks; none in evaluation.
    pub masks: Option<Masks>,
    /// Index in the step's whole batch of the first sequence here.
    pub first_sequence: usize,
    /// Workers inside an operation.
    pub parallelism: Parallelism,
}

impl Pass {
    /// Drops values of a matrix with `width` columns at `site`.
    pub fn drop(&self, site: Site, probability: f32, width: usize, values: &mut [f32]) {
        if let Some(masks) = self.masks {
            let first = (self.first_sequence * self.sequence_length * width) as u64;
            masks.apply(site, probability, first, values);
        }
    }

    pub fn attention(&self, model: &Model<'_>, block: usize) -> Attention {
        let probability = model.config.attention_dropout;
        let dropout = self.masks.filter(|_| probability > 0.0).map(|masks| AttentionDropout {
            masks,
            block,
            probability,
            first_sequence: self.first_sequence,
        });
        Attention { sequence_length: self.sequence_length, heads: model.config.heads, dropout }
    }

    /// The probability of dropping what a block adds to the residual stream.
    pub fn residual_dropout(&self, model: &Model<'_>) -> f32 {
        if self.masks.is_some() { model.config.residual_dropout } else { 0.0 }
    }
}

/// Fills the workspace's activations for `ids`, up to the normalised output of the last block.
pub(crate) fn forward(model: &Model<'_>, workspace: &mut Workspace, ids: &[u32], pass: Pass) {
    let Model { config, ids: parameter_ids, parameters } = *model;
    let tokens = ids.len();

    let mut embedded = first(&mut workspace.residual[0], tokens);
    let token_table = parameters.matrix(parameter_ids.tokens);
    embedding::forward(
        ids,
        pass.sequence_length,
        token_table,
        parameters.matrix(parameter_ids.positions),
        embedded.view_mut(),
    );
    pass.drop(Site::Embedding, config.embedding_dropout, config.dim, slice_mut(&mut embedded));
    encode(model, workspace, tokens, pass);
}

/// Fills the workspace's activations behind the first residual stream, of which `tokens` rows are embedded: the blocks
/// and the final norm.
pub(crate) fn encode(model: &Model<'_>, workspace: &mut Workspace, tokens: usize, pass: Pass) {
    encode_blocks(model, workspace, 0..model.config.layers, tokens, pass);
    normalise_last(model, workspace, tokens, pass);
}

/// The `blocks` of [`encode`]; of the parameters, theirs are all it takes.
pub(super) fn encode_blocks(
    model: &Model<'_>,
    workspace: &mut Workspace,
    blocks: Range<usize>,
    tokens: usize,
    pass: Pass,
) {
    let Model { config, ids: parameter_ids, parameters } = *model;
    let parallelism = pass.parallelism;
    let rows = s![..tokens, ..];

    for block in blocks {
        let (ids, activations) = (&parameter_ids.blocks[block], &mut workspace.blocks[block]);
        let [input, output] = &mut workspace.residual[block..block + 2] else { unreachable!() };
        let input = input.slice(rows);

        layer_norm::forward(
            input,
            parameters.slice(ids.attention_norm.gain),
            parameters.slice(ids.attention_norm.bias),
            config.layer_norm_epsilon,
            first(&mut activations.attention_input, tokens),
            &mut activations.attention_norm,
            parallelism,
        );
        linear::forward(
            activations.attention_input.slice(rows),
            parameters.matrix(ids.qkv.weight),
            parameters.slice(ids.qkv.bias),
            first(&mut activations.qkv, tokens),
            parallelism,
        );
        attention::forward(
            pass.attention(model, block),
            activations.qkv.slice(rows),
            first(&mut activations.attended, tokens),
            activations.log_sum_exp.slice_mut(s![.., ..tokens]),
            &mut workspace.attention,
            parallelism,
        );
        add_projection(
            model,
            (ids.attention_projection, Site::AttentionResidual(block)),
            activations.attended.slice(rows),
            input,
            &mut activations.middle,
            pass,
        );

        layer_norm::forward(
            activations.middle.slice(rows),
            parameters.slice(ids.feed_forward_norm.gain),
            parameters.slice(ids.feed_forward_norm.bias),
            config.layer_norm_epsilon,
            first(&mut activations.feed_forward_input, tokens),
            &mut activations.feed_forward_norm,
            parallelism,
        );
        linear::forward(
            activations.feed_forward_input.slice(rows),
            parameters.matrix(ids.expand.weight),
            parameters.slice(ids.expand.bias),
            first(&mut activations.derivative, tokens),
            parallelism,
        );
        feed_forward::activate(
            first(&mut activations.derivative, tokens),
            first(&mut activations.hidden, tokens),
            parallelism,
        );
        add_projection(
            model,
            (ids.contract, Site::FeedForwardResidual(block)),
            activations.hidden.slice(rows),
            activations.middle.slice(rows),
            output,
            pass,
        );
    }
}

/// The final norm of [`encode`].
pub(super) fn normalise_last(model: &Model<'_>, workspace: &mut Workspace, tokens: usize, pass: Pass) {
    let Model { config, ids, parameters } = *model;
    layer_norm::forward(
        workspace.residual[config.layers].slice(s![..tokens, ..]),
        parameters.slice(ids.final_norm.gain),
        parameters.slice(ids.final_norm.bias),
        config.layer_norm_epsilon,
        first(&mut workspace.normalised, tokens),
        &mut workspace.final_norm,
        pass.parallelism,
    );
}

/// output ← residual + dropout(x·W + b).
fn add_projection(
    model: &Model<'_>,
    (ids, site): (super::parameters::LinearIds, Site),
    x: ArrayView2<'_, f32>,
    residual: ArrayView2<'_, f32>,
    output: &mut ndarray::Array2<f32>,
    pass: Pass,
) {
    let (weight, bias) = (model.parameters.matrix(ids.weight), model.parameters.slice(ids.bias));
    let mut output = first(output, x.nrows());
    let probability = pass.residual_dropout(model);
    if probability == 0.0 {
        return linear::forward_residual(x, weight, bias, residual, output, pass.parallelism);
    }
    linear::forward(x, weight, bias, output.view_mut(), pass.parallelism);
    pass.drop(site, probability, model.config.dim, slice_mut(&mut output));
    output += &residual;
}
