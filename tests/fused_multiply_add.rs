//! The kernels that run are compiled to vector instructions that fuse a multiplication with an addition.
//!
//! Two proofs: this executable's own machine code, in the very functions that [`instruction_set`] chooses, holds such
//! instructions on registers of 8 floats and more; and at run time products are added without being rounded first, by
//! the kernels and by BLAS. Fails under `CLLM_KERNELS=portable`, as it must.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

use cllm::kernels::elementwise::axpy;
use cllm::kernels::{InstructionSet, instruction_set};
use cllm::linalg::{Write, gemm};
use cllm::parallel::Parallelism;
use cllm::{Trainer, TrainingConfig, Transformer, TransformerConfig};
use ndarray::arr2;

/// Whether this processor has the instructions; says so if not.
fn possible() -> bool {
    let possible = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
    if !possible {
        println!("skipped: this processor has no fused multiply-add");
    }
    possible
}

/// A little-endian number of `size` bytes at `at`.
fn number(bytes: &[u8], at: usize, size: usize) -> usize {
    bytes[at..at + size].iter().rev().fold(0, |number, &byte| number << 8 | usize::from(byte))
}

/// The named functions of an ELF file for 64 bits, each with its machine code.
fn functions(file: &[u8]) -> Vec<(&str, &[u8])> {
    assert_eq!(&file[..6], b"\x7fELF\x02\x01", "an ELF file, 64 bits, little-endian");
    let (table, entry, count) = (number(file, 0x28, 8), number(file, 0x3a, 2), number(file, 0x3c, 2));
    // Of a section: type, address, offset, size, link.
    let section = |index: usize| {
        let at = table + index * entry;
        [(4, 4), (16, 8), (24, 8), (32, 8), (40, 4)].map(|(field, size)| number(file, at + field, size))
    };
    const SYMBOL_TABLE: usize = 2;
    const FUNCTION: u8 = 2;
    let [_, _, symbols, size, names] =
        (0..count).map(section).find(|section| section[0] == SYMBOL_TABLE).expect("the executable has its symbols");
    let names = section(names)[2];
    let mut functions = Vec::new();
    for at in (symbols..symbols + size).step_by(24) {
        let (name, kind, home) = (number(file, at, 4), file[at + 4] & 15, number(file, at + 6, 2));
        let (address, size) = (number(file, at + 8, 8), number(file, at + 16, 8));
        if kind != FUNCTION || size == 0 || home == 0 || home >= count {
            continue;
        }
        let name = &file[names + name..];
        let name = &name[..name.iter().position(|&byte| byte == 0).expect("names end")];
        let [_, section_address, offset, ..] = section(home);
        let code = &file[offset + address - section_address..][..size];
        functions.push((std::str::from_utf8(name).expect("names are text"), code));
    }
    functions
}

/// How many instructions of `code` are packed single-precision fused multiply-adds (vfmadd, vfmsub, vfnmadd, vfnmsub) on
/// registers of at least 8 floats.
///
/// They are recognised by their prefix, VEX or EVEX (Intel's manual, volume 2, chapter 2): opcode map 0F38, mandatory
/// prefix 66, W = 0, length 256 or 512, and the opcodes 98…9E, A8…AE, B8…BE with an even number. Bytes that look like
/// this by chance in the middle of other instructions are so rare that code without them counts 0.
fn fused_instructions(code: &[u8]) -> usize {
    let opcode = |byte: u8| matches!(byte >> 4, 0x9..=0xb) && matches!(byte & 15, 0x8 | 0xa | 0xc | 0xe);
    let vex = |c: &[u8]| c[0] == 0xc4 && c[1] & 0x1f == 2 && c[2] & 0x87 == 0x05 && opcode(c[3]);
    let evex = |c: &[u8]| {
        let length = c[3] >> 5 & 3;
        c[0] == 0x62 && c[1] & 7 == 2 && c[2] & 0x87 == 0x05 && (length == 1 || length == 2) && opcode(c[4])
    };
    code.windows(5).filter(|code| vex(code) || evex(code)).count()
}

/// A step of a small model, so that every kernel of a training step is in this executable.
fn train() -> f64 {
    let model = TransformerConfig { vocabulary_size: 20, context: 4, dim: 16, ..Default::default() };
    let training = TrainingConfig { sequence_length: 4, batch_size: 2, workers: 1, ..Default::default() };
    let mut trainer = Trainer::new(Transformer::new(model, 1).unwrap(), training).unwrap();
    let ids = |first: u32| ndarray::Array2::from_shape_fn((2, 4), |(i, j)| first + (4 * i + j) as u32);
    trainer.step(&cllm::data::Batch::new(ids(0), ids(1)).unwrap()).unwrap().loss
}

#[test]
fn the_kernels_that_run_hold_fused_vector_instructions() {
    if !possible() {
        return;
    }
    assert!(train().is_finite());
    // Below the kernel's own name, as `kernel!` names the version for each instruction set.
    let version = match instruction_set() {
        InstructionSet::Avx512 => "6avx512",
        InstructionSet::Avx2 => "4avx2",
        InstructionSet::Portable => panic!("the processor has fused multiply-adds, but the portable kernels run"),
    };
    let file = std::fs::read("/proc/self/exe").unwrap();
    let functions = functions(&file);
    for kernel in [
        "adamw",
        "causal_probabilities",
        "gelu_with_derivative",
        "layer_norm",
        "layer_norm_backward",
        "causal_softmax",
        "cross_entropy_row",
    ] {
        let mangled = format!("{}{kernel}{version}", kernel.len());
        let code: Vec<_> = functions.iter().filter(|(name, _)| name.contains(&mangled)).collect();
        assert!(!code.is_empty(), "{kernel}: no function {mangled} in this executable");
        let count: usize = code.iter().map(|(_, code)| fused_instructions(code)).sum();
        println!("{kernel}: {count} fused vector instructions");
        assert!(count > 0, "{kernel}: no fused multiply-add in {mangled}");
    }
}

#[test]
fn the_count_knows_fused_instructions_from_others() {
    // As GNU's assembler encodes them.
    let cases: [(&str, &[u8], usize); 8] = [
        ("vfmadd231ps ymm0, ymm1, ymm2", &[0xc4, 0xe2, 0x75, 0xb8, 0xc2, 0x90], 1),
        ("vfmadd213ps ymm8, ymm9, [rax]", &[0xc4, 0x62, 0x35, 0xa8, 0x00, 0x90], 1),
        ("vfmadd231ps zmm0, zmm1, zmm2", &[0x62, 0xf2, 0x75, 0x48, 0xb8, 0xc2], 1),
        ("vfnmadd132ps zmm0{k1}, zmm1, zmm2", &[0x62, 0xf2, 0x75, 0x49, 0x9c, 0xc2], 1),
        ("vfmadd231ps xmm0, xmm1, xmm2", &[0xc4, 0xe2, 0x71, 0xb8, 0xc2, 0x90], 0),
        ("vfmadd231ss xmm0, xmm1, xmm2", &[0xc4, 0xe2, 0x71, 0xb9, 0xc2, 0x90], 0),
        ("vfmadd231pd ymm0, ymm1, ymm2", &[0xc4, 0xe2, 0xf5, 0xb8, 0xc2, 0x90], 0),
        ("vmulps ymm0, ymm1, ymm2; vaddps", &[0xc5, 0xf4, 0x59, 0xc2, 0xc5, 0xf4, 0x58, 0xc2], 0),
    ];
    for (instruction, code, count) in cases {
        assert_eq!(fused_instructions(code), count, "{instruction}");
    }
}

#[test]
fn products_are_not_rounded_before_they_are_added() {
    if !possible() {
        return;
    }
    // (1 + 2⁻¹²)² = 1 + 2⁻¹¹ + 2⁻²⁴, whose last term a rounding of the product to f32 would lose.
    let (x, rest) = (1.0 + 2f32.powi(-12), 2f32.powi(-24));
    let square = 1.0 + 2f32.powi(-11);
    assert_eq!(std::hint::black_box(x) * x, square);
    let mut y = [-square; 37];
    axpy(&mut y, x, &[x; 37]);
    assert_eq!(y, [rest; 37], "the kernels round products");

    // The same as a sum of two products, in both orders, since the order is BLAS's own.
    let sums = [[[-square, x], [1.0, x]], [[x, -square], [x, 1.0]]].map(|[row, column]| {
        let a = ndarray::Array2::from_shape_fn((48, 2), |(_, k)| row[k]);
        let b = ndarray::Array2::from_shape_fn((2, 48), |(k, _)| column[k]);
        let mut c = arr2(&[[0.0f32; 48]; 48]);
        gemm(1.0, a.view(), b.view(), Write::Replace, c.view_mut(), Parallelism::SEQUENTIAL);
        c[[17, 31]]
    });
    assert!(sums.contains(&rest), "the matrix product rounds products: {sums:?}");
}
