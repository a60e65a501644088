//! The parameters, each a vector of its own, and the passes over all of them.

use cllm::{Transformer, TransformerConfig};

#[derive(Clone)]
pub struct Norm {
    pub gain: Vec<f32>,
    pub bias: Vec<f32>,
}

/// W is inputs × outputs, as GPT-2 stores it.
#[derive(Clone)]
pub struct Linear {
    pub weight: Vec<f32>,
    pub bias: Vec<f32>,
}

#[derive(Clone)]
pub struct Block {
    pub attention_norm: Norm,
    pub qkv: Linear,
    pub projection: Linear,
    pub feed_forward_norm: Norm,
    pub expand: Linear,
    pub contract: Linear,
}

#[derive(Clone)]
pub struct Parameters {
    /// V × C.
    pub tokens: Vec<f32>,
    /// context × C.
    pub positions: Vec<f32>,
    pub blocks: Vec<Block>,
    pub final_norm: Norm,
}

impl Parameters {
    /// A copy of what `value` gives for each name, as [`Transformer`] names its parameters.
    pub fn of(config: &TransformerConfig, value: impl Fn(&str) -> Vec<f32>) -> Self {
        let norm = |name: &str| Norm { gain: value(&format!("{name}.weight")), bias: value(&format!("{name}.bias")) };
        let linear =
            |name: &str| Linear { weight: value(&format!("{name}.weight")), bias: value(&format!("{name}.bias")) };
        let block = |block| Block {
            attention_norm: norm(&format!("h.{block}.ln_1")),
            qkv: linear(&format!("h.{block}.attn.c_attn")),
            projection: linear(&format!("h.{block}.attn.c_proj")),
            feed_forward_norm: norm(&format!("h.{block}.ln_2")),
            expand: linear(&format!("h.{block}.mlp.c_fc")),
            contract: linear(&format!("h.{block}.mlp.c_proj")),
        };
        Self {
            tokens: value("wte.weight"),
            positions: value("wpe.weight"),
            blocks: (0..config.layers).map(block).collect(),
            final_norm: norm("ln_f"),
        }
    }

    pub fn of_model(model: &Transformer) -> Self {
        Self::of(model.config(), |name| model.parameter(name).expect(name).iter().copied().collect())
    }

    pub fn zeros_like(&self) -> Self {
        let mut zeros = self.clone();
        zeros.clear();
        zeros
    }

    pub fn clear(&mut self) {
        self.all_mut().into_iter().for_each(|(values, _)| values.fill(0.0));
    }

    /// Every parameter in the order of [`Transformer::parameter_names`], and whether weight decay applies to it.
    pub fn all_mut(&mut self) -> Vec<(&mut Vec<f32>, bool)> {
        let mut all = vec![(&mut self.tokens, true), (&mut self.positions, true)];
        for block in &mut self.blocks {
            let Block { attention_norm, qkv, projection, feed_forward_norm, expand, contract } = block;
            all.extend([(&mut attention_norm.gain, false), (&mut attention_norm.bias, false)]);
            all.extend([(&mut qkv.weight, true), (&mut qkv.bias, false)]);
            all.extend([(&mut projection.weight, true), (&mut projection.bias, false)]);
            all.extend([(&mut feed_forward_norm.gain, false), (&mut feed_forward_norm.bias, false)]);
            all.extend([(&mut expand.weight, true), (&mut expand.bias, false)]);
            all.extend([(&mut contract.weight, true), (&mut contract.bias, false)]);
        }
        all.extend([(&mut self.final_norm.gain, false), (&mut self.final_norm.bias, false)]);
        all
    }
}
