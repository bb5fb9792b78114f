//! The CPU kernel of the layers that read the embeddings, with a cache of the products of table entries.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use pulp::Simd;

use super::elementwise::{add, sum_by};
use super::gemm::{Finish, Panels, Rows, multiply};
use super::linear::block_rows;
use super::{Isa, Operator};

/// The maximum size of the cache, in bytes. It holds the vocabulary of most data sets. Measured on MRPC (217,000 tokens
/// in batches of 2,048) with layers of 3 x 768 columns: 12 % of the tokens miss the cache, and 7 % with twice the size.
const CACHE_BYTES: usize = 32 << 20;

/// A cache of the products of embedding table entries with the layers that read the embeddings.
///
/// For the sum `e` of a token's embeddings and its inverse standard deviation `s`,
/// `LayerNorm(e)·Wᵀ + b = s · (e - mean(e)) · (W·diag(γ))ᵀ + (W·β + b)`. Since `e - mean(e)` is the sum of the table
/// entries, each minus its own mean, the product is a sum over the tables too. So the product of an entry is computed
/// once, however often the entry occurs. An entry is identified by its index in the concatenation of all tables.
#[derive(Debug)]
pub struct Products {
    /// `(W·diag(γ))ᵀ`, `[D, n]`.
    weight: Panels,
    /// `W·β + b`, `[n]`.
    constant: Vec<f32>,
    /// The cached product of each entry.
    cache: Vec<OnceLock<Cached>>,
    /// The number of products that may still be cached.
    free: AtomicUsize,
}

/// A cached product: a row of products that were computed together.
#[derive(Debug)]
struct Cached {
    products: Arc<[f32]>,
    row: usize,
}

impl Products {
    /// Takes the row-major weight `[n, D]` and the bias `[n]` of all layers together, weight and bias `[D]` of the
    /// layer norm, and the number of entries of all tables.
    pub fn pack(
        isa: Isa,
        weight: &[f32],
        bias: &[f32],
        (norm_weight, norm_bias): (&[f32], &[f32]),
        entries: usize,
    ) -> Self {
        let dim = norm_weight.len();
        let rows = || weight.chunks_exact(dim);
        let scaled: Vec<f32> = rows().flat_map(|row| row.iter().zip(norm_weight).map(|(w, scale)| w * scale)).collect();
        let constant = rows().zip(bias).map(|(row, bias)| {
            let shift: f64 = row.iter().zip(norm_bias).map(|(w, shift)| f64::from(*w) * f64::from(*shift)).sum();
            (f64::from(*bias) + shift) as f32
        });
        let mut panels = Panels::default();
        panels.pack_columns(scaled.chunks_exact(dim), dim, isa.panel_width(), 1.0);
        Self {
            weight: panels,
            constant: constant.collect(),
            cache: (0..entries).map(|_| OnceLock::new()).collect(),
            free: AtomicUsize::new(CACHE_BYTES / size_of_val(bias).max(1)),
        }
    }

    /// Runs [`Project`]. This function is not generic, so that the kernel is compiled in this crate, with its
    /// optimization level, and not in the calling crate.
    pub fn project(&self, isa: Isa, tables: &[(&[f32], &[u32])], scales: &[f32], dim: usize) -> Vec<Vec<f32>> {
        isa.run(Project { products: self, tables, scales, dim })
    }

    /// Returns the product `[n]` of an entry, if it is cached.
    fn get(&self, entry: usize) -> Option<&[f32]> {
        let n = self.constant.len();
        self.cache[entry].get().map(|Cached { products, row }| &products[row * n..][..n])
    }

    /// Caches the products `[_, n]` of entries, as far as the limit allows. If several threads compute an entry at the
    /// same time, their products are bit-identical.
    fn insert(&self, entries: impl ExactSizeIterator<Item = usize>, products: &[f32]) {
        let n = self.constant.len();
        // Another thread may have cached some in the meantime; these must not count twice.
        let mut new: Vec<_> = entries.zip(products.chunks_exact(n)).filter(|(e, _)| self.get(*e).is_none()).collect();
        let take = |free: usize| Some(free.saturating_sub(new.len()));
        let (Ok(free) | Err(free)) = self.free.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take);
        new.truncate(free);
        let products: Arc<[f32]> = new.iter().flat_map(|(_, products)| *products).copied().collect();
        for (row, (entry, _)) in new.into_iter().enumerate() {
            self.cache[entry].get_or_init(|| Cached { products: products.clone(), row });
        }
    }
}

/// Applies the layers of [`Products`] to the normalised sum of each token's embeddings.
struct Project<'a> {
    pub products: &'a Products,
    /// The tables `[_, D]`, each with its ids `[T]`.
    pub tables: &'a [(&'a [f32], &'a [u32])],
    /// The factor that [`super::Embed`] scaled each token's sum by, `[T]`.
    pub scales: &'a [f32],
    pub dim: usize,
}

impl Operator for Project<'_> {
    /// The output `[T, D]` of each layer.
    type Output = Vec<Vec<f32>>;

    #[inline(always)]
    fn run<S: Simd, const R: usize, const C: usize>(self, simd: S) -> Vec<Vec<f32>> {
        let Self { products, tables, scales, dim } = self;
        let Products { weight, constant, .. } = products;
        let n = constant.len();

        let mut missing: Vec<(usize, &[f32])> = Vec::new();
        let mut firsts = Vec::with_capacity(tables.len());
        let mut first = 0;
        for (table, ids) in tables {
            let entries = ids.iter().map(|id| (first + *id as usize, &table[*id as usize * dim..][..dim]));
            missing.extend(entries.filter(|(entry, _)| products.get(*entry).is_none()));
            firsts.push(first);
            first += table.len() / dim;
        }
        missing.sort_unstable_by_key(|(entry, _)| *entry);
        missing.dedup_by_key(|(entry, _)| *entry);

        let mut computed = vec![0.0; missing.len() * n];
        let block_rows = block_rows(n);
        let mut centred = Vec::with_capacity(block_rows.min(missing.len()) * dim);
        for (entries, out) in missing.chunks(block_rows).zip(computed.chunks_mut(block_rows * n)) {
            centred.clear();
            for (_, row) in entries {
                let mean = sum_by(row, |x| x) / dim as f32;
                let start = centred.len();
                centred.extend_from_slice(row);
                for x in &mut centred[start..] {
                    *x -= mean;
                }
            }
            multiply::<S, R, C>(simd, Rows::new(&centred, dim), weight, Finish::None, out, n);
        }
        products.insert(missing.iter().map(|(entry, _)| *entry), &computed);

        let product = |entry: usize| {
            products.get(entry).unwrap_or_else(|| {
                // Entries are never evicted, so an entry that is not cached now was missing before too.
                let i = missing.partition_point(|(other, _)| *other < entry);
                &computed[i * n..][..n]
            })
        };
        let rows_of = |(ids, first): (&[u32], usize)| ids.iter().map(|id| product(first + *id as usize)).collect();
        let rows: Vec<Vec<&[f32]>> = tables.iter().map(|(_, ids)| *ids).zip(firsts).map(rows_of).collect();
        let mut outs = Vec::with_capacity(n / dim);
        // Layer by layer, so that the products of positions stay in the CPU cache. Loops rather than closures, as a
        // closure that is not inlined would be compiled without the instruction set.
        for first in (0..n).step_by(dim) {
            let constant = &constant[first..][..dim];
            let mut out = Vec::with_capacity(scales.len() * dim);
            for (t, scale) in scales.iter().enumerate() {
                let start = out.len();
                out.extend_from_slice(&rows[0][t][first..][..dim]);
                let sum = &mut out[start..];
                for rows in &rows[1..] {
                    add(sum, &rows[t][first..][..dim]);
                }
                for (x, constant) in sum.iter_mut().zip(constant) {
                    *x = *x * scale + constant;
                }
            }
            outs.push(out);
        }
        outs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_do_not_depend_on_the_cache_size() {
        const DIM: usize = 20;
        let Some(isa) = Isa::detect() else { return };
        let random = |seed: u32, n: usize| -> Vec<f32> {
            let value = |i: u32| ((i + seed).wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 23) as f32 - 1.0;
            (0..n as u32).map(value).collect()
        };
        let (words, positions) = (random(1, 50 * DIM), random(2, 30 * DIM));
        let batches: [Vec<u32>; 3] = [(0..30).collect(), (10..40).collect(), (20..50).collect()];
        let ids: Vec<u32> = (0..30).collect();
        let scales = random(3, 30);
        let products = |size: usize| {
            let (weight, bias, norm) = (random(4, 2 * DIM * DIM), random(5, 2 * DIM), random(6, DIM));
            let products = Products::pack(isa, &weight, &bias, (&norm, &norm), 80);
            products.free.store(size, Ordering::Relaxed);
            let project = |word_ids: &Vec<u32>| {
                let tables = [(&words[..], &word_ids[..]), (&positions[..], &ids[..])];
                isa.run(Project { products: &products, tables: &tables, scales: &scales, dim: DIM })
            };
            let outs: Vec<_> = batches.iter().chain(&batches).map(project).collect();
            (outs, products.cache.iter().filter(|cached| cached.get().is_some()).count())
        };
        let (all, cached) = products(80);
        assert_eq!(cached, 80);
        for size in [0, 1, 35, 65] {
            let (outs, cached) = products(size);
            assert_eq!(cached, size);
            assert!(outs == all, "a cache of {size} products");
        }
    }
}
