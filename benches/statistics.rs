//! Bootstrap intervals of all metrics: 100 resamples of 100,000 rows, on one thread.

use couplet::train::random::Random;
use couplet::train::statistics::bootstrap::Bootstrap;
use couplet::train::statistics::metrics::{Classes, DEFAULT_BINS, Sample, Sets, Values};
use criterion::{Criterion, Throughput};

const ROWS: usize = 100_000;
const RESAMPLES: usize = 100;

pub fn bench(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("bootstrap");
    group.throughput(Throughput::Elements((ROWS * RESAMPLES) as u64));
    let bootstrap = Bootstrap::try_new(RESAMPLES, 0.95, 1).expect("resamples and a level that suit");
    for (name, sample) in samples() {
        group.bench_function(name, |bencher| bencher.iter(|| bootstrap.intervals(&sample)));
    }
    group.finish();
}

fn samples() -> [(&'static str, Sample); 3] {
    let mut random = Random::new(1, "bench", &[]);
    let gold: Vec<u32> = (0..ROWS).map(|_| random.below(2)).collect();
    let scores: Vec<f64> = gold.iter().map(|gold| 0.7 * random.unit() + 0.3 * f64::from(*gold)).collect();
    let values: Vec<f64> = gold.iter().map(|gold| random.unit() + f64::from(*gold)).collect();
    let sets: Vec<bool> = (0..4 * ROWS).map(|_| random.below(2) == 1).collect();
    let probabilities: Vec<f64> = (0..4 * ROWS).map(|_| random.unit()).collect();
    let pairs = scores.iter().flat_map(|score| [1.0 - score, *score]).collect();
    let suits = "numbers that suit";
    [
        ("two labels", Sample::Classes(Classes::new(2, gold, pairs, None, DEFAULT_BINS).expect(suits))),
        ("values", Sample::Values(Values::new(values, scores).expect(suits))),
        ("sets of four labels", Sample::Sets(Sets::new(4, sets, &probabilities).expect(suits))),
    ]
}
