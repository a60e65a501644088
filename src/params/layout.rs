//! The one table of a model's parameters.
//!
//! A [`ParameterLayout`] lists every parameter once, in order: name, shape, initialisation, weight decay, place in the
//! flat buffer. Allocation, initialisation, decay masks, gradient clipping, the optimizer's passes and the names in a
//! saved file all follow it.

use std::ops::Range;

use crate::rng::{Purpose, Stream};

/// Parameters begin at multiples of this many floats: one cache line.
const UNIT: usize = 16;

/// How a parameter is filled before training.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Initialisation {
    /// All 0.
    Zeros,
    /// All 1.
    Ones,
    /// Normal with mean 0 and this standard deviation.
    Normal(f32),
    /// Uniform between minus and plus this bound.
    Uniform(f32),
}

/// Names one parameter of a layout: its place and its shape as a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParameterId {
    pub(super) index: usize,
    pub(super) start: usize,
    pub(super) rows: usize,
    pub(super) columns: usize,
}

impl ParameterId {
    /// Where the parameter lies in a flat buffer.
    #[must_use]
    pub fn range(self) -> Range<usize> {
        self.start..self.start + self.rows * self.columns
    }

    /// Its position in the layout's order.
    #[must_use]
    pub fn index(self) -> usize {
        self.index
    }
}

/// One row of the table.
#[derive(Clone, Debug, PartialEq)]
pub struct ParameterSpec {
    /// The name in saved files.
    pub name: String,
    /// One or two dimensions.
    pub shape: Vec<usize>,
    /// How it is filled before training.
    pub initialisation: Initialisation,
    /// Whether weight decay applies: to matrices, not to biases and norms.
    pub decay: bool,
    /// Its id.
    pub id: ParameterId,
}

/// The table: parameters in order, and the length of a buffer that holds them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ParameterLayout {
    specs: Vec<ParameterSpec>,
    length: usize,
}

impl ParameterLayout {
    /// Appends a matrix, which weight decay applies to.
    pub fn matrix(
        &mut self,
        name: impl Into<String>,
        rows: usize,
        columns: usize,
        initialisation: Initialisation,
    ) -> ParameterId {
        self.push(name.into(), vec![rows, columns], initialisation, true)
    }

    /// Appends a vector (a bias or a gain), which weight decay leaves alone.
    pub fn vector(&mut self, name: impl Into<String>, length: usize, initialisation: Initialisation) -> ParameterId {
        self.push(name.into(), vec![length], initialisation, false)
    }

    fn push(&mut self, name: String, shape: Vec<usize>, initialisation: Initialisation, decay: bool) -> ParameterId {
        let columns = *shape.last().expect("a shape has a dimension");
        let rows = shape.iter().product::<usize>() / columns;
        let id = ParameterId { index: self.specs.len(), start: self.length, rows, columns };
        self.length = (self.length + rows * columns).next_multiple_of(UNIT);
        self.specs.push(ParameterSpec { name, shape, initialisation, decay, id });
        id
    }

    /// The rows of the table, in order.
    #[must_use]
    pub fn specs(&self) -> &[ParameterSpec] {
        &self.specs
    }

    /// The row with this name.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<&ParameterSpec> {
        self.specs.iter().find(|spec| spec.name == name)
    }

    /// The parts of the floats `range` of a buffer that belong to one parameter each, relative to its start.
    pub(crate) fn parts_of(&self, range: Range<usize>) -> impl Iterator<Item = (Range<usize>, &ParameterSpec)> {
        let first = self.specs.partition_point(|spec| spec.id.range().end <= range.start);
        self.specs[first..].iter().map_while(move |spec| {
            let place = spec.id.range();
            let part = place.start.max(range.start)..place.end.min(range.end);
            (part.start < part.end).then(|| (part.start - range.start..part.end - range.start, spec))
        })
    }

    /// Floats in a buffer of this layout, the zeros between parameters included.
    #[must_use]
    pub fn buffer_length(&self) -> usize {
        self.length
    }

    /// Number of trainable values.
    #[must_use]
    pub fn parameter_count(&self) -> usize {
        self.specs.iter().map(|spec| spec.id.range().len()).sum()
    }

    /// Fills `buffer` with initial values drawn from `seed`; each parameter has a stream of its own.
    pub fn initialise(&self, buffer: &mut [f32], seed: u64) {
        for spec in &self.specs {
            let values = &mut buffer[spec.id.range()];
            match spec.initialisation {
                Initialisation::Zeros => values.fill(0.0),
                Initialisation::Ones => values.fill(1.0),
                Initialisation::Normal(deviation) => {
                    Stream::new(seed, Purpose::Initialisation, spec.id.index as u64).fill_normal(values, deviation);
                }
                Initialisation::Uniform(bound) => {
                    let stream = Stream::new(seed, Purpose::Initialisation, spec.id.index as u64);
                    for (index, value) in values.iter_mut().enumerate() {
                        *value = bound * (2.0 * stream.uniform(index as u64) - 1.0);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_every_parameter_once() {
        let mut layout = ParameterLayout::default();
        layout.matrix("a", 5, 7, Initialisation::Zeros);
        layout.vector("b", 3, Initialisation::Zeros);
        layout.matrix("c", 4, 16, Initialisation::Zeros);
        for chunk in [1, 7, 16, 33, 50, 1000] {
            let mut seen = vec![None; layout.buffer_length()];
            let mut start = 0;
            while start < layout.buffer_length() {
                let length = chunk.min(layout.buffer_length() - start);
                for (part, spec) in layout.parts_of(start..start + length) {
                    for index in part {
                        assert_eq!(seen[start + index].replace(spec.id), None);
                    }
                }
                start += length;
            }
            for spec in layout.specs() {
                assert!(spec.id.range().all(|index| seen[index] == Some(spec.id)), "{} by {chunk}", spec.name);
            }
        }
    }

    #[test]
    fn parameters_follow_each_other_on_cache_lines() {
        let mut layout = ParameterLayout::default();
        let weight = layout.matrix("weight", 3, 7, Initialisation::Normal(0.1));
        let bias = layout.vector("bias", 7, Initialisation::Ones);
        assert_eq!(weight.range(), 0..21);
        assert_eq!(bias.range(), 32..39);
        assert_eq!(layout.buffer_length(), 48);
        assert_eq!(layout.parameter_count(), 28);
        assert_eq!(layout.find("bias").unwrap().shape, [7]);
        assert!(layout.find("weight").unwrap().decay && !layout.find("bias").unwrap().decay);
    }

    #[test]
    fn initialisation_is_a_function_of_the_seed() {
        let mut layout = ParameterLayout::default();
        layout.matrix("weight", 3, 7, Initialisation::Normal(0.1));
        layout.vector("gain", 2, Initialisation::Ones);
        let fill = |seed| {
            let mut buffer = vec![0.0; layout.buffer_length()];
            layout.initialise(&mut buffer, seed);
            buffer
        };
        assert_eq!(fill(1), fill(1));
        assert_ne!(fill(1), fill(2));
        assert_eq!(fill(1)[32..34], [1.0, 1.0]);
        assert_eq!(fill(1)[21..32], [0.0; 11]);
    }
}
