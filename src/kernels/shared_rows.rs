//! Rows that several threads read and write at once, element by element.
//!
//! The elements are atomics with relaxed order: an update of one that another thread updates at that moment may be lost,
//! and no value is ever a mixture of two. Vector registers are filled and written sixteen elements at a time (see
//! `dispatch`).

use std::sync::atomic::{AtomicU32, Ordering};

use super::dispatch::kernel;
use super::lanes::LANES;

#[inline(always)]
fn load(element: &AtomicU32) -> f32 {
    f32::from_bits(element.load(Ordering::Relaxed))
}

kernel! {
    /// x ← row.
    ///
    /// # Panics
    /// If the lengths differ.
    pub(crate) fn read_shared<T>(row: &[AtomicU32], x: &mut [f32]) {
        assert_eq!(row.len(), x.len(), "read_shared: lengths of row and x");
        let ((sixteens, rest), (into, into_rest)) = (row.as_chunks::<LANES>(), x.as_chunks_mut::<LANES>());
        for (from, into) in sixteens.iter().zip(into) {
            T::store(T::load_shared(from), into);
        }
        for (from, into) in rest.iter().zip(into_rest) {
            *into = load(from);
        }
    }

    /// x ← x + row.
    ///
    /// # Panics
    /// If the lengths differ.
    pub(crate) fn add_shared<T>(row: &[AtomicU32], x: &mut [f32]) {
        assert_eq!(row.len(), x.len(), "add_shared: lengths of row and x");
        let ((sixteens, rest), (into, into_rest)) = (row.as_chunks::<LANES>(), x.as_chunks_mut::<LANES>());
        for (from, into) in sixteens.iter().zip(into) {
            T::store(T::add(T::load(into), T::load_shared(from)), into);
        }
        for (from, into) in rest.iter().zip(into_rest) {
            *into += load(from);
        }
    }

    /// row ← row + a·x.
    ///
    /// # Panics
    /// If the lengths differ.
    pub(crate) fn update_shared<T>(row: &[AtomicU32], a: f32, x: &[f32]) {
        assert_eq!(row.len(), x.len(), "update_shared: lengths of row and x");
        let ((sixteens, rest), (from, from_rest)) = (row.as_chunks::<LANES>(), x.as_chunks::<LANES>());
        let factor = T::splat(a);
        for (into, from) in sixteens.iter().zip(from) {
            T::store_shared(T::multiply_add_vectors(factor, T::load(from), T::load_shared(into)), into);
        }
        for (into, &from) in rest.iter().zip(from_rest) {
            into.store(T::multiply_add(a, from, load(into)).to_bits(), Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;
    use crate::kernels::dispatch::under_every_instruction_set;
    use crate::kernels::elementwise::{add_assign, axpy};
    use crate::kernels::testing::{check_every_set, lengths, normal};
    use crate::params::as_atomics;

    #[test]
    fn rows_are_read_and_updated_as_slices_are() {
        check_every_set(|report| {
            for length in lengths() {
                let (row, x) = (normal(length, 1), normal(length, 2));
                let mut shared = row.clone();
                let atomics = as_atomics(&mut shared);
                let mut found = x.clone();
                read_shared(atomics, &mut found);
                report.same_bits(&format!("read, length {length}"), &found, &row);
                let (mut found, mut expected) = (x.clone(), x.clone());
                add_shared(atomics, &mut found);
                add_assign(&mut expected, &row);
                report.same_bits(&format!("add, length {length}"), &found, &expected);
                update_shared(atomics, -0.3, &x);
                let mut expected = row.clone();
                axpy(&mut expected, -0.3, &x);
                report.same_bits(&format!("update, length {length}"), &shared, &expected);
            }
        });
    }

    /// At an address that splits vectors between cache lines.
    #[test]
    fn a_reader_sees_no_mixture_of_two_values() {
        under_every_instruction_set(|set| {
            // Between 1 and 2: the difference is exact.
            let values @ [first, second] = [0x3f81_2345, 0x3f8e_dcba].map(f32::from_bits);
            let mut memory = vec![first; 117];
            let row = &as_atomics(&mut memory)[1..];
            let steps = [second - first, first - second].map(|step| vec![step; row.len()]);
            let stop = AtomicBool::new(false);
            std::thread::scope(|scope| {
                // The choice of instructions is a thread's own.
                scope.spawn(|| {
                    under_every_instruction_set(|own| {
                        while own == set && !stop.load(Ordering::Relaxed) {
                            steps.iter().for_each(|step| update_shared(row, 1.0, step));
                        }
                    });
                });
                let (mut seen, mut mixture) = (vec![0.0; row.len()], None);
                for _ in 0..50_000 {
                    read_shared(row, &mut seen);
                    mixture = mixture.or(seen.iter().copied().find(|value| !values.contains(value)));
                }
                stop.store(true, Ordering::Relaxed);
                assert_eq!(mixture, None, "{set:?}");
            });
        });
    }

    #[test]
    #[should_panic(expected = "update_shared: lengths of row and x")]
    fn other_lengths_are_refused() {
        update_shared(as_atomics(&mut [0.0; 3]), 1.0, &[0.0; 4]);
    }
}
