//! Each operator on one thread, in operations per second: 1,024 tokens of a 6 x 384 encoder.

use candle_core::{DType, Device, Tensor};
use couplet::ops::{
    Activation, Attention, Embeddings, Kernels, LayerNorm, Linear, Precision, ProjectedEmbeddings, attention,
    feed_forward,
};
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput};

const TOKENS: usize = 1024;
const DIM: usize = 384;

fn random(shape: &[usize]) -> Tensor {
    Tensor::randn(0f32, 0.5, shape, &Device::Cpu).expect("a tensor")
}

/// Returns the kernels that this machine supports.
fn kernels() -> Vec<(&'static str, Kernels)> {
    let f32_kernels = Kernels::for_device(&Device::Cpu);
    let mut kernels = vec![("f32", f32_kernels), ("candle", Kernels::reference(DType::F32))];
    kernels.extend(Kernels::with_precision(&Device::Cpu, Precision::Int16).map(|int16| ("int16", int16)));
    kernels
}

pub fn bench(criterion: &mut Criterion) {
    embed(criterion);
    linear(criterion);
    block(criterion);
    attend(criterion);
}

/// Benchmarks the queries, keys and values of the first block: from cached products of words, and by its layers.
fn embed(criterion: &mut Criterion) {
    const WORDS: usize = 30_522;
    let kernels @ Kernels::Fast(fused) = Kernels::for_device(&Device::Cpu) else { return };
    let mut group = criterion.benchmark_group("first queries, keys and values");
    group.throughput(Throughput::Elements(3 * 2 * (TOKENS * DIM * DIM) as u64));
    let embeddings = Embeddings {
        words: random(&[WORDS, DIM]),
        positions: random(&[512, DIM]),
        token_types: None,
        norm: LayerNorm::new(random(&[DIM]), random(&[DIM]), 1e-12),
    };
    let layers = [(); 3].map(|()| (random(&[DIM, DIM]), random(&[DIM])));
    let position_ids: Vec<u32> = (0..TOKENS as u32).map(|i| i % 64).collect();
    let token_type_ids = vec![0; TOKENS];

    let weights = layers.each_ref().map(|(weight, bias)| (weight, bias));
    let projected = ProjectedEmbeddings::new(embeddings.clone(), weights, fused).expect("layers that fit");
    let input_ids: Vec<u32> = (0..TOKENS as u32).map(|i| i * 7919 % WORDS as u32).collect();
    group.bench_function("of words that came before", |bencher| {
        bencher.iter(|| projected.forward(&input_ids, &position_ids, &token_type_ids));
    });
    let layers = layers.each_ref().map(|(weight, bias)| Linear::new(weight, bias, kernels).expect("a layer"));
    group.bench_function("by layers", |bencher| {
        bencher.iter(|| {
            let x = embeddings.forward(&input_ids, &position_ids, &token_type_ids, kernels).expect("ids in the tables");
            layers.each_ref().map(|layer| layer.forward(&x))
        });
    });
    group.bench_function("of words that are new", |bencher| {
        // Use a new model each time, as it caches its products.
        let fresh = || ProjectedEmbeddings::new(embeddings.clone(), weights, fused).expect("layers that fit");
        bencher.iter_batched_ref(
            fresh,
            |projected| projected.forward(&input_ids, &position_ids, &token_type_ids),
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

fn block(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("feed-forward");
    group.throughput(Throughput::Elements(2 * (2 * TOKENS * DIM * 4 * DIM) as u64));
    for (name, kernels) in kernels() {
        let linear =
            |inputs, outputs| Linear::new(&random(&[outputs, inputs]), &random(&[outputs]), kernels).expect("a layer");
        let (lin1, lin2) = (linear(DIM, 4 * DIM), linear(4 * DIM, DIM));
        let (x, norm) = (random(&[TOKENS, DIM]), LayerNorm::new(random(&[DIM]), random(&[DIM]), 1e-12));
        group.bench_function(name, |bencher| bencher.iter(|| feed_forward(&x, &lin1, Activation::Gelu, &lin2, &norm)));
    }
    group.finish();
}

fn linear(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("linear");
    for (inputs, outputs) in [(DIM, DIM), (DIM, 4 * DIM), (4 * DIM, DIM)] {
        group.throughput(Throughput::Elements(2 * (TOKENS * inputs * outputs) as u64));
        for (name, kernels) in kernels() {
            let layer = Linear::new(&random(&[outputs, inputs]), &random(&[outputs]), kernels).expect("a layer");
            let norm = LayerNorm::new(random(&[outputs]), random(&[outputs]), 1e-12);
            let (x, residual) = (random(&[TOKENS, inputs]), random(&[TOKENS, outputs]));
            let shape = format!("{inputs} to {outputs}");
            group.bench_function(BenchmarkId::new(name, &shape), |bencher| bencher.iter(|| layer.forward(&x)));
            group.bench_function(BenchmarkId::new(format!("{name} and GELU"), &shape), |bencher| {
                bencher.iter(|| layer.forward_activated(&x, Activation::Gelu));
            });
            group.bench_function(BenchmarkId::new(format!("{name} and norm"), &shape), |bencher| {
                bencher.iter(|| layer.forward_add_norm(&x, &residual, &norm));
            });
        }
    }
    group.finish();
}

fn attend(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("attention");
    for length in [8, 64, 128, 512] {
        // Scores and context: two products of [length, length, DIM] for each sequence.
        group.throughput(Throughput::Elements(4 * (TOKENS * length * DIM) as u64));
        let cu_seqlens: Vec<u32> = (0..=TOKENS / length).map(|i| (i * length) as u32).collect();
        let [query, key, value] = [(); 3].map(|()| random(&[TOKENS, DIM]));
        for (name, kernels) in [("f32", Kernels::for_device(&Device::Cpu)), ("candle", Kernels::reference(DType::F32))]
        {
            group.bench_function(BenchmarkId::new(name, length), |bencher| {
                let of = Attention {
                    query: &query,
                    key: &key,
                    value: &value,
                    cu_queries: &cu_seqlens,
                    cu_keys: &cu_seqlens,
                    heads: 12,
                };
                bencher.iter(|| attention(&of, kernels));
            });
        }
    }
    group.finish();
}
