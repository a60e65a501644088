//! Throughput of the kernels on one core, in the first cache and beyond the last: `cargo bench --bench kernels`.
//!
//! `CLLM_KERNELS=avx2` or `portable` measures the narrower instruction sets.
#![allow(missing_docs)]

use cllm::kernels::adamw::{AdamwStep, adamw};
use cllm::kernels::cross_entropy::cross_entropy_row;
use cllm::kernels::elementwise::axpy;
use cllm::kernels::exp::exp;
use cllm::kernels::gelu::gelu_with_derivative;
use cllm::kernels::instruction_set;
use cllm::kernels::layer_norm::{layer_norm, layer_norm_backward};
use cllm::kernels::reduce::{dot, squared_norm, sum_rows};
use cllm::kernels::softmax::{causal_softmax, softmax_backward};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;

const STEP: AdamwStep = AdamwStep {
    learning_rate: 1e-9,
    beta1: 0.9,
    beta2: 0.95,
    epsilon: 1e-8,
    weight_decay: 0.1,
    gradient_scale: 0.5,
    bias_correction1: 0.1,
    bias_correction2: 0.05,
};

fn waves(length: usize, height: f32) -> Vec<f32> {
    (0..length).map(|i| height * (i as f32 * 0.7312).sin()).collect()
}

/// Kernels over slices; `bytes` are those that must be read and written for each element.
fn slices(criterion: &mut Criterion) {
    for length in [4096usize, 1 << 24] {
        let mut group = criterion.benchmark_group(format!("{:?}/{length}", instruction_set()));
        group.sample_size(20);
        let x = waves(length, 3.0);
        let (mut a, mut b, mut c) = (waves(length, 1.0), waves(length, 1.0), vec![0.01; length]);
        let mut bench = |name: &str, bytes: u64, run: &mut dyn FnMut()| {
            group.throughput(Throughput::ElementsAndBytes { elements: length as u64, bytes: bytes * length as u64 });
            group.bench_function(name, |bencher| bencher.iter(&mut *run));
        };
        bench("copy", 8, &mut || a.copy_from_slice(black_box(&x)));
        bench("axpy", 12, &mut || axpy(&mut a, 1e-9, black_box(&x)));
        bench("dot", 8, &mut || {
            black_box(dot(black_box(&a), &x));
        });
        bench("squared_norm", 4, &mut || {
            black_box(squared_norm(black_box(&x)));
        });
        bench("adamw", 28, &mut || adamw(&mut a, black_box(&x), &mut b, &mut c, &STEP));
        // Back to 0 first: exponentials of exponentials would run away.
        bench("fill and exp", 8, &mut || {
            a.fill(0.5);
            exp(black_box(&mut a));
        });
        a.copy_from_slice(&x);
        bench("gelu_with_derivative", 16, &mut || gelu_with_derivative(black_box(&mut a), &mut b));
    }
}

/// Kernels over rows, in the shapes of the presets nano and gpt2.
fn rows(criterion: &mut Criterion) {
    for (rows, width) in [(768usize, 128usize), (256, 768)] {
        let mut group = criterion.benchmark_group(format!("{:?}/{rows}x{width}", instruction_set()));
        let (x, upstream) = (waves(rows * width, 3.0), waves(rows * width, 1.0));
        let (gain, bias) = (waves(width, 1.0), waves(width, 1.0));
        let mut out = vec![0.0; rows * width];
        let (mut into_gain, mut into_bias) = (vec![0.0; width], vec![0.0; width]);
        let (mut mean, mut inverse) = (vec![0.0; rows], vec![0.0; rows]);
        group.throughput(Throughput::Elements((rows * width) as u64));
        group.bench_function("sum_rows", |bencher| bencher.iter(|| sum_rows(black_box(&x), &mut into_bias, false)));
        group.bench_function("layer_norm", |bencher| {
            bencher.iter(|| layer_norm(black_box(&x), &gain, &bias, 1e-5, &mut out, &mut mean, &mut inverse));
        });
        group.bench_function("layer_norm_backward", |bencher| {
            bencher.iter(|| {
                out.fill(0.0);
                layer_norm_backward(
                    black_box(&x),
                    &mean,
                    &inverse,
                    &gain,
                    &upstream,
                    &mut out,
                    &mut into_gain,
                    &mut into_bias,
                );
            });
        });
    }
}

/// Causal attention scores of one head, counting the masked half, and rows of logits.
fn probabilities(criterion: &mut Criterion) {
    for length in [64usize, 256] {
        let mut group = criterion.benchmark_group(format!("{:?}/causal {length}", instruction_set()));
        let scores = waves(length * length, 3.0);
        let mut p = scores.clone();
        let mut log_sum_exp = vec![0.0; length];
        group.throughput(Throughput::Elements((length * length) as u64));
        group.bench_function("causal_softmax", |bencher| {
            bencher.iter(|| causal_softmax(black_box(&mut p), length, 1, 0.125, &mut log_sum_exp));
        });
        let mut gradients = scores.clone();
        group.bench_function("softmax_backward", |bencher| {
            bencher.iter(|| softmax_backward(black_box(&scores), &mut gradients, length, 1, 0.125));
        });
    }
    for vocabulary in [1000usize, 4096, 50_257] {
        let mut group = criterion.benchmark_group(format!("{:?}/vocabulary {vocabulary}", instruction_set()));
        let mut logits = waves(vocabulary, 3.0);
        group.throughput(Throughput::Elements(vocabulary as u64));
        group.bench_function("cross_entropy_row", |bencher| {
            bencher.iter(|| cross_entropy_row(black_box(&mut logits), vocabulary / 2, 0.0, 1.0));
        });
    }
}

criterion_group!(benches, slices, rows, probabilities);
criterion_main!(benches);
