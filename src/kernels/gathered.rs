//! Sums of rows that lie scattered over a table, alone or as the gradient of a row that is updated at once.

use super::adamw::{AdamwStep, Factors};
use super::dispatch::{Target, kernel};
use super::lanes::{LANES, sum};

/// Rows that are walked side by side. Each is a stream of its own, which the processor reads ahead of its use; row after
/// row, it would wait for the start of each.
const ROWS: usize = 16;

/// Columns whose sums stay in registers.
const COLUMNS: usize = 4 * LANES;

kernel! {
    /// into ← Σ_k w(rows_k)·table(rows_k), with w = 1 without `weights`; the rows of `table` are as wide as `into`.
    ///
    /// Every column is one sum in the order of `rows`, with fused multiply-adds where there are such: the error for n rows
    /// is below n·2⁻²⁴·Σ |w·x|.
    ///
    /// # Panics
    /// If a row of `rows` is not in the table or has no weight.
    pub(crate) fn gathered_sum<T>(into: &mut [f32], table: &[f32], rows: &[u32], weights: Option<&[f32]>) {
        let width = into.len();
        into.fill(0.0);
        for rows in rows.chunks(ROWS) {
            let (mut parts, mut factors) = ([&[][..]; ROWS], [1.0; ROWS]);
            for ((part, factor), &row) in parts.iter_mut().zip(&mut factors).zip(rows) {
                *part = &table[row as usize * width..][..width];
                *factor = weights.map_or(1.0, |weights| weights[row as usize]);
            }
            add_products::<T>(into, &parts[..rows.len()], &factors);
        }
    }

    /// [`adamw`](super::adamw::adamw) with the gradient g = Σ_k table(rows_k), whose rows are as wide as the parameters;
    /// returns Σ p·g of the parameters before the step, which is the gradient of a factor that they all have.
    ///
    /// g is never in memory: it is summed, in the order of `rows`, for the columns that are updated with it.
    ///
    /// # Panics
    /// If a row of `rows` is not in the table, or the lengths of parameters and moments differ.
    pub(crate) fn gathered_adamw<T>(
        parameters: &mut [f32], first_moments: &mut [f32], second_moments: &mut [f32], table: &[f32], rows: &[u32],
        step: &AdamwStep,
    ) -> f32 {
        let width = parameters.len();
        assert!(
            first_moments.len() == width && second_moments.len() == width,
            "gathered_adamw: lengths of parameters and moments"
        );
        let factors = Factors::of(step);
        let mut products = [0.0; COLUMNS];
        let (p_blocks, p_rest) = parameters.as_chunks_mut::<COLUMNS>();
        let (m_blocks, m_rest) = first_moments.as_chunks_mut::<COLUMNS>();
        let (v_blocks, v_rest) = second_moments.as_chunks_mut::<COLUMNS>();
        for (block, ((p, m), v)) in p_blocks.iter_mut().zip(m_blocks).zip(v_blocks).enumerate() {
            let mut gradient = [0.0; COLUMNS];
            for &row in rows {
                let row = &table[row as usize * width + block * COLUMNS..][..COLUMNS];
                for i in 0..COLUMNS {
                    gradient[i] += row[i];
                }
            }
            for i in 0..COLUMNS {
                products[i] = T::multiply_add(p[i], gradient[i], products[i]);
                factors.update::<T>(&mut p[i], gradient[i], &mut m[i], &mut v[i]);
            }
        }
        let mut gradient = [0.0; COLUMNS];
        let gradient = &mut gradient[..p_rest.len()];
        for &row in rows {
            let row = &table[row as usize * width..][..width];
            for (sum, &x) in gradient.iter_mut().zip(&row[width - p_rest.len()..]) {
                *sum += x;
            }
        }
        let rest = p_rest.iter_mut().zip(&*gradient).zip(m_rest).zip(v_rest).zip(&mut products);
        for ((((p, &g), m), v), product) in rest {
            *product = T::multiply_add(*p, g, *product);
            factors.update::<T>(p, g, m, v);
        }
        products.as_chunks::<LANES>().0.iter().map(|&lanes| sum(lanes)).sum()
    }
}

/// into ← into + Σ_k factor_k·row_k.
#[inline(always)]
fn add_products<T: Target>(into: &mut [f32], rows: &[&[f32]], factors: &[f32; ROWS]) {
    let (blocks, rest) = into.as_chunks_mut::<COLUMNS>();
    let start_of_rest = COLUMNS * blocks.len();
    for (block, into) in blocks.iter_mut().enumerate() {
        let (vectors, _) = into.as_chunks_mut::<LANES>();
        let mut sums: [T::Vector; 4] = std::array::from_fn(|part| T::load(&vectors[part]));
        for (row, &factor) in rows.iter().zip(factors) {
            let (row, _) = row[block * COLUMNS..][..COLUMNS].as_chunks::<LANES>();
            let factor = T::splat(factor);
            for part in 0..4 {
                sums[part] = T::multiply_add_vectors(factor, T::load(&row[part]), sums[part]);
            }
        }
        for (into, sum) in vectors.iter_mut().zip(sums) {
            T::store(sum, into);
        }
    }
    for (row, &factor) in rows.iter().zip(factors) {
        for (into, &x) in rest.iter_mut().zip(&row[start_of_rest..]) {
            *into = T::multiply_add(factor, x, *into);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::adamw::adamw;
    use crate::kernels::testing::{check_every_set, lengths, normal};

    const TABLE_ROWS: usize = 5;

    /// Rows that come more than once.
    fn rows(count: u32) -> Vec<u32> {
        (0..count).map(|k| (k * k + k / 3) % TABLE_ROWS as u32).collect()
    }

    fn widths() -> impl Iterator<Item = usize> {
        lengths().filter(|&length| length < 300)
    }

    #[test]
    fn sums_match_at_every_width_and_number_of_rows() {
        let weights = normal(TABLE_ROWS, 8);
        check_every_set(|report| {
            for width in widths() {
                let table = normal(TABLE_ROWS * width, 1);
                for count in [0, 1, 2, 15, 16, 17, 40] {
                    for weights in [None, Some(&weights[..])] {
                        let of = |row: u32| f64::from(weights.map_or(1.0, |weights| weights[row as usize]));
                        let product = |row: u32, i: usize| of(row) * f64::from(table[row as usize * width + i]);
                        let rows = rows(count);
                        let expected: Vec<f64> =
                            (0..width).map(|i| rows.iter().map(|&row| product(row, i)).sum()).collect();
                        let mut found = vec![f32::NAN; width];
                        gathered_sum(&mut found, &table, &rows, weights);
                        let case = format!("width {width}, {count} rows, weights {}", weights.is_some());
                        report.close(&case, &found, &expected, |i, _| {
                            let sizes: f64 = rows.iter().map(|&row| product(row, i).abs()).sum();
                            f64::from(count) * 2f64.powi(-24) * sizes
                        });
                    }
                }
            }
        });
    }

    #[test]
    fn an_update_is_that_of_the_summed_gradient() {
        let step = AdamwStep {
            learning_rate: 3e-2,
            beta1: 0.9,
            beta2: 0.95,
            epsilon: 1e-8,
            weight_decay: 0.1,
            gradient_scale: 0.7,
            bias_correction1: 1.0 - 0.9 * 0.9,
            bias_correction2: 1.0 - 0.95 * 0.95,
        };
        check_every_set(|report| {
            for width in widths() {
                let table = normal(TABLE_ROWS * width, 1);
                let (p, m) = (normal(width, 2), normal(width, 3));
                let v: Vec<f32> = normal(width, 4).iter().map(|x| x * x).collect();
                for count in [1, 2, 17, 40] {
                    let mut gradient = vec![0.0; width];
                    gathered_sum(&mut gradient, &table, &rows(count), None);
                    let product: f64 = p.iter().zip(&gradient).map(|(&p, &g)| f64::from(p) * f64::from(g)).sum();
                    let mut expected = [p.clone(), m.clone(), v.clone()];
                    let [new_p, new_m, new_v] = &mut expected;
                    adamw(new_p, &gradient, new_m, new_v, &step);
                    let mut found = [p.clone(), m.clone(), v.clone()];
                    let [new_p, new_m, new_v] = &mut found;
                    let found_product = gathered_adamw(new_p, new_m, new_v, &table, &rows(count), &step);
                    let case = format!("width {width}, {count} rows");
                    for (name, (found, expected)) in ["p", "m", "v"].iter().zip(found.iter().zip(&expected)) {
                        report.same_bits(&format!("{name}, {case}"), found, expected);
                    }
                    report.close(&format!("product, {case}"), &[found_product], &[product], |_, _| {
                        let sizes = p.iter().zip(&gradient).map(|(p, g)| f64::from((p * g).abs()));
                        30.0 * 2f64.powi(-24) * sizes.sum::<f64>()
                    });
                }
            }
        });
    }

    #[test]
    #[should_panic(expected = "lengths of parameters and moments")]
    fn moments_of_another_length_are_refused() {
        let step = AdamwStep {
            learning_rate: 0.1,
            beta1: 0.9,
            beta2: 0.99,
            epsilon: 1e-8,
            weight_decay: 0.0,
            gradient_scale: 1.0,
            bias_correction1: 0.1,
            bias_correction2: 0.01,
        };
        gathered_adamw(&mut [0.0; 3], &mut [0.0; 2], &mut [0.0; 3], &[0.0; 3], &[0], &step);
    }
}
