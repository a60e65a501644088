//! Text from a trained model, a token at a time.
//!
//! A [`Generator`] keeps the keys and values of the tokens it has seen, so that a new token costs one row through the
//! model instead of the whole sequence. Its scores are those of [`Transformer::logits`] over the same tokens.
//!
//! Positions are learned, so they cannot slide: when the context is full, the last half of it is kept and run again from
//! position 0 (see [`Generator`]).

mod cache;
mod sampling;
mod text;

pub use sampling::Sampling;
pub use text::TextStream;

use cache::Cache;
use sampling::Sampler;

use crate::linalg::threads::SingleThreadedBlas;
use crate::models::transformer::{Model, Transformer, check_tokens};
use crate::{Error, Result};

/// Continues sequences of tokens.
///
/// The model sees a window of the tokens so far, at most its context. A token that comes when the window is full, with
/// T the context, first shortens the window to its last ⌊T/2⌋ tokens; those are run again, at the positions from 0 on.
/// A prompt longer than the context is cut at the same places as if its tokens came one at a time. So which tokens the
/// model sees depends on their number alone, not on the pieces they come in.
///
/// All buffers are allocated by [`Generator::new`]; prompts and steps allocate nothing. While a generator lives,
/// OpenBLAS is set to one thread for the whole process (see [`SingleThreadedBlas`]).
///
/// ```
/// use cllm::generate::{Generator, Sampling};
/// use cllm::{Transformer, TransformerConfig};
/// # fn main() -> cllm::Result<()> {
/// let config = TransformerConfig { vocabulary_size: 10, context: 8, dim: 16, heads: 2, layers: 1, feed_forward: 64,
///     ..Default::default() };
/// let model = Transformer::new(config, 1)?;
/// let mut generator = Generator::new(&model);
/// let sampling = Sampling { temperature: 0.8, top_k: Some(5), seed: 3, ..Default::default() };
/// let tokens = generator.generate(&[1, 2, 3], 20, &sampling)?;
/// assert_eq!(tokens.len(), 20);
/// assert_eq!(tokens, generator.generate(&[1, 2, 3], 20, &sampling)?);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Generator<'a> {
    model: Model<'a>,
    /// The tokens that the model sees; its capacity is the context.
    window: Vec<u32>,
    /// Tokens seen since the last reset.
    position: u64,
    cache: Cache,
    /// V: scores of the token that follows the cached ones.
    scores: Vec<f32>,
    sampler: Sampler,
    _blas: SingleThreadedBlas,
}

impl<'a> Generator<'a> {
    /// A generator for `model`, with its cache and its buffers.
    #[must_use]
    pub fn new(model: &'a Transformer) -> Self {
        let config = model.config();
        Self {
            model: model.view(),
            window: Vec::with_capacity(config.context),
            position: 0,
            cache: Cache::new(config),
            scores: vec![0.0; config.vocabulary_size],
            sampler: Sampler::new(config.vocabulary_size),
            _blas: SingleThreadedBlas::acquire(),
        }
    }

    /// Forgets all tokens.
    pub fn reset(&mut self) {
        self.window.clear();
        self.cache.clear();
        self.position = 0;
    }

    /// Number of tokens seen since the last reset, prompts and drawn tokens together.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The tokens that the model sees: the last of those so far, at most its context.
    #[must_use]
    pub fn window(&self) -> &[u32] {
        &self.window
    }

    /// Appends tokens and runs them through the model, many rows at a time.
    ///
    /// # Errors
    /// [`Error::TokenOutOfRange`]; the generator is then as before.
    pub fn prompt(&mut self, tokens: &[u32]) -> Result<()> {
        check_tokens("prompt", tokens, self.model.config.vocabulary_size, None)?;
        self.append(tokens);
        self.run();
        Ok(())
    }

    /// Scores of every next token (logits) after the tokens so far: the last row of [`Transformer::logits`] over
    /// [`Self::window`].
    ///
    /// # Errors
    /// [`Error::EmptyPrompt`] if there are no tokens yet.
    pub fn logits(&mut self) -> Result<&[f32]> {
        if self.window.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        self.run();
        Ok(&self.scores)
    }

    /// Draws the next token and appends it.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] if `sampling` is not valid, [`Error::EmptyPrompt`] if there is nothing to continue,
    /// [`Error::NonFiniteScore`] if the model's scores are not finite.
    pub fn next_token(&mut self, sampling: &Sampling) -> Result<u32> {
        sampling.validate()?;
        let position = self.position;
        self.logits()?;
        let token = self.sampler.draw(&self.scores, sampling, position)?;
        // It goes through the model only when its successor is asked for.
        self.append(&[token]);
        Ok(token)
    }

    /// Starts afresh with `prompt` and draws the `count` tokens after it. The same arguments give the same tokens.
    ///
    /// # Errors
    /// As [`Self::prompt`] and [`Self::next_token`].
    pub fn generate(&mut self, prompt: &[u32], count: usize, sampling: &Sampling) -> Result<Vec<u32>> {
        self.reset();
        self.prompt(prompt)?;
        self.tokens(*sampling).take(count).collect()
    }

    /// The tokens that follow, without end, each drawn when it is asked for.
    pub fn tokens(&mut self, sampling: Sampling) -> impl Iterator<Item = Result<u32>> {
        std::iter::from_fn(move || Some(self.next_token(&sampling)))
    }

    fn append(&mut self, tokens: &[u32]) {
        self.position += tokens.len() as u64;
        let context = self.model.config.context;
        let excess = (self.window.len() + tokens.len()).saturating_sub(context);
        let stride = context - context / 2;
        let dropped = excess.div_ceil(stride) * stride;
        let from_window = dropped.min(self.window.len());
        if from_window > 0 {
            self.window.drain(..from_window);
            self.cache.clear();
        }
        self.window.extend_from_slice(&tokens[dropped - from_window..]);
    }

    /// Brings cache and scores up to date with the window.
    fn run(&mut self) {
        let cached = self.cache.length();
        if cached < self.window.len() {
            self.cache.extend(&self.model, &self.window[cached..], &mut self.scores);
        }
    }
}
