//! Layers for one token at a time, forward and backward, in scalar loops. A backward adds to the gradients of
//! parameters and returns the gradient of its input.

use cllm::linalg::{Write, gemm};
use cllm::parallel::Parallelism;
use ndarray::{ArrayView2, ArrayViewMut2};

use super::buffers::{Buffer, Buffers};
use super::parameters::{Linear, Norm};

/// x·W + b and its backward. W is inputs × outputs: the weights of an output are a column.
#[derive(Clone, Copy)]
pub struct Linears {
    /// Along the rows of W instead of down its columns.
    pub by_rows: bool,
}

impl Linears {
    pub fn forward<'a>(self, buffers: &'a Buffers, layer: &Linear, x: &[f32]) -> Buffer<'a> {
        let mut buffer = buffers.copy(&layer.bias);
        // Slices, here and below, so that the compiler knows that writing to one changes no other.
        let (weight, y) = (&layer.weight[..], &mut buffer[..]);
        let outputs = y.len();
        if self.by_rows {
            for input in 0..x.len() {
                for output in 0..outputs {
                    y[output] += x[input] * weight[input * outputs + output];
                }
            }
        } else {
            for output in 0..outputs {
                let mut sum = y[output];
                for input in 0..x.len() {
                    sum += x[input] * weight[input * outputs + output];
                }
                y[output] = sum;
            }
        }
        buffer
    }

    pub fn backward<'a>(
        self,
        buffers: &'a Buffers,
        layer: &Linear,
        gradients: &mut Linear,
        x: &[f32],
        dy: &[f32],
    ) -> Buffer<'a> {
        let mut buffer = buffers.zeros(x.len());
        let (weight, dweight, dx) = (&layer.weight[..], &mut gradients.weight[..], &mut buffer[..]);
        let outputs = dy.len();
        if self.by_rows {
            for input in 0..x.len() {
                let mut sum = 0.0;
                for output in 0..outputs {
                    sum += weight[input * outputs + output] * dy[output];
                    dweight[input * outputs + output] += x[input] * dy[output];
                }
                dx[input] = sum;
            }
        } else {
            for output in 0..outputs {
                for input in 0..x.len() {
                    dx[input] += weight[input * outputs + output] * dy[output];
                    dweight[input * outputs + output] += x[input] * dy[output];
                }
            }
        }
        add(&mut gradients.bias, dy);
        buffer
    }
}

/// Mean and 1 / √(variance + ε).
fn statistics(x: &[f32], epsilon: f32) -> (f32, f32) {
    let width = x.len() as f32;
    let mean = x.iter().sum::<f32>() / width;
    let variance = x.iter().map(|x| (x - mean) * (x - mean)).sum::<f32>() / width;
    (mean, 1.0 / (variance + epsilon).sqrt())
}

/// (x − mean) / √(variance + ε) · gain + bias.
pub fn norm<'a>(buffers: &'a Buffers, layer: &Norm, x: &[f32], epsilon: f32) -> Buffer<'a> {
    let (mean, inverse_deviation) = statistics(x, epsilon);
    let mut y = buffers.zeros(x.len());
    for i in 0..x.len() {
        y[i] = (x[i] - mean) * inverse_deviation * layer.gain[i] + layer.bias[i];
    }
    y
}

pub fn norm_backward<'a>(
    buffers: &'a Buffers,
    layer: &Norm,
    gradients: &mut Norm,
    x: &[f32],
    dy: &[f32],
    epsilon: f32,
) -> Buffer<'a> {
    let (mean, inverse_deviation) = statistics(x, epsilon);
    let (mut mean_g, mut mean_gx) = (0.0, 0.0);
    for i in 0..x.len() {
        let normalised = (x[i] - mean) * inverse_deviation;
        gradients.gain[i] += dy[i] * normalised;
        gradients.bias[i] += dy[i];
        mean_g += dy[i] * layer.gain[i] / x.len() as f32;
        mean_gx += dy[i] * layer.gain[i] * normalised / x.len() as f32;
    }
    let mut dx = buffers.zeros(x.len());
    for i in 0..x.len() {
        let normalised = (x[i] - mean) * inverse_deviation;
        dx[i] = (dy[i] * layer.gain[i] - mean_g - normalised * mean_gx) * inverse_deviation;
    }
    dx
}

/// √(2/π), and the coefficient of the cube, of GELU's tanh form.
const ROOT: f32 = 0.797_884_6;
const CUBIC: f32 = 0.044_715;

/// ½·u·(1 + tanh(√(2/π)·(u + 0.044715·u³))).
pub fn gelu<'a>(buffers: &'a Buffers, u: &[f32]) -> Buffer<'a> {
    let mut y = buffers.zeros(u.len());
    for (y, &u) in y.iter_mut().zip(u) {
        *y = 0.5 * u * (1.0 + (ROOT * (u + CUBIC * u * u * u)).tanh());
    }
    y
}

pub fn gelu_backward<'a>(buffers: &'a Buffers, u: &[f32], dy: &[f32]) -> Buffer<'a> {
    let mut du = buffers.zeros(u.len());
    for ((du, &u), dy) in du.iter_mut().zip(u).zip(dy) {
        let tanh = (ROOT * (u + CUBIC * u * u * u)).tanh();
        let slope = ROOT * (1.0 + 3.0 * CUBIC * u * u);
        *du = dy * 0.5 * (1.0 + tanh + u * (1.0 - tanh * tanh) * slope);
    }
    du
}

/// Scores → probabilities; returns ln Σ exp.
pub fn softmax(scores: &mut [f32]) -> f32 {
    let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f32 = scores.iter().map(|score| (score - largest).exp()).sum();
    for score in scores {
        *score = (*score - largest).exp() / sum;
    }
    largest + sum.ln()
}

/// Products of one vector with the rows of an embedding table: scalar loops, or BLAS.
#[derive(Clone, Copy)]
pub struct Similarities {
    pub vectorised: bool,
}

impl Similarities {
    /// x·y.
    pub fn dot(self, x: &[f32], y: &[f32]) -> f32 {
        if self.vectorised {
            return ndarray::ArrayView1::from(x).dot(&ndarray::ArrayView1::from(y));
        }
        let mut sum = 0.0;
        for (x, y) in x.iter().zip(y) {
            sum += x * y;
        }
        sum
    }

    /// x·Tᵀ: the similarity of x and each row of the table.
    pub fn scores<'a>(self, buffers: &'a Buffers, table: &[f32], x: &[f32]) -> Buffer<'a> {
        let rows = table.len() / x.len();
        let mut scores = buffers.zeros(rows);
        if self.vectorised {
            product(matrix(x, 1), matrix(table, rows).t(), &mut scores, (1, rows));
        } else {
            for (score, row) in scores.iter_mut().zip(table.chunks(x.len())) {
                *score = self.dot(x, row);
            }
        }
        scores
    }

    /// The gradient of x, dscores·T; adds that of the table, dscoresᵀ·x.
    pub fn backward<'a>(
        self,
        buffers: &'a Buffers,
        table: &[f32],
        dtable: &mut [f32],
        x: &[f32],
        dscores: &[f32],
    ) -> Buffer<'a> {
        let (rows, width) = (dscores.len(), x.len());
        let mut buffer = buffers.zeros(width);
        let dx = &mut buffer[..];
        if self.vectorised {
            product(matrix(dscores, 1), matrix(table, rows), dx, (1, width));
            product(matrix(dscores, rows), matrix(x, 1), dtable, (rows, width));
        } else {
            for row in 0..rows {
                for column in 0..width {
                    dx[column] += dscores[row] * table[row * width + column];
                    dtable[row * width + column] += dscores[row] * x[column];
                }
            }
        }
        buffer
    }
}

/// sum ← sum + x.
pub fn add(sum: &mut [f32], x: &[f32]) {
    add_scaled(sum, 1.0, x);
}

/// sum ← sum + factor·x.
pub fn add_scaled(sum: &mut [f32], factor: f32, x: &[f32]) {
    for (sum, x) in sum.iter_mut().zip(x) {
        *sum += factor * x;
    }
}

fn matrix(values: &[f32], rows: usize) -> ArrayView2<'_, f32> {
    ArrayView2::from_shape((rows, values.len() / rows), values).expect("the rows are whole")
}

/// c ← c + a·b.
fn product(a: ArrayView2<'_, f32>, b: ArrayView2<'_, f32>, c: &mut [f32], shape: (usize, usize)) {
    let c = ArrayViewMut2::from_shape(shape, c).expect("the rows are whole");
    gemm(1.0, a, b, Write::Add, c, Parallelism::SEQUENTIAL);
}
