//! A window of the bundled pairs, from texts to predictions, on all cores, in pairs a second.

use candle_core::Device;
use couplet::model::Model;
use couplet::ops::Kernels;
use couplet::scorer::{Pool, Scorer, ScorerOptions, TextColumn, Window};
use criterion::{BatchSize, Criterion, Throughput};

pub fn bench(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let pool = Pool::new(None).expect("threads");
    let [first, second] = crate::pairs();
    let window = || {
        let column = |name: &str, values: &arrow::array::StringViewArray| TextColumn {
            name: name.into(),
            values: values.clone(),
        };
        Window::new(column("sentence1", &first), Some(column("sentence2", &second)))
    };
    let f32_kernels = Kernels::for_device(&Device::Cpu);
    let mut kernels = vec![("f32", f32_kernels)];
    kernels.extend(f32_kernels.with_int16().map(|int16| ("int16", int16)));
    let mut group = criterion.benchmark_group("scorer");
    group.sample_size(10).throughput(Throughput::Elements(window().len() as u64));
    for (name, kernels) in kernels {
        // A scorer remembers what it scored, so each round has one of its own.
        let scorer = || {
            let model = Model::load_with(&crate::model(), &Device::Cpu, kernels).expect("the bundled model");
            Scorer::new(model, ScorerOptions { max_length: Some(128), ..ScorerOptions::default() }, &pool)
                .expect("a scorer")
        };
        group.bench_function(name, |bencher| {
            bencher.iter_batched(
                || (scorer(), window()),
                |(scorer, window)| runtime.block_on(scorer.score(window)).expect("predictions"),
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}
