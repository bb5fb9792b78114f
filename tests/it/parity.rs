//! Equality with Hugging Face on every golden case: identical token ids, logits within 1e-4.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use couplet::model::{Model, PackedBatch, Tokenizer};
use couplet::ops::{Kernels, Precision};
use datafusion::parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::Value;

use crate::support::{golden, quickstart_model, shared, skip, write};
use crate::tiny::Variant;

/// The largest accepted difference of a logit.
const TOLERANCE: f32 = 1e-4;

/// A text or pair with its maximum length.
struct Case {
    name: String,
    text: String,
    text_pair: Option<String>,
    max_length: usize,
}

fn json_lines(name: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(golden(name)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn edge_cases() -> Vec<Case> {
    let string = |value: &Value| value.as_str().map(str::to_owned);
    json_lines("edge_cases.jsonl")
        .iter()
        .map(|case| Case {
            name: string(&case["name"]).unwrap(),
            text: string(&case["text"]).unwrap(),
            text_pair: string(&case["text_pair"]),
            max_length: usize::try_from(case["max_length"].as_u64().unwrap()).unwrap(),
        })
        .collect()
}

/// All 525 bundled pairs.
fn quickstart_pairs() -> Vec<Case> {
    let file = std::fs::File::open(quickstart_model().join("../pairs.parquet")).unwrap();
    let batches = ParquetRecordBatchReaderBuilder::try_new(file).unwrap().build().unwrap();
    let mut cases = Vec::new();
    for batch in batches {
        let batch = batch.unwrap();
        let column = |name: &str| {
            let column =
                arrow::compute::cast(batch.column_by_name(name).unwrap(), &arrow::datatypes::DataType::Utf8).unwrap();
            arrow::array::AsArray::as_string::<i32>(&column).clone()
        };
        let (ids, first, second) = (column("id"), column("sentence1"), column("sentence2"));
        cases.extend((0..batch.num_rows()).map(|row| Case {
            name: ids.value(row).into(),
            text: first.value(row).into(),
            text_pair: Some(second.value(row).into()),
            max_length: 128,
        }));
    }
    cases
}

/// A model with one tokenizer per requested length.
struct Checked {
    model: Model,
    tokenizers: HashMap<usize, Tokenizer>,
}

impl Checked {
    fn load(folder: &Path, kernels: Kernels) -> Self {
        Self { model: Model::load_with(folder, &Device::Cpu, kernels).unwrap(), tokenizers: HashMap::new() }
    }

    fn encode(&mut self, case: &Case) -> couplet::model::Encoding {
        let tokenizer = self
            .tokenizers
            .entry(case.max_length)
            .or_insert_with(|| self.model.tokenizer.with_max_length(case.max_length).unwrap());
        tokenizer.encode(&case.text, case.text_pair.as_deref()).unwrap()
    }

    /// Logits of the cases in packed batches of `size`.
    fn logits(&mut self, cases: &[Case], size: usize) -> Vec<Vec<f32>> {
        let mut logits = Vec::new();
        for cases in cases.chunks(size) {
            let mut batch = PackedBatch::default();
            for case in cases {
                let encoding = self.encode(case);
                batch.push(&encoding.input_ids, &encoding.token_type_ids);
            }
            logits.extend(self.model.forward(&batch).unwrap().to_vec2::<f32>().unwrap());
        }
        logits
    }
}

/// The kernels that this machine supports.
fn all_kernels() -> Vec<(&'static str, Kernels)> {
    let mut kernels = vec![("fast", Kernels::for_device(&Device::Cpu)), ("reference", Kernels::reference(DType::F32))];
    #[cfg(target_arch = "x86_64")]
    kernels.extend(Kernels::avx2().map(|avx2| ("avx2", avx2)));
    kernels
}

fn numbers(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect()
}

/// The largest difference between logits in the same order; a failure names the case.
fn largest_difference(ours: &[Vec<f32>], theirs: &[Vec<f32>], names: impl Fn(usize) -> String) -> f32 {
    largest_difference_within(TOLERANCE, ours, theirs, names)
}

fn largest_difference_within(
    tolerance: f32,
    ours: &[Vec<f32>],
    theirs: &[Vec<f32>],
    names: impl Fn(usize) -> String,
) -> f32 {
    assert_eq!(ours.len(), theirs.len());
    let mut largest = 0f32;
    for (i, (ours, theirs)) in ours.iter().zip(theirs).enumerate() {
        assert_eq!(ours.len(), theirs.len());
        for (x, y) in ours.iter().zip(theirs) {
            assert!((x - y).abs() <= tolerance, "{}: {ours:?} for {theirs:?}", names(i));
            largest = largest.max((x - y).abs());
        }
    }
    largest
}

fn models() -> [(&'static str, std::path::PathBuf); 3] {
    [
        ("tiny-bert", golden("tiny-bert")),
        ("tiny-distilbert", golden("tiny-distilbert")),
        ("minilm-mrpc", quickstart_model()),
    ]
}

#[test]
fn edge_cases_match_hugging_face() {
    let cases = edge_cases();
    for (name, folder) in models() {
        let expected = json_lines(&format!("edge_cases.{name}.jsonl"));
        let theirs: Vec<Vec<f32>> = expected.iter().map(|line| numbers(&line["logits"])).collect();
        for (kind, kernels) in all_kernels() {
            let mut checked = Checked::load(&folder, kernels);
            for (case, line) in cases.iter().zip(&expected) {
                assert_eq!(line["name"].as_str(), Some(case.name.as_str()));
                let encoding = checked.encode(case);
                assert_eq!(serde_json::json!(encoding.input_ids), line["input_ids"], "{name}: {}", case.name);
                assert_eq!(serde_json::json!(encoding.token_type_ids), line["token_type_ids"], "{name}: {}", case.name);
            }
            let ours = checked.logits(&cases, 16);
            let largest = largest_difference(&ours, &theirs, |i| format!("{name}, {kind}: {}", cases[i].name));
            println!("{name}, {kind}: {} cases, largest difference of a logit {largest:.1e}", cases.len());
        }
    }
}

#[test]
fn bundled_pairs_have_the_logits_of_hugging_face() {
    let cases = quickstart_pairs();
    for (name, folder) in models() {
        let expected = json_lines(&format!("pairs.{name}.jsonl"));
        let theirs: Vec<Vec<f32>> = expected.iter().map(|line| numbers(&line["logits"])).collect();
        let mut checked = Checked::load(&folder, Kernels::for_device(&Device::Cpu));
        for (case, line) in cases.iter().zip(&expected) {
            assert_eq!(line["id"].as_str(), Some(case.name.as_str()));
            assert_eq!(
                line["tokens"].as_u64(),
                Some(checked.encode(case).input_ids.len() as u64),
                "{name}: {}",
                case.name
            );
        }
        let ours = checked.logits(&cases, 32);
        let largest = largest_difference(&ours, &theirs, |i| format!("{name}: {}", cases[i].name));
        println!("{name}: {} pairs, largest difference of a logit {largest:.1e}", cases.len());
    }
}

#[test]
fn each_activation_has_the_logits_of_hugging_face() {
    let lines = json_lines("activations.jsonl");
    let mut activations = 0;
    for lines in lines.chunk_by(|a, b| a["model"] == b["model"] && a["activation"] == b["activation"]) {
        let (model, activation) = (lines[0]["model"].as_str().unwrap(), &lines[0]["activation"]);
        let key = if model == "tiny-bert" { "hidden_act" } else { "activation" };
        let variant = Variant::of(model).with_config(key, activation.clone());
        let mut cases = edge_cases();
        cases.retain(|case| lines.iter().any(|line| line["name"] == case.name));
        let theirs: Vec<Vec<f32>> = lines.iter().map(|line| numbers(&line["logits"])).collect();
        for (kind, kernels) in all_kernels() {
            let ours = Checked::load(variant.folder(), kernels).logits(&cases, 8);
            largest_difference(&ours, &theirs, |i| format!("{model}, {activation}, {kind}: {}", cases[i].name));
        }
        activations += 1;
    }
    // Eight names of four functions. The two forms of GELU differ by 9e-4 here, nine times the tolerance.
    assert_eq!(activations, 2 * 8);
}

#[test]
fn a_pytorch_archive_with_old_names_gives_the_same_model() {
    let cases = edge_cases();
    let [safetensors, archive] = ["tiny-bert", "tiny-bert-bin"]
        .map(|name| Checked::load(&golden(name), Kernels::for_device(&Device::Cpu)).logits(&cases, 8));
    assert_eq!(safetensors, archive);
}

/// Rows of MRPC's training part.
fn mrpc(path: &Path) -> Vec<Case> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines()
        .skip(1)
        .enumerate()
        .map(|(row, line)| {
            let fields: Vec<&str> = line.split('\t').collect();
            Case {
                name: format!("row {row}"),
                text: fields[3].into(),
                text_pair: Some(fields[4].into()),
                max_length: 128,
            }
        })
        .collect()
}

fn tab_separated(path: &Path) -> Vec<Vec<f32>> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().skip(1).map(|line| line.split('\t').map(|field| field.parse().unwrap()).collect()).collect()
}

#[test]
fn all_mrpc_pairs_have_the_reference_logits() {
    let test = "all_mrpc_pairs_have_the_reference_logits";
    let (Some(corpus), Some(folder)) =
        (shared(test, "data/mrpc/msr_paraphrase_train.txt"), shared(test, "models/minilm-mrpc"))
    else {
        return;
    };
    let cases = mrpc(&corpus);
    let reference = tab_separated(&folder.join("reference_logits.tsv"));
    assert_eq!((cases.len(), reference.len()), (4076, 4076));
    let mut checked = Checked::load(&folder, Kernels::for_device(&Device::Cpu));
    for (case, row) in cases.iter().zip(&reference) {
        assert_eq!(checked.encode(case).input_ids.len() as f32, row[3], "{}", case.name);
    }
    let theirs: Vec<Vec<f32>> = reference.iter().map(|row| row[4..].to_vec()).collect();
    let largest = largest_difference(&checked.logits(&cases, 16), &theirs, |i| cases[i].name.clone());
    println!("4,076 pairs, largest difference of a logit {largest:.1e}");
}

#[test]
fn real_bert_weights_under_a_head_have_the_reference_logits() {
    let test = "real_bert_weights_under_a_head_have_the_reference_logits";
    let (Some(corpus), Some(base)) =
        (shared(test, "data/mrpc/msr_paraphrase_train.txt"), shared(test, "models/minilm-base"))
    else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(base.join(file), folder.path().join(file)).unwrap();
    }
    let mut config: Value = serde_json::from_slice(&std::fs::read(base.join("config.json")).unwrap()).unwrap();
    config["architectures"] = serde_json::json!(["BertForSequenceClassification"]);
    config["id2label"] = serde_json::json!({"0": "a", "1": "b"});
    write(&folder.path().join("config.json"), config.to_string());
    // The head that the golden file was made with.
    let weight: Vec<f32> = (0..2 * 384).map(|i| (0.05 * (0.1 * f64::from(i) + 1.0).sin()) as f32).collect();
    let mut tensors = candle_core::safetensors::load(base.join("model.safetensors"), &Device::Cpu).unwrap();
    tensors.insert("classifier.weight".into(), Tensor::from_vec(weight, (2, 384), &Device::Cpu).unwrap());
    tensors.insert("classifier.bias".into(), Tensor::new(&[0.1f32, -0.1], &Device::Cpu).unwrap());
    candle_core::safetensors::save(&tensors, folder.path().join("model.safetensors")).unwrap();

    let reference = tab_separated(&golden("mrpc.minilm-base.tsv"));
    let cases = &mrpc(&corpus)[..reference.len()];
    let mut checked = Checked::load(folder.path(), Kernels::for_device(&Device::Cpu));
    let theirs: Vec<Vec<f32>> = reference.iter().map(|row| row[2..].to_vec()).collect();
    let largest = largest_difference(&checked.logits(cases, 16), &theirs, |i| cases[i].name.clone());
    // These logits span 0.2, so a lower tolerance than usual is needed to detect a wrong activation.
    assert!(largest < 2e-5, "{largest}");
    println!("{} pairs, largest difference of a logit {largest:.1e}", cases.len());
}

#[test]
fn all_instruction_sets_give_the_same_bits() {
    #[cfg(target_arch = "x86_64")]
    if let Some(avx2) = Kernels::avx2() {
        let cases = &quickstart_pairs()[..64];
        let best = Checked::load(&quickstart_model(), Kernels::for_device(&Device::Cpu)).logits(cases, 16);
        let avx2 = Checked::load(&quickstart_model(), avx2).logits(cases, 7);
        assert_eq!(best, avx2);
        return;
    }
    skip("all_instruction_sets_give_the_same_bits", "this CPU has no AVX2");
}

fn softmax(logits: &[f32]) -> Vec<f32> {
    let exp: Vec<f32> = logits.iter().map(|x| x.exp()).collect();
    exp.iter().map(|x| x / exp.iter().sum::<f32>()).collect()
}

fn argmax(logits: &[f32]) -> usize {
    (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap()
}

/// Asserts that int16 changes little: the mean logit by 0.003, no probability by 0.02, and few labels.
fn assert_int16_is_near(folder: &Path, cases: &[Case], labels: usize) {
    let f32_kernels = Kernels::for_device(&Device::Cpu);
    let Some(int16_kernels) = Kernels::with_precision(&Device::Cpu, Precision::Int16) else {
        return skip("int16 against f32", "this CPU has no AVX2");
    };
    let exact = Checked::load(folder, f32_kernels).logits(cases, 16);
    let near = Checked::load(folder, int16_kernels).logits(cases, 16);
    let (mut sum, mut largest, mut changed) = (0.0, 0f32, 0);
    for (exact, near) in exact.iter().zip(&near) {
        sum += exact.iter().zip(near).map(|(x, y)| f64::from((x - y).abs())).sum::<f64>() / exact.len() as f64;
        let probabilities = softmax(exact).into_iter().zip(softmax(near));
        largest = probabilities.map(|(p, q)| (p - q).abs()).fold(largest, f32::max);
        changed += usize::from(argmax(exact) != argmax(near));
    }
    let mean = sum / cases.len() as f64;
    println!(
        "int16 on {} pairs: mean difference of a logit {mean:.5}, largest of a probability {largest:.5}, {changed} labels",
        cases.len()
    );
    assert!(mean <= 0.003 && largest <= 0.02 && changed <= labels, "{mean} {largest} {changed}");
}

#[test]
fn int16_changes_the_bundled_pairs_little() {
    assert_int16_is_near(&quickstart_model(), &quickstart_pairs(), 1);
}

#[test]
fn int16_changes_mrpc_little() {
    let test = "int16_changes_mrpc_little";
    if let Some(corpus) = shared(test, "data/mrpc/msr_paraphrase_train.txt") {
        assert_int16_is_near(&quickstart_model(), &mrpc(&corpus), 4);
    }
}

#[test]
fn the_distilbert_of_candle_agrees() {
    use candle_nn::{Module, VarBuilder};
    use candle_transformers::models::distilbert;
    let folder = quickstart_model();
    let mut config: Value = serde_json::from_slice(&std::fs::read(folder.join("config.json")).unwrap()).unwrap();
    config["model_type"] = "distilbert".into();
    let config: distilbert::Config = serde_json::from_value(config).unwrap();
    let tensors = candle_core::safetensors::load(folder.join("model.safetensors"), &Device::Cpu).unwrap();
    let tensors = tensors.into_iter().map(|(name, tensor)| (name, tensor.to_dtype(DType::F32).unwrap())).collect();
    let weights = VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
    let encoder = distilbert::DistilBertModel::load(weights.clone(), &config).unwrap();
    let pre_classifier = candle_nn::linear(384, 384, weights.pp("pre_classifier")).unwrap();
    let classifier = candle_nn::linear(384, 2, weights.pp("classifier")).unwrap();

    let cases = &quickstart_pairs()[..8];
    let mut checked = Checked::load(&folder, Kernels::for_device(&Device::Cpu));
    let theirs: Vec<Vec<f32>> = cases
        .iter()
        .map(|case| {
            let ids = Tensor::new(checked.encode(case).input_ids, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
            // Non-zero means masked, and nothing is masked.
            let mask = ids.zeros_like().unwrap().to_dtype(DType::U8).unwrap();
            let hidden = encoder.forward(&ids, &mask.unsqueeze(0).unwrap().unsqueeze(0).unwrap()).unwrap();
            let first = hidden.narrow(1, 0, 1).unwrap().squeeze(1).unwrap();
            let logits = classifier.forward(&pre_classifier.forward(&first).unwrap().relu().unwrap()).unwrap();
            logits.squeeze(0).unwrap().to_vec1().unwrap()
        })
        .collect();
    // It uses the tanh approximation of GELU; the checkpoints use erf.
    largest_difference_within(1e-2, &checked.logits(cases, 8), &theirs, |i| cases[i].name.clone());
}
