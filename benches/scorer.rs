//! Scoring a window of the bundled pairs, from texts to predictions, on all cores, in pairs per second.

use candle_core::Device;
use couplet::ops::Kernels;
use couplet::scorer::{Pool, Precision, PrecisionSetting, Scorer, ScorerOptions, TextColumn, Window};
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
    let mut precisions = vec![Precision::F32];
    precisions.extend(Kernels::with_precision(&Device::Cpu, Precision::Int16).map(|_| Precision::Int16));
    let mut group = criterion.benchmark_group("scorer");
    group.sample_size(10).throughput(Throughput::Elements(window().len() as u64));
    for precision in precisions {
        // A scorer caches its scores, so each round uses a new one.
        let scorer = || {
            let precision = PrecisionSetting::Of(precision);
            let options = ScorerOptions { max_length: Some(128), precision, ..ScorerOptions::default() };
            Scorer::load(&crate::model(), options, &pool).expect("the bundled model")
        };
        group.bench_function(precision.to_string(), |bencher| {
            bencher.iter_batched(
                || (scorer(), window()),
                |(scorer, window)| runtime.block_on(scorer.score(window)).expect("predictions"),
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}
