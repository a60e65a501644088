#![allow(missing_docs)]
use cllm::linalg::{Write, affine, gemm};
use cllm::parallel::Parallelism;
use ndarray::Array2;
use std::time::Instant;
fn main() {
    #[cfg(feature = "blas")]
    let _b = cllm::linalg::threads::SingleThreadedBlas::acquire();
    let sets: usize = std::env::args().nth(1).map_or(24, |x| x.parse().unwrap());
    let mk = |r: usize, c: usize| -> Vec<Array2<f32>> { (0..sets).map(|s| Array2::from_shape_fn((r, c), |(i, j)| ((i * 37 + j * 101 + s) % 97) as f32 / 97.0 - 0.5)).collect() };
    for (name, kind, m, n, k) in [("qkv", 0, 384, 384, 128), ("expand", 0, 384, 512, 128), ("contract", 0, 384, 128, 512), ("proj", 0, 384, 128, 128), ("expand dx", 1, 384, 128, 512), ("contract dx", 1, 384, 512, 128), ("expand dw", 2, 128, 512, 384), ("contract dw", 2, 512, 128, 384), ("qkv dw", 2, 128, 384, 384)] {
        let (a, b) = match kind { 0 => (mk(m, k), mk(k, n)), 1 => (mk(m, k), mk(n, k)), _ => (mk(k, m), mk(k, n)) };
        let r = mk(m, n);
        let bias = vec![0.1f32; n];
        let mut c = mk(m, n);
        let mut best = [f64::MAX; 3];
        for _ in 0..25 {
            for way in 0..3 {
                let t = Instant::now();
                for s in 0..sets {
                    let (a, b) = (a[s].view(), b[s % 4.min(sets)].view());
                    let c = c[s].view_mut();
                    let p = Parallelism::SEQUENTIAL;
                    match (kind, way) {
                        (0, 0) => gemm(1.0, a, b, Write::Replace, c, p),
                        (0, 1) => affine(a, b, &bias, None, c, p),
                        (0, _) => affine(a, b, &bias, Some(r[s].view()), c, p),
                        (1, 0) => gemm(1.0, a, b.t(), Write::Replace, c, p),
                        (1, _) => gemm(1.0, a, b.t(), Write::Add, c, p),
                        (_, 0) => gemm(1.0, a.t(), b, Write::Replace, c, p),
                        _ => gemm(1.0, a.t(), b, Write::Add, c, p),
                    }
                }
                best[way] = best[way].min(t.elapsed().as_secs_f64() / sets as f64);
            }
        }
        println!("{name:12} {:?}", best.map(|t| (2.0 * (m * n * k) as f64 / t / 1e9).round()));
    }
}
