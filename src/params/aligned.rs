//! A fixed-length buffer of `f32` that starts on a cache line.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// Bytes in a cache line, and in the widest vector register.
const ALIGNMENT: usize = 64;

/// A zero-initialised `[f32]` whose first element lies on a 64-byte boundary.
pub struct AlignedBuffer {
    start: NonNull<f32>,
    length: usize,
}

// SAFETY: the buffer owns its memory as a `Box<[f32]>` does, and gives access only through `&self` and `&mut self`.
unsafe impl Send for AlignedBuffer {}
// SAFETY: as above.
unsafe impl Sync for AlignedBuffer {}

impl AlignedBuffer {
    /// A buffer of `length` zeros.
    #[must_use]
    pub fn zeros(length: usize) -> Self {
        if length == 0 {
            return Self { start: NonNull::dangling(), length };
        }
        let layout = Self::layout(length);
        // SAFETY: the layout has a non-zero size, since `length` is not 0.
        let memory = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(memory.cast::<f32>()) else { handle_alloc_error(layout) };
        Self { start, length }
    }

    fn layout(length: usize) -> Layout {
        let bytes = length.checked_mul(size_of::<f32>()).expect("the buffer exceeds the address space");
        Layout::from_size_align(bytes, ALIGNMENT).expect("the buffer exceeds the address space")
    }
}

impl Drop for AlignedBuffer {
    fn drop(&mut self) {
        if self.length > 0 {
            // SAFETY: the memory came from `alloc_zeroed` with this very layout and is freed once.
            unsafe { dealloc(self.start.as_ptr().cast(), Self::layout(self.length)) }
        }
    }
}

impl Deref for AlignedBuffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        // SAFETY: `start` addresses `length` initialised floats (or is dangling and `length` is 0) owned by `self`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.length) }
    }
}

impl DerefMut for AlignedBuffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        // SAFETY: as in `deref`, and `self` is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.length) }
    }
}

impl Clone for AlignedBuffer {
    fn clone(&self) -> Self {
        let mut copy = Self::zeros(self.length);
        copy.copy_from_slice(self);
        copy
    }
}

impl std::fmt::Debug for AlignedBuffer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "AlignedBuffer({} floats)", self.length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_on_a_cache_line_and_is_zero() {
        for length in [0, 1, 15, 16, 17, 1000] {
            let buffer = AlignedBuffer::zeros(length);
            assert_eq!(&*buffer, vec![0.0; length]);
            assert!(length == 0 || buffer.as_ptr().addr().is_multiple_of(ALIGNMENT));
        }
    }

    #[test]
    fn a_clone_is_a_copy() {
        let mut buffer = AlignedBuffer::zeros(3);
        buffer[1] = 5.0;
        let copy = buffer.clone();
        buffer[1] = 6.0;
        assert_eq!(&*copy, [0.0, 5.0, 0.0]);
    }
}
