//! Reading rows of a table that workers share, and adding to them.

use std::sync::atomic::AtomicU32;

use crate::kernels::dispatch::prefetch;
use crate::kernels::elementwise::add_assign;
use crate::kernels::shared_rows::{add_shared, read_shared, update_shared};

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
        read_shared(self.row(row), into);
    }

    #[inline]
    fn prefetch(self, row: u32) {
        prefetch(self.row(row));
    }
}

impl Table for Racing<'_> {
    #[inline]
    fn add_to(self, row: u32, into: &mut [f32]) {
        add_shared(self.row(row), into);
    }
}

impl<'a> Racing<'a> {
    #[inline]
    fn row(self, row: u32) -> &'a [AtomicU32] {
        &self.values[row as usize * self.dim..][..self.dim]
    }

    /// row ← row + factor·x; what another worker writes meanwhile may be lost.
    #[inline]
    pub fn add(self, row: u32, factor: f32, x: &[f32]) {
        update_shared(self.row(row), factor, x);
    }
}
