//! The product as BLAS computes it, or ndarray where there is no BLAS.

use ndarray::{ArrayView2, ArrayViewMut2};

use super::Write;

/// [`gemm`](super::gemm) by BLAS on one thread.
#[cfg(feature = "blas")]
pub(in crate::linalg) fn library_product(
    alpha: f32,
    a: ArrayView2<'_, f32>,
    b: ArrayView2<'_, f32>,
    write: Write,
    mut c: ArrayViewMut2<'_, f32>,
) {
    let (rows, columns) = c.dim();
    let inner = a.ncols();
    if rows == 0 || columns == 0 {
        return;
    }
    if inner == 0 {
        if write == Write::Replace {
            c.fill(0.0);
        }
        return;
    }
    let (a_order, a_stride) = blas_operand(&a);
    let (b_order, b_stride) = blas_operand(&b);
    assert!(
        columns == 1 || c.strides()[1] == 1,
        "gemm: the rows of C, shape {:?} with strides {:?}, are not contiguous",
        c.dim(),
        c.strides()
    );
    if rows == 1 {
        return row_product(alpha, a, (b, b_order, b_stride), write, c);
    }
    let c_stride = c.strides()[0];
    let beta = if write == Write::Add { 1.0 } else { 0.0 };
    // SAFETY: the views guarantee that every element addressed by (pointer, dimensions, strides) is inside its array,
    // and C is borrowed mutably, so it overlaps neither A nor B; the dimensions were checked by `gemm`.
    #[allow(unsafe_code)]
    unsafe {
        cblas_sys::cblas_sgemm(
            cblas_sys::CBLAS_LAYOUT::CblasRowMajor,
            a_order,
            b_order,
            blas_int(rows),
            blas_int(columns),
            blas_int(inner),
            alpha,
            a.as_ptr(),
            a_stride,
            b.as_ptr(),
            b_stride,
            beta,
            c.as_mut_ptr(),
            blas_int(usize::try_from(c_stride).expect("C has a negative stride")),
        );
    }
}

/// The product of one row, y ← α·Bᵀ·x (+ y): BLAS's matrix product would copy all of B to use it once.
#[cfg(feature = "blas")]
fn row_product(
    alpha: f32,
    a: ArrayView2<'_, f32>,
    (b, b_order, b_stride): (ArrayView2<'_, f32>, cblas_sys::CBLAS_TRANSPOSE, std::ffi::c_int),
    write: Write,
    mut c: ArrayViewMut2<'_, f32>,
) {
    use cblas_sys::CBLAS_TRANSPOSE::{CblasNoTrans, CblasTrans};
    if write == Write::Replace {
        // Some BLAS multiply by β = 0 here, which would keep a NaN.
        c.fill(0.0);
    }
    // BLAS is told of B as it lies in memory, which is the transpose of what it is asked to multiply by.
    let (order, rows, columns) = match b_order {
        CblasNoTrans => (CblasTrans, b.nrows(), b.ncols()),
        _ => (CblasNoTrans, b.ncols(), b.nrows()),
    };
    let step = if a.ncols() == 1 { 1 } else { a.strides()[1] };
    // SAFETY: as in `product`; x has one element a row of B, y one a column, and neither stride is negative.
    #[allow(unsafe_code)]
    unsafe {
        cblas_sys::cblas_sgemv(
            cblas_sys::CBLAS_LAYOUT::CblasRowMajor,
            order,
            blas_int(rows),
            blas_int(columns),
            alpha,
            b.as_ptr(),
            b_stride,
            a.as_ptr(),
            blas_int(usize::try_from(step).expect("a row has a negative stride")),
            1.0,
            c.as_mut_ptr(),
            1,
        );
    }
}

/// How BLAS addresses a view: plain or transposed, and the distance between its rows (or columns).
#[cfg(feature = "blas")]
fn blas_operand(view: &ArrayView2<'_, f32>) -> (cblas_sys::CBLAS_TRANSPOSE, std::ffi::c_int) {
    use cblas_sys::CBLAS_TRANSPOSE::{CblasNoTrans, CblasTrans};
    let (rows, columns) = view.dim();
    let (row_stride, column_stride) = (view.strides()[0], view.strides()[1]);
    // The stride of a side of length 1 is never used, and may be anything.
    if (column_stride == 1 || columns == 1) && (rows == 1 || row_stride >= columns as isize) {
        (CblasNoTrans, blas_int(if rows == 1 { columns } else { row_stride as usize }))
    } else if (row_stride == 1 || rows == 1) && (columns == 1 || column_stride >= rows as isize) {
        (CblasTrans, blas_int(if columns == 1 { rows } else { column_stride as usize }))
    } else {
        panic!("gemm: an operand of shape {:?} with strides {:?} has no contiguous side", view.dim(), view.strides())
    }
}

#[cfg(feature = "blas")]
fn blas_int(length: usize) -> std::ffi::c_int {
    length.try_into().unwrap_or_else(|_| panic!("gemm: the dimension {length} exceeds BLAS's integers"))
}

/// [`gemm`](super::gemm) by ndarray on one thread.
#[cfg(not(feature = "blas"))]
pub(in crate::linalg) fn library_product(
    alpha: f32,
    a: ArrayView2<'_, f32>,
    b: ArrayView2<'_, f32>,
    write: Write,
    mut c: ArrayViewMut2<'_, f32>,
) {
    let beta = match write {
        Write::Replace => {
            // Some kernels multiply by β = 0 instead of overwriting, which would keep a NaN.
            c.fill(0.0);
            0.0
        }
        Write::Add => 1.0,
    };
    ndarray::linalg::general_mat_mul(alpha, &a, &b, beta, &mut c);
}
