//! The forward pass of a packed batch through the bundled model, on one thread, in tokens per second.

use candle_core::Device;
use couplet::model::{Model, PackedBatch};
use couplet::ops::{Kernels, Precision};
use criterion::{BenchmarkId, Criterion, Throughput};

const TOKENS: usize = 1024;

pub fn bench(criterion: &mut Criterion) {
    let f32_kernels = Kernels::for_device(&Device::Cpu);
    let mut kernels = vec![("f32", f32_kernels)];
    kernels.extend(Kernels::with_precision(&Device::Cpu, Precision::Int16).map(|int16| ("int16", int16)));
    let mut group = criterion.benchmark_group("forward");
    group.throughput(Throughput::Elements(TOKENS as u64));
    for (name, kernels) in kernels {
        let model = Model::load_with(&crate::model(), &Device::Cpu, kernels).expect("the bundled model");
        for length in [8, 64, 128, 512] {
            let mut batch = PackedBatch::default();
            for sequence in 0..TOKENS / length {
                let ids: Vec<u32> = (0..length).map(|i| ((sequence * 7919 + i * 104_729) % 30_000) as u32).collect();
                batch.push(&ids, &vec![0; length]);
            }
            group.bench_function(BenchmarkId::new(name, length), |bencher| bencher.iter(|| model.forward(&batch)));
        }
    }
    group.finish();
}
