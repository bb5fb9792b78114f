//! A streaming writer of safetensors files.
//!
//! The `safetensors` crate writes to a path or into memory. A training state is three times as large as the model, and
//! is written to a file that is published only when it is complete. Therefore this writer streams one tensor at a time.
//!
//! **Source**: the description of the format in the README of huggingface/safetensors.

use std::io::{self, Write};

use candle_core::Tensor;
use serde_json::{Map, Value, json};

/// A tensor in a safetensors file.
pub struct Entry<'a> {
    /// The name of the tensor.
    pub name: String,
    /// The shape of the tensor.
    pub shape: Vec<usize>,
    /// The values in row-major order.
    pub data: Data<'a>,
}

/// The values of a tensor.
pub enum Data<'a> {
    /// An f32 tensor on any device.
    Tensor(&'a Tensor),
    /// 32-bit floats.
    F32(&'a [f32]),
    /// 64-bit integers.
    I64(Vec<i64>),
    /// Bytes.
    U8(Vec<u8>),
}

impl<'a> Entry<'a> {
    /// Creates an entry with the name, shape and values of an f32 tensor.
    #[must_use]
    pub fn of_tensor(name: String, tensor: &'a Tensor) -> Self {
        Self { name, shape: tensor.dims().to_vec(), data: Data::Tensor(tensor) }
    }

    /// Creates an entry with one dimension.
    #[must_use]
    pub fn row(name: &str, data: Data<'a>) -> Self {
        let length = match &data {
            Data::Tensor(tensor) => tensor.elem_count(),
            Data::F32(values) => values.len(),
            Data::I64(values) => values.len(),
            Data::U8(values) => values.len(),
        };
        Self { name: name.to_owned(), shape: vec![length], data }
    }

    /// Returns the name of the data type and the size of a value in bytes.
    fn dtype(&self) -> (&'static str, usize) {
        match self.data {
            Data::Tensor(_) | Data::F32(_) => ("F32", 4),
            Data::I64(_) => ("I64", 8),
            Data::U8(_) => ("U8", 1),
        }
    }

    /// Writes the values in little-endian order.
    fn write(&self, file: &mut impl Write) -> io::Result<()> {
        match &self.data {
            Data::Tensor(tensor) => {
                let values = tensor.flatten_all().and_then(|values| values.to_vec1::<f32>());
                write_all(file, &values.map_err(io::Error::other)?, f32::to_le_bytes)
            }
            Data::F32(values) => write_all(file, values, f32::to_le_bytes),
            Data::I64(values) => write_all(file, values, i64::to_le_bytes),
            Data::U8(values) => file.write_all(values),
        }
    }
}

/// Writes a safetensors file. The output is deterministic.
///
/// # Errors
/// Returns an error if writing fails, or if the values cannot be copied from the device.
pub fn write(mut entries: Vec<Entry>, file: &mut impl Write) -> io::Result<()> {
    // The largest data types first, so that all values are aligned.
    entries.sort_by(|a, b| b.dtype().1.cmp(&a.dtype().1).then_with(|| a.name.cmp(&b.name)));
    let mut header = Map::new();
    // transformers requires this entry.
    header.insert("__metadata__".into(), json!({ "format": "pt" }));
    let mut end = 0;
    for entry in &entries {
        let (dtype, bytes) = entry.dtype();
        let start = end;
        end += entry.shape.iter().product::<usize>() * bytes;
        header
            .insert(entry.name.clone(), json!({ "dtype": dtype, "shape": entry.shape, "data_offsets": [start, end] }));
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(&header)?;
    entries.iter().try_for_each(|entry| entry.write(file))
}

fn write_all<T: Copy, const N: usize>(
    file: &mut impl Write,
    values: &[T],
    bytes: impl Fn(T) -> [u8; N],
) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(N << 13);
    for chunk in values.chunks(1 << 13) {
        buffer.clear();
        buffer.extend(chunk.iter().flat_map(|value| bytes(*value)));
        file.write_all(&buffer)?;
    }
    Ok(())
}
