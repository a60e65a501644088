//! Similarities of vectors: row-wise dot products, cosines, nearest neighbours, analogies.

use std::cmp::Ordering;

use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis, s};

use crate::kernels::reduce::all_finite;
use crate::linalg::threads::SingleThreadedBlas;
use crate::linalg::{self, Write, gemm};
use crate::parallel::{Parallelism, SplitRows, for_rows};
use crate::{Result, WordVectors};

/// Queries that are compared with the table at a time.
const QUERIES: usize = 128;

/// Rows of the table whose scores are held at a time: with [`QUERIES`], 2 MiB.
const ROWS: usize = 4096;

/// A row of a table, and how similar it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Neighbour {
    /// The row.
    pub id: u32,
    /// The cosine of its vector and the query.
    pub cosine: f32,
}

impl Neighbour {
    /// By falling cosine, then by id.
    fn order(&self, other: &Self) -> Ordering {
        other.cosine.total_cmp(&self.cosine).then(self.id.cmp(&other.id))
    }
}

/// out\[i\] ← Σ over j of x\[i, j\]·y\[i, j\], by BLAS's dot product.
///
/// # Panics
/// If the shapes differ, or rows are not contiguous.
#[track_caller]
pub fn row_dots(x: ArrayView2<'_, f32>, y: ArrayView2<'_, f32>, out: &mut [f32], parallelism: Parallelism) {
    assert!(
        x.dim() == y.dim() && x.nrows() == out.len(),
        "row_dots: rows of {:?} and {:?} into {}",
        x.dim(),
        y.dim(),
        out.len()
    );
    for_rows(parallelism, x.nrows(), (x, y, out), &|(x, y, out): (
        ArrayView2<'_, f32>,
        ArrayView2<'_, f32>,
        &mut [f32],
    )| {
        for ((x, y), out) in x.rows().into_iter().zip(y.rows()).zip(out) {
            let (x, y) = (x.to_slice().expect("contiguous rows"), y.to_slice().expect("contiguous rows"));
            *out = linalg::dot(x, y);
        }
    });
}

/// Scales every row to length 1; rows of zeros stay.
pub fn normalise_rows(rows: ArrayViewMut2<'_, f32>, parallelism: Parallelism) {
    let count = rows.nrows();
    for_rows(parallelism, count, rows, &|mut rows: ArrayViewMut2<'_, f32>| {
        for mut row in rows.rows_mut() {
            let norm = row.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>().sqrt();
            if norm > 0.0 {
                row.mapv_inplace(|value| (f64::from(value) / norm) as f32);
            }
        }
    });
}

/// A table whose rows have length 1, so that products with it are cosines: exact search for similar rows.
///
/// ```
/// use cllm::WordVectors;
/// use cllm::parallel::Parallelism;
/// use cllm::similarity::UnitVectors;
/// # fn main() -> cllm::Result<()> {
/// let vectors = WordVectors::new(["king", "queen", "cheese"], ndarray::array![[2.0, 1.0], [1.0, 1.0], [-1.0, 3.0]])?;
/// let search = UnitVectors::new(vectors.vectors(), Parallelism::SEQUENTIAL);
/// let nearest = search.similar(0, 2, None, Parallelism::SEQUENTIAL);
/// assert_eq!(nearest.iter().map(|neighbour| vectors.word(neighbour.id)).collect::<Vec<_>>(), ["queen", "cheese"]);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct UnitVectors {
    table: Array2<f32>,
}

impl UnitVectors {
    /// A normalised copy of `table`, rows × C. Rows of zeros stay, and have the cosine 0 with everything.
    ///
    /// # Panics
    /// If the table has 2³² rows or more, or a value that is not finite.
    #[must_use]
    #[track_caller]
    pub fn new(table: ArrayView2<'_, f32>, parallelism: Parallelism) -> Self {
        assert!(u32::try_from(table.nrows()).is_ok(), "{} rows cannot be numbered in 32 bits", table.nrows());
        let mut table = table.as_standard_layout().into_owned();
        let values = table.as_slice().expect("the layout is standard");
        if !all_finite(values) {
            let at = values.iter().position(|value| !value.is_finite()).expect("there is one");
            panic!("row {} of the table holds {}", at / table.ncols(), values[at]);
        }
        normalise_rows(table.view_mut(), parallelism);
        Self { table }
    }

    /// The normalised rows.
    #[must_use]
    pub fn table(&self) -> ArrayView2<'_, f32> {
        self.table.view()
    }

    /// The cosine of two rows.
    ///
    /// # Panics
    /// If there is no such row.
    #[must_use]
    pub fn cosine(&self, first: u32, second: u32) -> f32 {
        linalg::dot(self.row(first), self.row(second))
    }

    fn row(&self, id: u32) -> &[f32] {
        self.table.row(id as usize).to_slice().expect("the layout is standard")
    }

    /// For each of `queries`, n × C, the `count` rows with the largest cosines, the most similar first, equally similar
    /// ones by id. Only the `first` rows of the table are searched, if that is given: those of the most frequent words.
    /// Fewer are found where there are fewer rows.
    ///
    /// All scores are computed, by the matrix product queries · tableᵀ in blocks, and the best of each block kept, in
    /// O(rows) for a query. Beside the result this takes 2 MiB and a copy of the queries.
    ///
    /// # Panics
    /// If the queries have another width, or a value that is not finite.
    #[must_use]
    #[track_caller]
    pub fn nearest(
        &self,
        queries: ArrayView2<'_, f32>,
        count: usize,
        first: Option<usize>,
        parallelism: Parallelism,
    ) -> Vec<Vec<Neighbour>> {
        assert_eq!(queries.ncols(), self.table.ncols(), "nearest: widths of queries and table");
        assert!(queries.iter().all(|value| value.is_finite()), "nearest: a query is not finite");
        // Threads of BLAS's own would be shared out by chance, and with them the order of sums.
        let _blas = SingleThreadedBlas::acquire();
        let mut queries = queries.as_standard_layout().into_owned();
        normalise_rows(queries.view_mut(), parallelism);
        let rows = first.unwrap_or(usize::MAX).min(self.table.nrows());
        let count = count.min(rows);
        let mut best: Vec<Best> = (0..queries.nrows()).map(|_| Best::new(count)).collect();
        if count == 0 {
            return best.into_iter().map(Best::finish).collect();
        }
        let mut scores = Array2::zeros((QUERIES.min(queries.nrows()), ROWS.min(rows)));
        for (queries, best) in queries.axis_chunks_iter(Axis(0), QUERIES).zip(best.chunks_mut(QUERIES)) {
            for (block, table) in self.table.slice(s![..rows, ..]).axis_chunks_iter(Axis(0), ROWS).enumerate() {
                let mut scores = scores.slice_mut(s![..queries.nrows(), ..table.nrows()]);
                gemm(1.0, queries, table.t(), Write::Replace, scores.view_mut(), parallelism);
                let work = |(scores, best): (ArrayView2<'_, f32>, Bests<'_>)| {
                    for (scores, best) in scores.rows().into_iter().zip(best.0) {
                        best.offer(block * ROWS, scores.to_slice().expect("rows of scores are contiguous"));
                    }
                };
                for_rows(parallelism, queries.nrows(), (scores.view(), Bests(best)), &work);
            }
        }
        best.into_iter().map(Best::finish).collect()
    }

    /// The `count` rows most similar to row `id`, without itself (see [`UnitVectors::nearest`]).
    ///
    /// # Panics
    /// If there is no such row.
    #[must_use]
    pub fn similar(&self, id: u32, count: usize, first: Option<usize>, parallelism: Parallelism) -> Vec<Neighbour> {
        let query = self.table.slice(s![id as usize..=id as usize, ..]);
        let found = self.nearest(query, count.saturating_add(1), first, parallelism).remove(0);
        without(found, &[id], count)
    }

    /// For each question \[a, b, c\], "a is to b as c is to …", the `count` rows with the largest cosines with b̂ − â + ĉ,
    /// the vectors having length 1 and a, b and c left out: 3CosAdd (Mikolov, Yih and Zweig, "Linguistic regularities in
    /// continuous space word representations", 2013), as word2vec and gensim compute it.
    ///
    /// # Panics
    /// If there is no such row.
    #[must_use]
    pub fn analogies(
        &self,
        questions: &[[u32; 3]],
        count: usize,
        first: Option<usize>,
        parallelism: Parallelism,
    ) -> Vec<Vec<Neighbour>> {
        let mut queries = Array2::zeros((questions.len(), self.table.ncols()));
        for (mut query, &[a, b, c]) in queries.rows_mut().into_iter().zip(questions) {
            let rows = self.row(a).iter().zip(self.row(b)).zip(self.row(c));
            query.iter_mut().zip(rows).for_each(|(query, ((a, b), c))| *query = b - a + c);
        }
        let found = self.nearest(queries.view(), count.saturating_add(3), first, parallelism);
        found.into_iter().zip(questions).map(|(found, question)| without(found, question, count)).collect()
    }
}

fn without(mut found: Vec<Neighbour>, ids: &[u32], count: usize) -> Vec<Neighbour> {
    found.retain(|neighbour| !ids.contains(&neighbour.id));
    found.truncate(count);
    found
}

/// The best of the rows seen so far.
struct Best {
    count: usize,
    /// At most twice as many as are wanted; only rows above the threshold come in.
    found: Vec<Neighbour>,
    threshold: f32,
}

impl Best {
    fn new(count: usize) -> Self {
        Self { count, found: Vec::new(), threshold: f32::NEG_INFINITY }
    }

    /// Takes the rows from `begin` on, which must be later ones than before.
    fn offer(&mut self, begin: usize, scores: &[f32]) {
        for (row, &cosine) in scores.iter().enumerate() {
            // Equal to the threshold is not enough: ids only rise.
            if cosine > self.threshold {
                self.found.push(Neighbour { id: (begin + row) as u32, cosine });
                if self.found.len() == 2 * self.count {
                    self.cut();
                }
            }
        }
    }

    fn cut(&mut self) {
        if self.found.len() > self.count {
            self.found.select_nth_unstable_by(self.count - 1, Neighbour::order);
            self.found.truncate(self.count);
            self.threshold = self.found[self.count - 1].cosine;
        }
    }

    fn finish(mut self) -> Vec<Neighbour> {
        if self.count > 0 {
            self.cut();
        }
        self.found.sort_unstable_by(Neighbour::order);
        self.found
    }
}

/// One [`Best`] a query.
struct Bests<'a>(&'a mut [Best]);

impl SplitRows for Bests<'_> {
    fn split_rows(self, at: usize) -> (Self, Self) {
        let (before, rest) = self.0.split_at_mut(at);
        (Self(before), Self(rest))
    }
}

impl WordVectors {
    /// The cosine of the vectors of two words; 0 if one of them is zero.
    ///
    /// # Errors
    /// [`UnknownWord`](crate::Error::UnknownWord).
    pub fn similarity(&self, first: &str, second: &str) -> Result<f32> {
        let rows = [self.require(first)? as usize, self.require(second)? as usize];
        Ok(UnitVectors::new(self.vectors().select(Axis(0), &rows).view(), Parallelism::SEQUENTIAL).cosine(0, 1))
    }
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;
    use crate::Error;
    use crate::rng::{Purpose, Stream};

    fn random(rows: usize, columns: usize, step: u64) -> Array2<f32> {
        let mut values = vec![0.0; rows * columns];
        Stream::new(19, Purpose::Caller, step).fill_normal(&mut values, 1.0);
        Array2::from_shape_vec((rows, columns), values).unwrap()
    }

    /// All cosines in f64, sorted.
    fn reference(table: &Array2<f32>, query: ndarray::ArrayView1<'_, f32>) -> Vec<(u32, f64)> {
        let dot = |a: ndarray::ArrayView1<'_, f32>, b: ndarray::ArrayView1<'_, f32>| -> f64 {
            a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
        };
        let cosine = |row: ndarray::ArrayView1<'_, f32>| dot(row, query) / (dot(row, row) * dot(query, query)).sqrt();
        let mut all: Vec<(u32, f64)> =
            table.rows().into_iter().enumerate().map(|(id, row)| (id as u32, cosine(row))).collect();
        all.sort_by(|a, b| b.1.total_cmp(&a.1));
        all
    }

    #[test]
    fn the_nearest_are_those_of_a_full_sort() {
        // More rows and queries than a block holds.
        for (rows, queries, width, count) in [(1, 1, 1, 3), (50, 3, 7, 50), (ROWS + 900, QUERIES + 5, 12, 10)] {
            let (table, questions) = (random(rows, width, 0), random(queries, width, 1));
            let search = UnitVectors::new(table.view(), Parallelism::SEQUENTIAL);
            for workers in [1, 2, 3] {
                for first in [None, Some(rows / 2)] {
                    let found = search.nearest(questions.view(), count, first, Parallelism::workers(workers));
                    assert_eq!(found.len(), queries);
                    let searched = table.slice(s![..first.unwrap_or(rows), ..]).to_owned();
                    for (found, query) in found.iter().zip(questions.rows()) {
                        let expected = reference(&searched, query);
                        assert_eq!(found.len(), count.min(searched.nrows()));
                        for (found, (id, cosine)) in found.iter().zip(expected) {
                            assert!((f64::from(found.cosine) - cosine).abs() < 1e-5, "{found:?} for {cosine}");
                            // Another row may only stand here if it is as near to within rounding.
                            let row = searched.slice(s![found.id as usize..=found.id as usize, ..]).to_owned();
                            let true_cosine = reference(&row, query)[0].1;
                            assert!(found.id == id || (true_cosine - cosine).abs() < 1e-6, "{found:?} for {id}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn rows_that_are_not_finite_are_refused_where_they_come_in() {
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut table = random(6, 4, 0);
            table[[4, 1]] = value;
            for table in [table.view(), table.t()] {
                let row = if table.nrows() == 6 { 4 } else { 1 };
                let panic = std::panic::catch_unwind(|| UnitVectors::new(table, Parallelism::SEQUENTIAL)).unwrap_err();
                assert_eq!(*panic.downcast::<String>().unwrap(), format!("row {row} of the table holds {value}"));
            }
        }
    }

    #[test]
    fn equal_cosines_come_by_id() {
        // Exact in f32: unit vectors along axes.
        let mut table = Array2::zeros((ROWS + 50, 2));
        table.rows_mut().into_iter().enumerate().for_each(|(id, mut row)| row[usize::from(id % 3 == 0)] = 1.0);
        let search = UnitVectors::new(table.view(), Parallelism::SEQUENTIAL);
        for count in [1, 4, 2000, ROWS] {
            let found = search.nearest(array![[0.0, 5.0]].view(), count, None, Parallelism::workers(2)).remove(0);
            let threes = (0..table.nrows() as u32).filter(|id| id % 3 == 0);
            let others = (0..table.nrows() as u32).filter(|id| id % 3 != 0);
            let expected: Vec<u32> = threes.chain(others).take(count).collect();
            assert_eq!(found.iter().map(|neighbour| neighbour.id).collect::<Vec<_>>(), expected, "{count}");
        }
    }

    #[test]
    fn analogies_add_and_leave_the_question_out() {
        let table = array![
            [1.0, 0.0, 0.1],
            [1.0, 1.0, 0.1],
            [0.1, 0.0, 1.0],
            [0.1, 1.0, 1.0],
            [-1.0, 0.0, 0.0],
            [0.0, 0.0, 0.0]
        ];
        let search = UnitVectors::new(table.view(), Parallelism::SEQUENTIAL);
        let found = search.analogies(&[[0, 1, 2], [1, 0, 3]], 2, None, Parallelism::SEQUENTIAL);
        assert_eq!((found[0][0].id, found[1][0].id), (3, 2));
        assert!(found.iter().all(|found| found.len() == 2));
        let unit = search.table();
        let query = &unit.row(1) - &unit.row(0) + unit.row(2);
        let expected = query.dot(&unit.row(3)) / query.dot(&query).sqrt();
        assert!((found[0][0].cosine - expected).abs() < 1e-6);
        let restricted = search.analogies(&[[0, 1, 2]], 2, Some(3), Parallelism::SEQUENTIAL);
        assert!(restricted[0].is_empty(), "only the question's own rows are searched");
    }

    #[test]
    fn a_word_is_not_its_own_neighbour_and_zeros_are_nobodys() {
        let vectors = WordVectors::new(["a", "b", "zero"], array![[3.0, 4.0], [4.0, 3.0], [0.0, 0.0]]).unwrap();
        let search = UnitVectors::new(vectors.vectors(), Parallelism::SEQUENTIAL);
        let found = search.similar(0, 5, None, Parallelism::SEQUENTIAL);
        assert_eq!(found.iter().map(|neighbour| neighbour.id).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(found[1].cosine, 0.0);
        assert!((vectors.similarity("a", "b").unwrap() - 0.96).abs() < 1e-6);
        assert_eq!(vectors.similarity("a", "zero").unwrap(), 0.0);
        assert!(matches!(vectors.similarity("a", "c"), Err(Error::UnknownWord { .. })));
        assert!(search.nearest(Array2::zeros((0, 2)).view(), 3, None, Parallelism::SEQUENTIAL).is_empty());
        assert_eq!(search.nearest(array![[1.0, 0.0]].view(), 0, None, Parallelism::SEQUENTIAL), [[]]);
    }

    #[test]
    fn dots_of_rows_are_the_diagonal_of_the_product() {
        let (x, y) = (random(23, 9, 2), random(23, 9, 3));
        let product = x.dot(&y.t());
        for workers in [1, 2, 4] {
            let mut dots = vec![f32::NAN; 23];
            row_dots(x.view(), y.view(), &mut dots, Parallelism::workers(workers));
            for (row, dot) in dots.iter().enumerate() {
                assert!((dot - product[[row, row]]).abs() < 1e-5);
            }
        }
    }
}
