//! Tokenization of texts into token ids, on one thread.

use candle_core::Device;
use couplet::model::Model;
use criterion::{Criterion, Throughput};

pub fn bench(criterion: &mut Criterion) {
    let model = Model::load(&crate::model(), &Device::Cpu).expect("the bundled model");
    let tokenizer = model.tokenizer.with_max_length(128).expect("a length that suits");
    let [first, second] = crate::pairs();
    let mut group = criterion.benchmark_group("tokenize");
    group.throughput(Throughput::Elements(first.iter().len() as u64));
    group.bench_function("bundled pairs", |bencher| {
        bencher.iter(|| {
            let pairs = first.iter().flatten().zip(second.iter().flatten());
            pairs.map(|(a, b)| tokenizer.encode(a, Some(b)).expect("a text").input_ids.len()).sum::<usize>()
        });
    });
    group.finish();
}
