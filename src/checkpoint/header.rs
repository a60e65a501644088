//! The header of a safetensors file: which tensor lies where.
//!
//! The file begins with the header's length (u64, little endian), then the header, a JSON object
//! `{"name": {"dtype": "F32", "shape": [rows, columns], "data_offsets": [begin, end]}, …}` padded with spaces, then the
//! tensors without gaps (<https://huggingface.co/docs/safetensors>, "Format").

use std::collections::BTreeMap;
use std::fmt::Write;
use std::ops::Range;

use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::params::{ParameterLayout, ParameterSpec};

const METADATA: &str = "__metadata__";

/// A header that other software wrote may have this many bytes beside four times what the tensors need.
const SPARE_BYTES: u64 = 1 << 20;

/// The header of a file that holds the tensors of `layout` in its order, padded to a multiple of 8 bytes.
pub(super) fn format(layout: &ParameterLayout) -> String {
    let mut header = String::from("{");
    let mut begin = 0;
    for spec in layout.specs() {
        if begin > 0 {
            header.push(',');
        }
        let name = serde_json::to_string(&spec.name).expect("a string is JSON");
        let (shape, end) = (&spec.shape, begin + size_of::<f32>() * spec.id.range().len());
        let shape = shape.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
        write!(header, r#"{name}:{{"dtype":"F32","shape":[{shape}],"data_offsets":[{begin},{end}]}}"#)
            .expect("a string takes everything");
        begin = end;
    }
    header.push('}');
    header.extend(std::iter::repeat_n(' ', header.len().next_multiple_of(8) - header.len()));
    header
}

/// The longest header that is read for `layout`.
pub(super) fn longest(layout: &ParameterLayout) -> u64 {
    SPARE_BYTES + 4 * format(layout).len() as u64
}

/// What is wrong with a header.
#[derive(Debug, PartialEq)]
pub(super) enum Problem {
    /// It is not a header, or contradicts itself or the file.
    Invalid(String),
    /// A tensor of the layout is not in it.
    Missing(String),
    /// A tensor has another shape.
    Shape { name: String, expected: Vec<usize>, found: Vec<usize> },
}

/// Where each tensor of `layout`, in its order, lies behind the header of a file with `bytes` bytes of tensors.
///
/// The header must list exactly the layout's tensors, as f32, in any order, without gap or overlap.
pub(super) fn parse(json: &[u8], layout: &ParameterLayout, bytes: u64) -> Result<Vec<Range<u64>>, Problem> {
    let Header(mut entries) = serde_json::from_slice(json).map_err(|error| Problem::Invalid(error.to_string()))?;
    let mut ranges = Vec::with_capacity(layout.specs().len());
    for spec in layout.specs() {
        let entry = entries.remove(&spec.name).ok_or_else(|| Problem::Missing(spec.name.clone()))?;
        ranges.push(entry.check(spec)?);
    }
    if let Some(name) = entries.keys().next() {
        return Err(Problem::Invalid(format!("tensor {name} is not a parameter of this model")));
    }
    let mut order: Vec<usize> = (0..ranges.len()).collect();
    order.sort_by_key(|&index| ranges[index].start);
    let mut end = 0;
    for index in order {
        if ranges[index].start != end {
            let (name, begin) = (&layout.specs()[index].name, ranges[index].start);
            return Err(Problem::Invalid(format!("tensor {name} begins at {begin}, but the last one ends at {end}")));
        }
        end = ranges[index].end;
    }
    if end != bytes {
        return Err(Problem::Invalid(format!("{end} bytes of tensors are announced, but {bytes} follow")));
    }
    Ok(ranges)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Entry {
    pub dtype: String,
    pub shape: Vec<u64>,
    pub data_offsets: (u64, u64),
}

impl Entry {
    fn check(self, spec: &ParameterSpec) -> Result<Range<u64>, Problem> {
        let name = &spec.name;
        if self.dtype != "F32" {
            return Err(Problem::Invalid(format!("tensor {name} is {:?}, not F32", self.dtype)));
        }
        if !self.shape.iter().copied().eq(spec.shape.iter().map(|&length| length as u64)) {
            let found = self.shape.iter().map(|&length| usize::try_from(length).unwrap_or(usize::MAX)).collect();
            return Err(Problem::Shape { name: name.clone(), expected: spec.shape.clone(), found });
        }
        let (begin, end) = self.data_offsets;
        let length = (size_of::<f32>() * spec.id.range().len()) as u64;
        if begin.checked_add(length) != Some(end) {
            return Err(Problem::Invalid(format!("tensor {name} of {length} bytes lies at {begin}..{end}")));
        }
        Ok(begin..end)
    }
}

/// The entries by name; a name that stands twice is an error, where a map would keep the last.
pub(crate) struct Header(pub BTreeMap<String, Entry>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;

        impl<'de> Visitor<'de> for Entries {
            type Value = Header;

            fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut entries = BTreeMap::new();
                let mut metadata = None;
                while let Some(name) = map.next_key::<String>()? {
                    let twice = if name == METADATA {
                        metadata.replace(map.next_value::<BTreeMap<String, String>>()?).is_some()
                    } else {
                        entries.insert(name.clone(), map.next_value()?).is_some()
                    };
                    if twice {
                        return Err(A::Error::custom(format_args!("tensor {name} stands twice")));
                    }
                }
                Ok(Header(entries))
            }
        }

        deserializer.deserialize_map(Entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::params::Initialisation;

    fn layout() -> ParameterLayout {
        let mut layout = ParameterLayout::default();
        layout.matrix("a", 2, 3, Initialisation::Zeros);
        layout.vector("b\"", 5, Initialisation::Zeros);
        layout
    }

    fn problem(json: &str, bytes: u64) -> String {
        match parse(json.as_bytes(), &layout(), bytes).unwrap_err() {
            Problem::Invalid(problem) => problem,
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn a_header_is_read_as_it_was_written() {
        let header = format(&layout());
        assert!(header.len().is_multiple_of(8));
        assert_eq!(parse(header.as_bytes(), &layout(), 44).unwrap(), [0..24, 24..44]);
        assert!(problem(&header, 43).contains("44 bytes of tensors are announced, but 43 follow"));
    }

    #[test]
    fn tensors_may_come_in_any_order_and_with_metadata() {
        let json = r#"{"b\"":{"data_offsets":[0,20],"dtype":"F32","shape":[5]},"__metadata__":{"format":"pt"},
            "a":{"dtype":"F32","shape":[2,3],"data_offsets":[20,44]}}"#;
        assert_eq!(parse(json.as_bytes(), &layout(), 44).unwrap(), [20..44, 0..20]);
    }

    #[test]
    fn every_lie_is_named() {
        let good = format(&layout());
        for (old, new, expected) in [
            ("[0,24]", "[4,28]", "tensor a begins at 4"),
            ("[24,44]", "[20,40]", "begins at 20, but the last one ends at 24"),
            ("[24,44]", "[24,48]", "of 20 bytes lies at 24..48"),
            ("[24,44]", "[18446744073709551612,16]", "lies at 18446744073709551612..16"),
            ("[24,44]", "[44,24]", "lies at 44..24"),
            ("[24,44]", "[-1,19]", "invalid value: integer `-1`"),
            ("[24,44]", "[24,18446744073709551616]", "invalid type: floating point"),
            ("[5]", "[18446744073709551615]", "Shape"),
            ("[5]", "[]", "Shape"),
            ("[2,3]", "[3,2]", "Shape"),
            ("\"F32\"", "\"BF16\"", "tensor a is \"BF16\", not F32"),
            ("\"a\":", "\"c\":", "Missing(\"a\")"),
            ("{\"a\"", "{\"c\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]},\"a\"", "tensor c is not a"),
            ("}}", "},\"a\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]}}", "tensor a stands twice"),
            ("\"dtype\"", "\"type\"", "unknown field `type`"),
            ("}}", "}", "EOF"),
            ("}}", "}}}", "trailing characters"),
        ] {
            let json = good.replacen(old, new, 1);
            assert_ne!(json, good, "{old}");
            let found = problem(&json, 44);
            assert!(found.contains(expected), "{old} → {new}: {found}");
        }
        assert!(problem("[]", 44).contains("an object of tensors"));
        assert!(problem("{\"__metadata__\":{},\"__metadata__\":{}}", 44).contains("stands twice"));
        assert!(problem(&"[".repeat(10_000), 44).contains("invalid type"));
    }
}
