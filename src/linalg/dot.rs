//! The dot product, on BLAS or on the crate's own kernel.

/// Σ x·y, by BLAS's `sdot` where there is BLAS.
///
/// # Panics
/// If the lengths differ.
#[must_use]
#[track_caller]
pub fn dot(x: &[f32], y: &[f32]) -> f32 {
    assert_eq!(x.len(), y.len(), "dot: lengths of x and y");
    product(x, y)
}

#[cfg(feature = "blas")]
fn product(x: &[f32], y: &[f32]) -> f32 {
    let length = x.len().try_into().unwrap_or_else(|_| panic!("dot: the length {} exceeds BLAS's integers", x.len()));
    // SAFETY: both slices have `length` elements, read one after the other.
    #[allow(unsafe_code)]
    unsafe {
        cblas_sys::cblas_sdot(length, x.as_ptr(), 1, y.as_ptr(), 1)
    }
}

#[cfg(not(feature = "blas"))]
fn product(x: &[f32], y: &[f32]) -> f32 {
    crate::kernels::reduce::dot(x, y)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_f64_sums_at_every_length() {
        for length in 0..70 {
            let x: Vec<f32> = (0..length).map(|i| (i as f32 * 0.7).sin()).collect();
            let y: Vec<f32> = (0..length).map(|i| (i as f32 * 1.3).cos() + 0.1).collect();
            let expected: f64 = x.iter().zip(&y).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum();
            assert!((f64::from(dot(&x, &y)) - expected).abs() < 1e-5, "{length}");
        }
    }

    #[test]
    #[should_panic(expected = "lengths of x and y")]
    fn lengths_that_differ_panic() {
        let _ = dot(&[1.0], &[]);
    }
}
