//! Named shapes.

use serde::{Deserialize, Serialize};

use super::TransformerConfig;

/// A named model shape with the batch it is usually trained on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Preset {
    /// 2 layers of width 128, 4 sequences of 32 tokens, vocabulary 1000.
    Seed,
    /// 4 layers of width 128, 12 sequences of 64 tokens, vocabulary 1024.
    Nano,
    /// 6 layers of width 256, 8 sequences of 128 tokens, vocabulary 4096.
    Small,
    /// 12 layers of width 768, 4 sequences of 64 tokens, vocabulary 50257: the smallest published GPT-2.
    Gpt2,
}

impl Preset {
    /// The model's shape. The vocabulary is the preset's own; the context is its sequence length.
    #[must_use]
    pub fn model(self) -> TransformerConfig {
        let (vocabulary_size, dim, heads, layers) = match self {
            Self::Seed => (1000, 128, 4, 2),
            Self::Nano => (1024, 128, 4, 4),
            Self::Small => (4096, 256, 8, 6),
            Self::Gpt2 => (50257, 768, 12, 12),
        };
        TransformerConfig {
            vocabulary_size,
            context: self.sequence_length(),
            dim,
            heads,
            layers,
            feed_forward: 4 * dim,
            ..TransformerConfig::default()
        }
    }

    /// Sequences in a batch.
    #[must_use]
    pub fn batch_size(self) -> usize {
        match self {
            Self::Seed | Self::Gpt2 => 4,
            Self::Nano => 12,
            Self::Small => 8,
        }
    }

    /// Tokens in a sequence.
    #[must_use]
    pub fn sequence_length(self) -> usize {
        match self {
            Self::Seed => 32,
            Self::Nano | Self::Gpt2 => 64,
            Self::Small => 128,
        }
    }
}
