//! What the singular values of an embedding table say, and what can be done with them (LAPACK, through ndarray-linalg).
//!
//! A table X, words × C, is centred to X − mean and decomposed into U·Σ·Vᵀ; the rows of Vᵀ are its principal
//! directions, σᵢ²/Σσ² the share of variance along the i-th.

use ndarray::{Array1, Array2, ArrayView2, s};
use ndarray_linalg::{JobSvd, SVDDC};

use crate::{Error, Result};

/// The principal directions of a table, most important first.
#[derive(Clone, Debug, PartialEq)]
pub struct Spectrum {
    /// Mean of the rows.
    pub mean: Array1<f32>,
    /// Singular values of the centred table, descending.
    pub singular_values: Array1<f32>,
    /// One direction a row, orthonormal: min(words, C) × C.
    pub directions: Array2<f32>,
}

impl Spectrum {
    /// Decomposes `table`; the mean is computed, and the table centred, in f64.
    ///
    /// # Errors
    /// [`Error::Shape`] if the table is empty; [`Error::LinearAlgebra`] if LAPACK fails, or the table, the centred table or
    /// the singular values are not finite in f32.
    pub fn new(table: ArrayView2<'_, f32>) -> Result<Self> {
        if table.is_empty() {
            return Err(Error::Shape {
                what: "table, at least".into(),
                expected: vec![1, 1],
                found: table.shape().to_vec(),
            });
        }
        require_finite(table.iter(), "the table holds values that are not finite")?;
        let mut mean = Array1::<f64>::zeros(table.ncols());
        for row in table.rows() {
            mean.zip_mut_with(&row, |sum, &value| *sum += f64::from(value));
        }
        mean /= table.nrows() as f64;
        let mut centred = table.to_owned();
        for mut row in centred.rows_mut() {
            row.zip_mut_with(&mean, |value, mean| *value = (f64::from(*value) - mean) as f32);
        }
        require_finite(centred.iter(), "rows of the table lie further from their mean than f32 reaches")?;
        let (_, singular_values, directions) =
            centred.svddc(JobSvd::Some).map_err(|error| Error::LinearAlgebra(error.to_string()))?;
        require_finite(singular_values.iter(), "the singular values of the table are larger than f32 reaches")?;
        let directions = directions.expect("directions were asked for");
        Ok(Self { mean: mean.mapv(|mean| mean as f32), singular_values, directions })
    }

    /// The share of variance along each direction, from squares in f64; all 0 for a table of equal rows.
    #[must_use]
    pub fn explained_variance(&self) -> Array1<f32> {
        let squares = self.singular_values.mapv(|value| f64::from(value).powi(2));
        let total = squares.sum();
        squares.mapv(|square| if total > 0.0 { (square / total) as f32 } else { 0.0 })
    }

    /// Coordinates of the rows of `table` along the first `count` directions, words × count.
    ///
    /// # Errors
    /// [`Error::Shape`] if there are fewer directions, or the table has another width.
    pub fn project(&self, table: ArrayView2<'_, f32>, count: usize) -> Result<Array2<f32>> {
        let directions = self.first(table, count)?;
        Ok((&table - &self.mean).dot(&directions.t()))
    }

    /// The centred rows without their parts along the first `count` directions (Mu, Bhat and Viswanath,
    /// "All-but-the-top", 2018).
    ///
    /// # Errors
    /// As [`Spectrum::project`].
    pub fn remove(&self, table: ArrayView2<'_, f32>, count: usize) -> Result<Array2<f32>> {
        let coordinates = self.project(table, count)?;
        Ok(&table - &self.mean - coordinates.dot(&self.first(table, count)?))
    }

    fn first(&self, table: ArrayView2<'_, f32>, count: usize) -> Result<ArrayView2<'_, f32>> {
        let (directions, width) = self.directions.dim();
        if count > directions || table.ncols() != width {
            return Err(Error::Shape {
                what: "directions wanted (at most) and width of the table".into(),
                expected: vec![directions, width],
                found: vec![count, table.ncols()],
            });
        }
        Ok(self.directions.slice(s![..count, ..]))
    }
}

fn require_finite<'a>(mut values: impl Iterator<Item = &'a f32>, problem: &str) -> Result<()> {
    if values.all(|value| value.is_finite()) { Ok(()) } else { Err(Error::LinearAlgebra(problem.into())) }
}

/// The orthogonal matrix Q, C × C, that brings `source`·Q closest to `target` in the sum of squares, for tables whose
/// rows correspond (Schönemann, "A generalized solution of the orthogonal Procrustes problem", 1966): Q = U·Vᵀ for the
/// decomposition U·Σ·Vᵀ of sourceᵀ·target.
///
/// # Errors
/// [`Error::Shape`] if the tables differ in shape, [`Error::LinearAlgebra`] if LAPACK fails.
pub fn orthogonal_alignment(source: ArrayView2<'_, f32>, target: ArrayView2<'_, f32>) -> Result<Array2<f32>> {
    if source.dim() != target.dim() || source.is_empty() {
        return Err(Error::Shape {
            what: "table to align with".into(),
            expected: source.shape().to_vec(),
            found: target.shape().to_vec(),
        });
    }
    let product = source.t().dot(&target);
    require_finite(product.iter(), "the product of the tables, or a value of theirs, is not finite")?;
    let (left, _, right) = product.svddc(JobSvd::All).map_err(|error| Error::LinearAlgebra(error.to_string()))?;
    Ok(left.expect("asked for").dot(&right.expect("asked for")))
}

#[cfg(test)]
mod tests {
    use approx::assert_abs_diff_eq;

    use super::*;
    use crate::rng::{Purpose, Stream};

    fn random(rows: usize, columns: usize, step: u64) -> Array2<f32> {
        let mut values = vec![0.0; rows * columns];
        Stream::new(17, Purpose::Caller, step).fill_normal(&mut values, 1.0);
        Array2::from_shape_vec((rows, columns), values).unwrap()
    }

    /// A table with standard deviations of about 5, 2 and 0.1 along the axes, far from the origin.
    fn table() -> Array2<f32> {
        random(400, 3, 0) * ndarray::array![5.0, 2.0, 0.1] + 7.0
    }

    #[test]
    fn directions_come_by_variance_and_are_orthonormal() {
        let spectrum = Spectrum::new(table().view()).unwrap();
        let explained = spectrum.explained_variance();
        assert_abs_diff_eq!(explained.sum(), 1.0, epsilon = 1e-5);
        assert!((0.80..0.92).contains(&explained[0]), "{explained}");
        assert!(explained[2] < 0.001, "{explained}");
        assert!(spectrum.directions[[0, 0]].abs() > 0.99 && spectrum.directions[[1, 1]].abs() > 0.99);
        assert_abs_diff_eq!(spectrum.directions.dot(&spectrum.directions.t()), Array2::eye(3), epsilon = 1e-5);
    }

    #[test]
    fn what_is_projected_and_what_is_removed_make_the_whole() {
        let table = table();
        let spectrum = Spectrum::new(table.view()).unwrap();
        for count in 0..=3 {
            let projected = spectrum.project(table.view(), count).unwrap();
            assert_eq!(projected.dim(), (400, count));
            let kept = projected.dot(&spectrum.directions.slice(s![..count, ..]));
            let rest = spectrum.remove(table.view(), count).unwrap();
            assert_abs_diff_eq!(&kept + &rest + &spectrum.mean, table, epsilon = 1e-4);
        }
        let rest = spectrum.remove(table.view(), 2).unwrap();
        assert!(rest.iter().all(|value| value.abs() < 0.6), "the two large directions are gone");
    }

    #[test]
    fn alignment_undoes_a_rotation() {
        let target = random(60, 5, 1);
        let rotation = orthogonal_alignment(random(60, 5, 2).view(), random(60, 5, 3).view()).unwrap();
        assert_abs_diff_eq!(rotation.dot(&rotation.t()), Array2::eye(5), epsilon = 1e-5);
        let source = target.dot(&rotation.t());
        let found = orthogonal_alignment(source.view(), target.view()).unwrap();
        assert_abs_diff_eq!(found, rotation, epsilon = 1e-4);
    }

    #[test]
    fn tables_that_cannot_be_decomposed_are_refused() {
        assert!(matches!(Spectrum::new(Array2::zeros((0, 3)).view()), Err(Error::Shape { .. })));
        let mut broken = table();
        broken[[3, 1]] = f32::NAN;
        assert!(matches!(Spectrum::new(broken.view()), Err(Error::LinearAlgebra(_))));
        assert!(matches!(orthogonal_alignment(broken.view(), table().view()), Err(Error::LinearAlgebra(_))));
        let spectrum = Spectrum::new(table().view()).unwrap();
        assert!(matches!(spectrum.project(table().view(), 4), Err(Error::Shape { .. })));
        // What is wrong is said: of these only the first is not finite.
        let refused = |table: Array2<f32>| Spectrum::new(table.view()).unwrap_err().to_string();
        assert!(refused(broken).contains("the table holds values that are not finite"));
        assert!(refused(ndarray::array![[f32::MAX], [f32::MAX], [f32::MIN]]).contains("further from their mean"));
        assert!(refused(ndarray::array![[f32::MAX], [f32::MIN]]).contains("singular values"));
    }

    #[test]
    fn equal_rows_have_no_variance() {
        // A mean in f32 would differ from the rows.
        for value in [1.0, 0.1, 1e-40, 0.3 * f32::MAX] {
            let equal = Spectrum::new(Array2::from_elem((10, 2), value).view()).unwrap();
            assert_eq!(equal.mean, ndarray::array![value, value]);
            assert_eq!(equal.explained_variance(), ndarray::array![0.0, 0.0], "{value}");
        }
    }

    #[test]
    fn shares_of_variance_do_not_depend_on_the_scale() {
        let expected = Spectrum::new(table().view()).unwrap().explained_variance();
        for scale in [1e-30, 1e-24, 1e20, 1e34] {
            let scaled = Spectrum::new((table() * scale).view()).unwrap();
            assert_abs_diff_eq!(scaled.explained_variance(), expected, epsilon = 1e-4);
        }
    }
}
