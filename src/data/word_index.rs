//! Words by number, and their numbers by word: an open-addressing hash table over one run of bytes.

/// A set of distinct words, numbered in the order they came.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct WordIndex {
    /// All words, one after the other, and where each ends.
    bytes: Vec<u8>,
    ends: Vec<usize>,
    /// A power of two of slots, at most half of them taken: the hash and 1 + the number of a word, or 0.
    slots: Vec<(u32, u32)>,
}

/// Eight bytes at a time are mixed in by a multiplication, whose high half depends on all of them.
#[inline]
fn hash(word: &[u8]) -> u32 {
    const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut state = word.len() as u64;
    let (chunks, rest) = word.as_chunks::<8>();
    for chunk in chunks {
        state = (state ^ u64::from_le_bytes(*chunk)).wrapping_mul(MULTIPLIER);
        state ^= state >> 32;
    }
    // All bytes of the rest, without a loop over as many: some of them twice.
    let tail = match (rest.first_chunk::<4>(), rest.last_chunk::<4>(), rest) {
        (Some(first), Some(last), _) => {
            u64::from(u32::from_le_bytes(*first)) << 32 | u64::from(u32::from_le_bytes(*last))
        }
        (.., [first, .., last]) => u64::from(*first) << 16 | u64::from(rest[rest.len() / 2]) << 8 | u64::from(*last),
        (.., &[only]) => u64::from(only),
        _ => 0,
    };
    ((state ^ tail).wrapping_mul(MULTIPLIER) >> 32) as u32
}

impl WordIndex {
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    #[inline]
    pub fn word(&self, id: u32) -> &[u8] {
        let id = id as usize;
        &self.bytes[if id == 0 { 0 } else { self.ends[id - 1] }..self.ends[id]]
    }

    /// Where `word` is, or where it would go.
    #[inline]
    fn slot(&self, word: &[u8], hash: u32) -> usize {
        let mask = self.slots.len() - 1;
        let mut slot = hash as usize & mask;
        loop {
            let (found, number) = self.slots[slot];
            if number == 0 || found == hash && self.word(number - 1) == word {
                return slot;
            }
            slot = (slot + 1) & mask;
        }
    }

    #[inline]
    pub fn get(&self, word: &[u8]) -> Option<u32> {
        if self.slots.is_empty() {
            return None;
        }
        self.slots[self.slot(word, hash(word))].1.checked_sub(1)
    }

    /// The number of `word`, which is appended if it is new; `None` if it is and 2³² − 1 words are there already.
    pub fn insert(&mut self, word: &[u8]) -> Option<u32> {
        if 2 * self.len() >= self.slots.len() {
            self.grow();
        }
        let hash = hash(word);
        let slot = self.slot(word, hash);
        if self.slots[slot].1 == 0 {
            let number = u32::try_from(self.len() + 1).ok()?;
            self.bytes.extend(word);
            self.ends.push(self.bytes.len());
            self.slots[slot] = (hash, number);
        }
        Some(self.slots[slot].1 - 1)
    }

    fn grow(&mut self) {
        let length = (4 * self.len()).next_power_of_two().max(16);
        let former = std::mem::replace(&mut self.slots, vec![(0, 0); length]);
        for (hash, number) in former.into_iter().filter(|&(_, number)| number > 0) {
            let mut slot = hash as usize & (length - 1);
            while self.slots[slot].1 > 0 {
                slot = (slot + 1) & (length - 1);
            }
            self.slots[slot] = (hash, number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_follow_the_order_of_insertion() {
        let words: Vec<String> = (0..5000).map(|i| format!("w{}", "ab".repeat(i % 13)) + &i.to_string()).collect();
        let mut index = WordIndex::default();
        assert_eq!(index.get(b"w"), None);
        for round in 0..2 {
            for (number, word) in words.iter().enumerate() {
                assert_eq!(index.insert(word.as_bytes()), Some(number as u32), "round {round}");
            }
        }
        assert_eq!(index.len(), words.len());
        for (number, word) in words.iter().enumerate() {
            assert_eq!(index.get(word.as_bytes()), Some(number as u32));
            assert_eq!(index.word(number as u32), word.as_bytes());
        }
        assert_eq!(index.get(b"absent"), None);
        assert_eq!(index.get(b""), None);
    }
}
