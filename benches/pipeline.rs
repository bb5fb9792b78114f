//! A whole run of the bundled pipeline, from its Parquet file to the published one, including the model load, in pairs
//! per second.

use std::collections::BTreeMap;

use couplet::progress::Style;
use couplet::run::{RunOptions, RunState};
use criterion::{Criterion, Throughput};

pub fn bench(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let folder = std::env::temp_dir().join(format!("couplet-bench-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let path = crate::model().with_file_name("pipeline.toml");
    let text = std::fs::read_to_string(&path).expect("the pipeline is in the repository");
    let mut group = criterion.benchmark_group("pipeline");
    let [pairs, _] = crate::pairs();
    group.sample_size(10).throughput(Throughput::Elements(pairs.iter().len() as u64));
    for precision in ["f32", "auto"] {
        let text = text
            .replace("../../out", &folder.display().to_string())
            .replace("[sink]", &format!("precision = \"{precision}\"\n[sink]"))
            .replace("[sink]", &format!("[score]\nstore = \"{}/state\"\n[sink]", folder.display()));
        // Each round scores everything again instead of using the previous round's cache.
        let fresh = RunOptions { fresh: true, ..RunOptions::default() };
        let pipeline = couplet::config::parse(&path, &text, &BTreeMap::new()).expect("a pipeline");
        group.bench_function(precision, |bencher| {
            bencher.iter(|| {
                let (variables, mut state) = (BTreeMap::new(), RunState::begin());
                let (fresh, stop) = (fresh.clone(), std::future::pending());
                let run = couplet::run::run(&pipeline, &variables, &[], fresh, Style::Quiet, stop, &mut state);
                runtime.block_on(run).expect("a report")
            });
        });
    }
    group.finish();
    // A failed cleanup is no reason to fail the benchmark.
    let _ = std::fs::remove_dir_all(&folder);
}
