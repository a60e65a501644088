//! Pseudo-random permutations without a table.

use crate::rng::{Purpose, Stream};

/// Rounds of the network; eight leave no visible order even on the smallest domains.
const ROUNDS: u16 = 8;

/// Where `index` goes in the permutation of `0..length` that belongs to (seed, epoch).
///
/// The index is a cell of a nearly square left × right grid. Each round of an unbalanced Feistel network shifts one
/// coordinate by a random function of the other, modulo its own side, and so permutes the grid; a cell that lands
/// beyond `length` walks on until it is inside, which permutes the rest (Black and Rogaway, "Ciphers with arbitrary
/// finite domains", CT-RSA 2002). The grid has fewer than √length + 1 cells too many, so walks are rare and short.
///
/// # Panics
/// If `index` is not below `length`.
#[track_caller]
pub(crate) fn permuted(index: u64, length: u64, seed: u64, epoch: u64) -> u64 {
    assert!(index < length, "index {index} in a permutation of {length}");
    let left_side = (length - 1).isqrt() + 1;
    let right_side = length.div_ceil(left_side);
    let (mut left, mut right) = (index % left_side, index / left_side);
    loop {
        for round in (0..ROUNDS).step_by(2) {
            left = (left + shift(seed, epoch, round, right, left_side)) % left_side;
            right = (right + shift(seed, epoch, round + 1, left, right_side)) % right_side;
        }
        let image = right * left_side + left;
        if image < length {
            return image;
        }
    }
}

/// The round function: uniform below `side`. A side is at most 2³², so a coordinate fits a block number.
fn shift(seed: u64, epoch: u64, round: u16, coordinate: u64, side: u64) -> u64 {
    let words = Stream::with_lane(seed, Purpose::EpochOrder, round, epoch).block(coordinate as u32);
    let word = u64::from(words[0]) | u64::from(words[1]) << 32;
    ((u128::from(word) * u128::from(side)) >> 64) as u64
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_length_is_permuted() {
        for length in (1..200).chain([1000, 4096, 4097]) {
            let mut images: Vec<_> = (0..length).map(|index| permuted(index, length, 5, 2)).collect();
            images.sort_unstable();
            assert!(images.into_iter().eq(0..length), "length {length}");
        }
    }

    #[test]
    fn small_permutations_all_happen_about_equally_often() {
        let mut counts = std::collections::BTreeMap::<Vec<u64>, u32>::new();
        for epoch in 0..24_000 {
            *counts.entry((0..4).map(|index| permuted(index, 4, 1, epoch)).collect()).or_default() += 1;
        }
        assert_eq!(counts.len(), 24);
        assert!(counts.values().all(|&count| (800..1200).contains(&count)), "{counts:?}");
    }

    #[test]
    fn large_permutations_spread_evenly() {
        // Where one index goes over the epochs, and how neighbours are ordered within one.
        let length = 1_000_003;
        let mut eighths = [0u32; 8];
        for epoch in 0..8_000 {
            eighths[(permuted(77, length, 3, epoch) * 8 / length) as usize] += 1;
        }
        assert!(eighths.iter().all(|&count| (880..1120).contains(&count)), "{eighths:?}");
        let images: Vec<_> = (0..4_000).map(|index| permuted(index, length, 3, 0)).collect();
        let ascents = images.windows(2).filter(|pair| pair[0] < pair[1]).count();
        assert!((1880..2120).contains(&ascents), "{ascents} of 3999 neighbours ascend");
        let seeds: BTreeSet<_> = (0..50).map(|seed| permuted(77, length, seed, 0)).collect();
        assert!(seeds.len() >= 49, "{} of 50 seeds differ", seeds.len());
    }

    #[test]
    fn the_longest_domain_neither_overflows_nor_repeats() {
        let images: BTreeSet<_> = (0..100).map(|index| permuted(u64::MAX - 1 - index, u64::MAX, 1, 1)).collect();
        assert_eq!(images.len(), 100);
    }
}
