//! Packing the lengths of a window into batches, in sequences per second; and the encoder's speed by batch size.

use candle_core::Device;
use couplet::model::{Model, PackedBatch};
use couplet::ops::{Kernels, Precision};
use couplet::scorer::plan_batches;
use criterion::{BenchmarkId, Criterion, Throughput};

pub fn bench(criterion: &mut Criterion) {
    let model = Model::load(&crate::model(), &Device::Cpu).expect("the bundled model");
    let tokenizer = model.tokenizer.with_max_length(128).expect("a length that suits");
    let [first, second] = crate::pairs();
    let encodings: Vec<_> = first
        .iter()
        .flatten()
        .zip(second.iter().flatten())
        .map(|(a, b)| tokenizer.encode(a, Some(b)).expect("a text"))
        .collect();
    let lengths: Vec<usize> = encodings.iter().map(|encoding| encoding.input_ids.len()).collect();

    let window: Vec<usize> = lengths.iter().copied().cycle().take(8192).collect();
    let mut group = criterion.benchmark_group("pack");
    group.throughput(Throughput::Elements(window.len() as u64));
    group.bench_function("a window of 8192", |bencher| bencher.iter(|| plan_batches(&window, 1024)));
    group.finish();

    let mut group = criterion.benchmark_group("batch tokens");
    group.sample_size(10).throughput(Throughput::Elements(lengths.iter().sum::<usize>() as u64));
    for precision in [Precision::F32, Precision::Int16] {
        let Some(kernels) = Kernels::with_precision(&Device::Cpu, precision) else { continue };
        let model = Model::load_with(&crate::model(), &Device::Cpu, kernels).expect("the bundled model");
        for batch_tokens in [128, 256, 512, 1024, 2048, 4096, 8192] {
            let batches: Vec<PackedBatch> = plan_batches(&lengths, batch_tokens)
                .into_iter()
                .map(|rows| {
                    let mut batch = PackedBatch::default();
                    for row in rows {
                        batch.push(&encodings[row].input_ids, &encodings[row].token_type_ids);
                    }
                    batch
                })
                .collect();
            group.bench_function(BenchmarkId::new(precision.to_string(), batch_tokens), |bencher| {
                bencher.iter(|| {
                    for batch in &batches {
                        model.forward(batch).expect("logits");
                    }
                });
            });
        }
    }
    group.finish();
}
