//! Reading rows of a table that workers share, and adding to them.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::kernels::dispatch::prefetch;
use crate::kernels::elementwise::add_assign;

/// Stands for no row: a place beyond the ends of the text.
pub(crate) const NO_ROW: u32 = u32::MAX;

/// Rows that are read one at a time.
pub(crate) trait Rows: Copy + Sync {
    /// Copies a row.
    fn read(self, row: u32, into: &mut [f32]);

    /// Has a row brought closer to the processor.
    fn prefetch(self, row: u32);
}

/// Rows that are stored as they are read.
pub(crate) trait Table: Rows {
    /// into ← into + row.
    fn add_to(self, row: u32, into: &mut [f32]);
}

/// A table nobody writes to.
#[derive(Clone, Copy)]
pub(crate) struct Frozen<'a> {
    pub values: &'a [f32],
    pub dim: usize,
}

impl Rows for Frozen<'_> {
    #[inline]
    fn read(self, row: u32, into: &mut [f32]) {
        into.copy_from_slice(&self.values[row as usize * self.dim..][..self.dim]);
    }

    #[inline]
    fn prefetch(self, row: u32) {
        prefetch(&self.values[row as usize * self.dim..][..self.dim]);
    }
}

impl Table for Frozen<'_> {
    #[inline]
    fn add_to(self, row: u32, into: &mut [f32]) {
        add_assign(into, &self.values[row as usize * self.dim..][..self.dim]);
    }
}

/// A table whose elements are written at any time.
#[derive(Clone, Copy)]
pub(crate) struct Racing<'a> {
    pub values: &'a [AtomicU32],
    pub dim: usize,
}

impl Rows for Racing<'_> {
    #[inline]
    fn read(self, row: u32, into: &mut [f32]) {
        let row = &self.values[row as usize * self.dim..][..self.dim];
        for (into, value) in into.iter_mut().zip(row) {
            *into = f32::from_bits(value.load(Ordering::Relaxed));
        }
    }

    #[inline]
    fn prefetch(self, row: u32) {
        prefetch(&self.values[row as usize * self.dim..][..self.dim]);
    }
}

impl Table for Racing<'_> {
    #[inline]
    fn add_to(self, row: u32, into: &mut [f32]) {
        let row = &self.values[row as usize * self.dim..][..self.dim];
        for (into, value) in into.iter_mut().zip(row) {
            *into += f32::from_bits(value.load(Ordering::Relaxed));
        }
    }
}

impl Racing<'_> {
    /// row ← row + factor·x; what another worker writes meanwhile may be lost.
    #[inline]
    pub fn add(self, row: u32, factor: f32, x: &[f32]) {
        let row = &self.values[row as usize * self.dim..][..self.dim];
        for (value, &x) in row.iter().zip(x) {
            let sum = f32::from_bits(value.load(Ordering::Relaxed)) + factor * x;
            value.store(sum.to_bits(), Ordering::Relaxed);
        }
    }
}
