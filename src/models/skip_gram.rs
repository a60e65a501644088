//! Word embeddings: one vector for each word as an input, one as an output.
//!
//! Skip-gram with negative sampling (Mikolov et al., 2013) minimises, over the pairs of a centre word i and a word j in
//! its window, −ln σ(x_i·y_j) − Σ over a few negative words n of ln σ(−x_i·y_n), with x from the input table and y from
//! the output table. CBOW has in place of x_i the mean of the input vectors in the window, and i in place of j.
//!
//! With [`subwords`](WordTrainingConfig::subwords), x_i is the mean of rows: of the word's own, and of those of its
//! character n-grams.
//!
//! Here blocks of centre words share their negatives, so that everything is a product of small matrices.

pub(crate) mod block;
pub(crate) mod row_set;
pub(crate) mod rows;
pub(crate) mod subwords;
pub(crate) mod update;
pub(crate) mod windows;

use std::sync::Arc;

use ndarray::{Array1, Array2, ArrayView2, CowArray, Ix2};

use crate::Result;
use crate::config::WordTrainingConfig;
use crate::data::WordVocabulary;
use crate::params::{Initialisation, ParameterId, ParameterLayout, ParameterStore};
use rows::{Frozen, NO_ROW};
use subwords::{Subwords, mean};

/// The two tables of word embeddings, V × C each; with subwords, B more rows in the first of them.
#[derive(Clone, Debug)]
pub struct SkipGram {
    layout: ParameterLayout,
    parameters: ParameterStore,
    input: ParameterId,
    output: ParameterId,
    subwords: Option<Arc<Subwords>>,
}

impl SkipGram {
    /// Tables for the words of `vocabulary`: input rows uniform in ±1/dim, output vectors 0, as in gensim.
    /// Half that width, word2vec.c's, gives lower scores on small texts.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`](crate::Error::InvalidConfig) if the config is not valid.
    pub fn new(vocabulary: &WordVocabulary, config: &WordTrainingConfig) -> Result<Self> {
        config.validate()?;
        if let Some(subwords) = config.subwords
            && vocabulary.len() as u64 + u64::from(subwords.buckets) > u64::from(NO_ROW)
        {
            let expected = format!("must leave 2³² − 1 rows to {} words and the buckets", vocabulary.len());
            return Err(crate::Error::config("subwords.buckets", subwords.buckets, expected));
        }
        let subwords = config.subwords.map(|config| Arc::new(Subwords::new(vocabulary, config)));
        let input_rows = subwords.as_ref().map_or(vocabulary.len(), |subwords| subwords.row_count());
        let mut layout = ParameterLayout::default();
        let bound = 1.0 / config.dim as f32;
        let input = layout.matrix("input", input_rows, config.dim, Initialisation::Uniform(bound));
        let output = layout.matrix("output", vocabulary.len(), config.dim, Initialisation::Zeros);
        let mut parameters = ParameterStore::zeros(&layout);
        layout.initialise(parameters.values_mut(), config.seed);
        Ok(Self { layout, parameters, input, output, subwords })
    }

    /// The input vectors, V × C: the embeddings. Without subwords they are the rows of the input table, which is lent;
    /// with subwords each is the mean of its rows, and all are computed anew by every call.
    #[must_use]
    pub fn vectors(&self) -> CowArray<'_, f32, Ix2> {
        let table = self.parameters.matrix(self.input);
        let Some(subwords) = &self.subwords else { return table.into() };
        let mut vectors = Array2::zeros((self.output_vectors().nrows(), table.ncols()));
        for (word, mut vector) in vectors.rows_mut().into_iter().enumerate() {
            let vector = vector.as_slice_mut().expect("the layout is standard");
            mean(self.table(), subwords.of_word(word as u32), vector);
        }
        vectors.into()
    }

    /// The vector of a word, of the `vocabulary` that the tables were made for or, with subwords, outside of it: the mean
    /// of the rows of its n-grams then. Without subwords, or for a word too short to have n-grams, there is none.
    #[must_use]
    pub fn vector_of(&self, vocabulary: &WordVocabulary, word: &str) -> Option<Array1<f32>> {
        let rows = match (vocabulary.id(word), &self.subwords) {
            (Some(id), None) => vec![id],
            (Some(id), Some(subwords)) => subwords.of_word(id).to_vec(),
            (None, Some(subwords)) => subwords.of_ngrams(word),
            (None, None) => return None,
        };
        let mut vector = vec![0.0; self.table().dim];
        (!rows.is_empty()).then(|| {
            mean(self.table(), &rows, &mut vector);
            vector.into()
        })
    }

    /// The rows of the input table: one for each word, V × C, and with subwords as many more as there are buckets of
    /// n-grams.
    #[must_use]
    pub fn input_rows(&self) -> ArrayView2<'_, f32> {
        self.parameters.matrix(self.input)
    }

    fn table(&self) -> Frozen<'_> {
        Frozen { values: self.parameters.slice(self.input), dim: self.output_vectors().ncols() }
    }

    /// The output vectors, V × C.
    #[must_use]
    pub fn output_vectors(&self) -> ArrayView2<'_, f32> {
        self.parameters.matrix(self.output)
    }

    /// The parameters' names, shapes and places.
    #[must_use]
    pub fn layout(&self) -> &ParameterLayout {
        &self.layout
    }

    /// All parameters.
    #[must_use]
    pub fn parameters(&self) -> &ParameterStore {
        &self.parameters
    }

    /// All parameters.
    pub fn parameters_mut(&mut self) -> &mut ParameterStore {
        &mut self.parameters
    }

    /// What the input vectors are made of, if they are not the rows of the table.
    pub(crate) fn subwords(&self) -> Option<Arc<Subwords>> {
        self.subwords.clone()
    }

    /// Input and output table.
    pub(crate) fn tables_mut(&mut self) -> (&mut [f32], &mut [f32]) {
        self.parameters.pair_mut(self.input, self.output)
    }
}
