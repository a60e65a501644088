//! Writing what was trained in the formats of others.

pub mod word2vec;
