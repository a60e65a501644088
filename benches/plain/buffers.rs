//! Where a pass gets its buffers from: from the allocator each time, or from a store that keeps them.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};

/// Gives out zeroed buffers.
#[derive(Default)]
pub struct Buffers {
    /// Free buffers by length, where they are kept.
    free: Option<RefCell<BTreeMap<usize, Vec<Vec<f32>>>>>,
}

impl Buffers {
    /// Buffers that come from the allocator and go back to it, or, if `persistent`, are allocated once.
    pub fn new(persistent: bool) -> Self {
        Self { free: persistent.then(Default::default) }
    }

    /// `length` zeros.
    pub fn zeros(&self, length: usize) -> Buffer<'_> {
        let kept = self.free.as_ref().and_then(|free| free.borrow_mut().get_mut(&length)?.pop());
        let values = match kept {
            Some(mut values) => {
                values.fill(0.0);
                values
            }
            None => vec![0.0; length],
        };
        Buffer { values, home: self }
    }

    /// A copy of `values`.
    pub fn copy(&self, values: &[f32]) -> Buffer<'_> {
        let mut copy = self.zeros(values.len());
        copy.copy_from_slice(values);
        copy
    }
}

/// A buffer that returns to where it came from.
pub struct Buffer<'a> {
    values: Vec<f32>,
    home: &'a Buffers,
}

impl Deref for Buffer<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.values
    }
}

impl DerefMut for Buffer<'_> {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.values
    }
}

impl Drop for Buffer<'_> {
    fn drop(&mut self) {
        if let Some(free) = &self.home.free {
            let values = std::mem::take(&mut self.values);
            free.borrow_mut().entry(values.len()).or_default().push(values);
        }
    }
}
