//! The matrix product C ← α·A·B (+ C), and the affine map C ← A·B + row (+ matrix).
//!
//! Products of some hundreds a side are computed by the crate's own kernel (`kernels::packed_product`) on processors with
//! AVX-512: it spares BLAS's packing of A, and is 1.1 to 1.4 times as fast there (`cargo bench --bench products`). So are
//! larger ones where BLAS has no kernels with AVX-512 for the processor. Other products, those with a factor other than 1,
//! and all on other processors, are one `cblas_sgemm` call whatever the shape: ndarray's own dispatch
//! falls back silently to a slower, allocating kernel when no dimension exceeds 7 or when an operand lacks unit inner
//! stride. Here an operand that BLAS cannot take is a bug and panics with its shape and strides. Without a BLAS feature
//! ndarray's product takes BLAS's place.
//!
//! BLAS itself runs on one thread (see [`super::threads`]); a product is split over workers into panels of C.

mod library;

use std::sync::OnceLock;

use ndarray::{ArrayView1, ArrayView2, ArrayViewMut2, Axis, Zip};

pub(super) use library::library_product;

use super::profile::counted;
use super::threads::blas_core_name;
use crate::kernels::packed_product::{Start, is_fast, packed_product, packed_product_and_norm};
pub(crate) use crate::kernels::packed_product::{panel_bytes, prepare_thread};
use crate::kernels::reduce::squared_norm;
use crate::parallel::{Parallelism, join};

/// What a product does with the former content of its output (the β of BLAS).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// β = 0: the output is overwritten, whatever it held, NaN included.
    Replace,
    /// β = 1: the product is added to the output.
    Add,
}

/// Panels begin at multiples of this many rows, or columns, which keeps register tiles whole.
const ROWS: usize = 12;
const COLUMNS: usize = 32;

/// A panel of fewer rows or columns is not worth another worker.
const SMALLEST: usize = 32;

/// C ← α·A·B, or C ← C + α·A·B, with A `m × k`, B `k × n`, C `m × n`; transposed views are taken as they are.
///
/// Split over `parallelism` workers by panels of C along its longer side; the split changes no sum, so results differ
/// between numbers of workers only as far as blocking depends on the shape.
///
/// # Panics
/// If the shapes do not fit, if neither stride of A or B is 1, or if the rows of C are not contiguous.
#[track_caller]
pub fn gemm(
    alpha: f32,
    a: ArrayView2<'_, f32>,
    b: ArrayView2<'_, f32>,
    write: Write,
    c: ArrayViewMut2<'_, f32>,
    parallelism: Parallelism,
) {
    check_shapes(a, b, &c);
    Product { alpha, a, b, start: start_of(write), c }.share(parallelism.count(), &|part: Product<'_>| part.compute());
}

/// C ← A·B, or C ← C + A·B, and returns the sum of the squares of C, taken while they are at hand: the gradient of a weight,
/// and its part in the norm of the whole gradient. As [`gemm`] otherwise.
///
/// The crate's own kernel takes them of each tile in registers, up to 24 in f32, which add up in f64: the sum is within
/// 1.5·10⁻⁶ of the true one where those stay in the normal range of f32. Larger ones make it infinite, smaller ones vanish.
///
/// # Panics
/// As [`gemm`].
#[track_caller]
pub fn gemm_and_norm(
    a: ArrayView2<'_, f32>,
    b: ArrayView2<'_, f32>,
    write: Write,
    c: ArrayViewMut2<'_, f32>,
    parallelism: Parallelism,
) -> f64 {
    check_shapes(a, b, &c);
    Product { alpha: 1.0, a, b, start: start_of(write), c }
        .share(parallelism.count(), &|part: Product<'_>| part.compute_and_norm())
}

/// C ← A·B + a row that is added to every row (+ a matrix as large as C): a linear layer, with or without the residual
/// stream that it is added to. As [`gemm`] otherwise.
///
/// # Panics
/// As [`gemm`], and if the shapes of what is added do not fit.
#[track_caller]
pub fn affine(
    a: ArrayView2<'_, f32>,
    b: ArrayView2<'_, f32>,
    row: &[f32],
    matrix: Option<ArrayView2<'_, f32>>,
    c: ArrayViewMut2<'_, f32>,
    parallelism: Parallelism,
) {
    check_shapes(a, b, &c);
    let added = matrix.map_or((c.nrows(), row.len()), |matrix| matrix.dim());
    assert!(
        added == c.dim() && row.len() == c.ncols(),
        "affine: {:?} and a row of {} added to {:?}",
        added,
        row.len(),
        c.dim()
    );
    let start = matrix.map_or(Start::Row(row), |matrix| Start::RowAndMatrix(row, matrix));
    Product { alpha: 1.0, a, b, start, c }.share(parallelism.count(), &|part: Product<'_>| part.compute());
}

fn start_of<'a>(write: Write) -> Start<'a> {
    if write == Write::Add { Start::Output } else { Start::Zero }
}

#[track_caller]
fn check_shapes(a: ArrayView2<'_, f32>, b: ArrayView2<'_, f32>, c: &ArrayViewMut2<'_, f32>) {
    assert!(
        a.ncols() == b.nrows() && a.nrows() == c.nrows() && b.ncols() == c.ncols(),
        "gemm: {:?} · {:?} into {:?}",
        a.dim(),
        b.dim(),
        c.dim()
    );
}

/// C ← α·A·B + `start`, or a part of it.
struct Product<'a> {
    alpha: f32,
    a: ArrayView2<'a, f32>,
    b: ArrayView2<'a, f32>,
    start: Start<'a>,
    c: ArrayViewMut2<'a, f32>,
}

impl Product<'_> {
    /// Cuts the product into a part for each worker, has `compute` take each, and returns the sum of what it returns.
    fn share(self, workers: usize, compute: &(impl Fn(Product<'_>) -> f64 + Sync)) -> f64 {
        let (rows, columns) = self.c.dim();
        let (side, unit) = if columns >= rows { (columns, COLUMNS) } else { (rows, ROWS) };
        let middle = middle(side, unit, workers);
        if workers == 1 || middle < SMALLEST || side - middle < SMALLEST {
            return counted(|| compute(self));
        }
        let Self { alpha, a, b, start, c } = self;
        let axis = Axis(usize::from(columns >= rows));
        let (a, b) =
            if columns >= rows { ((a, a), b.split_at(axis, middle)) } else { (a.split_at(axis, middle), (b, b)) };
        let (start, c) = (start.split_at(axis, middle), c.split_at(axis, middle));
        let left = Product { alpha, a: a.0, b: b.0, start: start.0, c: c.0 };
        let right = Product { alpha, a: a.1, b: b.1, start: start.1, c: c.1 };
        let (left, right) = join(|| left.share(workers / 2, compute), || right.share(workers - workers / 2, compute));
        left + right
    }

    /// Computes the product; returns nothing to add up.
    fn compute(mut self) -> f64 {
        if self.is_packed() {
            packed_product(self.a, self.b, self.c, self.start);
        } else {
            self.library_compute();
        }
        0.0
    }

    /// Computes the product and returns the sum of the squares of C.
    fn compute_and_norm(mut self) -> f64 {
        if self.is_packed() {
            return packed_product_and_norm(self.a, self.b, self.c, self.start);
        }
        self.library_compute();
        self.c.rows().into_iter().map(|row| squared_norm(row.to_slice().expect("rows are contiguous"))).sum()
    }

    fn is_packed(&self) -> bool {
        self.alpha == 1.0 && is_packed(self.a, self.b)
    }

    fn library_compute(&mut self) {
        let c = &mut self.c;
        let write = match self.start {
            Start::Zero => Write::Replace,
            Start::Output => Write::Add,
            Start::Row(row) => {
                c.assign(&ArrayView1::from(row));
                Write::Add
            }
            Start::RowAndMatrix(row, matrix) => {
                Zip::from(c).and(matrix).and_broadcast(ArrayView1::from(row)).for_each(|c, matrix, row| {
                    *c = matrix + row;
                });
                Write::Add
            }
        };
        library_product(self.alpha, self.a, self.b, write, self.c.view_mut());
    }
}

/// Where half of `workers` leave off, of `side` rows or columns: the multiple of `unit` that is nearest to their share.
fn middle(side: usize, unit: usize, workers: usize) -> usize {
    (side * (workers / 2) / workers + unit / 2) / unit * unit
}

/// Whether A·B is taken by the crate's own kernel: where it is faster (`benches/products.rs`). That is with a few rows at
/// least for a panel to serve, and operands that stay in the second-level cache, or a BLAS without AVX-512.
fn is_packed(a: ArrayView2<'_, f32>, b: ArrayView2<'_, f32>) -> bool {
    const FEWEST_ROWS: usize = 16;
    const LARGEST: usize = 1 << 19;
    let largest_a = if a.strides()[1] == 1 { LARGEST } else { LARGEST / 2 };
    let is_small = || a.len() <= largest_a && b.len() <= LARGEST;
    is_fast() && a.nrows() >= FEWEST_ROWS && (is_small() || !has_wide_blas())
}

/// Whether BLAS may have kernels as wide as the crate's own. OpenBLAS has none for processors that it does not know, nor
/// where `OPENBLAS_CORETYPE` names an older one; ndarray's product has none anywhere.
fn has_wide_blas() -> bool {
    static WIDE: OnceLock<bool> = OnceLock::new();
    *WIDE.get_or_init(|| match () {
        () if cfg!(feature = "openblas") => is_wide_core(&blas_core_name()),
        () => cfg!(feature = "blas"),
    })
}

/// Whether OpenBLAS's kernels of this name use AVX-512.
fn is_wide_core(name: &str) -> bool {
    ["SkylakeX", "Cooperlake", "SapphireRapids"].contains(&name)
}

#[cfg(test)]
mod tests {
    use ndarray::{Array2, s};

    use super::*;
    use crate::rng::{Purpose, Stream};

    fn random(rows: usize, columns: usize, step: u64) -> Array2<f32> {
        let mut values = vec![0.0; rows * columns];
        Stream::new(3, Purpose::Caller, step).fill_normal(&mut values, 1.0);
        Array2::from_shape_vec((rows, columns), values).unwrap()
    }

    #[test]
    fn kernels_with_avx512_are_known_by_name() {
        assert!(["SkylakeX", "Cooperlake", "SapphireRapids"].into_iter().all(is_wide_core));
        assert!(!["Haswell", "Zen", "Prescott", "SandyBridge"].into_iter().any(is_wide_core));
    }

    #[test]
    fn workers_get_their_share_but_for_half_a_tile() {
        for unit in [ROWS, COLUMNS] {
            for workers in 2..6 {
                for side in SMALLEST..3000 {
                    let (share, middle) = (side * (workers / 2) / workers, middle(side, unit, workers));
                    assert!(middle.is_multiple_of(unit) && middle.abs_diff(share) <= unit / 2, "{side}: {middle}");
                }
            }
        }
        assert_eq!([middle(1024, COLUMNS, 2), middle(2048, COLUMNS, 2), middle(2048, ROWS, 2)], [512, 1024, 1020]);
    }

    /// With the factor 1 too, without which the crate's own kernel has no part.
    fn check(a: ArrayView2<'_, f32>, b: ArrayView2<'_, f32>, write: Write, workers: usize) {
        check_scaled(0.5, a, b, write, workers);
        check_scaled(1.0, a, b, write, workers);
    }

    fn check_scaled(alpha: f32, a: ArrayView2<'_, f32>, b: ArrayView2<'_, f32>, write: Write, workers: usize) {
        let former = random(a.nrows(), b.ncols(), 2);
        // C is a window of a wider array, as an attention head's output is.
        let mut wide = Array2::from_elem((a.nrows(), b.ncols() + 5), f32::NAN);
        let mut c = wide.slice_mut(s![.., 2..2 + b.ncols()]);
        if write == Write::Add {
            c.assign(&former);
        }
        gemm(alpha, a, b, write, c.view_mut(), Parallelism::workers(workers));
        if alpha == 1.0 {
            let mut again =
                if write == Write::Add { former.clone() } else { Array2::from_elem(former.dim(), f32::NAN) };
            let norm = gemm_and_norm(a, b, write, again.view_mut(), Parallelism::workers(workers));
            let exact: f64 = c.iter().map(|&x| f64::from(x).powi(2)).sum();
            assert_eq!(again, c, "with the norm");
            assert!((norm - exact).abs() <= 1.5e-6 * exact, "{:?} · {:?}: {norm} for {exact}", a.dim(), b.dim());
        }
        for ((i, j), &found) in c.indexed_iter() {
            let sum: f64 = (0..a.ncols()).map(|p| f64::from(a[[i, p]]) * f64::from(b[[p, j]])).sum();
            let kept = if write == Write::Add { f64::from(former[[i, j]]) } else { 0.0 };
            let expected = kept + f64::from(alpha) * sum;
            assert!(
                (f64::from(found) - expected).abs() < 1e-4,
                "{:?} · {:?}, {write:?}, {workers} workers, at {i}, {j}: {found} for {expected}",
                a.dim(),
                b.dim()
            );
        }
        for column in [0, 1, b.ncols() + 2, b.ncols() + 4] {
            assert!(wide.column(column).iter().all(|x| x.is_nan()), "written outside the window");
        }
    }

    #[test]
    fn agrees_with_f64_sums_in_every_orientation() {
        let sizes = [
            (1, 1, 1),
            (1, 9, 4),
            (7, 1, 1),
            (3, 5, 7),
            (8, 8, 8),
            (16, 33, 20),
            (50, 130, 12),
            (120, 49, 65),
            (20, 70, 300),
        ];
        for (m, n, k) in sizes {
            for write in [Write::Replace, Write::Add] {
                for workers in [1, 2, 3] {
                    check(random(m, k, 0).view(), random(k, n, 1).view(), write, workers);
                    check(random(k, m, 0).t(), random(k, n, 1).view(), write, workers);
                    check(random(m, k, 0).view(), random(n, k, 1).t(), write, workers);
                    check(random(k, m, 0).t(), random(n, k, 1).t(), write, workers);
                    check(
                        random(m, k + 3, 0).slice(s![.., 1..=k]),
                        random(k + 2, n, 1).slice(s![1..=k, ..]),
                        write,
                        workers,
                    );
                }
            }
        }
    }

    #[test]
    fn an_affine_map_adds_its_row_and_its_matrix() {
        for (m, n, k) in [(1, 1, 1), (3, 9, 4), (40, 130, 300), (130, 70, 20), (5, 6, 0), (20, 30, 0)] {
            let (a, b, row) = (random(m, k, 0), random(k, n, 1), random(1, n, 2));
            // Both are windows of wider arrays.
            let wide = random(m, n + 3, 3);
            let matrix = wide.slice(s![.., 1..=n]);
            for (matrix, workers) in [(None, 1), (None, 3), (Some(matrix), 1), (Some(matrix), 2)] {
                let mut c = Array2::from_elem((m, n + 2), f32::NAN);
                let window = c.slice_mut(s![.., ..n]);
                affine(a.view(), b.view(), row.as_slice().unwrap(), matrix, window, Parallelism::workers(workers));
                for ((i, j), &found) in c.slice(s![.., ..n]).indexed_iter() {
                    let sum: f64 = (0..k).map(|p| f64::from(a[[i, p]]) * f64::from(b[[p, j]])).sum();
                    let added = f64::from(row[[0, j]]) + matrix.map_or(0.0, |matrix| f64::from(matrix[[i, j]]));
                    let case = format!("{m} × {n} × {k}, {workers} workers, at {i}, {j}");
                    assert!((f64::from(found) - sum - added).abs() < 1e-4, "{case}: {found} for {}", sum + added);
                }
                assert!(c.slice(s![.., n..]).iter().all(|x| x.is_nan()), "written outside the window");
            }
        }
    }

    #[test]
    #[should_panic(expected = "affine: (2, 4) and a row of 4 added to (2, 5)")]
    fn rows_that_do_not_fit_panic() {
        let (a, b) = (random(2, 3, 0), random(3, 5, 1));
        affine(a.view(), b.view(), &[0.0; 4], None, Array2::zeros((2, 5)).view_mut(), Parallelism::SEQUENTIAL);
    }

    #[test]
    fn an_empty_sum_is_zero() {
        let mut c = Array2::from_elem((2, 3), f32::NAN);
        gemm(
            1.0,
            random(2, 0, 0).view(),
            random(0, 3, 1).view(),
            Write::Replace,
            c.view_mut(),
            Parallelism::SEQUENTIAL,
        );
        assert_eq!(c, Array2::<f32>::zeros((2, 3)));
    }

    #[test]
    #[should_panic(expected = "gemm: (2, 3) · (4, 5) into (2, 5)")]
    fn shapes_that_do_not_fit_panic_with_all_three() {
        let mut c = Array2::zeros((2, 5));
        gemm(
            1.0,
            random(2, 3, 0).view(),
            random(4, 5, 1).view(),
            Write::Replace,
            c.view_mut(),
            Parallelism::SEQUENTIAL,
        );
    }
}
