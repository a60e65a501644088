//! Elementwise passes over slices.

use super::dispatch::kernel;

kernel! {
    /// y ← y + a·x.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn axpy<T>(y: &mut [f32], a: f32, x: &[f32]) {
        assert_eq!(y.len(), x.len());
        for (y, &x) in y.iter_mut().zip(x) {
            *y = T::multiply_add(a, x, *y);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::dispatch::under_every_instruction_set;

    #[test]
    fn axpy_adds_a_multiple() {
        under_every_instruction_set(|set| {
            for length in 0..70 {
                let x: Vec<f32> = (0..length).map(|i| i as f32).collect();
                let mut y = vec![1.0; length];
                axpy(&mut y, 0.5, &x);
                for (i, &y) in y.iter().enumerate() {
                    assert_eq!(y, 1.0 + 0.5 * i as f32, "{set:?}, length {length}");
                }
            }
        });
    }
}
