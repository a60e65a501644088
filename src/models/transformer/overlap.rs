//! A forward pass beside the update that it waits for.
//!
//! AdamW reads and writes 28 bytes a parameter, and one worker is bound by memory almost as much as all are. So the
//! workers do not share the update and then the forward: one updates what a later block needs while the others multiply
//! by what is updated already, and whoever is done first takes halves of the other's work. The token table comes last,
//! since scores need it last; the rows that the batch embeds are computed as they will be. All values are bit by bit
//! those of the forward after the update.

use rayon::join;

use super::forward::{Pass, encode_blocks, normalise_last};
use super::workspace::{Workspace, first};
use super::{Model, TransformerIds};
use crate::config::TransformerConfig;
use crate::layers::dropout::Site;
use crate::layers::{embedding, slice_mut};
use crate::optim::PendingUpdate;

/// As [`forward`](super::forward) of the model that `update` leads to; makes the update.
pub(crate) fn forward_beside_update(
    (config, parameter_ids): (&TransformerConfig, &TransformerIds),
    update: PendingUpdate<'_>,
    workspace: &mut Workspace,
    ids: &[u32],
    pass: Pass,
) {
    let tokens = ids.len();
    let (table, update) = update.split_at(parameter_ids.positions.range().start);
    let (update, mut rest) = update.split_at(end_of_blocks(parameter_ids, 1));
    let mut parameters = update.apply(pass.parallelism);

    let mut embedded = first(&mut workspace.residual[0], tokens);
    for (&id, mut row) in ids.iter().zip(embedded.rows_mut()) {
        let row = row.as_slice_mut().expect("rows are contiguous");
        let start = parameter_ids.tokens.range().start + id as usize * config.dim;
        table.preview(start..start + config.dim, row);
    }
    embedding::add_positions(pass.sequence_length, parameters.matrix(parameter_ids.positions), embedded.view_mut());
    pass.drop(Site::Embedding, config.embedding_dropout, config.dim, slice_mut(&mut embedded));

    let mut blocks = 0..config.layers.min(1);
    while blocks.end < config.layers {
        let model = Model { config, ids: parameter_ids, parameters };
        // The more blocks are ahead, the more can be updated beside them: 1, 2, 4, …
        let next = blocks.end..(2 * blocks.end + 1).min(config.layers);
        let (update, later) = rest.split_at(end_of_blocks(parameter_ids, next.end));
        ((), parameters) =
            join(|| encode_blocks(&model, workspace, blocks, tokens, pass), || update.apply(pass.parallelism));
        (blocks, rest) = (next, later);
    }
    let model = Model { config, ids: parameter_ids, parameters };
    let encode = || {
        encode_blocks(&model, workspace, blocks, tokens, pass);
        normalise_last(&model, workspace, tokens, pass);
    };
    join(encode, || table.apply(pass.parallelism));
}

/// Where the parameters of the first `blocks` blocks end, or, if these are all, those of the final norm, the last of all.
fn end_of_blocks(ids: &TransformerIds, blocks: usize) -> usize {
    match ids.blocks.get(blocks) {
        Some(next) => next.attention_norm.gain.range().start,
        None => ids.final_norm.bias.range().end,
    }
}
