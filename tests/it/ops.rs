//! The fused kernels compared with candle's operators, on shapes that are no multiple of a vector width.

use candle_core::{D, DType, Device, Result, Tensor};
use couplet::ops::{
    Activation, Attention, Embeddings, FirstTokenAttention, Kernels, LayerNorm, Linear, ProjectedEmbeddings, attention,
    feed_forward, linear_many,
};

use crate::support::skip;

/// The largest error that counts as rounding, for values around 1.
const ROUNDING: f32 = 2e-5;

/// Deterministic numbers in [-1, 1); different seeds give different tensors.
fn random(seed: u64, shape: &[usize]) -> Tensor {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        // Knuth's linear congruential generator; its high bits are good enough.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| next()).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// The fused kernels that this machine supports.
fn fast(test: &str) -> Option<Kernels> {
    match Kernels::for_device(&Device::Cpu) {
        Kernels::Reference(_) => {
            skip(test, "this CPU has no fused multiply-add");
            None
        }
        kernels => Some(kernels),
    }
}

fn both() -> [Kernels; 2] {
    [Kernels::for_device(&Device::Cpu), Kernels::reference(DType::F32)]
}

fn values(x: &Tensor) -> Vec<f32> {
    x.flatten_all().unwrap().to_vec1().unwrap()
}

#[track_caller]
fn assert_close(x: &Tensor, y: &Tensor, what: &str) {
    assert_eq!(x.dims(), y.dims(), "{what}");
    for (i, (x, y)) in values(x).iter().zip(values(y)).enumerate() {
        assert!((x - y).abs() <= ROUNDING * (1.0 + y.abs()), "{what}: {x} for {y} at {i}");
    }
}

/// Rows `start..end`, copied to new memory.
fn rows(x: &Tensor, start: usize, end: usize) -> Tensor {
    x.narrow(0, start, end - start).unwrap().force_contiguous().unwrap()
}

/// A layer whose outputs are around 1 for any width.
fn linear(seed: u64, inputs: usize, outputs: usize, kernels: Kernels) -> Linear {
    let weight = (random(seed, &[outputs, inputs]) * (1.0 / (inputs as f64).sqrt())).unwrap();
    Linear::new(&weight, &random(seed + 1, &[outputs]), kernels).unwrap()
}

fn norm(seed: u64, dim: usize) -> LayerNorm {
    LayerNorm::new(random(seed, &[dim]), random(seed + 1, &[dim]), 1e-12)
}

/// (inputs, outputs): one, primes, multiples of a vector width and others, and the sizes of real models.
const LAYERS: [(usize, usize); 10] =
    [(1, 1), (1, 17), (12, 20), (20, 12), (7, 33), (31, 5), (32, 64), (64, 32), (384, 2), (100, 313)];

/// Around the heights of register tiles and of blocks.
const ROWS: [usize; 12] = [1, 2, 5, 6, 7, 11, 12, 13, 95, 96, 97, 200];

type Forward = fn(&Linear, &Tensor, usize) -> Result<Tensor>;

/// All operations of a layer.
const FORWARDS: [(&str, Forward); 6] = [
    ("forward", |linear, x, _| linear.forward(x)),
    ("gelu", |linear, x, _| linear.forward_activated(x, Activation::Gelu)),
    ("gelu_tanh", |linear, x, _| linear.forward_activated(x, Activation::GeluTanh)),
    ("relu", |linear, x, _| linear.forward_activated(x, Activation::Relu)),
    ("silu", |linear, x, _| linear.forward_activated(x, Activation::Silu)),
    ("forward_add_norm", |linear, x, outputs| {
        // Each residual row depends on its row of x, so that rows of a batch differ.
        let residual = x.sum_keepdim(D::Minus1)?.broadcast_mul(&random(5, &[1, outputs]))?.contiguous()?;
        linear.forward_add_norm(x, &residual, &norm(6, outputs))
    }),
];

#[test]
fn layers_agree_with_the_reference() {
    let Some(kernels) = fast("layers_agree_with_the_reference") else { return };
    for (inputs, outputs) in LAYERS {
        let (fast, reference) =
            (linear(1, inputs, outputs, kernels), linear(1, inputs, outputs, Kernels::reference(DType::F32)));
        for rows in ROWS {
            let x = random(rows as u64, &[rows, inputs]);
            for (name, forward) in FORWARDS {
                // The norm of one value, or of two almost equal ones, amplifies rounding without bound.
                if name == "forward_add_norm" && outputs < 5 {
                    continue;
                }
                let what = format!("{name} of {rows} rows {inputs} -> {outputs}");
                let (x_fast, x_reference) =
                    (forward(&fast, &x, outputs).unwrap(), forward(&reference, &x, outputs).unwrap());
                assert_close(&x_fast, &x_reference, &what);
            }
        }
    }
}

#[test]
fn a_row_of_a_layer_is_independent_of_other_rows() {
    let Some(kernels) = fast("a_row_of_a_layer_is_independent_of_other_rows") else { return };
    for (inputs, outputs) in LAYERS {
        let layer = linear(1, inputs, outputs, kernels);
        let x = random(3, &[200, inputs]);
        for (name, forward) in FORWARDS {
            let whole = forward(&layer, &x, outputs).unwrap();
            for (start, end) in [(0, 1), (5, 6), (199, 200), (0, 97), (3, 16), (90, 200)] {
                let part = forward(&layer, &rows(&x, start, end), outputs).unwrap();
                let expected = values(&rows(&whole, start, end));
                assert_eq!(values(&part), expected, "{name} of rows {start}..{end}, {inputs} -> {outputs}");
            }
        }
    }
}

#[test]
fn fused_layers_match_single_layers() {
    for kernels in both() {
        let layers = [linear(1, 20, 12, kernels), linear(3, 20, 33, kernels), linear(5, 20, 1, kernels)];
        let x = random(7, &[101, 20]);
        let together = linear_many(&x, layers.each_ref()).unwrap();
        for (layer, together) in layers.iter().zip(together) {
            assert_eq!(values(&layer.forward(&x).unwrap()), values(&together));
        }
    }
}

#[test]
fn instruction_sets_agree_to_the_last_bit() {
    #[cfg(target_arch = "x86_64")]
    if let Some(avx2) = Kernels::avx2() {
        let best = Kernels::for_device(&Device::Cpu);
        for (inputs, outputs) in LAYERS {
            let x = random(9, &[53, inputs]);
            for (name, forward) in FORWARDS {
                let [best, avx2] =
                    [best, avx2].map(|kernels| forward(&linear(1, inputs, outputs, kernels), &x, outputs).unwrap());
                assert_eq!(values(&best), values(&avx2), "{name}, {inputs} -> {outputs}");
            }
        }
        for case in attention_cases() {
            assert_eq!(values(&case.forward(best).unwrap()), values(&case.forward(avx2).unwrap()), "{}", case.what);
        }
        return;
    }
    skip("instruction_sets_agree_to_the_last_bit", "this CPU has no AVX2");
}

/// Sequences with random queries, keys and values.
struct Sequences {
    what: String,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_queries: Vec<u32>,
    cu_keys: Vec<u32>,
    heads: usize,
}

fn running_sum(lengths: &[usize]) -> Vec<u32> {
    let ends = lengths.iter().scan(0, |end, length| {
        *end += *length as u32;
        Some(*end)
    });
    std::iter::once(0).chain(ends).collect()
}

impl Sequences {
    fn new(queries: &[usize], keys: &[usize], dim: usize, heads: usize) -> Self {
        let (cu_queries, cu_keys) = (running_sum(queries), running_sum(keys));
        let tensor =
            |seed, rows: &[u32], scale: f64| (random(seed, &[*rows.last().unwrap() as usize, dim]) * scale).unwrap();
        Self {
            what: format!("{heads} heads of {dim}, queries {queries:?}, keys {keys:?}"),
            // Large enough for some keys to have much more weight than others.
            query: tensor(11, &cu_queries, 6.0),
            key: tensor(12, &cu_keys, 2.0),
            value: tensor(13, &cu_keys, 1.0),
            cu_queries,
            cu_keys,
            heads,
        }
    }

    fn forward(&self, kernels: Kernels) -> Result<Tensor> {
        let Self { query, key, value, cu_queries, cu_keys, heads, .. } = self;
        attention(&Attention { query, key, value, cu_queries, cu_keys, heads: *heads }, kernels)
    }

    /// One of the sequences as a separate batch.
    fn only(&self, sequence: usize) -> Self {
        let bounds = |cu: &[u32]| (cu[sequence] as usize, cu[sequence + 1] as usize);
        let (queries, keys) = (bounds(&self.cu_queries), bounds(&self.cu_keys));
        Self {
            what: format!("sequence {sequence} of {}", self.what),
            query: rows(&self.query, queries.0, queries.1),
            key: rows(&self.key, keys.0, keys.1),
            value: rows(&self.value, keys.0, keys.1),
            cu_queries: vec![0, (queries.1 - queries.0) as u32],
            cu_keys: vec![0, (keys.1 - keys.0) as u32],
            heads: self.heads,
        }
    }
}

/// Lengths around the widths of vectors and blocks, with all queries and with the first of each sequence.
fn attention_cases() -> Vec<Sequences> {
    let all_to_40: Vec<usize> = (1..=40).collect();
    let mut cases = Vec::new();
    for (dim, heads) in [(12, 3), (20, 1), (20, 4), (5, 5), (32, 4), (66, 2), (64, 1)] {
        for lengths in [&[1][..], &[512], &all_to_40, &[200, 1, 49, 48, 47, 97, 3]] {
            cases.push(Sequences::new(lengths, lengths, dim, heads));
            cases.push(Sequences::new(&vec![1; lengths.len()], lengths, dim, heads));
        }
    }
    cases
}

#[test]
fn attention_agrees_with_the_reference() {
    let Some(kernels) = fast("attention_agrees_with_the_reference") else { return };
    for case in attention_cases() {
        assert_close(
            &case.forward(kernels).unwrap(),
            &case.forward(Kernels::reference(DType::F32)).unwrap(),
            &case.what,
        );
    }
}

#[test]
fn attention_of_a_sequence_is_independent_of_other_sequences() {
    let Some(kernels) = fast("attention_of_a_sequence_is_independent_of_other_sequences") else { return };
    for case in attention_cases() {
        let whole = case.forward(kernels).unwrap();
        for sequence in 0..case.cu_keys.len() - 1 {
            let alone = case.only(sequence);
            let [start, end] = [case.cu_queries[sequence], case.cu_queries[sequence + 1]].map(|row| row as usize);
            assert_eq!(values(&alone.forward(kernels).unwrap()), values(&rows(&whole, start, end)), "{}", alone.what);
        }
    }
}

#[test]
fn attention_to_one_key_is_its_value() {
    for kernels in both() {
        let case = Sequences::new(&[1, 1], &[1, 1], 20, 4);
        assert_close(&case.forward(kernels).unwrap(), &case.value, &case.what);
    }
}

#[test]
fn attention_to_equal_keys_is_the_mean_of_their_values() {
    for kernels in both() {
        let mut case = Sequences::new(&[3], &[37], 12, 3);
        case.key = random(1, &[1, 12]).broadcast_as((37, 12)).unwrap().contiguous().unwrap();
        let mean = case.value.mean_keepdim(0).unwrap().broadcast_as((3, 12)).unwrap();
        assert_close(&case.forward(kernels).unwrap(), &mean, &case.what);
    }
}

#[test]
fn scores_far_apart_do_not_overflow() {
    for kernels in both() {
        let mut case = Sequences::new(&[2], &[9], 12, 3);
        case.query = (case.query * 1e4).unwrap();
        assert!(values(&case.forward(kernels).unwrap()).iter().all(|x| x.is_finite() && x.abs() <= 1.0));
    }
}

#[test]
fn a_feed_forward_layer_matches_its_parts_in_any_batch() {
    let test = "a_feed_forward_layer_matches_its_parts_in_any_batch";
    let Some(kernels) = fast(test) else { return };
    for (dim, hidden) in LAYERS {
        let (lin1, lin2, norm) = (linear(1, dim, hidden, kernels), linear(3, hidden, dim, kernels), norm(5, dim));
        for count in ROWS {
            let x = random(7, &[count, dim]);
            let whole = feed_forward(&x, &lin1, Activation::Gelu, &lin2, &norm).unwrap();
            let parts =
                lin2.forward_add_norm(&lin1.forward_activated(&x, Activation::Gelu).unwrap(), &x, &norm).unwrap();
            let what = format!("{count} rows of {dim} to {hidden}");
            assert_eq!(values(&whole), values(&parts), "{what}");
            let last = feed_forward(&rows(&x, count - 1, count), &lin1, Activation::Gelu, &lin2, &norm).unwrap();
            assert_eq!(values(&last), values(&rows(&whole, count - 1, count)), "{what}");
        }
    }
    let (lin1, lin2) = (linear(1, 12, 20, kernels), linear(3, 20, 12, kernels));
    for (x, lin2, norm) in [
        (random(7, &[2, 13]), &lin2, norm(5, 12)),
        (random(7, &[2, 12]), &lin1, norm(5, 12)),
        (random(7, &[2, 12]), &lin2, norm(5, 11)),
    ] {
        assert!(feed_forward(&x, &lin1, Activation::Gelu, lin2, &norm).is_err());
    }
}

#[test]
fn attention_of_first_tokens_needs_no_keys_and_values() {
    let Some(Kernels::Fast(kernels)) = fast("attention_of_first_tokens_needs_no_keys_and_values") else { return };
    let reference = Kernels::reference(DType::F32);
    let all_to_40: Vec<usize> = (1..=40).collect();
    for (dim, heads) in [(12, 3), (20, 1), (5, 5), (66, 2), (64, 1), (96, 12)] {
        let weight = |seed| (random(seed, &[dim, dim]) * (1.0 / (dim as f64).sqrt())).unwrap();
        let (key, key_bias, value, value_bias) = (weight(1), random(2, &[dim]), weight(3), random(4, &[dim]));
        let fast = FirstTokenAttention::new(&key, (&value, &value_bias), heads, kernels).unwrap();
        let layers = [(&key, &key_bias), (&value, &value_bias)];
        let layers = layers.map(|(weight, bias)| Linear::new(weight, bias, reference).unwrap());
        for lengths in [&[1][..], &[512], &all_to_40, &[200, 1, 49, 48, 47, 97, 3]] {
            let cu_seqlens = running_sum(lengths);
            let x = random(5, &[*cu_seqlens.last().unwrap() as usize, dim]);
            let query = (random(6, &[lengths.len(), dim]) * 4.0).unwrap();
            let what = format!("{heads} heads of {dim}, {lengths:?}");
            let context = fast.forward(&query, &x, &cu_seqlens).unwrap();
            let n = lengths.len();
            let one_each: Vec<u32> = (0..=n as u32).collect();
            let [key, value] = &linear_many(&x, layers.each_ref()).unwrap();
            let of = Attention { query: &query, key, value, cu_queries: &one_each, cu_keys: &cu_seqlens, heads };
            assert_close(&context, &attention(&of, reference).unwrap(), &what);
            let (start, end) = (cu_seqlens[n - 1] as usize, cu_seqlens[n] as usize);
            let alone =
                fast.forward(&rows(&query, n - 1, n), &rows(&x, start, end), &[0, (end - start) as u32]).unwrap();
            assert_eq!(values(&alone), values(&rows(&context, n - 1, n)), "{what}");
        }
        for cu_seqlens in [&[0, 3][..], &[0, 2, 3], &[0, 4], &[0, 0, 4], &[0, 5, 4]] {
            assert!(fast.forward(&random(1, &[2, dim]), &random(2, &[4, dim]), cu_seqlens).is_err());
        }
    }
    let (square, bias) = (random(1, &[12, 12]), random(2, &[12]));
    let attend = FirstTokenAttention::new(&square, (&square, &bias), 3, kernels).unwrap();
    assert!(attend.forward(&random(1, &[2, 8]), &random(2, &[4, 8]), &[0, 2, 4]).is_err());
    let none = |rows| Tensor::zeros((rows, 12), DType::F32, &Device::Cpu).unwrap();
    assert_eq!(attend.forward(&none(0), &none(0), &[0]).unwrap().dims(), [0, 12]);
    for heads in [0, 5] {
        assert!(FirstTokenAttention::new(&square, (&square, &bias), heads, kernels).is_err());
    }
}

#[test]
fn empty_sequences_and_empty_batches_are_skipped() {
    let x = random(1, &[5, 24]);
    for kernels in both() {
        let attend = |x: &Tensor, cu: &[u32]| {
            attention(&Attention { query: x, key: x, value: x, cu_queries: cu, cu_keys: cu, heads: 3 }, kernels)
        };
        assert_close(&attend(&x, &[0, 3, 3, 5]).unwrap(), &attend(&x, &[0, 3, 5]).unwrap(), "an empty one between two");
        let none = Tensor::zeros((0, 24), DType::F32, &Device::Cpu).unwrap();
        for cu in [&[0][..], &[0, 0]] {
            assert!(attend(&none, cu).is_err() || attend(&none, cu).unwrap().dims() == [0, 24], "{cu:?}");
        }
    }
}

#[test]
fn layers_and_norms_that_do_not_fit_are_refused() {
    for kernels in both() {
        for (outputs, inputs) in [(0, 4), (4, 0)] {
            let weight = Tensor::zeros((outputs, inputs), DType::F32, &Device::Cpu).unwrap();
            let bias = Tensor::zeros(outputs, DType::F32, &Device::Cpu).unwrap();
            assert!(Linear::new(&weight, &bias, kernels).is_err());
        }
    }
    let Some(kernels @ Kernels::Fast(fused)) = fast("layers_and_norms_that_do_not_fit_are_refused") else { return };
    let short = || LayerNorm::new(random(1, &[12]), random(2, &[8]), 1e-12);
    let (x, layer, wide) = (random(3, &[2, 12]), linear(4, 12, 12, kernels), linear(5, 12, 48, kernels));
    assert!(layer.forward_add_norm(&x, &x, &short()).is_err());
    assert!(feed_forward(&x, &wide, Activation::Gelu, &linear(6, 48, 12, kernels), &short()).is_err());
    let [ids, positions, types] = tokens();
    let norm = Embeddings { norm: short(), ..embeddings(12, true) };
    let table = Embeddings { positions: random(2, &[30, 8]), ..embeddings(12, true) };
    for embeddings in [norm, table] {
        assert!(embeddings.forward(&ids, &positions, &types, kernels).is_err());
        assert!(ProjectedEmbeddings::new(embeddings, [(&random(1, &[12, 12]), &random(2, &[12]))], fused).is_err());
    }
}

/// Tables of 50 words, 30 positions and optionally 2 token types.
fn embeddings(dim: usize, token_types: bool) -> Embeddings {
    Embeddings {
        words: random(1, &[50, dim]),
        positions: random(2, &[30, dim]),
        token_types: token_types.then(|| random(3, &[2, dim])),
        norm: norm(4, dim),
    }
}

/// Words, positions and types of 77 tokens, for [`embeddings`].
fn tokens() -> [Vec<u32>; 3] {
    [|i| i * 31 % 50, |i| i % 30, |i| i / 3 % 2].map(|id: fn(u32) -> u32| (0..77).map(id).collect())
}

#[test]
fn embeddings_agree_with_the_reference_in_any_batch() {
    let test = "embeddings_agree_with_the_reference_in_any_batch";
    let Some(kernels) = fast(test) else { return };
    let [ids, positions, types] = tokens();
    for dim in [12, 20, 33, 32] {
        for token_types in [false, true] {
            let tables = embeddings(dim, token_types);
            let whole = tables.forward(&ids, &positions, &types, kernels).unwrap();
            let reference = tables.forward(&ids, &positions, &types, Kernels::reference(DType::F32)).unwrap();
            assert_close(&whole, &reference, &format!("embeddings of {dim}"));
            for t in [0, 40, 76] {
                let alone = tables.forward(&ids[t..=t], &positions[t..=t], &types[t..=t], kernels).unwrap();
                assert_eq!(values(&alone), values(&rows(&whole, t, t + 1)));
            }
        }
    }
}

#[test]
fn embedding_products_agree_with_layers_for_any_cache() {
    let test = "embedding_products_agree_with_layers_for_any_cache";
    let Some(Kernels::Fast(kernels)) = fast(test) else { return };
    let reference = Kernels::reference(DType::F32);
    let [ids, positions, types] = tokens();
    for dim in [5, 12, 33, 64] {
        let layers = [10, 20, 30]
            .map(|seed| ((random(seed, &[dim, dim]) * (1.0 / (dim as f64).sqrt())).unwrap(), random(seed + 1, &[dim])));
        let layers = layers.each_ref().map(|(weight, bias)| (weight, bias));
        for token_types in [false, true] {
            let new = || ProjectedEmbeddings::new(embeddings(dim, token_types), layers, kernels).unwrap();
            let (fast, what) = (new(), format!("embeddings of {dim}"));
            let (x, whole) = fast.forward(&ids, &positions, &types).unwrap();
            let expected = embeddings(dim, token_types).forward(&ids, &positions, &types, reference).unwrap();
            assert_close(&x, &expected, &what);
            for (product, (weight, bias)) in whole.iter().zip(layers) {
                let layer = Linear::new(weight, bias, reference).unwrap();
                assert_close(product, &layer.forward(&expected).unwrap(), &what);
            }
            // With everything cached, and with nothing cached.
            for embeddings in [fast, new()] {
                for t in [0, 40, 76] {
                    let (x_alone, alone) = embeddings.forward(&ids[t..=t], &positions[t..=t], &types[t..=t]).unwrap();
                    assert_eq!(values(&x_alone), values(&rows(&x, t, t + 1)), "{what}");
                    for (alone, whole) in alone.iter().zip(&whole) {
                        assert_eq!(values(alone), values(&rows(whole, t, t + 1)), "{what}");
                    }
                }
                assert!(embeddings.forward(&[50], &[0], &[0]).is_err());
            }
        }
    }
    let (weight, bias, short) = (random(1, &[12, 12]), random(2, &[12]), random(3, &[11]));
    for layer in [(&weight, &short), (&bias, &bias)] {
        assert!(ProjectedEmbeddings::new(embeddings(12, true), [layer], kernels).is_err());
    }
    let one = ProjectedEmbeddings::new(embeddings(12, true), [(&weight, &bias)], kernels).unwrap();
    assert_eq!(one.forward(&[], &[], &[]).unwrap().1[0].dims(), [0, 12]);
}

#[test]
fn an_id_beyond_its_embedding_table_is_an_error() {
    for kernels in both() {
        let tables = embeddings(12, true);
        assert!(tables.forward(&[49], &[29], &[1], kernels).is_ok());
        for (id, position, token_type) in [(50, 0, 0), (0, 30, 0), (0, 0, 2), (u32::MAX, 0, 0)] {
            let result = tables.forward(&[1, id], &[0, position], &[0, token_type], kernels);
            assert!(result.is_err(), "{id}, {position}, {token_type}");
        }
        // A model without token types does not read them.
        assert!(embeddings(12, false).forward(&[49], &[29], &[7], kernels).is_ok());
    }
}

#[test]
fn shapes_that_do_not_fit_a_layer_are_errors() {
    for kernels in both() {
        assert!(Linear::new(&random(1, &[20, 12]), &random(2, &[12]), kernels).is_err(), "bias of another size");
        assert!(Linear::new(&random(1, &[240]), &random(2, &[20]), kernels).is_err(), "flat weight");
        let layer = linear(1, 12, 20, kernels);
        for shape in [&[5, 20][..], &[5, 24], &[60], &[5, 12, 1], &[12, 5]] {
            assert!(layer.forward(&random(3, shape)).is_err(), "{shape:?}");
            assert!(layer.forward_activated(&random(3, shape), Activation::Gelu).is_err(), "{shape:?}");
            assert!(linear_many(&random(3, shape), [&layer, &layer]).is_err(), "{shape:?}");
        }
        let x = random(3, &[5, 12]);
        for shape in [&[5, 12][..], &[4, 20], &[6, 20], &[100]] {
            assert!(layer.forward_add_norm(&x, &random(4, shape), &norm(5, 20)).is_err(), "residual {shape:?}");
        }
    }
}

#[test]
fn shapes_that_do_not_fit_attention_are_errors() {
    for kernels in both() {
        let (q, kv) = (random(1, &[4, 12]), random(2, &[6, 12]));
        let attend = |query: &Tensor, key: &Tensor, value: &Tensor, cu_queries: &[u32], cu_keys: &[u32]| {
            attention(&Attention { query, key, value, cu_queries, cu_keys, heads: 3 }, kernels)
        };
        assert!(attend(&q, &kv, &kv, &[0, 2, 4], &[0, 1, 6]).is_ok());
        assert!(attend(&q, &kv, &random(3, &[7, 12]), &[0, 4], &[0, 6]).is_err(), "values of other rows");
        assert!(
            attend(&q, &random(3, &[6, 9]), &random(3, &[6, 9]), &[0, 4], &[0, 6]).is_err(),
            "keys of another size"
        );
        assert!(attend(&q, &kv, &kv, &[0, 3], &[0, 6]).is_err(), "fewer queries");
        assert!(attend(&q, &kv, &kv, &[0, 4], &[0, 7]).is_err(), "more keys");
        assert!(attend(&q, &kv, &kv, &[], &[]).is_err(), "no bounds");
        assert!(attend(&random(1, &[48]), &kv, &kv, &[0, 4], &[0, 6]).is_err(), "flat queries");
    }
}

#[test]
fn the_fused_kernels_refuse_what_they_cannot_read() {
    let Some(kernels) = fast("the_fused_kernels_refuse_what_they_cannot_read") else { return };
    let layer = linear(1, 12, 20, kernels);
    let transposed = random(2, &[12, 5]).t().unwrap();
    assert!(layer.forward(&transposed).is_err());
    assert!(layer.forward(&random(2, &[5, 12]).to_dtype(DType::F64).unwrap()).is_err());
    let half = random(1, &[20, 12]).to_dtype(DType::F16).unwrap();
    assert!(Linear::new(&half, &random(2, &[20]), kernels).is_err());
    // A narrowed tensor starts at an offset of its memory.
    let x = random(2, &[9, 12]);
    let narrowed = x.narrow(0, 4, 5).unwrap();
    assert_eq!(values(&layer.forward(&narrowed).unwrap()), values(&layer.forward(&rows(&x, 4, 9)).unwrap()));
}
