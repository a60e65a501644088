//! Corrects OpenBLAS's choice of kernels where it does not know the processor.
//!
//! OpenBLAS chooses its kernels by the processor's model number when it is loaded. A release that is older than the
//! processor may fall back to `Prescott`, kernels of 2004 with a tenth of the speed: OpenBLAS 0.3.21, as Debian 12 has
//! it, does so on Intel's Emerald Rapids. When this crate is loaded, before `main` and so before any other thread could
//! be inside OpenBLAS, it looks at the choice; if kernels without AVX2 were chosen on a processor that has AVX2 and FMA,
//! it has OpenBLAS choose again as if `OPENBLAS_CORETYPE` were `Haswell`, or `SkylakeX` where there is AVX-512.
//!
//! Setting `OPENBLAS_CORETYPE` to anything is a choice of one's own, and left alone.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_int, c_void};

use crate::kernels::{InstructionSet, dispatch};

/// OpenBLAS's names of kernels that use neither AVX2 nor FMA.
const WITHOUT_AVX2: [&str; 14] = [
    "Katmai",
    "Coppermine",
    "Northwood",
    "Prescott",
    "Banias",
    "Atom",
    "Core2",
    "Penryn",
    "Dunnington",
    "Nehalem",
    "Sandybridge",
    "Athlon",
    "Opteron",
    "Barcelona",
];

// SAFETY: the declarations are OpenBLAS's, in its cblas.h, and none has a precondition.
unsafe extern "C" {
    safe fn openblas_get_corename() -> *const c_char;
}

// SAFETY: the declarations are those of POSIX.
unsafe extern "C" {
    fn dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void;
    fn getenv(name: *const c_char) -> *const c_char;
    fn setenv(name: *const c_char, value: *const c_char, overwrite: c_int) -> c_int;
    fn unsetenv(name: *const c_char) -> c_int;
}

// SAFETY: the section holds functions that the loader calls, without arguments it needs, once the libraries this one
// depends on, OpenBLAS among them, have run theirs.
#[used]
#[unsafe(link_section = ".init_array")]
static WHEN_LOADED: extern "C" fn() = correct_core;

const CORE_TYPE: &CStr = c"OPENBLAS_CORETYPE";

/// The core type OpenBLAS should have chosen instead of `chosen` on a processor with `instructions`.
fn better_core(chosen: &str, instructions: InstructionSet) -> Option<&'static CStr> {
    match instructions {
        _ if !WITHOUT_AVX2.contains(&chosen) => None,
        InstructionSet::Portable => None,
        InstructionSet::Avx2 => Some(c"Haswell"),
        InstructionSet::Avx512 => Some(c"SkylakeX"),
    }
}

extern "C" fn correct_core() {
    // SAFETY: OpenBLAS returns a pointer to a static, NUL-terminated string.
    let chosen = unsafe { CStr::from_ptr(openblas_get_corename()) }.to_string_lossy();
    let Some(core) = better_core(&chosen, dispatch::detected()) else { return };
    // SAFETY: the process has one thread while it is loaded, so neither the environment nor OpenBLAS's table is in use
    // elsewhere. `gotoblas` and `gotoblas_dynamic_init` exist together, in builds that choose at run time; the latter
    // does nothing unless the former is null, and otherwise sets it to the table that the environment names.
    unsafe {
        if !getenv(CORE_TYPE.as_ptr()).is_null() {
            return;
        }
        let everywhere = std::ptr::null_mut();
        let table = dlsym(everywhere, c"gotoblas".as_ptr()).cast::<*mut c_void>();
        let choose = dlsym(everywhere, c"gotoblas_dynamic_init".as_ptr());
        if table.is_null() || choose.is_null() {
            return;
        }
        let choose = std::mem::transmute::<*mut c_void, extern "C" fn()>(choose);
        if setenv(CORE_TYPE.as_ptr(), core.as_ptr(), 0) != 0 {
            return;
        }
        let former = table.replace(std::ptr::null_mut());
        choose();
        if (*table).is_null() {
            *table = former;
        }
        unsetenv(CORE_TYPE.as_ptr());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linalg::threads::blas_core_name;

    #[test]
    fn only_a_choice_far_below_the_processor_is_corrected() {
        assert_eq!(better_core("Prescott", InstructionSet::Avx512), Some(c"SkylakeX"));
        assert_eq!(better_core("Prescott", InstructionSet::Avx2), Some(c"Haswell"));
        assert_eq!(better_core("Prescott", InstructionSet::Portable), None);
        assert_eq!(better_core("Haswell", InstructionSet::Avx512), None);
        assert_eq!(better_core("Cooperlake", InstructionSet::Avx512), None);
        assert_eq!(better_core("Zen", InstructionSet::Avx2), None);
    }

    #[test]
    fn this_process_uses_kernels_of_its_processor() {
        let name = blas_core_name();
        if std::env::var_os("OPENBLAS_CORETYPE").is_none() {
            assert_eq!(better_core(&name, dispatch::detected()), None, "OpenBLAS runs its {name} kernels");
        }
    }
}
