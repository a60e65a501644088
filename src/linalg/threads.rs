//! BLAS's own threads.
//!
//! One BLAS thread under each of the crate's workers is faster than BLAS's own threads on all but very large products,
//! so a trainer sets OpenBLAS to one thread while it lives. That setting belongs to the process: other users of
//! OpenBLAS in it see one thread too, until the last [`SingleThreadedBlas`] is dropped and the former number returns.
//! `TrainingConfig::keep_blas_threads` leaves it alone.

#[cfg(feature = "openblas")]
mod openblas {
    use std::ffi::{CStr, c_char, c_int};
    use std::sync::{Mutex, PoisonError};

    #[allow(unsafe_code)]
    // SAFETY: these are OpenBLAS's declarations in its cblas.h; none has a precondition.
    unsafe extern "C" {
        safe fn openblas_set_num_threads(threads: c_int);
        safe fn openblas_get_num_threads() -> c_int;
        safe fn openblas_get_corename() -> *const c_char;
    }

    struct Holders {
        count: usize,
        former_threads: c_int,
    }

    static HOLDERS: Mutex<Holders> = Mutex::new(Holders { count: 0, former_threads: 1 });

    pub(super) fn acquire() {
        let mut holders = HOLDERS.lock().unwrap_or_else(PoisonError::into_inner);
        if holders.count == 0 {
            holders.former_threads = openblas_get_num_threads();
            openblas_set_num_threads(1);
        }
        holders.count += 1;
    }

    pub(super) fn release() {
        let mut holders = HOLDERS.lock().unwrap_or_else(PoisonError::into_inner);
        holders.count -= 1;
        if holders.count == 0 {
            openblas_set_num_threads(holders.former_threads);
        }
    }

    pub(super) fn threads() -> usize {
        openblas_get_num_threads().try_into().unwrap_or(1)
    }

    pub(super) fn core_name() -> String {
        let name = openblas_get_corename();
        // SAFETY: OpenBLAS returns a pointer to a static, NUL-terminated string.
        #[allow(unsafe_code)]
        unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned()
    }
}

/// Holds BLAS at one thread from its creation to its drop; several may live at once.
#[derive(Debug)]
pub struct SingleThreadedBlas(());

impl SingleThreadedBlas {
    /// Sets BLAS to one thread. Does nothing where the provider has no such setting.
    #[must_use]
    pub fn acquire() -> Self {
        #[cfg(feature = "openblas")]
        openblas::acquire();
        Self(())
    }
}

impl Drop for SingleThreadedBlas {
    fn drop(&mut self) {
        #[cfg(feature = "openblas")]
        openblas::release();
    }
}

/// The number of threads BLAS uses for one product; 1 where that cannot be asked.
#[must_use]
pub fn blas_threads() -> usize {
    #[cfg(feature = "openblas")]
    return openblas::threads();
    #[cfg(not(feature = "openblas"))]
    1
}

/// The kernel that BLAS chose for this processor, such as `Cooperlake`, or the provider's name where it does not tell.
#[must_use]
pub fn blas_core_name() -> String {
    #[cfg(feature = "openblas")]
    return openblas::core_name();
    #[cfg(not(feature = "openblas"))]
    if cfg!(feature = "blas") { "unnamed BLAS".into() } else { "ndarray".into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_thread_while_held_and_the_former_number_after() {
        let before = blas_threads();
        let first = SingleThreadedBlas::acquire();
        let second = SingleThreadedBlas::acquire();
        assert_eq!(blas_threads(), 1);
        drop(first);
        assert_eq!(blas_threads(), 1);
        drop(second);
        assert_eq!(blas_threads(), before);
        assert!(!blas_core_name().is_empty());
    }
}
