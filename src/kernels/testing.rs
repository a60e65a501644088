//! What the tests of the kernels share.

use super::dispatch::{InstructionSet, under_every_instruction_set};
use crate::rng::{Purpose, Stream};

/// Lengths around every vector width, and some that take several blocks.
pub(crate) fn lengths() -> impl Iterator<Item = usize> {
    (0..=67).chain([100, 128, 255, 1000, 4099])
}

/// Normal draws, different for every `seed`.
pub(crate) fn normal(length: usize, seed: u64) -> Vec<f32> {
    let mut draws = vec![0.0; length];
    Stream::new(seed, Purpose::Caller, 0).fill_normal(&mut draws, 1.0);
    draws
}

/// Collects the cases that fail, so that one run shows them all.
pub(crate) struct Report {
    set: InstructionSet,
    checks: usize,
    failures: Vec<String>,
}

impl Report {
    /// Notes a case as failed, described by `case`, unless it is `good`.
    pub(crate) fn check(&mut self, good: bool, case: impl FnOnce() -> String) {
        self.checks += 1;
        if !good {
            self.failures.push(format!("{:?}: {}", self.set, case()));
        }
    }

    /// Checks that every element is within its tolerance of what is expected; `tolerance(i, expected)`.
    #[track_caller]
    pub(crate) fn close(&mut self, case: &str, found: &[f32], expected: &[f64], tolerance: impl Fn(usize, f64) -> f64) {
        assert_eq!(found.len(), expected.len(), "{case}");
        for (i, (&found, &expected)) in found.iter().zip(expected).enumerate() {
            let error = (f64::from(found) - expected).abs();
            let tolerance = tolerance(i, expected);
            self.check(error <= tolerance, || {
                format!("{case}, element {i}: found {found:e}, expected {expected:e}, tolerance {tolerance:e}")
            });
        }
    }

    /// Checks that two slices have the same bits.
    #[track_caller]
    pub(crate) fn same_bits(&mut self, case: &str, found: &[f32], expected: &[f32]) {
        assert_eq!(found.len(), expected.len(), "{case}");
        for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
            self.check(found.to_bits() == expected.to_bits(), || {
                format!("{case}, element {i}: found {found:e}, expected {expected:e} to the bit")
            });
        }
    }
}

/// Runs `test` under every instruction set, and fails with all cases that its report has collected.
#[track_caller]
pub(crate) fn check_every_set(mut test: impl FnMut(&mut Report)) {
    let mut failures = Vec::new();
    under_every_instruction_set(|set| {
        let mut report = Report { set, checks: 0, failures: Vec::new() };
        test(&mut report);
        assert!(report.checks > 0, "{set:?}: the test checked nothing");
        failures.append(&mut report.failures);
    });
    let shown = failures.len().min(50);
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures[..shown].join("\n"));
}

/// Runs `kernel` on copies of `inputs` whose first elements lie 0, 1, 2 … 16 floats after an allocation's start, and
/// checks that what it leaves in them has the same bits each time.
#[track_caller]
pub(crate) fn check_alignment(inputs: &[&[f32]], kernel: impl Fn(&mut [&mut [f32]])) {
    check_every_set(|report| {
        let mut first: Option<Vec<Vec<f32>>> = None;
        for offset in 0..=16 {
            let mut buffers: Vec<Vec<f32>> = inputs
                .iter()
                .enumerate()
                // Each input is shifted differently, so that they are not aligned to one another either.
                .map(|(i, input)| std::iter::repeat_n(0.0, offset * (i + 1)).chain(input.iter().copied()).collect())
                .collect();
            let mut slices: Vec<&mut [f32]> =
                buffers.iter_mut().enumerate().map(|(i, buffer)| &mut buffer[offset * (i + 1)..]).collect();
            kernel(&mut slices);
            let results: Vec<Vec<f32>> = slices.iter().map(|slice| slice.to_vec()).collect();
            let expected = first.get_or_insert_with(|| results.clone());
            for (i, (found, expected)) in results.iter().zip(expected.iter()).enumerate() {
                report.same_bits(&format!("argument {i} at offset {offset}"), found, expected);
            }
        }
    });
}

/// The distance between neighbouring f32 at `x`.
pub(crate) fn ulp(x: f64) -> f64 {
    let exponent = x.abs().log2().floor().clamp(-126.0, 127.0);
    (exponent - 23.0).exp2()
}

/// The elements as f64.
pub(crate) fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(x)).collect()
}

/// ∂f/∂x_i for every i, by central differences of step `step`.
pub(crate) fn numerical_gradient(x: &[f64], step: f64, f: impl Fn(&[f64]) -> f64) -> Vec<f64> {
    let mut moved = x.to_vec();
    (0..x.len())
        .map(|i| {
            moved[i] = x[i] + step;
            let above = f(&moved);
            moved[i] = x[i] - step;
            let below = f(&moved);
            moved[i] = x[i];
            (above - below) / (2.0 * step)
        })
        .collect()
}
