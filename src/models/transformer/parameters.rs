//! The parameters of a transformer: names and shapes as in Hugging Face's GPT-2, without a prefix.

use crate::config::TransformerConfig;
use crate::params::{Initialisation, ParameterId, ParameterLayout};

/// Gain and bias of a layer norm.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NormIds {
    pub gain: ParameterId,
    pub bias: ParameterId,
}

/// Weight (`inputs × outputs`) and bias of a linear layer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LinearIds {
    pub weight: ParameterId,
    pub bias: ParameterId,
}

/// The parameters of one block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BlockIds {
    pub attention_norm: NormIds,
    pub qkv: LinearIds,
    pub attention_projection: LinearIds,
    pub feed_forward_norm: NormIds,
    pub expand: LinearIds,
    pub contract: LinearIds,
}

/// The parameters of the whole model.
#[derive(Clone, Debug)]
pub(crate) struct TransformerIds {
    pub tokens: ParameterId,
    pub positions: ParameterId,
    pub blocks: Vec<BlockIds>,
    pub final_norm: NormIds,
}

/// The table of parameters, and their ids by role.
pub(crate) fn layout(config: &TransformerConfig) -> (ParameterLayout, TransformerIds) {
    let mut layout = ParameterLayout::default();
    let deviation = Initialisation::Normal(config.initial_deviation);
    let tokens = layout.matrix("wte.weight", config.vocabulary_size, config.dim, deviation);
    let ids = add_encoder(&mut layout, config, tokens);
    (layout, ids)
}

/// Adds all parameters but the table of `tokens`, which is there already.
pub(crate) fn add_encoder(
    layout: &mut ParameterLayout,
    config: &TransformerConfig,
    tokens: ParameterId,
) -> TransformerIds {
    let (dim, hidden) = (config.dim, config.feed_forward);
    let deviation = config.initial_deviation;
    // GPT-2 scales the projections onto the residual stream, two a block, so that its variance does not grow with depth.
    let residual_deviation = deviation / ((2 * config.layers) as f32).sqrt();
    let normal = Initialisation::Normal;

    let positions = layout.matrix("wpe.weight", config.context, dim, normal(deviation));
    let blocks = (0..config.layers)
        .map(|block| {
            let name = |part: &str| format!("h.{block}.{part}");
            BlockIds {
                attention_norm: norm(layout, &name("ln_1"), dim),
                qkv: linear(layout, &name("attn.c_attn"), dim, 3 * dim, deviation),
                attention_projection: linear(layout, &name("attn.c_proj"), dim, dim, residual_deviation),
                feed_forward_norm: norm(layout, &name("ln_2"), dim),
                expand: linear(layout, &name("mlp.c_fc"), dim, hidden, deviation),
                contract: linear(layout, &name("mlp.c_proj"), hidden, dim, residual_deviation),
            }
        })
        .collect();
    let final_norm = norm(layout, "ln_f", dim);
    TransformerIds { tokens, positions, blocks, final_norm }
}

fn norm(layout: &mut ParameterLayout, name: &str, dim: usize) -> NormIds {
    NormIds {
        gain: layout.vector(format!("{name}.weight"), dim, Initialisation::Ones),
        bias: layout.vector(format!("{name}.bias"), dim, Initialisation::Zeros),
    }
}

fn linear(layout: &mut ParameterLayout, name: &str, inputs: usize, outputs: usize, deviation: f32) -> LinearIds {
    LinearIds {
        weight: layout.matrix(format!("{name}.weight"), inputs, outputs, Initialisation::Normal(deviation)),
        bias: layout.vector(format!("{name}.bias"), outputs, Initialisation::Zeros),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::transformer::Transformer;

    #[test]
    fn weights_begin_as_those_of_gpt_2() {
        let config = TransformerConfig { dim: 64, layers: 8, feed_forward: 256, ..Default::default() };
        let model = Transformer::new(config, 3).unwrap();
        for spec in model.layout().specs() {
            let values = model.parameters().slice(spec.id);
            let deviation = if spec.name.ends_with("c_proj.weight") { 0.005 } else { 0.02 };
            let found = (values.iter().map(|w| f64::from(w * w)).sum::<f64>() / values.len() as f64).sqrt();
            match spec.shape.len() {
                2 => assert!((found / deviation - 1.0).abs() < 0.05, "{}: deviation {found}", spec.name),
                _ if spec.name.ends_with("bias") => assert!(values.iter().all(|&bias| bias == 0.0), "{}", spec.name),
                _ => assert!(values.iter().all(|&gain| gain == 1.0), "{}", spec.name),
            }
        }
    }
}
