//! A test of BLAS before it is trusted: products of many shapes against plain sums in f64.
//!
//! OpenBLAS chooses its kernels by the processor; a miscompiled or misdetected one gives wrong numbers in silence, often
//! only at some sizes. The check takes some milliseconds, once per process.

use std::sync::OnceLock;

use ndarray::{Array2, ArrayView2, ArrayViewMut2};

use super::gemm::{Write, gemm, library_product};
use super::threads::blas_core_name;
use crate::parallel::Parallelism;
use crate::rng::{Purpose, Stream};
use crate::{Error, Result};

/// Around the sizes at which kernels and libraries change their ways: one, a register tile, ndarray's switch to BLAS
/// above 7, cache blocks.
const SIZES: [usize; 8] = [1, 2, 7, 8, 9, 17, 48, 65];
const LONG: [(usize, usize, usize); 5] = [(3, 600, 5), (257, 8, 31), (31, 33, 257), (130, 300, 70), (800, 17, 20)];

/// Fails if BLAS computes wrong products. The result is found once per process.
///
/// # Errors
/// [`Error::BrokenBlas`] with the shape and the first wrong element.
pub fn verify_blas() -> Result<()> {
    static MISMATCH: OnceLock<Option<Mismatch>> = OnceLock::new();
    // The library's own products first, since many shapes are not handed to it otherwise.
    let find = || {
        check(|a, b, write, c| library_product(1.0, a, b, write, c))
            .or_else(|| check(|a, b, write, c| gemm(1.0, a, b, write, c, Parallelism::SEQUENTIAL)))
    };
    MISMATCH.get_or_init(find).map_or(Ok(()), |mismatch| Err(mismatch.error()))
}

#[derive(Clone, Copy, Debug)]
struct Mismatch {
    shape: (usize, usize, usize),
    layout: &'static str,
    place: (usize, usize),
    expected: f64,
    found: f32,
}

impl Mismatch {
    fn error(self) -> Error {
        let (rows, inner, columns) = self.shape;
        let ((row, column), Self { layout, expected, found, .. }) = (self.place, self);
        Error::BrokenBlas { core: blas_core_name(), rows, inner, columns, layout, row, column, expected, found }
    }
}

/// The first wrong element of `product(A, B, write, C)` over all shapes and layouts.
fn check(
    product: impl Fn(ArrayView2<'_, f32>, ArrayView2<'_, f32>, Write, ArrayViewMut2<'_, f32>),
) -> Option<Mismatch> {
    let mut shapes = LONG.to_vec();
    for rows in SIZES {
        for inner in SIZES {
            shapes.extend(SIZES.map(|columns| (rows, inner, columns)));
        }
    }
    let layouts = [
        ("A·B, replacing", false, false, Write::Replace),
        ("A·Bᵀ, replacing", false, true, Write::Replace),
        ("Aᵀ·B, adding", true, false, Write::Add),
        ("Aᵀ·Bᵀ, adding", true, true, Write::Add),
    ];
    for (index, &shape) in shapes.iter().enumerate() {
        let (rows, inner, columns) = shape;
        let a = matrix(rows, inner, 2 * index as u64);
        let b = matrix(inner, columns, 2 * index as u64 + 1);
        let (a_stored, b_stored) = (a.t().as_standard_layout().into_owned(), b.t().as_standard_layout().into_owned());
        let expected = plain_product(&a, &b);
        for (layout, a_transposed, b_transposed, write) in layouts {
            let a = if a_transposed { a_stored.t() } else { a.view() };
            let b = if b_transposed { b_stored.t() } else { b.view() };
            // What is replaced must not matter, not even where 0 times it is not 0.
            let before = if write == Write::Add { 0.5 } else { f32::NAN };
            let mut c = Array2::from_elem((rows, columns), before);
            product(a, b, write, c.view_mut());
            let added = if write == Write::Add { 0.5 } else { 0.0 };
            // Sums of n products of random numbers within ±1, in whatever order, err by well below n·ε.
            let tolerance = 4.0 * (inner + 1) as f64 * f64::from(f32::EPSILON);
            for (place, &found) in c.indexed_iter() {
                let expected = expected[place] + added;
                // Written so that NaN fails.
                let close = (f64::from(found) - expected).abs() <= tolerance;
                if !close {
                    return Some(Mismatch { shape, layout, place, expected, found });
                }
            }
        }
    }
    None
}

fn matrix(rows: usize, columns: usize, step: u64) -> Array2<f32> {
    let stream = Stream::new(0, Purpose::Caller, step);
    Array2::from_shape_fn((rows, columns), |(row, column)| 2.0 * stream.uniform((row * columns + column) as u64) - 1.0)
}

fn plain_product(a: &Array2<f32>, b: &Array2<f32>) -> Array2<f64> {
    let mut product = Array2::zeros((a.nrows(), b.ncols()));
    for row in 0..a.nrows() {
        for inner in 0..a.ncols() {
            let factor = f64::from(a[[row, inner]]);
            for column in 0..b.ncols() {
                product[[row, column]] += factor * f64::from(b[[inner, column]]);
            }
        }
    }
    product
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `check` on a product that is spoiled by `fault`, given (rows, inner, columns) and the output.
    fn with_fault(fault: impl Fn((usize, usize, usize), &mut ArrayViewMut2<'_, f32>)) -> Option<Mismatch> {
        check(|a, b, write, mut c| {
            let shape = (a.nrows(), a.ncols(), b.ncols());
            gemm(1.0, a, b, write, c.view_mut(), Parallelism::SEQUENTIAL);
            fault(shape, &mut c);
        })
    }

    #[test]
    fn a_sound_blas_passes() {
        let found = with_fault(|_, _| ());
        assert!(found.is_none(), "{found:?}");
        verify_blas().unwrap();
    }

    #[test]
    fn a_blas_that_is_wrong_at_one_size_is_found_and_named() {
        let found = with_fault(|shape, c| {
            if shape.2 == 9 {
                c[[shape.0 - 1, 8]] += 0.01;
            }
        })
        .unwrap();
        assert_eq!((found.shape.2, found.place.1), (9, 8));
        let Error::BrokenBlas { columns: 9, column: 8, expected, found, .. } = found.error() else { panic!() };
        assert!((f64::from(found) - expected - 0.01).abs() < 1e-4);
    }

    #[test]
    fn other_faults_are_found() {
        assert!(with_fault(|_, c| c.fill(f32::NAN)).is_some());
        assert!(
            with_fault(|shape, c| if shape == (257, 8, 31) {
                c[[256, 30]] = 0.0
            })
            .is_some()
        );
        // Adds although it should replace.
        let adds = check(|a, b, _, c| gemm(1.0, a, b, Write::Add, c, Parallelism::SEQUENTIAL));
        assert!(adds.unwrap().found.is_nan());
        // Replaces although it should add.
        let replaces = check(|a, b, _, c| gemm(1.0, a, b, Write::Replace, c, Parallelism::SEQUENTIAL));
        assert_eq!(replaces.unwrap().layout, "Aᵀ·B, adding");
        // Drops the last product of long sums.
        let short = check(|a, b, write, c| {
            let inner = a.ncols() - usize::from(a.ncols() > 64);
            let (a, b) = (a.slice_move(ndarray::s![.., ..inner]), b.slice_move(ndarray::s![..inner, ..]));
            gemm(1.0, a, b, write, c, Parallelism::SEQUENTIAL);
        });
        assert!(short.is_some());
    }
}
