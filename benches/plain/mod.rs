//! The plain reference: a training step as one would write it first, token by token.
//!
//! It computes what `cllm::Trainer` computes (GPT-2's arithmetic, cross-entropy, clipping by the global norm, AdamW), in
//! scalar loops that walk down the columns of the weights, with buffers that are allocated and freed on every call and
//! embeddings that are looked up one by one. Each of [`Optimizations`] changes one of these and nothing else.

pub mod buffers;
pub mod layers;
pub mod parameters;

use cllm::data::Batch;
use cllm::{TrainingConfig, Transformer, TransformerConfig};

use buffers::{Buffer, Buffers};
use layers::{Linears, Similarities, add, add_scaled, gelu, gelu_backward, norm, norm_backward, softmax};
use parameters::Parameters;

/// What is done better than plainly.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Optimizations {
    /// Buffers of the passes are allocated once.
    pub persistent_workspaces: bool,
    /// The embeddings of a batch's inputs and targets are gathered into a cache each, which stay from step to step.
    pub batch_embedding_caches: bool,
    /// Similarities (of outputs with embeddings, of queries with keys) are computed by BLAS.
    pub vectorised_similarities: bool,
    /// Weights are walked along their rows, as they lie in memory: what the order of loops alone is worth.
    pub weights_by_rows: bool,
}

/// A model that trains plainly.
pub struct Plain {
    model: TransformerConfig,
    training: TrainingConfig,
    optimizations: Optimizations,
    buffers: Buffers,
    /// N × C each: embeddings of a batch's inputs, positions included, and of its targets.
    caches: [Vec<f32>; 2],
    pub parameters: Parameters,
    pub gradients: Parameters,
    first_moments: Parameters,
    second_moments: Parameters,
    steps: i32,
}

/// What the forward of one block keeps of one token.
struct Token<'a> {
    input: Buffer<'a>,
    attention_input: Buffer<'a>,
    qkv: Buffer<'a>,
    /// Of each head, one for each key so far.
    probabilities: Vec<Buffer<'a>>,
    attended: Buffer<'a>,
    middle: Buffer<'a>,
    feed_forward_input: Buffer<'a>,
    expanded: Buffer<'a>,
    hidden: Buffer<'a>,
}

impl Plain {
    /// A copy of `model`, to be trained as `training` says: constant learning rate, AdamW.
    pub fn new(model: &Transformer, training: &TrainingConfig, optimizations: Optimizations) -> Self {
        let parameters = Parameters::of_model(model);
        let zeros = parameters.zeros_like();
        Self {
            model: model.config().clone(),
            training: training.clone(),
            optimizations,
            buffers: Buffers::new(optimizations.persistent_workspaces),
            caches: [Vec::new(), Vec::new()],
            gradients: zeros.clone(),
            first_moments: zeros.clone(),
            second_moments: zeros,
            parameters,
            steps: 0,
        }
    }

    /// One update; returns the loss.
    pub fn step(&mut self, batch: &Batch) -> f64 {
        let loss = self.compute_gradients(batch);
        self.update();
        loss
    }

    /// The mean loss of `batch`; its gradient is then in `gradients`.
    pub fn compute_gradients(&mut self, batch: &Batch) -> f64 {
        let weight = 1.0 / batch.inputs().len() as f32;
        self.gradients.clear();
        if self.optimizations.batch_embedding_caches {
            self.fill_caches(batch);
        }
        let Self { model, optimizations, buffers, caches, parameters, gradients, .. } = self;
        let linears = Linears { by_rows: optimizations.weights_by_rows };
        let similarities = Similarities { vectorised: optimizations.vectorised_similarities };
        let cached = optimizations.batch_embedding_caches.then_some(&*caches);
        let mut loss = 0.0;
        for (sequence, (inputs, targets)) in batch.inputs().rows().into_iter().zip(batch.targets().rows()).enumerate() {
            let first = sequence * inputs.len();
            let mut pass = Sequence { model, buffers, linears, similarities, parameters, gradients, weight };
            let mut kept: Vec<_> = (0..model.layers).map(|_| Vec::new()).collect();
            let mut outputs = Vec::new();
            for (place, &id) in inputs.iter().enumerate() {
                let embedded = match cached {
                    Some([inputs, _]) => buffers.copy(row(inputs, first + place, model.dim)),
                    None => embed(buffers, parameters, id, place, model.dim),
                };
                outputs.push(pass.forward_token(&mut kept, embedded));
            }
            let mut doutputs = Vec::new();
            for (place, (output, &target)) in outputs.iter().zip(&targets).enumerate() {
                let looked_up;
                let embedding = match cached {
                    Some([_, targets]) => row(targets, first + place, model.dim),
                    None => {
                        looked_up = buffers.copy(row(&parameters.tokens, target as usize, model.dim));
                        &*looked_up
                    }
                };
                let (token_loss, doutput) = pass.score(output, target, embedding);
                loss += f64::from(token_loss);
                doutputs.push(doutput);
            }
            pass.backward(&kept, &mut doutputs);
            for (place, (&id, dx)) in inputs.iter().zip(&doutputs).enumerate() {
                add(row_mut(&mut gradients.tokens, id as usize, model.dim), dx);
                add(row_mut(&mut gradients.positions, place, model.dim), dx);
            }
        }
        loss / batch.inputs().len() as f64
    }

    fn fill_caches(&mut self, batch: &Batch) {
        let (width, parameters) = (self.model.dim, &self.parameters);
        let [inputs, targets] = &mut self.caches;
        inputs.resize(batch.inputs().len() * width, 0.0);
        targets.resize(inputs.len(), 0.0);
        for (index, ((_, place), &id)) in batch.inputs().indexed_iter().enumerate() {
            let cached = row_mut(inputs, index, width);
            cached.copy_from_slice(row(&parameters.tokens, id as usize, width));
            add(cached, row(&parameters.positions, place, width));
        }
        for (index, &id) in batch.targets().iter().enumerate() {
            row_mut(targets, index, width).copy_from_slice(row(&parameters.tokens, id as usize, width));
        }
    }

    /// Clips the gradient and makes a step of AdamW.
    fn update(&mut self) {
        let config = &self.training;
        self.steps += 1;
        let mut gradients = self.gradients.all_mut();
        let squares: f64 = gradients.iter().flat_map(|(g, _)| g.iter()).map(|&g| f64::from(g) * f64::from(g)).sum();
        let clip = config.gradient_clip.map_or(1.0, |largest| (largest / (squares.sqrt() + 1e-6)).min(1.0)) as f32;
        let (rate, epsilon) = (config.learning_rate as f32, config.epsilon as f32);
        let (beta1, beta2) = (config.beta1 as f32, config.beta2 as f32);
        let correction1 = (1.0 - config.beta1.powi(self.steps)) as f32;
        let correction2 = (1.0 - config.beta2.powi(self.steps)) as f32;
        let moments = self.first_moments.all_mut().into_iter().zip(self.second_moments.all_mut());
        let parameters = self.parameters.all_mut().into_iter().zip(&mut gradients).zip(moments);
        for (((p, decays), (g, _)), ((m, _), (v, _))) in parameters {
            let keep = if decays { 1.0 - rate * config.weight_decay as f32 } else { 1.0 };
            for i in 0..p.len() {
                let g = clip * g[i];
                m[i] = beta1 * m[i] + (1.0 - beta1) * g;
                v[i] = beta2 * v[i] + (1.0 - beta2) * g * g;
                let step = (m[i] / correction1) / ((v[i] / correction2).sqrt() + epsilon);
                p[i] = keep * p[i] - rate * step;
            }
        }
    }
}

/// The passes over one sequence.
struct Sequence<'a, 'g> {
    model: &'a TransformerConfig,
    buffers: &'a Buffers,
    linears: Linears,
    similarities: Similarities,
    parameters: &'a Parameters,
    gradients: &'g mut Parameters,
    /// Factor of each token's gradient.
    weight: f32,
}

impl<'a> Sequence<'a, '_> {
    /// Takes one token through all blocks; `kept` has what each block keeps of the tokens before it.
    fn forward_token(&self, kept: &mut [Vec<Token<'a>>], mut x: Buffer<'a>) -> Buffer<'a> {
        let (buffers, linears, epsilon) = (self.buffers, self.linears, self.model.layer_norm_epsilon);
        for (layers, kept) in self.parameters.blocks.iter().zip(kept) {
            let attention_input = norm(buffers, &layers.attention_norm, &x, epsilon);
            let qkv = linears.forward(buffers, &layers.qkv, &attention_input);
            let (probabilities, attended) = self.attend(kept, &qkv);
            let mut middle = linears.forward(buffers, &layers.projection, &attended);
            add(&mut middle, &x);
            let feed_forward_input = norm(buffers, &layers.feed_forward_norm, &middle, epsilon);
            let expanded = linears.forward(buffers, &layers.expand, &feed_forward_input);
            let hidden = gelu(buffers, &expanded);
            let mut output = linears.forward(buffers, &layers.contract, &hidden);
            add(&mut output, &middle);
            let input = std::mem::replace(&mut x, output);
            kept.push(Token {
                input,
                attention_input,
                qkv,
                probabilities,
                attended,
                middle,
                feed_forward_input,
                expanded,
                hidden,
            });
        }
        x
    }

    /// Attention of one token, whose query, key and value are `qkv`, to those before it and to itself.
    fn attend(&self, before: &[Token<'a>], qkv: &[f32]) -> (Vec<Buffer<'a>>, Buffer<'a>) {
        let (width, head_width) = (self.model.dim, self.model.head_dim());
        let scale = 1.0 / (head_width as f32).sqrt();
        let mut attended = self.buffers.zeros(width);
        let mut probabilities = Vec::new();
        for head in 0..self.model.heads {
            let [q, k, v] =
                [0, 1, 2].map(|part| part * width + head * head_width..part * width + (head + 1) * head_width);
            let seen = || before.iter().map(|token| &*token.qkv).chain([qkv]);
            let mut p = self.buffers.zeros(before.len() + 1);
            for (score, other) in p.iter_mut().zip(seen()) {
                *score = scale * self.similarities.dot(&qkv[q.clone()], &other[k.clone()]);
            }
            softmax(&mut p);
            for (p, other) in p.iter().zip(seen()) {
                for (sum, v) in attended[head * head_width..].iter_mut().zip(&other[v.clone()]) {
                    *sum += p * v;
                }
            }
            probabilities.push(p);
        }
        (probabilities, attended)
    }

    /// Loss of one token, and the gradient of the last block's output.
    fn score(&mut self, output: &[f32], target: u32, target_embedding: &[f32]) -> (f32, Buffer<'a>) {
        let (buffers, epsilon) = (self.buffers, self.model.layer_norm_epsilon);
        let (parameters, gradients) = (self.parameters, &mut *self.gradients);
        let normalised = norm(buffers, &parameters.final_norm, output, epsilon);
        let target_score = self.similarities.dot(&normalised, target_embedding);
        let mut scores = self.similarities.scores(buffers, &parameters.tokens, &normalised);
        let loss = softmax(&mut scores) - target_score;
        scores.iter_mut().for_each(|p| *p *= self.weight);
        let dtokens = &mut gradients.tokens;
        let mut dnormalised = self.similarities.backward(buffers, &parameters.tokens, dtokens, &normalised, &scores);
        // The target's part of the gradient, softmax − onehot.
        add_scaled(&mut dnormalised, -self.weight, target_embedding);
        add_scaled(row_mut(dtokens, target as usize, self.model.dim), -self.weight, &normalised);
        let final_norm = &mut gradients.final_norm;
        (loss, norm_backward(buffers, &parameters.final_norm, final_norm, output, &dnormalised, epsilon))
    }

    /// Takes `dx`, the gradient of the last block's output at each token, back to the embeddings.
    fn backward(&mut self, kept: &[Vec<Token<'a>>], dx: &mut [Buffer<'a>]) {
        let (buffers, linears, epsilon) = (self.buffers, self.linears, self.model.layer_norm_epsilon);
        for (block, kept) in kept.iter().enumerate().rev() {
            let layers = &self.parameters.blocks[block];
            // Keys and values collect gradients of all later tokens, so tokens go from the last to the first.
            let mut dqkv: Vec<_> = kept.iter().map(|_| buffers.zeros(3 * self.model.dim)).collect();
            for (place, token) in kept.iter().enumerate().rev() {
                let gradients = &mut self.gradients.blocks[block];
                let dx = &mut dx[place];
                let dhidden = linears.backward(buffers, &layers.contract, &mut gradients.contract, &token.hidden, dx);
                let dexpanded = gelu_backward(buffers, &token.expanded, &dhidden);
                let expand = &mut gradients.expand;
                let dinput = linears.backward(buffers, &layers.expand, expand, &token.feed_forward_input, &dexpanded);
                let feed_forward_norm = &mut gradients.feed_forward_norm;
                let middle = &token.middle;
                add(
                    dx,
                    &norm_backward(buffers, &layers.feed_forward_norm, feed_forward_norm, middle, &dinput, epsilon),
                );

                let projection = &mut gradients.projection;
                let dattended = linears.backward(buffers, &layers.projection, projection, &token.attended, dx);
                self.attend_backward(&kept[..=place], &dattended, &mut dqkv[..=place]);

                let gradients = &mut self.gradients.blocks[block];
                let qkv = &mut gradients.qkv;
                let dinput = linears.backward(buffers, &layers.qkv, qkv, &token.attention_input, &dqkv[place]);
                let attention_norm = &mut gradients.attention_norm;
                add(
                    dx,
                    &norm_backward(buffers, &layers.attention_norm, attention_norm, &token.input, &dinput, epsilon),
                );
            }
        }
    }

    /// Adds what the last of `kept` passes back to the queries, keys and values of all of them.
    fn attend_backward(&self, kept: &[Token<'a>], dattended: &[f32], dqkv: &mut [Buffer<'a>]) {
        let (width, head_width) = (self.model.dim, self.model.head_dim());
        let scale = 1.0 / (head_width as f32).sqrt();
        let last = kept.len() - 1;
        for head in 0..self.model.heads {
            let columns = head * head_width..(head + 1) * head_width;
            let [q, k, v] =
                [0, 1, 2].map(|part| part * width + head * head_width..part * width + (head + 1) * head_width);
            let (p, dy) = (&kept[last].probabilities[head], &dattended[columns]);
            let mut dp = self.buffers.zeros(p.len());
            let mut mean = 0.0;
            for (other, token) in kept.iter().enumerate() {
                dp[other] = self.similarities.dot(dy, &token.qkv[v.clone()]);
                mean += p[other] * dp[other];
                add_scaled(&mut dqkv[other][v.clone()], p[other], dy);
            }
            for (other, token) in kept.iter().enumerate() {
                let dscore = p[other] * (dp[other] - mean) * scale;
                add_scaled(&mut dqkv[last][q.clone()], dscore, &token.qkv[k.clone()]);
                add_scaled(&mut dqkv[other][k.clone()], dscore, &kept[last].qkv[q.clone()]);
            }
        }
    }
}

/// The embedding of a token at a place.
fn embed<'a>(buffers: &'a Buffers, parameters: &Parameters, id: u32, place: usize, width: usize) -> Buffer<'a> {
    let mut embedded = buffers.copy(row(&parameters.tokens, id as usize, width));
    add(&mut embedded, row(&parameters.positions, place, width));
    embedded
}

fn row(matrix: &[f32], row: usize, width: usize) -> &[f32] {
    &matrix[row * width..(row + 1) * width]
}

fn row_mut(matrix: &mut [f32], row: usize, width: usize) -> &mut [f32] {
    &mut matrix[row * width..(row + 1) * width]
}
