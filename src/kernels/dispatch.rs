//! Run-time choice of the instruction set, in this one place.
//!
//! A kernel is written once, as plain Rust over slices, and compiled once per instruction set: the [`kernel!`] macro
//! wraps its body in a generic function that is inlined into a caller compiled for AVX-512, for AVX2 with FMA, or for
//! the target's baseline, where LLVM vectorises it. The choice is made once per process, from what the processor has,
//! and can be lowered by the environment variable `CLLM_KERNELS` (`portable`, `avx2` or `avx512`).

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64 as x86;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

/// A set of vector instructions that kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum InstructionSet {
    /// The baseline of the compilation target.
    Portable,
    /// AVX2 and FMA: 8 floats a register.
    Avx2,
    /// AVX-512 F, VL, BW and DQ: 16 floats a register.
    Avx512,
}

/// What a kernel body may ask about the instruction set it is compiled for.
pub(crate) trait Target {
    /// Whether a fused multiply-add is one instruction.
    const FUSED: bool;
    /// Whether a register holds 16 floats and there are 32 of them, as under AVX-512.
    const WIDE: bool = false;

    /// Sixteen floats in registers, for kernels whose accumulators LLVM does not keep there when they are arrays.
    type Vector: Copy;

    /// The vector of sixteen times `x`.
    fn splat(x: f32) -> Self::Vector;

    fn load(x: &[f32; 16]) -> Self::Vector;

    fn store(vector: Self::Vector, into: &mut [f32; 16]);

    /// The floats whose bits the elements hold, each read as by a relaxed load.
    fn load_shared(x: &[AtomicU32; 16]) -> Self::Vector;

    /// Writes each element as by a relaxed store.
    fn store_shared(vector: Self::Vector, into: &[AtomicU32; 16]);

    fn add(a: Self::Vector, b: Self::Vector) -> Self::Vector;

    /// (a₀, b₀, a₁, b₁, …, a₇, b₇) and (a₈, b₈, …, a₁₅, b₁₅).
    #[inline(always)]
    fn interleave(a: Self::Vector, b: Self::Vector) -> [Self::Vector; 2] {
        let (mut floats, mut pairs) = ([[0.0; 16]; 2], [[0.0; 16]; 2]);
        Self::store(a, &mut floats[0]);
        Self::store(b, &mut floats[1]);
        for i in 0..16 {
            pairs[i / 8][2 * (i % 8)] = floats[0][i];
            pairs[i / 8][2 * (i % 8) + 1] = floats[1][i];
        }
        pairs.map(|pair| Self::load(&pair))
    }

    /// a·b + c in each place, as [`multiply_add`](Self::multiply_add).
    fn multiply_add_vectors(a: Self::Vector, b: Self::Vector, c: Self::Vector) -> Self::Vector;

    /// a·b + c, fused where that is one instruction (elsewhere `f32::mul_add` is a slow library call).
    #[inline(always)]
    fn multiply_add(a: f32, b: f32, c: f32) -> f32 {
        if Self::FUSED { a.mul_add(b, c) } else { a * b + c }
    }
}

pub(crate) struct PortableTarget;
pub(crate) struct FusedTarget;
pub(crate) struct WideTarget;

/// [`Target::Vector`] as an array, which LLVM vectorises as it sees fit.
macro_rules! array_vector {
    () => {
        type Vector = [f32; 16];

        #[inline(always)]
        fn splat(x: f32) -> Self::Vector {
            [x; 16]
        }

        #[inline(always)]
        fn load(x: &[f32; 16]) -> Self::Vector {
            *x
        }

        #[inline(always)]
        fn store(vector: Self::Vector, into: &mut [f32; 16]) {
            *into = vector;
        }

        #[inline(always)]
        fn load_shared(x: &[AtomicU32; 16]) -> Self::Vector {
            x.each_ref().map(|element| f32::from_bits(element.load(Ordering::Relaxed)))
        }

        #[inline(always)]
        fn store_shared(vector: Self::Vector, into: &[AtomicU32; 16]) {
            for (element, float) in into.iter().zip(vector) {
                element.store(float.to_bits(), Ordering::Relaxed);
            }
        }

        #[inline(always)]
        fn add(mut a: Self::Vector, b: Self::Vector) -> Self::Vector {
            for i in 0..16 {
                a[i] += b[i];
            }
            a
        }

        #[inline(always)]
        fn multiply_add_vectors(a: Self::Vector, b: Self::Vector, mut c: Self::Vector) -> Self::Vector {
            for i in 0..16 {
                c[i] = Self::multiply_add(a[i], b[i], c[i]);
            }
            c
        }
    };
}

/// [`Target::Vector`] as an array of `$registers` with `$floats` floats each.
#[cfg(target_arch = "x86_64")]
macro_rules! register_vector {
    ($registers:ty, $floats:literal, $splat:ident, $load:ident, $store:ident, $shared:ident, $add:ident, $fused:ident) => {
        type Vector = $registers;

        #[inline(always)]
        #[allow(unsafe_code)]
        fn splat(x: f32) -> Self::Vector {
            // SAFETY: kernels run under this target only on processors that have its instructions.
            [unsafe { x86::$splat(x) }; 16 / $floats]
        }

        #[inline(always)]
        #[allow(unsafe_code)]
        fn load(x: &[f32; 16]) -> Self::Vector {
            // SAFETY: as above; the array has 16 floats, of which this reads as many as a register has, from the start
            // of each part.
            std::array::from_fn(|part| unsafe { x86::$load(x.as_ptr().add(part * $floats)) })
        }

        #[inline(always)]
        #[allow(unsafe_code)]
        fn store(vector: Self::Vector, into: &mut [f32; 16]) {
            for (part, register) in vector.into_iter().enumerate() {
                // SAFETY: as for `load`, and the array is borrowed mutably.
                unsafe { x86::$store(into.as_mut_ptr().add(part * $floats), register) };
            }
        }

        #[inline(always)]
        #[allow(unsafe_code)]
        fn load_shared(x: &[AtomicU32; 16]) -> Self::Vector {
            // SAFETY: as for `load`.
            std::array::from_fn(|part| unsafe { $shared::load(x.as_ptr().add(part * $floats)) })
        }

        #[inline(always)]
        #[allow(unsafe_code)]
        fn store_shared(vector: Self::Vector, into: &[AtomicU32; 16]) {
            for (part, register) in vector.into_iter().enumerate() {
                // SAFETY: as for `load`; atomics may be written through a shared reference.
                unsafe { $shared::store(into.as_ptr().add(part * $floats), register) };
            }
        }

        #[inline(always)]
        #[allow(unsafe_code)]
        fn add(a: Self::Vector, b: Self::Vector) -> Self::Vector {
            // SAFETY: as for `splat`.
            std::array::from_fn(|part| unsafe { x86::$add(a[part], b[part]) })
        }

        #[inline(always)]
        #[allow(unsafe_code)]
        fn multiply_add_vectors(a: Self::Vector, b: Self::Vector, c: Self::Vector) -> Self::Vector {
            // SAFETY: as for `splat`.
            std::array::from_fn(|part| unsafe { x86::$fused(a[part], b[part], c[part]) })
        }
    };
}

/// Moves between memory that other threads write to and a register, written as assembly since a vector access of the
/// language to such memory would be a data race. To the language it is a relaxed load or store of each element: the manuals
/// promise that aligned accesses of up to 16 bytes are made at once, and no known x86 processor cuts a wider or unaligned one
/// within an aligned four-byte element.
#[cfg(target_arch = "x86_64")]
macro_rules! shared_vector {
    ($module:ident, $register:ty, $class:ident, $feature:literal) => {
        mod $module {
            use std::arch::{asm, x86_64 as x86};
            use std::sync::atomic::AtomicU32;

            /// # Safety
            /// The processor has the instruction, and `from` as many elements as the register.
            #[inline]
            #[target_feature(enable = $feature)]
            #[allow(unsafe_code)]
            pub unsafe fn load(from: *const AtomicU32) -> $register {
                let register;
                // SAFETY: reads the elements, which are live atomics and aligned as such, and nothing else.
                unsafe {
                    asm!(
                        "vmovups {}, [{}]",
                        lateout($class) register,
                        in(reg) from,
                        options(nostack, preserves_flags, readonly)
                    );
                }
                register
            }

            /// # Safety
            /// As for `load`.
            #[inline]
            #[target_feature(enable = $feature)]
            #[allow(unsafe_code)]
            pub unsafe fn store(into: *const AtomicU32, register: $register) {
                // SAFETY: writes the elements, which are live atomics and aligned as such, and nothing else.
                unsafe {
                    asm!(
                        "vmovups [{}], {}",
                        in(reg) into,
                        in($class) register,
                        options(nostack, preserves_flags)
                    );
                }
            }
        }
    };
}
#[cfg(target_arch = "x86_64")]
shared_vector!(shared_eights, x86::__m256, ymm_reg, "avx");
#[cfg(target_arch = "x86_64")]
shared_vector!(shared_sixteens, x86::__m512, zmm_reg, "avx512f");

impl Target for PortableTarget {
    const FUSED: bool = cfg!(target_arch = "aarch64");

    array_vector!();
}

impl Target for FusedTarget {
    const FUSED: bool = true;

    #[cfg(not(target_arch = "x86_64"))]
    array_vector!();
    #[cfg(target_arch = "x86_64")]
    register_vector!(
        [x86::__m256; 2],
        8,
        _mm256_set1_ps,
        _mm256_loadu_ps,
        _mm256_storeu_ps,
        shared_eights,
        _mm256_add_ps,
        _mm256_fmadd_ps
    );
}

impl Target for WideTarget {
    const FUSED: bool = true;
    const WIDE: bool = true;

    #[cfg(not(target_arch = "x86_64"))]
    array_vector!();
    #[cfg(target_arch = "x86_64")]
    register_vector!(
        [x86::__m512; 1],
        16,
        _mm512_set1_ps,
        _mm512_loadu_ps,
        _mm512_storeu_ps,
        shared_sixteens,
        _mm512_add_ps,
        _mm512_fmadd_ps
    );

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    #[allow(unsafe_code)]
    fn interleave(a: Self::Vector, b: Self::Vector) -> [Self::Vector; 2] {
        // SAFETY: as for `splat`. An index below 16 takes from `a`, another from `b`.
        unsafe {
            let first = x86::_mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
            let second = x86::_mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
            [first, second].map(|index| [x86::_mm512_permutex2var_ps(a[0], index, b[0])])
        }
    }
}

/// The widest instruction set that this processor has and `CLLM_KERNELS` allows.
#[must_use]
pub fn instruction_set() -> InstructionSet {
    #[cfg(test)]
    if let Some(forced) = FORCED.get() {
        return forced;
    }
    static CHOICE: OnceLock<InstructionSet> = OnceLock::new();
    *CHOICE.get_or_init(|| {
        let allowed = match std::env::var("CLLM_KERNELS").as_deref() {
            Ok("portable") => InstructionSet::Portable,
            Ok("avx2") => InstructionSet::Avx2,
            _ => InstructionSet::Avx512,
        };
        detected().min(allowed)
    })
}

/// The widest instruction set that this processor has.
pub(crate) fn detected() -> InstructionSet {
    #[cfg(target_arch = "x86_64")]
    {
        let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        let avx512 = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq");
        if avx2 && avx512 {
            return InstructionSet::Avx512;
        }
        if avx2 {
            return InstructionSet::Avx2;
        }
    }
    InstructionSet::Portable
}

/// Asks the processor to bring a slice into its second-level cache, ahead of its use.
#[inline]
pub(crate) fn prefetch<X>(slice: &[X]) {
    let start = slice.as_ptr().cast::<u8>();
    for offset in (0..size_of_val(slice)).step_by(64) {
        prefetch_line(start.wrapping_add(offset).cast());
    }
}

/// Defines functions that ask the processor for the cache line of an address, which may be any, under an x86-64 hint.
macro_rules! line_prefetch {
    ($($(#[$attribute:meta])* $name:ident: $hint:ident;)+) => {$(
        $(#[$attribute])*
        #[inline(always)]
        #[allow(unsafe_code)]
        pub(crate) fn $name(at: *const f32) {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a prefetch reads nothing the program sees and faults nowhere; SSE is part of x86-64.
            unsafe {
                x86::_mm_prefetch::<{ x86::$hint }>(at.cast());
            }
            #[cfg(not(target_arch = "x86_64"))]
            let _ = at;
        }
    )+};
}
line_prefetch! {
    /// Asks the processor to bring the cache line of `at` into its first-level cache.
    prefetch_near: _MM_HINT_T0;
    /// Asks the processor to bring the cache line of `at` into its second-level cache.
    prefetch_line: _MM_HINT_T1;
    /// Asks the processor to bring the cache line of `at` into its first-level cache, to be written.
    prefetch_for_write: _MM_HINT_ET0;
}

/// Defines functions whose body is compiled for every instruction set and chosen at run time.
///
/// Inside the body, `T` is the [`Target`]; helpers called from it must be `#[inline(always)]` and generic over `T`. The
/// body is inlined into functions that take the same arguments, so that LLVM knows the mutable slices not to overlap.
/// Arithmetic with [`Target::multiply_add`] belongs into loops, not into closures for the iterators of the standard
/// library: those are not always inlined, and are then compiled for the baseline, where `f32::mul_add` is a call.
/// A panic in the body is reported at the kernel's caller.
macro_rules! kernel {
    ($(
        $(#[$attribute:meta])*
        $visibility:vis fn $name:ident<T>($($argument:ident: $kind:ty),* $(,)?) $(-> $output:ty)? $body:block
    )+) => {$(
        $(#[$attribute])*
        #[track_caller]
        #[allow(unsafe_code, clippy::too_many_arguments)]
        $visibility fn $name($($argument: $kind),*) $(-> $output)? {
            #[inline(always)]
            #[track_caller]
            #[allow(clippy::extra_unused_type_parameters)]
            fn body<T: $crate::kernels::dispatch::Target>($($argument: $kind),*) $(-> $output)? $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")]
            #[track_caller]
            fn avx512($($argument: $kind),*) $(-> $output)? {
                body::<$crate::kernels::dispatch::WideTarget>($($argument),*)
            }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            #[track_caller]
            fn avx2($($argument: $kind),*) $(-> $output)? {
                body::<$crate::kernels::dispatch::FusedTarget>($($argument),*)
            }

            #[cfg(target_arch = "x86_64")]
            match $crate::kernels::dispatch::instruction_set() {
                // SAFETY: `instruction_set` never exceeds `detected`, which asked the processor for these features.
                $crate::kernels::dispatch::InstructionSet::Avx512 => return unsafe { avx512($($argument),*) },
                // SAFETY: as above.
                $crate::kernels::dispatch::InstructionSet::Avx2 => return unsafe { avx2($($argument),*) },
                $crate::kernels::dispatch::InstructionSet::Portable => {}
            }
            body::<$crate::kernels::dispatch::PortableTarget>($($argument),*)
        }
    )+};
}
pub(crate) use kernel;

#[cfg(test)]
std::thread_local! {
    static FORCED: std::cell::Cell<Option<InstructionSet>> = const { std::cell::Cell::new(None) };
}

/// Runs `check` on this thread once under every instruction set the processor has.
#[cfg(test)]
pub(crate) fn under_every_instruction_set(mut check: impl FnMut(InstructionSet)) {
    for set in [InstructionSet::Portable, InstructionSet::Avx2, InstructionSet::Avx512] {
        if set <= detected() {
            FORCED.set(Some(set));
            check(set);
        }
    }
    FORCED.set(None);
}
