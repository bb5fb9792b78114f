//! candle-transformers' unmodified DistilBERT, from Parquet to Parquet: `candle-peer PAIRS MODEL OUT`.
//! candle has no classification head for it, so the two linear layers are added here.

use std::{env, fs::File, path::Path, sync::Arc};

use anyhow::{Context, Result, anyhow};
use arrow::array::{Array, ArrayRef, AsArray, FixedSizeListArray, Float32Array, RecordBatch};
use arrow::compute::{cast, concat_batches};
use arrow::datatypes::{DataType, Field};
use candle_core::{D, DType, Device, Tensor};
use candle_nn::{Linear, Module, VarBuilder, linear, ops::softmax};
use candle_transformers::models::distilbert::{Config, DistilBertModel};
use parquet::arrow::{ArrowWriter, arrow_reader::ParquetRecordBatchReaderBuilder};
use tokenizers::{Encoding, Tokenizer, TruncationParams};

const BATCH: usize = 32;
const MAX_LENGTH: usize = 128;

struct Classifier {
    encoder: DistilBertModel,
    pre_classifier: Linear,
    classifier: Linear,
}

impl Classifier {
    fn load(dir: &Path) -> Result<Self> {
        let json: serde_json::Value =
            serde_json::from_reader(File::open(dir.join("config.json"))?)?;
        let labels = json["id2label"].as_object().context("id2label")?.len();
        let config: Config = serde_json::from_value(json)?;
        let weights = [dir.join("model.safetensors")];
        // SAFETY: the file is mapped, and nothing writes to it while the benchmark runs.
        let vb =
            unsafe { VarBuilder::from_mmaped_safetensors(&weights, DType::F32, &Device::Cpu)? };
        Ok(Self {
            encoder: DistilBertModel::load(vb.pp("distilbert"), &config)?,
            pre_classifier: linear(config.dim, config.dim, vb.pp("pre_classifier"))?,
            classifier: linear(config.dim, labels, vb.pp("classifier"))?,
        })
    }

    /// Returns the probabilities `[B, L]` of a batch, padded to its longest sequence.
    fn forward(&self, batch: &[Encoding]) -> Result<Tensor> {
        let length = batch.iter().map(|e| e.get_ids().len()).max().unwrap_or(0);
        let shape = (batch.len(), length);
        let padded = |e: &Encoding| {
            (0..length)
                .map(|i| e.get_ids().get(i).copied().unwrap_or(0))
                .collect::<Vec<_>>()
        };
        let input_ids =
            Tensor::from_vec(batch.iter().flat_map(padded).collect(), shape, &Device::Cpu)?;
        // candle's DistilBERT fills where the mask is 1, so 1 means padding here.
        let padding = input_ids.eq(0u32)?.reshape((batch.len(), 1, 1, length))?;
        let cls = self
            .encoder
            .forward(&input_ids, &padding)?
            .narrow(1, 0, 1)?
            .squeeze(1)?
            .contiguous()?;
        let logits = self
            .classifier
            .forward(&self.pre_classifier.forward(&cls)?.relu()?)?;
        Ok(softmax(&logits, D::Minus1)?)
    }
}

fn encode(tokenizer: &Tokenizer, pairs: &RecordBatch) -> Result<Vec<Encoding>> {
    let text = |name| -> Result<ArrayRef> {
        Ok(cast(
            pairs.column_by_name(name).context(name)?,
            &DataType::Utf8,
        )?)
    };
    let (first, second) = (text("sentence1")?, text("sentence2")?);
    let (first, second) = (first.as_string::<i32>(), second.as_string::<i32>());
    let inputs = (0..pairs.num_rows())
        .map(|i| (first.value(i), second.value(i)))
        .collect::<Vec<_>>();
    tokenizer
        .encode_batch_fast(inputs, true)
        .map_err(|e| anyhow!(e))
}

fn main() -> Result<()> {
    let [pairs, model, out] = env::args()
        .skip(1)
        .collect::<Vec<_>>()
        .try_into()
        .map_err(|_| anyhow!("usage: candle-peer PAIRS MODEL OUT"))?;
    let model = Path::new(&model);

    let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(pairs)?)?;
    let schema = reader.schema().clone();
    let batches = reader.build()?.collect::<Result<Vec<_>, _>>()?;
    let pairs = concat_batches(&schema, &batches)?;

    let mut tokenizer =
        Tokenizer::from_file(model.join("tokenizer.json")).map_err(|e| anyhow!(e))?;
    let truncation = TruncationParams {
        max_length: MAX_LENGTH,
        ..Default::default()
    };
    tokenizer
        .with_truncation(Some(truncation))
        .map_err(|e| anyhow!(e))?;
    let encodings = encode(&tokenizer, &pairs)?;

    let classifier = Classifier::load(model)?;
    let mut probabilities = Vec::new();
    for batch in encodings.chunks(BATCH) {
        probabilities.extend(classifier.forward(batch)?.flatten_all()?.to_vec1::<f32>()?);
    }

    let labels = (probabilities.len() / pairs.num_rows().max(1)) as i32;
    let item = Arc::new(Field::new("item", DataType::Float32, false));
    let column: ArrayRef = Arc::new(FixedSizeListArray::try_new(
        item,
        labels,
        Arc::new(Float32Array::from(probabilities)),
        None,
    )?);
    let scored = RecordBatch::try_from_iter([
        ("id", pairs.column_by_name("id").context("id")?.clone()),
        ("probabilities", column),
    ])?;
    let mut writer = ArrowWriter::try_new(File::create(out)?, scored.schema(), None)?;
    writer.write(&scored)?;
    writer.close()?;
    Ok(())
}
