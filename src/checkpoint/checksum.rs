//! XXH64 (Yann Collet), the checksum of tensors, manifests and token data.
//!
//! It finds accidents, not forgeries: any change within one 32-byte stripe gives another sum, any other change does but
//! for 1 in 2⁶⁴.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

const PRIMES: [u64; 5] =
    [0x9E37_79B1_85EB_CA87, 0xC2B2_AE3D_27D4_EB4F, 0x1656_67B1_9E37_79F9, 0x85EB_CA77_C2B2_AE63, 0x27D4_EB2F_1656_67C5];
const STRIPE: usize = 32;

/// A 64-bit sum, written as 16 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Checksum(pub u64);

impl Checksum {
    /// The sum of `bytes`.
    ///
    /// ```
    /// assert_eq!(cllm::checkpoint::Checksum::of(b"abc").to_string(), "44bc2cf5ad770999");
    /// ```
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        let mut hasher = Hasher::default();
        hasher.update(bytes);
        hasher.finish()
    }
}

impl fmt::Display for Checksum {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:016x}", self.0)
    }
}

impl fmt::Debug for Checksum {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

impl Serialize for Checksum {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Checksum {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        match u64::from_str_radix(&text, 16) {
            Ok(sum) if text.len() == 16 && !text.starts_with('+') => Ok(Self(sum)),
            _ => Err(serde::de::Error::custom(format_args!("{text:?} is not a checksum of 16 hexadecimal digits"))),
        }
    }
}

/// Sums bytes that arrive in pieces.
#[derive(Clone, Debug)]
pub struct Hasher {
    lanes: [u64; 4],
    length: u64,
    /// The begun stripe: the first `length % STRIPE` bytes count.
    pending: [u8; STRIPE],
}

impl Default for Hasher {
    fn default() -> Self {
        let lanes = [PRIMES[0].wrapping_add(PRIMES[1]), PRIMES[1], 0, 0u64.wrapping_sub(PRIMES[0])];
        Self { lanes, length: 0, pending: [0; STRIPE] }
    }
}

impl Hasher {
    /// Adds `bytes`.
    pub fn update(&mut self, mut bytes: &[u8]) {
        let begun = (self.length % STRIPE as u64) as usize;
        self.length = self.length.wrapping_add(bytes.len() as u64);
        if begun > 0 {
            let missing = bytes.len().min(STRIPE - begun);
            self.pending[begun..begun + missing].copy_from_slice(&bytes[..missing]);
            bytes = &bytes[missing..];
            if begun + missing < STRIPE {
                return;
            }
            let stripe = self.pending;
            self.stripe(&stripe);
        }
        let (stripes, rest) = bytes.as_chunks::<STRIPE>();
        stripes.iter().for_each(|stripe| self.stripe(stripe));
        self.pending[..rest.len()].copy_from_slice(rest);
    }

    #[inline(always)]
    fn stripe(&mut self, stripe: &[u8; STRIPE]) {
        for (lane, word) in self.lanes.iter_mut().zip(stripe.as_chunks::<8>().0) {
            *lane = round(*lane, u64::from_le_bytes(*word));
        }
    }

    /// The sum of all bytes so far.
    #[must_use]
    pub fn finish(&self) -> Checksum {
        let mut sum = if self.length >= STRIPE as u64 {
            let [a, b, c, d] = self.lanes;
            let joined = a
                .rotate_left(1)
                .wrapping_add(b.rotate_left(7))
                .wrapping_add(c.rotate_left(12))
                .wrapping_add(d.rotate_left(18));
            self.lanes
                .iter()
                .fold(joined, |sum, &lane| (sum ^ round(0, lane)).wrapping_mul(PRIMES[0]).wrapping_add(PRIMES[3]))
        } else {
            PRIMES[4]
        };
        sum = sum.wrapping_add(self.length);
        let (words, rest) = self.pending[..(self.length % STRIPE as u64) as usize].as_chunks::<8>();
        for &word in words {
            sum ^= round(0, u64::from_le_bytes(word));
            sum = sum.rotate_left(27).wrapping_mul(PRIMES[0]).wrapping_add(PRIMES[3]);
        }
        let (halves, rest) = rest.as_chunks::<4>();
        for &half in halves {
            sum ^= u64::from(u32::from_le_bytes(half)).wrapping_mul(PRIMES[0]);
            sum = sum.rotate_left(23).wrapping_mul(PRIMES[1]).wrapping_add(PRIMES[2]);
        }
        for &byte in rest {
            sum ^= u64::from(byte).wrapping_mul(PRIMES[4]);
            sum = sum.rotate_left(11).wrapping_mul(PRIMES[0]);
        }
        sum = (sum ^ (sum >> 33)).wrapping_mul(PRIMES[1]);
        sum = (sum ^ (sum >> 29)).wrapping_mul(PRIMES[2]);
        Checksum(sum ^ (sum >> 32))
    }
}

#[inline(always)]
fn round(lane: u64, word: u64) -> u64 {
    lane.wrapping_add(word.wrapping_mul(PRIMES[1])).rotate_left(31).wrapping_mul(PRIMES[0])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes 0, 7, 14, … modulo 251.
    fn bytes(length: usize) -> Vec<u8> {
        (0..length).map(|index| (index * 7 % 251) as u8).collect()
    }

    #[test]
    fn sums_are_those_of_the_reference_implementation() {
        // From xxhash 3 for Python: xxhash.xxh64(bytes(i * 7 % 251 for i in range(n))).
        let expected = [
            (0, 0xef46_db37_51d8_e999),
            (1, 0xe934_a84a_db05_2768),
            (3, 0x9ff7_0a63_5a62_09ab),
            (4, 0xae5a_cdc0_0a55_ac41),
            (8, 0x8711_6b33_65b9_24eb),
            (15, 0x02c5_3ab1_e360_882f),
            (31, 0x0f18_7c62_b1e7_22b7),
            (32, 0x91b0_cb09_31a8_c629),
            (33, 0x931b_043c_f8d6_5b94),
            (63, 0x5751_86c1_2dce_bcfd),
            (64, 0xab64_977b_5af9_d022),
            (100, 0xb7fe_1d84_b2f2_3a05),
            (1000, 0x023f_d2ed_1ff9_57d5),
        ];
        for (length, expected) in expected {
            assert_eq!(Checksum::of(&bytes(length)), Checksum(expected), "{length} bytes");
        }
    }

    #[test]
    fn pieces_give_the_sum_of_the_whole() {
        let bytes = bytes(200);
        for first in 0..100 {
            for second in first..130 {
                let mut hasher = Hasher::default();
                for piece in [&bytes[..first], &bytes[first..second], &bytes[second..]] {
                    hasher.update(piece);
                }
                assert_eq!(hasher.finish(), Checksum::of(&bytes), "{first}, {second}");
            }
        }
    }

    #[test]
    fn every_flipped_bit_changes_the_sum() {
        let mut bytes = bytes(77);
        let sum = Checksum::of(&bytes);
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(Checksum::of(&bytes), sum, "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn the_written_form_is_sixteen_digits_and_nothing_else() {
        assert_eq!(serde_json::to_string(&Checksum(0xabc)).unwrap(), "\"0000000000000abc\"");
        assert_eq!(serde_json::from_str::<Checksum>("\"0000000000000abc\"").unwrap(), Checksum(0xabc));
        for wrong in ["\"abc\"", "\"+000000000000abc\"", "\"000000000000xabc\"", "\"00000000000000abc\"", "7"] {
            assert!(serde_json::from_str::<Checksum>(wrong).is_err(), "{wrong}");
        }
    }
}
