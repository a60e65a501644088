//! Rows of a table gathered into a cache that lives as long as training does, and their gradient's way back.
//!
//! With G the one-hot matrix of the batch's ids (a row a place, a column a row of the table E), the cache is X = G·E and
//! the gradient of the table is dE = Gᵀ·dX: at each distinct id, the sum of the rows of dX at its places. Neither matrix
//! is ever formed. A table of which a batch touches a small part gets its gradient as [`RowSparseGradient`], or row by
//! row through [`DistinctIds`].

mod distinct;

use std::ops::Range;

use ndarray::{Array2, ArrayView2, ArrayViewMut2, s};

pub use distinct::DistinctIds;

use crate::kernels::dispatch::prefetch;
use crate::kernels::elementwise::add_assign;
use crate::layers::{slice, slice_mut};
use crate::parallel::{Parallelism, for_rows};

/// How many rows ahead a gather asks for memory.
const AHEAD: usize = 4;

/// Rows gathered from a table, with their ids beside them.
///
/// The memory is allocated once, for a fixed number of rows; gathering and scattering allocate nothing. A batch may have
/// any number of ids up to that, none included.
///
/// ```
/// use cllm::gather::GatherCache;
/// use cllm::parallel::Parallelism;
/// use ndarray::{Array2, array};
/// let table = array![[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]];
/// let mut cache = GatherCache::new(4, table.dim());
/// cache.gather(table.view(), &[2, 0, 2], Parallelism::SEQUENTIAL);
/// assert_eq!(cache.rows(), array![[4.0, 5.0], [0.0, 1.0], [4.0, 5.0]]);
///
/// let mut gradient = Array2::zeros((3, 2));
/// let d_rows = array![[1.0, 0.0], [0.0, 1.0], [10.0, 20.0]];
/// cache.scatter(d_rows.view(), gradient.view_mut(), Parallelism::SEQUENTIAL);
/// assert_eq!(gradient, array![[0.0, 1.0], [0.0, 0.0], [11.0, 20.0]]);
/// ```
#[derive(Clone, Debug)]
pub struct GatherCache {
    values: Array2<f32>,
    ids: Vec<u32>,
    distinct: DistinctIds,
    /// Whether `distinct` is that of `ids`.
    deduplicated: bool,
}

/// The gradient of a table at the rows that a batch gathered; it is 0 everywhere else.
#[derive(Clone, Debug)]
pub struct RowSparseGradient {
    ids: Vec<u32>,
    rows: Array2<f32>,
}

impl GatherCache {
    /// A cache for up to `capacity` rows of tables of the shape `table`, empty.
    ///
    /// # Panics
    /// If `capacity` or the number of rows of the tables is 2³² − 1 or more.
    #[must_use]
    pub fn new(capacity: usize, table: (usize, usize)) -> Self {
        Self {
            values: Array2::zeros((capacity, table.1)),
            ids: Vec::with_capacity(capacity),
            distinct: DistinctIds::new(table.0, capacity),
            deduplicated: false,
        }
    }

    /// Row i of the cache ← row `ids[i]` of `table`; the former rows are forgotten.
    ///
    /// # Panics
    /// If there are more ids than the capacity, the table is not as wide as the cache or not contiguous, or an id is not
    /// a row of it.
    #[track_caller]
    pub fn gather(&mut self, table: ArrayView2<'_, f32>, ids: &[u32], parallelism: Parallelism) {
        let (capacity, width) = self.values.dim();
        assert!(ids.len() <= capacity, "gather: {} ids into a cache of {capacity} rows", ids.len());
        assert_eq!(table.ncols(), width, "gather: widths of the table and of the cache");
        let rows = table.nrows();
        if let Some(&id) = ids.iter().max().filter(|&&id| id as usize >= rows) {
            panic!("gather: id {id} of a table of {rows} rows");
        }
        self.ids.clear();
        self.ids.extend_from_slice(ids);
        self.deduplicated = false;
        let values = slice(&table);
        let row = |id: u32| &values[id as usize * width..][..width];
        let work = |(ids, mut rows): (&[u32], ArrayViewMut2<'_, f32>)| {
            let rows = slice_mut(&mut rows);
            for (place, (&id, into)) in ids.iter().zip(rows.chunks_exact_mut(width.max(1))).enumerate() {
                if let Some(&next) = ids.get(place + AHEAD) {
                    prefetch(row(next));
                }
                into.copy_from_slice(row(id));
            }
        };
        for_rows(parallelism, ids.len(), (ids, self.values.slice_mut(s![..ids.len(), ..])), &work);
    }

    /// The gathered rows.
    #[must_use]
    pub fn rows(&self) -> ArrayView2<'_, f32> {
        self.values.slice(s![..self.ids.len(), ..])
    }

    /// The gathered rows, to be changed in place, such as by an encoder.
    pub fn rows_mut(&mut self) -> ArrayViewMut2<'_, f32> {
        self.values.slice_mut(s![..self.ids.len(), ..])
    }

    /// The ids of the gathered rows.
    #[must_use]
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// The number of gathered rows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether no row is gathered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// The most rows that can be gathered.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.values.nrows()
    }

    /// The distinct ids of the gathered rows.
    pub fn distinct(&mut self) -> &DistinctIds {
        if !self.deduplicated {
            self.distinct.find(self.ids.iter().copied());
            self.deduplicated = true;
        }
        &self.distinct
    }

    /// Adds the gradient of the gathered rows to that of the table, `gradient` += Gᵀ·`d_rows`.
    ///
    /// # Panics
    /// If `d_rows` has another shape than the gathered rows, `gradient` another than the table, or either is not
    /// contiguous.
    #[track_caller]
    pub fn scatter(&mut self, d_rows: ArrayView2<'_, f32>, gradient: ArrayViewMut2<'_, f32>, parallelism: Parallelism) {
        self.check_gradient(d_rows);
        let width = d_rows.ncols();
        let expected = (self.distinct.table_rows(), width);
        assert_eq!(gradient.dim(), expected, "scatter: shapes of the table's gradient and of the table");
        let d_rows = slice(&d_rows);
        let distinct = self.distinct();
        let work = |range: Range<usize>, first: u32, mut part: ArrayViewMut2<'_, f32>| {
            let part = slice_mut(&mut part);
            for index in range {
                let row = (distinct.ids()[index] - first) as usize;
                add_places(&mut part[row * width..][..width], distinct.places(index), d_rows);
            }
        };
        distinct.for_parts_of_table(parallelism, gradient, &work);
    }

    /// `gradient` ← Gᵀ·`d_rows` at the distinct ids of the gathered rows.
    ///
    /// # Panics
    /// If `d_rows` has another shape than the gathered rows or is not contiguous, or `gradient` has too little room.
    #[track_caller]
    pub fn scatter_sparse(
        &mut self,
        d_rows: ArrayView2<'_, f32>,
        gradient: &mut RowSparseGradient,
        parallelism: Parallelism,
    ) {
        self.check_gradient(d_rows);
        let width = d_rows.ncols();
        let d_rows = slice(&d_rows);
        let distinct = self.distinct();
        let room = gradient.rows.dim();
        assert!(
            distinct.len() <= room.0 && width == room.1,
            "scatter: {} rows of width {width} into a gradient of {room:?}",
            distinct.len()
        );
        gradient.ids.clear();
        gradient.ids.extend_from_slice(distinct.ids());
        let work = |range: Range<usize>, mut part: ArrayViewMut2<'_, f32>| {
            for (index, into) in range.zip(slice_mut(&mut part).chunks_exact_mut(width.max(1))) {
                into.fill(0.0);
                add_places(into, distinct.places(index), d_rows);
            }
        };
        distinct.for_parts(parallelism, gradient.rows.slice_mut(s![..distinct.len(), ..]), &work);
    }

    #[track_caller]
    fn check_gradient(&self, d_rows: ArrayView2<'_, f32>) {
        assert_eq!(d_rows.dim(), self.rows().dim(), "scatter: shapes of the gradient and of the gathered rows");
    }
}

/// Adds the rows of `d_rows` at `places`, in this order.
fn add_places(into: &mut [f32], places: &[u32], d_rows: &[f32]) {
    for &place in places {
        add_assign(into, &d_rows[place as usize * into.len()..][..into.len()]);
    }
}

impl RowSparseGradient {
    /// Room for the gradients of batches of up to `capacity` ids, of tables of the shape `table`; none yet.
    #[must_use]
    pub fn new(capacity: usize, table: (usize, usize)) -> Self {
        let capacity = capacity.min(table.0);
        Self { ids: Vec::with_capacity(capacity), rows: Array2::zeros((capacity, table.1)) }
    }

    /// The rows of the table that have a gradient, ascending.
    #[must_use]
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Their gradients, one a row.
    #[must_use]
    pub fn rows(&self) -> ArrayView2<'_, f32> {
        self.rows.slice(s![..self.ids.len(), ..])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::normal;
    use crate::rng::{Purpose, Stream};

    fn random(rows: usize, columns: usize, seed: u64) -> Array2<f32> {
        Array2::from_shape_vec((rows, columns), normal(rows * columns, seed)).unwrap()
    }

    fn one_hot(ids: &[u32], rows: usize) -> Array2<f32> {
        Array2::from_shape_fn((ids.len(), rows), |(place, row)| f32::from(ids[place] as usize == row))
    }

    fn close(found: ArrayView2<'_, f32>, expected: ArrayView2<'_, f32>) -> bool {
        found.dim() == expected.dim() && found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-5)
    }

    #[test]
    fn gather_and_scatter_are_products_with_one_hot_matrices() {
        let stream = Stream::new(6, Purpose::Caller, 0);
        for (rows, width) in [(1, 1), (7, 3), (40, 16), (9, 33)] {
            let table = random(rows, width, 1);
            let mut cache = GatherCache::new(60, table.dim());
            let mut sparse = RowSparseGradient::new(60, table.dim());
            for (workers, length) in [(1, 60), (2, 0), (3, 1), (2, 59), (5, 17)] {
                let parallelism = Parallelism::workers(workers);
                let ids: Vec<u32> = (0..length).map(|index| stream.below(index, rows as u64) as u32).collect();
                let one_hot = one_hot(&ids, rows);
                cache.gather(table.view(), &ids, parallelism);
                assert_eq!((cache.ids(), cache.len(), cache.capacity()), (&ids[..], ids.len(), 60));
                assert!(close(cache.rows(), one_hot.dot(&table).view()), "{rows} × {width}, {length} ids");

                let d_rows = random(ids.len(), width, 2);
                let former = random(rows, width, 3);
                let mut gradient = former.clone();
                cache.scatter(d_rows.view(), gradient.view_mut(), parallelism);
                let expected = one_hot.t().dot(&d_rows);
                assert!(close(gradient.view(), (&former + &expected).view()), "{rows} × {width}, {length} ids");

                sparse.rows.fill(f32::NAN);
                cache.scatter_sparse(d_rows.view(), &mut sparse, parallelism);
                assert_eq!(sparse.ids(), cache.distinct().ids());
                let mut dense = Array2::zeros((rows, width));
                for (&id, row) in sparse.ids().iter().zip(sparse.rows().rows()) {
                    dense.row_mut(id as usize).assign(&row);
                }
                assert!(close(dense.view(), expected.view()), "{rows} × {width}, {length} ids");
            }
        }
    }

    #[test]
    #[should_panic(expected = "4294967295 rows")]
    fn rows_that_32_bits_cannot_number_panic() {
        let _ = GatherCache::new(1, (u32::MAX as usize, 0));
    }

    #[test]
    #[should_panic(expected = "3 ids into a cache of 2 rows")]
    fn more_ids_than_the_capacity_panic() {
        let table = random(5, 2, 1);
        GatherCache::new(2, table.dim()).gather(table.view(), &[0, 0, 0], Parallelism::SEQUENTIAL);
    }

    #[test]
    #[should_panic(expected = "id 5 of a table of 5 rows")]
    fn an_id_outside_the_table_panics() {
        let table = random(5, 2, 1);
        GatherCache::new(2, table.dim()).gather(table.view(), &[5], Parallelism::SEQUENTIAL);
    }

    #[test]
    #[should_panic(expected = "shapes of the gradient and of the gathered rows")]
    fn a_gradient_of_another_shape_panics() {
        let table = random(5, 2, 1);
        let mut cache = GatherCache::new(2, table.dim());
        cache.gather(table.view(), &[1], Parallelism::SEQUENTIAL);
        let d_rows = random(2, 2, 1);
        cache.scatter(d_rows.view(), random(5, 2, 1).view_mut(), Parallelism::SEQUENTIAL);
    }
}
