//! How often a query finds its own document among all.

use ndarray::{Array2, s};

use super::PairEncoder;
use crate::data::{PairStore, TokenRows};
use crate::kernels::cross_entropy::cross_entropy_row_loss;
use crate::kernels::elementwise::all_finite;
use crate::linalg::{Write, gemm};
use crate::parallel::Parallelism;
use crate::{Error, Result};

/// Queries that are scored together.
const CHUNK: usize = 256;

impl PairEncoder {
    /// For each k of `ranks`, the share of the queries of `pairs` whose own document is among the k documents of all pairs
    /// with the largest cosine (recall@k; of equal cosines, the document of the earlier pair is first). Hard negatives have
    /// no part. No pairs have the shares 0.
    ///
    /// # Errors
    /// [`Error::TokenOutOfRange`], and those of [`PairStore::text`]; [`Error::InvalidRow`] for the first query or document
    /// whose vector is not finite: an encoder that has diverged has no recall.
    pub fn recall(&self, pairs: &PairStore, ranks: &[usize], parallelism: Parallelism) -> Result<Vec<f64>> {
        let texts = |pairs_of: std::ops::Range<usize>, text: usize| -> Result<TokenRows> {
            Ok(pairs_of.map(|pair| pairs.text(pair, text)).collect::<Result<Vec<_>>>()?.into_iter().collect())
        };
        let encode = |what: &str, first: usize, texts: &TokenRows| -> Result<Array2<f32>> {
            let mut vectors = Array2::zeros((texts.len(), self.config.dim));
            self.encode_into(texts, vectors.view_mut(), parallelism)?;
            for (row, vector) in vectors.rows().into_iter().enumerate() {
                // Of NaN none is greater, which would make it the best.
                if !all_finite(vector.to_slice().expect("rows are contiguous")) {
                    return Err(Error::row(what, first + row + 1, "the vector is not finite"));
                }
            }
            Ok(vectors)
        };
        let documents = encode("documents", 0, &texts(0..pairs.len(), 1)?)?;
        let mut scores = Array2::zeros((CHUNK.min(pairs.len()), pairs.len()));
        let mut found = vec![0u64; ranks.len()];
        for start in (0..pairs.len()).step_by(CHUNK) {
            let end = (start + CHUNK).min(pairs.len());
            let queries = encode("queries", start, &texts(start..end, 0)?)?;
            let mut scores = scores.slice_mut(s![..end - start, ..]);
            gemm(1.0, queries.view(), documents.t(), Write::Replace, scores.view_mut(), parallelism);
            for (pair, row) in (start..end).zip(scores.rows()) {
                let row = row.to_slice().expect("a row of scores is contiguous");
                let (_, rank) = cross_entropy_row_loss(row, pair, 0.0);
                found.iter_mut().zip(ranks).for_each(|(found, &k)| *found += u64::from(rank < k));
            }
        }
        Ok(found.into_iter().map(|found| found as f64 / pairs.len().max(1) as f64).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::PairEncoderConfig;
    use crate::data::PairStoreBuilder;

    #[test]
    fn ranks_are_those_of_the_cosines() {
        let config = PairEncoderConfig { vocabulary_size: 4, dim: 2, token_weights: false };
        let mut encoder = PairEncoder::new(config, 0).unwrap();
        let angles = [0.0f32, 0.1, 0.3, 2.0];
        for (vector, angle) in encoder.parameters_mut().values_mut().chunks_exact_mut(2).zip(angles) {
            (vector[0], vector[1]) = (3.0 * angle.cos(), 3.0 * angle.sin());
        }
        // Documents 1, 2, 3. Query 0 finds 1 first; query 3 finds 3, then 2; query 2 finds 2, 1, 3.
        let mut builder = PairStoreBuilder::new(4, 0).unwrap();
        for [query, document] in [[0, 1], [3, 2], [2, 3]] {
            builder.push(&[[query], [document]]).unwrap();
        }
        let recall = encoder.recall(&builder.finish(), &[1, 2, 3], Parallelism::SEQUENTIAL).unwrap();
        assert_eq!(recall, [1.0 / 3.0, 2.0 / 3.0, 1.0]);
        let none = PairStoreBuilder::new(4, 0).unwrap().finish();
        assert_eq!(encoder.recall(&none, &[1], Parallelism::SEQUENTIAL).unwrap(), [0.0]);
    }

    #[test]
    fn vectors_that_are_not_finite_have_no_recall() {
        let config = PairEncoderConfig { vocabulary_size: 4, dim: 2, token_weights: false };
        let encoder = PairEncoder::new(config, 0).unwrap();
        let mut builder = PairStoreBuilder::new(4, 0).unwrap();
        for pair in 0..2 * CHUNK as u32 {
            // Token 3 is in the last query alone, token 2 in the document of pair 7.
            let query = if pair + 1 == 2 * CHUNK as u32 { 3 } else { 0 };
            builder.push(&[[query], [if pair == 7 { 2 } else { 1 }]]).unwrap();
        }
        let pairs = builder.finish();
        assert!(encoder.recall(&pairs, &[1], Parallelism::SEQUENTIAL).is_ok());
        for (token, what, row) in [(3, "queries", 2 * CHUNK as u64), (2, "documents", 8)] {
            for value in [f32::NAN, f32::INFINITY] {
                let mut diverged = encoder.clone();
                diverged.parameters_mut().values_mut()[2 * token] = value;
                let error = diverged.recall(&pairs, &[1], Parallelism::workers(2)).unwrap_err();
                assert!(
                    matches!(&error, Error::InvalidRow { what: of, row: at, .. } if of == what && *at == row),
                    "{error}"
                );
            }
        }
    }
}
