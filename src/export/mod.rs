//! Writing what was trained in the formats of others.

pub mod sentence_transformers;
pub mod word2vec;
