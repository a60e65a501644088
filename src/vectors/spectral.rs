//! What [`linalg::spectral`](crate::linalg::spectral) does, for words and their vectors.

use ndarray::{Array2, ArrayView2, Axis};

use super::WordVectors;
use crate::linalg::spectral::{Spectrum, orthogonal_alignment};
use crate::parallel::Parallelism;
use crate::similarity::{UnitVectors, row_dots};
use crate::{Error, Result};

impl WordVectors {
    /// The principal directions of the table, and how much of its variance lies along each.
    ///
    /// # Errors
    /// [`Error::Shape`] if there is no word; [`Error::LinearAlgebra`] if LAPACK fails, or centring or the singular values
    /// overflow f32.
    pub fn spectrum(&self) -> Result<Spectrum> {
        Spectrum::new(self.vectors())
    }

    /// The same words with the coordinates of their vectors along the first `count` principal directions.
    ///
    /// # Errors
    /// Those of [`spectrum`](Self::spectrum); [`Error::Shape`] if there are fewer directions, or `count` is 0;
    /// [`Error::InvalidRow`] for the first row with a coordinate that overflows f32.
    pub fn projected(&self, count: usize) -> Result<Self> {
        self.with_vectors(self.spectrum()?.project(self.vectors(), count)?)
    }

    /// The same words without the mean of their vectors and their parts along the first `count` principal directions, as
    /// in "All-but-the-top" (Mu, Bhat and Viswanath, 2018), who take away one for each hundred values of a vector.
    ///
    /// # Errors
    /// Those of [`spectrum`](Self::spectrum); [`Error::Shape`] if there are fewer directions; [`Error::InvalidRow`]
    /// for the first row with a value that overflows f32.
    pub fn without_top(&self, count: usize) -> Result<Self> {
        self.with_vectors(self.spectrum()?.remove(self.vectors(), count)?)
    }

    /// The same words, their vectors rotated (and perhaps mirrored) to come closest to those of `target` at the words that
    /// both have, each counting the same: all vectors are scaled to length 1 to find the rotation.
    ///
    /// Two tables that were trained from different seeds, or on different texts, have coordinates of their own; aligned,
    /// they can be compared. Cosines between the words of one table stay.
    ///
    /// # Errors
    /// [`Error::Shape`] if no word is in both or the widths differ; [`Error::LinearAlgebra`] if LAPACK fails;
    /// [`Error::InvalidRow`] for the first row with a rotated value that overflows f32.
    pub fn aligned_to(&self, target: &Self) -> Result<Self> {
        let (source, target) = self.common(target)?;
        self.with_vectors(self.vectors().dot(&orthogonal_alignment(source.view(), target.view())?))
    }

    /// The mean of the cosines of the two vectors of each word that both tables have.
    ///
    /// # Errors
    /// [`Error::Shape`] if no word is in both or the widths differ.
    pub fn mean_cosine(&self, other: &Self) -> Result<f64> {
        let (own, others) = self.common(other)?;
        let mut cosines = vec![0.0; own.nrows()];
        row_dots(own.view(), others.view(), &mut cosines, Parallelism::SEQUENTIAL);
        Ok(cosines.iter().map(|&cosine| f64::from(cosine)).sum::<f64>() / cosines.len() as f64)
    }

    /// The vectors, of length 1, of the words that both have, in the order of the words here.
    fn common(&self, other: &Self) -> Result<(Array2<f32>, Array2<f32>)> {
        let pairs = self.words().enumerate().filter_map(|(row, word)| Some((row, other.id(word)? as usize)));
        let (own, others): (Vec<usize>, Vec<usize>) = pairs.unzip();
        if own.is_empty() || self.dim() != other.dim() {
            return Err(Error::Shape {
                what: "words in both tables (at least) and width".into(),
                expected: vec![1, self.dim()],
                found: vec![own.len(), other.dim()],
            });
        }
        let unit = |table: ArrayView2<'_, f32>, rows: &[usize]| {
            UnitVectors::new(table.select(Axis(0), rows).view(), Parallelism::SEQUENTIAL).table().to_owned()
        };
        Ok((unit(self.vectors(), &own), unit(other.vectors(), &others)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Purpose, Stream};

    fn random(words: usize, first: usize, step: u64) -> WordVectors {
        let names: Vec<String> = (first..first + words).map(|id| format!("w{id}")).collect();
        let mut values = vec![0.0; words * 4];
        Stream::new(29, Purpose::Caller, step).fill_normal(&mut values, 1.0);
        let table = Array2::from_shape_vec((words, 4), values).unwrap();
        WordVectors::new(names.iter().map(String::as_str), table).unwrap()
    }

    #[test]
    fn a_rotated_table_is_rotated_back_by_the_words_it_shares() {
        let source = random(30, 0, 0);
        let rotation = orthogonal_alignment(random(9, 0, 1).vectors(), random(9, 0, 2).vectors()).unwrap();
        let rotated = source.with_vectors(source.vectors().dot(&rotation)).unwrap();
        // The last 20 words of the one and the first 20 of the other are the same.
        let names: Vec<&str> = rotated.words().skip(10).collect();
        let target = WordVectors::new(names, rotated.vectors().slice(ndarray::s![10.., ..]).to_owned()).unwrap();
        assert!(source.mean_cosine(&target).unwrap() < 0.7);
        let aligned = source.aligned_to(&target).unwrap();
        assert!(aligned.mean_cosine(&target).unwrap() > 0.9999);
        assert!((aligned.similarity("w0", "w1").unwrap() - source.similarity("w0", "w1").unwrap()).abs() < 1e-5);
        assert!(matches!(source.aligned_to(&random(5, 50, 3)), Err(Error::Shape { .. })));
        assert!(matches!(source.aligned_to(&source.projected(3).unwrap()), Err(Error::Shape { .. })));
    }

    #[test]
    fn a_row_that_overflows_when_it_is_rotated_is_named() {
        let table = |values| WordVectors::new(["a", "b"], values).unwrap();
        let source = table(ndarray::array![[-1.0, 1.0], [f32::MAX, f32::MAX]]);
        let target = table(ndarray::array![[0.0, 1.0], [1.0, 0.0]]);
        assert!(matches!(source.aligned_to(&target), Err(Error::InvalidRow { row: 2, .. })));
    }

    #[test]
    fn projections_and_removals_keep_the_words() {
        let vectors = random(30, 0, 0);
        let (projected, rest) = (vectors.projected(2).unwrap(), vectors.without_top(1).unwrap());
        assert_eq!((projected.dim(), rest.dim(), projected.len()), (2, 4, 30));
        assert_eq!(projected.id("w7"), Some(7));
        let spectrum = vectors.spectrum().unwrap();
        let left = rest.vectors().dot(&spectrum.directions.row(0));
        assert!(left.iter().all(|part| part.abs() < 1e-4), "{left}");
        assert!(matches!(vectors.projected(5), Err(Error::Shape { .. })));
        assert!(matches!(vectors.projected(0), Err(Error::Shape { .. })));
    }
}
