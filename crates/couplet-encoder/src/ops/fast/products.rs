//! The CPU kernel of the layers that read the embeddings, which multiplies each entry of a table once.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use pulp::Simd;

use super::elementwise::{add, sum_by};
use super::gemm::{Finish, Panels, Rows, multiply};
use super::linear::block_rows;
use super::{Isa, Operator};

/// What the products that are kept may take: more words than most texts are made of. Counted on MRPC's 217 thousand
/// tokens, in batches of 2,048: 12 % of them are still multiplied when layers of 3 x 768 columns read them, 7 % with twice the room.
const ROOM: usize = 32 << 20;

/// Products of the entries of embedding tables with the layers that read the embeddings, kept as they come up.
///
/// With `s` for the inverse of the deviation of a token's sum of embeddings `e`,
/// `LayerNorm(e)·Wᵀ + b = s · (e - mean(e)) · (W·diag(γ))ᵀ + (W·β + b)`, and `e - mean(e)` is the sum of the entries of
/// the tables, each less its own mean. So a product is a sum over tables as well, and a word is multiplied once however
/// often it occurs. The entries' order in all tables together is their name here.
#[derive(Debug)]
pub struct Products {
    /// `(W·diag(γ))ᵀ`, `[D, n]`.
    weight: Panels,
    /// `W·β + b`, `[n]`.
    constant: Vec<f32>,
    kept: Vec<OnceLock<Kept>>,
    /// How many more may be kept.
    room: AtomicUsize,
}

/// A row of products that were computed together.
#[derive(Debug)]
struct Kept {
    products: Arc<[f32]>,
    row: usize,
}

impl Products {
    /// Takes the row-major weight `[n, D]` and the bias `[n]` of all layers, and the norm `[D]` of tables with so many
    /// `entries` together.
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
            kept: (0..entries).map(|_| OnceLock::new()).collect(),
            room: AtomicUsize::new(ROOM / size_of_val(bias).max(1)),
        }
    }

    /// Applies [`Project`]. This is no generic function, so that the kernel is compiled with this crate and its level of
    /// optimisation, not with the one that uses it.
    pub fn project(&self, isa: Isa, tables: &[(&[f32], &[u32])], scales: &[f32], dim: usize) -> Vec<Vec<f32>> {
        isa.run(Project { products: self, tables, scales, dim })
    }

    /// The product of an entry `[n]`, if it is kept.
    fn get(&self, entry: usize) -> Option<&[f32]> {
        let n = self.constant.len();
        self.kept[entry].get().map(|Kept { products, row }| &products[row * n..][..n])
    }

    /// Keeps what there is room for of products `[_, n]`. Threads that meet an entry at the same time have computed the
    /// same to the last bit.
    fn keep(&self, entries: impl ExactSizeIterator<Item = usize>, products: &[f32]) {
        let n = self.constant.len();
        // Meanwhile another thread may have kept some, for which there shall be no room twice.
        let mut new: Vec<_> = entries.zip(products.chunks_exact(n)).filter(|(e, _)| self.get(*e).is_none()).collect();
        let take = |room: usize| Some(room.saturating_sub(new.len()));
        let (Ok(room) | Err(room)) = self.room.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take);
        new.truncate(room);
        let products: Arc<[f32]> = new.iter().flat_map(|(_, products)| *products).copied().collect();
        for (row, (entry, _)) in new.into_iter().enumerate() {
            self.kept[entry].get_or_init(|| Kept { products: products.clone(), row });
        }
    }
}

/// Applies the layers of [`Products`] to the normalised sum of each token's embeddings.
struct Project<'a> {
    pub products: &'a Products,
    /// Each table `[_, D]` with the ids `[T]` in it.
    pub tables: &'a [(&'a [f32], &'a [u32])],
    /// What [`super::Embed`] scaled each token's sum with, `[T]`.
    pub scales: &'a [f32],
    pub dim: usize,
}

impl Operator for Project<'_> {
    /// One product `[T, D]` for each `D` columns.
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
        products.keep(missing.iter().map(|(entry, _)| *entry), &computed);

        let product = |entry: usize| {
            products.get(entry).unwrap_or_else(|| {
                // What was kept stays, so what is not was missing before as well.
                let i = missing.partition_point(|(other, _)| *other < entry);
                &computed[i * n..][..n]
            })
        };
        let rows_of = |(ids, first): (&[u32], usize)| ids.iter().map(|id| product(first + *id as usize)).collect();
        let rows: Vec<Vec<&[f32]>> = tables.iter().map(|(_, ids)| *ids).zip(firsts).map(rows_of).collect();
        let mut outs = Vec::with_capacity(n / dim);
        // Part by part, so that the products of places stay in the cache; in loops, as a closure that is not inlined would
        // be compiled without the instruction set.
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
    fn products_do_not_depend_on_the_room_there_is() {
        const DIM: usize = 20;
        let Some(isa) = Isa::detect() else { return };
        let random = |seed: u32, n: usize| -> Vec<f32> {
            let value = |i: u32| ((i + seed).wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 23) as f32 - 1.0;
            (0..n as u32).map(value).collect()
        };
        let (words, places) = (random(1, 50 * DIM), random(2, 30 * DIM));
        let batches: [Vec<u32>; 3] = [(0..30).collect(), (10..40).collect(), (20..50).collect()];
        let ids: Vec<u32> = (0..30).collect();
        let scales = random(3, 30);
        let products = |room: usize| {
            let (weight, bias, norm) = (random(4, 2 * DIM * DIM), random(5, 2 * DIM), random(6, DIM));
            let products = Products::pack(isa, &weight, &bias, (&norm, &norm), 80);
            products.room.store(room, Ordering::Relaxed);
            let project = |words_of: &Vec<u32>| {
                let tables = [(&words[..], &words_of[..]), (&places[..], &ids[..])];
                isa.run(Project { products: &products, tables: &tables, scales: &scales, dim: DIM })
            };
            let outs: Vec<_> = batches.iter().chain(&batches).map(project).collect();
            (outs, products.kept.iter().filter(|kept| kept.get().is_some()).count())
        };
        let (all, kept) = products(80);
        assert_eq!(kept, 80);
        for room in [0, 1, 35, 65] {
            let (outs, kept) = products(room);
            assert_eq!(kept, room);
            assert!(outs == all, "with room for {room}");
        }
    }
}
