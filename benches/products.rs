//! The crate's matrix products beside BLAS's, on one core, in the shapes of the presets' layers:
//! `cargo bench --bench products`.
//!
//! The two alternate, so that what the machine does meanwhile falls on both; medians of GFLOP/s, and their ratio.
#![allow(missing_docs, unsafe_code)]

use std::time::{Duration, Instant};

use cllm::linalg::{Write, gemm};
use cllm::parallel::Parallelism;
use ndarray::{Array2, ArrayView2};

/// Seconds for each shape.
const SECONDS: f64 = 0.6;

/// How the operands lie in memory.
#[derive(Clone, Copy)]
enum Operands {
    /// A·B, a layer's forward.
    Plain,
    /// A·Bᵀ, the gradient of its input.
    TransposedB,
    /// Aᵀ·B, the gradient of its weight.
    TransposedA,
}

fn main() {
    #[cfg(feature = "blas")]
    let _blas = cllm::linalg::threads::SingleThreadedBlas::acquire();
    println!("| product | m × n × k | BLAS | here | ratio |\n|---|---|---|---|---|");
    for (preset, rows, dim, vocabulary) in [("seed", 64, 128, 1000), ("nano", 384, 128, 65), ("small", 512, 256, 4096)]
    {
        for (layer, inputs, outputs) in [("qkv", dim, 3 * dim), ("expand", dim, 4 * dim), ("contract", 4 * dim, dim)] {
            compare(&format!("{preset} {layer}"), Operands::Plain, (rows, outputs, inputs));
            compare(&format!("{preset} {layer}, input"), Operands::TransposedB, (rows, inputs, outputs));
            compare(&format!("{preset} {layer}, weight"), Operands::TransposedA, (inputs, outputs, rows));
        }
        compare(&format!("{preset} head"), Operands::TransposedB, (rows, vocabulary, dim));
        compare(&format!("{preset} head, input"), Operands::Plain, (rows, dim, vocabulary));
        compare(&format!("{preset} head, weight"), Operands::TransposedA, (vocabulary, dim, rows));
    }
    for (name, length) in [("attention 32", 32), ("attention 64", 64), ("attention 128", 128)] {
        let tile = length.min(64);
        compare(&format!("{name}, QKᵀ"), Operands::TransposedB, (tile, length, 32));
        compare(&format!("{name}, PV"), Operands::Plain, (tile, 32, length));
        compare(&format!("{name}, dV"), Operands::TransposedA, (length, 32, tile));
    }
    compare("gpt2 expand", Operands::Plain, (256, 3072, 768));
    compare("gpt2 expand, input", Operands::TransposedB, (256, 768, 3072));
    compare("gpt2 expand, weight", Operands::TransposedA, (768, 3072, 256));
    compare("square", Operands::Plain, (1024, 1024, 1024));
}

fn compare(name: &str, operands: Operands, (m, n, k): (usize, usize, usize)) {
    let matrix = |rows: usize, columns: usize| {
        Array2::from_shape_fn((rows, columns), |(i, j)| ((i * 37 + j * 101) % 97) as f32 / 97.0 - 0.5)
    };
    let (a, b) = match operands {
        Operands::Plain => (matrix(m, k), matrix(k, n)),
        Operands::TransposedB => (matrix(m, k), matrix(n, k)),
        Operands::TransposedA => (matrix(k, m), matrix(k, n)),
    };
    let (a, b) = match operands {
        Operands::Plain => (a.view(), b.view()),
        Operands::TransposedB => (a.view(), b.t()),
        Operands::TransposedA => (a.t(), b.view()),
    };
    let mut c = [Array2::zeros((m, n)), Array2::zeros((m, n))];
    let flops = 2.0 * (m * n * k) as f64;
    let repeats = (2e7 / flops).ceil() as usize;
    let mut rates = [Vec::new(), Vec::new()];
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs_f64(SECONDS) || rates[0].len() < 5 {
        for (way, (rates, c)) in rates.iter_mut().zip(&mut c).enumerate() {
            let start = Instant::now();
            for _ in 0..repeats {
                if way == 0 {
                    blas(a, b, c)
                } else {
                    gemm(1.0, a, b, Write::Replace, c.view_mut(), Parallelism::SEQUENTIAL)
                }
            }
            rates.push(flops * repeats as f64 / start.elapsed().as_secs_f64() / 1e9);
        }
    }
    assert!(c[0].iter().zip(&c[1]).all(|(x, y)| (x - y).abs() < 1e-2), "{name}: the products differ");
    let [blas, here] = rates.map(|mut rates| {
        rates.sort_by(f64::total_cmp);
        rates[rates.len() / 2]
    });
    println!("| {name} | {m} × {n} × {k} | {blas:.0} | {here:.0} | {:.2} |", here / blas);
}

/// C ← A·B by BLAS.
#[cfg(feature = "blas")]
fn blas(a: ArrayView2<'_, f32>, b: ArrayView2<'_, f32>, c: &mut Array2<f32>) {
    use cblas_sys::{CBLAS_LAYOUT, CBLAS_TRANSPOSE};
    let order = |view: &ArrayView2<'_, f32>| {
        if view.strides()[1] == 1 {
            (CBLAS_TRANSPOSE::CblasNoTrans, view.strides()[0] as i32)
        } else {
            (CBLAS_TRANSPOSE::CblasTrans, view.strides()[1] as i32)
        }
    };
    let ((a_order, a_stride), (b_order, b_stride)) = (order(&a), order(&b));
    let (m, n, k) = (a.nrows() as i32, b.ncols() as i32, a.ncols() as i32);
    // SAFETY: the shapes agree and the strides are the arrays' own.
    unsafe {
        cblas_sys::cblas_sgemm(
            CBLAS_LAYOUT::CblasRowMajor,
            a_order,
            b_order,
            m,
            n,
            k,
            1.0,
            a.as_ptr(),
            a_stride,
            b.as_ptr(),
            b_stride,
            0.0,
            c.as_mut_ptr(),
            n,
        );
    }
}

/// Without BLAS, ndarray's own product stands in its place.
#[cfg(not(feature = "blas"))]
fn blas(a: ArrayView2<'_, f32>, b: ArrayView2<'_, f32>, c: &mut Array2<f32>) {
    ndarray::linalg::general_mat_mul(1.0, &a, &b, 0.0, c);
}
